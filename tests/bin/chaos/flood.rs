//! More orders than can be settled, for some seconds: on many connections at once, the next ones as soon as these are
//! answered. A refusal is an answer; what is refused is not asked again.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Service, World};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::load::{Asked, End, Heard};

/// Threads, each with so many connections: together more requests at once than may wait.
const THREADS: usize = 32;
const CONNECTIONS: usize = 64;
/// Of one flood, so many and one round more are accepted at most: enough for ten seconds, and judged soon.
const ACCEPTED: usize = 3_000;
/// Longer than any answer takes: the order service gives up storing after 10 s.
const LIMIT: Duration = Duration::from_secs(30);
/// After a refusal; the clients share the machine with all others.
const PAUSE: Duration = Duration::from_millis(500);
const HEADERS: usize = 16;
/// What each payment takes besides, in a run with floods: so the capacity is a few hundred orders a second on any machine,
/// and little is needed to exceed it.
const BRAKE: &str = "
    create function chaos_brake() returns trigger language plpgsql as
        $$ begin perform pg_sleep(0.002); return new; end $$;
    create trigger chaos_brake before insert on payment for each row execute function chaos_brake()";

/// Limits what the system can settle.
///
/// # Errors
/// What PostgreSQL says.
pub fn limit_capacity(world: &World) -> Result<(), postgres::Error> {
    world.db(Service::Payment).batch_execute(BRAKE)
}

/// Floods the instances of order on these ports for so long; answers what was asked and heard. `name` makes the keys unique.
pub fn flood(name: &str, ports: &[u16], length: Duration, seed: u64) -> Vec<(Asked, Heard)> {
    let (until, accepted) = (Instant::now() + length, AtomicUsize::new(0));
    let is_over = || Instant::now() >= until || accepted.load(Ordering::SeqCst) >= ACCEPTED;
    let work = |thread: usize| {
        let mut random = StdRng::seed_from_u64(seed ^ thread as u64);
        let mut connections: Vec<Option<TcpStream>> = (0..CONNECTIONS).map(|_| None).collect();
        let mut done: Vec<(Asked, Heard)> = vec![];
        while !is_over() {
            let key = |number: usize| format!("flood-{name}-{thread}-{}", done.len() + number);
            let round: Vec<Asked> = (0..CONNECTIONS)
                .map(|number| one(key(number), &mut random))
                .collect();
            let port = |number: usize| ports[(thread + number) % ports.len()];
            // all are sent before the first is read
            for (number, (connection, asked)) in connections.iter_mut().zip(&round).enumerate() {
                send(connection, port(number), &asked.request());
            }
            let heard: Vec<Heard> = connections.iter_mut().map(hear).collect();
            accepted.fetch_add(
                heard.iter().map(|heard| heard.accepted.len()).sum(),
                Ordering::SeqCst,
            );
            if heard.iter().any(|heard| heard.errors > 0) {
                thread::sleep(PAUSE);
            }
            done.extend(round.into_iter().zip(heard));
        }
        done
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no client panics"))
            .collect()
    })
}

fn one(key: String, random: &mut StdRng) -> Asked {
    let mut name = |plain: &str| format!("{plain}-{}", random.random_range(0..4));
    let (user, item) = (name("user"), name("item"));
    let (price, quantity) = (random.random_range(1..=100), random.random_range(1..=5));
    Asked {
        key,
        user,
        item,
        price,
        quantity,
        end: End::Completed,
        gives_up: true,
        repeats: false,
    }
}

/// By a connection that is there, or a new one to this port. None of it is left if it breaks.
fn send(connection: &mut Option<TcpStream>, port: u16, request: &[u8]) {
    let stream = connection.take().map_or_else(|| connect(port), Ok);
    *connection = stream
        .and_then(|mut stream| stream.write_all(request).map(|()| stream))
        .ok();
}

/// After anything but a 202 or a refusal the request's outcome is unknown: it is given up, and repeated in the end.
fn hear(connection: &mut Option<TcpStream>) -> Heard {
    let mut heard = Heard::default();
    match connection
        .take()
        .ok_or(io::ErrorKind::NotConnected.into())
        .and_then(receive)
    {
        Ok((answer, stream)) => {
            heard.note(answer.status, answer.may_repeat, &answer.body);
            *connection = stream;
        }
        Err(_) => heard.errors += 1,
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

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// An answer, and the connection unless the server closes it.
fn receive(mut stream: TcpStream) -> io::Result<(Answer, Option<TcpStream>)> {
    let (mut received, mut chunk) = (vec![], [0; 4096]);
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&chunk[..count]);
        if let Some((answer, closes)) = parse(&received)? {
            return Ok((answer, (!closes).then_some(stream)));
        }
    }
}

/// None: not all of it is here yet. And whether the server closes the connection.
fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let value = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let length = value("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let Some(body) = bytes.get(head..head + length) else {
        return Ok(None);
    };
    let closes = value("connection").is_some_and(|text| text.eq_ignore_ascii_case("close"));
    let (status, may_repeat) = (response.code.unwrap_or(0), value("retry-after").is_some());
    Ok(Some((
        Answer {
            status,
            may_repeat,
            body: serde_json::from_slice(body).unwrap_or_default(),
        },
        closes,
    )))
}
