//! The watchdog over every database call: one that has not returned for a minute ends the process. The `postgres` crate
//! has no read limit, and the restart is safe (I8).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::shutdown::Shutdown;

/// Ends the process when a database call hangs past every limit, the only way out of a blocking read without one, and
/// when a stop takes longer than `stop_limit`.
pub fn watch(shutdown: &Shutdown, stop_limit: Duration) {
    while !shutdown.wait(Duration::from_secs(1)) {
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

/// For each session, when its current call is overdue, in milliseconds of [`clock`]; 0: there is none.
static SESSIONS: Mutex<Vec<Weak<AtomicU64>>> = Mutex::new(Vec::new());

fn clock() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// A new session's: when its current call is overdue.
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
        self.0
            .store(clock() + limit.as_millis() as u64, Ordering::Relaxed);
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
    overdue.any(|overdue| overdue > 0 && overdue < clock())
}
