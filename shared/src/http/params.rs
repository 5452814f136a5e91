//! What stands in the path, the query and the headers.

use super::fields::{integer, name, text};
use super::message::{QueryString, Repeated, Request};
use super::problem::{FieldError, Problem};
use crate::event::envelope;
use std::ops::RangeInclusive;
use std::time::Duration;
use uuid::Uuid;

/// Bad query parameters that are named: a client mistypes a few.
const MAX_NAMED: usize = 20;

/// The characters of an actor, at most: enough for an e-mail address or a host and a process.
const MAX_ACTOR_LENGTH: usize = 100;

impl Request {
    /// The path parameter as a name, by the same rule as a body's; trimmed.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn name_param(&self, param: &str) -> Result<String, Problem> {
        name(self.param(param)).map_err(|detail| Problem::field(param, detail))
    }

    /// The path parameter as a UUID in its usual form, 8-4-4-4-12 hexadecimal digits.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn uuid_param(&self, param: &str) -> Result<Uuid, Problem> {
        uuid(self.param(param)).ok_or_else(|| Problem::field(param, NO_UUID))
    }

    /// The path parameter as a whole number within `range`.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn integer_param(&self, param: &str, range: RangeInclusive<i64>) -> Result<i64, Problem> {
        integer(self.param(param), &range).map_err(|detail| Problem::field(param, detail))
    }

    /// Who makes the request, by the header `X-Actor`: as they call themselves; `unknown` without it.
    ///
    /// # Errors
    /// 400 unless it is one value of 1 to 100 characters, none of them a control character.
    pub fn actor(&self) -> Result<String, Problem> {
        let actor = match self.headers.one("X-Actor") {
            Ok(None) => return Ok("unknown".into()),
            Ok(Some(actor)) => text(actor, MAX_ACTOR_LENGTH).ok(),
            Err(Repeated) => None,
        };
        actor.ok_or_else(|| {
            Problem::new(
                400,
                "X-Actor must be one value of 1 to 100 characters, without control characters",
            )
        })
    }
}

impl QueryString {
    /// Refuses parameters that are not among `known`, and repeated ones.
    ///
    /// # Errors
    /// 422 naming them, the first twenty if there are more.
    pub fn allow_only(&self, known: &[&str]) -> Result<(), Problem> {
        let names: Vec<_> = self.names().collect();
        let errors: Vec<_> = names
            .iter()
            .enumerate()
            .filter_map(|(at, name)| query_error(known, &names[..at], name))
            .take(MAX_NAMED)
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::fields(errors))
        }
    }

    /// A whole number within `range`, if given.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn integer(&self, param: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Problem> {
        let value = self.get(param).map(|text| integer(text, &range));
        value
            .transpose()
            .map_err(|detail| Problem::field(param, detail))
    }

    /// `true` or `false`; false if it is not given.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn flag(&self, param: &str) -> Result<bool, Problem> {
        let value = self.get(param).unwrap_or("false");
        value
            .parse()
            .map_err(|_| Problem::field(param, "must be true or false"))
    }

    /// What `from_name` makes of it, if given; `names` are those that it knows.
    ///
    /// # Errors
    /// 422 naming the parameter and the names.
    pub fn one_of<T>(
        &self,
        param: &str,
        from_name: impl Fn(&str) -> Option<T>,
        names: &[&str],
    ) -> Result<Option<T>, Problem> {
        let Some(name) = self.get(param) else {
            return Ok(None);
        };
        let found = from_name(name);
        found
            .map(Some)
            .ok_or_else(|| Problem::field(param, format!("must be one of {}", names.join(", "))))
    }

    /// A UUID in its usual form, if given.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn uuid(&self, param: &str) -> Result<Option<Uuid>, Problem> {
        let value = self
            .get(param)
            .map(|text| uuid(text).ok_or_else(|| Problem::field(param, NO_UUID)));
        value.transpose()
    }

    /// A time as [`duration`] reads it, `longest` at most, if given.
    ///
    /// # Errors
    /// 422 naming the parameter.
    pub fn duration(&self, param: &str, longest: Duration) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.get(param) else {
            return Ok(None);
        };
        let value = duration(text)
            .ok_or_else(|| Problem::field(param, "must be a time such as 500ms, 10s or 1m"))?;
        if value > longest {
            return Err(Problem::field(
                param,
                format!("must be at most {longest:?}"),
            ));
        }
        Ok(Some(value))
    }
}

const NO_UUID: &str = "must be a UUID";

/// The `Idempotency-Key` header, if given.
///
/// # Errors
/// 400 unless it is one value of 1 to 255 visible ASCII characters.
pub fn idempotency_key(request: &Request) -> Result<Option<&str>, Problem> {
    match request.headers.one("Idempotency-Key") {
        Ok(key) if key.is_none_or(envelope::is_key) => Ok(key),
        _ => Err(Problem::new(
            400,
            "Idempotency-Key must be one value of 1 to 255 visible ASCII characters",
        )),
    }
}

/// A time written as a whole number and its unit: `500ms`, `10s`, `1m`. None if it is written otherwise.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let count = integer(digits, &(0..=i64::MAX)).ok()?.unsigned_abs();
    match &text[digits.len()..] {
        "ms" => Some(Duration::from_millis(count)),
        "s" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_secs(count.checked_mul(60)?)),
        _ => None,
    }
}

fn query_error(known: &[&str], before: &[&str], name: &str) -> Option<FieldError> {
    let detail = match name {
        _ if !known.contains(&name) => "is unknown",
        _ if before.contains(&name) => "is given more than once",
        _ => return None,
    };
    Some(FieldError {
        field: name.into(),
        detail: detail.into(),
    })
}

/// The crate reads other forms too (braces, no hyphens); one order has one address.
fn uuid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text)
        .ok()
        .filter(|_| text.len() == uuid::fmt::Hyphenated::LENGTH)
}
