//! A consumer: a member of the service's group that turns batches of records into effects, each batch in one database
//! transaction with the partitions' offsets.
//!
//! A batch that fails by a message's fault is split until the failing record stands alone; that record has
//! [`ATTEMPTS`] attempts and is then given up and parked. What fails by the world's fault is tried again without end.
//! Meanwhile only the partition concerned waits.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};
use kafka::{FetchConfig, Group, GroupConfig, Interrupt, Isolation, Polled, Record, TopicPartition};
use uuid::Uuid;

use crate::backoff;
use crate::config::Config;
use crate::db::{Connection, Connector, Limits, Tx};
use crate::dead_letter::{self, Cause, Parked};
use crate::error::{Blame, Error, Result};
use crate::event::{self, Channel, Event, Service, Topic, Undecodable};
use crate::offsets::{self, Move};
use crate::outbox;
use crate::shutdown::Shutdown;
use crate::wake::Waker;

/// How often a message that fails by its own fault is tried.
pub const ATTEMPTS: u32 = 5;
/// Records in one transaction: a participant's batch of this size takes 20 to 30 ms, short enough for those who wait
/// for its row locks.
const BATCH: usize = 500;
/// A long poll's end; also the longest time until a rebalance is noticed.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// How often Kafka is told of our offsets, for lag tools.
const COMMIT_OFFSETS: Duration = Duration::from_secs(1);

/// What a handler made of one event.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had its effect.
    Changed,
    /// It changed nothing, and why: a duplicate, or too late.
    Unchanged(&'static str),
    /// It must be parked, with the reason.
    Refused(Cause, String),
}

/// What a handler made of a batch.
#[derive(Default)]
pub struct Handled {
    /// One for each event, in order.
    pub outcomes: Vec<Outcome>,
    /// What is to be sent, in order.
    pub events: Vec<Event>,
}

/// What a service does with the events it reads.
pub trait Handler: Send {
    /// Handles a batch in the open transaction: place, lock, decide, update. It must not append or commit.
    ///
    /// # Errors
    /// The whole batch is rolled back.
    fn handle(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Handled>;

    /// Records that a request has failed for good (only where it was undecided); answers the `….failed` to send.
    ///
    /// # Errors
    /// What PostgreSQL says.
    fn give_up(&mut self, tx: &mut Tx<'_>, order_id: Uuid, attempts: u32) -> Result<Vec<Event>>;

    /// Called after the commit of what [`Handler::handle`] did.
    fn committed(&mut self) {}
}

/// What one pass of [`Consumer::consume_once`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consumed {
    /// Records whose effects are committed.
    pub handled: usize,
    /// Partitions put off by a failure.
    pub postponed: usize,
}

/// One consumer thread's state.
pub struct Consumer {
    service: Service,
    prefix: String,
    group: Group,
    fetcher: kafka::Consumer,
    connection: Connection,
    handler: Box<dyn Handler>,
    waker: Waker,
    rebalance: Receiver<()>,
    joined: bool,
    partitions: HashMap<TopicPartition, Progress>,
    offsets_told: Instant,
}

struct Progress {
    next: i64,
    told: i64,
    trouble: Option<Trouble>,
}

/// A partition that waits before its next attempt.
struct Trouble {
    attempts: u32,
    /// The record that stands alone as the culprit; none while the world is to blame.
    culprit: Option<i64>,
    retry_at: Instant,
    paused: bool,
}

/// A run of one partition's records, from where the offset is believed to be.
struct Slice {
    partition: TopicPartition,
    from: i64,
    to: i64,
    records: Vec<(Record, std::result::Result<Event, Undecodable>)>,
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
        let kafka = kafka::Config::new(config.brokers.clone(), name);
        let (nudge, rebalance) = bounded(1);
        let group = GroupConfig {
            group_id: format!("{}{}", config.topic_prefix, config.service.name()),
            topics: config
                .service
                .reads()
                .iter()
                .map(|topic| format!("{}{}", config.topic_prefix, topic.name()))
                .collect(),
            session_timeout: Duration::from_secs(10),
            // longer than a batch's statement limit: a member in the middle of a batch is waited for
            rebalance_timeout: Duration::from_secs(45),
            heartbeat_interval: Duration::from_secs(3),
            thread_name: format!("{name}-heartbeat"),
            on_rebalance: Some(Box::new(move || _ = nudge.try_send(()))),
        };
        let fetch = FetchConfig { max_wait: MAX_WAIT, isolation: Isolation::ReadCommitted, ..FetchConfig::default() };
        Ok(Consumer {
            service: config.service,
            prefix: config.topic_prefix.clone(),
            group: Group::new(kafka.clone(), interrupt.clone(), group),
            fetcher: kafka::Consumer::new(kafka, interrupt, fetch),
            connection: Connection::new(Connector::new(&config.database_url, name, Limits::WORK)?),
            handler,
            waker,
            rebalance,
            joined: false,
            partitions: HashMap::new(),
            offsets_told: Instant::now(),
        })
    }

    /// Consumes until it is time to stop, then leaves the group.
    ///
    /// # Errors
    /// [`Error::Fatal`] when going on would break an invariant.
    pub fn run(&mut self, shutdown: &Shutdown) -> Result<()> {
        let mut failures = 0;
        while !shutdown.is_set() {
            match self.consume_once() {
                Ok(_) => {
                    failures = 0;
                    self.wait_if_all_paused(shutdown);
                }
                Err(Error::Fatal(why)) => return Err(Error::Fatal(why)),
                Err(Error::Kafka(kafka::Error::Interrupted)) => break,
                Err(error) => {
                    failures += 1;
                    let pause = backoff::delay(failures);
                    log::warn!("consuming failed (attempt {failures}, next in {pause:?}): {error}");
                    shutdown.wait(pause);
                }
            }
        }
        self.leave();
        Ok(())
    }

    /// Joins the group if need be, polls once, handles what came.
    ///
    /// # Errors
    /// Kafka's, and the database's while offsets are read; failures of handling are kept with their partition instead.
    pub fn consume_once(&mut self) -> Result<Consumed> {
        if !self.joined || self.group.rejoin_needed() {
            self.join()?;
        }
        self.end_pauses();
        let polled = self.fetcher.poll()?;
        let mut slices = Vec::new();
        for polled in polled {
            self.sort_in(polled, &mut slices)?;
        }
        let mut consumed = Consumed::default();
        for batch in batches(slices) {
            self.handle_batch(batch, &mut consumed)?;
        }
        self.tell_offsets(COMMIT_OFFSETS);
        Ok(consumed)
    }

    fn join(&mut self) -> Result<()> {
        self.tell_offsets(Duration::ZERO);
        self.joined = false;
        let assignment = self.group.join()?;
        let offsets = offsets::read(self.connection.session()?, &assignment.partitions)?;
        self.fetcher.assign(&offsets);
        self.partitions = offsets
            .into_iter()
            .map(|(partition, next)| (partition, Progress { next, told: -1, trouble: None }))
            .collect();
        self.joined = true;
        log::info!(
            "joined the group, generation {}, partitions: {}",
            assignment.generation,
            names(&assignment.partitions)
        );
        Ok(())
    }

    fn leave(&mut self) {
        self.tell_offsets(Duration::ZERO);
        if let Err(error) = self.group.leave() {
            log::debug!("leaving the group: {error}");
        }
    }

    fn end_pauses(&mut self) {
        let now = Instant::now();
        for (partition, progress) in &mut self.partitions {
            if let Some(trouble) = progress.trouble.as_mut().filter(|trouble| trouble.paused && trouble.retry_at <= now)
            {
                trouble.paused = false;
                self.fetcher.resume(partition);
            }
        }
    }

    /// With nothing to poll, waits for the earliest retry; a rebalance or the stop ends it at once.
    fn wait_if_all_paused(&self, shutdown: &Shutdown) {
        let paused = |progress: &Progress| progress.trouble.as_ref().filter(|t| t.paused).map(|t| t.retry_at);
        let retries: Option<Vec<Instant>> = self.partitions.values().map(paused).collect();
        let idle = Instant::now() + MAX_WAIT;
        let Some(until) = retries.map(|retries| retries.into_iter().min().unwrap_or(idle)) else { return };
        select! {
            recv(self.rebalance) -> _ => {}
            recv(shutdown.receiver()) -> _ => {}
            default(until.saturating_duration_since(Instant::now())) => {}
        }
    }

    fn sort_in(&mut self, polled: Polled, slices: &mut Vec<Slice>) -> Result<()> {
        match polled {
            Polled::Records { partition, records, next_offset, .. } => {
                self.take_records(partition, records, next_offset, slices)
            }
            Polled::OutOfRange { partition, offset, log_start, high_watermark } => {
                self.record_gap(&partition, offset, log_start, high_watermark)?
            }
            Polled::Corrupt { partition, base_offset, last_offset, bytes, cause } => {
                let record =
                    Record { offset: base_offset, timestamp: 0, key: None, value: Some(bytes), headers: vec![] };
                self.park_alone(&partition, record, last_offset + 1, Cause::Undecodable, &cause)?;
            }
            Polled::UnknownTopic { partition } => {
                log::error!("topic {} is gone or was made anew: joining the group again", partition.topic);
                self.joined = false;
            }
        }
        Ok(())
    }

    fn take_records(&self, partition: TopicPartition, records: Vec<Record>, next_offset: i64, slices: &mut Vec<Slice>) {
        let (Some(progress), Some(topic)) =
            (self.partitions.get(&partition), Topic::from_name(&partition.topic, &self.prefix))
        else {
            return;
        };
        if records.is_empty() {
            return;
        }
        let decoded = records.into_iter().map(|record| {
            let event = event::decode(topic, &record);
            (record, event)
        });
        slices.push(Slice { from: progress.next, to: next_offset, records: decoded.collect(), partition });
    }

    /// The batch of several partitions in one transaction; if it fails, each partition by itself.
    fn handle_batch(&mut self, slices: Vec<Slice>, consumed: &mut Consumed) -> Result<()> {
        let mut slices: Vec<Slice> = slices.into_iter().filter(|slice| self.is_due(slice)).collect();
        if slices.len() > 1 && slices.iter().all(|slice| self.is_untroubled(slice)) {
            match self.attempt(&slices) {
                Ok(()) => return self.moved(&slices, consumed),
                Err(error) => log::debug!("a batch of {} partitions failed, now one by one: {error}", slices.len()),
            }
        }
        for slice in slices.drain(..) {
            self.handle_slice(slice, consumed)?;
        }
        Ok(())
    }

    /// False once the partition was put off or its offset was read anew, earlier in this pass.
    fn is_due(&self, slice: &Slice) -> bool {
        self.partitions
            .get(&slice.partition)
            .is_some_and(|p| p.next == slice.from && !p.trouble.as_ref().is_some_and(|t| t.paused))
    }

    fn is_untroubled(&self, slice: &Slice) -> bool {
        self.partitions.get(&slice.partition).is_some_and(|progress| progress.trouble.is_none())
    }

    /// One partition's records: all at once, or split until the culprit stands alone.
    fn handle_slice(&mut self, slice: Slice, consumed: &mut Consumed) -> Result<()> {
        if !self.is_due(&slice) {
            return Ok(());
        }
        let slice = match self.after_culprit(slice) {
            (Some(culprit), rest) => {
                self.handle_alone(culprit, consumed)?;
                let Some(rest) = rest.filter(|rest| self.is_due(rest)) else { return Ok(()) };
                rest
            }
            (None, Some(slice)) => slice,
            (None, None) => return Ok(()),
        };
        if slice.records.len() == 1 {
            return self.handle_alone(slice, consumed);
        }
        match self.attempt(std::slice::from_ref(&slice)) {
            Ok(()) => self.moved(std::slice::from_ref(&slice), consumed),
            Err(error) if error.blame() == Blame::Message => {
                let middle = slice.records.len() / 2;
                let (left, right) = slice.split(middle);
                self.handle_slice(left, consumed)?;
                self.handle_slice(right, consumed)
            }
            Err(error) => self.put_off(&slice, error, consumed),
        }
    }

    /// A known culprit at the head is tried by itself, so that its next attempt costs no splitting.
    fn after_culprit(&self, slice: Slice) -> (Option<Slice>, Option<Slice>) {
        let trouble = self.partitions.get(&slice.partition).and_then(|progress| progress.trouble.as_ref());
        let at_head =
            trouble.and_then(|trouble| trouble.culprit) == slice.records.first().map(|(record, _)| record.offset);
        if !at_head || slice.records.len() == 1 {
            return (None, Some(slice));
        }
        let (culprit, rest) = slice.split(1);
        (Some(culprit), Some(rest))
    }

    fn handle_alone(&mut self, slice: Slice, consumed: &mut Consumed) -> Result<()> {
        match self.attempt(std::slice::from_ref(&slice)) {
            Ok(()) => self.moved(std::slice::from_ref(&slice), consumed),
            Err(error) if error.blame() == Blame::Message => self.strike(slice, error, consumed),
            Err(error) => self.put_off(&slice, error, consumed),
        }
    }

    /// The record's own fault, once more.
    fn strike(&mut self, slice: Slice, error: Error, consumed: &mut Consumed) -> Result<()> {
        let offset = slice.records[0].0.offset;
        let trouble = self.partitions.get(&slice.partition).and_then(|progress| progress.trouble.as_ref());
        let attempts =
            1 + trouble.filter(|trouble| trouble.culprit == Some(offset)).map_or(0, |trouble| trouble.attempts);
        if attempts < ATTEMPTS {
            log::warn!(
                "{}-{}@{offset} failed (attempt {attempts} of {ATTEMPTS}): {error}",
                slice.partition.topic,
                slice.partition.partition
            );
            self.postpone(&slice.partition, attempts, Some(offset), consumed);
            return Ok(());
        }
        match self.give_up(&slice, attempts, &error.to_string()) {
            Ok(()) => self.moved(std::slice::from_ref(&slice), consumed),
            Err(error) => {
                log::warn!(
                    "{}-{}@{offset} can't be parked yet: {error}",
                    slice.partition.topic,
                    slice.partition.partition
                );
                self.postpone(&slice.partition, attempts - 1, Some(offset), consumed);
                Ok(())
            }
        }
    }

    /// Nobody's fault: read the offset anew. The world's: try again later, without end.
    fn put_off(&mut self, slice: &Slice, error: Error, consumed: &mut Consumed) -> Result<()> {
        match error.blame() {
            Blame::Nobody => {
                log::debug!("{}-{}: {error}", slice.partition.topic, slice.partition.partition);
                self.joined = false;
            }
            _ => {
                self.end_hanging_writer(&error);
                let world = self
                    .partitions
                    .get(&slice.partition)
                    .and_then(|p| p.trouble.as_ref())
                    .filter(|t| t.culprit.is_none());
                let attempts = 1 + world.map_or(0, |trouble| trouble.attempts);
                log::warn!(
                    "{}-{} waits (attempt {attempts} failed): {error}",
                    slice.partition.topic,
                    slice.partition.partition
                );
                self.postpone(&slice.partition, attempts, None, consumed);
            }
        }
        Ok(())
    }

    fn end_hanging_writer(&mut self, error: &Error) {
        if error.is_lock_timeout() {
            let ended = self.connection.session().and_then(outbox::end_hanging_writer);
            if let Err(error) = ended {
                log::warn!("can't end the session that holds the append lock: {error}");
            }
        }
    }

    /// Pauses the partition; what was fetched beyond its offset is fetched again.
    fn postpone(&mut self, partition: &TopicPartition, attempts: u32, culprit: Option<i64>, consumed: &mut Consumed) {
        if let Some(progress) = self.partitions.get_mut(partition) {
            progress.trouble =
                Some(Trouble { attempts, culprit, retry_at: Instant::now() + backoff::delay(attempts), paused: true });
            self.fetcher.seek(partition, progress.next);
            self.fetcher.pause(partition);
            consumed.postponed += 1;
        }
    }

    fn moved(&mut self, slices: &[Slice], consumed: &mut Consumed) -> Result<()> {
        for slice in slices {
            if let Some(progress) = self.partitions.get_mut(&slice.partition) {
                progress.next = slice.to;
                progress.trouble = None;
            }
            consumed.handled += slice.records.len();
        }
        Ok(())
    }

    /// One transaction: offsets, effects, what is parked, what is sent.
    fn attempt(&mut self, slices: &[Slice]) -> Result<()> {
        let session = self.connection.session()?;
        let mut tx = session.transaction()?;
        offsets::advance(&mut tx, &moves(slices))?;
        let sent = effects(&mut tx, self.service, &self.prefix, &mut *self.handler, slices)?;
        outbox::append(&mut tx, self.service, &sent)?;
        tx.commit()?;
        self.handler.committed();
        if !sent.is_empty() {
            self.waker.wake();
        }
        Ok(())
    }

    fn give_up(&mut self, slice: &Slice, attempts: u32, why: &str) -> Result<()> {
        let (record, event) = &slice.records[0];
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &moves(std::slice::from_ref(slice)))?;
        let sent = match event {
            Ok(event) if event.topic().1 == Channel::Request => {
                self.handler.give_up(&mut tx, event.order_id, attempts)?
            }
            _ => vec![],
        };
        let partition = &slice.partition;
        dead_letter::park(
            &mut tx,
            &Parked {
                cause: Cause::GivenUp,
                detail: why.to_string(),
                attempts: attempts as i32,
                partition,
                record,
                to_offset: None,
            },
        )?;
        outbox::append(&mut tx, self.service, &sent)?;
        tx.commit()?;
        self.waker.wake();
        Ok(())
    }

    /// Offsets never move silently. Before the log's start: the records between are lost. Beyond its end: the log was
    /// cut, and is handled again from its start, where what was handled before changes nothing.
    fn record_gap(&mut self, partition: &TopicPartition, offset: i64, log_start: i64, log_end: i64) -> Result<()> {
        let detail = if offset < log_start {
            format!("offsets {offset} to {} are no longer in Kafka", log_start - 1)
        } else {
            format!(
                "the offset {offset} is beyond the log's end {log_end}: the log was cut; handled again from {log_start}"
            )
        };
        let record = Record { offset, timestamp: 0, key: None, value: None, headers: vec![] };
        self.park_alone(partition, record, log_start, Cause::LogGap, &detail)
    }

    fn park_alone(
        &mut self,
        partition: &TopicPartition,
        record: Record,
        to: i64,
        cause: Cause,
        detail: &str,
    ) -> Result<()> {
        let Some(progress) = self.partitions.get_mut(partition) else { return Ok(()) };
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &[Move { partition: partition.clone(), from: progress.next, to }])?;
        let to_offset = (cause == Cause::LogGap).then_some(to);
        dead_letter::park(
            &mut tx,
            &Parked { cause, detail: detail.to_string(), attempts: 1, partition, record: &record, to_offset },
        )?;
        tx.commit()?;
        progress.next = to;
        self.fetcher.seek(partition, to);
        Ok(())
    }

    /// Tells Kafka where we are. Only lag tools read it, so a failure is no more than worth a line.
    fn tell_offsets(&mut self, every: Duration) {
        if !self.joined || self.offsets_told.elapsed() < every {
            return;
        }
        self.offsets_told = Instant::now();
        let news: Vec<(TopicPartition, i64, String)> = self
            .partitions
            .iter()
            .filter(|(_, progress)| progress.next != progress.told)
            .map(|(partition, progress)| (partition.clone(), progress.next, String::new()))
            .collect();
        if news.is_empty() {
            return;
        }
        match self.group.commit_offsets(&news) {
            Ok(()) => self.partitions.values_mut().for_each(|progress| progress.told = progress.next),
            Err(error) => log::debug!("Kafka was not told our offsets: {error}"),
        }
    }
}

impl Slice {
    fn split(mut self, at: usize) -> (Slice, Slice) {
        let right = self.records.split_off(at);
        let middle = right[0].0.offset;
        let right = Slice { partition: self.partition.clone(), from: middle, to: self.to, records: right };
        (Slice { to: middle, ..self }, right)
    }
}

/// Cuts what was polled into transactions of [`BATCH`] records at most, in partition order.
fn batches(slices: Vec<Slice>) -> Vec<Vec<Slice>> {
    let mut batches: Vec<Vec<Slice>> = Vec::new();
    let mut room = 0;
    for mut rest in slices {
        loop {
            if room == 0 {
                batches.push(Vec::new());
                room = BATCH;
            }
            let last = batches.last_mut().expect("pushed above");
            if rest.records.len() <= room {
                room -= rest.records.len();
                last.push(rest);
                break;
            }
            let (now, later) = rest.split(room);
            last.push(now);
            room = 0;
            rest = later;
        }
    }
    batches
}

fn moves(slices: &[Slice]) -> Vec<Move> {
    slices.iter().map(|slice| Move { partition: slice.partition.clone(), from: slice.from, to: slice.to }).collect()
}

/// Hands the events to the handler and parks what it refuses; answers what is to be sent.
fn effects(
    tx: &mut Tx<'_>,
    service: Service,
    prefix: &str,
    handler: &mut dyn Handler,
    slices: &[Slice],
) -> Result<Vec<Event>> {
    let inputs = || {
        slices
            .iter()
            .flat_map(|slice| slice.records.iter().map(move |(record, event)| (&slice.partition, record, event)))
    };
    let events: Vec<Event> = inputs().filter_map(|(_, _, event)| event.as_ref().ok().cloned()).collect();
    let handled = catch_unwind(AssertUnwindSafe(|| handler.handle(tx, &events))).map_err(panic_text)??;
    let mut sent = handled.events;
    let mut outcomes = handled.outcomes.into_iter();
    for (partition, record, event) in inputs() {
        let (cause, detail) = match event {
            Err(undecodable) => {
                sent.extend(fail_request(tx, handler, prefix, partition, undecodable)?);
                (Cause::Undecodable, undecodable.why.clone())
            }
            Ok(event) => match outcomes.next() {
                Some(Outcome::Refused(cause, why)) => (cause, why),
                Some(Outcome::Unchanged(why)) => {
                    log::debug!(
                        "order {}: {} changed nothing at {}: {why}",
                        event.order_id,
                        event.type_name(),
                        service.name()
                    );
                    continue;
                }
                _ => continue,
            },
        };
        dead_letter::park(tx, &Parked { cause, detail, attempts: 1, partition, record, to_offset: None })?;
    }
    Ok(sent)
}

/// Decoding can't end otherwise a second time, so it has one attempt. A request whose key is usable still gets its answer.
fn fail_request(
    tx: &mut Tx<'_>,
    handler: &mut dyn Handler,
    prefix: &str,
    partition: &TopicPartition,
    undecodable: &Undecodable,
) -> Result<Vec<Event>> {
    let is_request = Topic::from_name(&partition.topic, prefix).is_some_and(|topic| topic.1 == Channel::Request);
    match undecodable.order_id.filter(|_| is_request) {
        Some(order_id) => handler.give_up(tx, order_id, 1),
        None => Ok(vec![]),
    }
}

/// What a caught panic said.
pub fn panic_text(panic: Box<dyn Any + Send>) -> Error {
    let text =
        panic.downcast_ref::<&str>().map(|text| text.to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Panic(text.unwrap_or_else(|| "no text".into()))
}

fn names(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions.iter().map(|p| format!("{}-{}", p.topic, p.partition)).collect();
    names.join(" ")
}
