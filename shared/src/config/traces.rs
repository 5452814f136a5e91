//! OpenTelemetry's own variables, as far as they mean something here
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>). The crates read some of them
//! themselves; all that can be wrong is checked here.

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_sdk::trace::Sampler;
use url::Url;

use super::reader::Reader;

const SAMPLERS: &str = "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio";
const COLLECTOR: &str =
    "an http or https URL without user and password, such as http://127.0.0.1:4318";
const MILLIS: &str = "milliseconds, a whole number from 1 to 600000";
const COMPRESSIONS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
];

/// How spans are exported.
#[derive(Clone, Debug)]
pub struct Traces {
    /// Where to (`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT` with `/v1/traces` behind it).
    pub collector: String,
    /// Which traces are recorded (`OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`).
    pub sampler: Sampler,
    /// How long a call of the collector may take (`OTEL_EXPORTER_OTLP_TIMEOUT`).
    pub timeout: Duration,
    /// A PEM file of the authorities that the collector's certificate is held against; none: the system's
    /// (`OTEL_EXPORTER_OTLP_CERTIFICATE`).
    pub authorities: Option<PathBuf>,
    /// Spans that may wait to be sent (`OTEL_BSP_MAX_QUEUE_SIZE`).
    pub queue: usize,
    /// Spans in one call (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
    pub batch: usize,
    /// How long a span waits for others at most (`OTEL_BSP_SCHEDULE_DELAY`).
    pub delay: Duration,
}

impl Reader<'_> {
    /// None: no collector is named, or OpenTelemetry is turned off. Then no value is refused: these variables are meant for many
    /// programs at once.
    pub(super) fn traces(&mut self) -> Option<Traces> {
        let before = self.errors.len();
        let meaning = "where spans are sent to, by OTLP over HTTP; without it none are made";
        let general = self.collector("OTEL_EXPORTER_OTLP_ENDPOINT", meaning);
        let meaning = "the same, with the whole path: it is used as it is";
        let own = self.collector("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", meaning);
        let is_named = self.errors.len() > before;
        let off = self.value(
            "OTEL_SDK_DISABLED",
            "false",
            "true or false",
            "true: no spans are made",
        );
        let takes = "name=value, separated by commas; both percent-encoded";
        let headers = "sent with every call of the collector, such as a key";
        self.optional("OTEL_EXPORTER_OTLP_HEADERS", takes, headers);
        for name in COMPRESSIONS {
            self.compression(name);
        }
        let name = "name of the service in its spans; without it order, payment or stock";
        self.optional("OTEL_SERVICE_NAME", "a name", name);
        let more = "what else is said of the process in its spans";
        self.optional("OTEL_RESOURCE_ATTRIBUTES", takes, more);
        let authorities = self.optional(
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "a file of certificates (PEM)",
            "the authorities that the collector's certificate is held against; without it the system's",
        );
        let wait = "how long a call of the collector may take";
        let delay = "how long a span waits for others at most";
        let sampler = self.sampler();
        let timeout = self.millis("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000, wait);
        let queue = self.number(
            "OTEL_BSP_MAX_QUEUE_SIZE",
            2_048,
            1..=1_000_000,
            "spans that may wait to be sent; what is beyond is dropped and counted",
        );
        let batch = self.number(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            512,
            1..=10_000,
            "spans in one call",
        );
        let delay = self.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000, delay);
        let is_off = off.eq_ignore_ascii_case("true");
        let general = general.map(|url| format!("{}/v1/traces", url.trim_end_matches('/')));
        let collector = own.or(general);
        if is_off || (collector.is_none() && !is_named) {
            self.errors.truncate(before);
            return None;
        }
        Some(Traces {
            collector: collector?,
            sampler,
            timeout,
            authorities: authorities.map(PathBuf::from),
            queue,
            batch,
            delay,
        })
    }

    /// Its URL.
    fn collector(&mut self, name: &str, meaning: &'static str) -> Option<String> {
        let value = self.optional(name, COLLECTOR, meaning)?;
        let url = Url::parse(&value).ok().filter(|url| {
            let is_plain = url.username().is_empty() && url.password().is_none();
            matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain
        });
        match url {
            Some(url) => Some(url.into()),
            None => {
                // it may hold a password
                self.errors.push(format!("{name}=…: must be {COLLECTOR}"));
                None
            }
        }
    }

    /// The crates read it themselves, and refuse every other value without naming the variable.
    fn compression(&mut self, name: &str) {
        let meaning = "how calls of the collector are compressed; unset: not at all";
        let given = self.optional(name, "gzip", meaning);
        if given.as_deref().is_some_and(|value| value != "gzip") {
            self.refuse(name, &given.unwrap_or_default(), "gzip, or not set at all");
        }
    }

    fn millis(&mut self, name: &str, default: i64, meaning: &'static str) -> Duration {
        let value = self.value(name, &default.to_string(), MILLIS, meaning);
        Duration::from_millis(self.within(name, &value, 1..=600_000))
    }

    fn sampler(&mut self) -> Sampler {
        let (name, ratio) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        let meaning = "which orders' spans are made; parentbased: as the caller's traceparent says, where there is one";
        let chosen = self.value(name, "parentbased_always_on", SAMPLERS, meaning);
        let takes = "a number from 0 to 1";
        let share = self.value(ratio, "1", takes, "the share of traces, for traceidratio");
        let share: f64 = match share.parse() {
            Ok(share) if (0.0..=1.0).contains(&share) => share,
            _ => {
                self.refuse(ratio, &share, takes);
                1.0
            }
        };
        let (is_based, root) = match chosen.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, chosen.as_str()),
        };
        let root = match root {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(share),
            _ => {
                self.refuse(name, &chosen, SAMPLERS);
                Sampler::AlwaysOn
            }
        };
        match is_based {
            true => Sampler::ParentBased(Box::new(root)),
            false => root,
        }
    }
}
