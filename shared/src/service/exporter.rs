//! Spans on their way to a collector: one thread sends what is in their bounded queue ([`trace::queue`]) by OTLP over HTTP.
//!
//! A collector that is slow, away or refuses costs no order: a span that finds the queue full is dropped, and so is what could not be
//! sent; both are counted (`saga_trace_spans_total`). The thread is none of [`Threads`](super::threads): its end stops
//! nothing, `/healthz` does not ask it, and the stop waits for it briefly, after all others have made their last spans.
//!
//! The encoding, headers and the description of the process are OpenTelemetry's own crates'. Their batch
//! processor is not used, because it does not say what it drops; and their HTTP client is `ureq`, which needs no
//! asynchronous runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use futures_executor::block_on;
use opentelemetry::Key;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::backoff;
use crate::config::Config;
use crate::config::traces::Traces;
use crate::error::{Error, Result};
use crate::event::trace;
use crate::metrics;

/// A collector's answer is read up to this.
const ANSWER: u64 = 1024;
/// At the stop what is left is sent within this.
const LAST_CALL: Duration = Duration::from_secs(2);

/// The thread that sends what is queued.
pub struct Exporter {
    /// Dropped at the stop.
    goes_on: Sender<()>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
    queue: Receiver<SpanData>,
}

impl Exporter {
    /// Has what is queued sent, once nobody makes spans any more. Waits for it for two seconds at most.
    pub fn finish(self) {
        drop(self.goes_on);
        let _ = self.ended.recv_timeout(LAST_CALL);
        let left = self.queue.len();
        if left > 0 {
            log::warn!("{left} spans are dropped: the collector did not take them in time");
        }
    }
}

/// Has spans made from now on, where the settings name a collector. Returns what sends them.
///
/// # Errors
/// [`Error::Fatal`] when a file of certificates can't be read.
pub fn start(config: &Config) -> Result<Option<Exporter>> {
    let Some(traces) = config.traces.clone() else {
        return Ok(None);
    };
    let fatal = |why: String| Error::Fatal(format!("spans can't be exported: {why}"));
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client(agent(&traces).map_err(fatal)?))
        .with_endpoint(traces.collector.as_str())
        .build()
        .map_err(|error| fatal(error.to_string()))?;
    exporter.set_resource(&resource(config.service.name()));
    let started = trace::queue::start(traces.sampler.clone(), traces.queue);
    let queue = started.ok_or_else(|| fatal("it was started before".into()))?;
    let held = Receiver::clone(&queue);
    metrics::watch("spans to be exported", traces.queue, move || held.len());
    let ((goes_on, stop), (end, ended)) = (bounded(0), bounded::<()>(0));
    let sending = Sending {
        exporter,
        queue: queue.clone(),
        stop,
        traces,
    };
    std::thread::Builder::new()
        .name(format!("{}-exporter", config.service.name()))
        .spawn(move || {
            sending.run();
            drop(end);
        })?;
    Ok(Some(Exporter {
        goes_on,
        ended,
        queue,
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

struct Sending {
    exporter: SpanExporter,
    queue: Receiver<SpanData>,
    stop: Receiver<()>,
    traces: Traces,
}

impl Sending {
    /// Until the stop, and then what is left, as long as the collector takes it.
    fn run(&self) {
        let (mut goes_on, mut failures) = (true, 0);
        while goes_on {
            let batch;
            (batch, goes_on) = self.gather();
            match self.export(batch) {
                Ok(()) => failures = 0,
                Err(why) => {
                    failures += 1;
                    let level = match failures {
                        1 => log::Level::Warn,
                        _ => log::Level::Debug,
                    };
                    let pause = backoff::delay(failures);
                    log::log!(level, "{why} (attempt {failures}, next in {pause:?})");
                    // nothing is sent on this channel: it is empty, or closed
                    goes_on &= self.stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout);
                }
            }
        }
        loop {
            let batch: Vec<SpanData> = self.queue.try_iter().take(self.traces.batch).collect();
            if batch.is_empty() || self.export(batch).is_err() {
                return;
            }
        }
    }

    /// What comes until a batch is full or its first span has waited long enough, and whether it goes on.
    fn gather(&self) -> (Vec<SpanData>, bool) {
        let until = Instant::now() + self.traces.delay;
        let mut batch = Vec::new();
        while batch.len() < self.traces.batch {
            select! {
                recv(self.queue) -> span => batch.extend(span),
                recv(self.stop) -> _ => return (batch, false),
                default(until.saturating_duration_since(Instant::now())) => break,
            }
        }
        (batch, true)
    }

    /// # Errors
    /// The spans are dropped, and why.
    fn export(&self, batch: Vec<SpanData>) -> std::result::Result<(), String> {
        if batch.is_empty() {
            return Ok(());
        }
        let count = batch.len();
        // what panics in a library ends this call alone
        let call = AssertUnwindSafe(|| block_on(self.exporter.export(batch)));
        let why = match catch_unwind(call) {
            Ok(Ok(())) => {
                metrics::spans_exported(count);
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the call has panicked".into(),
        };
        metrics::spans_dropped(count);
        Err(format!(
            "{count} spans are dropped, the collector does not take them: {why}"
        ))
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
    let certificates = match &traces.authorities {
        Some(file) => kafka::certificates(file)?,
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
        .proxy(None)
        .tls_config(tls)
        .build();
    Ok(config.into())
}
