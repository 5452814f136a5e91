//! Requests that wait for an order to settle: parked, not held by a worker. One query answers all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use shared::backoff;
use shared::db::Connector;
use shared::db::pool::Connection;
use shared::shutdown::Shutdown;
use shared::{heartbeat, metrics};
use uuid::Uuid;

use crate::order::Order;
use crate::store;

/// Requests that may wait at once.
const PARKED: usize = 1_000;
/// How often the waiting orders are looked at when nothing here settles: another instance may have settled them.
const LOOK: Duration = Duration::from_millis(100);

/// What a waiting request is answered with.
pub enum Waited {
    /// The order: settled, or as it stands when the time is over. None when it could not be read.
    Over(Option<Order>),
    /// Too many requests wait already.
    TooMany,
}

type Reply = Box<dyn FnOnce(Waited) + Send>;

struct Waiter {
    order_id: Uuid,
    until: Instant,
    reply: Reply,
}

/// Parks requests, and has them looked at.
#[derive(Clone)]
pub struct Waiters {
    park: Sender<Waiter>,
    look: Sender<()>,
    /// Requests parked and not answered.
    open: Arc<AtomicUsize>,
}

/// The ends that the waiting room's thread holds.
pub struct WaitingRoom {
    parked: Receiver<Waiter>,
    look: Receiver<()>,
    connection: Connection,
    waiting: Vec<Waiter>,
    open: Arc<AtomicUsize>,
}

/// The waiters and their room.
pub fn new(connector: Connector) -> (Waiters, WaitingRoom) {
    let (park, parked) = bounded(PARKED);
    let (look_sender, look) = bounded(1);
    let open: Arc<AtomicUsize> = Arc::default();
    let held = Arc::clone(&open);
    metrics::watch("requests that wait for an order", PARKED, move || {
        held.load(Ordering::SeqCst)
    });
    let connection = Connection::new(connector);
    let room = WaitingRoom {
        parked,
        look,
        connection,
        waiting: Vec::new(),
        open: Arc::clone(&open),
    };
    (
        Waiters {
            park,
            look: look_sender,
            open,
        },
        room,
    )
}

impl Waiters {
    /// Parks a request. `reply` is called once and must not block: as soon as the order is settled, after `wait`, or at
    /// once when too many wait.
    pub fn park(
        &self,
        order_id: Uuid,
        wait: Duration,
        reply: impl FnOnce(Waited) + Send + 'static,
    ) {
        let waiter = Waiter {
            order_id,
            until: Instant::now() + wait,
            reply: Box::new(reply),
        };
        self.open.fetch_add(1, Ordering::SeqCst);
        if let Err(refused) = self.park.try_send(waiter) {
            self.open.fetch_sub(1, Ordering::SeqCst);
            (refused.into_inner().reply)(Waited::TooMany);
        }
    }

    /// Has the waiting orders looked at, if there are any: some may have settled. Never blocks. Who is counted only after
    /// this is looked at when it is parked, which is after what the caller has committed.
    pub fn look(&self) {
        if self.open.load(Ordering::SeqCst) > 0 {
            let _ = self.look.try_send(());
        }
    }
}

impl WaitingRoom {
    /// Answers until it is time to stop; then answers all who still wait with what is known.
    pub fn run(&mut self, shutdown: &Shutdown) {
        let mut failures = 0;
        while !shutdown.is_set() {
            heartbeat::beat();
            self.gather(shutdown);
            if self.waiting.is_empty() {
                continue;
            }
            failures = if self.answer_settled(shutdown.is_set()) {
                0
            } else {
                failures + 1
            };
            if failures > 0 {
                shutdown.wait(backoff::delay(failures));
            }
        }
        self.waiting.extend(self.parked.try_iter());
        if !self.waiting.is_empty() {
            self.answer_settled(true);
        }
    }

    /// Waits for the next reason to look. The queue and the room together hold [`PARKED`] requests twice over at most.
    fn gather(&mut self, shutdown: &Shutdown) {
        let room = if self.waiting.len() < PARKED {
            self.parked.clone()
        } else {
            crossbeam_channel::never()
        };
        let next = self
            .waiting
            .iter()
            .map(|waiter| waiter.until)
            .min()
            .unwrap_or(Instant::now() + Duration::from_secs(3_600));
        let limit = if self.waiting.is_empty() {
            heartbeat::IDLE
        } else {
            LOOK
        };
        select! {
            recv(room) -> waiter => self.waiting.extend(waiter),
            recv(self.look) -> _ => {}
            recv(shutdown.receiver()) -> _ => {}
            default(limit.min(next.saturating_duration_since(Instant::now()))) => {}
        }
        let free = PARKED.saturating_sub(self.waiting.len());
        self.waiting.extend(self.parked.try_iter().take(free));
    }

    /// False when the orders could not be read.
    fn answer_settled(&mut self, all: bool) -> bool {
        let order_ids: Vec<Uuid> = self.waiting.iter().map(|waiter| waiter.order_id).collect();
        let found = self
            .connection
            .with(|session| store::find(session, &order_ids));
        let readable = found.is_ok();
        if let Err(error) = &found {
            log::warn!("the waiting orders could not be read: {error}");
        }
        let found: HashMap<Uuid, Order> = found.unwrap_or_default();
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiting) {
            let order = found.get(&waiter.order_id);
            if all || waiter.until <= now || order.is_some_and(|order| order.saga.is_settled()) {
                self.open.fetch_sub(1, Ordering::SeqCst);
                (waiter.reply)(Waited::Over(order.cloned()));
            } else {
                self.waiting.push(waiter);
            }
        }
        readable
    }
}
