//! The byte stream under a connection: a TCP socket, plain or within TLS, whose every wait has a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Security;
use crate::interrupt::{Interrupt, Registration};

/// What lies between a socket and what is said over it: TLS, see [`tls`](crate::net::tls).
pub(crate) trait Guard: Send + std::fmt::Debug {
    fn shake_hands(&mut self, socket: &mut Limited<'_>) -> io::Result<()>;
    fn write_all(&mut self, bytes: &[u8], socket: &mut Limited<'_>) -> io::Result<()>;
    fn read_to_end(
        &mut self,
        length: u64,
        into: &mut Vec<u8>,
        socket: &mut Limited<'_>,
    ) -> io::Result<usize>;
    /// Whether nothing is there to be read; what has arrived may be for the guard alone.
    fn is_idle(&mut self, socket: &mut TcpStream) -> bool;
}

/// The broker is not to be trusted: why, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Distrust(pub(crate) String);

/// An open stream to a broker.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) socket: TcpStream,
    guard: Option<Box<dyn Guard>>,
    _registration: Registration,
}

impl Stream {
    /// Opens a stream to `host:port`, shakes hands if it is to be guarded, and has the interrupt shut it down.
    ///
    /// Each address of the name is tried once, beginning with the one whose `turn` it is; `turn` is left at the one that took the
    /// connection. Errors are the last one's; `TimedOut` when the deadline passes; a [`Distrust`] within when there is no trust.
    pub(crate) fn open(
        address: &str,
        turn: &mut usize,
        security: &Security,
        deadline: Instant,
        wakes: &Interrupt,
    ) -> io::Result<Stream> {
        #[cfg(feature = "tls")]
        let guard = security
            .tls
            .as_ref()
            .map(|tls| tls.begin(address))
            .transpose()
            .map_err(io::Error::other)?;
        #[cfg(not(feature = "tls"))]
        let (guard, _) = (None::<Box<dyn Guard>>, security);
        let socket = connect_any(&resolve(address, deadline)?, turn, deadline)?;
        // Requests are written whole; waiting for more to fill a packet would only add delay.
        socket.set_nodelay(true)?;
        let registration = wakes.register(&socket);
        let registration = registration.ok_or_else(|| io::Error::other("interrupted"))?;
        let mut stream = Stream {
            socket,
            guard,
            _registration: registration,
        };
        if let Some(guard) = &mut stream.guard {
            guard.shake_hands(&mut Limited {
                socket: &stream.socket,
                deadline,
            })?;
        }
        Ok(stream)
    }

    /// Writes all of it, or fails with `TimedOut` at the deadline.
    pub(crate) fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut limited = Limited {
            socket: &self.socket,
            deadline,
        };
        match &mut self.guard {
            None => limited.write_all(bytes),
            Some(guard) => guard.write_all(bytes, &mut limited),
        }
    }

    /// Reads exactly `length` bytes, or fails with `TimedOut` at the deadline, `UnexpectedEof` at the stream's end.
    pub(crate) fn read(&mut self, length: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        let mut limited = Limited {
            socket: &self.socket,
            deadline,
        };
        match &mut self.guard {
            None => limited.take(length as u64).read_to_end(&mut bytes)?,
            Some(guard) => guard.read_to_end(length as u64, &mut bytes, &mut limited)?,
        };
        if bytes.len() < length {
            Err(ErrorKind::UnexpectedEof.into())
        } else {
            Ok(bytes)
        }
    }

    /// Whether there are bytes to be read, or the peer has closed the stream already. One on which nothing is awaited is then of
    /// no use. A look without waiting; a close that is still under way is not seen.
    pub(crate) fn has_input(&mut self) -> bool {
        if self.socket.set_nonblocking(true).is_err() {
            return true;
        }
        let idle = match &mut self.guard {
            None => self
                .socket
                .peek(&mut [0])
                .is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            Some(guard) => guard.is_idle(&mut self.socket),
        };
        self.socket.set_nonblocking(false).is_err() || !idle
    }
}

/// The shortest wait that a socket knows.
const AT_ONCE: Duration = Duration::from_millis(1);

/// A socket whose each wait ends at the deadline. (A socket's own limit holds for one `read`, not for an answer.)
pub(crate) struct Limited<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // what has arrived is read, also after the deadline
        self.socket
            .set_read_timeout(Some(left(self.deadline).unwrap_or(AT_ONCE)))?;
        (&mut &*self.socket).read(buffer).map_err(as_timeout)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.deadline)?))?;
        (&mut &*self.socket).write(bytes).map_err(as_timeout)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time left, never zero, which a socket would take for "no limit".
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

/// A socket's passed limit shows as WouldBlock on Unix.
fn as_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// One that swallows what it is sent must leave time for the others: each has its share of what is left.
fn connect_any(
    addresses: &[SocketAddr],
    turn: &mut usize,
    deadline: Instant,
) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for tried in 0..addresses.len() {
        let share = left(deadline)? / (addresses.len() - tried) as u32;
        match TcpStream::connect_timeout(&addresses[*turn % addresses.len()], share) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
        *turn = turn.wrapping_add(1);
    }
    Err(last)
}

/// The addresses behind `host:port`. The system's resolver knows no deadline, so a name is looked up on a thread of
/// its own, which is left behind if it takes too long and then ends by itself.
fn resolve(address: &str, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = address.parse() {
        return Ok(vec![literal]);
    }
    let (sender, receiver) = mpsc::channel();
    let name = address.to_owned();
    thread::Builder::new()
        .name("kafka-resolve".into())
        .spawn(move || {
            let _ = sender.send(name.to_socket_addrs().map(Iterator::collect));
        })?;
    receiver
        .recv_timeout(left(deadline)?)
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_address_that_swallows_connections_leaves_time_for_the_next() {
        let swallows = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&swallows, 0).unwrap();
        let address = swallows.local_addr().unwrap();
        let attempt = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let waiting: Vec<_> = std::iter::from_fn(|| attempt().ok()).take(8).collect();
        assert!(waiting.len() < 8, "its queue is never full");
        let listens = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listens.local_addr().unwrap();
        let mut turn = 0;
        let mut connect =
            |limit| connect_any(&[address, there], &mut turn, Instant::now() + limit).unwrap();
        let found = connect(Duration::from_secs(10));
        assert_eq!(found.peer_addr().unwrap(), there);
        // half of so little would not be enough to try the other one first
        let found = connect(Duration::from_millis(300));
        assert_eq!(found.peer_addr().unwrap(), there);
        assert_eq!(turn, 1);
    }
}
