//! The life of a service process: settings, servers waited for, schema and topics made ready, named threads started,
//! stopped and joined.

use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use kafka::{Admin, Interrupt, Isolation};
use refinery::Runner;
use uuid::Uuid;

use crate::args::{self, Action};
use crate::config::Config;
use crate::consumer::Consumer;
use crate::db::{self, Connector, Limits};
use crate::error::{Error, Result, explain};
use crate::event::Service;
use crate::handler::{Handler, panic_text};
use crate::health;
use crate::housekeeping::{self, Sweep};
use crate::http::{Cors, Guard, Routes, Server};
use crate::monitor::{Board, Extra, Monitor};
use crate::outbox::Removal;
use crate::pool::Pool;
use crate::recovery::Recovery;
use crate::relay::Relay;
use crate::shutdown::{self, Shutdown, Stop};
use crate::wake::{self, Waker};
use crate::{
    backoff, brokers, check, dead_letter, logging, metrics, position, ready, schema, topics,
};

pub mod take_over;

/// A stop ends within ten seconds; what is not done by then is safe to cut off (I8).
const STOP_LIMIT: Duration = Duration::from_millis(9_000);
/// The share of it in which requests under way are answered and the relay may finish its turn.
const GRACE: Duration = Duration::from_secs(4);
/// One attempt to reach Kafka at the start; short, so that waiting is told soon and ends near its limit.
const STARTUP_ATTEMPT: Duration = Duration::from_secs(3);

/// What `main` does: arguments, settings, then `run` or what else is asked for ([`args`]). Exit code 2: bad arguments or
/// settings; 1: stopped by an error.
///
/// `about`: what the service is, for `--help`; `migrations`: its own, for `--check`.
pub fn main(
    service: Service,
    about: &str,
    migrations: fn() -> Runner,
    run: impl FnOnce(Config, Stop, Shutdown) -> Result<()>,
) -> ExitCode {
    let settings = || Config::from_env(service).map_err(|error| error.to_string());
    let outcome = args::parse(std::env::args_os().skip(1)).and_then(|action| {
        match action {
            Action::Help => args::print(&args::help(service, about)),
            Action::Version => args::print(&args::version(service)),
            Action::Check if !check::run(&settings()?, migrations()) => {
                return Ok(ExitCode::FAILURE);
            }
            Action::Ready if !ready::run(&settings()?) => return Ok(ExitCode::FAILURE),
            Action::TakeOver if !take_over::run(&settings()?, migrations()) => {
                return Ok(ExitCode::FAILURE);
            }
            Action::Check | Action::Ready | Action::TakeOver => {}
            Action::Run => return Ok(run_logged(settings()?, run)),
        }
        Ok(ExitCode::SUCCESS)
    });
    outcome.unwrap_or_else(|why| {
        eprintln!("{}: {why}", service.name());
        ExitCode::from(2)
    })
}

fn run_logged(config: Config, run: impl FnOnce(Config, Stop, Shutdown) -> Result<()>) -> ExitCode {
    logging::init(config.log_level);
    config
        .remarks()
        .iter()
        .for_each(|remark| log::warn!("{remark}"));
    let (stop, shutdown) = shutdown::channel();
    let watched = shutdown.clone();
    let watchdog = std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || watch(&watched));
    let ready = watchdog.and_then(|_| stop.on_signals(config.shutdown_delay));
    let outcome = ready
        .map_err(Error::from)
        .and_then(|()| run(config, stop, shutdown));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Stopped(what)) => {
            log::info!("{what}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!("stopped: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the service's port, before anything else is done.
///
/// # Errors
/// [`Error::Fatal`], naming the variable.
pub fn listen(config: &Config) -> Result<TcpListener> {
    TcpListener::bind((config.bind, config.port)).map_err(|error| {
        let name = config.service.name().to_uppercase();
        Error::Fatal(format!(
            "can't listen on {}:{} ({error}): set {name}_PORT or BIND to a free address",
            config.bind, config.port
        ))
    })
}

/// No calls yet, behind the service's doors: its operator's token, and the origins whose pages may use it.
pub fn routes(config: &Config) -> Routes {
    Routes::new().behind(
        Guard::new(config.admin_token.as_ref()),
        Cors::new(config.cors_origins.clone()),
    )
}

/// A service whose servers are there, and whose schema and topics are ready.
pub struct Ready {
    /// The database's installation.
    pub install_id: Uuid,
    /// For sessions that work.
    pub connector: Connector,
    /// How long the topics keep records; none: for ever.
    pub topics_keep: Option<Duration>,
}

/// Waits for PostgreSQL and Kafka, up to the start-up limit; brings the schema up to date, creates missing topics,
/// refuses a Kafka that another installation, or another copy of this database, has written last.
///
/// # Errors
/// [`Error::Fatal`], saying what is missing and what to do; [`Error::Stopped`] when a stop is asked for meanwhile.
pub fn prepare(config: &Config, migrations: Runner, shutdown: &Shutdown) -> Result<Ready> {
    let connector = Connector::new(&config.database_url, config.service.name(), Limits::WORK)?;
    let until = Instant::now() + config.startup_limit;
    let mut session = wait_for("PostgreSQL", until, shutdown, || connector.connect())?;
    wait_for("PostgreSQL", until, shutdown, || {
        connector.require_sessions()
    })?;
    let begun = Instant::now();
    schema::migrate(&mut session, config.service, migrations)?;
    // what a migration takes is no waiting for servers
    let until = until + begun.elapsed();
    #[cfg(sabotage)]
    crate::sabotage::replace_append(&mut session)?;
    let mut session = connector.connect()?;
    let install_id = schema::install_id(&mut session)?;
    let mut kafka = config.kafka(config.service.name());
    kafka.api_timeout = STARTUP_ATTEMPT;
    let mut admin = Admin::new(kafka.clone(), Interrupt::new());
    let written = topics::names(&config.topic_prefix, &config.service.writes());
    let interrupt = Interrupt::new();
    let (topics_keep, found) = wait_for("Kafka", until, shutdown, || {
        let topics_keep = topics::create(&mut admin, config)?;
        topics::require_use(&mut admin, config)?;
        brokers::require_room(&mut admin)?;
        let ends = Isolation::ReadCommitted;
        Ok((
            topics_keep,
            position::find(
                &written,
                &kafka,
                &interrupt,
                config.service,
                install_id,
                ends,
            )?,
        ))
    })?;
    wait_for("PostgreSQL", until, shutdown, || {
        position::require_own(&found, config.service, || connector.connect())
    })?;
    Ok(Ready {
        install_id,
        connector,
        topics_keep,
    })
}

fn wait_for<T>(
    what: &str,
    until: Instant,
    shutdown: &Shutdown,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    for number in 1.. {
        let error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if matches!(error, Error::Fatal(_)) || error.is_refusal() => {
                return Err(Error::Fatal(explain(what, error)));
            }
            Err(error) => error,
        };
        let pause = backoff::delay(number);
        if Instant::now() + pause >= until {
            return Err(Error::Fatal(explain(what, error)));
        }
        log::warn!("waiting for {what}: {error}");
        if shutdown.wait(pause) {
            break;
        }
    }
    Err(Error::Stopped(format!("stopped while waiting for {what}")))
}

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

    /// Starts a thread. `work` ends soon after the shutdown it is given, and tells of its turns ([`health::beat`]).
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
            let _watched = health::watch(&watched_as, limit);
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

    /// Starts the relay with its listener and notifier; answers what wakes it. `removal`: see [`Relay::new`].
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

    /// Starts the monitor; answers where it shows what it sees.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn_monitor(&mut self, config: &Config, extra: Extra) -> Result<Board> {
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
        own: Vec<Sweep>,
    ) -> Result<()> {
        let mut sweeps = own;
        sweeps.push(dead_letter::sweep(
            config.dead_letter_retention.time(ready.topics_keep),
        ));
        let interval = config.housekeeping_interval;
        self.spawn(
            format!("{}-housekeeping", config.service.name()),
            move |shutdown| {
                housekeeping::run(&pool, &sweeps, interval, shutdown);
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

/// Ends the process when a database call hangs past every limit, the only way out of a blocking read without one, and
/// when a stop does.
fn watch(shutdown: &Shutdown) {
    while !shutdown.wait(Duration::from_secs(1)) {
        if db::has_overdue_call() {
            log::error!(
                "the database does not answer a call: ending the process, the restart is safe"
            );
            std::process::exit(70);
        }
    }
    std::thread::sleep(STOP_LIMIT + Duration::from_millis(500));
    log::warn!("the stop took too long: cut off, which is safe");
    std::process::exit(0);
}
