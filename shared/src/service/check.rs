//! `--check`: whether a service could start here and now. One attempt at everything, with short limits; nothing is
//! changed: it says what a start would do.
//!
//! It asks what a start does, by the same code where that only reads: [`migrations`], [`brokers`], [`topics`],
//! [`position`]. Its session is read-only. It can't say whether a migration itself will succeed.

use std::sync::mpsc;
use std::time::Duration;

use kafka::{Admin, Interrupt, Isolation};
use refinery::Runner;
use uuid::Uuid;

use crate::config::Config;
use crate::db::migrations::{self, Pending};
use crate::db::{Connector, Limits, Session};
use crate::error::{Error, Result, explain};
use crate::event::full_names;
use crate::outbox::position;
use crate::service::{brokers, cli, topics};

/// For each line: longer than any single attempt below takes to give up by itself. It ends what has no limit of its own, such
/// as reading from a server that accepts and is silent.
const LIMIT: Duration = Duration::from_secs(10);
/// One attempt to reach Kafka.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Writes a line to standard output for settings, database, schema, broker, topics and position, each `ok`, with what a
/// start would do, or `failed`, with what to do. Returns whether all are well.
///
/// `migrations`: the service's own.
pub fn run(config: &Config, migrations: Runner) -> bool {
    let mut report = Report { failed: false };
    report.add("settings", Ok(config.remarks()));
    let install = check_database(&mut report, config, migrations);
    check_kafka(&mut report, config, install);
    !report.failed
}

/// What was found: remarks, or what to do.
type Finding = std::result::Result<Vec<String>, String>;

struct Report {
    failed: bool,
}

impl Report {
    fn add(&mut self, what: &str, finding: Finding) {
        match finding {
            Ok(remarks) if remarks.is_empty() => cli::print(&format!("{what}: ok\n")),
            Ok(remarks) => cli::print(&format!("{what}: ok: {}\n", remarks.join("; "))),
            Err(why) => self.fail(what, &why),
        }
    }

    fn fail(&mut self, what: &str, why: &str) {
        self.failed = true;
        cli::print(&format!("{what}: failed: {why}\n"));
    }
}

/// The installation of the database: none if it can't be reached, nil if it has none yet.
fn check_database(report: &mut Report, config: &Config, migrations: Runner) -> Option<Uuid> {
    let reached = within(LIMIT, {
        let config = config.clone();
        move || connect(&config)
    });
    let mut session = match reached {
        Ok(session) => session,
        Err(error) => {
            report.fail("database", &explain("PostgreSQL", error));
            report.fail("schema", "not known without the database");
            return None;
        }
    };
    report.add("database", Ok(vec![]));
    let kind = config.service;
    let found = within(LIMIT, move || {
        let pending = migrations::find_pending(&mut session, kind, migrations)?;
        Ok((remarks(&pending), installation(&mut session)?))
    });
    let install = found.as_ref().ok().map(|(_, install)| *install);
    report.add(
        "schema",
        found
            .map(|(remarks, _)| remarks)
            .map_err(|error| error.to_string()),
    );
    install
}

/// A session under a name of its own, in which nothing can be changed.
fn connect(config: &Config) -> Result<Session> {
    let name = format!("{}-check", config.service.name());
    let connector = Connector::new(&config.database_url, &name, Limits::WORK)?;
    connector.require_sessions()?;
    let mut session = connector.connect()?;
    session.batch_execute("set default_transaction_read_only = on")?;
    Ok(session)
}

fn remarks(pending: &Pending) -> Vec<String> {
    let to_apply = match pending.migrations {
        0 => None,
        1 => Some("1 migration to apply".to_string()),
        count => Some(format!("{count} migrations to apply")),
    };
    to_apply
        .into_iter()
        .chain(pending.newer.clone())
        .chain(pending.behind.clone())
        .collect()
}

/// Nil before the first migration: then every position in Kafka is another installation's.
fn installation(session: &mut Session) -> Result<Uuid> {
    if !migrations::has_table(session, "install")? {
        return Ok(Uuid::nil());
    }
    migrations::read_install_id(session)
}

fn check_kafka(report: &mut Report, config: &Config, install: Option<Uuid>) {
    let reached = ask(config, |admin, _| {
        let all = admin.brokers()?;
        brokers::find_problems(admin, &all)
    });
    match reached {
        Ok(remarks) => report.add("broker", Ok(remarks)),
        // it answers: the rest can be known
        Err(Error::Unusable(why)) => report.fail("broker", &why),
        Err(error) => {
            report.fail("broker", &explain("Kafka", error));
            ["rights", "topics", "position"]
                .iter()
                .for_each(|what| report.fail(what, "not known without the broker"));
            return;
        }
    }
    let found = match ask(config, topics::find) {
        Ok(found) => found,
        Err(error) => {
            report.fail("rights", &explain("Kafka", error));
            ["topics", "position"]
                .iter()
                .for_each(|what| report.fail(what, "not known without the rights"));
            return;
        }
    };
    let usable = ask(config, topics::require_use);
    report.add(
        "rights",
        usable
            .map(|()| vec![])
            .map_err(|error| explain("Kafka", error)),
    );
    let (there, remarks) = (found.there.clone(), found.remarks());
    let fit = ask(config, move |admin, config| {
        found.fit(config)?;
        found.require_creatable(admin, config)
    });
    report.add(
        "topics",
        fit.map(|()| remarks)
            .map_err(|error| explain("Kafka", error)),
    );
    report.add("position", check_position(config, &there, install));
}

/// What Kafka says to one attempt.
fn ask<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(&mut Admin, &Config) -> Result<T> + Send + 'static,
) -> Result<T> {
    let config = config.clone();
    within(LIMIT, move || {
        work(&mut Admin::new(kafka(&config), Interrupt::new()), &config)
    })
}

fn check_position(config: &Config, there: &[String], install: Option<Uuid>) -> Finding {
    let install = install.ok_or("not known without the database and its schema")?;
    let mut written = full_names(&config.topic_prefix, &config.service.writes());
    written.retain(|name| there.contains(name));
    let config = config.clone();
    within(LIMIT, move || {
        let (kafka, service) = (kafka(&config), config.service);
        let found = position::find(
            &written,
            &kafka,
            &Interrupt::new(),
            service,
            install,
            Isolation::ReadCommitted,
        )?;
        position::require_own(&found, service, || connect(&config))
    })
    .map(|lost| lost.into_iter().map(|lost| lost.what).collect())
    .map_err(|error| error.to_string())
}

fn kafka(config: &Config) -> kafka::Config {
    kafka::Config {
        api_timeout: ATTEMPT,
        ..config.kafka(&format!("{}-check", config.service.name()))
    }
}

/// Does it on another thread, which is left behind when it takes too long: the process ends soon.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        Err(Error::Fatal(format!(
            "no answer within {} s: check the address and what answers there",
            limit.as_secs()
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_is_not_waited_for_longer_than_the_limit() {
        let (_never, wait) = mpsc::channel::<()>();
        let silent = within(Duration::ZERO, move || {
            let _ = wait.recv();
            Ok(())
        });
        assert!(silent.unwrap_err().to_string().contains("no answer within"));
        assert_eq!(within(LIMIT, || Ok(5)).unwrap(), 5);
    }
}
