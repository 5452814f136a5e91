//! A request as a handler sees it, and its answer.

use super::problem::Problem;
use serde::Serialize;
use std::borrow::Cow;
use std::net::IpAddr;

/// The request methods that routes know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// `GET`, and `HEAD`: the same without the body (RFC 9110, 9.3.2)
    Get,
    /// `PUT`
    Put,
    /// `POST`
    Post,
    /// `DELETE`
    Delete,
    /// `OPTIONS`; no route has it, browsers ask by it what a page of another origin may do.
    Options,
    /// Any other; no route has it, so it is answered with 405.
    Other,
}

impl Method {
    /// The method of that name; names are case-sensitive (RFC 9110, 9.1).
    pub fn parse(name: &str) -> Self {
        match name {
            "GET" | "HEAD" => Method::Get,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        }
    }

    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Other => "other",
        }
    }
}

/// A request that was read to its end.
#[derive(Clone, Debug)]
pub struct Request {
    /// The request's method.
    pub method: Method,
    /// The path's segments, percent-decoded: `/orders/a%2Fb` is `["orders", "a/b"]`.
    pub path: Vec<String>,
    /// The query's pairs, decoded.
    pub query: QueryString,
    /// The header fields.
    pub headers: Headers,
    /// The body, [`BODY_LIMIT`](super::BODY_LIMIT) bytes at most.
    pub body: Vec<u8>,
    /// Where the client's end of the connection is; none if it is gone.
    pub peer: Option<IpAddr>,
    /// Why it is not let in, if it is not; its body is empty then.
    pub refused: Option<Problem>,
    pub(super) params: Vec<(&'static str, String)>,
}

impl Request {
    /// A request from its parts; `target` is what stands in the request line.
    ///
    /// # Errors
    /// 400 if the target is no path, has a broken percent escape, or does not decode to UTF-8.
    pub fn new(
        method: Method,
        target: &str,
        headers: Headers,
        body: Vec<u8>,
    ) -> Result<Self, Problem> {
        let (path, query) = origin_form(target)
            .split_once('?')
            .unwrap_or((origin_form(target), ""));
        let segments = path
            .strip_prefix('/')
            .ok_or_else(|| Problem::new(400, "the request target is not a path"))?;
        let path = segments
            .split('/')
            .map(|segment| decode(segment, "path"))
            .collect::<Result<_, _>>()?;
        Ok(Request {
            method,
            path,
            query: QueryString::parse(query)?,
            headers,
            body,
            peer: None,
            refused: None,
            params: Vec::new(),
        })
    }

    /// The path segment at the place of `{name}` in the route's pattern.
    ///
    /// # Panics
    /// If the route's pattern has no such name: a mistake of the program, answered with 500.
    pub fn param(&self, name: &str) -> &str {
        let found = self.params.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, value)| value.as_str())
            .unwrap_or_else(|| panic!("the route has no parameter {name}"))
    }
}

/// A target may come with scheme and host in front (RFC 9112, 3.2.2: a server must accept it).
fn origin_form(target: &str) -> &str {
    let Some(rest) = target.strip_prefix("http://") else {
        return target;
    };
    rest.find('/').map_or("/", |slash| &rest[slash..])
}

/// A query string's pairs, in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub struct QueryString {
    pairs: Vec<(String, String)>,
}

impl QueryString {
    /// Parses what follows the `?`. Plus signs are spaces, as forms write them.
    fn parse(text: &str) -> Result<Self, Problem> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Ok(QueryString {
            pairs: pairs.map(decode_pair).collect::<Result<_, _>>()?,
        })
    }

    /// The value of the first pair of that name; empty if it was given without one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The pairs' names, in order, repeated ones repeated.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }
}

fn decode_pair(pair: &str) -> Result<(String, String), Problem> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    Ok((
        decode(&name.replace('+', " "), "query")?,
        decode(&value.replace('+', " "), "query")?,
    ))
}

/// Percent-decodes `text`, which stands in the `place` of the target.
fn decode(text: &str, place: &str) -> Result<String, Problem> {
    let wrong = |what: &str| Problem::new(400, format!("the {place} {what}"));
    let mut escapes = text.split('%').skip(1).map(|rest| rest.as_bytes().get(..2));
    if !escapes.all(|digits| digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)))
    {
        return Err(wrong("has a broken percent escape"));
    }
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded
        .map(Cow::into_owned)
        .map_err(|_| wrong("is not UTF-8"))
}

/// A header field stands more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeated;

/// A request's header fields. Names are found in any case.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    fields: Vec<(String, String)>,
}

impl Headers {
    /// The value of the first field of that name, without the spaces around it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.0.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The values of all fields of that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |field| field.0.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The value of the field of that name, if there is one.
    ///
    /// # Errors
    /// [`Repeated`] if there are several: which of them counts would be a matter of opinion.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, Repeated> {
        let mut values = self
            .fields
            .iter()
            .filter(|field| field.0.eq_ignore_ascii_case(name));
        let first = values.next().map(|(_, value)| value.as_str());
        if values.next().is_some() {
            Err(Repeated)
        } else {
            Ok(first)
        }
    }

    /// Adds a field.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.fields.push((name.into(), value.into()));
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// Header fields besides those that the server sets itself (`Date`, `Content-Type`, `Content-Length`, `Connection`).
    pub headers: Vec<(&'static str, String)>,
    /// The body's media type.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer of any kind.
    pub fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Response {
            status,
            headers: Vec::new(),
            content_type,
            body,
        }
    }

    /// An answer with `value` as JSON; 500 if it can't be serialized (a map whose keys are no strings).
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Response::new(status, "application/json", body),
            Err(error) => {
                Problem::new(500, format!("the answer can't be written as JSON: {error}")).into()
            }
        }
    }

    /// The header fields as they are sent, without those of the connection and of the body's length.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, String)> {
        let standing = [
            // Whatever a body looks like, a browser must take it for what it is said to be.
            ("X-Content-Type-Options", "nosniff"),
            // Every answer says how things stand at that moment.
            ("Cache-Control", "no-store"),
        ];
        // 204 means that there is no body (RFC 9110, 8.6).
        let kind = (self.status != 204).then_some(("Content-Type", self.content_type));
        let own = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        standing
            .into_iter()
            .chain(kind)
            .chain(own)
            .map(|(name, value)| (name, without_controls(value)))
    }

    /// The same answer with one more header field. Control characters in `value` are left out when it is sent.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A line end in a header's value would be the end of the field, and whatever follows a field of its own.
fn without_controls(value: &str) -> String {
    let characters = value.chars();
    characters
        .filter(|character| !character.is_control())
        .collect()
}

/// The reason phrase of the statuses used here (RFC 9110, 15).
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => {
            debug_assert!(false, "add the reason phrase of {status} here");
            "Unknown"
        }
    }
}
