//! How much a server takes on, and how long it waits.

use super::problem::Problem;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// The largest head (request line and header fields) in bytes: what browsers and proxies send stays under 8 KiB.
pub const HEAD_LIMIT: usize = 16 * 1024;

/// The largest body in bytes: an order takes a few hundred.
pub const BODY_LIMIT: usize = 64 * 1024;

/// The connections that the kernel holds until they are accepted; more at once than a burst of clients, and than `std` asks for (128),
/// because the kernel answers what is beyond only when the client tries again, a second later.
const BACKLOG: i32 = 1024;

/// Address space of a thread that runs handlers; they and JSON stay far below, and memory is taken only as it is touched.
pub(super) const STACK_SIZE: usize = 1024 * 1024;

/// Has the kernel hold so many connections, and `accept` wait for one; answers where clients connect to.
pub(super) fn listen(listener: &TcpListener) -> io::Result<SocketAddr> {
    listener.set_nonblocking(false)?;
    socket2::SockRef::from(listener).listen(BACKLOG)?;
    listener.local_addr()
}

pub(super) fn body_too_large() -> Problem {
    Problem::new(413, format!("the body is larger than {BODY_LIMIT} bytes"))
}

/// What bounds a [`Server`](super::Server).
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Handlers that run at the same time; requests that wait for an answer from elsewhere don't count.
    pub workers: usize,
    /// Connections at once; with more, those that waited longest for a request are closed.
    pub connections: usize,
    /// How long a connection may stay open without a request.
    pub idle: Duration,
    /// From a request's first byte to its last.
    pub request: Duration,
    /// How long a request may wait until one of the running handlers is done.
    pub permit: Duration,
    /// How long a request that was handed on waits for its answer.
    pub answer: Duration,
    /// How long a client may take to take in an answer.
    pub write: Duration,
    /// After so long at the earliest a request that was not let in is answered: clients that repeat theirs at once must not cost
    /// what the work needs that was let in.
    pub refusal: Duration,
}

impl ServerLimits {
    /// The most connections that a service asks for; each has a thread (some 20 KiB of memory while it waits).
    pub const MAX_CONNECTIONS: usize = 2_500;
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            workers: 4,
            connections: ServerLimits::MAX_CONNECTIONS,
            // longer than the pauses of a client's connection pool, so that a pool sees few connections closed under it
            idle: Duration::from_secs(75),
            // the largest body arrives in time at 27 kbit/s
            request: Duration::from_secs(20),
            permit: Duration::from_secs(10),
            // longer than the longest `?wait`, and shorter than a database call may hang before the process is ended
            answer: Duration::from_secs(40),
            // the largest answer is a few hundred KiB
            write: Duration::from_secs(20),
            // a client that is alone hardly notices it
            refusal: Duration::from_millis(200),
        }
    }
}
