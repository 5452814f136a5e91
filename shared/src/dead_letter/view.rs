//! How a parked record is shown: each of its parts as text for people, and as base64 (RFC 4648) for the exact bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kafka::Bytes;
use serde::Serialize;

use crate::dead_letter::action::Action;
use crate::dead_letter::{Kept, Summary};

/// A parked record with its bytes and its history.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Detail {
    #[serde(flatten)]
    summary: Summary,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    headers: Vec<Header>,
    history: Vec<Action>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    name: String,
    value: Option<String>,
    value_base64: Option<String>,
}

impl Detail {
    /// Shows `kept` and what was done about it.
    pub fn new(kept: Kept, history: Vec<Action>) -> Detail {
        let Kept {
            summary, record, ..
        } = kept;
        Detail {
            summary,
            key: text(&record.key),
            key_base64: base64(&record.key),
            value: text(&record.value),
            value_base64: base64(&record.value),
            headers: record
                .headers
                .iter()
                .map(|(name, value)| Header {
                    name: format!("{name}"),
                    value: text(value),
                    value_base64: base64(value),
                })
                .collect(),
            history,
        }
    }
}

/// Bytes that are not UTF-8 show as U+FFFD.
fn text(bytes: &Option<Bytes>) -> Option<String> {
    bytes
        .as_ref()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn base64(bytes: &Option<Bytes>) -> Option<String> {
    bytes.as_ref().map(|bytes| STANDARD.encode(bytes))
}
