//! A small HTTP client: one keep-alive connection, one request at a time. It shares the machine with what it measures, so
//! it copies and parses as little as it can.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use harness::wire::{self, WireAnswer};

/// Longer than any answer takes: the order service gives up storing after 10 s.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection to a service on this machine.
pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    received: Vec<u8>,
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
        Ok(Connection {
            stream,
            request: vec![],
            received: vec![],
        })
    }

    /// `GET`.
    ///
    /// # Errors
    /// A connection that broke, or an answer that is not HTTP.
    pub fn get(&mut self, path: &str) -> io::Result<WireAnswer> {
        self.request.clear();
        write!(
            self.request,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )?;
        self.call()
    }

    /// `POST` with JSON.
    ///
    /// # Errors
    /// As [`Connection::get`].
    pub fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        json: &str,
    ) -> io::Result<WireAnswer> {
        self.request.clear();
        wire::write_post(&mut self.request, path, headers, json)?;
        self.call()
    }

    fn call(&mut self) -> io::Result<WireAnswer> {
        self.stream.write_all(&self.request)?;
        self.received.clear();
        let mut chunk = [0; 4096];
        loop {
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&chunk[..count]);
            if let Some(answer) = wire::parse(&self.received)? {
                return Ok(answer);
            }
        }
    }
}
