//! A JSON body's fields, checked by hand so that all bad ones are named.

use super::message::{Headers, Request};
use super::problem::{FieldError, Problem};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The characters of a name after trimming, at most.
const NAME_LENGTH: usize = 200;

/// A JSON object's fields as they were written, so that `1.0`, `1e3` and numbers beyond 64 bits can be distinguished from whole numbers.
pub type Object = BTreeMap<String, Box<RawValue>>;

/// The request's body as a JSON object.
///
/// # Errors
/// 415 if it isn't declared as `application/json`, or another type of JSON, in UTF-8 (or is compressed); 400 with line and column if it can't be parsed; 422 if
/// it is no object, or naming the fields that are given more than once.
pub fn json_object(request: &Request) -> Result<Object, Problem> {
    check_media_type(&request.headers)?;
    let text = std::str::from_utf8(&request.body)
        .map_err(|error| not_utf8(&request.body[..error.valid_up_to()]))?;
    match serde_json::from_str(text).map_err(|error| unparsable(&error))? {
        JsonBody::Object { fields, twice } if twice.is_empty() => Ok(fields),
        JsonBody::Object { twice, .. } => Err(Problem::fields(
            twice.into_iter().map(given_twice).collect(),
        )),
        JsonBody::Other => Err(Problem::new(422, "the body must be a JSON object")),
    }
}

/// A type that is JSON says so by its suffix (RFC 6839): `application/vnd.api+json`. Parameters are allowed (`; charset=utf-8`), another character set than UTF-8 is not. Its name is written in many ways: case
/// does not count, and clients leave out the hyphen, which browsers take for the same (WHATWG Encoding, "utf8"). US-ASCII is a part
/// of it.
fn check_media_type(headers: &Headers) -> Result<(), Problem> {
    let mut parts = headers
        .get("Content-Type")
        .unwrap_or_default()
        .split(';')
        .map(str::trim);
    let json = parts.next().is_some_and(is_json);
    let utf8 = parts.all(|parameter| charset(parameter).is_none_or(is_utf8));
    let plain = headers
        .all("Content-Encoding")
        .all(|coding| coding.eq_ignore_ascii_case("identity"));
    if json && utf8 && plain {
        return Ok(());
    }
    Err(Problem::new(
        415,
        "the body must be sent as Content-Type: application/json, in UTF-8, without Content-Encoding",
    ))
}

fn is_json(essence: &str) -> bool {
    let essence = essence.to_ascii_lowercase();
    let structured = essence
        .strip_suffix("+json")
        .and_then(|rest| rest.split_once('/'));
    essence == "application/json"
        || structured.is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty())
}

fn is_utf8(name: &str) -> bool {
    ["utf-8", "utf8", "us-ascii", "ascii"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

fn charset(parameter: &str) -> Option<&str> {
    let (name, value) = parameter.split_once('=')?;
    name.trim()
        .eq_ignore_ascii_case("charset")
        .then_some(value.trim().trim_matches('"'))
}

fn unparsable(error: &serde_json::Error) -> Problem {
    Problem::new(400, format!("the body is not JSON: {error}"))
}

/// `valid` is the part of the body before its first bad byte.
fn not_utf8(valid: &[u8]) -> Problem {
    let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
    let column = 1 + valid
        .iter()
        .rev()
        .take_while(|byte| **byte != b'\n')
        .count();
    Problem::new(
        400,
        format!("the body is not UTF-8 at line {line} column {column}"),
    )
}

fn given_twice(field: String) -> FieldError {
    FieldError {
        field,
        detail: "is given more than once".into(),
    }
}

/// A parsed body. Something else than an object is parsed to its end too: whether it is JSON at all is asked first.
enum JsonBody {
    Object { fields: Object, twice: Vec<String> },
    Other,
}

impl<'de> Deserialize<'de> for JsonBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = JsonBody;

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonBody, A::Error> {
        let (mut fields, mut twice) = (Object::new(), Vec::new());
        while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
            if fields.insert(name.clone(), value).is_some() {
                twice.push(name);
            }
        }
        Ok(JsonBody::Object { fields, twice })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<JsonBody, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(JsonBody::Other)
    }

    fn visit_unit<E>(self) -> Result<JsonBody, E> {
        Ok(JsonBody::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<JsonBody, E> {
        Ok(JsonBody::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<JsonBody, E> {
        Ok(JsonBody::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<JsonBody, E> {
        Ok(JsonBody::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<JsonBody, E> {
        Ok(JsonBody::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<JsonBody, E> {
        Ok(JsonBody::Other)
    }
}

/// Takes fields out of an object and collects what is wrong with them; [`finish`](Fields::finish) reports all of it at once.
#[derive(Debug)]
#[must_use = "bad fields show only in finish()"]
pub struct Fields {
    object: Object,
    errors: Vec<FieldError>,
}

impl Fields {
    /// A checker for the fields of `object`, as [`json_object`] returns it.
    pub fn new(object: Object) -> Self {
        Fields {
            object,
            errors: Vec::new(),
        }
    }

    /// A name: a string of 1 to 200 characters after trimming, without control characters. Returned trimmed; None if bad.
    pub fn name(&mut self, field: &str) -> Option<String> {
        self.text(field, NAME_LENGTH)
    }

    /// A string of 1 to `longest` characters after trimming, without control characters. Returned trimmed; None if bad.
    pub fn text(&mut self, field: &str, longest: usize) -> Option<String> {
        self.check(field, |raw| {
            text(
                &serde_json::from_str::<String>(raw).map_err(|_| "must be a string")?,
                longest,
            )
        })
    }

    /// A whole number within `range`; a fraction, also `1.0`, and an exponent are refused. None if bad.
    pub fn integer(&mut self, field: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.check(field, |raw| integer(raw, &range))
    }

    /// What `build` makes of the checked values, which are all there if no field was bad:
    /// `fields.finish(|| Some(Account { balance: balance? }))`.
    ///
    /// # Errors
    /// 422 naming every bad, missing and unknown field.
    pub fn finish<T>(mut self, build: impl FnOnce() -> Option<T>) -> Result<T, Problem> {
        let unknown = std::mem::take(&mut self.object).into_keys();
        self.errors.extend(unknown.map(|field| FieldError {
            field,
            detail: "is unknown".into(),
        }));
        if self.errors.is_empty()
            && let Some(value) = build()
        {
            return Ok(value);
        }
        Err(Problem::fields(self.errors))
    }

    fn check<T>(&mut self, field: &str, check: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let checked = match self.object.remove(field) {
            Some(value) => check(value.get()),
            None => Err("is missing".into()),
        };
        checked
            .map_err(|detail| {
                self.errors.push(FieldError {
                    field: field.into(),
                    detail,
                })
            })
            .ok()
    }
}

/// The rule for names, in bodies and in paths alike. Returns the name trimmed, or what is wrong with it.
pub(super) fn name(name: &str) -> Result<String, String> {
    text(name, NAME_LENGTH)
}

/// The same rule for texts of other lengths.
pub(super) fn text(text: &str, longest: usize) -> Result<String, String> {
    let text = text.trim();
    if !(1..=longest).contains(&text.chars().count()) {
        return Err(format!("must have 1 to {longest} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(text.into())
}

/// The rule for whole numbers, in bodies and in queries alike.
pub(super) fn integer(text: &str, range: &RangeInclusive<i64>) -> Result<i64, String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("must be a whole number, without fraction or exponent".into());
    }
    // All digits, so that parsing fails only for a number beyond 64 bits.
    let value = text.parse().ok().filter(|value| range.contains(value));
    value.ok_or_else(|| format!("must be from {} to {}", range.start(), range.end()))
}
