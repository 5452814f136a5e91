//! Records that wait for a row which another session holds locked, mostly a person's. They are set aside, and nothing
//! else waits with them. This module has all SQL of the table `set_aside`, and finds out which session holds a row.
//!
//! A batch waits for its rows' locks in sorted order. When that wait is given up (5 s), its records, and for a minute
//! those of later batches, are divided. [`Handler::waits_for`](crate::handler::Handler::waits_for) locks what is free
//! (`skip locked`) and returns what is not.
//!
//! ```text
//! a record ── its row is free ────────────────────────────► effect
//!    │ the row is held, or something about its order is set aside already
//!    ▼
//! set_aside ── the row is free ───────────────────────────► effect
//!  │  ▲   └─── fails by its own fault, five attempts ─────► dead letter
//!  └──┘ the row is still held
//! ```
//!
//! Any instance tries them again: one that has met some every second, the others every 15 s, for an instance that is
//! gone.
//!
//! The relay's removal, the deadline scan and the writer go around held rows, too. `remove_published_around` leaves
//! such orders as they are, the scan puts their deadlines off, and the writer refuses requests whose idempotency key is
//! held.
//!
//! **Must not be changed**: a record goes into `set_aside` in the transaction that moves the offset past it, with what
//! it waits for. Each later record about the same order goes behind it, also where the partition has gone to another consumer: that
//! one reads the offsets first, then whether anything is set aside. A consumer looks behind until it has read that nothing is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use kafka::{Record, TopicPartition};
use postgres::types::ToSql;
use uuid::Uuid;

use crate::db::{Query, Session, Tx};
use crate::dead_letter;
use crate::error::Result;
use crate::event::Event;

/// So many are tried again in one transaction.
const BATCH: i64 = 200;

/// Rows that are held by another batch for a moment are waited for: so often, so long.
const SHORT_WAITS: u32 = 3;
const SHORT_WAIT: Duration = Duration::from_millis(30);

/// After a wait for a row was given up, held rows are looked for, and gone around, for so long.
const GO_AROUND: Duration = Duration::from_secs(60);

/// Whether rows that somebody holds are to be looked for before anything waits for them: it costs statements of its own.
#[derive(Default)]
pub struct Around(Option<Instant>);

impl Around {
    /// A row was held, or still is.
    pub fn held(&mut self) {
        self.0 = Some(Instant::now() + GO_AROUND);
    }

    /// Whether that was a short while ago.
    pub fn is_due(&self) -> bool {
        self.0.is_some_and(|until| Instant::now() < until)
    }
}

/// A record that waits.
pub struct Aside {
    /// Its number.
    pub id: i64,
    /// Where it was read.
    pub partition: TopicPartition,
    /// As it was read.
    pub record: Record,
    /// The number of the next attempt: 1, and one more after each that failed by its own fault.
    pub attempts: i32,
}

/// Sets records aside, in the transaction that moves the offset past them; each with what it waits for.
pub fn set(tx: &mut Tx<'_>, records: &[(&TopicPartition, &Record, String)]) -> Result<()> {
    for (partition, record, waits_for) in records {
        let (names, values) = dead_letter::header_columns(record);
        tx.execute(
            "insert into set_aside (topic_id, topic, partition, record_offset, record_time, record_key, record_value,
                                    header_names, header_values, waits_for)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            &[
                &partition.topic_id,
                &&*partition.topic,
                &partition.partition,
                &record.offset,
                &record.timestamp,
                &record.key.as_deref(),
                &record.value.as_deref(),
                &names,
                &values,
                waits_for,
            ],
        )?;
    }
    Ok(())
}

/// Locks those that were not tried for longest, and that no other instance tries at this moment; of those about one order the
/// first, which keeps the others behind it.
pub fn take(tx: &mut Tx<'_>) -> Result<Vec<Aside>> {
    let rows = tx.query(
        "select id, topic, topic_id, partition, record_offset, record_time, record_key, record_value, header_names,
                header_values, attempts
           from set_aside s
          where not exists (select from set_aside earlier where earlier.record_key = s.record_key and earlier.id < s.id)
          order by tried_at, id limit $1 for update skip locked",
        &[&BATCH],
    )?;
    Ok(rows
        .iter()
        .map(|row| Aside {
            id: row.get(0),
            partition: TopicPartition {
                topic: row.get::<_, &str>(1).into(),
                topic_id: row.get(2),
                partition: row.get(3),
            },
            record: dead_letter::kept_record(row, 6, row.get(4), row.get(5)),
            attempts: row.get(10),
        })
        .collect())
}

/// Removes those that have had their effect, or are parked. Answers how many were there.
pub fn remove(tx: &mut Tx<'_>, ids: &[i64]) -> Result<u64> {
    tx.execute("delete from set_aside where id = any($1)", &[&ids])
}

/// These wait on: it is others' turn.
pub fn wait_on(db: &mut impl Query, ids: &[i64]) -> Result<()> {
    db.execute(
        "update set_aside set tried_at = clock_timestamp() where id = any($1)",
        &[&ids],
    )
    .map(drop)
}

/// One failed by its own fault once more.
pub fn record_failure(session: &mut Session, id: i64) -> Result<()> {
    session
        .execute(
            "update set_aside set attempts = attempts + 1 where id = $1",
            &[&id],
        )
        .map(drop)
}

/// Those of the keys under which something waits: what comes later about the same orders waits behind it.
pub fn find_waiting_keys(tx: &mut Tx<'_>, keys: &[&[u8]]) -> Result<HashSet<Vec<u8>>> {
    let rows = tx.query(
        "select distinct record_key from set_aside where record_key = any($1)",
        &[&keys],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether any wait, also those that another instance tries at this moment.
pub fn are_any(db: &mut impl Query) -> Result<bool> {
    let sql = "select exists (select from set_aside)";
    Ok(db.query(sql, &[])?[0].get(0))
}

/// How many wait, for how many seconds the oldest has waited, and what it waits for.
pub fn count(session: &mut Session) -> Result<(i64, f64, Option<String>)> {
    let sql =
        "select count(*), coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8,
                      (select waits_for from set_aside order by id limit 1)
                 from set_aside";
    let row = &session.query(sql, &[])?[0];
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Locks those rows of `table` with these keys (of SQL type `kind`) that are free; returns the others, each in words: which row,
/// and who holds it. Rows that do not exist are none.
pub fn find_held(
    tx: &mut Tx<'_>,
    (table, column, kind): (&str, &str, &str),
    keys: &(dyn ToSql + Sync),
) -> Result<HashMap<String, String>> {
    let sql = format!(
        "with free as materialized (
             select t.{column} from {table} t where t.{column} = any($1::{kind}[]) order by t.{column} for update skip locked
         )
         select t.{column}::text,
                (select format(', held by session %s (%s, %s)', a.pid, a.application_name, a.usename)
                   from pg_locks l join pg_stat_activity a using (pid)
                  where l.locktype = 'transactionid' and l.transactionid = t.xmax and l.granted limit 1)
           from unnest($1::{kind}[]) as wanted (key) join {table} t on t.{column} = wanted.key
          where not exists (select from free where free.{column} = t.{column})"
    );
    let mut rows = tx.query(&sql, &[keys])?;
    for _ in 0..SHORT_WAITS {
        if rows.is_empty() {
            break;
        }
        // another instance's batch is over soon, a person's transaction is not
        std::thread::sleep(SHORT_WAIT);
        rows = tx.query(&sql, &[keys])?;
    }
    Ok(rows
        .iter()
        .map(|row| {
            let (key, holder): (String, Option<String>) = (row.get(0), row.get(1));
            let what = format!("the row of {table} {key}{}", holder.unwrap_or_default());
            (key, what)
        })
        .collect())
}

/// What events wait for at a participant: the row of their order in `orders`, or that of `table` whose key is in `column`, as it is
/// `asked` for or, in the same column of `orders`, was taken from.
pub fn find_held_at_participant(
    tx: &mut Tx<'_>,
    events: &[Event],
    orders: &str,
    (table, column): (&str, &str),
    asked: impl Fn(&Event) -> Option<&str>,
) -> Result<Vec<Option<String>>> {
    let order_ids: Vec<Uuid> = events.iter().map(|event| event.order_id).collect();
    let held_orders = find_held(tx, (orders, "order_id", "uuid"), &order_ids)?;
    let taken = format!(
        "select order_id, {column} from {orders} where order_id = any($1) and {column} is not null"
    );
    let taken: HashMap<Uuid, String> = tx
        .query(&taken, &[&order_ids])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let names: Vec<[Option<&str>; 2]> = events
        .iter()
        .map(|event| {
            let taken = taken.get(&event.order_id).map(String::as_str);
            [asked(event), taken]
        })
        .collect();
    let all: BTreeSet<&str> = names.iter().flatten().flatten().copied().collect();
    let held_rows = find_held(
        tx,
        (table, column, "text"),
        &all.into_iter().collect::<Vec<_>>(),
    )?;
    Ok(events
        .iter()
        .zip(&names)
        .map(|(event, names)| {
            let order = held_orders.get(&event.order_id.to_string());
            order
                .or_else(|| names.iter().flatten().find_map(|name| held_rows.get(*name)))
                .cloned()
        })
        .collect())
}
