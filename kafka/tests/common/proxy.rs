//! A TCP proxy in front of a broker that understands frames well enough to lose an answer, or to make a refusal of it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::refusal::rewrite;

/// Kafka's numbers of the APIs whose answers tests change, or look for.
pub const PRODUCE: i16 = 0;
pub const FETCH: i16 = 1;
pub const LIST_OFFSETS: i16 = 2;
pub const METADATA: i16 = 3;
pub const OFFSET_COMMIT: i16 = 8;
pub const OFFSET_FETCH: i16 = 9;
pub const FIND_COORDINATOR: i16 = 10;
pub const JOIN_GROUP: i16 = 11;
pub const HEARTBEAT: i16 = 12;
pub const SYNC_GROUP: i16 = 14;
pub const INIT_PRODUCER_ID: i16 = 22;
pub const ADD_PARTITIONS_TO_TXN: i16 = 24;
pub const ADD_OFFSETS_TO_TXN: i16 = 25;
pub const END_TXN: i16 = 26;
pub const TXN_OFFSET_COMMIT: i16 = 28;

/// What becomes of an answer, once the broker has executed the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It never arrives; the connection stays open.
    Silence,
    /// The connection is cut instead.
    Cut,
    /// It arrives as a refusal with this code, this and so many times more.
    Refusal(i16, usize),
}

#[derive(Default)]
struct State {
    losses: HashMap<(String, i16), Loss>,
    /// The APIs that each client has called, in order.
    calls: HashMap<String, Vec<i16>>,
}

type Rules = Arc<Mutex<State>>;

/// A running proxy. It lives as long as the test process.
pub struct Proxy {
    port: u16,
    rules: Rules,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub fn start(broker: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (rules, sockets) = (Rules::default(), Arc::default());
        let proxy = Proxy {
            port,
            rules: Arc::clone(&rules),
            sockets: Arc::clone(&sockets),
        };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serve(client, broker, &rules, &sockets);
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Loses the answer of the next such request of this client, once.
    pub fn lose_answer(&self, client_id: &str, api: i16, loss: Loss) {
        self.rules
            .lock()
            .unwrap()
            .losses
            .insert((client_id.to_owned(), api), loss);
    }

    /// Whether that answer was lost meanwhile.
    pub fn has_lost(&self, client_id: &str, api: i16) -> bool {
        !self
            .rules
            .lock()
            .unwrap()
            .losses
            .contains_key(&(client_id.to_owned(), api))
    }

    /// Refuses the next `times` such requests of this client, though the broker has executed them.
    pub fn refuse(&self, client_id: &str, api: i16, code: i16, times: usize) {
        self.lose_answer(client_id, api, Loss::Refusal(code, times - 1));
    }

    /// The APIs that this client has called since the last time this was asked.
    pub fn take_calls(&self, client_id: &str) -> Vec<i16> {
        self.rules
            .lock()
            .unwrap()
            .calls
            .remove(client_id)
            .unwrap_or_default()
    }

    /// Cuts all open connections.
    pub fn cut_all(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn serve(client: TcpStream, broker: u16, rules: &Rules, sockets: &Arc<Mutex<Vec<TcpStream>>>) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else {
        return;
    };
    for socket in [&client, &broker] {
        socket.set_nodelay(true).unwrap();
        sockets.lock().unwrap().push(socket.try_clone().unwrap());
    }
    let rules = Arc::clone(rules);
    thread::spawn(move || {
        let _ = pass(&client, &broker, &rules);
        let _ = (
            client.shutdown(Shutdown::Both),
            broker.shutdown(Shutdown::Both),
        );
    });
}

/// Passes frames on, a request and its answer at a time, as this client sends them.
fn pass(mut client: &TcpStream, mut broker: &TcpStream, rules: &Rules) -> io::Result<()> {
    loop {
        let request = read_frame(&mut client)?;
        write_frame(&mut broker, &request)?;
        let mut answer = read_frame(&mut broker)?;
        match next_loss(rules, &request) {
            None => {}
            Some(Loss::Silence) => continue,
            Some(Loss::Cut) => return Ok(()),
            Some(Loss::Refusal(code, _)) => rewrite(&mut answer, sender(&request).1, code),
        }
        write_frame(&mut client, &answer)?;
    }
}

fn next_loss(rules: &Rules, request: &[u8]) -> Option<Loss> {
    let (mut rules, sender) = (rules.lock().unwrap(), sender(request));
    rules
        .calls
        .entry(sender.0.clone())
        .or_default()
        .push(sender.1);
    let loss = rules.losses.remove(&sender);
    if let Some(Loss::Refusal(code, more @ 1..)) = loss {
        rules.losses.insert(sender, Loss::Refusal(code, more - 1));
    }
    loss
}

/// Client id and API of a request (its header: API, version, correlation id, client id).
fn sender(request: &[u8]) -> (String, i16) {
    let api = i16::from_be_bytes([request[0], request[1]]);
    let length = usize::from(u16::from_be_bytes([request[8], request[9]]));
    (
        String::from_utf8_lossy(&request[10..10 + length]).into_owned(),
        api,
    )
}

fn read_frame(from: &mut &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

fn write_frame(to: &mut &TcpStream, frame: &[u8]) -> io::Result<()> {
    let mut whole = (frame.len() as u32).to_be_bytes().to_vec();
    whole.extend(frame);
    to.write_all(&whole)
}
