//! The schema: migrated at start, under a lock, with separate histories for what is common and what is the
//! service's own (one list would break when the common set grows).

use std::time::{Duration, Instant};

use postgres::error::SqlState;
use refinery::{Migration, Runner};
use uuid::Uuid;

use crate::db::{Query, Session};
use crate::error::{Error, Result};
use crate::event::Service;

mod common {
    refinery::embed_migrations!("../sql/common");
}

/// What this binary is: a schema that asks for a newer one refuses it.
const BINARY_VERSION: i32 = 1;

/// While a migration waits for a table, everybody who comes later waits behind it: it gives up soon, and tries again ...
const ATTEMPT: &str = "set lock_timeout = '2s'";
/// ... after a while in which they get their turn,
const PAUSE: Duration = Duration::from_secs(1);
/// until somebody should look at who holds the table.
const PATIENCE: Duration = Duration::from_secs(60);
/// For another instance that migrates: longer than it may wait for a table, and then change a large one.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(600);

/// Brings the schema up to date. A schema newer than the binary but additive is warned of and used.
///
/// # Errors
/// [`Error::Fatal`] when the schema needs a newer binary, when an applied migration differs from this binary's, or
/// when a migration fails (it leaves no trace).
pub fn migrate(session: &mut Session, service: Service, own: Runner) -> Result<()> {
    session.batch_execute("set statement_timeout = 0; set lock_timeout = '10s'")?;
    require_own_schema(session, service)?;
    take_turn(session)?;
    let until = Instant::now() + PATIENCE;
    let outcome = session
        .batch_execute(ATTEMPT)
        .and_then(|()| check_compatible(session))
        .and_then(|()| run(session, "common", common::migrations::runner(), until))
        .and_then(|()| run(session, service.name(), own, until));
    // the session is closed by the caller in any case; unlocking lets the next instance start at once
    session.batch_execute(&format!("select pg_advisory_unlock({LOCK_CLASS}, 3)"))?;
    outcome?;
    set_sequences_on(session, until)?;
    read_install_id(session)?;
    require_rights(session, service)
}

/// Tables that somebody has locked are waited for `until` then.
fn set_sequences_on(session: &mut Session, until: Instant) -> Result<()> {
    let behind = loop {
        match find_sequences_behind(session) {
            Err(error) if error.is_lock_timeout() && Instant::now() < until => {
                log::warn!(
                    "somebody has locked a table, whose sequence is to be looked at: {error}"
                );
                std::thread::sleep(PAUSE);
            }
            found => break found?,
        }
    };
    for behind in behind {
        log::warn!("{}; it is set on", behind.describe());
        behind.set_on(session)?;
    }
    Ok(())
}

/// The installation of the database.
///
/// # Errors
/// [`Error::Fatal`] when somebody has emptied its table; what PostgreSQL says.
pub fn read_install_id(session: &mut Session) -> Result<Uuid> {
    let rows = session.query("select install_id from install", &[])?;
    rows.first()
        .map(|row| row.get(0))
        .ok_or_else(|| emptied("install"))
}

fn emptied(table: &str) -> Error {
    Error::Fatal(format!(
        "the table {table} is empty: was the schema restored without its rows? Restore them, or begin with an empty database, \
         and with other topics (TOPIC_PREFIX)"
    ))
}

/// What [`require_rights`] looks at, apart from the tables of the service.
const TABLES: [&str; 7] = [
    "consumer_offset",
    "dead_letter",
    "dead_letter_action",
    "install",
    "leadership",
    "set_aside",
    "takeover",
];
/// Those that services call, and those that these call in turn: under the rights of the user, too. All overloads of a name
/// count, as each version of a service calls its own.
const FUNCTIONS: [&str; 8] = [
    "append_outbox",
    "lock_class",
    "move_offsets",
    "outbox_server",
    "remove_published",
    "require_all_or_none",
    "require_unchanged",
    "stamp_outbox",
];

fn tables(service: Service) -> &'static [&'static str] {
    match service {
        Service::Order => &[
            "orders",
            "idempotency_key",
            "deadline",
            "timeline",
            "repair",
            "order_flow",
            "order_outbox",
        ],
        Service::Payment => &["account", "payment", "payment_outbox"],
        Service::Stock => &["item", "reservation", "stock_outbox"],
    }
}

fn functions(service: Service) -> &'static [&'static str] {
    match service {
        Service::Order => &[
            "order_is_possible",
            "place_new_orders",
            "remove_published_around",
        ],
        Service::Payment => &["payment_is_possible"],
        Service::Stock => &["reservation_is_possible"],
    }
}

/// Whether all that this service works with is there, and its user may use it. A restore by another role loses rights, and row
/// security would hide rows.
fn require_rights(session: &mut Session, service: Service) -> Result<()> {
    let sql = "
        with ours as (
            select name, to_regclass(quote_ident(name)) as oid from unnest($1::text[]) as name
        )
        select string_agg(what, ', ' order by what), current_user::text from (
            select 'the table ' || name || ', which is missing' as what from ours where oid is null
            union all
            select upper(wanted) || ' on ' || name
              from ours cross join unnest(array['select', 'insert', 'update', 'delete']) as wanted
             where oid is not null and not has_table_privilege(oid, wanted)
            union all
            select 'the right to see all rows of ' || name || ' (it has row level security)'
              from ours where oid is not null and row_security_active(oid)
            union all
            select upper(wanted) || ' on sequence ' || name
              from unnest(array['outbox_clock', 'outbox_clock_ahead']) as name
             cross join unnest(array['select', 'update']) as wanted
             where to_regclass(name) is null or not has_sequence_privilege(to_regclass(name), wanted)
            union all
            select 'EXECUTE on function ' || name
              from unnest($2::text[]) as name
             where (select bool_and(has_function_privilege(p.oid, 'execute')) from pg_proc p
                     where p.proname = name and p.pronamespace = current_schema()::regnamespace) is not true
        ) as missing";
    let names: Vec<&str> = TABLES.iter().chain(tables(service)).copied().collect();
    let functions: Vec<&str> = FUNCTIONS
        .iter()
        .chain(functions(service))
        .copied()
        .collect();
    let row = &session.query(sql, &[&names, &functions])?[0];
    match row.get::<_, Option<String>>(0) {
        None => Ok(()),
        Some(missing) => Err(Error::Fatal(format!(
            "the database's user {} lacks what this service needs: {missing}",
            row.get::<_, String>(1)
        ))),
    }
}

/// `lock_class()`, before there is one.
const LOCK_CLASS: &str = "(select case nspname when 'public' then 7301 else oid::integer end
                             from pg_namespace where nspname = current_schema())";

/// One database may hold all services, each in a schema of its own: tables of the same names would be shared else.
fn require_own_schema(session: &mut Session, service: Service) -> Result<()> {
    let found = &session.query(
        "select current_schema()::text, current_setting('search_path')",
        &[],
    )?[0];
    let (schema, path): (Option<String>, String) = (found.get(0), found.get(1));
    let Some(schema) = schema else {
        return Err(Error::Fatal(format!(
            "no schema of the search_path ({path}) is there, or may be used: create it, or grant usage on it"
        )));
    };
    for other in Service::ALL.into_iter().filter(|other| *other != service) {
        if has_table(
            session,
            &format!("\"{}\".{}", schema.replace('"', "\"\""), other.outbox()),
        )? {
            return Err(Error::Fatal(format!(
                "schema {schema} belongs to the service {}: give {} a database or a schema of its own \
                 (options=-c%20search_path=… in its URL)",
                other.name(),
                service.name()
            )));
        }
    }
    require_no_other_schema(session, &schema, &path)
}

/// A schema that is made later, and stands before ours in the search path, would hide all that is there.
fn require_no_other_schema(session: &mut Session, schema: &str, path: &str) -> Result<()> {
    let sql = "select s from unnest(current_schemas(false)) as s
                where s <> $1 and to_regclass(format('%I.install', s)) is not null
                  and to_regclass(format('%I.install', $1)) is null";
    match session
        .query(sql, &[&schema])?
        .first()
        .map(|row| row.get::<_, String>(0))
    {
        None => Ok(()),
        Some(other) => Err(Error::Fatal(format!(
            "the search_path ({path}) leads to schema {schema}, where there is nothing, and the tables are in schema {other}: \
             drop schema {schema}, or name the right one in the URL (options=-c%20search_path={other})"
        ))),
    }
}

/// A sequence that would draw keys which are taken: rows were copied here without it (logical replication, a restore of the
/// data only).
#[derive(Debug)]
struct Behind {
    sequence: String,
    column: String,
    next: i64,
    last: i64,
}

impl Behind {
    fn describe(&self) -> String {
        let Behind {
            column, next, last, ..
        } = self;
        format!("the sequence of {column} stands at {next}, behind its rows (up to {last})")
    }

    /// A little further than it must: others may draw from it at this moment.
    fn set_on(&self, session: &mut Session) -> Result<()> {
        const FURTHER: i64 = 1_000;
        session
            .query(
                "select setval($1::text::regclass, $2)",
                &[&self.sequence, &(self.last + FURTHER)],
            )
            .map(drop)
    }
}

fn find_sequences_behind(session: &mut Session) -> Result<Vec<Behind>> {
    // names come quoted, as they are to be written
    let columns = session.query(
        "select c.oid::regclass::text, quote_ident(a.attname),
                pg_get_serial_sequence(c.oid::regclass::text, a.attname)
           from pg_class c join pg_attribute a on a.attrelid = c.oid
          where c.relnamespace = (select oid from pg_namespace where nspname = current_schema())
            and c.relkind = 'r' and a.attidentity <> ''
            -- who may only look can't see where they stand
            and has_sequence_privilege(pg_get_serial_sequence(c.oid::regclass::text, a.attname), 'select')
          order by 1",
        &[],
    )?;
    let mut behind = vec![];
    for row in &columns {
        let (table, column, sequence): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let sql = format!(
            "select case when is_called then last_value + 1 else last_value end, (select max({column}) from {table})
               from {sequence}"
        );
        let row = &session.query(&sql, &[])?[0];
        let (next, last): (i64, Option<i64>) = (row.get(0), row.get(1));
        if let Some(last) = last.filter(|last| *last >= next) {
            behind.push(Behind {
                sequence,
                column: format!("{table}.{column}"),
                next,
                last,
            });
        }
    }
    Ok(behind)
}

/// One instance after the other.
fn take_turn(session: &mut Session) -> Result<()> {
    let until = Instant::now() + PATIENCE_WITH_OTHERS;
    loop {
        match session.batch_execute(&format!("select pg_advisory_lock({LOCK_CLASS}, 3)")) {
            Err(error) if error.is_lock_timeout() && Instant::now() < until => {
                log::warn!("waiting for another instance that brings the schema up to date");
            }
            done => return done,
        }
    }
}

/// What a start would find to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// How many migrations it would apply.
    pub migrations: usize,
    /// Where the schema is newer than the binary, but additive: what to know about it.
    pub newer: Vec<String>,
    /// Sequences that it would set on, because they stand behind their tables' rows.
    pub behind: Vec<String>,
}

/// What [`migrate`] would do. It only reads, and takes no lock.
///
/// # Errors
/// [`Error::Fatal`] where `migrate` would refuse the schema; not where a migration itself would fail.
pub fn find_pending(session: &mut Session, service: Service, own: Runner) -> Result<Pending> {
    require_own_schema(session, service)?;
    check_compatible(session)?;
    let mut pending = Pending::default();
    for (history, mut runner) in [
        ("common", common::migrations::runner()),
        (service.name(), own),
    ] {
        let applied = applied(session, history, &mut runner)?;
        let known = runner.get_migrations();
        let last = newest(&applied);
        pending.migrations += known
            .iter()
            .filter(|migration| Some(migration.version()) > last)
            .count();
        pending.newer.extend(newer(history, &applied, known));
        if let Some(other) = known.iter().find(|ours| {
            applied
                .iter()
                .any(|it| it.version() == ours.version() && it != *ours)
        }) {
            return Err(Error::Fatal(format!(
                "the schema ({history}) has another {other} than this binary"
            )));
        }
    }
    if pending.migrations > 0 {
        require_right_to_create(session)?;
        require_own_tables(session)?;
    } else {
        require_rights(session, service)?;
        let behind = find_sequences_behind(session)?;
        pending.behind = behind
            .iter()
            .map(|behind| format!("{}; a start sets it on", behind.describe()))
            .collect();
    }
    Ok(pending)
}

/// Since PostgreSQL 15 not everybody may create tables in `public`.
fn require_right_to_create(session: &mut Session) -> Result<()> {
    let sql = "select coalesce(has_schema_privilege(current_schema(), 'create'), false), current_user::text,
                      coalesce(current_schema()::text, 'public')";
    let found = &session.query(sql, &[])?[0];
    let (may, user, schema): (bool, String, String) = (found.get(0), found.get(1), found.get(2));
    if may {
        return Ok(());
    }
    Err(Error::Fatal(format!(
        "there are migrations to apply, and {user} may not create tables in schema {schema}: make {user} the database's owner"
    )))
}

/// Only its owner may change a table.
fn require_own_tables(session: &mut Session) -> Result<()> {
    let sql = "select string_agg(c.relname, ', ' order by c.relname), current_user::text
                 from pg_class c
                where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'S')
                  and not pg_has_role(c.relowner, 'usage')";
    let row = &session.query(sql, &[])?[0];
    match row.get::<_, Option<String>>(0) {
        None => Ok(()),
        Some(tables) => Err(Error::Fatal(format!(
            "there are migrations to apply, and {user} does not own {tables}: make it the owner",
            user = row.get::<_, String>(1)
        ))),
    }
}

/// None where there is no history table yet. The runner looks at that table from now on.
fn applied(session: &mut Session, history: &str, runner: &mut Runner) -> Result<Vec<Migration>> {
    let table = format!("schema_history_{history}");
    runner.set_migration_table_name(&table);
    if !has_table(session, &table)? {
        return Ok(vec![]);
    }
    runner
        .get_applied_migrations(session.client())
        .map_err(|error| {
            Error::Fatal(format!(
                "the schema's history ({history}) can't be read: {}",
                describe(&error)
            ))
        })
}

/// Whether the session's database has this table.
pub fn has_table(session: &mut Session, name: &str) -> Result<bool> {
    Ok(session.query("select to_regclass($1) is not null", &[&name])?[0].get(0))
}

fn check_compatible(session: &mut Session) -> Result<()> {
    if !has_table(session, "schema_compat")? {
        return Ok(());
    }
    require_compatible(session)
}

/// Whether this binary may run on the schema as it is now.
///
/// # Errors
/// [`Error::Fatal`] when the schema needs a newer binary; what PostgreSQL says.
pub fn require_compatible(session: &mut Session) -> Result<()> {
    let rows = session.query("select min_version from schema_compat", &[])?;
    let wanted: i32 = rows.first().ok_or_else(|| emptied("schema_compat"))?.get(0);
    if wanted > BINARY_VERSION {
        return Err(Error::Fatal(format!(
            "the database's schema needs a binary of schema version {wanted} or newer; this one is {BINARY_VERSION}: deploy a newer binary"
        )));
    }
    Ok(())
}

/// Whether something can be written: what is asked for changes nothing, but a server that only reads refuses it.
///
/// # Errors
/// [`Error::Unusable`] where it can't; what PostgreSQL says.
pub fn require_writable(session: &mut Session) -> Result<()> {
    session
        .execute(
            "update install set created_at = created_at where false",
            &[],
        )
        .map(drop)
}

/// Tables that somebody uses are waited for `until` then.
fn run(session: &mut Session, history: &str, mut runner: Runner, until: Instant) -> Result<()> {
    let applied = applied(session, history, &mut runner)?;
    if let Some(newer) = newer(history, &applied, runner.get_migrations()) {
        log::warn!("{newer}");
    }
    let runner = runner
        .set_grouped(true)
        .set_abort_divergent(true)
        .set_abort_missing(false);
    // a failed attempt leaves no trace, so another can be made
    let report = loop {
        match runner.run(session.client()) {
            Err(error) if waits_for_a_table(&error) && Instant::now() < until => {
                let why = describe(&error);
                log::warn!(
                    "schema ({history}): somebody uses a table that a migration changes: {why}"
                );
                std::thread::sleep(PAUSE);
            }
            ran => break ran,
        }
    };
    let report = report.map_err(|error| {
        let why = describe(&error);
        Error::Fatal(format!(
            "the schema ({history}) can't be brought up to date: {why}"
        ))
    })?;
    for migration in report.applied_migrations() {
        log::info!("schema ({history}): applied {migration}");
    }
    Ok(())
}

fn waits_for_a_table(error: &refinery::Error) -> bool {
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<postgres::Error>());
    cause.and_then(postgres::Error::code) == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

fn causes(error: &refinery::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
}

/// An error with what lies behind it, down to the server's own words.
fn describe(error: &refinery::Error) -> String {
    std::iter::once(error.to_string())
        .chain(causes(error).map(ToString::to_string))
        .collect::<Vec<_>>()
        .join(": ")
}

fn newer(history: &str, applied: &[Migration], known: &[Migration]) -> Option<String> {
    let (there, ours) = (newest(applied)?, newest(known)?);
    (there > ours).then(|| {
        format!("schema ({history}) is at version {there}, newer than this binary's {ours}, and says it is compatible")
    })
}

fn newest(migrations: &[Migration]) -> Option<i32> {
    migrations.iter().map(Migration::version).max()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// What the migrations of these folders of `sql/` create of this kind.
    fn created(kind: &str, folders: [&str; 2]) -> BTreeSet<String> {
        let mut created = BTreeSet::new();
        for folder in folders {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../sql")
                .join(folder);
            for file in std::fs::read_dir(folder).unwrap() {
                let sql = std::fs::read_to_string(file.unwrap().path()).unwrap();
                for line in sql.lines().filter(|line| line.starts_with("create ")) {
                    if let Some((_, rest)) = line.split_once(kind) {
                        let name = rest.split(['(', ' ']).next().unwrap();
                        created.insert(name.to_string());
                    }
                }
            }
        }
        created
    }

    fn names(common: &[&str], own: &[&str]) -> BTreeSet<String> {
        common.iter().chain(own).map(ToString::to_string).collect()
    }

    #[test]
    fn every_function_and_table_of_the_migrations_is_one_whose_rights_are_checked() {
        for service in Service::ALL {
            let folders = ["common", service.name()];
            assert_eq!(
                names(&FUNCTIONS, functions(service)),
                created(" function ", folders)
            );
            let mut tables_created = created(" table ", folders);
            // it is only read, at every start
            assert!(tables_created.remove("schema_compat"));
            assert_eq!(names(&TABLES, tables(service)), tables_created);
        }
    }
}
