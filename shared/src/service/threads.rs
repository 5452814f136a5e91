//! The named threads of a service: started, watched, stopped and joined.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka::Interrupt;

use super::STOP_LIMIT;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::handler::panic_text;
use crate::heartbeat;
use crate::http::Server;
use crate::shutdown::{Shutdown, Stop};
use crate::worker::{self, Worker};

/// The share of it in which requests under way are answered and the relay may finish its turn.
const GRACE: Duration = Duration::from_secs(4);
/// The named threads of a service. One that ends by an error or a panic stops them all.
pub struct Threads {
    stop: Stop,
    shutdown: Shutdown,
    failed: Arc<AtomicBool>,
    handles: Vec<std::thread::JoinHandle<()>>,
    done: (Sender<()>, Receiver<()>),
    /// Ends the consumers' Kafka calls at the stop.
    poll: Interrupt,
    /// Ends the relay's, when its turn takes too long.
    turn: Interrupt,
    /// Within which each thread turns.
    heartbeat_limit: Duration,
}

impl Threads {
    /// No thread yet.
    pub fn new(config: &Config, stop: Stop, shutdown: Shutdown) -> Threads {
        Threads {
            stop,
            shutdown,
            failed: Arc::default(),
            handles: Vec::new(),
            done: unbounded(),
            poll: Interrupt::new(),
            turn: Interrupt::new(),
            heartbeat_limit: config.heartbeat_limit,
        }
    }

    /// Ends at the stop what waits for Kafka: the consumers' calls.
    pub fn poll_interrupt(&self) -> Interrupt {
        self.poll.clone()
    }

    /// Ends the relay's calls of Kafka, when its turn takes too long at the stop.
    pub fn turn_interrupt(&self) -> Interrupt {
        self.turn.clone()
    }

    /// Starts a thread that has `worker` do its turns.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(&mut self, name: String, mut worker: impl Worker + 'static) -> Result<()> {
        let (stop, shutdown) = (self.stop.clone(), self.shutdown.clone());
        let (failed, done) = (self.failed.clone(), self.done.0.clone());
        let (watched_as, limit) = (name.clone(), self.heartbeat_limit);
        let body = move || {
            let _watched = heartbeat::watch(&watched_as, limit);
            let turns = AssertUnwindSafe(|| worker::run(&mut worker, &shutdown));
            let ended = catch_unwind(turns).unwrap_or_else(|panic| Err(panic_text(panic)));
            if let Err(error) = ended {
                log::error!("{error}");
                failed.store(true, Ordering::Relaxed);
                stop.stop();
            }
            let _ = done.send(());
        };
        let thread = std::thread::Builder::new().name(name).spawn(body)?;
        self.handles.push(thread);
        Ok(())
    }

    /// Waits for the stop, answers what is under way, joins every thread.
    ///
    /// # Errors
    /// [`Error::Fatal`] when a thread had ended by an error.
    pub fn run_until_stopped(self, server: Server) -> Result<()> {
        self.stop.serves();
        let _ = self.shutdown.receiver().recv();
        let begun = Instant::now();
        self.poll.interrupt();
        server.stop(GRACE);
        let mut left = self.wait_for_threads(begun + GRACE, self.handles.len());
        self.turn.interrupt();
        left = self.wait_for_threads(begun + STOP_LIMIT, left);
        if left > 0 {
            log::warn!("{left} threads did not end in time and are cut off, which is safe");
        } else {
            self.handles
                .into_iter()
                .for_each(|handle| drop(handle.join()));
        }
        if self.failed.load(Ordering::Relaxed) {
            Err(Error::Fatal(
                "a thread failed; its error is logged above".into(),
            ))
        } else {
            Ok(())
        }
    }

    fn wait_for_threads(&self, until: Instant, mut left: usize) -> usize {
        while left > 0 && self.done.1.recv_deadline(until).is_ok() {
            left -= 1;
        }
        left
    }
}
