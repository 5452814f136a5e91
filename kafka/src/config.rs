//! Where the brokers are and how long this client waits for them.

use std::time::Duration;

/// The settings every client object of this crate is built from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bootstrap addresses, each `host:port`. One that answers is enough; the others are learnt from it.
    pub brokers: Vec<String>,
    /// The name this client gives itself in each request (Kafka's `client.id`), seen in the broker's logs and quotas.
    pub client_id: String,
    /// The limit of opening one connection, its ApiVersions handshake included.
    pub connect_timeout: Duration,
    /// The limit of one call of this crate, its retries included. Calls that wait at the broker by design
    /// (a long poll, a group's rebalance) add that wait to it.
    pub request_timeout: Duration,
    /// The longest answer that is accepted, in bytes. A longer one ends the connection before anything is allocated.
    pub max_frame_bytes: usize,
}

impl Config {
    /// Settings for these brokers: 5 s to connect, 15 s a request, frames up to 64 MiB.
    pub fn new(brokers: Vec<String>, client_id: impl Into<String>) -> Config {
        Config {
            brokers,
            client_id: client_id.into(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            // The Java consumer asks for 50 MiB a fetch at most (fetch.max.bytes); this leaves room above it.
            max_frame_bytes: 64 << 20,
        }
    }
}
