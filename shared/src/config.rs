//! Settings: one environment variable each, with a default, a unit and a check. `Config::read` is the list of them.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::db::Limits;
use crate::event::Service;
use crate::http::AdminToken;

mod addresses;
mod kafka_security;
mod reader;
mod times;
pub mod traces;

pub use reader::Setting;
pub use times::Retention;
use times::parse_duration;
use traces::Traces;

use addresses::leads_to_loopback;
use reader::Reader;

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
    /// How what is published is compressed (`KAFKA_COMPRESSION`).
    pub kafka_compression: kafka::Compression,
    /// Put before every topic, group and transactional id (`TOPIC_PREFIX`).
    pub topic_prefix: String,
    /// Partitions of a topic that is created (`TOPIC_PARTITIONS`).
    pub topic_partitions: i32,
    /// Replicas of a topic that is created (`TOPIC_REPLICATION`); none: the broker's default.
    pub topic_replication: Option<i16>,
    /// From publication to the end of a side's patience (`ORDER_DEADLINE`).
    pub order_deadline: Duration,
    /// Orders are refused when what waits would take longer than this to settle (`ADMISSION_LIMIT`).
    pub admission_limit: Duration,
    /// First wait for the confirmation of a compensation; it doubles (`COMPENSATION_RETRY`).
    pub compensation_retry: Duration,
    /// Consumer threads (`CONSUMERS`).
    pub consumers: usize,
    /// Threads that answer HTTP requests (`HTTP_WORKERS`).
    pub http_workers: usize,
    /// Outbox rows in one Kafka transaction (`RELAY_BATCH`).
    pub relay_batch: usize,
    /// What browsers reach the payment service by (`PAYMENT_URL`).
    pub payment_url: String,
    /// What browsers reach the stock service by (`STOCK_URL`).
    pub stock_url: String,
    /// How long to wait at the start for PostgreSQL and Kafka (`STARTUP_LIMIT`).
    pub startup_limit: Duration,
    /// How long everything goes on after a signal, `/readyz` apart (`SHUTDOWN_DELAY`).
    pub shutdown_delay: Duration,
    /// The bearer token of calls that change something (`ADMIN_TOKEN`).
    pub admin_token: Option<AdminToken>,
    /// The origins whose pages may use the service (`CORS_ORIGINS`).
    pub cors_origins: Vec<String>,
    /// How long an idempotency key is kept (`IDEMPOTENCY_KEY_RETENTION`).
    pub idempotency_key_retention: Duration,
    /// How long a handled dead letter is kept (`DEAD_LETTER_RETENTION`).
    pub dead_letter_retention: Retention,
    /// How long an order's steps are kept (`TIMELINE_RETENTION`).
    pub timeline_retention: Retention,
    /// How often what is too old is removed (`HOUSEKEEPING_INTERVAL`).
    pub housekeeping_interval: Duration,
    /// Without progress of a thread for so long `/healthz` returns 503 (`HEARTBEAT_LIMIT`).
    pub heartbeat_limit: Duration,
    /// What is logged (`LOG_LEVEL`).
    pub log_level: log::LevelFilter,
    /// Whether and how spans are exported (`OTEL_…`).
    pub traces: Option<Traces>,
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
        Config::from_lookup(service, |name| std::env::var_os(name))
    }

    /// The same from any source of variables; an empty value counts as absent.
    ///
    /// # Errors
    /// As [`Config::from_env`].
    pub fn from_lookup(
        service: Service,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Config, ConfigError> {
        let mut read = Reader::new(&lookup);
        let config = Config::read(&mut read, service);
        if !config.bind.is_loopback() && config.admin_token.is_none() {
            read.errors.push(format!(
                "BIND={}: others can reach this address, so ADMIN_TOKEN must be set: it is required for calls that change something",
                config.bind
            ));
        }
        if read.errors.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(read.errors))
        }
    }

    /// Every setting of `service`, in the order in which they are read: what `--help` shows.
    pub fn settings(service: Service) -> Vec<Setting> {
        let mut read = Reader::new(&|_| None);
        Config::read(&mut read, service);
        read.settings
    }

    /// The one list of the settings: what is read is known, with its default, what it takes and what it means.
    fn read(read: &mut Reader<'_>, service: Service) -> Config {
        let upper = service.name().to_uppercase();
        let order_deadline = read.duration(
            "ORDER_DEADLINE",
            "300s",
            "from publication until a silent side is asked to give back",
        );
        Config {
            service,
            bind: read.parsed("BIND", "127.0.0.1", "an IP address", "address to listen on; 0.0.0.0: all"),
            port: read.port(&format!("{upper}_PORT"), service),
            database_url: read.database_url(service),
            brokers: read.brokers(),
            kafka_security: read.kafka_security(),
            kafka_compression: read.kafka_compression(),
            topic_prefix: read.topic_prefix(),
            topic_partitions: read.number("TOPIC_PARTITIONS", 3, 1..=1_000, "partitions of topics that are created"),
            topic_replication: read.optional_number(
                "TOPIC_REPLICATION",
                1..=32,
                "replicas of topics that are created; without it the broker's default",
            ),
            order_deadline,
            admission_limit: read.admission_limit(order_deadline),
            compensation_retry: read.duration(
                "COMPENSATION_RETRY",
                "60s",
                "until an unconfirmed compensation is asked for again; doubles up to 1h",
            ),
            consumers: read.number("CONSUMERS", 1, 1..=64, "consumer threads"),
            http_workers: read.number("HTTP_WORKERS", 4, 1..=64, "handlers that run at once"),
            relay_batch: read.number("RELAY_BATCH", 2_000, 1..=10_000, "outbox rows in one Kafka transaction"),
            payment_url: read.url_of_host("PAYMENT_URL", Service::Payment),
            stock_url: read.url_of_host("STOCK_URL", Service::Stock),
            startup_limit: read.duration("STARTUP_LIMIT", "60s", "to wait for PostgreSQL and Kafka at the start"),
            shutdown_delay: read.delay(
                "SHUTDOWN_DELAY",
                "0s",
                "at SIGTERM or SIGINT /readyz answers 503 for so long and all else goes on, then it stops; a second signal ends it",
            ),
            admin_token: read.admin_token(),
            cors_origins: read.origins(),
            idempotency_key_retention: read.days(
                "IDEMPOTENCY_KEY_RETENTION",
                "24h",
                "how long a repeated request finds its order by its Idempotency-Key, at least",
            ),
            dead_letter_retention: read
                .retention("DEAD_LETTER_RETENTION", "how long a dead letter is kept that was replayed or discarded"),
            timeline_retention: read.retention("TIMELINE_RETENTION", "how long a settled order's steps are kept"),
            housekeeping_interval: read.duration(
                "HOUSEKEEPING_INTERVAL",
                "60s",
                "how often what is too old is removed",
            ),
            heartbeat_limit: read.duration(
                "HEARTBEAT_LIMIT",
                "60s",
                "/healthz returns 503 when a thread has made no progress for this long",
            ),
            log_level: read.parsed("LOG_LEVEL", "info", "off, error, warn, info, debug or trace", "what is logged"),
            traces: read.traces(),
        }
    }

    /// What to know about settings that are legal, and are likely not meant.
    pub fn remarks(&self) -> Vec<String> {
        let longest_call = Limits::WORK.statement;
        let hasty = (self.heartbeat_limit <= longest_call).then(|| {
            let limit = self.heartbeat_limit;
            format!("HEARTBEAT_LIMIT={limit:?}: a call may take {longest_call:?}; /healthz may report a thread that only waits")
        });
        let urls = [
            ("PAYMENT_URL", &self.payment_url),
            ("STOCK_URL", &self.stock_url),
        ];
        let has_page = self.service == Service::Order && !self.bind.is_loopback();
        let astray = urls.into_iter().filter(|(_, url)| has_page && leads_to_loopback(url)).map(|(name, url)| {
            format!(
                "{name}={url}: a browser elsewhere looks for it, and sends the operator's token, on its own machine"
            )
        });
        hasty.into_iter().chain(astray).collect()
    }

    /// Where the instance is reached from its own machine: one that listens on all addresses, by the loopback one.
    pub fn local_address(&self) -> SocketAddr {
        let ip = match self.bind {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.port)
    }

    /// The service's consumer group.
    pub fn group(&self) -> String {
        format!("{}{}", self.topic_prefix, self.service.name())
    }

    /// The transactional id of its relays, one for all instances.
    pub fn transactional_id(&self) -> String {
        format!("{}{}-relay", self.topic_prefix, self.service.name())
    }

    /// What a client of Kafka with this name is built from.
    pub fn kafka(&self, client_id: &str) -> kafka::Config {
        kafka::Config {
            security: self.kafka_security.clone(),
            compression: self.kafka_compression,
            // a silent broker is replaced within ten seconds or so, and several calls must end within `heartbeat_limit`
            request_timeout: Duration::from_secs(8),
            api_timeout: Duration::from_secs(20),
            ..kafka::Config::new(self.brokers.clone(), client_id)
        }
    }
}

fn default_port(service: Service) -> i64 {
    match service {
        Service::Order => 8080,
        Service::Stock => 8081,
        Service::Payment => 8082,
    }
}

impl Reader<'_> {
    fn kafka_compression(&mut self) -> kafka::Compression {
        let (name, takes) = ("KAFKA_COMPRESSION", "none or lz4");
        let meaning = "how what is published is compressed: lz4 takes a quarter to two thirds of the bytes under load";
        let value = self.value(name, "none", takes, meaning);
        match value.as_str() {
            "lz4" => return kafka::Compression::Lz4,
            "none" => {}
            _ => self.refuse(name, &value, takes),
        }
        kafka::Compression::None
    }

    fn admin_token(&mut self) -> Option<AdminToken> {
        let takes = "16 to 256 visible ASCII characters";
        let value = self.optional(
            "ADMIN_TOKEN",
            takes,
            "bearer token required for every call that changes something, except POST /orders",
        )?;
        let token = AdminToken::new(&value);
        if token.is_none() {
            // it is a secret: it is not repeated
            self.errors.push(format!("ADMIN_TOKEN: must be {takes}"));
        }
        token
    }

    /// A quarter of the deadline leaves room for what is estimated wrongly, and for a wait that is not over when orders come.
    fn admission_limit(&mut self, deadline: Duration) -> Duration {
        let (name, takes) = (
            "ADMISSION_LIMIT",
            "a time such as 10s, at most half of ORDER_DEADLINE",
        );
        let meaning = "orders are refused when what waits would take longer to settle; default: a quarter of ORDER_DEADLINE";
        let Some(value) = self.optional(name, takes, meaning) else {
            return deadline / 4;
        };
        parse_duration(&value)
            .filter(|limit| !limit.is_zero() && *limit <= deadline / 2)
            .unwrap_or_else(|| {
                self.refuse(name, &value, takes);
                deadline / 4
            })
    }

    fn topic_prefix(&mut self) -> String {
        let (name, takes) = (
            "TOPIC_PREFIX",
            "at most 200 of the characters a-z A-Z 0-9 . _ -",
        );
        let value = self.value(
            name,
            "",
            takes,
            "before every topic, group and transactional id",
        );
        // Kafka's topic names end at 249 characters; the longest suffix is payment.compensation
        if value.len() > 200
            || !value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        {
            self.refuse(name, &value, takes);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_lookup(Service::Order, |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).into())
        })
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let config = config(&[]).unwrap();
        assert_eq!(config.port, 8080);
        assert_eq!(config.bind.to_string(), "127.0.0.1");
        assert_eq!(config.order_deadline, Duration::from_secs(300));
        assert_eq!(config.admission_limit, Duration::from_secs(75));
        assert_eq!(config.topic_partitions, 3);
        assert_eq!(config.topic_replication, None);
        assert_eq!(config.consumers, 1);
    }

    #[test]
    fn what_kubernetes_says_of_a_service_of_the_same_name_is_passed_over() {
        assert_eq!(
            config(&[("ORDER_PORT", "tcp://10.43.161.118:8080")])
                .unwrap()
                .port,
            8080
        );
        assert_eq!(
            config(&[("ORDER_PORT", "tcp://10.43.161.118:9999")])
                .unwrap()
                .port,
            8080,
            "it is where others reach it"
        );
        assert!(
            config(&[("ORDER_PORT", "http://10.43.161.118:8080")])
                .unwrap_err()
                .to_string()
                .contains("ORDER_PORT=")
        );
    }

    #[test]
    fn every_bad_value_is_named_with_its_variable() {
        let bad = [
            ("ORDER_PORT", "0"),
            ("BIND", "here"),
            ("ORDER_DEADLINE", "5"),
            ("ADMISSION_LIMIT", "151s"),
            ("KAFKA_BROKERS", "kafka"),
            ("TOPIC_PARTITIONS", "1.5"),
            ("TOPIC_PREFIX", "a b"),
            ("LOG_LEVEL", "loud"),
            ("KAFKA_COMPRESSION", "zip"),
            ("TOPIC_REPLICATION", "0"),
            ("PAYMENT_URL", "http://127.0.0.1:8082/accounts"),
            ("STOCK_URL", "127.0.0.1:8081"),
            ("SHUTDOWN_DELAY", "5"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
        ];
        let message = config(&bad).unwrap_err().to_string();
        for (name, _) in bad {
            assert!(
                message.contains(&format!("{name}=")),
                "{name} is missing in {message}"
            );
        }
    }

    #[test]
    fn without_a_collector_no_value_for_spans_is_refused() {
        let odd = ("OTEL_TRACES_SAMPLER", "xray");
        let collector = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        assert!(config(&[odd]).unwrap().traces.is_none());
        let off = ("OTEL_SDK_DISABLED", "True");
        assert!(config(&[odd, collector, off]).unwrap().traces.is_none());
        let traces = config(&[collector]).unwrap().traces.unwrap();
        assert_eq!(traces.collector, "http://collector:4318/v1/traces");
        assert!(config(&[odd, collector]).is_err());
    }

    #[test]
    fn a_bad_database_url_is_refused_without_repeating_its_password() {
        let message = config(&[("ORDER_DATABASE_URL", "postgres://me:secret@host:port/db")])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("ORDER_DATABASE_URL") && !message.contains("secret"),
            "{message}"
        );
    }

    #[test]
    fn every_setting_says_once_what_it_takes_and_what_it_is_for() {
        let settings = Config::settings(Service::Order);
        let names: std::collections::HashSet<_> =
            settings.iter().map(|setting| &setting.name).collect();
        assert_eq!(names.len(), settings.len(), "{settings:#?}");
        for setting in &settings {
            assert!(
                !setting.takes.is_empty() && !setting.meaning.is_empty(),
                "{setting:?}"
            );
        }
    }

    #[test]
    fn a_setting_is_known_with_its_default_whatever_the_others_say() {
        let known = |name: &str| {
            Config::settings(Service::Stock)
                .into_iter()
                .find(|setting| setting.name == name)
        };
        let port = Setting {
            name: "STOCK_PORT".into(),
            default: "8081".into(),
            takes: "a whole number from 1 to 65535".into(),
            meaning: "port to listen on; tcp://…, which Kubernetes sets for a Service of this name, is passed over",
        };
        assert_eq!(known("STOCK_PORT"), Some(port));
        assert_eq!(known("TOPIC_REPLICATION").unwrap().default, "");
        assert!(
            known("KAFKA_SASL_PASSWORD").is_some(),
            "also those that only some protocols need"
        );
        assert_eq!(known("ORDER_PORT"), None, "another service's");
    }

    #[test]
    fn an_address_that_others_reach_needs_a_token_which_is_never_shown() {
        let open = config(&[("BIND", "0.0.0.0")]).unwrap_err().to_string();
        assert!(
            open.contains("BIND=0.0.0.0") && open.contains("ADMIN_TOKEN must be set"),
            "{open}"
        );
        let guarded = config(&[("BIND", "0.0.0.0"), ("ADMIN_TOKEN", "0123456789abcdef")]).unwrap();
        assert!(!format!("{guarded:?}").contains("0123456789abcdef"));
        let short = config(&[("ADMIN_TOKEN", "s3cret")])
            .unwrap_err()
            .to_string();
        assert!(
            short.contains("ADMIN_TOKEN: must be 16 to 256") && !short.contains("s3cret"),
            "{short}"
        );
    }

    #[test]
    fn a_setting_that_is_no_utf_8_is_named_and_not_passed_over() {
        use std::os::unix::ffi::OsStringExt;
        let token =
            |name: &str| (name == "ADMIN_TOKEN").then(|| OsString::from_vec(vec![0xff; 16]));
        let error = Config::from_lookup(Service::Order, token)
            .unwrap_err()
            .to_string();
        assert!(error.contains("ADMIN_TOKEN: is not UTF-8"), "{error}");
    }

    #[test]
    fn what_is_legal_and_likely_not_meant_is_remarked() {
        let (open, token) = (("BIND", "0.0.0.0"), ("ADMIN_TOKEN", "0123456789abcdef"));
        let remarks = |pairs: &[(&str, &str)]| config(pairs).unwrap().remarks();
        assert_eq!(remarks(&[]), Vec::<String>::new());
        let astray = remarks(&[open, token, ("PAYMENT_URL", "https://payment.example")]);
        assert!(
            astray.len() == 1 && astray[0].starts_with("STOCK_URL=http://127.0.0.1:8081:"),
            "{astray:?}"
        );
        let hasty = remarks(&[("HEARTBEAT_LIMIT", "30s")]);
        assert!(
            hasty.len() == 1 && hasty[0].starts_with("HEARTBEAT_LIMIT=30s:"),
            "{hasty:?}"
        );
    }
}
