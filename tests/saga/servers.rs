//! Why HTTP has a server of our own: what hostile clients do to it, and to `tiny_http` under the same handlers.
//!
//! `./run.sh proof` builds the services with the feature `tiny_http` and says where in `TINY_HTTP_BIN_DIR`. The table that this
//! prints is the one in ARCHITECTURE.md. The day on which the crate holds in every row, this fails, and our own server can go.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Instance, Service, World, env};

/// A client that is well behaved waits no longer for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long endless clients pour.
const POURING: Duration = Duration::from_secs(4);
/// A silent client must be gone by then; our own server ends a request after 20 s.
const SILENCE: Duration = Duration::from_secs(30);
/// What a flood may cost, in MiB.
const GROWTH: usize = 16;

const GET: &str = "GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n";

/// What a server did, in words, and whether it held.
type Outcome = (String, bool);

/// The most descriptors that the service may have: as many as are usual, and few.
const USUAL: usize = 1024;
const FEW: usize = 160;

/// Its name, the descriptors that the service may have, and how it is played.
type Attack = (&'static str, usize, fn(&Instance) -> Outcome);

const ATTACKS: [Attack; 8] = [
    ("64 keep-alive connections opened at once", USUAL, crowd),
    (
        "`Content-Length: 10000000000000`, 70 KB of it",
        USUAL,
        huge_length,
    ),
    ("an endless header line, 4 s", USUAL, endless_head),
    (
        "pipelined requests behind one that waits, 4 s",
        USUAL,
        flood,
    ),
    ("8 bodies that stall, then a GET", USUAL, stalled_bodies),
    (
        "`Content-Length: 5, 5` with 2 requests",
        USUAL,
        doubtful_length,
    ),
    ("a head that is never finished", USUAL, silence),
    ("200 idle connections, 160 descriptors", FEW, descriptors),
];

#[test]
#[ignore = "takes the binaries that ./run.sh proof builds with the feature tiny_http"]
fn hostile_clients_harm_tiny_http_and_not_our_own_server() {
    let tiny = std::env::var_os("TINY_HTTP_BIN_DIR").map(PathBuf::from);
    let tiny = tiny.expect("TINY_HTTP_BIN_DIR is not set: ./run.sh proof builds and names it");
    let ours = env::binary("order");
    let ours = ours.parent().unwrap();
    println!("| | tiny_http | `shared/src/http/server` |\n| --- | --- | --- |");
    let mut harmed = 0;
    for (attack, limit, play) in ATTACKS {
        let [(theirs, they_held), (own, we_held)] = [&tiny, ours].map(|binaries| {
            let world = World::new("servers").run_by(binaries);
            play(&world.start_with_descriptors((limit, limit), Service::Order, &[]))
        });
        println!("| {attack} | {theirs} | {own} |");
        assert!(we_held, "our own server: {attack}: {own}");
        harmed += usize::from(!they_held);
    }
    assert!(harmed > 0, "tiny_http holds in every row: take it");
}

fn connect(order: &Instance) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", order.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The time to the first byte of the answer to `request`, if one comes in time.
fn answered(client: &mut TcpStream, request: &str) -> Option<Duration> {
    let begin = Instant::now();
    client.write_all(request.as_bytes()).ok()?;
    let read = client.read(&mut [0; 12]);
    (read.is_ok_and(|count| count > 0)).then(|| begin.elapsed())
}

/// Whether a client that comes now is answered.
fn serves(order: &Instance) -> Outcome {
    let answer = TcpStream::connect(("127.0.0.1", order.port())).ok();
    let answer = answer.and_then(|mut client| {
        client.set_read_timeout(Some(PATIENCE)).ok()?;
        answered(&mut client, GET)
    });
    match answer {
        _ if order.process().ended().is_some() => ("the process ends".into(), false),
        Some(_) => ("the next client is answered".into(), true),
        None => ("the next client is not answered in 5 s".into(), false),
    }
}

fn crowd(order: &Instance) -> Outcome {
    let mut clients: Vec<TcpStream> = (0..64).map(|_| connect(order)).collect();
    let answers: Vec<Option<Duration>> = thread::scope(|scope| {
        let asking: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(|| answered(client, GET)))
            .collect();
        asking
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let waiting = answers.iter().filter(|answer| answer.is_none()).count();
    let slowest = answers.into_iter().flatten().max().unwrap_or_default();
    match waiting {
        0 => (format!("all answered within {slowest:.0?}"), true),
        _ => (format!("{waiting} wait more than 5 s"), false),
    }
}

fn huge_length(order: &Instance) -> Outcome {
    let mut client = connect(order);
    let head = "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10000000000000\r\n\r\n";
    // more than is read of a body; it may be refused before all of it is sent
    let _ = client.write_all((head.to_string() + &" ".repeat(70_000)).as_bytes());
    let _ = client.read(&mut [0; 12]);
    drop(client);
    serves(order)
}

/// Pours `chunk` after `opening` for as long as it is taken in; by how much the process has grown.
fn pour(order: &Instance, opening: &str, chunk: &str) -> Outcome {
    let before = order.process().figure("VmHWM");
    let mut client = connect(order);
    client.write_all(opening.as_bytes()).unwrap();
    let timeout = Some(Duration::from_secs(1));
    client.set_write_timeout(timeout).unwrap();
    let chunk = chunk.repeat(1 + (64 << 10) / chunk.len());
    let end = Instant::now() + POURING;
    while Instant::now() < end && client.write_all(chunk.as_bytes()).is_ok() {}
    let grown = (order.process().figure("VmHWM") - before) >> 10;
    (format!("{grown} MiB more"), grown <= GROWTH)
}

fn endless_head(order: &Instance) -> Outcome {
    pour(order, "GET / HTTP/1.1\r\nHost: a\r\nX: ", "a")
}

fn flood(order: &Instance) -> Outcome {
    // without the other services it does not settle
    let stuck = order.api().place("ann", "lamp", 1, 1);
    let wait = format!("GET /orders/{stuck}?wait=30s HTTP/1.1\r\nHost: a\r\n\r\n");
    pour(order, &wait, GET)
}

fn stalled_bodies(order: &Instance) -> Outcome {
    let head = "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{";
    let mut stalled: Vec<TcpStream> = (0..8).map(|_| connect(order)).collect();
    for client in &mut stalled {
        client.write_all(head.as_bytes()).unwrap();
    }
    serves(order)
}

fn doubtful_length(order: &Instance) -> Outcome {
    let mut client = connect(order);
    let request = "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello";
    client.write_all(request.repeat(2).as_bytes()).unwrap();
    let mut said = Vec::new();
    let closed = client.read_to_end(&mut said).is_ok();
    let said = String::from_utf8_lossy(&said);
    let answers = said.matches("HTTP/1.1 ").count();
    let end = if closed { "closed" } else { "goes on" };
    (
        format!("answers: {answers}, {end}"),
        (answers, closed) == (1, true),
    )
}

fn silence(order: &Instance) -> Outcome {
    let mut client = connect(order);
    client.write_all(b"GET / HTTP/1.1\r\nHost").unwrap();
    client.set_read_timeout(Some(SILENCE)).unwrap();
    let begin = Instant::now();
    match client.read(&mut [0; 12]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => ("stays open".into(), false),
        _ => (format!("ended after {:.0?}", begin.elapsed()), true),
    }
}

fn descriptors(order: &Instance) -> Outcome {
    let idle: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(("127.0.0.1", order.port())))
        .collect();
    let outcome = serves(order);
    drop(idle);
    outcome
}
