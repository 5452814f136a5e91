//! Stopping: a channel that nothing is ever sent on. Closing it stops every thread that watches it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// The side that stops. Cloned freely; the first [`Stop::stop`] counts.
#[derive(Clone)]
pub struct Stop(Arc<Mutex<Option<Sender<()>>>>);

/// The side that is stopped.
#[derive(Clone)]
pub struct Shutdown(Receiver<()>);

/// A new pair.
pub fn channel() -> (Stop, Shutdown) {
    let (sender, receiver) = bounded(0);
    (Stop(Arc::new(Mutex::new(Some(sender)))), Shutdown(receiver))
}

impl Stop {
    /// Closes the channel; every [`Shutdown`] sees it at once. A second call changes nothing.
    pub fn stop(&self) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }

    /// Stops at SIGTERM, SIGINT (Ctrl-C), SIGQUIT or SIGHUP (its terminal is gone; there is nothing to read anew), by a thread of
    /// its own. A SIGHUP that is ignored at the start, as `nohup` has it, stays so.
    ///
    /// # Errors
    /// When the operating system refuses the handlers.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT].into_iter().chain(hang_up))?;
        let stop = self.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Some(signal) = signals.forever().next() {
                log::info!("signal {signal}: stopping");
                stop.stop();
            }
        })?;
        Ok(())
    }
}

/// Linux tells it in the process's status; elsewhere no signal counts as ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|ignored| ignored >> (signal - 1) & 1 == 1)
}

impl Shutdown {
    /// Whether it is time to stop.
    pub fn is_set(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits up to `limit`; true as soon as it is time to stop.
    pub fn wait(&self, limit: Duration) -> bool {
        matches!(self.0.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }

    /// The closed channel itself, for `select!`.
    pub fn receiver(&self) -> &Receiver<()> {
        &self.0
    }
}
