//! A Jaeger of our own: takes spans by OTLP over HTTP, and shows traces by its query interface.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use ureq::Agent;

use crate::ports::free_port;
use crate::process::Process;
use crate::wait;

/// Dropped, it is gone, and what it was sent with it.
pub struct Jaeger {
    collector: u16,
    query: u16,
    process: Process,
}

/// A span as Jaeger shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Of its service and name: `order: POST /orders`.
    pub title: String,
    /// The id of its parent; none if it has none.
    pub parent: Option<String>,
    /// Its attributes, as text.
    pub tags: HashMap<String, String>,
}

impl Jaeger {
    /// Starts the binary that `JAEGER_BIN` names.
    ///
    /// # Panics
    /// When there is none, or it does not answer.
    pub fn start() -> Jaeger {
        let binary = std::env::var("JAEGER_BIN").expect("JAEGER_BIN names a Jaeger");
        let ports: [u16; 6] = std::array::from_fn(|_| free_port());
        let [collector, query, other @ ..] = ports;
        let places = [
            ("receivers.otlp.protocols.http.endpoint", collector),
            ("receivers.otlp.protocols.grpc.endpoint", other[0]),
            ("extensions.jaeger_query.http.endpoint", query),
            ("extensions.jaeger_query.grpc.endpoint", other[1]),
            ("extensions.healthcheckv2.http.endpoint", other[2]),
            ("extensions.expvar.endpoint", other[3]),
        ];
        let places = places.map(|(name, port)| format!("--set={name}=127.0.0.1:{port}"));
        let arguments: Vec<&str> = places.iter().map(String::as_str).collect();
        let jaeger = Jaeger {
            collector,
            query,
            process: Process::start("jaeger", Path::new(&binary), &arguments, &[]),
        };
        wait::until("Jaeger", || {
            let ended = jaeger.process.ended();
            assert!(ended.is_none(), "Jaeger ended:\n{}", jaeger.process.tail());
            jaeger.ask("/api/services").is_some()
        });
        jaeger
    }

    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.collector)
    }

    /// Where a browser finds it.
    pub fn page(&self) -> String {
        format!("http://127.0.0.1:{}", self.query)
    }

    /// The spans of a trace; none as long as it has none.
    pub fn trace(&self, trace_id: &str) -> Vec<Shown> {
        let answer = self.ask(&format!("/api/traces/{trace_id}"));
        let Some(trace) = answer.as_ref().and_then(|answer| answer["data"].get(0)) else {
            return vec![];
        };
        let spans = trace["spans"].as_array().expect("spans");
        spans.iter().map(|span| shown(trace, span)).collect()
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let config = Agent::config_builder()
            .timeout_global(Some(wait::LIMIT))
            .proxy(None)
            .build();
        let url = format!("{}{path}", self.page());
        let mut answer = Agent::from(config).get(url).call().ok()?;
        serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()
    }
}

fn shown(trace: &Value, span: &Value) -> Shown {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let process = span["processID"].as_str().expect("a process");
    let service = text(&trace["processes"][process]["serviceName"]);
    let references = span["references"].as_array().into_iter().flatten();
    let parent = references
        .filter(|reference| reference["refType"] == "CHILD_OF")
        .map(|reference| text(&reference["spanID"]))
        .next();
    let tags = span["tags"].as_array().into_iter().flatten();
    Shown {
        id: text(&span["spanID"]),
        title: format!("{service}: {}", text(&span["operationName"])),
        parent,
        tags: tags
            .map(|tag| (text(&tag["key"]), text(&tag["value"])))
            .collect(),
    }
}
