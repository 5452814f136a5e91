//! Orders placed by threads, each with a keep-alive connection of its own.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::wire::WireAnswer;
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use crate::http::Connection;

/// One order in so many must fail on a side: payment (unknown user) and stock (empty item) in turn.
const FAILING: usize = 10;
/// So long a client asks again.
const REPEATED_FOR: Duration = Duration::from_secs(30);
const REPEAT_PAUSE: Duration = Duration::from_millis(5);
/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(200);

/// Who orders what.
#[derive(Clone, Copy)]
pub struct Names {
    /// Users, in turn.
    pub users: usize,
    /// Items, in turn, each for three orders.
    pub items: usize,
}

/// Enough that a row lock is rarely waited for, few enough that batches meet the same ones.
pub const NAMES: Names = Names {
    users: 100,
    items: 100,
};

/// When the next order is placed.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As soon as the connection's last one was answered.
    AsAnswered,
    /// So many a second, whether or not answers come.
    Rate(f64),
}

/// What is placed.
pub struct Load {
    /// The order service's instances.
    pub ports: Vec<u16>,
    /// Keep-alive connections, a thread each.
    pub connections: usize,
    /// Who orders what.
    pub names: Names,
    /// Each order has a key and is asked for again, of the next instance, until one accepts it.
    pub repeats: bool,
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

/// What came of a load.
pub struct Done {
    /// When it began.
    pub began: Instant,
    /// The accepted orders.
    pub placed: Vec<Placed>,
    /// How many others were not.
    pub refused: usize,
}

/// An order as it is asked for.
pub struct Asked {
    /// Whose balance.
    pub user: String,
    /// Which item.
    pub item: String,
    /// The whole amount.
    pub price: i64,
    /// How many items.
    pub quantity: i64,
    /// Whether one side must fail.
    pub must_fail: bool,
}

impl Names {
    /// Order `number`; some must fail.
    pub fn order(self, number: usize) -> Asked {
        let sound = self.sound_order(number);
        let (must_fail, by_payment) = (
            number % FAILING == FAILING - 1,
            (number / FAILING).is_multiple_of(2),
        );
        match (must_fail, by_payment) {
            (true, true) => Asked {
                user: "nobody".into(),
                must_fail,
                ..sound
            },
            (true, false) => Asked {
                item: "empty".into(),
                must_fail,
                ..sound
            },
            _ => sound,
        }
    }

    /// The same if none fails.
    pub fn sound_order(self, number: usize) -> Asked {
        Asked {
            user: format!("user-{}", number % self.users),
            item: format!("item-{}", number / 3 % self.items),
            price: 100 + number as i64 % 900,
            quantity: 1 + number as i64 % 5,
            must_fail: false,
        }
    }
}

impl Asked {
    /// The body of its POST.
    pub fn json(&self) -> String {
        let Asked {
            user,
            item,
            price,
            quantity,
            ..
        } = self;
        format!(
            r#"{{"userName":"{user}","itemName":"{item}","price":{price},"quantity":{quantity}}}"#
        )
    }
}

/// What the threads share.
struct Course {
    pace: Pace,
    time: Duration,
    began: Instant,
    next: AtomicUsize,
}

impl Load {
    /// Places orders for so long.
    ///
    /// # Errors
    /// A connection that breaks.
    pub fn run(&self, title: &str, pace: Pace, time: Duration) -> Result<Done, String> {
        let clients: Vec<Client<'_>> = (0..self.connections)
            .map(|number| self.client(number))
            .collect::<io::Result<_>>()
            .map_err(broken)?;
        let course = Course {
            pace,
            time,
            began: Instant::now(),
            next: AtomicUsize::new(0),
        };
        let mut done = Done {
            began: course.began,
            placed: vec![],
            refused: 0,
        };
        std::thread::scope(|scope| {
            let work = |client| scope.spawn(|| course.work(client, self.names));
            let threads: Vec<_> = clients.into_iter().map(work).collect();
            let count = || course.next.load(Ordering::Relaxed);
            show_progress(title, (course.began, time), count, || {
                threads.iter().all(|thread| thread.is_finished())
            });
            for thread in threads {
                let (placed, refused) = thread.join().expect("no thread panics").map_err(broken)?;
                done.placed.extend(placed);
                done.refused += refused;
            }
            Ok(done)
        })
    }

    fn client(&self, number: usize) -> io::Result<Client<'_>> {
        let turn = number % self.ports.len();
        Ok(Client {
            load: self,
            turn,
            connection: Connection::open(self.ports[turn])?,
        })
    }
}

/// A connection, and where to go on without it.
struct Client<'a> {
    load: &'a Load,
    turn: usize,
    connection: Connection,
}

impl Client<'_> {
    /// The accepted order's id; none if it was refused.
    fn place(&mut self, order: &Asked) -> io::Result<Option<Uuid>> {
        let accepted = |answer: &WireAnswer| answer.order_id.filter(|_| answer.status == 202);
        if !self.load.repeats {
            return Ok(accepted(&self.connection.post(
                "/orders",
                &[],
                &order.json(),
            )?));
        }
        let key = Uuid::now_v7().to_string();
        let end = Instant::now() + REPEATED_FOR;
        loop {
            let answer =
                self.connection
                    .post("/orders", &[("Idempotency-Key", &key)], &order.json());
            if let Some(order_id) = answer.as_ref().ok().and_then(accepted) {
                return Ok(Some(order_id));
            }
            self.turn = (self.turn + 1) % self.load.ports.len();
            match Connection::open(self.load.ports[self.turn]) {
                Ok(connection) => self.connection = connection,
                Err(error) if Instant::now() > end => return Err(error),
                // both are away for a moment
                Err(_) => std::thread::sleep(REPEAT_PAUSE),
            }
            if Instant::now() > end {
                return Ok(None);
            }
        }
    }
}

/// As an error of ours.
pub fn broken(error: io::Error) -> String {
    format!("the connection to the order service: {error}")
}

impl Course {
    fn work(&self, mut client: Client<'_>, names: Names) -> io::Result<(Vec<Placed>, usize)> {
        let (mut placed, mut refused) = (vec![], 0);
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(start) = self.start(number) else {
                return Ok((placed, refused));
            };
            let order = names.order(number);
            match client.place(&order)? {
                Some(order_id) => {
                    placed.push(Placed {
                        order_id,
                        start,
                        answered: Instant::now(),
                        must_fail: order.must_fail,
                    });
                }
                None => refused += 1,
            }
        }
    }

    /// Now, or the intended moment once it has come: if all connections are busy, that it is late counts. None: over.
    fn start(&self, number: usize) -> Option<Instant> {
        let start = match self.pace {
            Pace::AsAnswered => Instant::now(),
            Pace::Rate(rate) => self.began + Duration::from_secs_f64(number as f64 / rate),
        };
        let in_time = start < self.began + self.time;
        in_time.then(|| {
            std::thread::sleep(start.saturating_duration_since(Instant::now()));
            start
        })
    }
}

/// Until all threads have ended; invisible where the output is no terminal.
pub fn show_progress(
    title: &str,
    (began, time): (Instant, Duration),
    count: impl Fn() -> usize,
    ended: impl Fn() -> bool,
) {
    let style =
        ProgressStyle::with_template("{prefix:24} {wide_bar} {elapsed} of {len} s, {msg} orders");
    let bar = ProgressBar::new(time.as_secs()).with_style(style.expect("a valid template"));
    bar.set_prefix(title.to_string());
    while !ended() {
        bar.set_position(began.elapsed().as_secs());
        bar.set_message(count().to_string());
        std::thread::sleep(TICK);
    }
    bar.finish_and_clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_order_must_fail_by_payment_and_stock_in_turn() {
        let orders: Vec<Asked> = (0..1000).map(|number| NAMES.order(number)).collect();
        assert_eq!(orders.iter().filter(|order| order.must_fail).count(), 100);
        assert_eq!(
            orders.iter().filter(|order| order.user == "nobody").count(),
            50
        );
        assert_eq!(
            orders.iter().filter(|order| order.item == "empty").count(),
            50
        );
    }

    #[test]
    fn one_user_has_all_orders_of_all_items() {
        let orders: Vec<Asked> = (0..1000)
            .map(|number| Names { users: 1, items: 7 }.order(number))
            .collect();
        assert!(
            orders
                .iter()
                .all(|order| order.user == "user-0" || order.user == "nobody")
        );
        assert!((0..7).all(|item| {
            orders
                .iter()
                .any(|order| order.item == format!("item-{item}"))
        }));
    }
}
