//! `--take-over`: an operator says that this database goes on where another copy of it has written last. What is taken over
//! is noted in the database, and its last stored time moved on. The service is started afterwards. What it publishes carries
//! a higher number than the other one's positions, so the other one is refused from then on.

use std::time::Duration;

use kafka::{Admin, Interrupt, Isolation};
use refinery::Runner;
use uuid::Uuid;

use crate::config::Config;
use crate::db::migrations;
use crate::db::{Connector, Limits, Session};
use crate::error::{Error, Result, explain};
use crate::event::{Service, full_names};
use crate::outbox::position::{self, FoundPosition, Wrong};
use crate::outbox::{self, origin};
use crate::service::cli;
use crate::service::{check, topics};

/// For all of it: longer than each call below takes to give up by itself. It ends what has no limit of its own, such as
/// reading from a server that accepts and is silent. What was done until then, another call finds done.
const LIMIT: Duration = Duration::from_secs(60);

/// Does it, and writes to standard output what was found and what was done. Returns whether the service may be started.
///
/// `migrations`: the service's own.
pub fn run(config: &Config, migrations: Runner) -> bool {
    let config = config.clone();
    let done = check::within(LIMIT, move || take_over(&config, migrations));
    match &done {
        Ok(done) => cli::print(&format!("{done}\n")),
        Err(why) => cli::print(&format!("failed: {why}\n")),
    }
    done.is_ok()
}

fn take_over(config: &Config, migrations: Runner) -> Result<String> {
    let mut session =
        connect(config).map_err(|error| Error::Fatal(explain("PostgreSQL", error)))?;
    let install = installation(&mut session, config.service, migrations)?;
    let found = find(config, install).map_err(|error| Error::Fatal(explain("Kafka", error)))?;
    note(&mut session, &found, config.service)
}

fn connect(config: &Config) -> Result<Session> {
    let name = format!("{}-take-over", config.service.name());
    Connector::new(&config.database_url, &name, Limits::WORK)?.connect()
}

/// The database's, once nothing is left to migrate: what is noted needs a table.
fn installation(session: &mut Session, service: Service, migrations: Runner) -> Result<Uuid> {
    let pending = migrations::find_pending(session, service, migrations)?.migrations;
    if pending > 0 {
        return Err(Error::Fatal(format!(
            "the schema lacks {pending} migrations: start {} once, which applies them before it is refused",
            service.name()
        )));
    }
    migrations::read_install_id(session)
}

/// The last positions in what the service writes, as far as it is there.
fn find(config: &Config, install: Uuid) -> Result<Vec<FoundPosition>> {
    let kafka = config.kafka(&format!("{}-take-over", config.service.name()));
    let there = topics::find(&mut Admin::new(kafka.clone(), Interrupt::new()), config)?.there;
    let mut written = full_names(&config.topic_prefix, &config.service.writes());
    written.retain(|name| there.contains(name));
    // the other one is stopped; where it left a transaction open, that is not committed
    position::find(
        &written,
        &kafka,
        &Interrupt::new(),
        config.service,
        install,
        Isolation::ReadCommitted,
    )
}

/// In one database transaction. Returns what was done.
fn note(session: &mut Session, found: &[FoundPosition], service: Service) -> Result<String> {
    let state = origin::read(session)?;
    let wrong = position::wrong(found, &state);
    if wrong.is_empty() {
        return Ok("nothing to take over: no other database has written last".into());
    }
    for Wrong { what, .. } in &wrong {
        cli::print(&format!("found: {what}\n"));
    }
    let accepted_to = found
        .iter()
        .filter_map(|found| found.stored.as_deref())
        .max()
        .unwrap_or(origin::EPOCH);
    let mut origins = Vec::new();
    for origin in found.iter().filter_map(|found| found.position.origin) {
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    let mut tx = session.transaction()?;
    let number = origin::take_over(&mut tx, &state, &origins, accepted_to)?;
    outbox::advance_clock(&mut tx, accepted_to)?;
    tx.commit()?;
    let name = service.name();
    Ok(format!(
        "taken over (number {number}): what was stored up to {accepted_to} is accepted. Start {name} now; \
         the other {name} database is refused as soon as this one has published"
    ))
}
