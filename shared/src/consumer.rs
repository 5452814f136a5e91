//! A consumer: a member of the service's group that polls its partitions and turns the records into effects.
//!
//! ```text
//! consume_once ─ begin (offsets, after a rebalance) ─ poll ─ sort ─ handle_batch ─ try_aside
//!                                                                      │
//! BatchProcessor::commit ─ try_commit ─┬─ commit_at_once: a few simple events, by two statements of the service
//!                                      └─ advance (offsets) ─ handle (Handler) ─ append (outbox) ─ Tx::commit
//! ```
//!
//! # When handling fails
//!
//! Only the partition concerned waits. What follows depends on the cause ([`Blame`]):
//!
//! | cause | what follows |
//! | --- | --- |
//! | the message | the batch is split until the record stands alone; [`POISON_ATTEMPTS`] attempts with backoff, then it is given up |
//! | bytes that can't be decoded | parked at once: decoding can't end otherwise a second time |
//! | a server, a lock, a grant, a limit | retried without end (50 ms doubling to 5 s, with jitter) |
//! | nobody: another consumer moved the offsets | the offsets are read again |
//! | a business refusal | the part is FAILED at once |
//!
//! ```text
//! records of several partitions, one transaction
//!    │ fails
//!    ▼
//! each partition by itself ── a server's fault ──► the partition waits, then tries again, without end
//!    │ a message's fault
//!    ▼
//! each half by itself, and so on, until a record stands alone
//!    │ it fails
//!    ▼
//! the partition waits, then tries the record alone ── 5th failure ──► given up, the partition moves on
//! ```
//!
//! **Given up** means, in one transaction:
//!
//! * the request is recorded FAILED (only where it was undecided), and `.dlt` informs order;
//! * the raw record is parked in `dead_letter` with its history;
//! * the partition moves on.
//!
//! An undecodable request whose key is usable is answered on `.dlt` (`UNPROCESSABLE`) all the same.
//!
//! # Topics and rebalances
//!
//! The heartbeat threads watch the topics. A topic that was made anew, or has more partitions, is divided among the
//! members again within about ten seconds. A rebalance stops the members until each has heard of it. So heartbeats come
//! every 200 ms, and end a consumer's wait for records at once. `./run.sh bench restarts` shows what a release costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};
use kafka::{
    FetchConfig, GroupConfig, GroupConsumer, Interrupt, Isolation, Polled, Positions, Record,
    TopicPartition,
};

use crate::config::Config;
use crate::db::pool::Connection;
use crate::db::{Connector, Limits};
use crate::error::Cause;
use crate::error::{Blame, Error, Result};
use crate::event::{Topic, full_names};
use crate::handler::Handler;
use crate::heartbeat;
use crate::metrics;
use crate::outbox::wake::Waker;
use crate::shutdown::Shutdown;
use crate::waits;
use crate::worker::Worker;
use batch::{PartitionBatch, batches};
use offsets::{Move, Start};
use partitions::Partitions;
use processor::BatchProcessor;

pub mod at_once;
pub mod batch;
pub mod offsets;
pub mod partitions;
pub mod processor;
pub mod recovery;
pub mod set_aside;

/// How often a message that fails by its own fault is tried before it is parked.
pub const POISON_ATTEMPTS: u32 = 5;
/// A long poll's end.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// How long a batch waits for what its handler expects: the two answers of a lone order come 1 to 2 ms apart.
const COMPANY: Duration = Duration::from_millis(3);
/// How often our offsets are committed to Kafka, for lag tools, and offsets are moved past what holds no records.
const COMMIT_OFFSETS: Duration = Duration::from_secs(1);
/// Without a heartbeat for so long a member's partitions go to others: longer than a collection pause of the broker.
pub(crate) const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
/// A heartbeat reports a rebalance, and until then the partitions of a member that has left are nobody's.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);
/// Longer than a batch's statement limit: a member in the middle of a batch is waited for.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(45);
/// A member that is out of its group for longer is not in the middle of a rebalance.
const OUT_OF_GROUP_LIMIT: Duration = Duration::from_secs(REBALANCE_TIMEOUT.as_secs() + 15);
/// The others of the group are waited for, and then some calls are made.
const JOIN_LIMIT: Duration = Duration::from_secs(REBALANCE_TIMEOUT.as_secs() + 60);

/// What one pass of [`Consumer::consume_once`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consumed {
    /// Records that were handled, given up or set aside.
    pub handled: usize,
    /// How often a failure has paused a partition.
    pub postponed: usize,
}

/// One consumer thread's state.
pub struct Consumer {
    reader: GroupConsumer,
    processor: BatchProcessor,
    rebalance: Receiver<()>,
    /// The offsets of what the group has given us are read.
    begun: bool,
    partitions: Partitions,
    /// How often the database had gone back when the offsets were read.
    setbacks: u64,
    offsets_committed_at: Instant,
    /// The last turn has failed.
    failed: bool,
}

impl Worker for Consumer {
    fn begin(&mut self) {
        heartbeat::out_of_group(Duration::ZERO);
    }

    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        self.consume_once()?;
        if std::mem::take(&mut self.failed) {
            self.partitions.all_go_on();
        }
        self.wait_if_all_paused(shutdown);
        Ok(Duration::ZERO)
    }

    fn report(&mut self, error: &Error, attempt: u32, pause: Duration) {
        log::warn!("consuming failed (attempt {attempt}, next in {pause:?}): {error}");
        heartbeat::kept_out(error.to_string());
        self.partitions.all_wait(&error.to_string());
        self.failed = true;
    }

    fn end(&mut self) {
        self.leave();
    }
}

impl Consumer {
    /// Connects to nothing yet. `name` is the thread's; `interrupt` ends its Kafka calls.
    ///
    /// # Errors
    /// When the database URL can't be parsed.
    pub fn new(
        config: &Config,
        name: &str,
        interrupt: Interrupt,
        handler: Box<dyn Handler>,
        waker: Waker,
    ) -> Result<Consumer> {
        let kafka = config.kafka(name);
        let fetch = FetchConfig {
            isolation: Isolation::ReadCommitted,
            ..FetchConfig::default()
        };
        let (nudge, rebalance) = bounded(1);
        let connection = Connection::new(Connector::new(&config.database_url, name, Limits::WORK)?);
        let processor =
            BatchProcessor::new(config.topic_prefix.clone(), connection, handler, waker);
        Ok(Consumer {
            reader: GroupConsumer::new(
                kafka,
                interrupt,
                group_config(config, name, nudge),
                fetch,
                Positions::Own,
            )?,
            processor,
            rebalance,
            begun: false,
            partitions: Partitions::default(),
            setbacks: offsets::setbacks(),
            offsets_committed_at: Instant::now(),
            failed: false,
        })
    }

    /// Joins the group if need be, polls once, handles what came.
    ///
    /// # Errors
    /// Kafka's, and the database's while offsets are read; failures of handling stay with their partition instead.
    pub fn consume_once(&mut self) -> Result<Consumed> {
        if (!self.begun || self.setbacks != offsets::setbacks()) && !self.reader.rejoin_needed() {
            self.begin()?;
        }
        if self.reader.rejoin_needed() {
            // every rebalance takes all members out for a moment: that is no reason to call all of them not ready
            heartbeat::out_of_group(OUT_OF_GROUP_LIMIT);
            heartbeat::beat_before(JOIN_LIMIT);
            // before others are given what was ours, and know of it
            self.commit_offsets();
            self.begun = false;
            self.partitions = Partitions::default();
        }
        for partition in self.partitions.end_pauses() {
            self.reader.resume(&partition);
        }
        for partition in self.partitions.end_refusals() {
            log::info!("{partition} goes on");
        }
        let mut consumed = Consumed::default();
        let mut parts = Vec::new();
        // from here on nothing may leave early: what was polled and not handled would be passed over
        for polled in self.reader.poll(MAX_WAIT)? {
            match polled {
                // it comes alone
                Polled::Assigned { .. } => return self.begin().map(|()| consumed),
                polled => parts.extend(self.sort(polled, &mut consumed)),
            }
        }
        if self.processor.expects_more(&parts) {
            // an error has lost no records, and the next poll meets it again
            let polled = self.reader.poll_within(COMPANY).unwrap_or_default();
            // what else there is to say of a partition, the next poll says again, when what was polled of it is handled
            let records = |polled: &Polled| matches!(polled, Polled::Records { .. });
            let mut company = Vec::new();
            for polled in polled.into_iter().filter(records) {
                company.extend(self.sort(polled, &mut consumed));
            }
            self.processor.expects_more(&company);
            company.into_iter().for_each(|more| add(&mut parts, more));
        }
        for batch in batches(parts) {
            // it also says that this thread lives, however many they are
            self.reader.rejoin_needed();
            self.handle_batch(batch, &mut consumed);
        }
        if let Err(error) = self.processor.try_aside() {
            log::warn!("what was set aside can't be tried again: {error}");
        }
        if self.offsets_committed_at.elapsed() >= COMMIT_OFFSETS {
            self.pass_over();
            self.commit_offsets();
        }
        Ok(consumed)
    }

    /// Reads what the group has given us from where the database says.
    fn begin(&mut self) -> Result<()> {
        let Some(assignment) = self.reader.assignment().cloned() else {
            return Ok(());
        };
        self.begun = false;
        // what it has said of the offsets that it knew ends with it, before new ones are said
        self.partitions = Partitions::default();
        self.setbacks = offsets::setbacks();
        let starts = self.processor.read_offsets(&assignment.partitions)?;
        self.reader.assign(
            &starts
                .iter()
                .map(|start| (start.partition.clone(), start.next))
                .collect::<Vec<_>>(),
        );
        for Start {
            partition,
            next,
            leader_epoch,
        } in &starts
        {
            self.reader
                .seek_in_epoch(partition, *next, leader_epoch.unwrap_or(-1));
        }
        self.partitions = Partitions::new(starts);
        self.begun = true;
        heartbeat::in_group();
        let names: Vec<String> = assignment
            .partitions
            .iter()
            .map(TopicPartition::to_string)
            .collect();
        log::info!(
            "joined the group, generation {}, partitions: {}",
            assignment.generation,
            names.join(" ")
        );
        Ok(())
    }

    fn leave(&mut self) {
        self.commit_offsets();
        if let Err(error) = self.reader.leave() {
            log::debug!("leaving the group: {error}");
        }
    }

    /// With nothing to poll, waits for the earliest retry; a rebalance or the stop ends it at once.
    fn wait_if_all_paused(&self, shutdown: &Shutdown) {
        let Some(retry_at) = self.partitions.all_paused_until() else {
            return;
        };
        // an assignment without partitions waits for the next one
        let retry_at = retry_at.unwrap_or(Instant::now() + MAX_WAIT);
        select! {
            recv(self.rebalance) -> _ => {}
            recv(shutdown.receiver()) -> _ => {}
            default(retry_at.saturating_duration_since(Instant::now())) => {}
        }
    }

    /// Records to handle, or something else that is dealt with at once.
    fn sort(&mut self, polled: Polled, consumed: &mut Consumed) -> Option<PartitionBatch> {
        match polled {
            Polled::Records {
                partition,
                records,
                next_offset,
                ..
            } => {
                if let Some(leader_epoch) = self.reader.leader_epoch(&partition) {
                    offsets::know_epoch(&partition, leader_epoch);
                }
                let topic = Topic::from_name(&partition.topic, &self.processor.prefix)?;
                let from = self
                    .partitions
                    .next(&partition)
                    .filter(|_| !records.is_empty())?;
                let place = partition.clone();
                return Some(PartitionBatch::new(
                    topic,
                    partition,
                    (from, next_offset),
                    records,
                    |offset| self.partitions.attempt(&place, offset),
                ));
            }
            Polled::OutOfRange {
                partition,
                offset,
                log_start,
                high_watermark,
            } => {
                let gap = gap(offset, log_start, high_watermark);
                self.park(
                    partition,
                    bare_record(offset),
                    log_start,
                    (Cause::LogGap, gap),
                    consumed,
                );
            }
            Polled::Truncated {
                partition,
                offset,
                end,
            } => {
                let taken_back = format!(
                    "offsets {end} to {} were read and are no longer what Kafka has: a leader without them was elected; read again \
                     from {end}",
                    offset - 1
                );
                self.park(
                    partition,
                    bare_record(offset),
                    end,
                    (Cause::LogGap, taken_back),
                    consumed,
                );
            }
            Polled::Corrupt {
                partition,
                base_offset,
                last_offset,
                bytes,
                cause,
            } => {
                let batch = Record {
                    value: Some(bytes),
                    ..bare_record(base_offset)
                };
                self.park(
                    partition,
                    batch,
                    last_offset + 1,
                    (Cause::Undecodable, cause),
                    consumed,
                );
            }
            Polled::Refused { partition, error } => {
                self.back_off(&partition, &error.into(), consumed);
                self.partitions.refused(&partition);
            }
            Polled::Assigned { .. } => {}
            Polled::UnknownTopic { partition } => {
                log::error!(
                    "topic {} is gone or was made anew: joining the group again",
                    partition.topic
                );
            }
        }
        None
    }

    /// A batch of several partitions in one transaction; if it fails, each partition by itself.
    fn handle_batch(&mut self, mut batch: Vec<PartitionBatch>, consumed: &mut Consumed) {
        batch.retain(|part| self.partitions.expects(part));
        if batch.len() > 1 && batch.iter().all(|part| self.partitions.is_healthy(part)) {
            match self.processor.commit(&batch) {
                Ok(()) => return batch.iter().for_each(|part| self.advance(part, consumed)),
                Err(error) => log::debug!(
                    "a batch of {} partitions failed, now one by one: {error}",
                    batch.len()
                ),
            }
        }
        for part in batch {
            self.handle(part, consumed);
        }
    }

    /// One partition's records: all at once, or split until the poison record stands alone. One known from before
    /// stands alone at once.
    fn handle(&mut self, part: PartitionBatch, consumed: &mut Consumed) {
        if !self.partitions.expects(&part) {
            return;
        }
        let count = part.inputs.len();
        let poison_offset = self.partitions.poison_offset(&part.partition);
        let left = if count > 1 && poison_offset == Some(part.first_offset()) {
            1
        } else {
            match self.processor.commit(std::slice::from_ref(&part)) {
                Ok(()) => return self.advance(&part, consumed),
                Err(error) if error.blame() != Blame::Poison => {
                    if error.blame() == Blame::Transient {
                        part.failed(&error);
                    }
                    return self.back_off(&part.partition, &error, consumed);
                }
                Err(error) if count == 1 => return self.record_failure(&part, &error, consumed),
                Err(_) => count / 2,
            }
        };
        let (left, right) = part.split(left);
        self.handle(left, consumed);
        self.handle(right, consumed);
    }

    /// The lone record's own fault, once more.
    fn record_failure(&mut self, part: &PartitionBatch, error: &Error, consumed: &mut Consumed) {
        part.failed(error);
        let (partition, offset) = (&part.partition, part.first_offset());
        let attempt = 1 + self.partitions.attempts(partition, Some(offset));
        if attempt < POISON_ATTEMPTS {
            log::warn!(
                "{partition}@{offset} failed (attempt {attempt} of {POISON_ATTEMPTS}): {error}"
            );
            metrics::retried(Blame::Poison);
            waits::back_off(partition, error.to_string());
            return self.postpone(partition, attempt, Some(offset), consumed);
        }
        match self.processor.give_up(part, attempt, &error.to_string()) {
            Ok(()) => self.advance(part, consumed),
            Err(error) => {
                log::warn!("{partition}@{offset} can't be parked yet: {error}");
                waits::back_off(partition, error.to_string());
                self.postpone(partition, attempt - 1, Some(offset), consumed);
            }
        }
    }

    /// A conflict: read the offsets anew. A transient failure: try again later, without end.
    fn back_off(&mut self, partition: &TopicPartition, error: &Error, consumed: &mut Consumed) {
        metrics::retried(error.blame());
        if error.blame() == Blame::Conflict {
            log::debug!("{partition}: {error}");
            self.begun = false;
            return self.postpone(partition, 1, None, consumed);
        }
        let attempt = 1 + self.partitions.attempts(partition, None);
        log::warn!("{partition} waits (attempt {attempt} failed): {error}");
        waits::back_off(partition, error.to_string());
        self.processor.end_hanging_writer(error);
        // a poison record stays one: its attempts are counted when the transient failure is over
        let poison_offset = self.partitions.poison_offset(partition);
        let attempt = if poison_offset.is_some() {
            self.partitions.attempts(partition, poison_offset)
        } else {
            attempt
        };
        self.postpone(partition, attempt, poison_offset, consumed);
    }

    /// Pauses the partition; what was fetched beyond its offset is fetched again.
    fn postpone(
        &mut self,
        partition: &TopicPartition,
        attempts: u32,
        poison_offset: Option<i64>,
        consumed: &mut Consumed,
    ) {
        let Some(next) = self.partitions.postpone(partition, attempts, poison_offset) else {
            return;
        };
        self.reader.seek(partition, next);
        self.reader.pause(partition);
        consumed.postponed += 1;
    }

    fn advance(&mut self, part: &PartitionBatch, consumed: &mut Consumed) {
        if !self.partitions.is_healthy(part) {
            waits::goes_on(&part.partition);
        }
        self.partitions.advance(&part.partition, part.to);
        metrics::RECORDS.inc_by(part.inputs.len() as u64);
        consumed.handled += part.inputs.len();
    }

    /// Parks what is no record that could be handled and moves past it; if that fails, the partition waits.
    fn park(
        &mut self,
        partition: TopicPartition,
        record: Record,
        to: i64,
        (cause, detail): (Cause, String),
        consumed: &mut Consumed,
    ) {
        let Some(from) = self.partitions.next(&partition) else {
            return;
        };
        match self.processor.park(
            Move {
                partition: partition.clone(),
                from,
                to,
            },
            cause,
            detail,
            &record,
        ) {
            Ok(()) => {
                waits::goes_on(&partition);
                self.partitions.advance(&partition, to);
                self.reader.seek(&partition, to);
            }
            Err(error) => self.back_off(&partition, &error, consumed),
        }
    }

    /// Nothing that was polled is left to handle here, so what the reader is beyond holds no records. Without this, the
    /// end of an aborted transaction would look like a gap once Kafka has removed it.
    fn pass_over(&mut self) {
        let steps = self
            .partitions
            .passed_over(|partition| self.reader.position(partition));
        if steps.is_empty() || !self.begun {
            return;
        }
        match self.processor.pass_over(&steps) {
            Ok(()) => steps
                .iter()
                .for_each(|step| self.partitions.advance(&step.partition, step.to)),
            Err(error) => {
                log::debug!("the offsets stay before what holds no records: {error}");
                self.begun &= error.blame() != Blame::Conflict;
            }
        }
    }

    /// Commits our offsets to Kafka. Only lag tools read them, so a failure is logged at debug level only.
    fn commit_offsets(&mut self) {
        if !self.begun {
            return;
        }
        let uncommitted = self.partitions.uncommitted();
        if !uncommitted.is_empty() {
            match self.reader.commit_offsets(&uncommitted) {
                Ok(()) => self.partitions.mark_committed(),
                Err(error) => log::debug!("offsets were not committed to Kafka: {error}"),
            }
        }
        self.offsets_committed_at = Instant::now();
    }
}

/// What was polled next: behind its partition's part, where there is one.
fn add(parts: &mut Vec<PartitionBatch>, more: PartitionBatch) {
    match parts
        .iter_mut()
        .find(|part| part.partition == more.partition)
    {
        Some(part) => {
            part.inputs.extend(more.inputs);
            part.to = more.to;
        }
        None => parts.push(more),
    }
}

fn group_config(config: &Config, name: &str, nudge: crossbeam_channel::Sender<()>) -> GroupConfig {
    let prefix = &config.topic_prefix;
    GroupConfig {
        session_timeout: SESSION_TIMEOUT,
        rebalance_timeout: REBALANCE_TIMEOUT,
        heartbeat_interval: HEARTBEAT_INTERVAL,
        thread_name: format!("{name}-heartbeat"),
        on_rebalance: Some(Arc::new(move || _ = nudge.try_send(()))),
        ..GroupConfig::new(config.group(), full_names(prefix, &config.service.reads()))
    }
}

/// What a `LOG_GAP` says ([`offsets`]). Before the log's start: the records between are lost. Beyond its end: the log was cut.
fn gap(offset: i64, start: i64, end: i64) -> String {
    if offset < start {
        format!("offsets {offset} to {} are no longer in Kafka", start - 1)
    } else {
        format!(
            "the offset {offset} is beyond the log's end {end}: the log was cut; handled again from {start}"
        )
    }
}

fn bare_record(offset: i64) -> Record {
    Record {
        offset,
        timestamp: 0,
        key: None,
        value: None,
        headers: vec![],
    }
}
