//! A connection's life: waiting for a request, busy with one, ended.

use super::Shared;
use super::head::Head;
use super::wire::{Incoming, RequestReader, Unreadable, read_until, write_head, write_response};
use crate::http::message::{Method, Request, Response};
use crate::http::problem::Problem;
use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a refused client may go on sending before the connection is cut; cut at once, the kernel would throw away the answer too.
const LINGER_LIMIT: Duration = Duration::from_secs(2);

/// How long a new connection may wait for the place of the one that was closed for it.
const ROOM_LIMIT: Duration = Duration::from_secs(1);

/// One client's connection, as its own thread and those who may end it see it.
pub(super) struct ClientConnection {
    stream: TcpStream,
    /// Asked at once: of a connection that the client has reset the kernel no longer knows it.
    peer: Option<IpAddr>,
    state: Mutex<Phase>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// For a request's last byte; the connection may be ended by a client that needs the place.
    Waiting(Instant),
    /// A request is being answered: not to be disturbed.
    Busy,
    Ended,
}

impl ClientConnection {
    fn new(stream: TcpStream) -> Self {
        let peer = stream.peer_addr().ok().map(|address| address.ip());
        ClientConnection {
            stream,
            peer,
            state: Mutex::new(Phase::Waiting(Instant::now())),
        }
    }

    fn state(&self) -> MutexGuard<'_, Phase> {
        lock(&self.state)
    }

    /// From waiting to busy; false if the connection was ended meanwhile, in which case the request must not be handled.
    fn begin(&self) -> bool {
        let mut state = self.state();
        let open = *state != Phase::Ended;
        if open {
            *state = Phase::Busy;
        }
        open
    }

    fn wait(&self) {
        *self.state() = Phase::Waiting(Instant::now());
    }

    fn waiting_since(&self) -> Option<Instant> {
        match *self.state() {
            Phase::Waiting(since) => Some(since),
            _ => None,
        }
    }

    /// Ends the connection unless it is busy; the thread that reads from it sees its end. Whether it was ended.
    fn end_if_waiting(&self) -> bool {
        let mut state = self.state();
        let waiting = matches!(*state, Phase::Waiting(_));
        if waiting {
            *state = Phase::Ended;
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        waiting
    }

    fn end(&self) {
        *self.state() = Phase::Ended;
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Waits, for a moment, until the client has seen that nothing more is read from it.
    fn linger(&self) {
        self.wait();
        let _ = self.stream.shutdown(Shutdown::Write);
        let deadline = Instant::now() + LINGER_LIMIT;
        let mut bytes = [0; 4096];
        while matches!(read_until(&self.stream, &mut bytes, deadline), Ok(count) if count > 0) {}
    }
}

/// Serves a connection until one side closes it or the service stops.
pub(super) fn serve(connection: &ClientConnection, shared: &Shared) {
    let mut reader = RequestReader::new(&connection.stream, &shared.dispatcher.limits);
    // Asked after the state is "waiting" and after the connection is listed: a stop sees one of the two.
    while !shared.is_stopping() {
        match reader.next(|method, target| shared.dispatcher.refuses(method, target)) {
            Err(Unreadable::Gone) => return,
            Err(Unreadable::Problem(problem)) => return refuse(connection, shared, problem),
            Ok(_) if !connection.begin() => return,
            Ok(incoming) => {
                if !answer(connection, shared, incoming) {
                    return connection.linger();
                }
            }
        }
        connection.wait();
    }
}

fn refuse(connection: &ClientConnection, shared: &Shared, problem: Problem) {
    log::debug!("refused a request: {problem:?}");
    let limit = shared.dispatcher.limits.write;
    if connection.begin()
        && write_response(&connection.stream, &problem.into(), false, limit).is_ok()
    {
        connection.linger();
    }
}

/// Answers one request; whether another may follow on the connection.
fn answer(connection: &ClientConnection, shared: &Shared, incoming: Incoming) -> bool {
    let Incoming {
        head:
            Head {
                method,
                target,
                headers,
                keep_alive,
                ..
            },
        body,
        refused,
    } = incoming;
    if refused.is_some() {
        // while it waits for that answer, the connection may be ended for one that has something to do
        connection.wait();
        shared.dispatcher.pause_before_refusal();
        if !connection.begin() {
            return false;
        }
    }
    let request = Request::new(Method::parse(&method), &target, headers, body);
    let peer = connection.peer;
    let response = request.map_or_else(Response::from, |request| {
        shared.dispatcher.answer(Request {
            peer,
            refused,
            ..request
        })
    });
    let keep_alive = keep_alive && !shared.is_stopping();
    let write = if method == "HEAD" {
        write_head
    } else {
        write_response
    };
    write(
        &connection.stream,
        &response,
        keep_alive,
        shared.dispatcher.limits.write,
    )
    .is_ok()
        && keep_alive
}

/// All open connections.
#[derive(Default)]
pub(super) struct Connections {
    open: Mutex<HashMap<u64, Arc<ClientConnection>>>,
    left: Condvar,
}

impl Connections {
    /// Lists a connection for as long as the returned guard lives. `id` is not used twice.
    pub fn enter(&self, id: u64, stream: TcpStream) -> Entered<'_> {
        let connection = Arc::new(ClientConnection::new(stream));
        lock(&self.open).insert(id, connection.clone());
        Entered {
            connections: self,
            id,
            connection,
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// Whether there is room for one more connection than `most` - 1, after closing the one that waited longest if need be.
    pub fn make_room(&self, most: usize) -> bool {
        if lock(&self.open).len() < most {
            return true;
        }
        self.end_longest_waiting() && {
            let waited = self
                .left
                .wait_timeout_while(lock(&self.open), ROOM_LIMIT, |open| open.len() >= most);
            !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
        }
    }

    /// Closes the connection that has waited longest for a request; false if all are busy.
    pub fn end_longest_waiting(&self) -> bool {
        let open = lock(&self.open);
        let waiting = open
            .values()
            .filter_map(|connection| Some((connection.waiting_since()?, connection)));
        let longest = waiting.min_by_key(|(since, _)| *since);
        longest.is_some_and(|(_, connection)| connection.end_if_waiting())
    }

    /// Closes all connections on which no request is being answered.
    pub fn end_waiting(&self) {
        lock(&self.open).values().for_each(|connection| {
            connection.end_if_waiting();
        });
    }

    /// Closes all connections; returns how many were still open.
    pub fn end_all(&self) -> usize {
        let open = lock(&self.open);
        open.values().for_each(|connection| connection.end());
        open.len()
    }
}

/// A listed connection.
pub(super) struct Entered<'a> {
    connections: &'a Connections,
    id: u64,
    pub connection: Arc<ClientConnection>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.id);
        self.connections.left.notify_all();
    }
}

/// Each value under these locks is whole at any time, so that a panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::endpoint::Dispatcher;
    use crate::http::limits::ServerLimits;
    use crossbeam_channel::unbounded;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_request_on_a_connection_just_ended_is_not_handled() {
        let (handled, requests) = unbounded();
        let dispatcher = Dispatcher::new(ServerLimits::default(), move |request, _| {
            handled.send(request).unwrap()
        });
        let shared = Shared::new("test", dispatcher);
        let connections = Connections::default();
        let (mut client, stream) = pair();
        client.write_all(GET).unwrap();
        // so that the request lies there, whole, when the connection is ended
        assert!(stream.peek(&mut [0]).is_ok());
        let entered = connections.enter(1, stream);
        assert!(connections.end_longest_waiting());
        serve(&entered.connection, &shared);
        drop(entered);
        let rest = client
            .read_to_end(&mut Vec::new())
            .map_err(|error| error.kind());
        assert!(
            matches!(rest, Ok(0) | Err(ErrorKind::ConnectionReset)),
            "{rest:?}"
        );
        assert!(requests.is_empty());
    }

    #[test]
    fn a_busy_connection_is_not_ended_and_makes_no_room() {
        let connections = Connections::default();
        let ((_one, first), (_two, second)) = (pair(), pair());
        let (first, second) = (connections.enter(1, first), connections.enter(2, second));
        assert!(first.connection.begin() && second.connection.begin());
        assert!(connections.make_room(3));
        assert!(!connections.make_room(2) && !connections.end_longest_waiting());
        first.connection.wait();
        assert!(connections.end_longest_waiting());
        assert!(!first.connection.begin() && second.connection.begin());
    }

    #[test]
    fn the_connection_that_waited_longest_is_the_one_to_go() {
        let connections = Connections::default();
        let pairs = [pair(), pair(), pair()];
        let (clients, streams): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let entered: Vec<_> = streams
            .into_iter()
            .zip(1..)
            .map(|(stream, id)| connections.enter(id, stream))
            .collect();
        // the first has just had a request answered
        entered[0].connection.wait();
        assert!(connections.end_longest_waiting());
        let open: Vec<bool> = entered
            .iter()
            .map(|entered| entered.connection.begin())
            .collect();
        assert_eq!(open, [true, false, true]);
        drop(clients);
    }
}
