//! A small HTTP client: one keep-alive connection, one request at a time. It shares the machine with what it measures, so
//! it copies and parses as little as it can.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use uuid::Uuid;

/// Longer than any answer takes: the order service gives up storing after 10 s.
const LIMIT: Duration = Duration::from_secs(30);
const HEADERS: usize = 16;

/// A connection to a service on this machine.
pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    received: Vec<u8>,
}

/// What was answered.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The order that `Location` names.
    pub order_id: Option<Uuid>,
    /// The body of a refusal; nothing else's.
    pub refusal: String,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The system's.
    pub fn open(port: u16) -> io::Result<Connection> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Connection { stream, request: vec![], received: vec![] })
    }

    /// `GET`.
    ///
    /// # Errors
    /// A connection that broke, or an answer that is not HTTP.
    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.request.clear();
        write!(self.request, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        self.call()
    }

    /// `POST` with JSON.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub fn post(&mut self, path: &str, json: &str) -> io::Result<Answer> {
        self.request.clear();
        let length = json.len();
        write!(
            self.request,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
        )?;
        self.call()
    }

    fn call(&mut self) -> io::Result<Answer> {
        self.stream.write_all(&self.request)?;
        self.received.clear();
        let mut chunk = [0; 4096];
        loop {
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&chunk[..count]);
            if let Some(answer) = parse(&self.received)? {
                return Ok(answer);
            }
        }
    }
}

/// None: not all of it is here yet.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let length = value(&response, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let Some(body) = bytes.get(head..head + length) else { return Ok(None) };
    let status = response.code.unwrap_or(0);
    let order_id = value(&response, "location").and_then(|path| path.strip_prefix("/orders/")?.parse().ok());
    let refusal = if status < 400 { String::new() } else { String::from_utf8_lossy(body).into_owned() };
    Ok(Some(Answer { status, order_id, refusal }))
}

fn value<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> Option<&'a str> {
    let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_once_its_whole_body_is_here() {
        let id = Uuid::now_v7();
        let text = format!("HTTP/1.1 202 Accepted\r\nLocation: /orders/{id}\r\nContent-Length: 2\r\n\r\n{{}}");
        let accepted = Answer { status: 202, order_id: Some(id), refusal: String::new() };
        assert_eq!(parse(text.as_bytes()).expect("HTTP"), Some(accepted));
        assert!((0..text.len()).all(|end| parse(&text.as_bytes()[..end]).expect("HTTP").is_none()));
        let refused = parse(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 4\r\n\r\nfull").expect("HTTP");
        assert_eq!(refused, Some(Answer { status: 503, order_id: None, refusal: "full".into() }));
    }
}
