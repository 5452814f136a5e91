//! The messages as `asyncapi.yaml` writes them down, held against every record that a test reads and a service wrote.

use std::collections::HashMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::document::{Document, faults};
use crate::topics::Seen;

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let text = include_str!("../../asyncapi.yaml");
    Document::read("asyncapi.yaml", text, jsonschema::draft7::new)
});

/// By topic and `ce_type`.
static MESSAGES: LazyLock<HashMap<(String, String), Schemas>> = LazyLock::new(|| {
    let channels = DOCUMENT.json()["channels"].as_object().expect("channels");
    let messages = channels.iter().flat_map(|(topic, channel)| {
        let messages = channel["messages"].as_object().expect("messages");
        messages.iter().map(move |(name, message)| {
            let schemas = Schemas::new(DOCUMENT.resolved(message));
            ((topic.clone(), name.clone()), schemas)
        })
    });
    messages.collect()
});

/// Headers whose text is JSON, and what it must be.
static CONTENTS: LazyLock<HashMap<String, Validator>> = LazyLock::new(|| {
    let schemas = DOCUMENT.json()["components"]["schemas"]
        .as_object()
        .expect("schemas");
    let properties = schemas
        .values()
        .filter_map(|schema| schema["properties"].as_object());
    let contents = properties.flatten().filter_map(|(name, property)| {
        let schema = property.get("contentSchema")?;
        Some((name.clone(), DOCUMENT.validator(schema)))
    });
    contents.collect()
});

struct Schemas {
    key: Validator,
    headers: Validator,
    payload: Validator,
}

impl Schemas {
    fn new(message: &'static Value) -> Schemas {
        Schemas {
            key: DOCUMENT.validator(&DOCUMENT.resolved(&message["bindings"])["kafka"]["key"]),
            headers: DOCUMENT.validator(&message["headers"]),
            payload: DOCUMENT.validator(&message["payload"]),
        }
    }
}

/// Holds a record against the document.
///
/// # Errors
/// When the topic has no message of its type, or its key, headers or data are not as the document says.
pub fn check(seen: &Seen) -> Result<(), String> {
    let kind = (seen.topic.clone(), seen.ce_type.clone());
    let schemas = MESSAGES
        .get(&kind)
        .ok_or_else(|| format!("asyncapi.yaml has no {} on {}: {seen:?}", kind.1, kind.0))?;
    let headers: Map<String, Value> = seen
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    if headers.len() < seen.headers.len() {
        return Err(format!("a header twice: {seen:?}"));
    }
    hold("key", &schemas.key, &json!(seen.key), seen)?;
    hold("data", &schemas.payload, &seen.data, seen)?;
    for (name, content) in CONTENTS.iter() {
        if let Some(text) = headers.get(name).and_then(Value::as_str) {
            let json = serde_json::from_str(text).unwrap_or_default();
            hold(name, content, &json, seen)?;
        }
    }
    hold("headers", &schemas.headers, &Value::Object(headers), seen)
}

fn hold(what: &str, schema: &Validator, value: &Value, seen: &Seen) -> Result<(), String> {
    let errors = faults(schema, value);
    match errors.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{what} not as asyncapi.yaml says: {errors:#?}\n{seen:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(topic: &str, ce_type: &str, data: Value) -> Seen {
        let order_id = "01a207b0-6c23-7751-aebc-027543507a88";
        let text = |name: &str, value: &str| (name.to_string(), value.to_string());
        let source = format!("/{}", ce_type.split('.').next().unwrap_or_default());
        Seen {
            topic: topic.into(),
            partition: 0,
            offset: 0,
            timestamp: 0,
            key: Some(order_id.into()),
            ce_type: ce_type.into(),
            ce_id: String::new(),
            ce_time: String::new(),
            headers: vec![
                text("ce_specversion", "1.0"),
                text("ce_id", "01a207b0-6c85-711f-941c-898f27171165"),
                text("ce_type", ce_type),
                text("ce_source", &source),
                text("ce_time", "2026-01-02T03:04:05.678901Z"),
                text("content-type", "application/json"),
            ],
            data,
        }
    }

    fn failed() -> Seen {
        let reason = json!({"code": "UNKNOWN_USER", "from": "payment"});
        let order_id = "01a207b0-6c23-7751-aebc-027543507a88";
        let data = json!({"orderId": order_id, "reason": reason, "attempts": 1});
        seen("payment.dlt", "payment.failed", data)
    }

    #[test]
    fn what_is_as_written_down_passes_and_so_does_what_may_be_added() {
        assert_eq!(check(&failed()), Ok(()));
        let mut more = failed();
        more.data["currency"] = json!("EUR");
        more.headers.push(("ce_subject".into(), "a".into()));
        assert_eq!(check(&more), Ok(()));
    }

    fn assert_refused(spoil: impl FnOnce(&mut Seen), why: &str) {
        let mut seen = failed();
        spoil(&mut seen);
        let said = check(&seen).expect_err(why);
        assert!(said.contains(why), "{why}: {said}");
    }

    #[test]
    fn what_is_not_as_written_down_is_refused() {
        assert_refused(
            |seen| seen.topic = "payment.success".into(),
            "has no payment.failed on payment.success",
        );
        assert_refused(|seen| seen.key = None, "key not as");
        assert_refused(|seen| seen.data["attempts"] = json!(0), "data not as");
        assert_refused(
            |seen| drop(seen.data.as_object_mut().unwrap().remove("reason")),
            "data not as",
        );
        assert_refused(|seen| drop(seen.headers.remove(1)), "headers not as");
        assert_refused(
            |seen| seen.headers.push(seen.headers[0].clone()),
            "a header twice",
        );
        let broken = r#"{"partition": 0, "offset": 0, "takenUp": 1, "attempt": 0}"#;
        assert_refused(
            |seen| seen.headers.push(("answers".into(), broken.into())),
            "answers not as",
        );
    }

    /// `./run.sh proof`, or with the file of AsyncAPI's specification that `ASYNCAPI_SCHEMA` names.
    #[test]
    #[ignore = "needs AsyncAPI's own schema"]
    fn the_document_is_as_asyncapi_s_own_schema_wants_it() {
        let file = std::env::var("ASYNCAPI_SCHEMA").expect("ASYNCAPI_SCHEMA names a file");
        let text = std::fs::read_to_string(file).expect("the schema");
        let schema = serde_json::from_str(&text).expect("JSON");
        let validator = jsonschema::draft7::new(&schema).expect("a schema");
        let errors = faults(&validator, DOCUMENT.json());
        assert!(errors.is_empty(), "{errors:#?}");
        let mut spoilt = DOCUMENT.json().clone();
        spoilt["channels"]["payment"]["adress"] = json!("payment");
        assert!(!validator.is_valid(&spoilt));
    }
}
