//! OpenTelemetry's own variables, as far as they mean something here
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>). The crates read some of them
//! themselves; all that can be wrong is checked here.

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_sdk::trace::Sampler;
use url::Url;

use super::reader::Reader;

const SAMPLERS: &str = "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio";
const COLLECTOR: &str = "an http or https URL such as http://127.0.0.1:4318";
const MILLIS: &str = "milliseconds, a whole number from 1 to 30000";

/// How spans are exported.
#[derive(Clone, Debug)]
pub struct Traces {
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
    /// None: no collector is named, or OpenTelemetry is turned off.
    pub(super) fn traces(&mut self) -> Option<Traces> {
        let collector = "where spans are sent to, by OTLP over HTTP; without it none are made";
        let general = self.collector("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
        let own = "the same, with the whole path: it is used as it is";
        let own = self.collector("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", own);
        let is_off: bool = self.parsed(
            "OTEL_SDK_DISABLED",
            "false",
            "true or false",
            "true: no spans are made",
        );
        let takes = "name=value, separated by commas; both percent-encoded";
        let headers = "sent with every call of the collector, such as a key";
        self.optional("OTEL_EXPORTER_OTLP_HEADERS", takes, headers);
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
        let traces = Traces {
            sampler: self.sampler(),
            timeout: self.millis("OTEL_EXPORTER_OTLP_TIMEOUT", 10_000, wait),
            authorities: authorities.map(PathBuf::from),
            queue: self.number(
                "OTEL_BSP_MAX_QUEUE_SIZE",
                2_048,
                1..=1_000_000,
                "spans that may wait to be sent; what is beyond is dropped and counted",
            ),
            batch: self.number(
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
                512,
                1..=10_000,
                "spans in one call",
            ),
            delay: self.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000, delay),
        };
        ((general || own) && !is_off).then_some(traces)
    }

    /// Whether it is named.
    fn collector(&mut self, name: &str, meaning: &'static str) -> bool {
        let Some(value) = self.optional(name, COLLECTOR, meaning) else {
            return false;
        };
        let url = Url::parse(&value).ok();
        if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            self.refuse(name, &value, COLLECTOR);
        }
        true
    }

    fn millis(&mut self, name: &str, default: i64, meaning: &'static str) -> Duration {
        let value = self.value(name, &default.to_string(), MILLIS, meaning);
        Duration::from_millis(self.within(name, &value, 1..=30_000))
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
