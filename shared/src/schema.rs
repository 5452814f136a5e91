//! The schema: migrated at start, under a lock, with separate histories for what is common and what is the
//! service's own (one list would break when the common set grows).

use refinery::Runner;

use crate::db::{Query, Session};
use crate::error::{Error, Result};
use crate::event::Service;

mod common {
    refinery::embed_migrations!("../sql/common");
}

/// What this binary is: a schema that asks for a newer one refuses it.
const BINARY_VERSION: i32 = 2;

/// Brings the schema up to date. A schema newer than the binary but additive is warned of and used.
///
/// # Errors
/// [`Error::Fatal`] when the schema needs a newer binary, when an applied migration differs from this binary's, or
/// when a migration fails (it leaves no trace).
pub fn migrate(session: &mut Session, service: Service, own: Runner) -> Result<()> {
    session.batch_execute("set statement_timeout = 0; set lock_timeout = '60s'; select pg_advisory_lock(7301, 3)")?;
    let outcome = check_compatible(session)
        .and_then(|()| run(session, "common", common::migrations::runner()))
        .and_then(|()| run(session, service.name(), own));
    // the session is closed by the caller in any case; unlocking lets the next instance start at once
    session.batch_execute("select pg_advisory_unlock(7301, 3)")?;
    outcome
}

fn check_compatible(session: &mut Session) -> Result<()> {
    if session.query("select to_regclass('schema_compat')::text", &[])?[0].get::<_, Option<String>>(0).is_none() {
        return Ok(());
    }
    let wanted: i32 = session.query("select min_version from schema_compat", &[])?[0].get(0);
    if wanted > BINARY_VERSION {
        return Err(Error::Fatal(format!(
            "the database's schema needs a binary of schema version {wanted} or newer; this one is {BINARY_VERSION}: deploy a newer binary"
        )));
    }
    Ok(())
}

fn run(session: &mut Session, history: &str, mut runner: Runner) -> Result<()> {
    runner.set_migration_table_name(format!("schema_history_{history}"));
    let runner = runner.set_grouped(true).set_abort_divergent(true).set_abort_missing(false);
    warn_if_newer(session, history, &mut |client| runner.get_last_applied_migration(client), &runner);
    let report = runner.run(session.client()).map_err(|error| {
        Error::Fatal(format!("the schema ({history}) can't be brought up to date: {error}{}", cause(&error)))
    })?;
    for migration in report.applied_migrations() {
        log::info!("schema ({history}): applied {migration}");
    }
    Ok(())
}

/// What lies behind it, down to the server's own words.
fn cause(error: &refinery::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.map(|cause| format!(": {cause}")).collect()
}

fn warn_if_newer(
    session: &mut Session,
    history: &str,
    last_applied: &mut dyn FnMut(
        &mut postgres::Client,
    ) -> std::result::Result<Option<refinery::Migration>, refinery::Error>,
    runner: &Runner,
) {
    let newest = runner.get_migrations().iter().map(refinery::Migration::version).max();
    // no history table yet: nothing was applied
    let applied = last_applied(session.client()).ok().flatten().map(|migration| migration.version());
    if applied > newest {
        log::warn!(
            "schema ({history}) is at version {applied:?}, newer than this binary's {newest:?}, and says it is compatible"
        );
    }
}
