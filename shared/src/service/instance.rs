//! One instance of a service: put together part by part, then run until it is stopped.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use refinery::Runner;

use super::exporter::{self, Exporter};
use super::monitor::{Extra, Monitor};
use super::startup::{self, Ready};
use super::threads::Threads;
use super::{file_limit, status_http};
use crate::config::Config;
use crate::consumer::Consumer;
use crate::consumer::recovery::Recovery;
use crate::db::Connector;
use crate::db::cleanup::{Cleaner, Cleanup};
use crate::db::pool::{Connection, Pool};
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::http::{Cors, Guard, Routes, Server};
use crate::outbox::Removal;
use crate::outbox::relay::Relay;
use crate::outbox::wake::{self, Listener, Notifier, Waker};
use crate::shutdown::{Shutdown, Stop};
use crate::worker::Worker;
use crate::{dead_letter, metrics};

/// Makes a handler: each consumer thread has its own, and each replay of a dead letter.
pub type MakeHandler = Arc<dyn Fn() -> Box<dyn Handler> + Send + Sync>;

/// A started instance: its port is taken, its servers are there, its schema and topics are ready, and its relay runs.
pub struct Instance {
    /// Its settings.
    pub config: Config,
    /// Sessions for its HTTP workers.
    pub pool: Pool,
    /// Called after a commit that appended to the outbox.
    pub waker: Waker,
    ready: Ready,
    listener: TcpListener,
    threads: Threads,
    exporter: Option<Exporter>,
    extra: Extra,
    cleanups: Vec<Cleanup>,
}

impl Instance {
    /// Starts one. `migrations`: the service's own; `removal`: what it does with what is published.
    ///
    /// # Errors
    /// [`Error::Fatal`], saying what is missing and what to do; [`Error::Stopped`] when a stop is asked for meanwhile.
    pub fn start(
        config: Config,
        migrations: Runner,
        removal: Removal,
        stop: Stop,
        shutdown: Shutdown,
    ) -> Result<Instance> {
        let listener = listen(&config)?;
        let ready = startup::prepare(&config, migrations, &shutdown)?;
        metrics::start();
        let mut threads = Threads::new(&config, stop, shutdown);
        let exporter = exporter::start(&config)?;
        let (waker, wakeups) = wake::channel();
        let (wakeups, service) = (Arc::new(wakeups), config.service);
        let interrupt = threads.turn_interrupt();
        let relay = Relay::new(
            &config,
            ready.install_id,
            interrupt,
            removal,
            wakeups.clone(),
        )?;
        let listening = Listener::new(wakeups.clone(), service, ready.connector.clone());
        let notifier = Notifier {
            wakeups,
            service,
            connection: Connection::new(ready.connector.clone()),
        };
        threads.spawn(format!("{}-listener", service.name()), listening)?;
        threads.spawn(format!("{}-notifier", service.name()), notifier)?;
        threads.spawn(format!("{}-relay", service.name()), relay)?;
        let pool = Pool::new(&ready.connector, config.http_workers);
        let extra: Extra = Box::new(|_| Ok(Default::default()));
        Ok(Instance {
            config,
            pool,
            waker,
            ready,
            listener,
            threads,
            exporter,
            extra,
            cleanups: Vec::new(),
        })
    }

    /// Opens sessions for threads of the service's own.
    pub fn connector(&self) -> Connector {
        self.ready.connector.clone()
    }

    /// For how long at least the topics keep what the timeline and the repairs refer to.
    pub fn timeline_retention(&self) -> Option<Duration> {
        self.config.timeline_retention.time(self.ready.topics_keep)
    }

    /// What looks in Kafka for orders that the database has lost; its calls end at the stop.
    pub fn recovery(&self) -> Recovery {
        Recovery::new(&self.config, self.threads.poll_interrupt())
    }

    /// Starts a thread of the service's own.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(&mut self, name: &str, worker: impl Worker + 'static) -> Result<()> {
        self.threads.spawn(name.to_string(), worker)
    }

    /// What the service adds to each snapshot of its status.
    pub fn show(&mut self, extra: Extra) {
        self.extra = extra;
    }

    /// Rows of the service's own that are removed some time later.
    pub fn clean_up(&mut self, cleanups: Vec<Cleanup>) {
        self.cleanups = cleanups;
    }

    /// No calls yet, behind the service's doors: its operator's token, and the origins whose pages may use it.
    pub fn routes(&self) -> Routes {
        Routes::new().with_access(
            Guard::new(self.config.admin_token.as_ref()),
            Cors::new(self.config.cors_origins.clone()),
        )
    }

    /// Consumes, serves `routes` and what all services have, and returns when it is stopped.
    ///
    /// # Errors
    /// When a thread or the server can't be started; [`Error::Fatal`] when a thread had ended by an error.
    pub fn run(mut self, handler: MakeHandler, routes: Routes) -> Result<()> {
        let config = self.config;
        let name = config.service.name();
        for number in 1..=config.consumers {
            let name = format!("{name}-consumer-{number}");
            let (interrupt, waker) = (self.threads.poll_interrupt(), self.waker.clone());
            let consumer = Consumer::new(&config, &name, interrupt, handler(), waker)?;
            self.threads.spawn(name, consumer)?;
        }
        let interrupt = self.threads.poll_interrupt();
        let (monitor, board) = Monitor::new(&config, interrupt, self.extra)?;
        self.threads.spawn(format!("{name}-monitor"), monitor)?;
        let kept = config.dead_letter_retention.time(self.ready.topics_keep);
        self.cleanups.push(dead_letter::clean_up(kept));
        let cleaner = Cleaner {
            pool: self.pool.clone(),
            cleanups: self.cleanups,
            interval: config.housekeeping_interval,
        };
        self.threads
            .spawn(format!("{name}-housekeeping"), cleaner)?;
        let prefix = config.topic_prefix.clone();
        let routes = status_http::routes(routes, config.service, board);
        let routes = dead_letter::http::routes(routes, self.pool, prefix, self.waker, handler);
        let limits = file_limit::http_limits(&config);
        let server = Server::start(name, self.listener, limits, routes)?;
        log::info!("{name} listens on {}", server.local_addr());
        let ended = self.threads.run_until_stopped(server);
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
        ended
    }
}

/// Takes the service's port, before anything else is done.
fn listen(config: &Config) -> Result<TcpListener> {
    TcpListener::bind((config.bind, config.port)).map_err(|error| {
        let name = config.service.name().to_uppercase();
        Error::Fatal(format!(
            "can't listen on {}:{} ({error}): set {name}_PORT or BIND to a free address",
            config.bind, config.port
        ))
    })
}
