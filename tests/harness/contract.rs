//! The API as `openapi.yaml` writes it down, held against every answer that a test gets.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::{Map, Value};

use crate::api::Answer;
use crate::document::{Document, faults};

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let text = include_str!("../../openapi.yaml");
    Document::read("openapi.yaml", text, jsonschema::draft202012::new)
});

/// By operation, status and media type; built when first needed.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Validator>>> = LazyLock::new(Mutex::default);

/// What the document calls the operation: `GET /orders/{orderId}`. None if it knows no such path or method.
pub fn operation(method: &str, target: &str) -> Option<String> {
    let path = target.split('?').next().unwrap_or_default();
    let mut fitting: Vec<&String> = paths()
        .keys()
        .filter(|template| fits(template, path))
        .collect();
    // `/dead-letters/replay` before `/dead-letters/{id}`
    fitting.sort_by_key(|template| template.matches('{').count());
    let template = fitting.first()?;
    let known = paths()[*template].get(method.to_lowercase()).is_some();
    known.then(|| format!("{method} {template}"))
}

/// Holds an answer against the document.
///
/// # Panics
/// When the operation's answer with this status and media type is not in it, or its body is not as it says.
pub fn check(method: &str, target: &str, answer: &Answer) {
    let Some(operation) = operation(method, target) else {
        return;
    };
    let context = format!("{method} {target}: {} {}", answer.status, answer.text);
    let content = content(&operation, answer.status)
        .unwrap_or_else(|| panic!("openapi.yaml has no such status: {context}"));
    let media_type = answer.header("content-type").unwrap_or_default();
    let Some(content) = content else {
        return assert_eq!(answer.text, "", "openapi.yaml has no body: {context}");
    };
    let schema = content
        .get(essence(media_type))
        .unwrap_or_else(|| panic!("openapi.yaml has no {media_type}: {context}"));
    if essence(media_type).ends_with("json") {
        let key = format!("{operation} {} {media_type}", answer.status);
        let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
        let validator = validators
            .entry(key)
            .or_insert_with(|| DOCUMENT.validator(&schema["schema"]));
        let errors = faults(validator, &answer.json);
        assert!(
            errors.is_empty(),
            "not as openapi.yaml says: {errors:#?}\n{context}"
        );
    }
}

fn paths() -> &'static Map<String, Value> {
    DOCUMENT.json()["paths"].as_object().expect("paths")
}

fn fits(template: &str, path: &str) -> bool {
    let (parts, segments): (Vec<&str>, Vec<&str>) =
        (template.split('/').collect(), path.split('/').collect());
    let fit = |(part, segment): (&&str, &&str)| {
        if part.starts_with('{') {
            !segment.is_empty()
        } else {
            part == segment
        }
    };
    parts.len() == segments.len() && parts.iter().zip(&segments).all(fit)
}

/// None: no such status. Some(None): it has no body.
fn content(operation: &str, status: u16) -> Option<Option<&'static Value>> {
    let (method, template) = operation.split_once(' ')?;
    let responses = &paths()[template][method.to_lowercase()]["responses"];
    let response = DOCUMENT.resolved(
        responses
            .get(status.to_string())
            .or_else(|| responses.get("default"))?,
    );
    Some(response.get("content"))
}

fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}
