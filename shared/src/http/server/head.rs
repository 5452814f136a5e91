//! A request's head: its line and header fields, and where its body ends.

use crate::http::limits::{BODY_LIMIT, HEAD_LIMIT, body_too_large};
use crate::http::message::Headers;
use crate::http::problem::Problem;

/// The most header fields of a request: browsers and proxies send about 20.
const MAX_HEADERS: usize = 64;

/// A request's line and header fields, and what follows from them.
pub(super) struct Head {
    pub method: String,
    pub target: String,
    pub headers: Headers,
    pub keep_alive: bool,
    pub framing: Framing,
    pub awaits_continue: bool,
}

/// How the end of the body is known.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Framing {
    Length(usize),
    Chunked,
}

/// A head and its length in bytes; None if it isn't complete yet.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Problem> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes).map_err(malformed)? {
        httparse::Status::Complete(length) if length > HEAD_LIMIT => Err(head_too_long(bytes)),
        httparse::Status::Complete(length) => Ok(Some((head_of(&request)?, length))),
        httparse::Status::Partial => Ok(None),
    }
}

fn head_of(request: &httparse::Request) -> Result<Head, Problem> {
    let mut headers = Headers::default();
    for field in request.headers.iter() {
        // only these two count as space (RFC 9110, 5.6.3): what else a trim would take off, a proxy in front may not
        headers.push(
            field.name,
            String::from_utf8_lossy(field.value).trim_matches([' ', '\t']),
        );
    }
    let old = request.version == Some(0);
    check_host(&headers, old)?;
    Ok(Head {
        method: request.method.unwrap_or_default().into(),
        target: request.path.unwrap_or_default().into(),
        keep_alive: !asks_to(&headers, "close") && (!old || asks_to(&headers, "keep-alive")),
        framing: framing(&headers, old)?,
        awaits_continue: awaits_continue(&headers, old)?,
        headers,
    })
}

fn malformed(error: httparse::Error) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => {
            Problem::new(431, format!("more than {MAX_HEADERS} header fields"))
        }
        httparse::Error::Version => Problem::new(505, "only HTTP/1.1 and HTTP/1.0 are spoken here"),
        other => Problem::new(400, format!("the request is malformed: {other}")),
    }
}

pub(super) fn head_too_long(bytes: &[u8]) -> Problem {
    let in_first_line = !bytes[..HEAD_LIMIT.min(bytes.len())].contains(&b'\n');
    Problem::new(
        if in_first_line { 414 } else { 431 },
        format!("the request's head is longer than {HEAD_LIMIT} bytes"),
    )
}

/// RFC 9112, 3.2: a server must refuse a request of HTTP/1.1 without exactly one Host.
fn check_host(headers: &Headers, old: bool) -> Result<(), Problem> {
    match headers.all("Host").count() {
        0 if old => Ok(()),
        1 => Ok(()),
        _ => Err(Problem::new(
            400,
            "there must be exactly one header field Host",
        )),
    }
}

/// Where the body ends must not be a matter of opinion, or one side's body becomes the other's next request: everything doubtful is
/// refused (RFC 9112, 6.3).
fn framing(headers: &Headers, old: bool) -> Result<Framing, Problem> {
    let codings: Vec<_> = headers.all("Transfer-Encoding").collect();
    let lengths: Vec<_> = headers.all("Content-Length").collect();
    match (&codings[..], &lengths[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([], [length]) => content_length(length).map(Framing::Length),
        ([coding], []) if !old && coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        ([_], []) if !old => Err(Problem::new(
            501,
            "the only Transfer-Encoding known here is chunked",
        )),
        _ => Err(Problem::new(
            400,
            "Content-Length and Transfer-Encoding leave the body's length in doubt",
        )),
    }
}

fn content_length(text: &str) -> Result<usize, Problem> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::new(400, "Content-Length is not a number"));
    }
    // All digits: what can't be parsed is larger than any limit.
    text.parse()
        .ok()
        .filter(|length| *length <= BODY_LIMIT)
        .ok_or_else(body_too_large)
}

/// Whether the client names `option` among those of the connection (RFC 9110, 7.6.1).
fn asks_to(headers: &Headers, option: &str) -> bool {
    headers
        .all("Connection")
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(option))
}

fn awaits_continue(headers: &Headers, old: bool) -> Result<bool, Problem> {
    match headers.get("Expect") {
        None => Ok(false),
        Some(expected) if expected.eq_ignore_ascii_case("100-continue") => Ok(!old),
        Some(_) => Err(Problem::new(
            417,
            "the only expectation known here is 100-continue",
        )),
    }
}
