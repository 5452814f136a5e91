//! Where spans wait to be exported: a bounded queue, if a collector wants them. Off, a step looks at one pointer.

use std::sync::OnceLock;

use crossbeam_channel::{Receiver, Sender, bounded};
use opentelemetry::Context;
use opentelemetry::trace::{SamplingDecision, SpanContext, SpanKind, TraceContextExt, TraceId};
use opentelemetry_sdk::trace::{Sampler, ShouldSample, SpanData};

use crate::metrics;

static RECORDING: OnceLock<Recording> = OnceLock::new();

struct Recording {
    queue: Sender<SpanData>,
    sampler: Sampler,
}

/// Has spans made from now on, of the traces that `sampler` wants. Returns where they come out; at most `limit` wait there.
/// None: it was started before.
pub fn start(sampler: Sampler, limit: usize) -> Option<Receiver<SpanData>> {
    let (sender, queue) = bounded(limit);
    let recording = Recording {
        queue: sender,
        sampler,
    };
    RECORDING.set(recording).ok().map(|()| queue)
}

/// Whether a collector wants spans.
pub(super) fn is_on() -> bool {
    RECORDING.get().is_some()
}

/// Whether the sampler wants a trace that begins here, or comes from `parent`; none: no collector wants any.
pub(super) fn samples(parent: Option<SpanContext>, trace_id: TraceId) -> Option<bool> {
    let recording = RECORDING.get()?;
    let parent = parent.map(|parent| Context::new().with_remote_span_context(parent));
    let (name, kind) = ("POST /orders", SpanKind::Server);
    let sampler = &recording.sampler;
    let wanted = sampler.should_sample(parent.as_ref(), trace_id, name, &kind, &[], &[]);
    Some(wanted.decision == SamplingDecision::RecordAndSample)
}

/// Queues a span; never blocks. Where the queue is full it is dropped and counted.
pub(super) fn send(span: SpanData) {
    if let Some(recording) = RECORDING.get()
        && recording.queue.try_send(span).is_err()
    {
        metrics::spans_dropped(1);
    }
}
