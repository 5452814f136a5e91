//! Settings: one environment variable each, with a default, a unit and a check. Read here only.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::db::Limits;
use crate::event::Service;
use crate::http::AdminToken;
use crate::postgres_tls::Target;

#[path = "config/kafka_security.rs"]
mod kafka_security;

const A_DAY: Duration = Duration::from_secs(24 * 3_600);
/// Ten years: longer is for ever.
const LONGEST_RETENTION: Duration = Duration::from_secs(3_650 * 24 * 3_600);

/// Where the order service's page is by default, for browsers.
const ORDER_PAGE: &str = "http://127.0.0.1:8080,http://localhost:8080";

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
    /// What browsers reach the payment service by (`PAYMENT_URL`).
    pub payment_url: String,
    /// What browsers reach the stock service by (`STOCK_URL`).
    pub stock_url: String,
    /// How long to wait at the start for PostgreSQL and Kafka (`STARTUP_LIMIT`).
    pub startup_limit: Duration,
    /// What whoever changes things must know (`ADMIN_TOKEN`).
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
    /// Within which each thread must turn (`HEARTBEAT_LIMIT`).
    pub heartbeat_limit: Duration,
    /// What is logged (`LOG_LEVEL`).
    pub log_level: log::LevelFilter,
}

/// How long rows are kept that tell of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// As long as the topics keep the records.
    AsTopics,
    /// So long.
    For(Duration),
    /// They are not removed.
    Forever,
}

impl Retention {
    /// The time, if the topics keep records for `topics` (none: for ever); none: for ever.
    pub fn time(self, topics: Option<Duration>) -> Option<Duration> {
        match self {
            Retention::AsTopics => topics,
            Retention::For(time) => Some(time),
            Retention::Forever => None,
        }
    }
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
    pub fn from_lookup(service: Service, lookup: impl Fn(&str) -> Option<OsString>) -> Result<Config, ConfigError> {
        let mut read = Reader::new(&lookup);
        let config = Config::read(&mut read, service);
        if !config.bind.is_loopback() && config.admin_token.is_none() {
            read.errors.push(format!(
                "BIND={}: others can reach this address, so ADMIN_TOKEN must be set: whoever changes things sends it",
                config.bind
            ));
        }
        if read.errors.is_empty() { Ok(config) } else { Err(ConfigError(read.errors)) }
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
        Config {
            service,
            bind: read.parsed("BIND", "127.0.0.1", "an IP address", "address to listen on; 0.0.0.0: all"),
            port: read.number(&format!("{upper}_PORT"), default_port(service), 1..=65_535, "port to listen on"),
            database_url: read.database_url(service),
            brokers: read.brokers(),
            kafka_security: read.kafka_security(),
            topic_prefix: read.topic_prefix(),
            topic_partitions: read.number("TOPIC_PARTITIONS", 3, 1..=1_000, "partitions of topics that are created"),
            topic_replication: read.optional_number(
                "TOPIC_REPLICATION",
                1..=32,
                "replicas of topics that are created; without it the broker's default",
            ),
            order_deadline: read.duration(
                "ORDER_DEADLINE",
                "300s",
                "from publication until a silent side is asked to give back",
            ),
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
                "a thread that has not turned for so long is told",
            ),
            log_level: read.parsed("LOG_LEVEL", "info", "off, error, warn, info, debug or trace", "what is logged"),
        }
    }

    /// What to know about settings that are legal, and are likely not meant.
    pub fn remarks(&self) -> Vec<String> {
        let longest_call = Limits::WORK.statement;
        let hasty = (self.heartbeat_limit <= longest_call).then(|| {
            let limit = self.heartbeat_limit;
            format!("HEARTBEAT_LIMIT={limit:?}: a call may take {longest_call:?}; /healthz may tell of a thread that only waits")
        });
        let urls = [("PAYMENT_URL", &self.payment_url), ("STOCK_URL", &self.stock_url)];
        let has_page = self.service == Service::Order && !self.bind.is_loopback();
        let astray = urls.into_iter().filter(|(_, url)| has_page && leads_to_loopback(url)).map(|(name, url)| {
            format!(
                "{name}={url}: a browser elsewhere looks for it, and sends the operator's token, on its own machine"
            )
        });
        hasty.into_iter().chain(astray).collect()
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

/// A setting as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable.
    pub name: String,
    /// What counts without it; empty: nothing.
    pub default: String,
    /// Which values it takes, with their unit.
    pub takes: String,
    /// What it is for.
    pub meaning: &'static str,
}

struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    settings: Vec<Setting>,
    errors: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Reader<'a> {
        Reader { lookup, settings: Vec::new(), errors: Vec::new() }
    }

    /// Every setting is read here, so that each is known.
    fn value(&mut self, name: &str, default: &str, takes: &str, meaning: &'static str) -> String {
        let (setting, default) = (name.to_string(), default.to_string());
        self.settings.push(Setting { name: setting, default: default.clone(), takes: takes.to_string(), meaning });
        let given = (self.lookup)(name).map(OsString::into_string).transpose().unwrap_or_else(|_| {
            // it may be a secret: it is not repeated
            self.errors.push(format!("{name}: is not UTF-8"));
            None
        });
        given.map(|value| value.trim().to_string()).filter(|value| !value.is_empty()).unwrap_or(default)
    }

    fn optional(&mut self, name: &str, takes: &str, meaning: &'static str) -> Option<String> {
        Some(self.value(name, "", takes, meaning)).filter(|value| !value.is_empty())
    }

    fn refuse(&mut self, name: &str, value: &str, wanted: &str) {
        self.errors.push(format!("{name}={value:?}: must be {wanted}"));
    }

    /// `default` must itself be parsable: it stands in for a refused value, which is never used.
    fn parsed<T: FromStr>(&mut self, name: &str, default: &str, wanted: &str, meaning: &'static str) -> T {
        let value = self.value(name, default, wanted, meaning);
        value.parse().unwrap_or_else(|_| {
            self.refuse(name, &value, wanted);
            default.parse().ok().expect("the default is valid")
        })
    }

    fn number<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        default: i64,
        range: RangeInclusive<i64>,
        meaning: &'static str,
    ) -> T {
        let value = self.value(name, &default.to_string(), &whole(&range), meaning);
        self.within(name, &value, range)
    }

    fn optional_number<T: TryFrom<i64>>(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
        meaning: &'static str,
    ) -> Option<T> {
        let value = self.optional(name, &whole(&range), meaning)?;
        Some(self.within(name, &value, range))
    }

    /// The range's start stands in for a refused value.
    fn within<T: TryFrom<i64>>(&mut self, name: &str, value: &str, range: RangeInclusive<i64>) -> T {
        let number = value.parse().ok().filter(|number| range.contains(number)).unwrap_or_else(|| {
            self.refuse(name, value, &whole(&range));
            *range.start()
        });
        T::try_from(number).ok().expect("the range fits the type")
    }

    fn duration(&mut self, name: &str, default: &str, meaning: &'static str) -> Duration {
        const TIME: &str = "a time such as 500ms, 30s, 5m or 1h, from 1ms to 24h";
        let value = self.value(name, default, TIME, meaning);
        parse_duration(&value).filter(|d| !d.is_zero()).unwrap_or_else(|| {
            self.refuse(name, &value, TIME);
            parse_duration(default).expect("the default is valid")
        })
    }

    fn days(&mut self, name: &str, default: &str, meaning: &'static str) -> Duration {
        const TIME: &str = "a time such as 24h or 30d, from 1ms to 3650d";
        let value = self.value(name, default, TIME, meaning);
        parse_days(&value).unwrap_or_else(|| {
            self.refuse(name, &value, TIME);
            parse_days(default).expect("the default is valid")
        })
    }

    fn retention(&mut self, name: &str, meaning: &'static str) -> Retention {
        let takes = "topics (as long as the topics keep records), a time such as 30d, or forever";
        let value = self.value(name, "topics", takes, meaning);
        match (value.as_str(), parse_days(&value)) {
            ("topics", _) => Retention::AsTopics,
            ("forever", _) => Retention::Forever,
            (_, Some(time)) => Retention::For(time),
            (_, None) => {
                self.refuse(name, &value, takes);
                Retention::AsTopics
            }
        }
    }

    fn database_url(&mut self, service: Service) -> String {
        let takes = "a PostgreSQL URL such as postgres://user:password@host:5432/database";
        let name = format!("{}_DATABASE_URL", service.name().to_uppercase());
        let default = format!("postgres://postgres@127.0.0.1:5432/{}db", service.name());
        let meaning = "the service's own database; sslmode and sslrootcert as psql takes them";
        let value = self.value(&name, &default, takes, meaning);
        if let Err(why) = Target::parse(&value) {
            // the value may hold a password: it is not repeated
            self.errors.push(format!("{name}: must be {takes} ({why})"));
        }
        value
    }

    fn admin_token(&mut self) -> Option<AdminToken> {
        let takes = "16 to 256 visible ASCII characters";
        let value = self.optional("ADMIN_TOKEN", takes, "what whoever changes things must send, orders apart")?;
        let token = AdminToken::new(&value);
        if token.is_none() {
            // it is a secret: it is not repeated
            self.errors.push(format!("ADMIN_TOKEN: must be {takes}"));
        }
        token
    }

    fn origins(&mut self) -> Vec<String> {
        let (name, takes) = ("CORS_ORIGINS", "a list of origins such as http://127.0.0.1:8080, separated by commas");
        let value = self.value(name, ORDER_PAGE, takes, "origins whose pages may use the service");
        let origins: Vec<String> = value.split(',').map(|origin| origin.trim().to_string()).collect();
        if !origins.iter().all(|origin| is_origin(origin)) {
            self.refuse(name, &value, takes);
        }
        origins
    }

    fn brokers(&mut self) -> Vec<String> {
        let (name, takes) = ("KAFKA_BROKERS", "a list of host:port, separated by commas");
        let value = self.value(name, "127.0.0.1:9092", takes, "brokers to find the Kafka cluster by");
        let brokers: Vec<String> = value.split(',').map(|b| b.trim().to_string()).collect();
        if !brokers.iter().all(|broker| is_host_and_port(broker)) {
            self.refuse(name, &value, takes);
        }
        brokers
    }

    fn url_of_host(&mut self, name: &str, service: Service) -> String {
        let takes = "an http or https URL of host and port only, such as http://127.0.0.1:8082";
        let default = format!("http://127.0.0.1:{}", default_port(service));
        let value =
            self.value(name, &default, takes, "what browsers reach that service by, for the order service's page");
        if !is_url_of_host(&value) {
            self.refuse(name, &value, takes);
        }
        value
    }

    fn topic_prefix(&mut self) -> String {
        let (name, takes) = ("TOPIC_PREFIX", "at most 200 of the characters a-z A-Z 0-9 . _ -");
        let value = self.value(name, "", takes, "before every topic, group and transactional id");
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        // Kafka's topic names end at 249 characters; the longest suffix is payment.compensation
        if value.len() > 200 || !value.chars().all(legal) {
            self.refuse(name, &value, takes);
        }
        value
    }
}

fn whole(range: &RangeInclusive<i64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// As browsers write it, or it would never be found equal: scheme, host in lower case, and a port unless it is the scheme's
/// own; no path (RFC 6454, 6.2).
fn is_origin(text: &str) -> bool {
    let schemes = [("http://", "80"), ("https://", "443")];
    let scheme = schemes.iter().find_map(|(scheme, own_port)| Some((text.strip_prefix(scheme)?, *own_port)));
    let Some((authority, own_port)) = scheme else { return false };
    let port_at = authority.rfind(':').filter(|colon| !authority[*colon..].contains(']'));
    let (host, port) = authority.split_at(port_at.unwrap_or(authority.len()));
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = address.map_or_else(
        || !host.is_empty() && host.bytes().all(legal),
        |address| address.parse::<Ipv6Addr>().is_ok_and(|parsed| parsed.to_string() == address),
    );
    host && port.strip_prefix(':').is_none_or(|port| is_port(port) && port != own_port)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0 && port.to_string() == text)
}

/// Of what [`is_url_of_host`] lets pass.
fn leads_to_loopback(url: &str) -> bool {
    let authority = url.rsplit_once("//").map_or(url, |(_, authority)| authority);
    let host = authority.split(':').next().unwrap_or_default();
    host == "localhost" || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn is_host_and_port(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// Scheme, host, and a port unless it is the scheme's own. No IPv6 address: a Content-Security-Policy can't name one.
fn is_url_of_host(url: &str) -> bool {
    let Some(authority) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else { return false };
    let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
    let legal = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    !host.is_empty() && host.chars().all(legal) && is_port(port)
}

/// Reads a time such as `500ms`, `30s`, `5m` or `1h`; none if it is no such thing or longer than a day.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse_time(text).filter(|time| *time <= A_DAY)
}

/// The same in days too, up to ten years.
fn parse_days(text: &str) -> Option<Duration> {
    parse_time(text).filter(|time| !time.is_zero() && *time <= LONGEST_RETENTION)
}

fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(millis).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_lookup(Service::Order, |name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into())
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
            ("PAYMENT_URL", "http://127.0.0.1:8082/accounts"),
            ("STOCK_URL", "127.0.0.1:8081"),
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
    fn every_setting_says_once_what_it_takes_and_what_it_is_for() {
        let settings = Config::settings(Service::Order);
        let names: std::collections::HashSet<_> = settings.iter().map(|setting| &setting.name).collect();
        assert_eq!(names.len(), settings.len(), "{settings:#?}");
        for setting in &settings {
            assert!(!setting.takes.is_empty() && !setting.meaning.is_empty(), "{setting:?}");
        }
    }

    #[test]
    fn a_retention_is_the_topics_a_time_in_days_too_or_for_ever() {
        let kept = |text: &str| config(&[("DEAD_LETTER_RETENTION", text)]).map(|config| config.dead_letter_retention);
        assert_eq!(kept("").unwrap(), Retention::AsTopics);
        assert_eq!(kept("8d").unwrap(), Retention::For(Duration::from_secs(8 * 86_400)));
        assert_eq!(kept("forever").unwrap(), Retention::Forever);
        for bad in ["0d", "3651d", "8", "ever"] {
            assert!(kept(bad).unwrap_err().to_string().contains("DEAD_LETTER_RETENTION="), "{bad}");
        }
    }

    #[test]
    fn a_setting_is_known_with_its_default_whatever_the_others_say() {
        let known = |name: &str| Config::settings(Service::Stock).into_iter().find(|setting| setting.name == name);
        let port = Setting {
            name: "STOCK_PORT".into(),
            default: "8081".into(),
            takes: "a whole number from 1 to 65535".into(),
            meaning: "port to listen on",
        };
        assert_eq!(known("STOCK_PORT"), Some(port));
        assert_eq!(known("TOPIC_REPLICATION").unwrap().default, "");
        assert!(known("KAFKA_SASL_PASSWORD").is_some(), "also those that only some protocols need");
        assert_eq!(known("ORDER_PORT"), None, "another service's");
    }

    #[test]
    fn an_address_that_others_reach_needs_a_token_which_is_never_shown() {
        let open = config(&[("BIND", "0.0.0.0")]).unwrap_err().to_string();
        assert!(open.contains("BIND=0.0.0.0") && open.contains("ADMIN_TOKEN must be set"), "{open}");
        let guarded = config(&[("BIND", "0.0.0.0"), ("ADMIN_TOKEN", "0123456789abcdef")]).unwrap();
        assert!(!format!("{guarded:?}").contains("0123456789abcdef"));
        let short = config(&[("ADMIN_TOKEN", "s3cret")]).unwrap_err().to_string();
        assert!(short.contains("ADMIN_TOKEN: must be 16 to 256") && !short.contains("s3cret"), "{short}");
    }

    #[test]
    fn origins_are_written_as_browsers_do() {
        let origins = |text: &str| config(&[("CORS_ORIGINS", text)]).map(|config| config.cors_origins);
        assert_eq!(
            origins("https://a.example, http://[::1]:8080").unwrap(),
            ["https://a.example", "http://[::1]:8080"]
        );
        assert_eq!(origins("http://a_b:443,https://a:80").unwrap(), ["http://a_b:443", "https://a:80"]);
        let never_sent =
            ["http://A.example", "http://a:80", "https://a:443", "http://*.example", "http://[::01]", "null"];
        for bad in
            ["*", "http://a.example/", "a.example", "http://", "http://a:+1", "http://[a]"].iter().chain(&never_sent)
        {
            assert!(origins(bad).unwrap_err().to_string().contains("CORS_ORIGINS="), "{bad}");
        }
    }

    #[test]
    fn an_address_for_browsers_is_scheme_host_and_port_only() {
        for good in ["http://127.0.0.1:8082", "https://payment.example.org", "http://my_host-2:1"] {
            assert!(is_url_of_host(good), "{good}");
        }
        let bad = ["http://", "http://a/", "http://a:", "http://a:0", "http://a:65536", "http://a:+1", "http://me@a"];
        for bad in bad.iter().chain(&["ftp://a", "a:80", "http://[::1]:80", "http://a; script-src *", "http://a?b", ""])
        {
            assert!(!is_url_of_host(bad), "{bad}");
        }
    }

    #[test]
    fn a_setting_that_is_no_utf_8_is_named_and_not_passed_over() {
        use std::os::unix::ffi::OsStringExt;
        let token = |name: &str| (name == "ADMIN_TOKEN").then(|| OsString::from_vec(vec![0xff; 16]));
        let told = Config::from_lookup(Service::Order, token).unwrap_err().to_string();
        assert!(told.contains("ADMIN_TOKEN: is not UTF-8"), "{told}");
    }

    #[test]
    fn what_is_legal_and_likely_not_meant_is_remarked() {
        let (open, token) = (("BIND", "0.0.0.0"), ("ADMIN_TOKEN", "0123456789abcdef"));
        let remarks = |pairs: &[(&str, &str)]| config(pairs).unwrap().remarks();
        assert_eq!(remarks(&[]), Vec::<String>::new());
        let astray = remarks(&[open, token, ("PAYMENT_URL", "https://payment.example")]);
        assert!(astray.len() == 1 && astray[0].starts_with("STOCK_URL=http://127.0.0.1:8081:"), "{astray:?}");
        let hasty = remarks(&[("HEARTBEAT_LIMIT", "30s")]);
        assert!(hasty.len() == 1 && hasty[0].starts_with("HEARTBEAT_LIMIT=30s:"), "{hasty:?}");
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
