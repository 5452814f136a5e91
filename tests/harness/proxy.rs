//! A TCP proxy between a service and a server: connections cut, answers held.
//!
//! For Kafka mind that a broker tells its clients where it is reached: a private [`crate::Broker`] tells them its proxy's
//! address, and [`Proxy::to_kafka`] writes its own into what brokers tell.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

mod kafka;

/// What chooses the Kafka request whose answer is held, and gives its correlation id.
pub type Choice = Box<dyn Fn(&[u8]) -> Option<[u8; 4]> + Send>;

/// A running proxy. Dropped, it refuses and cuts.
pub struct Proxy {
    addresses: Vec<SocketAddr>,
    state: Shared,
}

#[derive(Default)]
struct State {
    /// Where [`Proxy::to`] leads, and each address of [`Proxy::to_hosts`].
    servers: Vec<String>,
    refuses: bool,
    holds: bool,
    holds_requests: bool,
    /// What the requests that are kept back contain.
    kept: Vec<u8>,
    hold_after: Option<Choice>,
    /// The connection of the picked request, and its correlation id.
    picked: Option<(u64, [u8; 4])>,
    /// Its answer has come, and is kept back.
    answered: bool,
    connections: u64,
    sockets: Vec<TcpStream>,
}

impl Proxy {
    /// A proxy on a free port that passes everything on to `server` (`host:port`).
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(server: &str) -> Proxy {
        Proxy::to_hosts(&[server.to_string()])
    }

    /// One before several servers, each with an address of its own, for clients that are given all of them as hosts.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to_hosts(servers: &[String]) -> Proxy {
        let state = Shared::default();
        lock(&state).servers = servers.to_vec();
        let mut addresses = vec![];
        for host in 0..servers.len() {
            let listener = listener();
            addresses.push(listener.local_addr().expect("bound"));
            let its = state.clone();
            listen(listener, state.clone(), move |client| {
                let server = lock(&its).servers[host].clone();
                serve(client, &server, &its)
            });
        }
        Proxy { addresses, state }
    }

    /// One before all brokers of a cluster (`host:port`, separated by commas): clients that begin here stay here.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to_kafka(brokers: &str) -> Proxy {
        let listeners: Vec<(TcpListener, String)> = brokers
            .split(',')
            .map(|broker| (listener(), broker.to_string()))
            .collect();
        let addresses: Vec<SocketAddr> = listeners
            .iter()
            .map(|(listener, _)| listener.local_addr().expect("bound"))
            .collect();
        let own = |(_, broker): &(TcpListener, String)| {
            broker
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok())
        };
        let ports: Option<HashMap<i32, i32>> = listeners
            .iter()
            .zip(&addresses)
            .map(|(it, address)| Some((own(it)?, address.port().into())))
            .collect();
        let ports = Arc::new(ports.expect("brokers as host:port"));
        let state: Shared = Arc::default();
        for (listener, broker) in listeners {
            let (state, ports) = (state.clone(), ports.clone());
            listen(listener, state.clone(), move |client| {
                kafka::serve(client, &broker, &state, &ports)
            });
        }
        Proxy { addresses, state }
    }

    /// Where clients reach it, as `host:port`; several separated by commas.
    pub fn addr(&self) -> String {
        self.addresses
            .iter()
            .map(SocketAddr::to_string)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Its (first) port.
    pub fn port(&self) -> u16 {
        self.addresses[0].port()
    }

    /// Whether the server knows one of the connections passed on by this port.
    pub fn carries(&self, client_port: u16) -> bool {
        let is_it = |socket: &TcpStream| {
            socket
                .local_addr()
                .is_ok_and(|address| address.port() == client_port)
        };
        lock(&self.state).sockets.iter().any(is_it)
    }

    /// Closes all connections, and closes new ones at once, until [`Proxy::resume`].
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.refuses = true;
        close(&mut state);
        self.state.1.notify_all();
    }

    /// Leads a proxy of [`Proxy::to`] to another server: closes all connections, and passes new ones on to that one.
    pub fn lead_to(&self, server: &str) {
        let mut state = lock(&self.state);
        state.servers = vec![server.to_string()];
        close(&mut state);
    }

    /// Leads new connections to the `host`th address of [`Proxy::to_hosts`], from 0, to another server; no connection is closed.
    pub fn lead_host_to(&self, host: usize, server: &str) {
        lock(&self.state).servers[host] = server.to_string();
    }

    /// Closes all connections; new ones are served.
    pub fn drop_connections(&self) {
        close(&mut lock(&self.state));
    }

    /// Keeps back all that servers say, on connections that stay open, until [`Proxy::resume`]; requests still pass.
    pub fn hold(&self) {
        lock(&self.state).holds = true;
    }

    /// [`Proxy::hold`], from the answer to the next Kafka request on that `choice` picks, by the correlation id it gives.
    pub fn hold_after(&self, choice: impl Fn(&[u8]) -> Option<[u8; 4]> + Send + 'static) {
        lock(&self.state).hold_after = Some(Box::new(choice));
    }

    /// Keeps back all that clients say, on connections that stay open, until [`Proxy::resume`].
    pub fn hold_requests(&self) {
        lock(&self.state).holds_requests = true;
    }

    /// Whether a request with these bytes in it is kept back by [`Proxy::hold_requests`].
    pub fn keeps(&self, bytes: &[u8]) -> bool {
        lock(&self.state)
            .kept
            .windows(bytes.len())
            .any(|window| window == bytes)
    }

    /// Whether the request that [`Proxy::hold_after`] waited for has been answered; its answer is kept back.
    pub fn holds_the_answer(&self) -> bool {
        lock(&self.state).answered
    }

    /// Everything passes again, what was kept back first.
    pub fn resume(&self) {
        let mut state = lock(&self.state);
        (state.refuses, state.holds, state.hold_after) = (false, false, None);
        (state.picked, state.answered) = (None, false);
        (state.holds_requests, state.kept) = (false, vec![]);
        self.state.1.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Picks a Kafka request by its API number and the client id in its header; gives its correlation id.
pub fn kafka_request(
    api: i16,
    client_id: &str,
) -> impl Fn(&[u8]) -> Option<[u8; 4]> + Send + 'static {
    let client_id = client_id.as_bytes().to_vec();
    // length, API, version, correlation id, client id with its length before it
    move |request| {
        let is_it = request.get(4..6) == Some(&api.to_be_bytes())
            && request.get(14..14 + client_id.len()) == Some(&client_id);
        request
            .get(8..12)
            .filter(|_| is_it)
            .and_then(|id| id.try_into().ok())
    }
}

/// The frames that begin in these bytes: several requests, or answers, may arrive at once.
fn frames(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let length =
        |bytes: &[u8]| Some(4 + u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize);
    let begin = Some(bytes).filter(|bytes| !bytes.is_empty());
    std::iter::successors(begin, move |frame| {
        frame.get(length(frame)?..).filter(|rest| !rest.is_empty())
    })
}

type Shared = Arc<(Mutex<State>, Condvar)>;

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn listen(
    listener: TcpListener,
    state: Shared,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + 'static,
) {
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if lock(&state).refuses || serve(client).is_err() {
                continue; // the client's socket is dropped: it sees a closed connection
            }
        }
    });
}

fn connect(client: &TcpStream, server: &str, state: &Shared) -> io::Result<TcpStream> {
    let server = TcpStream::connect(server)?;
    for socket in [client, &server] {
        socket.set_nodelay(true)?;
        lock(state).sockets.push(socket.try_clone()?);
    }
    Ok(server)
}

fn serve(client: TcpStream, server: &str, state: &Shared) -> io::Result<()> {
    let server = connect(&client, server, state)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let (asking, answering) = (state.clone(), state.clone());
    let connection = number(state);
    std::thread::spawn(move || {
        pump(from_client, to_server, |request| {
            choose(&asking, connection, request)
        })
    });
    std::thread::spawn(move || {
        pump(server, client, |answer| {
            wait_while_held(&answering, connection, answer)
        })
    });
    Ok(())
}

fn number(state: &(Mutex<State>, Condvar)) -> u64 {
    let mut state = lock(state);
    state.connections += 1;
    state.connections
}

fn pump(mut from: TcpStream, mut to: TcpStream, before: impl Fn(&[u8])) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut buffer) {
        before(&buffer[..length]);
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn choose(shared: &(Mutex<State>, Condvar), connection: u64, request: &[u8]) {
    let mut state = lock(shared);
    let picked = state
        .hold_after
        .as_ref()
        .and_then(|choice| frames(request).find_map(choice));
    if let Some(correlation_id) = picked {
        state.hold_after = None;
        state.picked = Some((connection, correlation_id));
    }
    if !state.holds_requests {
        return;
    }
    state.kept.extend(request);
    let held = |state: &mut State| state.holds_requests && !state.refuses;
    drop(
        shared
            .1
            .wait_while(state, held)
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
    );
}

fn wait_while_held(state: &(Mutex<State>, Condvar), connection: u64, answer: &[u8]) {
    let held = |state: &mut State| state.holds && !state.refuses;
    let mut now = lock(state);
    // length, correlation id
    let is_picked = |id: [u8; 4]| frames(answer).any(|frame| frame.get(4..8) == Some(&id));
    if now
        .picked
        .is_some_and(|(picked, id)| picked == connection && is_picked(id))
    {
        now.holds = true;
        now.answered = true;
    }
    drop(
        state
            .1
            .wait_while(now, held)
            .unwrap_or_else(|poisoned| poisoned.into_inner()),
    );
}

fn close(state: &mut State) {
    for socket in state.sockets.drain(..) {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

fn lock(state: &(Mutex<State>, Condvar)) -> MutexGuard<'_, State> {
    state
        .0
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
