//! What is asked for, drawn from the seed; who asks, and every answer that came.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::Api;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use uuid::Uuid;

/// Threads that place orders, each with connections of its own to every instance.
pub const CONNECTIONS: usize = 16;
/// Put into each plain account and item: no run empties one.
pub const PLENTY: i64 = 1_000_000_000;

/// The account and the item that are set anew during the run.
pub const TOPPED: &str = "topped";

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
    /// Answers that nobody may get.
    pub unexpected: Vec<String>,
    /// It stopped asking after an error. Whether the key then stood for an order, by SQL.
    pub given_up: Option<Option<Uuid>>,
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
        let plain = |name: &str| (0..4).map(|number| (format!("{name}-{number}"), PLENTY)).collect::<Vec<_>>();
        let few = orders as i64 / 20;
        let (mut accounts, mut items) = (plain("user"), plain("item"));
        let [hot, topped] = ["hot", TOPPED].map(|name| (name.to_string(), PLENTY));
        accounts.extend([hot.clone(), topped.clone(), ("poor".to_string(), few * 50)]);
        items.extend([hot, topped, ("scarce".to_string(), few * 3), ("empty".to_string(), 0)]);
        PutIn { accounts, items }
    }

    /// The same with what was put in later, by service and amount.
    pub fn and(mut self, more: &[(&'static str, i64)]) -> PutIn {
        for (service, amount) in more {
            let holdings = if *service == "payment" { &mut self.accounts } else { &mut self.items };
            holdings.iter_mut().filter(|(name, _)| name == TOPPED).for_each(|(_, put_in)| *put_in += amount);
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
    stopped: AtomicBool,
}

impl Load {
    /// Clients of the instances of order on these ports. Nothing is released.
    pub fn new(ports: Vec<u16>) -> Load {
        let (next, released, done, in_flight) = Default::default();
        Load { ports, next, released, done, in_flight, stopped: AtomicBool::new(false) }
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
                scope.spawn(move || self.work(asked, StdRng::seed_from_u64(seed ^ (client as u64 + 1)), heard));
            }
        });
        heard.into_inner().expect("no client panicked")
    }

    fn work(&self, asked: &[Asked], mut random: StdRng, heard: &Mutex<Vec<Heard>>) {
        let apis: Vec<Api> = self.ports.iter().map(|port| Api::new(*port)).collect();
        loop {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            while number < asked.len() && number >= self.released.load(Ordering::SeqCst) && !self.is_stopped() {
                thread::sleep(Duration::from_millis(1));
            }
            if number >= asked.len() || self.is_stopped() {
                return;
            }
            let said = self.place(&asked[number], &apis, &mut random);
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

/// Sends it once. Whether that was an error after which it may be repeated.
pub fn ask(api: &Api, asked: &Asked, heard: &mut Heard) -> bool {
    let Asked { key, user, item, price, quantity, .. } = asked;
    let body = json!({"userName": user, "itemName": item, "price": price, "quantity": quantity}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    match api.call("POST", "/orders", &headers, Some(body.as_bytes())) {
        Ok(answer) if answer.status == 202 => match answer.json["orderId"].as_str().and_then(|id| id.parse().ok()) {
            Some(order_id) => heard.accepted.push(order_id),
            None => heard.unexpected.push(format!("202 without an order id: {}", answer.text)),
        },
        Ok(answer) if answer.status == 503 => heard.errors += 1,
        Ok(answer) => heard.unexpected.push(format!("{} {}", answer.status, answer.text)),
        Err(_) => heard.errors += 1,
    }
    heard.accepted.is_empty() && heard.unexpected.is_empty() && heard.errors > 0
}
