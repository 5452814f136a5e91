//! Traces: the W3C trace context that goes through an order's messages, and its spans where a collector wants them.
//!
//! ```text
//! POST /orders ─┬─ store order
//!               ├─ send payment ── process payment ── send payment.success ── process payment.success
//!               └─ send stock ──── process stock ──── send stock.dlt ──────── process stock.dlt
//!                                                                               └─ send payment.compensation ── …
//! ```
//!
//! Without a collector a context goes through everything as it came. With one ([`queue`]) each step puts its own span into
//! the context that it hands on, as W3C's rules ask, so that other readers of the topics can add theirs. Nothing is kept from one
//! step to the next: the ids of spans follow from the order's and the messages' ids, and the span of an attempt also from its
//! number ([`Delivery`](super::delivery::Delivery)). So a message that is delivered again has the same parent.
//!
//! A span is made when its step is committed, and one that failed when it failed. What a process had done when it was
//! killed has none, and neither have rows that the next leader finds published.
//!
//! Names and attributes are OpenTelemetry's (semantic conventions for HTTP and messaging); ours begin with `saga.`.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

use super::envelope::StoredMessage;
use super::{Body, Event};

pub mod queue;

/// Set in the ids of spans that handle a message, and not in those that send one: no id of ours has this bit (it belongs to a
/// UUID's variant).
const HANDLING: u64 = 1 << 62;
/// The most links of one span (OpenTelemetry's limit).
const LINKS: usize = 128;

/// A place in a trace (<https://www.w3.org/TR/trace-context/>, version 00).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    trace_id: TraceId,
    span_id: SpanId,
    flags: TraceFlags,
}

impl Context {
    /// Lowercase hex; trace and parent id not all zero.
    fn parse(text: &str) -> Option<Context> {
        let parts: Vec<&str> = text.split('-').collect();
        let ["00", trace, parent, flags] = parts[..] else {
            return None;
        };
        let context = Context {
            trace_id: TraceId::from(u128::from_str_radix(hex(trace, 32)?, 16).ok()?),
            span_id: SpanId::from(u64::from_str_radix(hex(parent, 16)?, 16).ok()?),
            flags: TraceFlags::new(u8::from_str_radix(hex(flags, 2)?, 16).ok()?),
        };
        (context.trace_id != TraceId::INVALID && context.span_id != SpanId::INVALID)
            .then_some(context)
    }

    /// A trace of its own. Random throughout: samplers go by a trace id's last bytes.
    fn random() -> Context {
        let mut bytes = [0; 24];
        SystemRandom::new()
            .fill(&mut bytes)
            .expect("the operating system has random bytes");
        let (trace, span) = bytes.split_at(16);
        Context {
            trace_id: TraceId::from(u128::from_be_bytes(trace.try_into().expect("16 bytes")) | 1),
            span_id: SpanId::from(u64::from_be_bytes(span.try_into().expect("8 bytes")) | 1),
            flags: TraceFlags::SAMPLED,
        }
    }

    /// Of a trace that is recorded, where a collector wants any.
    fn recorded(traceparent: Option<&str>) -> Option<Context> {
        let context = queue::is_on().then_some(traceparent).flatten();
        context
            .and_then(Context::parse)
            .filter(|context| context.flags.is_sampled())
    }

    fn at(self, span_id: SpanId) -> Context {
        Context { span_id, ..self }
    }

    fn span_context(self, is_remote: bool) -> SpanContext {
        let state = TraceState::NONE;
        SpanContext::new(self.trace_id, self.span_id, self.flags, is_remote, state)
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (self.trace_id, self.span_id);
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags.to_u8())
    }
}

fn hex(part: &str, length: usize) -> Option<&str> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (part.len() == length && part.bytes().all(is_hex)).then_some(part)
}

/// Whether `text` is a version 00 trace context.
pub fn is_traceparent(text: &str) -> bool {
    Context::parse(text).is_some()
}

/// A trace context of our own, for what has none.
pub fn new_traceparent() -> String {
    Context::random().to_string()
}

/// The span of an order's request, or of sending a message.
fn span_of(id: Uuid) -> SpanId {
    SpanId::from(id.as_u128() as u64)
}

/// The span of an attempt at handling it.
fn span_of_attempt(id: Uuid, attempt: i32) -> SpanId {
    SpanId::from((id.as_u128() as u64 ^ HANDLING).wrapping_add(attempt as u64))
}

/// What a record's `traceparent` says: the span of its sending, where that is recorded, else what its message has.
pub fn as_sent(traceparent: &str, message_id: Uuid) -> Cow<'_, str> {
    match Context::recorded(Some(traceparent)) {
        Some(context) => context.at(span_of(message_id)).to_string().into(),
        None => traceparent.into(),
    }
}

/// The trace context of what comes of handling an event: its own, where it is not recorded.
pub fn caused_by(event: &Event) -> Option<String> {
    recorded_cause(event).or_else(|| event.traceparent.clone())
}

/// The same, where the event's trace is recorded.
pub fn recorded_cause(event: &Event) -> Option<String> {
    let (context, span_id) = attempt_at(event)?;
    Some(context.at(span_id).to_string())
}

/// The context that an event came with, and the span of this attempt at it.
fn attempt_at(event: &Event) -> Option<(Context, SpanId)> {
    let context = Context::recorded(event.traceparent.as_deref())?;
    let attempt = event.delivery.map_or(1, |delivery| delivery.attempt);
    Some((context, span_of_attempt(event.id, attempt)))
}

/// A request for an order, from its arrival until its answer.
pub struct Received(Span);

/// Takes a request for an order up. `caller`: its `traceparent`, if it has a valid one. Returns the trace context of the order, and
/// the request's span, where the sampler wants it.
pub fn receive(caller: Option<&str>, order_id: Uuid) -> (String, Option<Received>) {
    let parent = caller.and_then(Context::parse);
    let context = parent.unwrap_or_else(Context::random);
    let remote = parent.map(|parent| parent.span_context(true));
    let Some(is_sampled) = queue::samples(remote, context.trace_id) else {
        return (context.to_string(), None);
    };
    let own = Context {
        span_id: span_of(order_id),
        flags: context.flags.with_sampled(is_sampled),
        ..context
    };
    let mut span = Span::new(own, own.span_id, SpanKind::Server, "POST /orders".into());
    span.0.parent_span_id = parent.map_or(SpanId::INVALID, |parent| parent.span_id);
    let span = span
        .with("http.request.method", "POST")
        .with("http.route", "/orders")
        .with("saga.order.id", order_id.to_string());
    (own.to_string(), is_sampled.then_some(Received(span)))
}

impl Received {
    /// It was answered with this status.
    pub fn answered(self, status: u16) {
        let mut span = self.0.with("http.response.status_code", i64::from(status));
        if status >= 500 {
            span.0.status = Status::error("");
        }
        end("", vec![span]);
    }
}

/// A step of an order that ends now or a little later.
#[derive(Debug)]
pub struct Span(SpanData);

impl Span {
    fn new(parent: Context, id: SpanId, kind: SpanKind, name: Cow<'static, str>) -> Span {
        let now = SystemTime::now();
        Span(SpanData {
            span_context: parent.at(id).span_context(false),
            parent_span_id: parent.span_id,
            parent_span_is_remote: true,
            span_kind: kind,
            name,
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("saga")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        })
    }

    /// Storing an order, begun at `begun`.
    pub fn storing(traceparent: &str, order_id: Uuid, begun: SystemTime) -> Option<Span> {
        let context = Context::recorded(Some(traceparent))?;
        let id = span_of_attempt(order_id, 1);
        let span = Span::new(context, id, SpanKind::Internal, "store order".into());
        Some(
            span.since(begun)
                .with("saga.order.id", order_id.to_string()),
        )
    }

    /// Sending a message: begun when it was stored (`stored_at`, as `ce_time` is written).
    pub fn sending(message: &StoredMessage<'_>, order_id: Uuid, stored_at: &str) -> Option<Span> {
        let context = Context::recorded(message.traceparent.as_deref())?;
        let topic = &*message.topic;
        let name = format!("send {topic}").into();
        let span = Span::new(context, span_of(message.id), SpanKind::Producer, name);
        let stored = super::delivery::from_rfc3339(stored_at).map(time);
        let begun = stored.unwrap_or(span.0.start_time);
        let type_name = message.type_name.to_string();
        Some(
            span.since(begun)
                .of_message("send", topic, message.id, order_id, type_name),
        )
    }

    /// An attempt at handling an event, begun when it was taken up.
    pub fn processing(event: &Event) -> Option<Span> {
        let (context, id) = attempt_at(event)?;
        let topic = event.topic().name();
        let name = format!("process {topic}").into();
        let span = Span::new(context, id, SpanKind::Consumer, name);
        let mut span = span.of_message(
            "process",
            topic,
            event.id,
            event.order_id,
            event.type_name(),
        );
        if let Body::Failed { reason, .. } = &event.body {
            span = span.with("saga.reason", reason.code.clone());
        }
        let Some(delivery) = event.delivery else {
            return Some(span);
        };
        let (partition, offset) = (delivery.partition.to_string(), delivery.offset);
        Some(
            span.since(time(delivery.taken_up))
                .with("messaging.destination.partition.id", partition)
                .with("messaging.kafka.offset", offset)
                .with("saga.attempt", i64::from(delivery.attempt)),
        )
    }

    /// What an answer made of its order.
    pub fn deciding(event: &Event, status: &'static str) -> Option<Span> {
        let (context, attempt) = attempt_at(event)?;
        let id = Context::random().span_id;
        let span = Span::new(
            context.at(attempt),
            id,
            SpanKind::Internal,
            "decide order".into(),
        );
        let order_id = event.order_id.to_string();
        Some(
            span.with("saga.order.id", order_id)
                .with("saga.order.status", status),
        )
    }

    fn of_message(
        self,
        operation: &'static str,
        topic: &str,
        id: Uuid,
        order_id: Uuid,
        type_name: String,
    ) -> Span {
        self.with("messaging.system", "kafka")
            .with("messaging.operation.type", operation)
            .with("messaging.destination.name", topic.to_string())
            .with("messaging.message.id", id.to_string())
            .with("messaging.message.conversation_id", order_id.to_string())
            .with("saga.order.id", order_id.to_string())
            .with("saga.message.type", type_name)
    }

    fn since(mut self, begun: SystemTime) -> Span {
        self.0.start_time = begun;
        self
    }

    /// The same with an attribute more.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Span {
        self.0.attributes.push(KeyValue::new(name, value));
        self
    }

    /// It failed, and why.
    pub fn failed(mut self, why: String) -> Span {
        self.0.status = Status::error(why);
        self
    }
}

/// These spans end now, by one commit: those of several traces have links from a span of their own, which is called `batch`.
pub fn end(batch: &'static str, mut spans: Vec<Span>) {
    let trace_id = |span: &Span| span.0.span_context.trace_id();
    if spans
        .windows(2)
        .any(|pair| trace_id(&pair[0]) != trace_id(&pair[1]))
    {
        spans.push(joint(batch, &spans));
    }
    let now = SystemTime::now();
    for Span(mut data) in spans {
        data.end_time = now;
        queue::send(data);
    }
}

/// The span of what serves several orders at once: in a trace of its own, for it belongs to none of theirs.
fn joint(name: &'static str, spans: &[Span]) -> Span {
    let own = Context::random();
    let mut joint = Span::new(own, own.span_id, SpanKind::Internal, name.into())
        .with("messaging.batch.message_count", spans.len() as i64);
    joint.0.parent_span_id = SpanId::INVALID;
    let begun = spans.iter().map(|span| span.0.start_time).max();
    joint.0.start_time = begun.unwrap_or(joint.0.start_time);
    let members = spans.iter().take(LINKS);
    joint.0.links.links = members
        .map(|span| Link::with_context(span.0.span_context.clone()))
        .collect();
    joint.0.links.dropped_count = spans.len().saturating_sub(LINKS) as u32;
    joint
}

/// Of microseconds since 1970.
fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.max(0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const ID: Uuid = Uuid::from_u128(0x01a207b0_6c85_711f_941c_898f27171165);

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let context = Context::parse(TRACEPARENT).unwrap();
        assert_eq!(context.to_string(), TRACEPARENT);
        assert!(context.flags.is_sampled());
        let random = new_traceparent();
        assert_eq!(
            Context::parse(&random).map(|it| it.to_string()),
            Some(random)
        );
    }

    #[test]
    fn what_is_no_context_is_none() {
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
        ] {
            assert!(!is_traceparent(text), "{text}");
        }
    }

    #[test]
    fn spans_of_one_message_and_its_attempts_differ() {
        let sent = span_of(ID);
        assert_eq!(format!("{sent:016x}"), "941c898f27171165");
        assert_eq!(
            format!("{:016x}", span_of_attempt(ID, 1)),
            "d41c898f27171166"
        );
        assert_eq!(
            format!("{:016x}", span_of_attempt(ID, 2)),
            "d41c898f27171167"
        );
    }

    #[test]
    fn without_a_collector_a_context_goes_on_as_it_came() {
        assert_eq!(as_sent(TRACEPARENT, ID), TRACEPARENT);
        assert!(Span::storing(TRACEPARENT, ID, SystemTime::now()).is_none());
        let (traceparent, received) = receive(Some(TRACEPARENT), ID);
        assert_eq!(traceparent, TRACEPARENT);
        assert!(received.is_none());
    }

    #[test]
    fn what_serves_many_is_linked_to_each_up_to_a_limit() {
        let context = Context::parse(TRACEPARENT).unwrap();
        let span = |number| {
            let id = SpanId::from(number);
            Span::new(context, id, SpanKind::Consumer, "process payment".into())
        };
        let spans: Vec<Span> = (1..=130).map(span).collect();
        let joint = joint("process batch", &spans);
        assert_eq!(joint.0.links.links.len(), 128);
        assert_eq!(joint.0.links.dropped_count, 2);
        assert_eq!(
            joint.0.links.links[1].span_context.span_id(),
            SpanId::from(2)
        );
        assert_ne!(joint.0.span_context.trace_id(), context.trace_id);
        assert_eq!(joint.0.parent_span_id, SpanId::INVALID);
    }
}
