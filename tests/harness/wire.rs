//! HTTP as bytes, for loads: they share the machine with what they measure, so as little as possible is copied and parsed.

use std::io::{self, Write};

use uuid::Uuid;

const HEADERS: usize = 16;

/// What a load needs to know of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireAnswer {
    /// The status code.
    pub status: u16,
    /// The order that `Location` names.
    pub order_id: Option<Uuid>,
    /// Whether the server closes the connection after it.
    pub closes: bool,
    /// Bytes, the head included.
    pub length: usize,
}

/// Appends a `POST` of JSON, with these headers besides the necessary ones.
///
/// # Errors
/// None: a `Vec` takes everything.
pub fn write_post(
    request: &mut Vec<u8>,
    path: &str,
    headers: &[(&str, &str)],
    json: &str,
) -> io::Result<()> {
    let length = json.len();
    write!(
        request,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    )?;
    headers
        .iter()
        .try_for_each(|(name, value)| write!(request, "{name}: {value}\r\n"))?;
    write!(request, "\r\n{json}")
}

/// The answer that begins here. None: not all of it has arrived.
///
/// # Errors
/// When it is not HTTP.
pub fn parse(bytes: &[u8]) -> io::Result<Option<WireAnswer>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let body: usize = value(&response, "content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let length = head + body;
    if bytes.len() < length {
        return Ok(None);
    }
    Ok(Some(WireAnswer {
        status: response.code.unwrap_or(0),
        order_id: value(&response, "location")
            .and_then(|path| path.strip_prefix("/orders/")?.parse().ok()),
        closes: value(&response, "connection")
            .is_some_and(|text| text.eq_ignore_ascii_case("close")),
        length,
    }))
}

fn value<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> Option<&'a str> {
    let header = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_once_its_whole_body_is_here() {
        let id = Uuid::now_v7();
        let text = format!(
            "HTTP/1.1 202 Accepted\r\nLocation: /orders/{id}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        let accepted = WireAnswer {
            status: 202,
            order_id: Some(id),
            closes: false,
            length: text.len(),
        };
        assert_eq!(parse(text.as_bytes()).expect("HTTP"), Some(accepted));
        assert!((0..text.len()).all(|end| parse(&text.as_bytes()[..end]).expect("HTTP").is_none()));
        let refused =
            b"HTTP/1.1 503 Unavailable\r\nConnection: close\r\ncontent-length: 4\r\n\r\nfull";
        let parsed = WireAnswer {
            status: 503,
            order_id: None,
            closes: true,
            length: refused.len(),
        };
        assert_eq!(parse(refused).expect("HTTP"), Some(parsed));
    }

    #[test]
    fn a_post_has_its_headers_and_its_body() {
        let mut request = vec![];
        write_post(&mut request, "/orders", &[("Idempotency-Key", "k1")], "{}").expect("a Vec");
        let text = "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
                    Idempotency-Key: k1\r\n\r\n{}";
        assert_eq!(String::from_utf8(request).expect("text"), text);
    }
}
