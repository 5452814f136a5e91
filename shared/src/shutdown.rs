//! Stopping: a channel that nothing is ever sent on. Closing it stops every thread that watches it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// The side that stops. Cloned freely; the first [`Stop::stop`] counts.
#[derive(Clone)]
pub struct Stop {
    sender: Arc<Mutex<Option<Sender<()>>>>,
    serving: Arc<AtomicBool>,
}

/// The side that is stopped.
#[derive(Clone)]
pub struct Shutdown(Receiver<()>);

/// A new pair.
pub fn channel() -> (Stop, Shutdown) {
    let (sender, receiver) = bounded(0);
    (
        Stop {
            sender: Arc::new(Mutex::new(Some(sender))),
            serving: Arc::default(),
        },
        Shutdown(receiver),
    )
}

/// Whether a signal has come and the stop waits for clients to turn elsewhere.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Whether the process is about to stop, and still serves.
pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

impl Stop {
    /// Closes the channel; every [`Shutdown`] sees it at once. A second call changes nothing.
    pub fn stop(&self) {
        self.sender
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
    }

    /// From now on requests are served: a signal's stop waits for its delay.
    pub fn serves(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Stops at SIGTERM, SIGINT (Ctrl-C), SIGQUIT or SIGHUP (its terminal is gone; there is nothing to read anew), by threads of
    /// its own; `delay` after it if requests are served ([`is_stopping`] meanwhile), at once at a second signal. A SIGHUP that is
    /// ignored at the start, as `nohup` has it, stays so.
    ///
    /// # Errors
    /// When the operating system refuses the handlers or the threads.
    pub fn on_signals(&self, delay: Duration) -> std::io::Result<()> {
        let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT].into_iter().chain(hang_up))?;
        let (sender, received) = unbounded();
        let stop = self.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                signals
                    .forever()
                    .take_while(|signal| sender.send(*signal).is_ok())
                    .for_each(drop);
            })?;
        std::thread::Builder::new()
            .name("stop".into())
            .spawn(move || stop.obey(&received, delay))?;
        Ok(())
    }

    fn obey(&self, signals: &Receiver<i32>, delay: Duration) {
        let Ok(signal) = signals.recv() else { return };
        if delay.is_zero() || !self.serving.load(Ordering::Relaxed) {
            log::info!("signal {signal}: stopping");
            return self.stop();
        }
        log::info!(
            "signal {signal}: stopping in {delay:?}, at another signal at once; /readyz answers 503 until then"
        );
        STOPPING.store(true, Ordering::Relaxed);
        match signals.recv_timeout(delay) {
            Ok(signal) => log::info!("signal {signal}: stopping, {delay:?} are not waited for"),
            Err(_) => log::info!("stopping, {delay:?} are over"),
        }
        self.stop();
    }
}

/// Linux shows it in the process's status; elsewhere no signal counts as ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|ignored| ignored >> (signal - 1) & 1 == 1)
}

impl Shutdown {
    /// Whether it is time to stop.
    pub fn is_set(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits up to `limit`; true as soon as it is time to stop.
    pub fn wait(&self, limit: Duration) -> bool {
        matches!(
            self.0.recv_timeout(limit),
            Err(RecvTimeoutError::Disconnected)
        )
    }

    /// The closed channel itself, for `select!`.
    pub fn receiver(&self) -> &Receiver<()> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stop at SIGTERM after `delay`, `meanwhile` done once it has come.
    fn stops(serves: bool, delay: Duration, meanwhile: impl FnOnce(&Sender<i32>, &Shutdown)) {
        let ((stop, shutdown), (sender, signals)) = (channel(), unbounded());
        if serves {
            stop.serves();
        }
        sender.send(SIGTERM).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| stop.obey(&signals, delay));
            meanwhile(&sender, &shutdown);
        });
        assert!(shutdown.is_set());
    }

    #[test]
    fn a_signal_stops_after_the_delay_and_before_it_at_the_start_or_at_a_second_signal() {
        let never = Duration::from_secs(24 * 3_600);
        stops(true, Duration::ZERO, |_, _| {});
        stops(false, never, |_, _| {});
        assert!(!is_stopping());
        stops(true, never, |sender, shutdown| {
            while !is_stopping() {
                std::hint::spin_loop();
            }
            assert!(!shutdown.is_set());
            sender.send(SIGINT).unwrap();
        });
        stops(true, Duration::from_millis(1), |_, _| {});
    }
}
