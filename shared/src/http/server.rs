//! Accepting, admitting, stopping.
//!
//! A thread serves each connection; it parses with `httparse`. There are 2,500 connections at most: the longest idle
//! one makes room, busy ones are never disturbed. The number of handlers at once is bounded, and so are every read,
//! write, head and body. A handler that can't answer at once passes its [`Responder`] on, and the connection's own
//! thread writes: a slow client never holds up the thread that answers.
//!
//! `tests/saga/attack.rs` attacks the real order service: 2,000 clients that have each sent nearly all they may take
//! 150 MiB. Of that the allocator keeps up to 70 for the next crowd; a second and a third crowd take no more.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, Scope, scope, sleep};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::endpoint::{Dispatcher, Endpoint};
use super::limits::{STACK_SIZE, ServerLimits, listen};
use crate::metrics;
use connection::{Connections, serve};

mod connection;
mod head;
mod wire;

/// The pause after `accept` failed: what it lacked (descriptors, memory) comes free when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Too many open files: of this process, of the machine.
const OUT_OF_DESCRIPTORS: [i32; 2] = [24, 23];

/// What all connections share.
pub(super) struct Shared {
    name: String,
    pub dispatcher: Dispatcher,
    connections: Connections,
    stopping: AtomicBool,
}

impl Shared {
    pub fn new(name: &str, dispatcher: Dispatcher) -> Self {
        Shared {
            name: format!("{name}-http"),
            dispatcher,
            connections: Connections::default(),
            stopping: AtomicBool::new(false),
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// A running HTTP server. Dropped without [`stop`](Server::stop), it stops too, but nobody waits for it.
pub struct Server {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
    ended: Receiver<()>,
}

impl Server {
    /// Starts to serve. The threads are named `{name}-http` (it accepts) and `{name}-http-1`, … (one a connection).
    ///
    /// # Errors
    /// If the listener is broken or no thread can be started.
    pub fn start(
        name: &str,
        listener: TcpListener,
        limits: ServerLimits,
        endpoint: impl Endpoint,
    ) -> io::Result<Server> {
        let address = listen(&listener)?;
        let shared = Arc::new(Shared::new(name, Dispatcher::new(limits, endpoint)));
        let listener = Arc::new(listener);
        let counted = Arc::downgrade(&shared);
        metrics::watch("HTTP connections", limits.connections, move || {
            counted
                .upgrade()
                .map_or(0, |shared| shared.connections.count())
        });
        let (ending, ended) = bounded(0);
        let (accepted_for, accepted_from) = (shared.clone(), listener.clone());
        let acceptor = Builder::new().name(shared.name.clone()).spawn(move || {
            accept_all(&accepted_from, &accepted_for);
            drop(ending);
        })?;
        Ok(Server {
            shared,
            listener,
            address,
            acceptor: Some(acceptor),
            ended,
        })
    }

    /// The address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops: new connections are refused, those without a request are closed, requests being handled are answered, the threads are
    /// joined; all within `limit`. Returns how many connections still waited for their answer then and were cut; 0 if all went well.
    pub fn stop(mut self, limit: Duration) -> usize {
        self.close();
        let acceptor = self.acceptor.take();
        if self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let cut = self.shared.connections.end_all();
            log::error!(
                "{}: {cut} connections without an answer after {limit:?} were cut",
                self.shared.name
            );
            return cut;
        }
        if acceptor.is_some_and(|acceptor| acceptor.join().is_err()) {
            log::error!("{}: a thread panicked", self.shared.name);
        }
        0
    }

    fn close(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes `accept`, on Linux. Where it doesn't, a connection does.
        if socket2::SockRef::from(&*self.listener)
            .shutdown(Shutdown::Both)
            .is_err()
        {
            let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        }
        self.shared.connections.end_waiting();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After stop() the port may be somebody else's.
        if self.acceptor.is_some() {
            self.close();
        }
    }
}

/// Accepts until the service stops; returns when the last connection's thread has ended.
fn accept_all(listener: &TcpListener, shared: &Shared) {
    scope(|scope| {
        let mut failing = false;
        for id in 1.. {
            let accepted = listener.accept();
            if shared.is_stopping() {
                return;
            }
            let failed_before = std::mem::replace(&mut failing, accepted.is_err());
            match accepted {
                Ok((stream, _)) => admit(scope, shared, id, stream),
                Err(error) => recover(shared, &error, failed_before),
            }
        }
    });
}

/// Gives a connection its thread, or closes it at once if there is no room.
fn admit<'scope>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Shared,
    id: u64,
    stream: TcpStream,
) {
    if !shared
        .connections
        .make_room(shared.dispatcher.limits.connections.max(1))
    {
        return log::warn!(
            "{}: a connection was refused, all others are busy",
            shared.name
        );
    }
    // Without it the end of an answer larger than a packet may wait 40 ms for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let entered = shared.connections.enter(id, stream);
    let thread = Builder::new()
        .name(format!("{}-{id}", shared.name))
        .stack_size(STACK_SIZE);
    if let Err(error) = thread.spawn_scoped(scope, move || serve(&entered.connection, shared)) {
        log::warn!(
            "{}: a connection was refused, no thread could be started: {error}",
            shared.name
        );
    }
}

/// After a failed accept: never an end, and a place is made if descriptors are used up. Logged when it begins.
fn recover(shared: &Shared, error: &io::Error, failed_before: bool) {
    // The client was gone before it was accepted; the next one is fine.
    if matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    ) {
        return;
    }
    if !failed_before {
        log::warn!(
            "{}: can't accept a connection, trying again: {error}",
            shared.name
        );
    }
    if error
        .raw_os_error()
        .is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code))
    {
        shared.connections.end_longest_waiting();
    }
    sleep(ACCEPT_PAUSE);
}
