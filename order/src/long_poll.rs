//! Long polls: requests that wait for an order to settle, without a worker. One query answers all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use shared::db::Connector;
use shared::db::pool::Connection;
use shared::error::{Error, Result};
use shared::shutdown::Shutdown;
use shared::worker::Worker;
use shared::{heartbeat, metrics};
use uuid::Uuid;

use crate::order::Order;
use crate::store;

/// Requests that may wait at once.
const CAPACITY: usize = 1_000;
/// How often the waiting orders are looked at when nothing here settles: another instance may have settled them.
const INTERVAL: Duration = Duration::from_millis(100);

/// What a waiting request is answered with.
pub enum Waited {
    /// The order: settled, or as it stands when the time is over. None when it could not be read.
    Over(Option<Order>),
    /// Too many requests wait already.
    TooMany,
}

struct LongPoll {
    order_id: Uuid,
    until: Instant,
    reply: Box<dyn FnOnce(Waited) + Send>,
}

/// Adds long polls, and has their orders checked.
#[derive(Clone)]
pub struct LongPolls {
    add: Sender<LongPoll>,
    check: Sender<()>,
    /// Requests not answered yet.
    open: Arc<AtomicUsize>,
}

/// What the thread holds that answers them.
pub struct LongPoller {
    added: Receiver<LongPoll>,
    check: Receiver<()>,
    connection: Connection,
    waiting: Vec<LongPoll>,
    open: Arc<AtomicUsize>,
}

/// The long polls, and what answers them.
pub fn new(connector: Connector) -> (LongPolls, LongPoller) {
    let (add, added) = bounded(CAPACITY);
    let (check_sender, check) = bounded(1);
    let open: Arc<AtomicUsize> = Arc::default();
    let held = Arc::clone(&open);
    metrics::watch("requests that wait for an order", CAPACITY, move || {
        held.load(Ordering::SeqCst)
    });
    let connection = Connection::new(connector);
    let poller = LongPoller {
        added,
        check,
        connection,
        waiting: Vec::new(),
        open: Arc::clone(&open),
    };
    (
        LongPolls {
            add,
            check: check_sender,
            open,
        },
        poller,
    )
}

impl LongPolls {
    /// Adds a request. `reply` is called once and must not block: as soon as the order is settled, after `wait`, or at
    /// once when too many wait.
    pub fn add(&self, order_id: Uuid, wait: Duration, reply: impl FnOnce(Waited) + Send + 'static) {
        let poll = LongPoll {
            order_id,
            until: Instant::now() + wait,
            reply: Box::new(reply),
        };
        self.open.fetch_add(1, Ordering::SeqCst);
        if let Err(refused) = self.add.try_send(poll) {
            self.open.fetch_sub(1, Ordering::SeqCst);
            (refused.into_inner().reply)(Waited::TooMany);
        }
    }

    /// Has the waiting orders checked, if there are any: some may have settled. Never blocks. A request that is counted only
    /// after this is checked when it is added. That happens after the caller's commit, so none is missed.
    pub fn check(&self) {
        if self.open.load(Ordering::SeqCst) > 0 {
            let _ = self.check.try_send(());
        }
    }
}

/// At the stop all who still wait are answered with what is known.
impl Worker for LongPoller {
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        self.gather(shutdown);
        if !self.waiting.is_empty() {
            self.answer_settled(false)?;
        }
        Ok(Duration::ZERO)
    }

    fn report(&mut self, error: &Error, _: u32, _: Duration) {
        log::warn!("the waiting orders could not be read: {error}");
    }

    fn end(&mut self) {
        self.waiting.extend(self.added.try_iter());
        if !self.waiting.is_empty()
            && let Err(error) = self.answer_settled(true)
        {
            self.report(&error, 1, Duration::ZERO);
        }
    }
}

impl LongPoller {
    /// Waits for the next reason to check. The queue and `waiting` together hold [`CAPACITY`] requests twice over at most.
    fn gather(&mut self, shutdown: &Shutdown) {
        let added = if self.waiting.len() < CAPACITY {
            self.added.clone()
        } else {
            crossbeam_channel::never()
        };
        let next = self
            .waiting
            .iter()
            .map(|poll| poll.until)
            .min()
            .unwrap_or(Instant::now() + Duration::from_secs(3_600));
        let limit = if self.waiting.is_empty() {
            heartbeat::IDLE
        } else {
            INTERVAL
        };
        select! {
            recv(added) -> poll => self.waiting.extend(poll),
            recv(self.check) -> _ => {}
            recv(shutdown.receiver()) -> _ => {}
            default(limit.min(next.saturating_duration_since(Instant::now()))) => {}
        }
        let free = CAPACITY.saturating_sub(self.waiting.len());
        self.waiting.extend(self.added.try_iter().take(free));
    }

    /// Answers those whose order is settled or whose time is over; where `all`, all.
    fn answer_settled(&mut self, all: bool) -> Result<()> {
        let order_ids: Vec<Uuid> = self.waiting.iter().map(|poll| poll.order_id).collect();
        let read = self
            .connection
            .with(|session| store::find(session, &order_ids));
        let (found, failed) = match read {
            Ok(found) => (found, None),
            Err(error) => (HashMap::new(), Some(error)),
        };
        let now = Instant::now();
        for poll in std::mem::take(&mut self.waiting) {
            let order = found.get(&poll.order_id);
            if all || poll.until <= now || order.is_some_and(|order| order.saga.is_settled()) {
                self.open.fetch_sub(1, Ordering::SeqCst);
                (poll.reply)(Waited::Over(order.cloned()));
            } else {
                self.waiting.push(poll);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
