//! Orders placed by threads, each with a keep-alive connection of its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Value, json};
use shared::config::Config;
use shared::event::Service;
use uuid::Uuid;

use crate::client::Client;
use crate::figures;

/// Users, and items: enough that a row lock is rarely waited for, few enough that batches meet the same ones.
const NAMES: usize = 100;
/// Put into each account and item: no run empties one.
pub const PUT_IN: i64 = 1_000_000_000_000;

/// When the next order is placed.
pub enum Pace {
    /// As soon as the connection's last one was answered.
    AsAnswered,
    /// So many a second, whether or not answers come.
    Rate(usize),
}

/// What is placed.
pub struct Load {
    /// In all.
    pub orders: usize,
    /// Threads.
    pub connections: usize,
    /// Percent.
    pub failing: usize,
    /// When.
    pub pace: Pace,
}

/// An accepted order.
pub struct Placed {
    /// Its id.
    pub order_id: Uuid,
    /// When its POST was sent, or was meant to be.
    pub start: Instant,
    /// When its 202 was read.
    pub answered: Instant,
    /// Whether one side must fail.
    pub must_fail: bool,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Load { orders, connections, failing, pace } = self;
        let pace = match pace {
            Pace::AsAnswered => "as fast as they are answered".to_string(),
            Pace::Rate(rate) => format!("{rate} a second"),
        };
        write!(
            f,
            "{orders} orders, {pace}, by {connections} connections; {failing} % must fail; {NAMES} users, {NAMES} items"
        )
    }
}

fn client(service: Service) -> Result<Client, String> {
    Ok(Client::new(&Config::from_env(service).map_err(|error| error.to_string())?))
}

impl Load {
    /// Users and items for this run alone, all with plenty, and an item without stock. Answers what their names end with.
    ///
    /// # Errors
    /// The calls'.
    pub fn put_in(&self) -> Result<String, String> {
        let suffix = Uuid::now_v7().simple().to_string();
        client(Service::Order)?.get("/orders?limit=1").map_err(|error| format!("{error}; is the system running?"))?;
        let (payment, stock) = (client(Service::Payment)?, client(Service::Stock)?);
        for number in 0..NAMES {
            payment.put(&format!("/accounts/bench-{number}-{suffix}"), &json!({ "balance": PUT_IN }))?;
            stock.put(&format!("/items/bench-{number}-{suffix}"), &json!({ "quantity": PUT_IN }))?;
        }
        stock.put(&format!("/items/bench-empty-{suffix}"), &json!({ "quantity": 0 }))?;
        Ok(suffix)
    }

    /// Places all orders; answers the accepted ones, and why others were not.
    ///
    /// # Errors
    /// Bad settings.
    pub fn run(&self, suffix: &str) -> Result<(Vec<Placed>, Vec<String>), String> {
        let clients: Vec<Client> = (0..self.connections).map(|_| client(Service::Order)).collect::<Result<_, _>>()?;
        let (next, results, bar) =
            (AtomicUsize::new(0), Mutex::new((vec![], vec![])), figures::bar("placed", self.orders));
        let began = Instant::now();
        std::thread::scope(|scope| {
            for client in &clients {
                let work = || {
                    let mine = self.work(client, suffix, began, &next, &bar);
                    let mut all = results.lock().expect("no thread panics with it");
                    all.0.extend(mine.0);
                    all.1.extend(mine.1);
                };
                scope.spawn(work);
            }
        });
        bar.finish_and_clear();
        Ok(results.into_inner().expect("no thread panicked"))
    }

    fn work(
        &self,
        client: &Client,
        suffix: &str,
        began: Instant,
        next: &AtomicUsize,
        bar: &ProgressBar,
    ) -> (Vec<Placed>, Vec<String>) {
        let (mut placed, mut refused) = (vec![], vec![]);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.orders {
                return (placed, refused);
            }
            let (order, must_fail) = self.order(number, suffix);
            let start = self.start(number, began);
            match client.place(&order).and_then(|answer| order_id(&answer)) {
                Ok(order_id) => placed.push(Placed { order_id, start, answered: Instant::now(), must_fail }),
                Err(error) => refused.push(error),
            }
            bar.inc(1);
        }
    }

    /// Now, or the intended moment once it has come: if all connections are busy, that it is late counts.
    fn start(&self, number: usize, began: Instant) -> Instant {
        let Pace::Rate(rate) = self.pace else { return Instant::now() };
        let intended = began + Duration::from_secs_f64(number as f64 / rate as f64);
        std::thread::sleep(intended.saturating_duration_since(Instant::now()));
        intended
    }

    /// Order `number`, and whether a side must fail: payment (unknown user) and stock (empty item) in turn.
    fn order(&self, number: usize, suffix: &str) -> (Value, bool) {
        let must_fail = (number * self.failing) / 100 != ((number + 1) * self.failing) / 100;
        let by_payment = ((number * self.failing) / 100).is_multiple_of(2);
        let (user, item) = (number % NAMES, number / NAMES % NAMES);
        let (mut user, mut item) = (format!("bench-{user}-{suffix}"), format!("bench-{item}-{suffix}"));
        match (must_fail, by_payment) {
            (true, true) => user = format!("bench-nobody-{suffix}"),
            (true, false) => item = format!("bench-empty-{suffix}"),
            _ => {}
        }
        (
            json!({"userName": user, "itemName": item, "price": 100 + number % 900, "quantity": 1 + number % 5}),
            must_fail,
        )
    }
}

fn order_id(answer: &Value) -> Result<Uuid, String> {
    answer["orderId"].as_str().and_then(|id| id.parse().ok()).ok_or(format!("no orderId in {answer}"))
}
