//! A start: servers waited for, schema and topics made ready.
//!
//! A server that refuses us, or that we do not trust, is fatal here only. Later a certificate or a password may be
//! changed under a running service, and retrying is right.

use std::time::{Duration, Instant};

use kafka::{Admin, Interrupt, Isolation};
use refinery::Runner;
use uuid::Uuid;

use super::{brokers, topics};
use crate::backoff;
use crate::config::Config;
use crate::db::{Connector, Limits, migrations};
use crate::error::{Error, Result, explain};
use crate::event::full_names;
use crate::outbox::position;
use crate::shutdown::Shutdown;

/// One attempt to reach Kafka at the start; short, so that waiting is logged soon and ends near its limit.
const STARTUP_ATTEMPT: Duration = Duration::from_secs(3);

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
pub fn prepare(config: &Config, own: Runner, shutdown: &Shutdown) -> Result<Ready> {
    let connector = Connector::new(&config.database_url, config.service.name(), Limits::WORK)?;
    let until = Instant::now() + config.startup_limit;
    let mut session = wait_for("PostgreSQL", until, shutdown, || connector.connect())?;
    wait_for("PostgreSQL", until, shutdown, || {
        connector.require_sessions()
    })?;
    let begun = Instant::now();
    migrations::migrate(&mut session, config.service, own)?;
    // what a migration takes is no waiting for servers
    let until = until + begun.elapsed();
    let mut session = connector.connect()?;
    let install_id = migrations::read_install_id(&mut session)?;
    let mut kafka = config.kafka(config.service.name());
    kafka.api_timeout = STARTUP_ATTEMPT;
    let mut admin = Admin::new(kafka.clone(), Interrupt::new());
    let written = full_names(&config.topic_prefix, &config.service.writes());
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
