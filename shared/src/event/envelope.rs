//! The envelope: events as they lie in the outbox and travel as records. Values are plain JSON; metadata travels in Kafka
//! headers by the CloudEvents Kafka binding, binary mode.

use kafka::{Bytes, StrBytes};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use crate::event::delivery::{self, Delivery};
use crate::event::trace::{self, is_traceparent};
use crate::event::{Body, Event, Reason, Service, Side, Topic};

/// The header of a payment request that holds the idempotency key under which its order was placed.
const KEY_HEADER: &str = "idempotency_key";

/// The union of all bodies' fields, as they stand in JSON.
#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Data {
    order_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    undone: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<i32>,
}

impl From<&Event> for Data {
    fn from(event: &Event) -> Data {
        let bare = Data {
            order_id: event.order_id,
            ..Data::default()
        };
        match event.body.clone() {
            Body::PaymentRequested { user_name, price } => Data {
                user_name: Some(user_name),
                price: Some(price),
                ..bare
            },
            Body::StockRequested {
                item_name,
                quantity,
            } => Data {
                item_name: Some(item_name),
                quantity: Some(quantity),
                ..bare
            },
            Body::Compensated { undone } => Data {
                undone: Some(undone),
                ..bare
            },
            Body::Failed { reason, attempts } => Data {
                reason: Some(reason),
                attempts: Some(attempts),
                ..bare
            },
            Body::Completed | Body::CompensationRequested => bare,
        }
    }
}

/// A record that is not one of the saga's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// The order by the record's key, where the key is usable.
    pub order_id: Option<Uuid>,
    /// Its W3C trace context, where it has a valid one.
    pub traceparent: Option<String>,
    /// What is wrong.
    pub why: String,
}

/// Reads a record of `topic` as an event.
///
/// # Errors
/// [`Undecodable`] when a needed header is missing or foreign to the topic, the key is no UUID or not that of the
/// body, or the value is not the JSON of its type. Unknown fields and headers are let pass, and so are a trace context and a
/// delivery (header `answers`) that are none.
pub fn decode(topic: Topic, record: &kafka::Record) -> std::result::Result<Event, Undecodable> {
    let order_id = record
        .key
        .as_deref()
        .and_then(|key| Uuid::try_parse_ascii(key).ok());
    decode_parts(topic, order_id, record).map_err(|why| {
        let traceparent = traceparent(record);
        Undecodable {
            order_id,
            traceparent,
            why,
        }
    })
}

/// How a record was delivered to who took it up now, for this attempt, from this partition.
pub fn delivery(record: &kafka::Record, partition: i32, taken_up: i64, attempt: i32) -> Delivery {
    Delivery {
        id: header(record, "ce_id").and_then(|id| Uuid::parse_str(id).ok()),
        partition,
        offset: record.offset,
        stored: header(record, "ce_time").and_then(delivery::from_rfc3339),
        published: delivery::from_millis(record.timestamp),
        taken_up,
        attempt,
    }
}

fn decode_parts(
    topic: Topic,
    order_id: Option<Uuid>,
    record: &kafka::Record,
) -> std::result::Result<Event, String> {
    let order_id = order_id.ok_or("the key is not an order id (UUID)")?;
    if required_header(record, "ce_specversion")? != "1.0" {
        return Err("header ce_specversion is not 1.0".into());
    }
    let id = Uuid::parse_str(required_header(record, "ce_id")?)
        .map_err(|_| "header ce_id is not a UUID")?;
    let value = record.value.as_deref().ok_or("the value is missing")?;
    let data: Data = serde_json::from_slice(value)
        .map_err(|error| format!("the value is not the expected JSON: {error}"))?;
    if data.order_id != order_id {
        return Err("orderId in the value is not the key".into());
    }
    let ce_type = required_header(record, "ce_type")?;
    let verb = ce_type
        .strip_prefix(topic.0.name())
        .and_then(|rest| rest.strip_prefix('.'));
    let body = body_of(topic, verb.unwrap_or_default(), data).ok_or(format!(
        "type {ce_type} with these fields does not belong on {}",
        topic.name()
    ))?;
    let answers =
        header(record, delivery::HEADER).and_then(|text| Delivery::parse(text.as_bytes()));
    let idempotency_key = header(record, KEY_HEADER)
        .filter(|key| is_key(key))
        .map(str::to_string);
    let traceparent = traceparent(record);
    Ok(Event {
        id,
        side: topic.0,
        order_id,
        body,
        traceparent,
        delivery: None,
        answers,
        idempotency_key,
    })
}

fn required_header<'a>(
    record: &'a kafka::Record,
    name: &str,
) -> std::result::Result<&'a str, String> {
    header(record, name).ok_or_else(|| format!("header {name} is missing or not text"))
}

/// Checked, because the answers carry it on: an outbox row must not grow by what comes from outside.
fn traceparent(record: &kafka::Record) -> Option<String> {
    header(record, "traceparent")
        .filter(|text| is_traceparent(text))
        .map(str::to_string)
}

fn body_of(topic: Topic, verb: &str, data: Data) -> Option<Body> {
    let (price, quantity) = (
        data.price.filter(|price| *price > 0),
        data.quantity.filter(|quantity| *quantity > 0),
    );
    let body = match (verb, topic.0) {
        ("requested", Side::Payment) => Body::PaymentRequested {
            user_name: data.user_name?,
            price: price?,
        },
        ("requested", Side::Stock) => Body::StockRequested {
            item_name: data.item_name?,
            quantity: quantity?,
        },
        ("completed", _) => Body::Completed,
        ("compensated", _) => Body::Compensated {
            undone: data.undone?,
        },
        ("failed", _) => Body::Failed {
            reason: data.reason?,
            attempts: data.attempts?,
        },
        ("compensation-requested", _) => Body::CompensationRequested,
        _ => return None,
    };
    (body.channel() == topic.1).then_some(body)
}

/// A record's header, if it is there and text.
pub fn header<'a>(record: &'a kafka::Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().find(|(key, _)| &**key == name)?;
    std::str::from_utf8(value.as_deref()?).ok()
}

/// An event as it lies in the outbox: all of the record but what the row's own columns say.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredMessage<'a> {
    /// `ce_id`.
    pub id: Uuid,
    /// Topic name without prefix.
    #[serde(borrow)]
    pub topic: std::borrow::Cow<'a, str>,
    /// `ce_type`.
    #[serde(borrow, rename = "type")]
    pub type_name: std::borrow::Cow<'a, str>,
    /// W3C trace context.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<std::borrow::Cow<'a, str>>,
    /// In a payment request: the idempotency key of its order.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub key: Option<std::borrow::Cow<'a, str>>,
    /// In an answer: the [`Delivery`] of what it answers.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<&'a RawValue>,
    /// The value, byte for byte.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// The events of one outbox row, in its column `messages`.
pub fn to_stored(events: &[Event]) -> String {
    let stored: Vec<String> = events.iter().map(stored_text).collect();
    format!("[{}]", stored.join(","))
}

fn stored_text(event: &Event) -> String {
    const PLAIN: &str = "plain data is always JSON";
    let data = to_raw_value(&Data::from(event)).expect(PLAIN);
    let answers = event
        .answers
        .as_ref()
        .map(|answers| to_raw_value(answers).expect(PLAIN));
    let stored = StoredMessage {
        id: event.id,
        topic: event.topic().name().into(),
        type_name: event.type_name().into(),
        traceparent: event.traceparent.as_deref().map(Into::into),
        key: event.idempotency_key.as_deref().map(Into::into),
        answers: answers.as_deref(),
        data: &data,
    };
    serde_json::to_string(&stored).expect(PLAIN)
}

/// The record of a stored event: `stored_at` is the row's stored time, RFC 3339 with six digits; `timestamp` the
/// record's own, in milliseconds since 1970.
pub fn to_record(
    stored: &StoredMessage<'_>,
    order_id: Uuid,
    source: Service,
    prefix: &str,
    stored_at: &str,
    timestamp: i64,
) -> kafka::ProducerRecord {
    let mut headers = Vec::with_capacity(9);
    let mut header = |name: &'static str, value: &str| {
        headers.push((
            StrBytes::from_static_str(name),
            Some(Bytes::copy_from_slice(value.as_bytes())),
        ));
    };
    header("ce_specversion", "1.0");
    header("ce_id", &stored.id.to_string());
    header("ce_type", &stored.type_name);
    header("ce_source", source.source());
    header("ce_time", stored_at);
    header("content-type", "application/json");
    if let Some(traceparent) = &stored.traceparent {
        header("traceparent", &trace::as_sent(traceparent, stored.id));
    }
    if let Some(key) = &stored.key {
        header(KEY_HEADER, key);
    }
    if let Some(answers) = stored.answers {
        header(delivery::HEADER, answers.get());
    }
    kafka::ProducerRecord {
        topic: format!("{prefix}{}", stored.topic).into(),
        partition: None,
        key: Some(Bytes::from(order_id.to_string())),
        value: Some(Bytes::copy_from_slice(stored.data.get().as_bytes())),
        headers,
        timestamp: Some(timestamp),
    }
}

/// Whether `text` can be an idempotency key: 1 to 255 visible ASCII characters, for it becomes part of an index row.
pub fn is_key(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Channel;

    const ORDER: &str = "01a207b0-6c61-7300-bac7-ad7255aed1b3";
    const TRACE: &str = "00-01a207b06c617300bac7ad707dc8e76f-bac7ad71a665737d-01";

    fn record(ce_type: &'static str, value: &'static str, traceparent: &str) -> kafka::Record {
        let header = |name, value: &str| {
            (
                StrBytes::from_static_str(name),
                Some(Bytes::copy_from_slice(value.as_bytes())),
            )
        };
        let headers = vec![
            header("ce_specversion", "1.0"),
            header("ce_id", "01a207b0-6c85-711f-941c-898f27171165"),
            header("ce_type", ce_type),
            header("traceparent", traceparent),
        ];
        let (key, value) = (
            Some(Bytes::from_static(ORDER.as_bytes())),
            Some(Bytes::from_static(value.as_bytes())),
        );
        kafka::Record {
            offset: 0,
            timestamp: 0,
            key,
            value,
            headers,
        }
    }

    #[test]
    fn a_record_is_read_back_as_the_event_it_was_made_of() {
        let body = Body::PaymentRequested {
            user_name: "ann \u{0}\"ü".into(),
            price: 12,
        };
        let event = Event::new(
            Side::Payment,
            ORDER.parse().unwrap(),
            body,
            Some(TRACE.into()),
        );
        let text = to_stored(std::slice::from_ref(&event));
        let stored: Vec<StoredMessage<'_>> = serde_json::from_str(&text).unwrap();
        let produced = to_record(
            &stored[0],
            event.order_id,
            Service::Order,
            "p-",
            "2026-01-02T03:04:05.678901Z",
            7,
        );
        assert_eq!(&*produced.topic, "p-payment");
        let kafka::ProducerRecord {
            key,
            value,
            headers,
            timestamp,
            ..
        } = produced;
        let read = decode(
            event.topic(),
            &kafka::Record {
                offset: 3,
                timestamp: timestamp.unwrap(),
                key,
                value,
                headers,
            },
        );
        assert_eq!(read, Ok(event));
    }

    #[test]
    fn a_payment_request_carries_its_order_s_idempotency_key() {
        let body = Body::PaymentRequested {
            user_name: "ann".into(),
            price: 12,
        };
        let event = Event::new(
            Side::Payment,
            ORDER.parse().unwrap(),
            body,
            Some(TRACE.into()),
        );
        let event = Event {
            idempotency_key: Some(r#"{"id":"k~"#.into()),
            ..event
        };
        let text = to_stored(std::slice::from_ref(&event));
        assert!(
            text.starts_with(&format!(r#"[{{"id":"{}","#, event.id)),
            "the id is the first field: {text}"
        );
        assert_eq!(
            text.matches(r#"{"id":""#).count(),
            1,
            "the key's quotes are escaped: {text}"
        );
        let stored: Vec<StoredMessage<'_>> = serde_json::from_str(&text).unwrap();
        let produced = to_record(
            &stored[0],
            event.order_id,
            Service::Order,
            "",
            "2026-01-02T03:04:05.678901Z",
            7,
        );
        let kafka::ProducerRecord {
            key,
            value,
            mut headers,
            timestamp,
            ..
        } = produced;
        let record = |headers| kafka::Record {
            offset: 3,
            timestamp: timestamp.unwrap(),
            key: key.clone(),
            value: value.clone(),
            headers,
        };
        assert_eq!(
            decode(event.topic(), &record(headers.clone())),
            Ok(event.clone())
        );
        for bad in ["", "a b", "\u{e4}", &"x".repeat(256)] {
            let at = headers
                .iter()
                .position(|(name, _)| &**name == "idempotency_key")
                .unwrap();
            headers[at].1 = Some(Bytes::copy_from_slice(bad.as_bytes()));
            let keyless = Event {
                idempotency_key: None,
                ..event.clone()
            };
            assert_eq!(
                decode(event.topic(), &record(headers.clone())),
                Ok(keyless),
                "{bad:?}"
            );
        }
    }

    const ASKED: Delivery = Delivery {
        id: Some(Uuid::from_u128(1)),
        partition: 2,
        offset: 17,
        stored: Some(1_767_323_045_678_901),
        published: Some(1_767_323_045_680_000),
        taken_up: 1_767_323_045_682_003,
        attempt: 3,
    };

    #[test]
    fn an_answer_carries_the_delivery_of_what_it_answers() {
        let request = Event::new(
            Side::Stock,
            ORDER.parse().unwrap(),
            Body::CompensationRequested,
            Some(TRACE.into()),
        );
        let request = Event {
            delivery: Some(ASKED),
            ..request
        };
        let answer = request.answer(Body::Completed);
        assert_eq!(
            (
                answer.traceparent.as_deref(),
                answer.answers,
                answer.delivery
            ),
            (Some(TRACE), Some(ASKED), None)
        );
        let text = to_stored(std::slice::from_ref(&answer));
        let stored: Vec<StoredMessage<'_>> = serde_json::from_str(&text).unwrap();
        let produced = to_record(
            &stored[0],
            answer.order_id,
            Service::Stock,
            "",
            "2026-01-02T03:04:05.678901Z",
            7,
        );
        let kafka::ProducerRecord {
            key,
            value,
            headers,
            timestamp,
            ..
        } = produced;
        let record = kafka::Record {
            offset: 5,
            timestamp: timestamp.unwrap(),
            key,
            value,
            headers,
        };
        assert_eq!(decode(answer.topic(), &record), Ok(answer.clone()));
        let delivered = Delivery {
            id: Some(answer.id),
            partition: 1,
            offset: 5,
            published: Some(7_000),
            taken_up: 9,
            ..ASKED
        };
        assert_eq!(delivery(&record, 1, 9, 3), delivered);
    }

    #[test]
    fn an_answer_of_the_version_before_has_no_delivery() {
        let old = r#"[{"id":"01a207b0-6c85-711f-941c-898f27171165","topic":"stock.success","type":"stock.completed","data":{"orderId":"01a207b0-6c61-7300-bac7-ad7255aed1b3"}}]"#;
        let stored: Vec<StoredMessage<'_>> = serde_json::from_str(old).unwrap();
        let produced = to_record(
            &stored[0],
            ORDER.parse().unwrap(),
            Service::Stock,
            "",
            "",
            7,
        );
        assert!(
            produced
                .headers
                .iter()
                .all(|(name, _)| &**name != "answers")
        );
    }

    #[test]
    fn a_delivery_that_is_none_is_let_pass() {
        let topic = Topic(Side::Stock, Channel::Success);
        let value = r#"{"orderId":"01a207b0-6c61-7300-bac7-ad7255aed1b3"}"#;
        for text in [
            "{".to_string(),
            serde_json::to_string(&ASKED).unwrap() + &" ".repeat(1_000_000),
            "{}".into(),
        ] {
            let mut record = record("stock.completed", value, TRACE);
            record.headers.push((
                StrBytes::from_static_str("answers"),
                Some(Bytes::from(text)),
            ));
            assert_eq!(decode(topic, &record).map(|event| event.answers), Ok(None));
        }
    }

    #[test]
    fn what_does_not_belong_on_the_topic_is_undecodable_and_names_its_order() {
        let topic = Topic(Side::Stock, Channel::Request);
        let good =
            r#"{"orderId":"01a207b0-6c61-7300-bac7-ad7255aed1b3","itemName":"pen","quantity":1}"#;
        let none =
            r#"{"orderId":"01a207b0-6c61-7300-bac7-ad7255aed1b3","itemName":"pen","quantity":0}"#;
        let other =
            r#"{"orderId":"01a207b0-6c61-7300-bac7-ad7255aed1b4","itemName":"pen","quantity":1}"#;
        assert!(decode(topic, &record("stock.requested", good, TRACE)).is_ok());
        for (ce_type, value) in [
            ("stock.requested", none),
            ("stock.requested", other),
            ("stock.requested", "{"),
            ("stock.completed", good),
            ("payment.requested", good),
            ("stock", good),
        ] {
            let undecodable = decode(topic, &record(ce_type, value, TRACE)).unwrap_err();
            assert_eq!(
                undecodable.order_id,
                ORDER.parse().ok(),
                "{ce_type} {value}"
            );
            assert_eq!(
                undecodable.traceparent.as_deref(),
                Some(TRACE),
                "{ce_type} {value}"
            );
            let undecodable = decode(topic, &record(ce_type, value, "00-none-01")).unwrap_err();
            assert_eq!(undecodable.traceparent, None);
        }
    }

    #[test]
    fn a_trace_context_that_is_none_is_not_carried_on() {
        let topic = Topic(Side::Payment, Channel::Compensation);
        let value = r#"{"orderId":"01a207b0-6c61-7300-bac7-ad7255aed1b3"}"#;
        let traced = |text: &str| {
            decode(
                topic,
                &record("payment.compensation-requested", value, text),
            )
            .unwrap()
            .traceparent
        };
        assert_eq!(traced(TRACE), Some(TRACE.into()));
        assert_eq!(traced(&"x".repeat(1_000_000)), None);
        assert_eq!(
            traced("00-00000000000000000000000000000000-bac7ad71a665737d-01"),
            None
        );
    }
}
