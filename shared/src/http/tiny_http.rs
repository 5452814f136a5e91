//! The server by the crate `tiny_http`, in place of `server` with the feature of that name: accepting, dispatching, stopping.
//!
//! The crate reads requests, a thread a connection, and queues them; here a thread for each request has it answered. What the
//! crate can't do stays undone: limits on a head's size, on a client's time and on pipelined requests, a connection closed from
//! outside. ARCHITECTURE.md shows what follows from that, measured on both servers.

use std::io::{self, Cursor, Read};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{Builder, sleep};
use std::time::Duration;

use ::tiny_http as http;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::endpoint::{Dispatcher, Endpoint};
use super::limits::{BODY_LIMIT, STACK_SIZE, ServerLimits, body_too_large, listen};
use super::message::{Headers, Method, Request, Response};
use super::problem::Problem;
use crate::metrics;

/// The pause after `accept` failed, which ends the crate's server: what it lacked comes free when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A running HTTP server. Dropped without [`stop`](Server::stop), it goes on until the process ends.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Weak<Sender<()>>,
    answered: Receiver<()>,
}

struct Shared {
    name: String,
    dispatcher: Dispatcher,
    server: Mutex<Arc<http::Server>>,
    stopping: AtomicBool,
}

impl Server {
    /// Starts to serve. The threads are named `{name}-http`; those of the crate, one a connection, have no names.
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
        let shared = Arc::new(Shared {
            name: format!("{name}-http"),
            dispatcher: Dispatcher::new(limits, endpoint),
            server: Mutex::new(serve(&listener)?),
            stopping: AtomicBool::new(false),
        });
        // Every request that is being answered holds the sender: the receiver hears when the last one lets it go.
        let (sender, answered) = bounded(0);
        let sender = Arc::new(sender);
        let running = Arc::downgrade(&sender);
        let (counted, most) = (running.clone(), limits.connections);
        metrics::watch("HTTP connections", most, move || counted.strong_count());
        let dispatching = shared.clone();
        Builder::new()
            .name(shared.name.clone())
            .spawn(move || dispatch_all(&listener, &dispatching, &sender))?;
        Ok(Server {
            shared,
            address,
            running,
            answered,
        })
    }

    /// The address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops: requests being handled are answered within `limit`. Returns how many were not; 0 if all went well. Connections
    /// without a request stay open until the process ends.
    pub fn stop(self, limit: Duration) -> usize {
        self.shared.stopping.store(true, Ordering::SeqCst);
        lock(&self.shared.server).unblock();
        match self.answered.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => self.running.strong_count(),
            _ => 0,
        }
    }
}

/// Dispatches requests until the service stops. When the crate has given up the listener, another of its servers takes it.
fn dispatch_all(listener: &TcpListener, shared: &Arc<Shared>, running: &Arc<Sender<()>>) {
    loop {
        let server = lock(&shared.server).clone();
        match server.recv() {
            _ if shared.stopping.load(Ordering::SeqCst) => return,
            Ok(request) => dispatch(request, shared, running),
            Err(error) => {
                log::warn!("can't accept a connection, trying again: {error}");
                sleep(ACCEPT_PAUSE);
                if let Ok(next) = serve(listener) {
                    *lock(&shared.server) = next;
                }
            }
        }
    }
}

/// Has a request answered by a thread of its own.
fn dispatch(request: http::Request, shared: &Arc<Shared>, running: &Arc<Sender<()>>) {
    if Arc::strong_count(running) > shared.dispatcher.limits.connections {
        let busy = Problem::unavailable("too many requests are being handled", 1);
        return respond(request, busy.into());
    }
    let (serving, running) = (shared.clone(), running.clone());
    let name = shared.name.clone();
    let thread = Builder::new().name(name).stack_size(STACK_SIZE);
    // without a thread the request is dropped, and the crate answers it with 500
    if let Err(error) = thread.spawn(move || {
        answer(request, &serving.dispatcher);
        drop(running);
    }) {
        log::warn!("a request was refused, no thread could be started: {error}");
    }
}

fn answer(mut request: http::Request, dispatcher: &Dispatcher) {
    let read = read(&mut request, dispatcher);
    let response = read.map_or_else(Response::from, |read| dispatcher.answer(read));
    respond(request, response);
}

/// The request as handlers see it. The body of one that was refused is left to the crate, which throws it away.
fn read(request: &mut http::Request, dispatcher: &Dispatcher) -> Result<Request, Problem> {
    let refused = dispatcher.refuses(request.method().as_str(), request.url());
    let mut headers = Headers::default();
    for field in request.headers() {
        headers.push(field.field.as_str().as_str(), field.value.as_str());
    }
    let mut body = Vec::new();
    if refused.is_some() {
        dispatcher.pause_before_refusal();
    } else {
        let limit = BODY_LIMIT as u64 + 1;
        let read = request.as_reader().take(limit).read_to_end(&mut body);
        read.map_err(|error| Problem::new(400, format!("the body can't be read: {error}")))?;
    }
    if body.len() > BODY_LIMIT {
        return Err(body_too_large());
    }
    let (method, peer) = (
        Method::parse(request.method().as_str()),
        request.remote_addr(),
    );
    Ok(Request {
        peer: peer.map(SocketAddr::ip),
        refused,
        ..Request::new(method, request.url(), headers, body)?
    })
}

/// Sends an answer. A client that is gone shows at its next request.
fn respond(request: http::Request, response: Response) {
    let headers = response
        .fields()
        .filter_map(|(name, value)| http::Header::from_bytes(name, value).ok())
        .collect();
    let (status, length) = (response.status.into(), response.body.len());
    let body = Cursor::new(response.body);
    let response = http::Response::new(status, headers, body, Some(length), None);
    let _ = request.respond(response.with_chunked_threshold(usize::MAX));
}

fn serve(listener: &TcpListener) -> io::Result<Arc<http::Server>> {
    let server = http::Server::from_listener(listener.try_clone()?, None);
    Ok(Arc::new(server.map_err(io::Error::other)?))
}

/// A server is whole at any time, so that a panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
