//! Stopping: a channel that nothing is ever sent on. Closing it stops every thread that watches it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
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

    /// Stops at SIGTERM or SIGINT (Ctrl-C), by a thread of its own.
    ///
    /// # Errors
    /// When the operating system refuses the handlers.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
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
