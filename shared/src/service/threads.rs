//! The named threads of a service: started, watched, stopped and joined.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka::Interrupt;

use super::STOP_LIMIT;
use super::monitor::{Extra, Monitor, StatusBoard};
use super::startup::Ready;
use crate::config::Config;
use crate::consumer::Consumer;
use crate::consumer::recovery::Recovery;
use crate::db::cleanup::{self, Cleanup};
use crate::db::pool::Pool;
use crate::error::{Error, Result};
use crate::handler::{Handler, panic_text};
use crate::http::Server;
use crate::outbox::Removal;
use crate::outbox::relay::Relay;
use crate::outbox::wake::{self, Waker};
use crate::shutdown::{Shutdown, Stop};
use crate::{dead_letter, heartbeat, metrics};

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

    /// What looks in Kafka for orders that the database has lost; its calls end at the stop.
    pub fn recovery(&self, config: &Config) -> Recovery {
        Recovery::new(config, self.poll.clone())
    }

    /// Starts a thread. `work` ends soon after the shutdown it is given, and reports its turns ([`heartbeat::beat`]).
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce(&Shutdown) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (stop, shutdown, failed, done) = (
            self.stop.clone(),
            self.shutdown.clone(),
            self.failed.clone(),
            self.done.0.clone(),
        );
        let (watched_as, limit) = (name.clone(), self.heartbeat_limit);
        let body = move || {
            let _watched = heartbeat::watch(&watched_as, limit);
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&shutdown)))
                .unwrap_or_else(|panic| Err(panic_text(panic)));
            if let Err(error) = outcome {
                log::error!("{error}");
                failed.store(true, Ordering::Relaxed);
                stop.stop();
            }
            let _ = done.send(());
        };
        self.handles
            .push(std::thread::Builder::new().name(name).spawn(body)?);
        Ok(())
    }

    /// Starts the relay with its listener and notifier; returns what wakes it. `removal`: see [`Relay::new`].
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_relay(
        &mut self,
        config: &Config,
        ready: &Ready,
        removal: Removal,
    ) -> Result<Waker> {
        let (waker, wakeups) = wake::channel();
        let (wakeups, service) = (Arc::new(wakeups), config.service);
        let mut relay = Relay::new(config, ready.install_id, self.turn.clone(), removal)?;
        let (ours, theirs) = (wakeups.clone(), wakeups.clone());
        let (listen, notify) = (ready.connector.clone(), ready.connector.clone());
        self.spawn(format!("{}-listener", service.name()), move |shutdown| {
            ours.run_listener(service, &listen, shutdown);
            Ok(())
        })?;
        self.spawn(format!("{}-notifier", service.name()), move |shutdown| {
            theirs.run_notifier(service, notify, shutdown);
            Ok(())
        })?;
        self.spawn(format!("{}-relay", service.name()), move |shutdown| {
            relay.run(&wakeups, shutdown)
        })?;
        Ok(waker)
    }

    /// Starts the monitor; returns where it shows what it sees.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_monitor(&mut self, config: &Config, extra: Extra) -> Result<StatusBoard> {
        metrics::start();
        let (mut monitor, board) = Monitor::new(config, self.poll.clone(), extra)?;
        self.spawn(
            format!("{}-monitor", config.service.name()),
            move |shutdown| {
                monitor.run(shutdown);
                Ok(())
            },
        )?;
        Ok(board)
    }

    /// Starts what removes rows that nobody needs any more: the service's own, and what all services have.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_housekeeping(
        &mut self,
        config: &Config,
        ready: &Ready,
        pool: Pool,
        own: Vec<Cleanup>,
    ) -> Result<()> {
        let mut cleanups = own;
        cleanups.push(dead_letter::clean_up(
            config.dead_letter_retention.time(ready.topics_keep),
        ));
        let interval = config.housekeeping_interval;
        self.spawn(
            format!("{}-housekeeping", config.service.name()),
            move |shutdown| {
                cleanup::run(&pool, &cleanups, interval, shutdown);
                Ok(())
            },
        )
    }

    /// Starts the consumer threads, each with a handler of its own.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_consumers(
        &mut self,
        config: &Config,
        waker: &Waker,
        handler: impl Fn() -> Box<dyn Handler>,
    ) -> Result<()> {
        for number in 1..=config.consumers {
            let name = format!("{}-consumer-{number}", config.service.name());
            let mut consumer =
                Consumer::new(config, &name, self.poll.clone(), handler(), waker.clone())?;
            self.spawn(name, move |shutdown| consumer.run(shutdown))?;
        }
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
