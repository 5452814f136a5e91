//! Spans on their way to a collector: one thread sends what is in their bounded queue ([`trace::queue`]) by OTLP over HTTP.
//!
//! A collector that is slow, away or refuses costs no order and no thread: a span that finds the queue full is dropped, and so
//! is what could not be sent; both are counted (`saga_trace_spans_total`).
//!
//! The encoding, endpoints, headers and the description of the process are OpenTelemetry's own crates'. Their batch
//! processor is not used, because it does not say what it drops; and their HTTP client is `ureq`, which needs no
//! asynchronous runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use crossbeam_channel::{Receiver, select};
use futures_executor::block_on;
use opentelemetry::Key;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::Config;
use crate::config::traces::Traces;
use crate::error::{Error, Result};
use crate::event::trace;
use crate::heartbeat;
use crate::metrics;
use crate::shutdown::Shutdown;
use crate::worker::Worker;

/// A collector's answer is read up to this.
const ANSWER: u64 = 64 * 1024;
/// At the stop what is left is sent within this.
const LAST_CALL: Duration = Duration::from_secs(2);

/// Sends what is queued.
pub struct Exporter {
    exporter: SpanExporter,
    queue: Receiver<SpanData>,
    traces: Traces,
}

/// Has spans made from now on, where the settings name a collector. Returns what sends them.
///
/// # Errors
/// [`Error::Fatal`] when a setting can't be used or a file of certificates can't be read.
pub fn start(config: &Config) -> Result<Option<Exporter>> {
    let Some(traces) = config.traces.clone() else {
        return Ok(None);
    };
    let fatal = |why: String| Error::Fatal(format!("spans can't be exported: {why}"));
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client(agent(&traces).map_err(fatal)?))
        .build()
        .map_err(|error| fatal(error.to_string()))?;
    exporter.set_resource(&resource(config.service.name()));
    let started = trace::queue::start(traces.sampler.clone(), traces.queue);
    let queue = started.ok_or_else(|| fatal("it was started before".into()))?;
    let held = Receiver::clone(&queue);
    metrics::watch("spans to be exported", traces.queue, move || held.len());
    Ok(Some(Exporter {
        exporter,
        queue,
        traces,
    }))
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, else the service's own name.
fn resource(name: &'static str) -> Resource {
    let given = Resource::builder().build();
    let service = given.get(&Key::new("service.name"));
    match service {
        Some(service) if !service.as_str().starts_with("unknown_service") => given,
        _ => Resource::builder().with_service_name(name).build(),
    }
}

impl Worker for Exporter {
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        let until = Instant::now() + self.traces.delay;
        let mut batch = Vec::new();
        while batch.len() < self.traces.batch {
            select! {
                recv(self.queue) -> span => batch.extend(span),
                recv(shutdown.receiver()) -> _ => break,
                default(until.saturating_duration_since(Instant::now())) => break,
            }
        }
        self.export(batch).map(|()| Duration::ZERO)
    }

    fn report(&mut self, error: &Error, attempt: u32, pause: Duration) {
        let level = match attempt {
            1 => log::Level::Warn,
            _ => log::Level::Debug,
        };
        log::log!(level, "{error} (attempt {attempt}, next in {pause:?})");
    }

    fn end(&mut self) {
        let until = Instant::now() + LAST_CALL;
        while Instant::now() < until {
            let batch: Vec<SpanData> = self.queue.try_iter().take(self.traces.batch).collect();
            if batch.is_empty() || self.export(batch).is_err() {
                return;
            }
        }
    }
}

impl Exporter {
    /// # Errors
    /// The spans are dropped.
    fn export(&self, batch: Vec<SpanData>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        heartbeat::beat();
        let count = batch.len();
        match block_on(self.exporter.export(batch)) {
            Ok(()) => {
                metrics::spans_exported(count);
                Ok(())
            }
            Err(error) => {
                metrics::spans_dropped(count);
                Err(Error::Unusable(format!(
                    "{count} spans are dropped, the collector does not take them: {error}"
                )))
            }
        }
    }
}

/// What the exporter calls the collector by. Blocking; the future is done when it is there.
#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(
        &self,
        request: Request<Bytes>,
    ) -> std::result::Result<Response<Bytes>, HttpError> {
        let request = request.map(|body| body.to_vec());
        let (parts, mut body) = self.0.run(request)?.into_parts();
        let body = body.with_config().limit(ANSWER).read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}

fn agent(traces: &Traces) -> std::result::Result<ureq::Agent, String> {
    let certificates: Vec<CertificateDer<'static>> = match &traces.authorities {
        Some(file) => CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| format!("{}: {error}", file.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let roots: Vec<Certificate<'static>> = certificates
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(traces.timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(tls)
        .build();
    Ok(config.into())
}
