//! Settings: one environment variable each, with a default, a unit and a check. Read here only.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::event::Service;
use crate::postgres_tls::Target;

#[path = "config/kafka_security.rs"]
mod kafka_security;

/// All settings of one service instance.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which of the three services this is.
    pub service: Service,
    /// Address to listen on (`BIND`).
    pub bind: IpAddr,
    /// Port to listen on (`ORDER_PORT`, `PAYMENT_PORT`, `STOCK_PORT`).
    pub port: u16,
    /// This service's database (`ORDER_DATABASE_URL`, …).
    pub database_url: String,
    /// Addresses to find the Kafka cluster by (`KAFKA_BROKERS`).
    pub brokers: Vec<String>,
    /// What guards the connections to them (`KAFKA_SECURITY_PROTOCOL`, `KAFKA_SSL_…`, `KAFKA_SASL_…`).
    pub kafka_security: kafka::Security,
    /// Put before every topic, group and transactional id (`TOPIC_PREFIX`).
    pub topic_prefix: String,
    /// Partitions of a topic that is created (`TOPIC_PARTITIONS`).
    pub topic_partitions: i32,
    /// Replicas of a topic that is created (`TOPIC_REPLICATION`); none: the broker's default.
    pub topic_replication: Option<i16>,
    /// From publication to the end of a side's patience (`ORDER_DEADLINE`).
    pub order_deadline: Duration,
    /// First wait for the confirmation of a compensation; it doubles (`COMPENSATION_RETRY`).
    pub compensation_retry: Duration,
    /// Consumer threads (`CONSUMERS`).
    pub consumers: usize,
    /// Threads that answer HTTP requests (`HTTP_WORKERS`).
    pub http_workers: usize,
    /// Outbox rows in one Kafka transaction (`RELAY_BATCH`).
    pub relay_batch: usize,
    /// How long to wait at the start for PostgreSQL and Kafka (`STARTUP_LIMIT`).
    pub startup_limit: Duration,
    /// What is logged (`LOG_LEVEL`).
    pub log_level: log::LevelFilter,
}

/// A problem with the settings: one line for every bad variable.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bad settings:\n  {}", self.0.join("\n  "))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the settings of `service` from the process's environment.
    ///
    /// # Errors
    /// Names every variable whose value can't be used, with what it takes.
    pub fn from_env(service: Service) -> Result<Config, ConfigError> {
        Config::from_lookup(service, |name| std::env::var(name).ok())
    }

    /// The same from any source of variables; an empty value counts as absent.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn from_lookup(service: Service, lookup: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let mut read = Reader { lookup: &lookup, errors: Vec::new() };
        let upper = service.name().to_uppercase();
        let config = Config {
            service,
            bind: read.parsed("BIND", "127.0.0.1", "an IP address"),
            port: read.number(&format!("{upper}_PORT"), default_port(service), 1..=65_535),
            database_url: read.database_url(service),
            brokers: read.brokers(),
            kafka_security: read.kafka_security(),
            topic_prefix: read.topic_prefix(),
            topic_partitions: read.number("TOPIC_PARTITIONS", 3, 1..=1_000),
            topic_replication: read.optional_number("TOPIC_REPLICATION", 1..=32),
            order_deadline: read.duration("ORDER_DEADLINE", "300s"),
            compensation_retry: read.duration("COMPENSATION_RETRY", "60s"),
            consumers: read.number("CONSUMERS", 1, 1..=64),
            http_workers: read.number("HTTP_WORKERS", 4, 1..=64),
            relay_batch: read.number("RELAY_BATCH", 2_000, 1..=10_000),
            startup_limit: read.duration("STARTUP_LIMIT", "60s"),
            log_level: read.parsed("LOG_LEVEL", "info", "off, error, warn, info, debug or trace"),
        };
        if read.errors.is_empty() { Ok(config) } else { Err(ConfigError(read.errors)) }
    }

    /// What a client of Kafka with this name is built from.
    pub fn kafka(&self, client_id: &str) -> kafka::Config {
        kafka::Config { security: self.kafka_security.clone(), ..kafka::Config::new(self.brokers.clone(), client_id) }
    }
}

fn default_port(service: Service) -> i64 {
    match service {
        Service::Order => 8080,
        Service::Stock => 8081,
        Service::Payment => 8082,
    }
}

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<String>,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
    }

    fn refuse(&mut self, name: &str, value: &str, wanted: &str) {
        self.errors.push(format!("{name}={value:?}: must be {wanted}"));
    }

    /// `default` must itself be parsable: it stands in for a refused value, which is never used.
    fn parsed<T: FromStr>(&mut self, name: &str, default: &str, wanted: &str) -> T {
        let value = self.value(name).unwrap_or_else(|| default.to_string());
        value.parse().unwrap_or_else(|_| {
            self.refuse(name, &value, wanted);
            default.parse().ok().expect("the default is valid")
        })
    }

    fn number<T: TryFrom<i64>>(&mut self, name: &str, default: i64, range: std::ops::RangeInclusive<i64>) -> T {
        let value = self.value(name).unwrap_or_else(|| default.to_string());
        let number = value.parse().ok().filter(|n| range.contains(n)).unwrap_or_else(|| {
            self.refuse(name, &value, &format!("a whole number from {} to {}", range.start(), range.end()));
            default
        });
        T::try_from(number).ok().expect("the range fits the type")
    }

    fn optional_number<T: TryFrom<i64>>(&mut self, name: &str, range: std::ops::RangeInclusive<i64>) -> Option<T> {
        self.value(name)?;
        let default = *range.start();
        Some(self.number(name, default, range))
    }

    fn duration(&mut self, name: &str, default: &str) -> Duration {
        let value = self.value(name).unwrap_or_else(|| default.to_string());
        parse_duration(&value).filter(|d| !d.is_zero()).unwrap_or_else(|| {
            self.refuse(name, &value, "a time such as 500ms, 30s, 5m or 1h, from 1ms to 24h");
            parse_duration(default).expect("the default is valid")
        })
    }

    fn database_url(&mut self, service: Service) -> String {
        let name = format!("{}_DATABASE_URL", service.name().to_uppercase());
        let default = format!("postgres://postgres@127.0.0.1:5432/{}db", service.name());
        let value = self.value(&name).unwrap_or(default);
        if let Err(why) = Target::parse(&value) {
            // the value may hold a password: it is not repeated
            self.errors.push(format!(
                "{name}: must be a PostgreSQL URL such as postgres://user:password@host:5432/database ({why})"
            ));
        }
        value
    }

    fn brokers(&mut self) -> Vec<String> {
        let value = self.value("KAFKA_BROKERS").unwrap_or_else(|| "127.0.0.1:9092".to_string());
        let brokers: Vec<String> = value.split(',').map(|b| b.trim().to_string()).collect();
        if !brokers.iter().all(|broker| is_host_and_port(broker)) {
            self.refuse("KAFKA_BROKERS", &value, "a list of host:port, separated by commas");
        }
        brokers
    }

    fn topic_prefix(&mut self) -> String {
        let value = self.value("TOPIC_PREFIX").unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        // Kafka's topic names end at 249 characters; the longest suffix is payment.compensation
        if value.len() > 200 || !value.chars().all(legal) {
            self.refuse("TOPIC_PREFIX", &value, "at most 200 of the characters a-z A-Z 0-9 . _ -");
        }
        value
    }
}

fn is_host_and_port(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// Reads a time such as `500ms`, `30s`, `5m` or `1h`; none if it is no such thing or longer than a day.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let total = number.parse::<u64>().ok()?.checked_mul(millis)?;
    (total <= 24 * 3_600_000).then(|| Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_lookup(Service::Order, |name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let config = config(&[]).unwrap();
        assert_eq!(config.port, 8080);
        assert_eq!(config.bind.to_string(), "127.0.0.1");
        assert_eq!(config.order_deadline, Duration::from_secs(300));
        assert_eq!(config.topic_partitions, 3);
        assert_eq!(config.topic_replication, None);
        assert_eq!(config.consumers, 1);
    }

    #[test]
    fn every_bad_value_is_named_with_its_variable() {
        let bad = [
            ("ORDER_PORT", "0"),
            ("BIND", "here"),
            ("ORDER_DEADLINE", "5"),
            ("KAFKA_BROKERS", "kafka"),
            ("TOPIC_PARTITIONS", "1.5"),
            ("TOPIC_PREFIX", "a b"),
            ("LOG_LEVEL", "loud"),
            ("TOPIC_REPLICATION", "0"),
        ];
        let message = config(&bad).unwrap_err().to_string();
        for (name, _) in bad {
            assert!(message.contains(&format!("{name}=")), "{name} is missing in {message}");
        }
    }

    #[test]
    fn a_bad_database_url_is_refused_without_repeating_its_password() {
        let message = config(&[("ORDER_DATABASE_URL", "postgres://me:secret@host:port/db")]).unwrap_err().to_string();
        assert!(message.contains("ORDER_DATABASE_URL") && !message.contains("secret"), "{message}");
    }

    #[test]
    fn durations_need_a_unit_and_end_at_a_day() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("24h"), Some(Duration::from_secs(86_400)));
        for bad in ["", "5", "s", "-1s", "1.5s", "25h", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
