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

use crate::db::{Query, Session, Tx};
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

/// What this process's consumers have read or committed last.
static KNOWN: Mutex<BTreeMap<TopicPartition, i64>> = Mutex::new(BTreeMap::new());
/// What this process's consumers know besides.
static HINTS: Mutex<BTreeMap<TopicPartition, Hint>> = Mutex::new(BTreeMap::new());
static SETBACKS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Default)]
struct Hint {
    /// Under which leader the partition was read last.
    leader_epoch: Option<i32>,
    /// Where its row was seen last, its ctid. It need not be there any more: the row is then looked for by its key.
    seen_at: Option<String>,
}

fn hints() -> MutexGuard<'static, BTreeMap<TopicPartition, Hint>> {
    HINTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of_process() -> MutexGuard<'static, BTreeMap<TopicPartition, i64>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A consumer of this process reads what this leader has written; what it commits from now on it has read under it, or under one
/// before, which is as good: an election that has taken back the one has taken back the other.
pub fn know_epoch(partition: &TopicPartition, leader_epoch: i32) {
    hints().entry(partition.clone()).or_default().leader_epoch = Some(leader_epoch);
}

/// A consumer of this process has read or committed this offset.
pub fn know(partition: &TopicPartition, next: i64) {
    let mut known = of_process();
    match known.get_mut(partition) {
        Some(offset) => *offset = next,
        None => _ = known.insert(partition.clone(), next),
    }
}

/// The partition may be somebody else's from now on.
pub fn forget(partition: &TopicPartition) {
    hints().remove(partition);
    of_process().remove(partition);
}

/// What this process's consumers know. Rows that are read afterwards can't be behind it, unless the database has gone back.
pub fn known() -> BTreeMap<TopicPartition, i64> {
    of_process().clone()
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
    let (ids, numbers) = keys(partitions.iter());
    let names: Vec<&str> = partitions
        .iter()
        .map(|partition| &*partition.topic)
        .collect();
    session.execute(
        "insert into consumer_offset (topic_id, partition, topic, next_offset)
         select id, partition, topic, 0 from unnest($1::uuid[], $2::int[], $3::text[]) as p (id, partition, topic)
         order by id, partition on conflict (topic_id, partition) do nothing",
        &[&ids, &numbers, &names],
    )?;
    let places = partitions
        .iter()
        .cloned()
        .zip(now(session, &ids, &numbers)?);
    Ok(places
        .map(|(partition, (next, leader_epoch))| Start {
            partition,
            next,
            leader_epoch,
        })
        .collect())
}

fn now(query: &mut impl Query, ids: &[Uuid], numbers: &[i32]) -> Result<Vec<(i64, Option<i32>)>> {
    let rows = query.query(
        "select o.next_offset, case when o.epoch_offset = o.next_offset then o.leader_epoch end
           from unnest($1::uuid[], $2::int[]) with ordinality as p (id, partition, place)
           join consumer_offset o on o.topic_id = p.id and o.partition = p.partition order by p.place",
        &[&ids, &numbers],
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
    let (ids, numbers) = keys(moves.iter().map(|m| &m.partition));
    let from: Vec<i64> = moves.iter().map(|m| m.from).collect();
    let to: Vec<i64> = moves.iter().map(|m| m.to).collect();
    let known: Vec<Hint> = {
        let hints = hints();
        moves
            .iter()
            .map(|m| hints.get(&m.partition).cloned().unwrap_or_default())
            .collect()
    };
    let epochs: Vec<Option<i32>> = known.iter().map(|hint| hint.leader_epoch).collect();
    let seen_at: Vec<Option<&str>> = known.iter().map(|hint| hint.seen_at.as_deref()).collect();
    let rows = tx.query(
        "select move_offsets($1, $2, $3, $4, $5, $6)",
        &[&ids, &numbers, &from, &to, &epochs, &seen_at],
    )?;
    let moved: Vec<Option<String>> = rows[0].get(0);
    if moved.iter().all(Option::is_some) {
        // also where the transaction is rolled back afterwards: what is not there is not found there
        let mut hints = hints();
        for (step, seen_at) in moves.iter().zip(moved) {
            hints.entry(step.partition.clone()).or_default().seen_at = seen_at;
        }
        Ok(())
    } else {
        Err(Error::LostRace("another consumer moved the offsets".into()))
    }
}

fn keys<'a>(partitions: impl Iterator<Item = &'a TopicPartition>) -> (Vec<Uuid>, Vec<i32>) {
    partitions
        .map(|partition| (partition.topic_id, partition.partition))
        .unzip()
}
