//! What is asked for, drawn from the seed; who asks, and every answer that came.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Api, is_refusal};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

/// Threads that place orders, each with connections of its own to every instance.
pub const CONNECTIONS: usize = 16;
/// Put into each plain account and item: no run empties one.
pub const PLENTY: i64 = 1_000_000_000;

/// Until an order is accepted when it is asked for again: for servers that come back, and a backlog before it.
pub const AGAIN_LIMIT: Duration = Duration::from_secs(60);

/// The account and the item that are set anew during the run.
pub const TOPPED: &str = "topped";

/// The account and the item that are emptied in a tail that is lost: there is plenty before and afterwards.
pub const EMPTIED: &str = "emptied";

/// The end that an order must come to, unless its deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides have enough.
    Completed,
    /// A side must refuse.
    Failed,
    /// Its user or item may be used up by others.
    Either,
}

/// A request. Two of them may be the same one, sent at the same time.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its `Idempotency-Key`.
    pub key: String,
    /// `userName`.
    pub user: String,
    /// `itemName`.
    pub item: String,
    /// `price`.
    pub price: i64,
    /// `quantity`.
    pub quantity: i64,
    /// What it must come to.
    pub end: End,
    /// Whether its client does not repeat it after an error; it is repeated when all is over.
    pub gives_up: bool,
    /// Whether its client sends it again after it was accepted.
    pub repeats: bool,
}

/// What a client heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The order ids of its 202s.
    pub accepted: Vec<Uuid>,
    /// How often it got a 503, or no answer.
    pub errors: usize,
    /// How many of these were refusals: a 503 that says when to repeat the request, and names no order. They leave nothing.
    pub refused: usize,
    /// Answers that nobody may get.
    pub unexpected: Vec<String>,
    /// It had only been refused when it was given up: then the key must stand for nothing.
    pub was_refused: bool,
    /// It stopped asking after an error. Whether the key then stood for an order, by SQL.
    pub given_up: Option<Option<Uuid>>,
}

impl Asked {
    fn body(&self) -> String {
        let Asked {
            user,
            item,
            price,
            quantity,
            ..
        } = self;
        json!({"userName": user, "itemName": item, "price": price, "quantity": quantity})
            .to_string()
    }

    /// The whole HTTP request.
    pub fn request(&self) -> Vec<u8> {
        let (key, body) = (&self.key, self.body());
        let length = body.len();
        let head = format!(
            "POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        (head + &body).into_bytes()
    }
}

impl Heard {
    /// Takes what another client of the same request heard.
    pub fn add(&mut self, other: Heard) {
        self.accepted.extend(other.accepted);
        self.errors += other.errors;
        self.refused += other.refused;
        self.unexpected.extend(other.unexpected);
    }

    /// Takes an answer. `may_repeat`: it says when the request may be repeated.
    pub fn note(&mut self, status: u16, may_repeat: bool, body: &Value) {
        let order_id = body["orderId"].as_str().and_then(|id| id.parse().ok());
        match (status, order_id) {
            (202, Some(order_id)) => self.accepted.push(order_id),
            (_, named) if is_refusal(status) && may_repeat => {
                self.errors += 1;
                self.refused += usize::from(named.is_none());
            }
            _ => self
                .unexpected
                .push(format!("{status}, Retry-After: {may_repeat}: {body}")),
        }
    }

    /// All that it heard was that it was refused.
    pub fn is_refused(&self) -> bool {
        self.accepted.is_empty()
            && self.unexpected.is_empty()
            && self.refused > 0
            && self.refused == self.errors
    }
}

/// Accounts and items, with what is put in.
pub struct PutIn {
    /// Balances by user.
    pub accounts: Vec<(String, i64)>,
    /// Quantities by item.
    pub items: Vec<(String, i64)>,
}

impl PutIn {
    /// For so many orders: `poor` and `scarce` are used up on the way.
    pub fn of(orders: usize) -> PutIn {
        let plain = |name: &str| {
            (0..4)
                .map(|number| (format!("{name}-{number}"), PLENTY))
                .collect::<Vec<_>>()
        };
        let few = orders as i64 / 20;
        let (mut accounts, mut items) = (plain("user"), plain("item"));
        let more = ["hot", TOPPED, EMPTIED].map(|name| (name.to_string(), PLENTY));
        accounts.extend(more.iter().cloned().chain([("poor".to_string(), few * 50)]));
        items.extend(
            more.into_iter()
                .chain([("scarce".to_string(), few * 3), ("empty".to_string(), 0)]),
        );
        PutIn { accounts, items }
    }

    /// The same with what was put in later, by service and amount.
    pub fn and(mut self, more: &[(&'static str, i64)]) -> PutIn {
        for (service, amount) in more {
            let holdings = if *service == "payment" {
                &mut self.accounts
            } else {
                &mut self.items
            };
            holdings
                .iter_mut()
                .filter(|(name, _)| name == TOPPED)
                .for_each(|(_, put_in)| *put_in += amount);
        }
        self
    }
}

/// All requests of a run.
pub fn draw(seed: u64, orders: usize) -> Vec<Asked> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut asked: Vec<Asked> = Vec::with_capacity(orders);
    for number in 0..orders {
        let twin = asked.last().filter(|_| number % 20 == 19).cloned();
        asked.push(twin.unwrap_or_else(|| one(number, &mut random)));
    }
    asked
}

fn one(number: usize, random: &mut StdRng) -> Asked {
    let mut name = |plain: &str| match random.random_bool(0.6) {
        true => "hot".to_string(),
        false => format!("{plain}-{}", random.random_range(0..4)),
    };
    let (mut user, mut item, mut end) = (name("user"), name("item"), End::Completed);
    match random.random_range(0..100) {
        0..8 => (user, end) = ("nobody".into(), End::Failed),
        8..16 => (item, end) = ("empty".into(), End::Failed),
        16..20 => (user, item, end) = ("nobody".into(), "nothing".into(), End::Failed),
        20..30 => (user, end) = ("poor".into(), End::Either),
        30..40 => (item, end) = ("scarce".into(), End::Either),
        40..45 => user = TOPPED.into(),
        45..50 => item = TOPPED.into(),
        _ => {}
    }
    Asked {
        key: format!("chaos-{number}"),
        user,
        item,
        price: random.random_range(1..=100),
        quantity: random.random_range(1..=5),
        end,
        gives_up: random.random_bool(0.3),
        repeats: random.random_bool(0.15),
    }
}

/// The clients at work, as others see them.
pub struct Load {
    ports: Vec<u16>,
    next: AtomicUsize,
    /// Requests below this number may be sent.
    released: AtomicUsize,
    /// Requests whose client is done with them.
    pub done: AtomicUsize,
    /// Requests sent and not yet answered.
    pub in_flight: AtomicUsize,
    /// Requests that were accepted, in the order of their answers.
    accepted: Mutex<Vec<usize>>,
    /// What was asked and heard besides, of [`crate::flood`] and [`crate::provoked`].
    pub besides: Mutex<Vec<(Asked, Heard)>>,
    /// What was heard besides by clients that asked again for an order that had been accepted.
    pub again: Mutex<Vec<(usize, Heard)>>,
    stopped: AtomicBool,
}

impl Load {
    /// Clients of the instances of order on these ports. Nothing is released.
    pub fn new(ports: Vec<u16>) -> Load {
        let (next, released, done, in_flight, accepted, besides, again) = Default::default();
        Load {
            ports,
            next,
            released,
            done,
            in_flight,
            accepted,
            besides,
            again,
            stopped: AtomicBool::new(false),
        }
    }

    /// The instances of order that it asks.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// How many requests were accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted
            .lock()
            .expect("no client panics with it")
            .len()
    }

    /// The requests that were accepted since there were so many.
    pub fn accepted_since(&self, count: usize) -> Vec<usize> {
        self.accepted.lock().expect("no client panics with it")[count..].to_vec()
    }

    /// Lets the requests below this number go.
    pub fn release(&self, number: usize) {
        self.released.fetch_max(number, Ordering::SeqCst);
    }

    /// Time is over: nothing more is sent.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Sends all requests as they are released; answers what was heard, request by request.
    pub fn run(&self, asked: &[Asked], seed: u64) -> Vec<Heard> {
        let heard = Mutex::new(vec![Heard::default(); asked.len()]);
        thread::scope(|scope| {
            for client in 0..CONNECTIONS {
                let heard = &heard;
                scope.spawn(move || {
                    self.work(
                        asked,
                        StdRng::seed_from_u64(seed ^ (client as u64 + 1)),
                        heard,
                    )
                });
            }
        });
        heard.into_inner().expect("no client panicked")
    }

    /// The client of this request asks once more for what was answered as accepted.
    pub fn ask_again(&self, asked: &[Asked], number: usize) {
        let mut heard = Heard::default();
        ask_until_accepted(
            &Api::new(self.ports[number % self.ports.len()]),
            &asked[number],
            &mut heard,
        );
        self.again
            .lock()
            .expect("no client panics with it")
            .push((number, heard));
    }

    fn work(&self, asked: &[Asked], mut random: StdRng, heard: &Mutex<Vec<Heard>>) {
        let apis: Vec<Api> = self.ports.iter().map(|port| Api::new(*port)).collect();
        loop {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            while number < asked.len()
                && number >= self.released.load(Ordering::SeqCst)
                && !self.is_stopped()
            {
                thread::sleep(Duration::from_millis(1));
            }
            if number >= asked.len() || self.is_stopped() {
                return;
            }
            let said = self.place(&asked[number], &apis, &mut random);
            if !said.accepted.is_empty() {
                self.accepted
                    .lock()
                    .expect("no client panics with it")
                    .push(number);
            }
            heard.lock().expect("no client panics with it")[number] = said;
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// One request to its end: accepted (once more, if its client repeats), or given up after an error.
    fn place(&self, asked: &Asked, apis: &[Api], random: &mut StdRng) -> Heard {
        let mut heard = Heard::default();
        while heard.accepted.len() < 1 + usize::from(asked.repeats) && heard.unexpected.is_empty() {
            let api = &apis[random.random_range(0..apis.len())];
            self.in_flight.fetch_add(1, Ordering::SeqCst);
            let erred = ask(api, asked, &mut heard);
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            if erred && heard.accepted.is_empty() && (asked.gives_up || self.is_stopped()) {
                heard.given_up = Some(None);
            }
            if heard.given_up.is_some() || self.is_stopped() {
                break;
            }
            if erred {
                thread::sleep(Duration::from_millis(random.random_range(20..200)));
            }
        }
        heard
    }
}

/// Sends it until it is accepted, within limits.
pub fn ask_until_accepted(api: &Api, asked: &Asked, heard: &mut Heard) {
    let begun = Instant::now();
    while ask(api, asked, heard) && begun.elapsed() < AGAIN_LIMIT {
        thread::sleep(Duration::from_millis(200));
    }
}

/// Sends it once. Whether that was an error after which it may be repeated.
pub fn ask(api: &Api, asked: &Asked, heard: &mut Heard) -> bool {
    let (before, headers) = (
        heard.errors,
        [
            ("content-type", "application/json"),
            ("idempotency-key", &*asked.key),
        ],
    );
    match api.call("POST", "/orders", &headers, Some(asked.body().as_bytes())) {
        Ok(answer) => heard.note(
            answer.status,
            answer.header("retry-after").is_some(),
            &answer.json,
        ),
        Err(_) => heard.errors += 1,
    }
    heard.errors > before
}
