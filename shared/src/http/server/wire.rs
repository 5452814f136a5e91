//! Bytes to requests, answers to bytes, within limits of size and time.

use super::head::{Framing, Head, head_too_long, parse_head};
use crate::http::limits::{BODY_LIMIT, HEAD_LIMIT, ServerLimits, body_too_large};
use crate::http::message::{Response, reason};
use crate::http::problem::Problem;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

/// The longest line between the chunks of a body, and of its trailers; extensions and trailers are in nobody's use.
const CHUNK_LINE_LIMIT: usize = 1024;

/// The most trailer lines after a chunked body.
const MAX_TRAILERS: usize = 32;

/// What is read at once: an order and its head in one call.
const READ_SIZE: usize = 4096;

/// A request as it came over the wire.
pub(super) struct Incoming {
    pub head: Head,
    /// Empty if the request is not let in.
    pub body: Vec<u8>,
    /// Why it is not let in, if it is not.
    pub refused: Option<Problem>,
}

/// Why no request was read. The connection is over in both cases: where the next request would begin is not known.
pub(super) enum Unreadable {
    /// The client is gone or silent; nobody reads an answer.
    Gone,
    /// The client did something that it gets an answer about.
    Problem(Problem),
}

impl From<Problem> for Unreadable {
    fn from(problem: Problem) -> Self {
        Unreadable::Problem(problem)
    }
}

/// Reads one request after the other from a connection. What lies beyond a request is kept for the next (pipelining).
pub(super) struct RequestReader<'a> {
    stream: &'a TcpStream,
    pending: Vec<u8>,
    limits: ServerLimits,
}

impl<'a> RequestReader<'a> {
    pub fn new(stream: &'a TcpStream, limits: &ServerLimits) -> Self {
        RequestReader {
            stream,
            pending: Vec::new(),
            limits: *limits,
        }
    }

    /// The next request, whole. `refuses` says by its method and target why it is not let in, if it is not: its body is
    /// then thrown away, and not asked for where the client waits to be asked (the connection ends after the answer: the body
    /// may come or not).
    ///
    /// # Errors
    /// [`Unreadable::Gone`] if the client closed (also in the middle of a request, of which nothing is handled then) or stayed idle;
    /// a problem if the request is malformed, too large or too slow.
    pub fn next(
        &mut self,
        refuses: impl Fn(&str, &str) -> Option<Problem>,
    ) -> Result<Incoming, Unreadable> {
        if self.pending.is_empty() {
            self.fill(Instant::now() + self.limits.idle)
                .map_err(|_| Unreadable::Gone)?;
        }
        let deadline = Instant::now() + self.limits.request;
        let mut head = self.head(deadline)?;
        let refused = refuses(&head.method, &head.target);
        if refused.is_some() && head.awaits_continue {
            head.keep_alive = false;
            return Ok(Incoming {
                head,
                body: Vec::new(),
                refused,
            });
        }
        let body = self.body(&head, deadline)?;
        let body = if refused.is_some() { Vec::new() } else { body };
        Ok(Incoming {
            head,
            body,
            refused,
        })
    }

    fn head(&mut self, deadline: Instant) -> Result<Head, Unreadable> {
        loop {
            if let Some((head, length)) = parse_head(&self.pending)? {
                self.pending.drain(..length);
                return Ok(head);
            }
            if self.pending.len() >= HEAD_LIMIT {
                return Err(head_too_long(&self.pending).into());
            }
            self.fill(deadline)?;
        }
    }

    fn body(&mut self, head: &Head, deadline: Instant) -> Result<Vec<u8>, Unreadable> {
        if head.awaits_continue && head.framing != Framing::Length(0) {
            write_within(
                self.stream,
                b"HTTP/1.1 100 Continue\r\n\r\n",
                self.limits.write,
            )
            .map_err(|_| Unreadable::Gone)?;
        }
        match head.framing {
            Framing::Length(length) => self.take(length, deadline),
            Framing::Chunked => self.chunks(deadline),
        }
    }

    fn chunks(&mut self, deadline: Instant) -> Result<Vec<u8>, Unreadable> {
        let mut body = Vec::new();
        loop {
            let size = chunk_size(&self.line(deadline)?)?;
            if size == 0 {
                self.skip_trailers(deadline)?;
                return Ok(body);
            }
            if size > BODY_LIMIT - body.len() {
                return Err(body_too_large().into());
            }
            body.extend(self.take(size, deadline)?);
            if self.take(2, deadline)? != b"\r\n" {
                return Err(
                    Problem::new(400, "a chunk of the body is longer than its size says").into(),
                );
            }
        }
    }

    fn skip_trailers(&mut self, deadline: Instant) -> Result<(), Unreadable> {
        for _ in 0..MAX_TRAILERS {
            if self.line(deadline)?.is_empty() {
                return Ok(());
            }
        }
        Err(Problem::new(431, "too many trailers after the body").into())
    }

    /// The next line, without its end.
    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>, Unreadable> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end, deadline)?;
                self.pending.drain(..2);
                return Ok(line);
            }
            if self.pending.len() > CHUNK_LINE_LIMIT {
                return Err(
                    Problem::new(400, "a line between the chunks of the body is too long").into(),
                );
            }
            self.fill(deadline)?;
        }
    }

    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, Unreadable> {
        while self.pending.len() < length {
            self.fill(deadline)?;
        }
        let rest = self.pending.split_off(length);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    /// Reads what is there, waiting for it until `deadline`.
    fn fill(&mut self, deadline: Instant) -> Result<(), Unreadable> {
        // On the stack: a connection that waits holds no buffer.
        let mut bytes = [0; READ_SIZE];
        match read_until(self.stream, &mut bytes, deadline) {
            Ok(0) => Err(Unreadable::Gone),
            Ok(count) => {
                self.pending.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                let detail = format!(
                    "the request took longer than {} s to arrive",
                    self.limits.request.as_secs()
                );
                Err(Problem::new(408, detail).into())
            }
            Err(_) => Err(Unreadable::Gone),
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, Problem> {
    let text = String::from_utf8_lossy(line);
    let digits = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim_end_matches([' ', '\t']);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Problem::new(
            400,
            "the size of a chunk of the body is not a number",
        ));
    }
    usize::from_str_radix(digits, 16).map_err(|_| body_too_large())
}

/// Sends an answer, in one write so that no part of it waits for the client's acknowledgement of another.
///
/// # Errors
/// If the client is gone, or did not take the answer in within `limit`.
pub(super) fn write_response(
    stream: &TcpStream,
    response: &Response,
    keep_alive: bool,
    limit: Duration,
) -> std::io::Result<()> {
    write_within(stream, &encode(response, keep_alive, true), limit)
}

/// The same for an answer to HEAD: its header fields only.
pub(super) fn write_head(
    stream: &TcpStream,
    response: &Response,
    keep_alive: bool,
    limit: Duration,
) -> std::io::Result<()> {
    write_within(stream, &encode(response, keep_alive, false), limit)
}

fn encode(response: &Response, keep_alive: bool, with_body: bool) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\n",
        response.status,
        reason(response.status)
    );
    let mut field = |name: &str, value: &str| head.extend([name, ": ", value, "\r\n"]);
    field("Date", &httpdate::fmt_http_date(SystemTime::now()));
    for (name, value) in response.fields() {
        field(name, &value);
    }
    if response.status != 204 {
        field("Content-Length", &response.body.len().to_string());
    }
    field(
        "Connection",
        if keep_alive { "keep-alive" } else { "close" },
    );
    let mut bytes = (head + "\r\n").into_bytes();
    if with_body && response.status != 204 {
        bytes.extend_from_slice(&response.body);
    }
    bytes
}

/// Reads once, waiting until `deadline` at the longest ([`ErrorKind::TimedOut`]). 0 bytes: the client sends no more.
pub(super) fn read_until(
    mut stream: &TcpStream,
    bytes: &mut [u8],
    deadline: Instant,
) -> std::io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(left_until(deadline)?))?;
        match stream.read(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            done => return done,
        }
    }
}

/// Writes all of `bytes` within `limit`: the socket's own limit is one per call, and a client that takes in a byte now and then
/// would never meet it.
fn write_within(mut stream: &TcpStream, mut bytes: &[u8], limit: Duration) -> std::io::Result<()> {
    let deadline = Instant::now() + limit;
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left_until(deadline)?))?;
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time left, never zero, which sockets take for "no limit".
fn left_until(deadline: Instant) -> std::io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(ErrorKind::TimedOut.into())
    } else {
        Ok(left.max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    const SHORT: Duration = Duration::from_millis(20);

    /// What becomes of a client that sends `sent` and then nothing.
    fn refusal_after(sent: &str) -> Unreadable {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(sent.as_bytes()).unwrap();
        // silence is to be waited for; bytes that were sent are there at once, but may be looked for late
        let idle = if sent.is_empty() {
            SHORT
        } else {
            ServerLimits::default().idle
        };
        let limits = ServerLimits {
            idle,
            request: SHORT,
            ..ServerLimits::default()
        };
        RequestReader::new(&stream, &limits)
            .next(|_, _| None)
            .err()
            .unwrap()
    }

    #[test]
    fn a_client_that_stays_silent_is_dropped() {
        assert!(matches!(refusal_after(""), Unreadable::Gone));
    }

    #[test]
    fn a_request_that_does_not_arrive_in_time_is_refused() {
        let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{";
        let chunk = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{";
        for sent in ["G", "GET / HTTP/1.1\r\nHost: a\r\n", body, chunk] {
            assert!(
                matches!(refusal_after(sent), Unreadable::Problem(problem) if problem.status() == 408)
            );
        }
    }

    /// More than both kernels' buffers hold.
    fn large() -> Response {
        Response {
            body: vec![b'x'; 64 << 20],
            ..Response::json(200, &0)
        }
    }

    #[test]
    fn a_client_that_takes_in_nothing_is_given_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let written = write_response(&stream, &large(), true, SHORT);
        assert_eq!(written.unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_client_that_takes_in_a_little_now_and_then_is_given_up_too() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 4 << 10];
            // until the server's end is gone
            while client.read(&mut bytes).is_ok_and(|count| count > 0) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let written = write_response(&stream, &large(), true, 5 * SHORT);
        assert_eq!(written.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(stream);
        reader.join().unwrap();
    }
}
