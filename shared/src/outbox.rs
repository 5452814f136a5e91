//! The outbox: events stored in the transaction that causes them, deleted when they are known to be published.
//!
//! An event becomes JSON in [`append`] (order's writer stores the rows of new orders itself, by `place_new_orders`). The
//! [`relay`] takes the rows of its own process from [`memory`] and reads others by [`read_batch`], its function `records`
//! makes records of them, and [`remove_published`] deletes them.
//!
//! # The append lock
//!
//! Every append takes a transaction-scoped advisory lock (`stamp_outbox` in `sql/common`), by a statement of its own
//! before the insert. Under it the row gets its id and `stored_at = greatest(clock_timestamp(), the last one)`. So id
//! order, stored time and commit order are the same (I4):
//!
//! ```text
//! append A   lock ── id 7 ── insert ── COMMIT
//! append B      waits for the lock       │ lock ── id 8 ── insert ── COMMIT
//! relay                                  ├ reads 7                     ├ reads 8
//! ```
//!
//! Without the lock row 8 could become visible before row 7. The relay would pass row 7 over, because it reads behind
//! the last id.
//!
//! * A session that hangs while it holds the lock is cut off by its own `idle_in_transaction_session_timeout`. Else a
//!   waiter whose `lock_timeout` has passed ends it ([`end_hanging_writer`]).
//! * If the last stored time is ahead of the clock by more than a minute, the clock had run ahead. Stored times follow
//!   the clock again from then on.
//! * The last stored time is kept in a sequence. A row would get a new version with each append, and all later appends
//!   would walk over those versions while an old snapshot is open.
//! * The locks' first key is the schema's (`lock_class`), because advisory locks belong to the whole database.
//!
//! **Must not be changed**: the lock is taken before the id is drawn, and COMMIT follows the insert at once.

use std::time::Duration;

use postgres::error::SqlState;
use uuid::Uuid;

use crate::db::pool::Connection;
use crate::db::{Params, Query, Session, Tx};
use crate::error::{Error, Result};
use crate::event::envelope;
use crate::event::{Event, Service};
use crate::outbox::wake::Waker;

pub mod leader;
pub mod memory;
pub mod origin;
pub mod overlap;
pub mod position;
pub mod relay;
pub mod wake;

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
/// once, without work between; then `waker` is called. Nothing to append, no lock.
///
/// # Errors
/// What PostgreSQL says; on a lock timeout see [`end_hanging_writer`].
pub fn append(tx: &mut Tx<'_>, waker: &Waker, events: &[Event]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let (order_ids, messages): (Vec<Uuid>, Vec<String>) = events.iter().map(stored).unzip();
    let sql = format!("select {APPENDED} from append_outbox($1, $2)");
    let appended = Appended::read(&tx.query(&sql, &[&order_ids, &messages])?[0], 0);
    let waker = waker.clone();
    tx.after_commit(move || waker.wake(appended.as_ref(), order_ids.into_iter().zip(messages)));
    Ok(())
}

/// A row of its own: its order, and its messages as they are stored.
pub fn stored(event: &Event) -> (Uuid, String) {
    let messages = envelope::to_stored(std::slice::from_ref(event));
    (event.order_id, messages)
}

/// What `append_outbox` says, behind its call in the same statement.
pub const APPENDED: &str = "current_setting('saga.appended', true)";

/// What an append has stored.
pub struct Appended {
    /// The first row's id; the others follow it.
    first: i64,
    stored_at: String,
    /// As [`read_server`] returns it; never empty.
    server: String,
}

impl Appended {
    /// Reads the column [`APPENDED`] of a row; none where nothing was said.
    pub fn read(row: &postgres::Row, column: usize) -> Option<Appended> {
        let text: String = row.get::<_, Option<String>>(column)?;
        let mut words = text.splitn(3, ' ');
        Some(Appended {
            first: words.next()?.parse().ok()?,
            stored_at: words.next()?.into(),
            server: words.next().filter(|server| !server.is_empty())?.into(),
        })
    }
}

/// The oldest rows behind the id `after`, `limit` at most, by id.
pub fn read_batch(
    session: &mut Session,
    service: Service,
    after: i64,
    limit: usize,
) -> Result<Vec<Row>> {
    let sql = format!(
        r#"select id, order_id, to_char(stored_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), messages::text
             from {} where id > $1 order by id limit $2"#,
        service.outbox()
    );
    let rows = session.query(&sql, &[&after, &(limit as i64)])?;
    Ok(rows.iter().map(row).collect())
}

fn row(row: &postgres::Row) -> Row {
    Row {
        id: row.get(0),
        order_id: row.get(1),
        stored_at: row.get(2),
        messages: row.get(3),
    }
}

/// Which server this is, as `append_outbox` says it; empty where it may not be known.
pub fn read_server(session: &mut Session) -> Result<String> {
    Ok(session.query("select outbox_server()", &[])?[0].get(0))
}

/// The id of a row's last message; none if there is no such row.
pub fn find_last_message(session: &mut Session, service: Service, id: i64) -> Result<Option<Uuid>> {
    let sql = format!(
        "select (messages -> -1 ->> 'id')::uuid from {} where id = $1",
        service.outbox()
    );
    Ok(session.query(&sql, &[&id])?.first().map(|row| row.get(0)))
}

/// Moves the last stored time on to `time` (RFC 3339), if that is later: what is stored from now on does not stand before what
/// a lost or another database had stored (I4).
pub fn advance_clock(query: &mut impl Query, time: &str) -> Result<()> {
    let sql = "select setval(clock, time)
                 from (select (extract(epoch from $1::text::timestamptz) * 1000000)::bigint as time) as lost,
                      (select 'outbox_clock'::regclass as clock, last_value from outbox_clock
                        union all select 'outbox_clock_ahead', last_value from outbox_clock_ahead) as ours
                where last_value < time";
    query.execute(sql, &[&time]).map(drop)
}

/// Rows that are counted before it is left at "many".
const MANY: i64 = 100_000;

/// The sessions `a` that hold this schema's advisory locks `l`; `l.objid` says which.
const HOLDERS: &str = "pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and l.classid = lock_class()::oid and l.granted
      and l.database = (select oid from pg_database where datname = current_database())";

/// What waits in an outbox.
pub struct OutboxStats {
    /// How many rows are there, 100,000 at most.
    pub rows: i64,
    /// The id of the oldest.
    pub oldest: Option<i64>,
    /// Its age in seconds, by the database's clock; 0: there is none.
    pub oldest_seconds: f64,
    /// Whether a relay holds the lead.
    pub led: bool,
    /// Seconds by which the latest stored time is ahead of the database's clock; 0: it is not.
    pub clock_ahead: f64,
}

/// What waits to be published.
pub fn count_waiting(session: &mut Session, service: Service) -> Result<OutboxStats> {
    let sql = format!(
        "with oldest as (select id, stored_at from {0} order by id limit 1)
         select (select count(*) from (select from {0} limit $1) as counted), (select id from oldest),
                coalesce((select greatest(extract(epoch from clock_timestamp() - stored_at), 0)::float8 from oldest), 0),
                exists (select from {HOLDERS} and l.objid = 2 and a.application_name = $2),
                (select greatest(greatest(c.last_value, a.last_value) / 1e6 - extract(epoch from clock_timestamp()), 0)::float8
                   from outbox_clock c, outbox_clock_ahead a)",
        service.outbox()
    );
    let row = &session.query(&sql, &[&MANY, &format!("{}-relay", service.name())])?[0];
    Ok(OutboxStats {
        rows: row.get(0),
        oldest: row.get(1),
        oldest_seconds: row.get(2),
        led: row.get(3),
        clock_ahead: row.get(4),
    })
}

/// What is open in the database and keeps its old rows, a snapshot or a transaction that has written: under a name that stays as long
/// as one does, for how many seconds; none, where that may not be seen, as of other users' sessions. Whatever was changed or deleted
/// since is walked over by each statement that comes by. (Of other users' sessions even their kind may not be seen. Autovacuum's have
/// no user.)
pub fn find_snapshots(session: &mut Session) -> Result<Vec<(String, Option<f64>)>> {
    let sql = "select pid || '/' || coalesce(backend_xid, backend_xmin), extract(epoch from clock_timestamp() - xact_start)::float8
                 from pg_stat_activity
                where datname = current_database() and coalesce(backend_xid, backend_xmin) is not null and usename is not null
                  and pid <> pg_backend_pid()
                union all select gid, extract(epoch from clock_timestamp() - prepared)::float8
                            from pg_prepared_xacts where database = current_database()";
    Ok(session
        .query(sql, &[])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect())
}

/// The service's sessions that wait for a lock for longer than batches take: each by its name, with what it waits for and who
/// holds that.
pub fn find_blocked(session: &mut Session, service: Service) -> Result<Vec<(String, String)>> {
    let sql = "
        select w.application_name,
               format('a lock on %s, held by %s',
                      coalesce(case when l.locktype = 'advisory' and l.objid = 1 then 'what is appended to the outbox' end,
                               l.relation::regclass::text, 'a row'),
                      coalesce(format('session %s (%s, %s)', b.pid, b.application_name, b.usename),
                               'a prepared transaction (pg_prepared_xacts)'))
          from pg_stat_activity w
          join pg_locks l on l.pid = w.pid and not l.granted
          join lateral (select pid from unnest(pg_blocking_pids(w.pid)) as pid limit 1) as first on true
          left join pg_stat_activity b on b.pid = first.pid
         where w.datname = current_database() and w.wait_event_type = 'Lock' and w.application_name like $1
           and w.query_start < clock_timestamp() - interval '2 seconds'
           -- those who try to acquire the lead, and who wait in turn for the append lock
           and not (l.locktype = 'advisory' and l.objid = 2)
           and coalesce(b.application_name, '') not like $1";
    let rows = session.query(sql, &[&format!("{}-%", service.name())])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What a service does with what is published.
#[derive(Clone, Copy)]
pub enum Removal {
    /// Its rows are deleted.
    Rows,
    /// Before that their orders are marked as published, and their deadline begins: it is this far away.
    MarkedRows(Duration),
}

/// Deletes what a position names, in a transaction of its own. All rows gone: an earlier delete has won.
///
/// # Errors
/// [`Error::Fatal`] when the outbox holds some of the rows only; what PostgreSQL says. Nothing was deleted.
pub fn remove_published(
    session: &mut Session,
    removal: Removal,
    first: i64,
    last: i64,
    count: i64,
) -> Result<()> {
    let removed = match removal {
        Removal::Rows => session.query(
            "select remove_published($1, $2, $3)",
            &[&first, &last, &count],
        ),
        Removal::MarkedRows(deadline) => {
            let millis = deadline.as_millis() as f64;
            let params: Params<'_> = &[&first, &last, &count, &millis];
            let sql = "select remove_published($1, $2, $3, $4 * interval '1 millisecond')";
            match session.query(sql, params) {
                Err(error) if error.is_lock_timeout() => {
                    log::warn!("somebody holds a row of what was published: it is left as it is");
                    let sql =
                        "select remove_published_around($1, $2, $3, $4 * interval '1 millisecond')";
                    session.query(sql, params)
                }
                removed => removed,
            }
        }
    };
    match removed {
        Err(Error::Database(error)) if error.code() == Some(&SqlState::ASSERT_FAILURE) => {
            Err(Error::Fatal(format!(
                "the position in Kafka names {count} outbox rows ({first} to {last}): {}; nothing was deleted; compare them by hand",
                Error::Database(error)
            )))
        }
        done => done.map(drop),
    }
}

/// After a waiter's lock timeout: ends the session that has held the append lock for longer than that. It hangs, and every
/// writer of the database waits behind it. Any other error is let pass. Returns whether one was ended.
pub fn end_hanging_writer(connection: &mut Connection, error: &Error) -> bool {
    if !error.is_lock_timeout() {
        return false;
    }
    match connection.session().and_then(end_holder) {
        Ok(0) => return false,
        Ok(_) => log::warn!("ended a session that held the append lock beyond the lock timeout"),
        Err(error) => log::warn!("can't end the session that holds the append lock: {error}"),
    }
    true
}

fn end_holder(session: &mut Session) -> Result<usize> {
    let sql = format!(
        "select pg_terminate_backend(l.pid) from {HOLDERS} and l.objid = 1
                and a.xact_start < clock_timestamp() - current_setting('lock_timeout')::interval"
    );
    Ok(session.query(&sql, &[])?.len())
}
