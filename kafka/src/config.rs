//! Where the brokers are and how long this client waits for them.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::net::sasl::Sasl;
#[cfg(feature = "tls")]
use crate::net::tls::Tls;

/// What a connection is guarded by. Kafka's `security.protocol` by its parts: none is PLAINTEXT, both are SASL_SSL.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// SSL, as Kafka calls it.
    #[cfg(feature = "tls")]
    pub tls: Option<Tls>,
    /// Who this client is.
    pub sasl: Option<Sasl>,
}

impl Security {
    pub(crate) fn is_guarded(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

/// How batches are compressed when they are written. All of Kafka's codecs are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// As LZ4 frames (KIP-57), where that makes a batch smaller.
    Lz4,
}

/// The setters of a settings' fields.
macro_rules! setters {
    ($settings:ident: $($setter:ident($field:ident: $type:ty),)*) => {
        impl $settings {
            $(
                #[doc = concat!("With this [`", stringify!($field), "`](", stringify!($settings), "::", stringify!($field), ").")]
                #[must_use]
                pub fn $setter(self, $field: $type) -> $settings {
                    $settings { $field, ..self }
                }
            )*
        }
    };
}
pub(crate) use setters;

setters! { Config:
    with_security(security: Security),
    with_connect_timeout(connect_timeout: Duration),
    with_request_timeout(request_timeout: Duration),
    with_api_timeout(api_timeout: Duration),
    with_delivery_timeout(delivery_timeout: Duration),
    with_metadata_max_age(metadata_max_age: Duration),
    with_batch_size(batch_size: usize),
    with_compression(compression: Compression),
    with_max_frame_bytes(max_frame_bytes: usize),
}

/// The settings every client object of this crate is built from. What can't work is refused by the first call, in words.
///
/// ```
/// # use std::time::Duration;
/// use kafka::Config;
/// let config = Config::new(vec!["localhost:9092".into()], "shop").with_api_timeout(Duration::from_secs(10));
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Bootstrap addresses, each `host:port`. One that answers is enough; the others are learnt from it.
    pub brokers: Vec<String>,
    /// The name this client gives itself in each request (Kafka's `client.id`), seen in the broker's logs and quotas.
    pub client_id: String,
    /// The same for every broker.
    pub security: Security,
    /// The limit of opening one connection, the handshakes of TLS, ApiVersions and SASL included.
    pub connect_timeout: Duration,
    /// How long the answer to one request is waited for (`request.timeout.ms`); then the broker counts as gone, and another one is
    /// looked for. Requests that wait at the broker by design (a long poll, a group's rebalance) add that wait to it, and what a broker
    /// holds this client back for by a quota (KIP-219) is added, too.
    pub request_timeout: Duration,
    /// The limit of one call of this crate, its attempts together (`default.api.timeout.ms`).
    pub api_timeout: Duration,
    /// How long records are sent again (`delivery.timeout.ms`), to whoever leads their partition by then; in a transaction no longer
    /// than the transaction may last.
    pub delivery_timeout: Duration,
    /// How long what a topic looked like is relied on (`metadata.max.age.ms`): partitions that are added are written to within it.
    pub metadata_max_age: Duration,
    /// The most records are sent together to one partition, in bytes (`batch.size`); a record that is larger is sent alone. A batch that is
    /// too large for its topic (`max.message.bytes`) is halved and sent again.
    pub batch_size: usize,
    /// How batches are compressed (`compression.type`).
    pub compression: Compression,
    /// The longest answer that is accepted, in bytes. A longer one ends the connection before anything is allocated.
    pub max_frame_bytes: usize,
}

/// The moment so long from now. What no clock can tell is as good as never: a year.
pub(crate) fn after(limit: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(limit)
        .unwrap_or_else(|| now + Duration::from_secs(365 * 86_400))
}

/// As requests have it; longer ones are as long as they can be.
pub(crate) fn millis(limit: Duration) -> i32 {
    limit.as_millis().try_into().unwrap_or(i32::MAX)
}

impl Config {
    /// What can't work is refused before anything is sent.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Invalid(why));
        if self.brokers.is_empty() {
            return wrong("Config::brokers is empty: name at least one broker, host:port".into());
        }
        for address in &self.brokers {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return wrong(format!(
                    "Config::brokers: {address:?} is not host:port, as in localhost:9092"
                ));
            }
        }
        for (name, limit) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("api_timeout", self.api_timeout),
            ("delivery_timeout", self.delivery_timeout),
        ] {
            if limit.is_zero() {
                return wrong(format!(
                    "Config::{name} is zero: no broker answers in no time"
                ));
            }
        }
        Ok(())
    }

    /// Settings for these brokers: not guarded, 5 s to connect, 15 s a request, a minute a call, 2 min to deliver, topics looked at
    /// again after 5 min, batches of 900 KiB, frames up to 64 MiB.
    pub fn new(brokers: Vec<String>, client_id: impl Into<String>) -> Config {
        Config {
            brokers,
            client_id: client_id.into(),
            security: Security::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            api_timeout: Duration::from_secs(60),
            delivery_timeout: Duration::from_secs(120),
            metadata_max_age: Duration::from_secs(300),
            // Brokers take 1,048,588 bytes unless told otherwise (message.max.bytes); this leaves room for the header.
            batch_size: 900 << 10,
            compression: Compression::None,
            // The Java consumer asks for 50 MiB a fetch at most (fetch.max.bytes); this leaves room above it.
            max_frame_bytes: 64 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_can_not_work_are_refused_in_words() {
        let config = || Config::new(vec!["localhost:9092".into(), "[::1]:9093".into()], "test");
        config().check().unwrap();
        let refusal = |config: Config| config.check().unwrap_err().to_string();
        let empty = refusal(Config {
            brokers: Vec::new(),
            ..config()
        });
        assert_eq!(
            empty,
            "Config::brokers is empty: name at least one broker, host:port"
        );
        let portless = refusal(Config {
            brokers: vec!["kafka".into()],
            ..config()
        });
        assert_eq!(
            portless,
            "Config::brokers: \"kafka\" is not host:port, as in localhost:9092"
        );
        let hasty = refusal(Config {
            api_timeout: Duration::ZERO,
            ..config()
        });
        assert_eq!(
            hasty,
            "Config::api_timeout is zero: no broker answers in no time"
        );
    }
}
