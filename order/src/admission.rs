//! Admission: `POST /orders` accepts what can be settled well within its deadline, and settling goes before accepting
//! (I10).
//!
//! Every session counts the orders that it places and settles in `order_flow`, in a row of its own for each second in
//! which ids were drawn. So no session waits for another, and no row is changed for ever. The sum over the last seconds
//! is what waits, on every instance alike; each adds what it has placed and settled since. What a busy system settles
//! is its capacity. From both follows ([`estimate`]) how long a new order would wait:
//!
//! | the system | a new order |
//! | --- | --- |
//! | settles what comes | is stored at once |
//! | is saturated: more than a window (half a second's work) waits for its turn | waits, too: as many are stored as are settled, because accepting needs the same processors |
//! | stands still: a part of it is away, which is no overload | is stored at once, for what waits is settled quickly afterwards |
//! | has more waiting than it can settle within `ADMISSION_LIMIT` | is refused |
//! | has stood still for half of the deadline, and more than two seconds' work waits | is refused |
//!
//! While orders are refused and none is settled, one a second is admitted: it shows when the system is back.
//!
//! [`Admission::check`] decides before a request's body is read; the body of a refused one is thrown away. Its answer
//! comes after 0.2 s, of many one each two milliseconds (`shared::http`). Clients that repeat at once would otherwise
//! take the processors from accepted orders. The writer ([`crate::writer`]) waits for [`Admission::room`] and keeps the
//! figures up to date by [`Admission::poll`].

pub mod estimate;
pub mod metrics;
pub mod store;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use shared::db::Session;
use shared::error::Result;

use estimate::Estimate;

/// How often the figures are read while a good part of the window is used ...
const BUSY: Duration = Duration::from_millis(100);
/// ... while orders come ...
const CALM: Duration = Duration::from_millis(500);
/// ... and while none do: another instance may have placed some.
const IDLE: Duration = Duration::from_secs(1);
/// How often seconds that nothing can be added to are removed.
const REMOVE_EVERY: f64 = 10.0;
/// A second may still grow for so long, in seconds: its orders wait for the writer, and its clock may lag behind ours.
const STAYS_OPEN: f64 = 30.0;
/// While all are refused and nothing is settled, one order is admitted so often.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Of what is settled, so much is accepted while more than a window is under way: what waits becomes less.
const SHARE: f64 = 0.9;
/// Refusals show for so long: above capacity some orders are admitted between those that are refused.
const SHOWN: Duration = Duration::from_secs(1);
/// Sessions that have placed orders in so many seconds share what may be accepted.
const WRITERS_SPAN: i64 = 3;

/// Why an order is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What waits takes longer to settle than orders may wait; the seconds until it does no more.
    Backlog(u32),
    /// A part of the system is away, and what is placed now might come too late.
    Outage,
    /// Too many orders wait to be stored on this instance.
    Queue,
    /// The database did not store it in time.
    Database,
}

impl Refusal {
    /// One of each.
    pub const ALL: [Refusal; 4] = [
        Refusal::Backlog(0),
        Refusal::Outage,
        Refusal::Queue,
        Refusal::Database,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Backlog(_) => "backlog",
            Refusal::Outage => "outage",
            Refusal::Queue => "queue",
            Refusal::Database => "database",
        }
    }
}

/// Decides whether orders are admitted, and when they are stored.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    view: Mutex<View>,
    /// Orders were settled, or the figures were read: there may be room.
    changed: Condvar,
    limit: Duration,
    deadline: Duration,
    /// Orders that may wait for this instance's writer.
    queue: usize,
}

struct View {
    estimate: Estimate,
    looked_at: Instant,
    next_look: Duration,
    removed_at: f64,
    /// Sessions that place orders, over all instances.
    writers: i64,
    /// What this instance has placed and settled since the figures were read.
    placed: i64,
    settled: i64,
    probed_at: Option<Instant>,
    /// Orders that wait for this instance's writer, as seen last.
    waiting: usize,
    refused: u64,
    last_refusal: Option<(Refusal, Instant)>,
}

impl Admission {
    /// `limit`: how long what waits may take to settle; `deadline`: of an order; `queue`: how many may wait for this
    /// instance's writer.
    pub fn new(limit: Duration, deadline: Duration, queue: usize) -> Admission {
        let view = View {
            estimate: Estimate::new(limit, deadline),
            looked_at: Instant::now(),
            next_look: Duration::ZERO,
            removed_at: 0.0,
            writers: 1,
            placed: 0,
            settled: 0,
            probed_at: None,
            waiting: 0,
            refused: 0,
            last_refusal: None,
        };
        Admission(Arc::new(Shared {
            view: Mutex::new(view),
            changed: Condvar::new(),
            limit,
            deadline,
            queue,
        }))
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.0.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more order is admitted, while `waiting` others wait to be stored. Never blocks.
    ///
    /// # Errors
    /// Why it is not; counted.
    pub fn check(&self, waiting: usize) -> std::result::Result<(), Refusal> {
        let (mut view, now) = (self.view(), seconds_since_1970());
        view.waiting = waiting;
        let refusal = if waiting >= self.0.queue {
            Some(Refusal::Queue)
        } else {
            view.refusal(waiting, now)
        };
        let Some(refusal) =
            refusal.filter(|refusal| *refusal == Refusal::Queue || !view.probes(now))
        else {
            return Ok(());
        };
        view.refused(refusal);
        Err(refusal)
    }

    /// An order that was admitted found no place in the queue: others were faster.
    pub fn found_no_place(&self) {
        self.view().refused(Refusal::Queue);
    }

    /// An order that was admitted could not be stored.
    pub fn was_not_stored(&self) {
        self.view().refused(Refusal::Database);
    }

    /// So many orders were stored by this instance.
    pub fn placed(&self, count: usize) {
        self.view().placed += count as i64;
    }

    /// So many orders were settled by this instance, whichever has placed them.
    pub fn settled(&self, count: usize) {
        if count > 0 {
            self.view().settled += count as i64;
            self.0.changed.notify_all();
        }
    }

    /// How many orders may be stored now, up to `most`. 0: accepting waits for settling.
    pub fn room(&self, most: usize) -> usize {
        self.view().room(seconds_since_1970()).min(most)
    }

    /// Waits until there may be room, at most for `limit`.
    pub fn wait_for_change(&self, limit: Duration) {
        drop(self.0.changed.wait_timeout(self.view(), limit));
    }

    /// How long until the figures are to be read again.
    pub fn until_next_poll(&self) -> Duration {
        let view = self.view();
        view.next_look.saturating_sub(view.looked_at.elapsed())
    }

    /// Reads the figures, and now and then removes seconds that are over. `waiting` orders wait to be stored.
    ///
    /// # Errors
    /// What PostgreSQL says; the figures stay as they were, and are read again soon.
    pub fn poll(&self, session: &mut Session, waiting: usize) -> Result<()> {
        let now = seconds_since_1970();
        let (horizon, removed_at) = {
            let mut view = self.view();
            view.looked_at = Instant::now();
            view.next_look = CALM;
            (view.estimate.horizon(now), view.removed_at)
        };
        let (flow, writers) = store::read(session, horizon, now as i64 - WRITERS_SPAN)?;
        let mut view = self.view();
        view.estimate.look(now, &flow);
        let calm = view.placed == 0 && view.estimate.in_flight == 0;
        // a commit between the statement above and this moment is counted twice, until the next poll
        (view.placed, view.settled, view.writers) = (0, 0, writers.max(1));
        view.waiting = waiting;
        let used = view.estimate.queued as f64 > view.estimate.window() / 4.0;
        view.next_look = if used {
            BUSY
        } else if calm {
            IDLE
        } else {
            CALM
        };
        self.show(&view);
        drop(view);
        self.0.changed.notify_all();
        if (now - removed_at).abs() >= REMOVE_EVERY {
            store::remove_passed(
                session,
                (now - STAYS_OPEN) as i64,
                (now - self.0.deadline.as_secs_f64()) as i64,
            )?;
            self.view().removed_at = now;
        }
        Ok(())
    }

    fn show(&self, view: &View) {
        let is_open = view.refuses(seconds_since_1970()).is_none();
        metrics::show(
            is_open,
            view.in_flight(),
            view.estimate.limit(),
            view.estimate.capacity,
            view.wait(),
        );
    }

    /// What is known, for `/overview`.
    pub fn overview(&self) -> Value {
        let view = self.view();
        let refuses = view.refuses(seconds_since_1970());
        json!({
            "open": refuses.is_none(),
            "reason": refuses.map(Refusal::name),
            "inFlight": view.in_flight(),
            "limit": view.estimate.limit() as i64,
            "capacity": view.estimate.capacity.round() as i64,
            "waitSeconds": (view.wait() * 1e3).round() / 1e3,
            "limitSeconds": self.0.limit.as_secs_f64(),
            "refused": view.refused,
        })
    }
}

impl View {
    fn refused(&mut self, refusal: Refusal) {
        self.refused += 1;
        self.last_refusal = Some((refusal, Instant::now()));
        metrics::refused(refusal);
    }

    fn in_flight(&self) -> i64 {
        (self.estimate.in_flight + self.placed - self.settled).max(0)
    }

    /// How long a new order would wait until it is settled: those that are not stored yet are before it.
    fn wait(&self) -> f64 {
        (self.in_flight() as f64 + self.waiting as f64) / self.estimate.capacity
    }

    /// Why orders are refused now, or were a moment ago.
    fn refuses(&self, now: f64) -> Option<Refusal> {
        let lately = self
            .last_refusal
            .filter(|(_, at)| at.elapsed() < SHOWN)
            .map(|(refusal, _)| refusal);
        lately.or_else(|| self.refusal(self.waiting, now))
    }

    fn refusal(&self, waiting: usize, now: f64) -> Option<Refusal> {
        let beyond = self.in_flight() as f64 + waiting as f64 - self.estimate.limit();
        if beyond > 0.0 {
            let seconds = (beyond / self.estimate.capacity).ceil().clamp(1.0, 60.0);
            return Some(Refusal::Backlog(seconds as u32));
        }
        self.estimate.is_outage(now).then_some(Refusal::Outage)
    }

    /// Whether this is the order to be admitted all the same, because nothing else shows when the system is back.
    fn probes(&mut self, now: f64) -> bool {
        let is_due = self
            .probed_at
            .is_none_or(|probed_at| probed_at.elapsed() >= PROBE_EVERY);
        let probes = is_due && self.estimate.is_stalled(now);
        if probes {
            self.probed_at = Some(Instant::now());
        }
        probes
    }

    /// Within the window there is room for all of it; beyond it for a share of what was settled since the last look. Orders that
    /// younger ones have overtaken take none of it: what they wait for hinders nobody else.
    fn room(&self, now: f64) -> usize {
        if self.estimate.is_stalled(now) {
            return usize::MAX;
        }
        let queued = self.estimate.queued + self.placed - self.settled;
        let free = self.estimate.window() - queued.max(0) as f64;
        let lately = self.estimate.rate * self.looked_at.elapsed().as_secs_f64() * SHARE
            / self.writers as f64;
        free.max(lately - self.placed as f64).max(0.0) as usize
    }
}

fn seconds_since_1970() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use estimate::Second;

    const NOW: i64 = 1_800_000_000;

    fn admission() -> Admission {
        Admission::new(Duration::from_secs(2), Duration::from_secs(8), 100)
    }

    /// Seconds by their age, with what was placed and settled.
    fn seen(admission: &Admission, now: i64, seconds: &[(i64, i64, i64)]) {
        let flow: Vec<Second> = seconds
            .iter()
            .map(|(age, placed, settled)| Second {
                second: NOW + now - age,
                placed: *placed,
                settled: *settled,
            })
            .collect();
        admission.view().estimate.look((NOW + now) as f64, &flow);
    }

    fn refusal(admission: &Admission, waiting: usize) -> Option<Refusal> {
        admission.view().refusal(waiting, NOW as f64)
    }

    fn room(admission: &Admission) -> usize {
        admission.view().room(NOW as f64)
    }

    #[test]
    fn orders_are_admitted_until_those_under_way_and_those_that_wait_take_too_long() {
        let admission = admission();
        seen(&admission, 0, &[(0, 950, 0)]);
        assert_eq!(
            refusal(&admission, 50),
            None,
            "two seconds at the assumed 500 a second"
        );
        assert_eq!(refusal(&admission, 51), Some(Refusal::Backlog(1)));
        admission.placed(3_000);
        assert_eq!(refusal(&admission, 0), Some(Refusal::Backlog(6)));
        admission.settled(3_001);
        assert_eq!(refusal(&admission, 50), None);
    }

    #[test]
    fn a_full_queue_refuses_whatever_else_is_the_case_and_refusals_are_counted() {
        let admission = admission();
        assert_eq!(admission.check(99), Ok(()));
        assert_eq!(admission.check(100), Err(Refusal::Queue));
        assert_eq!(admission.overview()["refused"], 1);
    }

    #[test]
    fn refusals_show_for_a_moment_with_what_waits_to_be_stored() {
        let admission = admission();
        let shown = |what: &str| admission.overview()[what].clone();
        assert_eq!((shown("open"), shown("reason")), (json!(true), Value::Null));
        assert_eq!(admission.check(100), Err(Refusal::Queue));
        // for as long as this test may take
        admission.view().last_refusal = Some((Refusal::Queue, Instant::now() + 60 * SHOWN));
        assert_eq!(
            (shown("open"), shown("reason")),
            (json!(false), json!("queue"))
        );
        assert_eq!(shown("waitSeconds"), 0.2, "at the assumed 500 a second");
        admission.view().last_refusal = Some((Refusal::Queue, Instant::now() - SHOWN));
        assert_eq!((shown("open"), shown("reason")), (json!(true), Value::Null));
    }

    #[test]
    fn accepting_waits_for_settling_once_a_window_is_under_way() {
        let admission = admission();
        seen(&admission, 0, &[(0, 450, 0)]);
        assert_eq!(room(&admission), 50);
        admission.placed(50);
        assert_eq!(room(&admission), 0);
        admission.settled(20);
        assert_eq!(room(&admission), 20);
    }

    #[test]
    fn while_nothing_is_settled_accepting_waits_for_nothing() {
        let admission = admission();
        seen(&admission, -2, &[]);
        seen(&admission, -1, &[(0, 600, 0)]);
        assert_eq!(admission.view().room((NOW - 1) as f64), 0, "not yet");
        seen(&admission, 0, &[(1, 600, 0), (0, 100, 0)]);
        assert_eq!(room(&admission), usize::MAX);
        assert_eq!(refusal(&admission, 100), None);
    }

    #[test]
    fn what_stands_still_while_it_refuses_admits_one_order_to_see_whether_it_is_back() {
        let admission = admission();
        seen(&admission, -5, &[]);
        seen(&admission, 0, &[(5, 2_500, 0)]);
        let mut view = admission.view();
        assert!(view.refusal(0, NOW as f64).is_some());
        assert_eq!(
            (view.probes(NOW as f64), view.probes(NOW as f64)),
            (true, false)
        );
        view.estimate.look(
            (NOW + 1) as f64,
            &[Second {
                second: NOW - 5,
                placed: 2_500,
                settled: 100,
            }],
        );
        view.probed_at = None;
        assert!(
            !view.probes((NOW + 1) as f64),
            "it settles again: no need to try"
        );
    }
}
