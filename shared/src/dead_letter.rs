//! All SQL of the table `dead_letter`: the records that could not be handled, with their story. Bytes are kept as bytes;
//! text is scrubbed of what PostgreSQL's text can't hold.

use std::time::Duration;

use kafka::{Bytes, Record, StrBytes, TopicPartition};
use serde::Serialize;

use crate::db::{Query, Session, Tx};
use crate::error::Result;
use crate::handler::Cause;
use crate::housekeeping::Sweep;
use crate::metrics;

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
    pub fn new(cause: Cause, detail: String, partition: &'a TopicPartition, record: &'a Record) -> Parked<'a> {
        Parked { cause, detail, attempts: 1, partition, record, to_offset: None }
    }
}

/// Parks a record, in the transaction that moves the offset past it. A record that is parked already stays as it is.
///
/// # Errors
/// What PostgreSQL says.
pub fn park(tx: &mut Tx<'_>, parked: &Parked<'_>) -> Result<()> {
    let Parked { cause, detail, attempts, partition, record, to_offset } = parked;
    let names: Vec<String> = record.headers.iter().map(|(name, _)| scrubbed(name)).collect();
    let values: Vec<Option<&[u8]>> = record.headers.iter().map(|(_, value)| value.as_deref()).collect();
    tx.execute(
        "insert into dead_letter (cause, detail, attempts, topic, topic_id, partition, record_offset, to_offset,
                                  record_key, record_value, header_names, header_values)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) on conflict do nothing",
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
    metrics::parked(*cause);
    log::error!("parked {}-{}@{} ({}): {detail}", partition.topic, partition.partition, record.offset, cause.name());
    Ok(())
}

fn scrubbed(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A parked record, as the list shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its number.
    pub id: i64,
    /// [`Cause::name`].
    pub cause: String,
    /// The cause for a person.
    pub detail: String,
    /// How often it was tried.
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
    /// RFC 3339.
    pub parked_at: String,
    /// RFC 3339; null: never.
    pub replayed_at: Option<String>,
    /// What the last replay did.
    pub replay_result: Option<String>,
}

/// A parked record with its bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Detail {
    /// What the list shows.
    #[serde(flatten)]
    pub summary: Summary,
    /// The key, as text where it is text.
    pub key: Option<String>,
    /// The value, as text; bytes that are not UTF-8 show as U+FFFD.
    pub value: Option<String>,
    /// The value's bytes in hexadecimal.
    pub value_hex: Option<String>,
    /// Names and values of the headers, as text.
    pub headers: Vec<(String, Option<String>)>,
    /// Where it was read, and what.
    #[serde(skip)]
    pub raw: (TopicPartition, Record),
}

const COLUMNS: &str = r#"id, cause, detail, attempts, topic, partition, record_offset, to_offset,
    to_char(parked_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    to_char(replayed_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), replay_result"#;

fn summary(row: &postgres::Row) -> Summary {
    Summary {
        id: row.get(0),
        cause: row.get(1),
        detail: row.get(2),
        attempts: row.get(3),
        topic: row.get(4),
        partition: row.get(5),
        offset: row.get(6),
        to_offset: row.get(7),
        parked_at: row.get(8),
        replayed_at: row.get(9),
        replay_result: row.get(10),
    }
}

/// The newest parked records before number `before`, `limit` at most.
///
/// # Errors
/// What PostgreSQL says.
pub fn list(session: &mut Session, before: Option<i64>, limit: i64) -> Result<Vec<Summary>> {
    let sql = format!("select {COLUMNS} from dead_letter where id < $1 order by id desc limit $2");
    let rows = session.query(&sql, &[&before.unwrap_or(i64::MAX), &limit])?;
    Ok(rows.iter().map(summary).collect())
}

/// Removes those that were handled so long ago. One that topics still hold must not be among them: read again, it would be
/// parked again ([`crate::topics`] checks it).
pub fn sweep(retention: Option<Duration>) -> Sweep {
    let sql = "delete from dead_letter where id in
                   (select id from dead_letter where handled_at < clock_timestamp() - $1 * interval '1 millisecond'
                     order by handled_at limit $2 for update skip locked)";
    Sweep { what: "handled dead letters", retention, sql }
}

/// Dead letters that are counted before it is left at "many".
const MANY: i64 = 10_000;

/// How many nobody has handled, [`MANY`] at most.
///
/// # Errors
/// What PostgreSQL says.
pub fn count_open(session: &mut Session) -> Result<i64> {
    let sql = "select count(*) from (select from dead_letter where handled_at is null limit $1) as counted";
    Ok(session.query(sql, &[&MANY])?[0].get(0))
}

/// One parked record; none if there is no such number.
///
/// # Errors
/// What PostgreSQL says.
pub fn find(session: &mut impl Query, id: i64) -> Result<Option<Detail>> {
    let sql = format!(
        "select {COLUMNS}, topic_id, record_key, record_value, header_names, header_values from dead_letter where id = $1"
    );
    Ok(session.query(&sql, &[&id])?.first().map(detail))
}

/// The same, locked for a replay.
///
/// # Errors
/// What PostgreSQL says.
pub fn lock(tx: &mut Tx<'_>, id: i64) -> Result<Option<Detail>> {
    tx.query("select 1 from dead_letter where id = $1 for update", &[&id])?;
    find(tx, id)
}

/// Records that a parked record was replayed, and what came of it.
///
/// # Errors
/// What PostgreSQL says.
pub fn note_replay(tx: &mut Tx<'_>, id: i64, result: &str) -> Result<()> {
    let sql = "update dead_letter set replayed_at = clock_timestamp(), replay_result = $2 where id = $1";
    tx.execute(sql, &[&id, &scrubbed(result)])?;
    Ok(())
}

fn detail(row: &postgres::Row) -> Detail {
    let summary = summary(row);
    let (key, value): (Option<Vec<u8>>, Option<Vec<u8>>) = (row.get(12), row.get(13));
    let names: Vec<String> = row.get(14);
    let values: Vec<Option<Vec<u8>>> = row.get(15);
    let headers: Vec<(String, Option<Bytes>)> =
        names.into_iter().zip(values.into_iter().map(|v| v.map(Bytes::from))).collect();
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let partition =
        TopicPartition { topic: summary.topic.as_str().into(), topic_id: row.get(11), partition: summary.partition };
    Detail {
        key: key.as_ref().map(text),
        value: value.as_ref().map(text),
        value_hex: value.as_ref().map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        headers: headers
            .iter()
            .map(|(name, value)| (name.clone(), value.as_ref().map(|v| String::from_utf8_lossy(v).into_owned())))
            .collect(),
        raw: (
            partition,
            Record {
                offset: summary.offset,
                timestamp: 0,
                key: key.map(Bytes::from),
                value: value.map(Bytes::from),
                headers: headers.into_iter().map(|(name, value)| (StrBytes::from_string(name), value)).collect(),
            },
        ),
        summary,
    }
}
