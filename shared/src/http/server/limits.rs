//! How much a server takes on, and how long it waits.

use std::time::Duration;

/// What bounds a [`Server`](super::Server).
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Handlers that run at the same time; requests that wait for an answer from elsewhere don't count.
    pub workers: usize,
    /// Connections at once; with more, those that waited longest for a request are closed.
    pub connections: usize,
    /// How long a connection may stay open without a request.
    pub idle: Duration,
    /// From a request's first byte to its last.
    pub request: Duration,
    /// How long a request may wait until one of the running handlers is done.
    pub permit: Duration,
    /// How long a request that was handed on waits for its answer.
    pub answer: Duration,
    /// How long a client may take to take in an answer.
    pub write: Duration,
    /// After so long at the earliest a request that was not let in is answered: clients that repeat theirs at once must not cost
    /// what the work needs that was let in.
    pub refusal: Duration,
}

impl ServerLimits {
    /// The most connections that a service asks for; each has a thread (some 20 KiB of memory while it waits).
    pub const MAX_CONNECTIONS: usize = 2_500;
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            workers: 4,
            connections: ServerLimits::MAX_CONNECTIONS,
            // longer than the pauses of a client's connection pool, so that a pool sees few connections closed under it
            idle: Duration::from_secs(75),
            // the largest body arrives in time at 27 kbit/s
            request: Duration::from_secs(20),
            permit: Duration::from_secs(10),
            // longer than the longest `?wait`, and shorter than a database call may hang before the process is ended
            answer: Duration::from_secs(40),
            // the largest answer is a few hundred KiB
            write: Duration::from_secs(20),
            // a client that is alone hardly notices it
            refusal: Duration::from_millis(200),
        }
    }
}
