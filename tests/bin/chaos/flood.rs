//! More orders than can be settled, for some seconds: many connections, each with its next order as soon as the last one is
//! answered. A refusal is an answer; what is refused is not asked again.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::load::{Asked, End, Heard};

/// Enough that no instance waits for a client; each is a thread.
const CONNECTIONS: usize = 64;
/// For one flood: what is accepted is settled, and judged, in half a minute.
const ORDERS: usize = 20_000;
/// Longer than any answer takes: the order service gives up storing after 10 s.
const LIMIT: Duration = Duration::from_secs(30);
/// After a refusal. Refusing is cheap, but the clients share the machine with all others.
const PAUSE: Duration = Duration::from_millis(20);
const HEADERS: usize = 16;

/// Floods the instances of order on these ports for so long; answers what was asked and heard. `name` makes the keys unique.
pub fn flood(name: &str, ports: &[u16], length: Duration, seed: u64) -> Vec<(Asked, Heard)> {
    let (until, next) = (Instant::now() + length, AtomicUsize::new(0));
    let work = |client: usize| {
        let mut random = StdRng::seed_from_u64(seed ^ client as u64);
        let (mut done, mut connection) = (vec![], None);
        while Instant::now() < until {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= ORDERS {
                break;
            }
            let asked = one(format!("flood-{name}-{number}"), &mut random);
            let port = ports[random.random_range(0..ports.len())];
            let heard = place(&asked, &mut connection, port);
            if heard.errors > 0 {
                thread::sleep(PAUSE);
            }
            done.push((asked, heard));
        }
        done
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|client| scope.spawn(move || work(client))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no client panics")).collect()
    })
}

fn one(key: String, random: &mut StdRng) -> Asked {
    let mut name = |plain: &str| format!("{plain}-{}", random.random_range(0..4));
    let (user, item) = (name("user"), name("item"));
    let (price, quantity) = (random.random_range(1..=100), random.random_range(1..=5));
    Asked { key, user, item, price, quantity, end: End::Completed, gives_up: true, repeats: false }
}

/// Sends it once. After anything but a 202 or a refusal its outcome is unknown: it is given up, and repeated in the end.
fn place(asked: &Asked, connection: &mut Option<TcpStream>, port: u16) -> Heard {
    let mut heard = Heard::default();
    match call(connection, port, &asked.request()) {
        Ok(answer) => heard.note(answer.status, answer.may_repeat, &answer.body),
        Err(_) => {
            *connection = None;
            heard.errors += 1;
        }
    }
    if heard.errors > heard.refused {
        heard.given_up = Some(None);
    }
    heard
}

struct Answer {
    status: u16,
    may_repeat: bool,
    body: Value,
}

/// By a connection that is there, or a new one to this port.
fn call(connection: &mut Option<TcpStream>, port: u16, request: &[u8]) -> io::Result<Answer> {
    if connection.is_none() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        *connection = Some(stream);
    }
    let stream = connection.as_mut().expect("just connected");
    stream.write_all(request)?;
    let (mut received, mut chunk) = (vec![], [0; 4096]);
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&chunk[..count]);
        if let Some((answer, closes)) = parse(&received)? {
            if closes {
                *connection = None;
            }
            return Ok(answer);
        }
    }
}

/// None: not all of it is here yet. And whether the server closes the connection.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let length = value("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let Some(body) = bytes.get(head..head + length) else { return Ok(None) };
    let closes = value("connection").is_some_and(|text| text.eq_ignore_ascii_case("close"));
    let (status, may_repeat) = (response.code.unwrap_or(0), value("retry-after").is_some());
    Ok(Some((Answer { status, may_repeat, body: serde_json::from_slice(body).unwrap_or_default() }, closes)))
}
