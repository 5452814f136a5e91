//! HTTP under attack: clients that are many, slow, endless or senseless harm nobody else. On the real order service, whose
//! memory, threads and table are looked at from outside.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use harness::{Api, Broker, Instance, LIMIT, Service, World, eventually, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uuid::Uuid;

/// What the service may take at any moment, in KiB; 2,000 connections with nearly full heads and bodies take 150 MiB.
const PEAK: usize = 200 << 10;

/// What it may keep afterwards, in KiB: fragments that its allocator holds for the next time, 54 to 70 MiB of those 150.
const KEPT: usize = 100 << 10;

/// An attacker gives up after so many bytes: far more than the kernel's buffers hold on both sides.
const FLOOD: usize = 64 << 20;

const ORDER: &str = r#"{"userName":"ann","itemName":"lamp","price":1,"quantity":1}"#;

// ---- the service under attack, and what must be true of it ------------------------------------------------------------

struct Target {
    order: Instance,
    others: [Instance; 2],
    world: World,
    /// Threads and memory before the attack.
    calm: (usize, usize),
    /// Orders of well-behaved clients.
    placed: Cell<usize>,
}

impl Target {
    fn start(name: &str) -> Target {
        let world = World::new(name);
        let [order, payment, stock] = world.start_all();
        Target::of(world, order, [payment, stock])
    }

    fn of(world: World, order: Instance, others: [Instance; 2]) -> Target {
        others[0].api().put_balance("ann", 1_000_000);
        others[1].api().put_quantity("lamp", 1_000_000);
        let mut target = Target {
            world,
            order,
            others,
            calm: (0, 0),
            placed: Cell::new(0),
        };
        target.serves();
        target.calm = (target.threads(), target.order.process().figure("VmRSS"));
        target
    }

    fn threads(&self) -> usize {
        self.order.process().figure("Threads")
    }

    /// Connected, with limits so generous that only a hanging test meets them.
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.order.port())).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// A well-behaved client on a connection of its own is answered at the first try, and its order completes.
    fn serves(&self) {
        let api = Api::new(self.order.port());
        let order_id = api.place("ann", "lamp", 1, 1);
        self.placed.set(self.placed.get() + 1);
        assert_eq!(api.settled(order_id)["orderStatus"], "COMPLETED");
    }

    /// After an attack in which `accepted` orders were answered with 202.
    fn is_unharmed(&self, accepted: usize) {
        self.serves();
        self.holds_orders(accepted + self.placed.get());
        let process = self.order.process();
        let peak = process.figure("VmHWM");
        assert!(peak < PEAK, "it took {peak} KiB");
        let (threads, memory) = self.calm;
        until("the connections' threads to end", || {
            self.threads() <= threads
        });
        until("the memory to be given back", || {
            process.figure("VmRSS") <= memory + KEPT
        });
    }

    /// Each order was taken whole, and settles; nothing else was.
    fn holds_orders(&self, count: usize) {
        self.world.wait_until_quiet();
        let mut db = self.world.db(Service::Order);
        let orders: i64 = db
            .query_one("select count(*) from orders", &[])
            .unwrap()
            .get(0);
        assert_eq!(orders, count as i64, "an order for each 202, and no other");
        assert_eq!(self.world.parked(), 0);
        self.world.assert_conserved();
    }

    /// What is answered to a client that sends `opening` and then `endless` over and over, until the server has had enough.
    fn answer_to_endless(&self, opening: &str, endless: &str) -> String {
        let mut client = self.connect();
        let mut sender = client.try_clone().unwrap();
        let (opening, chunk) = (
            opening.to_string(),
            endless.repeat(1 + (64 << 10) / endless.len()),
        );
        let pouring = thread::spawn(move || {
            let _ = sender.write_all(opening.as_bytes());
            let chunks = FLOOD / chunk.len();
            (0..chunks)
                .take_while(|_| sender.write_all(chunk.as_bytes()).is_ok())
                .count()
                * chunk.len()
        });
        let answer = said(&mut client);
        // it is cut, or has found no end
        let _ = client.shutdown(Shutdown::Both);
        pouring.join().unwrap();
        answer
    }

    /// The server takes no more than its buffers hold as long as nobody takes in the answers.
    fn stalls(&self, client: &mut TcpStream, request: &str) {
        // long enough for a busy machine: what is left unread for so long is stalled
        client
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let chunk = request.repeat(1 + (64 << 10) / request.len());
        let mut taken = 0;
        while client.write_all(chunk.as_bytes()).is_ok() {
            taken += chunk.len();
            assert!(taken < FLOOD, "the server takes in requests without end");
        }
    }
}

/// What the server says until it closes the connection or cuts it.
fn said(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            panic!("the connection is still open")
        }
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn post(length: usize) -> String {
    format!(
        "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
}

fn whole_post() -> String {
    post(ORDER.len()) + ORDER
}

fn chunked_post(chunks: &str) -> String {
    let head = "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    format!("{head}{chunks}")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn accepted(answers: &str) -> usize {
    answers.matches("HTTP/1.1 202 ").count()
}

/// So that this process can have thousands of connections itself.
fn raise_own_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .unwrap();
}

// ---- many and slow ----------------------------------------------------------------------------------------------------

#[test]
fn two_thousand_idle_connections_disturb_nobody_and_beyond_2500_the_oldest_make_room() {
    raise_own_descriptors();
    let target = Target::start("attack_idle");
    let calm = target.calm.0;
    let mut idle: Vec<TcpStream> = (0..2_000).map(|_| target.connect()).collect();
    until("2,000 connections to be served", || {
        target.threads() >= calm - 1 + 2_000
    });
    target.serves();
    assert!(idle.iter().all(is_open));
    idle.extend((0..1_000).map(|_| target.connect()));
    // the newest is served, and with it all before
    idle.last_mut()
        .unwrap()
        .write_all(get("/orders/x").as_bytes())
        .unwrap();
    assert!(
        idle.last()
            .unwrap()
            .read(&mut [0; 12])
            .is_ok_and(|count| count == 12)
    );
    until("the oldest to be gone", || {
        idle.iter().take(500).all(|client| !is_open(client))
    });
    assert!(target.threads() <= calm + 2_500);
    // all but the last, whose answer is not read to its end
    assert!(idle[600..2_999].iter().all(is_open));
    target.serves();
    drop(idle);
    target.is_unharmed(0);
}

fn is_open(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let open = client
        .peek(&mut [0])
        .is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    client.set_nonblocking(false).unwrap();
    open
}

#[test]
fn slow_headers_and_slow_bodies_hold_up_nobody_and_are_ended() {
    raise_own_descriptors();
    let target = Target::start("attack_slow");
    let clients = slow_clients(&target);
    let dribbling = thread::spawn(move || dribble(clients));
    for _ in 0..5 {
        target.serves();
    }
    for answer in dribbling.join().unwrap() {
        assert!(
            answer.starts_with("HTTP/1.1 408 ") || answer.is_empty(),
            "{answer}"
        );
    }
    // what was kept is used again: a second and a third crowd raise the peak no further
    for _ in 0..2 {
        let clients = slow_clients(&target);
        target.serves();
        drop(clients);
        until("the crowd to be gone", || target.threads() <= target.calm.0);
    }
    target.is_unharmed(0);
}

/// 2,000 that have sent nearly all that each may send.
fn slow_clients(target: &Target) -> Vec<TcpStream> {
    let part = " ".repeat(62_000);
    let head = format!("GET /orders HTTP/1.1\r\nHost: a\r\nX: {}", &part[..14_000]);
    let openings = [head, post(65_536) + &part, chunked_post("FFFF\r\n") + &part];
    let mut clients: Vec<TcpStream> = (0..2_000).map(|_| target.connect()).collect();
    for (client, opening) in clients.iter_mut().zip(openings.iter().cycle()) {
        client.write_all(opening.as_bytes()).unwrap();
    }
    clients
}

/// Sends a byte on each connection now and then, until the server has ended them all; what it said to each.
fn dribble(mut clients: Vec<TcpStream>) -> Vec<String> {
    let mut answers = Vec::new();
    until("all slow requests to be ended", || {
        let (open, ended) = std::mem::take(&mut clients).into_iter().partition(is_open);
        clients = open;
        answers.extend(Vec::into_iter(ended).map(|mut client| said(&mut client)));
        clients
            .iter_mut()
            .for_each(|client| drop(client.write_all(b"a")));
        clients.is_empty()
    });
    answers
}

// ---- descriptors ------------------------------------------------------------------------------------------------------

#[test]
fn with_all_descriptors_used_up_database_and_broker_are_still_reached_again() {
    let broker = Broker::start();
    let world = World::with("attack_descriptors", &[("KAFKA_BROKERS", &broker.direct())]);
    // half of them is what one broker's service needs for itself
    let order = world.start_with_descriptors(
        (160, 160),
        Service::Order,
        &[("KAFKA_BROKERS", &broker.proxied())],
    );
    let others = [world.start(Service::Payment), world.start(Service::Stock)];
    let target = Target::of(world, order, others);
    let crowd = Crowd::around(&target);
    target.serves_the_patient();
    end_sessions(&target.world);
    target.serves_the_patient();
    broker.proxy.cut();
    broker.proxy.resume();
    target.serves_the_patient();
    crowd.leave();
    target.is_unharmed(0);
    let log = target.order.log();
    assert!(
        !log.contains("Too many open files"),
        "clients took what the service needs itself:\n{log}"
    );
}

impl Target {
    /// A client in a crowd may lose its connection to the next one; by repeating with its key it gets its one order.
    fn serves_the_patient(&self) {
        let key = Uuid::new_v4().to_string();
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key.as_str()),
        ];
        let answer = eventually("an order to be taken", || {
            let api = Api::new(self.order.port());
            api.call("POST", "/orders", &headers, Some(ORDER.as_bytes()))
                .ok()
                .filter(|answer| answer.status == 202)
        });
        self.placed.set(self.placed.get() + 1);
        let path = answer.header("location").unwrap();
        until("the order to complete", || {
            let found = Api::new(self.order.port()).call("GET", path, &[], None);
            found.is_ok_and(|answer| answer.json["orderStatus"] == "COMPLETED")
        });
    }
}

#[test]
fn a_low_soft_limit_of_descriptors_is_raised_as_far_as_allowed() {
    let world = World::new("attack_soft_limit");
    let order = world.start_with_descriptors((64, 700), Service::Order, &[]);
    let calm = order.process().figure("Threads");
    let idle: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(("127.0.0.1", order.port())).unwrap())
        .collect();
    until("300 connections to be served", || {
        order.process().figure("Threads") >= calm - 1 + 300
    });
    assert!(idle.iter().all(is_open));
}

/// Clients that come, say nothing and stay: 200 at once, and always new ones.
struct Crowd {
    gone: Arc<AtomicBool>,
    coming: thread::JoinHandle<()>,
}

impl Crowd {
    fn around(target: &Target) -> Crowd {
        let gone = Arc::new(AtomicBool::new(false));
        let (over, port) = (gone.clone(), target.order.port());
        let first: Vec<TcpStream> = (0..200).map(|_| target.connect()).collect();
        let coming = thread::spawn(move || {
            let mut crowd = std::collections::VecDeque::from(first);
            while !over.load(Ordering::Relaxed) {
                crowd.extend(TcpStream::connect(("127.0.0.1", port)));
                crowd.pop_front();
                thread::sleep(Duration::from_millis(2));
            }
        });
        Crowd { gone, coming }
    }

    fn leave(self) {
        self.gone.store(true, Ordering::Relaxed);
        self.coming.join().unwrap();
    }
}

fn end_sessions(world: &World) {
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()";
    let ended: i64 = world.db(Service::Order).query_one(sql, &[]).unwrap().get(0);
    assert!(ended > 0);
}

// ---- endless ----------------------------------------------------------------------------------------------------------

#[test]
fn endless_heads_are_refused_after_what_a_head_may_have() {
    let target = Target::start("attack_head");
    let begun = "POST /orders HTTP/1.1\r\nHost: a\r\n";
    for (status, opening, endless) in [
        (414, "GET /", "a"),
        (431, "POST /orders HTTP/1.1\r\nHost: a\r\nX: ", "a"),
        (431, begun, "a"),
        (431, begun, "a: b\r\n"),
        (431, begun, "Content-Length: 5\r\n"),
        (400, "\0", "\0"),
    ] {
        let answer = target.answer_to_endless(opening, endless);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{opening:?} {endless:?}: {answer}"
        );
    }
    target.is_unharmed(0);
}

#[test]
fn huge_and_endless_bodies_are_refused_after_what_a_body_may_have() {
    let target = Target::start("attack_body");
    let length =
        |length: &str| post(0).replace("Content-Length: 0", &format!("Content-Length: {length}"));
    for (status, opening, endless) in [
        (413, post(65_537), " "),
        (413, length("10000000000000"), " "),
        (413, length("18446744073709551616"), " "),
        (413, length(&"9".repeat(1_000)), " "),
        // read as chunks of 4096 bytes: after so many of these the next is at its line end
        (413, chunked_post(""), "1000\r\n"),
        (413, chunked_post(""), "1\r\n \r\n"),
        (413, chunked_post("FFFFFFFFFFFFFFFF\r\n"), " "),
        (413, chunked_post("10000000000000000\r\n"), " "),
        (400, chunked_post("1;"), "a"),
        (400, chunked_post(""), "0"),
        (
            431,
            chunked_post(&format!("{:x}\r\n{ORDER}\r\n0\r\n", ORDER.len())),
            "a: b\r\n",
        ),
    ] {
        let answer = target.answer_to_endless(&opening, endless);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{opening:?} {endless:?}: {answer}"
        );
    }
    let mut client = target.connect();
    let byte_by_byte: String = ORDER
        .chars()
        .map(|character| format!("1\r\n{character}\r\n"))
        .collect();
    client
        .write_all(chunked_post(&format!("{byte_by_byte}0\r\n\r\n")).as_bytes())
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let answer = said(&mut client);
    assert_eq!(accepted(&answer), 1, "{answer}");
    target.is_unharmed(1);
}

// ---- pipelined and half-closed ----------------------------------------------------------------------------------------

#[test]
fn pipelined_floods_are_taken_no_faster_than_they_are_answered() {
    let target = Target::start("attack_flood");
    let mut unread = target.connect();
    target.stalls(&mut unread, &get("/orders"));
    let payment = &target.others[0];
    payment.signal(harness::Signal::STOP);
    let stuck = Api::new(target.order.port()).place("ann", "lamp", 1, 1);
    target.placed.set(target.placed.get() + 1);
    let mut parked = target.connect();
    parked
        .write_all(get(&format!("/orders/{stuck}?wait=30s")).as_bytes())
        .unwrap();
    target.stalls(&mut parked, &get("/orders/x"));
    payment.signal(harness::Signal::CONT);
    target.serves();
    drop((unread, parked));
    target.is_unharmed(0);
}

#[test]
fn half_closed_connections_get_the_answers_to_whole_requests_and_to_no_other() {
    let target = Target::start("attack_half");
    let whole = whole_post();
    let mut count = 0;
    for half in [
        0,
        1,
        50,
        post(0).len(),
        whole.len() - ORDER.len(),
        whole.len() - 1,
    ] {
        let mut client = target.connect();
        client
            .write_all((whole.repeat(20) + &whole[..half]).as_bytes())
            .unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let answers = said(&mut client);
        assert_eq!(
            (accepted(&answers), answers.matches("HTTP/1.1 ").count()),
            (20, 20),
            "{half}: {answers}"
        );
        count += 20;
    }
    // cut off on both sides in the middle of a request
    for length in 0..whole.len() {
        target
            .connect()
            .write_all(&whole.as_bytes()[..length])
            .unwrap();
    }
    target.is_unharmed(count);
}

// ---- senseless --------------------------------------------------------------------------------------------------------

/// What random requests are put together from.
const PIECES: &[&str] = &[
    "GET /orders",
    "POST /orders",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "Host: a\r\n",
    "\r\n",
    "\n",
    "\r",
    "Content-Length: ",
    "0",
    "9",
    "60",
    "Transfer-Encoding: chunked\r\n",
    "Content-Type: application/json\r\n",
    "Expect: 100-continue\r\n",
    "Idempotency-Key: ",
    "%",
    "%00",
    "?wait=1s",
    "\0",
    "ü",
    "{",
    "}",
    "\"",
    ":",
    ",",
    ORDER,
];

#[test]
fn ten_thousand_random_byte_strings_are_survived() {
    let target = Target::start("attack_random");
    let mut random = StdRng::seed_from_u64(0x5eed);
    let mut count = 0;
    for number in 0..10_000 {
        let mut client = target.connect();
        // it may have been refused, and closed, after the first part
        let _ = client.write_all(&random_bytes(&mut random, number));
        let _ = client.shutdown(Shutdown::Write);
        count += accepted(&said(&mut client));
    }
    assert!(
        count > 0,
        "some requests stay valid, or nothing would show that none is taken half"
    );
    target.is_unharmed(count);
}

fn random_bytes(random: &mut StdRng, number: usize) -> Vec<u8> {
    match number % 3 {
        0 => (0..random.random_range(1..400))
            .map(|_| random.random())
            .collect(),
        1 => (0..random.random_range(1..30))
            .flat_map(|_| PIECES[random.random_range(0..PIECES.len())].bytes())
            .collect(),
        _ => damaged(random),
    }
}

/// Good requests with some of their bytes replaced, and the end perhaps cut off.
fn damaged(random: &mut StdRng) -> Vec<u8> {
    let mut request = whole_post().repeat(random.random_range(1..3)).into_bytes();
    for _ in 0..random.random_range(0..4) {
        let place = random.random_range(0..request.len());
        request[place] = random.random();
    }
    if random.random() {
        request.truncate(random.random_range(1..request.len()));
    }
    request
}
