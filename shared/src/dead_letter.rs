//! All SQL of the table `dead_letter`: the records that could not be handled, with their story. Bytes are kept as bytes;
//! text is scrubbed of what PostgreSQL's text can't hold.

use std::time::Duration;

use kafka::{Bytes, Record, StrBytes, TopicPartition};
use serde::Serialize;
use uuid::Uuid;

use crate::db::cleanup::Cleanup;
use crate::db::{Params, Query, Session, Tx};
use crate::error::Cause;
use crate::error::Result;
use crate::metrics;

pub mod action;
pub mod http;
pub mod replay;
pub mod replay_many;
pub mod view;

/// A record to park.
pub struct Parked<'a> {
    /// Why.
    pub cause: Cause,
    /// The same for a person.
    pub detail: String,
    /// How often it was tried.
    pub attempts: i32,
    /// Where it was read.
    pub partition: &'a TopicPartition,
    /// What was read; for a gap, its first offset.
    pub record: &'a Record,
    /// For a gap: the first offset after it.
    pub to_offset: Option<i64>,
}

impl<'a> Parked<'a> {
    /// A record that was tried once.
    pub fn new(
        cause: Cause,
        detail: String,
        partition: &'a TopicPartition,
        record: &'a Record,
    ) -> Parked<'a> {
        Parked {
            cause,
            detail,
            attempts: 1,
            partition,
            record,
            to_offset: None,
        }
    }
}

/// So many of a cause are logged one by one; more that were parked together are one line.
const LINES: usize = 3;

/// Counts and logs what was parked in one transaction.
fn report(parked: &[(Cause, String)]) {
    parked.iter().for_each(|(cause, _)| metrics::parked(*cause));
    for cause in Cause::ALL {
        let lines = parked.iter().filter(|(of, _)| *of == cause);
        let lines: Vec<&str> = lines.map(|(_, line)| line.as_str()).collect();
        match lines[..] {
            [first, .., last] if lines.len() > LINES => log::error!(
                "{} records parked ({}): first, {first}; last, {last}",
                lines.len(),
                cause.name()
            ),
            _ => lines.iter().for_each(|line| log::error!("{line}")),
        }
    }
}

/// Parks records, in the transaction that moves the offsets past them; counts and logs them after its commit. A record that is
/// parked already stays as it is.
pub fn park(tx: &mut Tx<'_>, records: &[Parked<'_>]) -> Result<()> {
    let mut parked = Vec::new();
    for one in records {
        if insert(tx, one)? {
            // foreign text stays in its line
            let (cause, detail) = (one.cause, one.detail.escape_debug());
            let (partition, offset) = (one.partition, one.record.offset);
            let line = format!("parked {partition}@{offset} ({}): {detail}", cause.name());
            parked.push((cause, line));
        }
    }
    if !parked.is_empty() {
        tx.after_commit(move || report(&parked));
    }
    Ok(())
}

/// Whether it was not there yet.
fn insert(tx: &mut Tx<'_>, parked: &Parked<'_>) -> Result<bool> {
    let Parked {
        cause,
        detail,
        attempts,
        partition,
        record,
        to_offset,
    } = parked;
    let (names, values) = header_columns(record);
    let parked_now = tx.execute(
        "insert into dead_letter (cause, detail, attempts, topic, topic_id, partition, record_offset, to_offset,
                                  record_key, record_value, header_names, header_values)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         on conflict (topic_id, partition, record_offset, cause, md5(coalesce(record_value, '')), coalesce(to_offset, -1))
         do nothing",
        &[
            &cause.name(),
            &scrubbed(detail),
            attempts,
            &&*partition.topic,
            &partition.topic_id,
            &partition.partition,
            &record.offset,
            to_offset,
            &record.key.as_deref(),
            &record.value.as_deref(),
            &names,
            &values,
        ],
    )?;
    Ok(parked_now > 0)
}

/// A record's headers as the columns `header_names` and `header_values` hold them.
pub(crate) fn header_columns(record: &Record) -> (Vec<String>, Vec<Option<&[u8]>>) {
    record
        .headers
        .iter()
        .map(|(name, value)| (scrubbed(name), value.as_deref()))
        .unzip()
}

/// A record as it was kept: its key, value, header names and header values are the four columns from `at`.
pub(crate) fn kept_record(row: &postgres::Row, at: usize, offset: i64, timestamp: i64) -> Record {
    let [key, value] = [at, at + 1].map(|column| row.get::<_, Option<Vec<u8>>>(column));
    let (names, values): (Vec<String>, Vec<Option<Vec<u8>>>) = (row.get(at + 2), row.get(at + 3));
    let headers = names
        .into_iter()
        .zip(values)
        .map(|(name, value)| (StrBytes::from_string(name), value.map(Bytes::from)))
        .collect();
    Record {
        offset,
        timestamp,
        key: key.map(Bytes::from),
        value: value.map(Bytes::from),
        headers,
    }
}

/// What PostgreSQL's text can't hold is replaced.
pub fn scrubbed(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// What has become of a parked record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LetterState {
    /// Nothing yet, or no replay could handle it.
    Open,
    /// A replay handled it, or found nothing left to do.
    Replayed,
    /// Somebody decided that nothing is to be done.
    Discarded,
}

crate::names! { LetterState: Open = "OPEN", Replayed = "REPLAYED", Discarded = "DISCARDED" }

/// Which parked records are meant: those that all given parts fit.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// What has become of it.
    pub state: Option<LetterState>,
    /// Why it was parked.
    pub cause: Option<Cause>,
    /// Where it was read: one of these topics.
    pub topics: Option<Vec<String>>,
    /// The order that its key names.
    pub order_id: Option<Uuid>,
}

impl Filter {
    /// Queries `columns` of the records that fit; `page` says which of them, by $5 and $6. An order's records are found by
    /// its index, so that filter has a statement of its own.
    fn query(
        &self,
        session: &mut Session,
        columns: &str,
        page: &str,
        from: i64,
        limit: i64,
    ) -> Result<Vec<postgres::Row>> {
        let of_order = if self.order_id.is_some() {
            "order_id = $4"
        } else {
            "$4::uuid is null"
        };
        let sql = format!(
            "select {columns} from dead_letter
              where ($1::text is null or state = $1) and ($2::text is null or cause = $2)
                and ($3::text[] is null or topic = any($3)) and {of_order} and {page}"
        );
        let (state, cause) = (
            self.state.map(LetterState::name),
            self.cause.map(Cause::name),
        );
        let params: Params<'_> = &[&state, &cause, &self.topics, &self.order_id, &from, &limit];
        session.query(&sql, params)
    }
}

/// A parked record, as the list shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its number.
    pub id: i64,
    /// What has become of it.
    pub state: LetterState,
    /// [`Cause::name`].
    pub cause: String,
    /// The cause for a person.
    pub detail: String,
    /// How often it was tried before it was parked.
    pub attempts: i32,
    /// Where it was read.
    pub topic: String,
    /// Where it was read.
    pub partition: i32,
    /// Where it was read; for a gap, its first offset.
    pub offset: i64,
    /// For a gap: the first offset after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_offset: Option<i64>,
    /// The order, where the key is its id.
    pub order_id: Option<Uuid>,
    /// RFC 3339.
    pub parked_at: String,
    /// How often it was replayed.
    pub replays: i32,
    /// RFC 3339; null: never.
    pub replayed_at: Option<String>,
    /// What the last replay did.
    pub replay_result: Option<String>,
    /// RFC 3339; null: it was not.
    pub discarded_at: Option<String>,
    /// Why.
    pub discard_reason: Option<String>,
}

/// A parked record with its bytes.
pub struct Kept {
    /// What the list shows.
    pub summary: Summary,
    /// Where it was read.
    pub partition: TopicPartition,
    /// What was read.
    pub record: Record,
}

const COLUMNS: &str = r#"id, state, cause, detail, attempts, topic, partition, record_offset, to_offset, order_id,
    to_char(parked_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), replays,
    to_char(replayed_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), replay_result,
    to_char(discarded_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), discard_reason"#;

fn summary(row: &postgres::Row) -> Summary {
    Summary {
        id: row.get(0),
        state: LetterState::from_name(row.get(1)).expect("the table derives the names"),
        cause: row.get(2),
        detail: row.get(3),
        attempts: row.get(4),
        topic: row.get(5),
        partition: row.get(6),
        offset: row.get(7),
        to_offset: row.get(8),
        order_id: row.get(9),
        parked_at: row.get(10),
        replays: row.get(11),
        replayed_at: row.get(12),
        replay_result: row.get(13),
        discarded_at: row.get(14),
        discard_reason: row.get(15),
    }
}

/// The newest parked records that fit before number `before`, `limit` at most.
pub fn list(
    session: &mut Session,
    filter: &Filter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Summary>> {
    let page = "id < $5 order by id desc limit $6";
    let rows = filter.query(session, COLUMNS, page, before.unwrap_or(i64::MAX), limit)?;
    Ok(rows.iter().map(summary).collect())
}

/// Removes those that were handled so long ago. One that topics still hold must not be among them: read again, it would be
/// parked again ([`crate::service::topics`] checks it).
pub fn clean_up(retention: Option<Duration>) -> Cleanup {
    let sql = "delete from dead_letter where id in
                   (select id from dead_letter where handled_at < clock_timestamp() - $1 * interval '1 millisecond'
                     order by handled_at limit $2 for update skip locked)";
    Cleanup {
        what: "handled dead letters",
        retention,
        sql: sql.into(),
    }
}

/// Dead letters that are counted before it is left at "many".
const MANY: i64 = 10_000;

/// How many nobody has handled, `MANY` at most.
pub fn count_open(session: &mut Session) -> Result<i64> {
    let sql = "select count(*) from (select from dead_letter where handled_at is null limit $1) as counted";
    Ok(session.query(sql, &[&MANY])?[0].get(0))
}

/// The numbers of the oldest parked records that fit after number `after`, `limit` at most, and how many there are without
/// that limit.
pub fn find_oldest(
    session: &mut Session,
    filter: &Filter,
    after: i64,
    limit: i64,
) -> Result<(Vec<i64>, i64)> {
    let page = "id > $5 order by id limit $6";
    let rows = filter.query(session, "id, count(*) over ()", page, after, limit)?;
    Ok((
        rows.iter().map(|row| row.get(0)).collect(),
        rows.first().map_or(0, |row| row.get(1)),
    ))
}

/// One parked record; none if there is no such number.
pub fn find(session: &mut impl Query, id: i64) -> Result<Option<Kept>> {
    let sql = format!(
        "select {COLUMNS}, topic_id, record_key, record_value, header_names, header_values from dead_letter where id = $1"
    );
    Ok(session.query(&sql, &[&id])?.first().map(kept))
}

/// The same, locked: a replay or discard by somebody else meanwhile is waited for if `wait`, and its result is seen.
///
/// # Errors
/// What PostgreSQL says: that somebody holds it is one ([`is_lock_timeout`](crate::error::Error::is_lock_timeout)).
pub fn lock(tx: &mut Tx<'_>, id: i64, wait: bool) -> Result<Option<Kept>> {
    let sql = match wait {
        true => "select 1 from dead_letter where id = $1 for update",
        false => "select 1 from dead_letter where id = $1 for update nowait",
    };
    tx.query(sql, &[&id])?;
    find(tx, id)
}

/// Records that a parked record was replayed, and what came of it. `APPLIED` and `UNCHANGED…` make it [`LetterState::Replayed`].
pub fn note_replay(tx: &mut Tx<'_>, id: i64, result: &str) -> Result<()> {
    let sql = "update dead_letter set replays = replays + 1, replayed_at = clock_timestamp(), replay_result = $2
                where id = $1";
    tx.execute(sql, &[&id, &scrubbed(result)])?;
    Ok(())
}

/// Makes a parked record [`LetterState::Discarded`]; it is kept.
pub fn discard(tx: &mut Tx<'_>, id: i64, reason: &str) -> Result<()> {
    let sql = "update dead_letter set discarded_at = clock_timestamp(), discard_reason = $2 where id = $1";
    tx.execute(sql, &[&id, &reason])?;
    Ok(())
}

fn kept(row: &postgres::Row) -> Kept {
    let summary = summary(row);
    let topic_id = row.get(16);
    Kept {
        partition: TopicPartition {
            topic: summary.topic.as_str().into(),
            topic_id,
            partition: summary.partition,
        },
        record: kept_record(row, 17, summary.offset, 0),
        summary,
    }
}
