//! The watchdog over every database call: one that has not returned for a minute ends the process. The `postgres` crate
//! has no read limit, and the restart is safe (I8). Time in which the process was frozen does not count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::shutdown::Shutdown;

/// Ends the process when a database call hangs past every limit, the only way out of a blocking read without one, and
/// when a stop takes longer than `stop_limit`.
pub fn watch(shutdown: &Shutdown, stop_limit: Duration) {
    while !shutdown.wait(Duration::from_secs(1)) {
        SECONDS.fetch_add(1, Ordering::Relaxed);
        if has_overdue_call() {
            log::error!(
                "the database does not answer a call: ending the process, the restart is safe"
            );
            std::process::exit(70);
        }
    }
    std::thread::sleep(stop_limit + Duration::from_millis(500));
    log::warn!("the stop took too long: cut off, which is safe");
    std::process::exit(0);
}

/// The seconds that the watchdog has seen. A process that is frozen sees none, and the calls that were under way get
/// their answers once it goes on.
static SECONDS: AtomicU64 = AtomicU64::new(0);
/// For each session, after which second its current call is overdue; 0: there is none.
static SESSIONS: Mutex<Vec<Weak<AtomicU64>>> = Mutex::new(Vec::new());

/// A new session's: after which second its current call is overdue.
pub(super) fn register() -> Arc<AtomicU64> {
    let overdue = Arc::default();
    SESSIONS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .push(Arc::downgrade(&overdue));
    overdue
}

/// Marks a session as busy while a call is under way.
pub(super) struct Busy(Arc<AtomicU64>);

impl Busy {
    pub(super) fn new(overdue: &Arc<AtomicU64>, limit: Duration) -> Busy {
        let busy = Busy(overdue.clone());
        busy.renew(limit);
        busy
    }

    pub(super) fn renew(&self, limit: Duration) {
        let now = SECONDS.load(Ordering::Relaxed);
        self.0.store(now + limit.as_secs(), Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Whether a database call of this process has been under way for longer than any limit allows.
fn has_overdue_call() -> bool {
    let mut sessions = SESSIONS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    sessions.retain(|session| session.strong_count() > 0);
    let mut overdue = sessions
        .iter()
        .filter_map(Weak::upgrade)
        .map(|overdue| overdue.load(Ordering::Relaxed));
    let now = SECONDS.load(Ordering::Relaxed);
    overdue.any(|overdue| overdue > 0 && overdue < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_overdue_after_so_many_seconds_in_which_the_process_has_run() {
        let session = register();
        let call = Busy::new(&session, Duration::from_secs(2));
        SECONDS.fetch_add(2, Ordering::Relaxed);
        assert!(!has_overdue_call());
        SECONDS.fetch_add(1, Ordering::Relaxed);
        assert!(has_overdue_call());
        call.renew(Duration::from_secs(2));
        assert!(!has_overdue_call());
        SECONDS.fetch_add(3, Ordering::Relaxed);
        drop(call);
        assert!(!has_overdue_call());
    }
}
