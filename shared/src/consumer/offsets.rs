//! Where the consumers are: rows of the service's own database, moved by compare-and-set in the transaction of the
//! effects.
//!
//! Offsets never move silently:
//!
//! * Records that Kafka deleted before they were read leave a `LOG_GAP` dead letter.
//! * An offset beyond the log's end (the log was cut) leaves one too. The partition is handled again from its start:
//!   what was handled before changes nothing.
//! * After an unclean election records that were read are taken back. Each fetch says which leader wrote what was read
//!   last (KIP-320). So a new history is noticed, noted as LOG_GAP, and read from where it begins. The leader is kept
//!   beside the offset, for the next start.
//! * A database that has lost its tail knows of less than a consumer has committed there. A consumer that gets records
//!   notices that at the compare-and-set. For one that has nothing to read, the monitor compares once a second what the
//!   consumers know with the rows ([`compare`]).
//!
//! The few rows change with every batch. Each consumer goes to the place where it saw its row last (`move_offsets` in
//! `sql/common`), not past all the versions that an old snapshot keeps.
//!
//! **Must not be changed**: [`advance`] comes first in a batch's transaction, so a consumer that has lost its partition
//! has no effect.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kafka::TopicPartition;
use uuid::Uuid;

use crate::columns;
use crate::db::{Params, Query, Session, Tx};
use crate::error::{Error, Result};

/// A partition's step from the offset that was read to the one after the batch.
pub struct Move {
    /// Which partition.
    pub partition: TopicPartition,
    /// Where this consumer believes the row to be.
    pub from: i64,
    /// Where it goes.
    pub to: i64,
}

/// Where a consumer goes on.
#[derive(Clone)]
pub struct Start {
    /// Which partition.
    pub partition: TopicPartition,
    /// The next offset.
    pub next: i64,
    /// Which of the partition's leaders has written what lies before it, if that is known.
    pub leader_epoch: Option<i32>,
}

/// What this process's consumers know of their partitions.
static KNOWN: Mutex<BTreeMap<TopicPartition, Known>> = Mutex::new(BTreeMap::new());
static SETBACKS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Default)]
struct Known {
    /// The offset that was read or committed last.
    next: Option<i64>,
    /// Under which leader the partition was read last.
    leader_epoch: Option<i32>,
    /// Where its row was seen last, its ctid. It need not be there any more: the row is then looked for by its key.
    seen_at: Option<String>,
}

fn of_process() -> MutexGuard<'static, BTreeMap<TopicPartition, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A consumer of this process reads what this leader has written; what it commits from now on it has read under it, or under one
/// before, which is as good: an election that has taken back the one has taken back the other.
pub fn know_epoch(partition: &TopicPartition, leader_epoch: i32) {
    let mut known = of_process();
    known.entry(partition.clone()).or_default().leader_epoch = Some(leader_epoch);
}

/// A consumer of this process has read or committed this offset.
pub fn know(partition: &TopicPartition, next: i64) {
    let mut known = of_process();
    known.entry(partition.clone()).or_default().next = Some(next);
}

/// The partition may be somebody else's from now on.
pub fn forget(partition: &TopicPartition) {
    of_process().remove(partition);
}

/// What this process's consumers know. Rows that are read afterwards can't be behind it, unless the database has gone back.
pub fn known() -> BTreeMap<TopicPartition, i64> {
    let known = of_process();
    known
        .iter()
        .filter_map(|(partition, known)| Some((partition.clone(), known.next?)))
        .collect()
}

/// Holds rows, as [`read_all`] answers them, against what was [`known`] before they were read. If one is behind, all consumers of
/// this process read their offsets again.
pub fn compare(known: &BTreeMap<TopicPartition, i64>, rows: &[(Uuid, i32, i64)]) {
    let mut behind = Vec::new();
    for (partition, next) in known {
        let now = rows
            .iter()
            .find(|(id, number, _)| (*id, *number) == (partition.topic_id, partition.partition))
            .map_or(0, |row| row.2);
        if now < *next {
            behind.push(format!("{partition} is at {now} and was at {next}"));
        }
    }
    if !behind.is_empty() {
        log::warn!(
            "the database has gone back, and what was handled since is handled again: {}",
            behind.join(", ")
        );
        SETBACKS.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often the database was seen to have gone back.
pub fn setbacks() -> u64 {
    SETBACKS.load(Ordering::Relaxed)
}

/// The next offset of each partition; a partition never seen before starts at 0.
pub fn read(session: &mut Session, partitions: &[TopicPartition]) -> Result<Vec<Start>> {
    session.execute(
        "insert into consumer_offset (topic_id, partition, topic, next_offset)
         select id, partition, topic, 0 from unnest($1::uuid[], $2::int[], $3::text[]) as p (id, partition, topic)
         order by id, partition on conflict (topic_id, partition) do nothing",
        &columns!(partitions, |it| [it.topic_id, it.partition, &*it.topic]),
    )?;
    let places = partitions.iter().cloned().zip(now(session, partitions)?);
    Ok(places
        .map(|(partition, (next, leader_epoch))| Start {
            partition,
            next,
            leader_epoch,
        })
        .collect())
}

fn now(query: &mut impl Query, partitions: &[TopicPartition]) -> Result<Vec<(i64, Option<i32>)>> {
    let rows = query.query(
        "select o.next_offset, case when o.epoch_offset = o.next_offset then o.leader_epoch end
           from unnest($1::uuid[], $2::int[]) with ordinality as p (id, partition, place)
           join consumer_offset o on o.topic_id = p.id and o.partition = p.partition order by p.place",
        &columns!(partitions, |it| [it.topic_id, it.partition]),
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Topic id, partition and next offset of every partition that was ever read.
pub fn read_all(session: &mut Session) -> Result<Vec<(Uuid, i32, i64)>> {
    let rows = session.query(
        "select topic_id, partition, next_offset from consumer_offset",
        &[],
    )?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}

/// Moves the offsets by compare-and-set, locked in sorted order (`sql/common`, `move_offsets`). The first statement of a batch: a consumer that lost
/// its partition stops here.
///
/// # Errors
/// [`Error::LostRace`] when a row is not where the consumer believed: roll back and read again.
pub fn advance(tx: &mut Tx<'_>, moves: &[Move]) -> Result<()> {
    let rows = with_columns(moves, |params| {
        tx.query("select move_offsets($1, $2, $3, $4, $5, $6)", params)
    })?;
    let moved: Vec<Option<String>> = rows[0].get(0);
    if !moved.iter().all(Option::is_some) {
        return Err(Error::LostRace("another consumer moved the offsets".into()));
    }
    note_places(moves, moved);
    Ok(())
}

/// Calls `run` with what `move_offsets` takes for these moves.
pub(super) fn with_columns<T>(moves: &[Move], run: impl FnOnce(Params<'_>) -> T) -> T {
    let known: Vec<(&Move, Known)> = {
        let known = of_process();
        moves
            .iter()
            .map(|step| {
                (
                    step,
                    known.get(&step.partition).cloned().unwrap_or_default(),
                )
            })
            .collect()
    };
    run(&columns!(known, |(step, known)| [
        step.partition.topic_id,
        step.partition.partition,
        step.from,
        step.to,
        known.leader_epoch,
        known.seen_at.as_deref(),
    ]))
}

/// Keeps where `move_offsets` has left the rows of these moves; also where the transaction is rolled back afterwards: what is not
/// there is not found there.
pub(super) fn note_places(moves: &[Move], places: Vec<Option<String>>) {
    let mut known = of_process();
    for (step, seen_at) in moves.iter().zip(places) {
        known.entry(step.partition.clone()).or_default().seen_at = seen_at;
    }
}
