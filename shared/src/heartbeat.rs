//! Whether the process makes progress: every [`Worker`](crate::worker::Worker) reports it at each of its turns. A
//! thread without work waits a second at most, or says how long it will wait ([`beat_before`]). `/healthz` returns 503
//! and names the threads that made no progress for `HEARTBEAT_LIMIT`.
//!
//! HTTP's threads need no heartbeat: without them nobody gets an answer. The leader's ping and the group's heartbeats
//! need none either: without them the lock or the membership is lost, which its owner notices.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A thread with nothing to do turns so often.
pub const IDLE: Duration = Duration::from_secs(1);

/// One thread's turns.
pub struct Heartbeat {
    thread: String,
    interval: Duration,
    /// Milliseconds of [`clock`].
    last: AtomicU64,
    due: AtomicU64,
    /// From when on it counts as out of its group; [`NEVER`]: it is in it, or belongs to none.
    outside_from: AtomicU64,
    /// What kept it out when it last tried to get in.
    kept_out: Mutex<Option<String>>,
}

const NEVER: u64 = u64::MAX;

static HEARTBEATS: Mutex<Vec<Arc<Heartbeat>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: RefCell<Option<Arc<Heartbeat>>> = const { RefCell::new(None) };
}

fn heartbeats() -> MutexGuard<'static, Vec<Arc<Heartbeat>>> {
    HEARTBEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

/// The calling thread's heartbeat from now on; dropped, the thread is no longer expected to turn.
pub struct Watched(Arc<Heartbeat>);

/// Has the calling thread watched: it must turn within `interval` from now on. That is longer than any of its calls may take
/// (a statement 30 s, a call of Kafka 20 s), or it says so ([`beat_before`]).
pub fn watch(thread: &str, interval: Duration) -> Watched {
    let heartbeat = Arc::new(Heartbeat {
        thread: thread.to_string(),
        interval,
        last: AtomicU64::new(0),
        due: AtomicU64::new(0),
        outside_from: AtomicU64::new(NEVER),
        kept_out: Mutex::default(),
    });
    heartbeat.beat(interval);
    heartbeats().push(heartbeat.clone());
    OWN.set(Some(heartbeat.clone()));
    Watched(heartbeat)
}

impl Drop for Watched {
    fn drop(&mut self) {
        heartbeats().retain(|heartbeat| !Arc::ptr_eq(heartbeat, &self.0));
        OWN.set(None);
    }
}

/// The calling thread turns. Nothing happens in one that is not watched.
pub fn beat() {
    own(|heartbeat| heartbeat.beat(heartbeat.interval));
}

/// The calling thread turns, and the next turn may take so long.
pub fn beat_before(long: Duration) {
    own(|heartbeat| heartbeat.beat(heartbeat.interval.max(long)));
}

/// The calling thread is in its group.
pub fn in_group() {
    own(|heartbeat| {
        heartbeat.outside_from.store(NEVER, Ordering::Relaxed);
        *heartbeat.kept_out() = None;
    });
}

/// What the calling thread failed with, in case that it is out of its group.
pub fn kept_out(why: String) {
    own(|heartbeat| *heartbeat.kept_out() = Some(why));
}

/// The calling thread is out of its group, which counts unless it is in it again after `patience`. Said again, the
/// earliest end of patience stands.
pub fn out_of_group(patience: Duration) {
    own(|heartbeat| {
        _ = heartbeat
            .outside_from
            .fetch_min(clock() + patience.as_millis() as u64, Ordering::Relaxed)
    });
}

/// The calling thread's heartbeat, for others to look at.
pub fn own_heartbeat() -> Option<Arc<Heartbeat>> {
    OWN.with_borrow(Clone::clone)
}

fn own(act: impl FnOnce(&Heartbeat)) {
    OWN.with_borrow(|heartbeat| heartbeat.as_deref().map(act));
}

impl Heartbeat {
    fn beat(&self, next_within: Duration) {
        let now = clock();
        self.last.store(now, Ordering::Relaxed);
        self.due
            .store(now + next_within.as_millis() as u64, Ordering::Relaxed);
    }

    /// Since its last turn.
    fn age(&self) -> Duration {
        Duration::from_millis(clock().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn kept_out(&self) -> MutexGuard<'_, Option<String>> {
        self.kept_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(&self) -> Option<String> {
        (self.outside_from.load(Ordering::Relaxed) <= clock()).then(|| {
            let why = self
                .kept_out()
                .as_ref()
                .map_or_else(String::new, |why| format!(": {why}"));
            format!("thread {} is not in its consumer group{why}", self.thread)
        })
    }

    /// Whether it has turned when it should have.
    pub fn is_alive(&self) -> bool {
        clock() <= self.due.load(Ordering::Relaxed)
    }

    fn stall(&self) -> Option<String> {
        (!self.is_alive()).then(|| {
            format!(
                "thread {} has made no progress for {} s",
                self.thread,
                self.age().as_secs()
            )
        })
    }
}

/// The threads that have not turned in time, each in a sentence; none: the process turns.
pub fn stalled() -> Vec<String> {
    heartbeats()
        .iter()
        .filter_map(|heartbeat| heartbeat.stall())
        .collect()
}

/// The threads that are out of their group for longer than they may, each in a sentence with what kept it out last.
pub fn outsiders() -> Vec<String> {
    heartbeats()
        .iter()
        .filter_map(|heartbeat| heartbeat.outside())
        .collect()
}

/// Every watched thread and the time since its last turn, by name.
pub fn ages() -> Vec<(String, Duration)> {
    let mut ages: Vec<_> = heartbeats()
        .iter()
        .map(|heartbeat| (heartbeat.thread.clone(), heartbeat.age()))
        .collect();
    ages.sort();
    ages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_turn_is_named_and_one_that_ends_is_forgotten() {
        let watched = watch("sleeper", Duration::ZERO);
        beat_before(Duration::from_secs(60));
        assert_eq!(stalled(), Vec::<String>::new());
        out_of_group(Duration::from_secs(60));
        assert_eq!(outsiders(), Vec::<String>::new());
        out_of_group(Duration::ZERO);
        out_of_group(Duration::from_secs(60));
        assert_eq!(outsiders(), ["thread sleeper is not in its consumer group"]);
        kept_out("no coordinator".into());
        assert_eq!(
            outsiders(),
            ["thread sleeper is not in its consumer group: no coordinator"]
        );
        in_group();
        assert_eq!(outsiders(), Vec::<String>::new());
        beat();
        while stalled().is_empty() {
            std::hint::spin_loop();
        }
        assert!(stalled()[0].starts_with("thread sleeper has made no progress for "));
        drop(watched);
        assert!(stalled().is_empty() && own_heartbeat().is_none() && ages().is_empty());
    }
}
