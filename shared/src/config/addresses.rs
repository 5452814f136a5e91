//! Addresses as settings: of the database, of brokers, and of what browsers see.

use url::{Host, Url};

use super::default_port;
use super::reader::Reader;
use crate::db::tls::Target;
use crate::event::Service;

/// Where the order service's page is by default, for browsers.
const ORDER_PAGE: &str = "http://127.0.0.1:8080,http://localhost:8080";

impl Reader<'_> {
    /// Kubernetes, and Docker before it, set `ORDER_PORT=tcp://10.43.161.118:8080` where a service is named `order`: that is where
    /// others reach it, and not what is meant here.
    pub(super) fn port(&mut self, name: &str, service: Service) -> u16 {
        let (default, takes) = (default_port(service), "a whole number from 1 to 65535");
        let meaning = "port to listen on; tcp://…, which Kubernetes sets for a Service of this name, is passed over";
        let value = self.value(name, &default.to_string(), takes, meaning);
        match value.starts_with("tcp://") || value.starts_with("udp://") {
            true => default as u16,
            false => self.within(name, &value, 1..=65_535),
        }
    }

    pub(super) fn database_url(&mut self, service: Service) -> String {
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

    pub(super) fn brokers(&mut self) -> Vec<String> {
        let (name, takes) = (
            "KAFKA_BROKERS",
            "a list of host:port without a scheme, separated by commas",
        );
        let value = self.value(
            name,
            "127.0.0.1:9092",
            takes,
            "brokers to find the Kafka cluster by",
        );
        let brokers: Vec<String> = value.split(',').map(|b| b.trim().to_string()).collect();
        if !brokers.iter().all(|broker| is_host_and_port(broker)) {
            self.refuse(name, &value, takes);
        }
        brokers
    }

    pub(super) fn url_of_host(&mut self, name: &str, service: Service) -> String {
        let takes = "an http or https URL of host and port only, such as http://127.0.0.1:8082";
        let default = format!("http://127.0.0.1:{}", default_port(service));
        let value = self.value(
            name,
            &default,
            takes,
            "what browsers reach that service by, for the order service's page",
        );
        if !is_url_of_host(&value) {
            self.refuse(name, &value, takes);
        }
        value
    }

    pub(super) fn origins(&mut self) -> Vec<String> {
        let (name, takes) = (
            "CORS_ORIGINS",
            "a list of origins such as http://127.0.0.1:8080, separated by commas",
        );
        let value = self.value(
            name,
            ORDER_PAGE,
            takes,
            "origins whose pages may use the service",
        );
        let origins: Option<Vec<String>> =
            value.split(',').map(|text| origin(text.trim())).collect();
        origins.unwrap_or_else(|| {
            self.refuse(name, &value, takes);
            vec![]
        })
    }
}

fn is_host_and_port(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| {
        let port_fits = port.parse::<u16>().is_ok_and(|port| port > 0);
        !host.is_empty() && !host.contains('/') && port_fits
    })
}

/// Scheme, host, and a port unless it is the scheme's own. No IPv6 address: a Content-Security-Policy can't name one.
fn is_url_of_host(url: &str) -> bool {
    url.is_ascii() && !url.contains('[') && origin(url).is_some()
}

/// Of what [`is_url_of_host`] lets pass.
pub(super) fn leads_to_loopback(url: &str) -> bool {
    match Url::parse(url)
        .ok()
        .and_then(|url| Some(url.host()?.to_owned()))
    {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        _ => false,
    }
}

/// As browsers write it, or it would never be found equal: scheme and host in lower case, and a port unless it is the
/// scheme's own (RFC 6454, 6.2). None if it is more or less than that.
fn origin(text: &str) -> Option<String> {
    let (_, authority) = text.split_once("://")?;
    let url = Url::parse(text).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let is_bare =
        authority.bytes().all(plain) && !authority.ends_with(':') && url.port() != Some(0);
    let is_web = matches!(url.scheme(), "http" | "https");
    (is_bare && is_web).then(|| url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_do() {
        let origins =
            |text: &str| config(&[("CORS_ORIGINS", text)]).map(|config| config.cors_origins);
        assert_eq!(
            origins("https://a.example, http://[::1]:8080").unwrap(),
            ["https://a.example", "http://[::1]:8080"]
        );
        assert_eq!(
            origins("http://a_b:443,https://a:80").unwrap(),
            ["http://a_b:443", "https://a:80"]
        );
        assert_eq!(
            origins("HTTP://A.example:80,https://[0:0::1]:443").unwrap(),
            ["http://a.example", "https://[::1]"]
        );
        let bad = [
            "*",
            "null",
            "a.example",
            "http://",
            "http://a.example/",
            "http://*.example",
            "ftp://a",
        ];
        for bad in bad.iter().chain(&[
            "http://a:",
            "http://a:+1",
            "http://a:0",
            "http://[a]",
            "http://me@a",
            "http://a,",
        ]) {
            assert!(
                origins(bad)
                    .unwrap_err()
                    .to_string()
                    .contains("CORS_ORIGINS="),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_broker_is_a_host_and_a_port_without_a_scheme() {
        let brokers = |text: &str| config(&[("KAFKA_BROKERS", text)]).map(|config| config.brokers);
        assert_eq!(
            brokers("kafka-1:9092, [::1]:9093").unwrap(),
            ["kafka-1:9092", "[::1]:9093"]
        );
        for bad in [
            "PLAINTEXT://kafka-1:9092",
            "kafka-1:9092,kafka://kafka-2:9092",
            "kafka-1",
            ":9092",
            "kafka-1:0",
        ] {
            let error = brokers(bad).unwrap_err().to_string();
            assert!(
                error.contains("must be a list of host:port without a scheme"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn an_address_for_browsers_is_scheme_host_and_port_only() {
        for good in [
            "http://127.0.0.1:8082",
            "https://payment.example.org",
            "http://my_host-2:1",
        ] {
            assert!(is_url_of_host(good), "{good}");
        }
        let bad = [
            "http://",
            "http://a/",
            "http://a:",
            "http://a:0",
            "http://a:65536",
            "http://a:+1",
            "http://me@a",
        ];
        for bad in bad.iter().chain(&[
            "ftp://a",
            "a:80",
            "http://[::1]:80",
            "http://a; script-src *",
            "http://a?b",
            "",
        ]) {
            assert!(!is_url_of_host(bad), "{bad}");
        }
    }
}
