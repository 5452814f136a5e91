//! The group-committing writer: one thread stores the orders of many requests in one call. A lone order is stored at
//! once; while a call is under way the next batch gathers.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use shared::backoff;
use shared::config::Config;
use shared::consumer::set_aside::Around;
use shared::db::pool::Connection;
use shared::db::{Connector, Limits, Session};
use shared::error::{Blame, Error, Result};
use shared::event::envelope;
use shared::event::trace::{self, Span};
use shared::event::{Body, Event, Side};
use shared::heartbeat;
use shared::outbox;
use shared::outbox::wake::Waker;
use shared::shutdown::Shutdown;
use shared::waits;
use shared::worker::Worker;
use uuid::Uuid;

use crate::admission::{Admission, Refusal};
use crate::metrics;
use crate::order::{NewOrder, Order};
use crate::store::{self, Placement};

/// Orders in one call: beyond this the commits/s no longer grow.
const BATCH: usize = 300;
/// Orders that may wait for the writer: as many connections wait for its answers, and the others are left for those who
/// ask for something else.
pub const QUEUE: usize = 1_024;
/// The fewest orders that are stored at once where more wait and accepting waits for settling: one by one, each commit would
/// cost as much as that of many.
const WORTHWHILE: usize = 150;
/// Accepting waits for settling for so long at the most, whatever the figures say.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long it waits before it looks again.
const A_MOMENT: Duration = Duration::from_millis(20);
/// An order is tried to be stored for so long; then its outcome is given up as unknown.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The name of what it writes among what waits.
const WAITS_AS: &str = "orders to be stored";

/// What became of a request to place an order.
pub enum Placed {
    /// The order that stands for the request: stored now, or earlier under the same idempotency key.
    Stored(Box<Order>),
    /// The order can't be stored, by its own fault. Nothing was changed.
    Refused(String),
    /// The database does not take it, and why. Nothing was changed.
    NotStored(String),
    /// The database did not answer in time: the order may be stored or not.
    Unknown,
    /// Too many orders wait to be stored. Nothing was changed.
    QueueFull,
}

struct Request {
    order: NewOrder,
    arrived: Instant,
    reply: Box<dyn FnOnce(Placed) + Send>,
}

impl Request {
    fn key(&self) -> Option<&str> {
        self.order.key.as_deref()
    }
}

fn has_keys(batch: &[Request]) -> bool {
    batch.iter().any(|request| request.key().is_some())
}

/// Hands orders to the writer.
#[derive(Clone)]
pub struct Queue {
    requests: Sender<Request>,
    admission: Admission,
}

/// The writer's end.
pub struct Writer {
    queue: Receiver<Request>,
    connection: Connection,
    waker: Waker,
    admission: Admission,
    /// Then requests whose keys' rows somebody holds are refused, and the others do not wait with them.
    around: Around,
    /// Whether what admission goes by could not be read the last time.
    blind: bool,
    /// Whether the last batch could not be stored.
    fails: bool,
    /// Whether every [`Queue`] is gone.
    over: bool,
}

/// The queue and its writer.
///
/// # Errors
/// When the database URL can't be parsed.
pub fn new(config: &Config, waker: Waker, admission: Admission) -> Result<(Queue, Writer)> {
    let (sender, queue) = bounded(QUEUE);
    let held = Receiver::clone(&queue);
    shared::metrics::watch("orders to be stored", QUEUE, move || held.len());
    let connector = Connector::new(&config.database_url, "order-writer", Limits::WORK)?;
    let writer = Writer {
        queue,
        connection: Connection::new(connector),
        waker,
        admission: admission.clone(),
        around: Around::default(),
        blind: false,
        fails: false,
        over: false,
    };
    Ok((
        Queue {
            requests: sender,
            admission,
        },
        writer,
    ))
}

impl Queue {
    /// Whether one more order is admitted. Never blocks.
    ///
    /// # Errors
    /// Why it is not; counted.
    pub fn admit(&self) -> std::result::Result<(), Refusal> {
        self.admission.check(self.requests.len())
    }

    /// Queues an order. `reply` is called once and must not block: by the writer's thread, or at once when the queue is
    /// full.
    pub fn place(&self, order: NewOrder, reply: impl FnOnce(Placed) + Send + 'static) {
        let request = Request {
            order,
            arrived: Instant::now(),
            reply: Box::new(reply),
        };
        if let Err(refused) = self.requests.try_send(request) {
            self.admission.found_no_place();
            (refused.into_inner().reply)(Placed::QueueFull);
        }
    }
}

/// It goes on until every [`Queue`] is gone: requests under way at a stop are answered.
impl Worker for Writer {
    fn goes_on(&self, _: &Shutdown) -> bool {
        !self.over
    }

    fn turn(&mut self, _: &Shutdown) -> Result<Duration> {
        let until_next_poll = self.poll_if_due();
        match self.queue.recv_timeout(until_next_poll) {
            Ok(first) => {
                let room = self.wait_for_room();
                let mut batch = vec![first];
                batch.extend(self.queue.try_iter().take(room - 1));
                self.write(batch);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.over = true,
        }
        Ok(Duration::ZERO)
    }
}

impl Writer {
    /// Reads what admission goes by if it is time to; returns when it is time again.
    fn poll_if_due(&mut self) -> Duration {
        let left = self.admission.until_next_poll();
        if !left.is_zero() {
            return left;
        }
        let (admission, waiting) = (&self.admission, self.queue.len());
        let looked = self
            .connection
            .with(|session| admission.poll(session, waiting));
        // once, however long it lasts
        if let Err(error) = &looked
            && !self.blind
        {
            log::warn!(
                "what admission goes by can't be read, the last figures are used until it can: {error}"
            );
        }
        self.blind = looked.is_err();
        self.admission.until_next_poll()
    }

    /// Settling goes before accepting: waits until there is room for some orders; returns their number.
    fn wait_for_room(&mut self) -> usize {
        let until = Instant::now() + LONGEST_WAIT;
        loop {
            let room = self.admission.room(BATCH);
            if room >= WORTHWHILE.min(1 + self.queue.len()) {
                return room;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return WORTHWHILE;
            }
            let next = self.poll_if_due().min(left).min(A_MOMENT);
            self.admission.wait_for_change(next);
        }
    }

    /// Stores a batch and answers its requests. A batch that fails by an order's fault is stored one by one.
    fn write(&mut self, mut batch: Vec<Request>) {
        if self.around.is_due() && has_keys(&batch) {
            batch = self.without_held_keys(batch);
            if batch.is_empty() {
                return;
            }
        }
        let begun = SystemTime::now();
        match self.store(&batch) {
            Ok(orders) => {
                if std::mem::take(&mut self.fails) {
                    waits::goes_on(&WAITS_AS);
                }
                let stored = batch.iter().filter_map(|Request { order, .. }| {
                    Span::storing(&order.traceparent, order.order_id, begun)
                });
                trace::end("store batch", stored.collect());
                for (request, order) in batch.into_iter().zip(orders) {
                    (request.reply)(Placed::Stored(Box::new(order)));
                }
            }
            Err((error, _)) if error.blame() == Blame::Poison && batch.len() > 1 => {
                batch
                    .into_iter()
                    .for_each(|request| self.write(vec![request]));
            }
            // somebody holds the row of a key: only who repeats its request waits for it
            Err((error, changed_nothing)) if error.is_lock_timeout() && has_keys(&batch) => {
                self.around.held();
                let (late, batch): (Vec<_>, Vec<_>) = batch
                    .into_iter()
                    .partition(|request| request.arrived.elapsed() >= PATIENCE);
                self.give_up(late, &error, changed_nothing);
                if !batch.is_empty() {
                    self.write(batch);
                }
            }
            Err((error, changed_nothing)) => self.give_up(batch, &error, changed_nothing),
        }
    }

    /// Answers the requests whose keys' rows somebody holds, and gives the others back.
    fn without_held_keys(&mut self, batch: Vec<Request>) -> Vec<Request> {
        let keys: Vec<&str> = batch.iter().filter_map(Request::key).collect();
        let held = match self
            .connection
            .with(|session| store::find_held_keys(&mut session.transaction()?, &keys))
        {
            Ok(held) if held.is_empty() => return batch,
            Ok(held) => held,
            // storing them will say the same
            Err(_) => return batch,
        };
        self.around.held();
        let (waiting, free): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|request| request.key().is_some_and(|key| held.contains_key(key)));
        let first = held.values().next().map_or("", String::as_str);
        log::warn!(
            "{} requests are refused, the first waits for {first}",
            waiting.len()
        );
        for request in waiting {
            (request.reply)(Placed::NotStored(
                "somebody holds the row of this idempotency key".into(),
            ));
            self.admission.was_not_stored();
        }
        free
    }

    /// Tries, and after a lost answer tries again with the same ids, until the oldest request has waited too long. An error
    /// comes with whether it is certain that nothing was stored.
    fn store(&mut self, batch: &[Request]) -> std::result::Result<Vec<Order>, (Error, bool)> {
        let mut changed_nothing = true;
        let until = batch[0].arrived + PATIENCE;
        let orders: Vec<&NewOrder> = batch.iter().map(|request| &request.order).collect();
        let messages: Vec<String> = orders
            .iter()
            .map(|order| envelope::to_stored(&requests(order)))
            .collect();
        for attempt in 1.. {
            heartbeat::beat();
            let (waker, admission) = (&self.waker, &self.admission);
            // without a session nothing is tried, and nothing changes
            let placed = self.connection.with(|session| {
                place(session, &orders, &messages, waker, admission)
                    .inspect_err(|error| changed_nothing &= error.changed_nothing())
            });
            let error = match placed {
                Err(error) if error.blame() != Blame::Poison => error,
                done => return done.map_err(|error| (error, changed_nothing)),
            };
            let hung = outbox::end_hanging_writer(&mut self.connection, &error);
            if error.is_lock_timeout() && !hung && has_keys(batch) {
                return Err((error, changed_nothing));
            }
            let pause = backoff::delay(attempt);
            if Instant::now() + pause >= until {
                return Err((error, changed_nothing));
            }
            log::warn!(
                "{} orders are not stored yet (attempt {attempt}, next in {pause:?}): {error}",
                batch.len()
            );
            std::thread::sleep(pause);
        }
        unreachable!("the loop ends by its limit")
    }

    fn give_up(&mut self, batch: Vec<Request>, error: &Error, changed_nothing: bool) {
        if batch.is_empty() {
            return;
        }
        log::error!("{} orders could not be stored: {error}", batch.len());
        if error.blame() != Blame::Poison {
            // where nobody asks any more nobody learns that it goes on
            waits::seen(&WAITS_AS, error.to_string(), 3 * PATIENCE);
            self.fails = true;
        }
        for request in batch {
            (request.reply)(match error.blame() {
                Blame::Poison => Placed::Refused(error.to_string()),
                _ if changed_nothing => Placed::NotStored(error.for_clients()),
                _ => Placed::Unknown,
            });
            self.admission.was_not_stored();
        }
    }
}

fn place(
    session: &mut Session,
    asked: &[&NewOrder],
    messages: &[String],
    waker: &Waker,
    admission: &Admission,
) -> Result<Vec<Order>> {
    let placement = store::place(session, asked, messages)?;
    // before anything else: the relay is on its way while the requests are answered
    let rows = (asked.iter().zip(messages))
        .filter(|(order, _)| placement.placed.contains(&order.order_id))
        .map(|(order, messages)| (order.order_id, messages.clone()));
    waker.wake(placement.appended.as_ref(), rows);
    metrics::placed(placement.placed.len());
    admission.placed(placement.placed.len());
    orders(session, asked, &placement)
}

/// Those that stood before are read; of those placed now all is known.
fn orders(session: &mut Session, asked: &[&NewOrder], placement: &Placement) -> Result<Vec<Order>> {
    let Placement {
        standing,
        placed,
        placed_at,
        appended: _,
    } = placement;
    let earlier: Vec<Uuid> = standing
        .iter()
        .copied()
        .filter(|id| !placed.contains(id))
        .collect();
    let mut known = if earlier.is_empty() {
        HashMap::new()
    } else {
        store::find(session, &earlier)?
    };
    let now = asked
        .iter()
        .filter(|order| placed.contains(&order.order_id));
    known.extend(now.map(|order| (order.order_id, Order::placed(order, placed_at))));
    standing
        .iter()
        .map(|id| {
            known
                .get(id)
                .cloned()
                .ok_or_else(|| Error::Fatal(format!("order {id} was stored and is gone")))
        })
        .collect()
}

/// An order's two messages: one outbox row.
pub fn requests(order: &NewOrder) -> [Event; 2] {
    let traceparent = Some(order.traceparent.clone());
    let payment = Body::PaymentRequested {
        user_name: order.user_name.clone(),
        price: order.price,
    };
    let stock = Body::StockRequested {
        item_name: order.item_name.clone(),
        quantity: order.quantity,
    };
    let payment = Event::new(Side::Payment, order.order_id, payment, traceparent.clone());
    [
        Event {
            idempotency_key: order.key.clone(),
            ..payment
        },
        Event::new(Side::Stock, order.order_id, stock, traceparent),
    ]
}
