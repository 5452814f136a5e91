//! The outbox: events stored in the transaction that causes them, deleted when they are known to be published.

use postgres::error::SqlState;
use uuid::Uuid;

use crate::db::{Query, Session, Tx};
use crate::envelope;
use crate::error::{Error, Result};
use crate::event::{Event, Service};
use crate::pool::Connection;

pub mod origin;

/// A stored row: the events of one order that go out together.
pub struct Row {
    /// Id order = stored time = commit order (I4).
    pub id: i64,
    /// The order they are about.
    pub order_id: Uuid,
    /// RFC 3339, UTC, six digits.
    pub stored_at: String,
    /// JSON, as [`envelope::to_stored`] wrote it.
    pub messages: String,
}

/// Stores events, each a row of its own, in the order given. The append lock is held from here on: COMMIT follows at
/// once, without work between. Nothing to append, no lock.
///
/// # Errors
/// What PostgreSQL says; on a lock timeout see [`end_hanging_writer`].
pub fn append(tx: &mut Tx<'_>, events: &[Event]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let order_ids: Vec<Uuid> = events.iter().map(|event| event.order_id).collect();
    let messages: Vec<String> = events.iter().map(|event| envelope::to_stored(std::slice::from_ref(event))).collect();
    tx.execute("select append_outbox($1, $2)", &[&order_ids, &messages])?;
    Ok(())
}

/// The oldest rows behind the id `after`, `limit` at most, by id.
///
/// # Errors
/// What PostgreSQL says.
pub fn next_batch(session: &mut Session, service: Service, after: i64, limit: usize) -> Result<Vec<Row>> {
    let sql = format!(
        r#"select id, order_id, to_char(stored_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), messages::text
             from {} where id > $1 order by id limit $2"#,
        service.outbox()
    );
    let rows = session.query(&sql, &[&after, &(limit as i64)])?;
    Ok(rows.iter().map(row).collect())
}

fn row(row: &postgres::Row) -> Row {
    Row { id: row.get(0), order_id: row.get(1), stored_at: row.get(2), messages: row.get(3) }
}

/// The id of a row's last message; none if there is no such row.
///
/// # Errors
/// What PostgreSQL says.
pub fn last_message(session: &mut Session, service: Service, id: i64) -> Result<Option<Uuid>> {
    let sql = format!("select (messages -> -1 ->> 'id')::uuid from {} where id = $1", service.outbox());
    Ok(session.query(&sql, &[&id])?.first().map(|row| row.get(0)))
}

/// Moves the last stored time on to `time` (RFC 3339), if that is later: what is stored from now on does not stand before what
/// a lost or another database had stored (I4).
///
/// # Errors
/// What PostgreSQL says.
pub fn advance_clock(query: &mut impl Query, time: &str) -> Result<()> {
    let sql =
        "update outbox_clock set last_stored_at = $1::text::timestamptz where last_stored_at < $1::text::timestamptz";
    query.execute(sql, &[&time]).map(drop)
}

/// Rows that are counted before it is left at "many".
const MANY: i64 = 100_000;

/// How many rows are there, [`MANY`] at most, and the age of the oldest in seconds (0: there is none).
///
/// # Errors
/// What PostgreSQL says.
pub fn waiting(session: &mut Session, service: Service) -> Result<(i64, f64)> {
    let sql = format!(
        "select (select count(*) from (select from {0} limit $1) as counted),
                coalesce((select greatest(extract(epoch from clock_timestamp() - stored_at), 0)::float8
                            from {0} order by id limit 1), 0)",
        service.outbox()
    );
    let rows = session.query(&sql, &[&MANY])?;
    Ok((rows[0].get(0), rows[0].get(1)))
}

/// The query that deletes published rows, where nothing else is to be done then.
pub const REMOVE_PUBLISHED: &str = "select remove_published($1, $2, $3)";

/// Deletes what a position names, by the service's own statement ([`crate::relay::Relay::new`]), in a transaction of its
/// own. All rows gone: an earlier delete has won.
///
/// # Errors
/// [`Error::Fatal`] when the outbox holds some of the rows only; what PostgreSQL says. Nothing was deleted.
pub fn remove_published(session: &mut Session, removal: &str, first: i64, last: i64, count: i64) -> Result<()> {
    match session.query(removal, &[&first, &last, &count]) {
        Err(Error::Database(error)) if error.code() == Some(&SqlState::ASSERT_FAILURE) => Err(Error::Fatal(format!(
            "the position in Kafka names {count} outbox rows ({first} to {last}): {}; nothing was deleted; compare them by hand",
            Error::Database(error)
        ))),
        done => done.map(drop),
    }
}

/// After a waiter's lock timeout: ends the session that has held the append lock for longer than that. It hangs, and every
/// writer of the database waits behind it. Any other error is let pass.
pub fn end_hanging_writer(connection: &mut Connection, error: &Error) {
    if error.is_lock_timeout() {
        match connection.session().and_then(end_holder) {
            Ok(0) => {}
            Ok(_) => log::warn!("ended a session that held the append lock beyond the lock timeout"),
            Err(error) => log::warn!("can't end the session that holds the append lock: {error}"),
        }
    }
}

fn end_holder(session: &mut Session) -> Result<usize> {
    let sql = "select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a using (pid)
                where l.locktype = 'advisory' and l.classid = 7301 and l.objid = 1 and l.granted
                  and l.database = (select oid from pg_database where datname = current_database())
                  and a.xact_start < clock_timestamp() - current_setting('lock_timeout')::interval";
    Ok(session.query(sql, &[])?.len())
}
