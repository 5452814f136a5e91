//! Getting batches to the leaders of their partitions: one Produce request a broker, all sent before the answers are read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TransactionalId};

use crate::config::millis;
use crate::error::{Error, ErrorCode, Result};
use crate::net::backoff::Backoff;
use crate::net::cluster::{Cluster, topic_name};
use crate::net::connection::Sent;
use crate::producer::partitioner::partition_for_key;
use crate::record::ProducerRecord;
use crate::wire::batch::{Entry, Writer, encode, estimated_size};
use crate::wire::protocol::Request;

/// What is sent at once before the answers are read. Brokers take requests of 100 MiB (`socket.request.max.bytes`).
const ROUND_BYTES: usize = 8 << 20;

/// A partition by its topic's name.
pub(crate) type PartitionKey = (Arc<str>, i32);
/// Records by partition, each partition's in batches.
pub(crate) type Queues<'r> = BTreeMap<PartitionKey, VecDeque<Vec<Entry<'r>>>>;

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The partition's number.
    pub partition: i32,
    /// Its offset; `None` where the broker knows that it was written and no longer where, after a lost answer.
    pub offset: Option<i64>,
}

/// The next sequence number of each partition under one epoch.
#[derive(Debug, Default)]
pub(crate) struct Sequences(HashMap<PartitionKey, i32>);

impl Sequences {
    fn next(&self, place: &PartitionKey) -> i32 {
        self.0.get(place).copied().unwrap_or(0)
    }

    /// They wrap around to 0 (KIP-98).
    fn advance(&mut self, place: &PartitionKey, records: i32) {
        let next = self.next(place).wrapping_add(records) & i32::MAX;
        self.0.insert(place.clone(), next);
    }
}

/// Sorts records by partition and into batches, keeping their order. `spread` chooses the partition of records without a key.
///
/// Errors: `Refused` for a topic that can't be found within the call's limit, `Invalid` for a partition that does not
/// exist, those of the connection.
pub(crate) fn split<'r>(
    cluster: &mut Cluster,
    records: &'r [ProducerRecord],
    spread: u32,
) -> Result<Queues<'r>> {
    let mut backoff = cluster.backoff();
    let batch_size = cluster.config().batch_size;
    let mut sorted: BTreeMap<Arc<str>, Vec<Queue<'_>>> = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        if !sorted.contains_key(&record.topic) {
            let partitions = partition_count(cluster, &record.topic, &mut backoff)?;
            sorted.insert(
                record.topic.clone(),
                (0..partitions).map(|_| Queue::default()).collect(),
            );
        }
        let Some(queues) = sorted.get_mut(&record.topic) else {
            continue;
        };
        let partition = partition(cluster, record, queues.len() as i32, spread);
        if usize::try_from(partition).is_ok_and(|number| number >= queues.len()) {
            // it may have been added since the topic was seen
            cluster.refresh(std::slice::from_ref(&record.topic), backoff.attempt())?;
            let partitions = partition_count(cluster, &record.topic, &mut backoff)?;
            queues.resize_with(partitions.max(queues.len()), Queue::default);
        }
        let queue = usize::try_from(partition)
            .ok()
            .and_then(|number| queues.get_mut(number));
        queue
            .ok_or_else(|| no_such_partition(record, partition))?
            .push(
                Entry {
                    index,
                    record,
                    mark: None,
                },
                batch_size,
            );
    }
    Ok(flatten(sorted))
}

/// One partition's batches, the last one still open.
#[derive(Default)]
struct Queue<'r> {
    batches: VecDeque<Vec<Entry<'r>>>,
    open_bytes: usize,
}

impl<'r> Queue<'r> {
    /// A record that is too large for any batch gets one of its own, for the broker to refuse.
    fn push(&mut self, entry: Entry<'r>, batch_size: usize) {
        let size = estimated_size(&entry);
        match self.batches.back_mut() {
            Some(open) if self.open_bytes + size <= batch_size => {
                open.push(entry);
                self.open_bytes += size;
            }
            _ => {
                self.batches.push_back(vec![entry]);
                self.open_bytes = size;
            }
        }
    }
}

fn partition_count(
    cluster: &mut Cluster,
    topic: &Arc<str>,
    backoff: &mut Backoff,
) -> Result<usize> {
    backoff.retry(|backoff| Ok(cluster.topic(topic, backoff.attempt())?.partitions.len()))
}

fn partition(cluster: &Cluster, record: &ProducerRecord, partitions: i32, spread: u32) -> i32 {
    match (record.partition, &record.key) {
        (Some(given), _) => given,
        (None, Some(key)) => partition_for_key(key, partitions),
        (None, None) => led_partition(cluster, &record.topic, partitions, spread),
    }
}

/// One of those that have a leader, as far as any has; the next one the next time.
fn led_partition(cluster: &Cluster, topic: &str, partitions: i32, spread: u32) -> i32 {
    let first = (spread % partitions.max(1) as u32) as i32;
    let in_turn = (first..partitions).chain(0..first);
    in_turn
        .into_iter()
        .find(|partition| cluster.leader(topic, *partition).is_ok())
        .unwrap_or(first)
}

fn no_such_partition(record: &ProducerRecord, partition: i32) -> Error {
    Error::Invalid(format!(
        "topic {} has no partition {partition}",
        record.topic
    ))
}

fn flatten(sorted: BTreeMap<Arc<str>, Vec<Queue<'_>>>) -> Queues<'_> {
    let mut queues = Queues::new();
    for (topic, partitions) in sorted {
        for (partition, queue) in partitions.into_iter().enumerate() {
            if !queue.batches.is_empty() {
                queues.insert((topic.clone(), partition as i32), queue.batches);
            }
        }
    }
    queues
}

/// Why not everything was written.
pub(crate) enum Undelivered {
    /// What was not acknowledged is certainly not written, so the sequence numbers still hold.
    Refused(Error),
    /// Something that was not acknowledged may be written, now or later.
    Unknown(Error),
}

/// What it takes to write under one identity.
pub(crate) struct Delivery<'a, 'r> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) sequences: &'a mut Sequences,
    pub(crate) writer: Writer,
    pub(crate) transactional_id: Option<TransactionalId>,
    /// What is not on its way yet.
    pub(crate) queues: Queues<'r>,
    /// How long records are sent again.
    pub(crate) limit: Duration,
    /// Where each record is, as far as it is written.
    pub(crate) written: Vec<Written>,
    /// The time of records that have none, in milliseconds since 1970.
    now: i64,
}

/// An encoded batch on its way.
struct Outgoing<'r> {
    place: PartitionKey,
    bytes: Bytes,
    entries: Vec<Entry<'r>>,
    /// It was sent before, and that it was not written then is not certain.
    doubtful: bool,
}

/// What one attempt left undone.
#[derive(Default)]
struct Left<'r> {
    batches: Vec<Outgoing<'r>>,
    /// The last error that may pass.
    passing: Option<Error>,
    /// The first error that will not.
    lasting: Option<Error>,
    /// Some leader was not there, or was none.
    leaders_lost: bool,
}

impl<'a, 'r> Delivery<'a, 'r> {
    /// Of `count` records, none of which is written yet.
    pub(crate) fn new(
        cluster: &'a mut Cluster,
        sequences: &'a mut Sequences,
        writer: Writer,
        transactional_id: Option<TransactionalId>,
        (queues, count): (Queues<'r>, usize),
        limit: Duration,
    ) -> Delivery<'a, 'r> {
        let now = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |since| since.as_millis() as i64);
        let written = vec![
            Written {
                partition: -1,
                offset: None
            };
            count
        ];
        Delivery {
            cluster,
            sequences,
            writer,
            transactional_id,
            queues,
            limit,
            written,
            now,
        }
    }

    /// Writes all of it, a partition's batches one after the other: at most one is under way, so a refused one leaves
    /// no hole in the sequence numbers.
    pub(crate) fn run(&mut self) -> std::result::Result<(), Undelivered> {
        let mut backoff = self.cluster.backoff_for(self.limit);
        while !self.queues.is_empty() {
            let round = self.next_round();
            self.deliver(round, &mut backoff)?;
        }
        Ok(())
    }

    fn next_round(&mut self) -> Vec<Outgoing<'r>> {
        let mut round = Vec::with_capacity(self.queues.len());
        let mut size = 0;
        for (place, queue) in &mut self.queues {
            if size >= ROUND_BYTES {
                break;
            }
            if let Some(mut entries) = queue.pop_front() {
                // a batch of before may be too large by now
                let rest = entries.split_off(fitting(&entries, self.cluster.batch_limit(&place.0)));
                if !rest.is_empty() {
                    queue.push_front(rest);
                }
                let writer = Writer {
                    base_sequence: self.sequences.next(place),
                    ..self.writer
                };
                let batch = Outgoing::new(place.clone(), entries, self.now, &writer);
                size += batch.bytes.len();
                round.push(batch);
            }
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        round
    }

    /// A broker that is silent ends an attempt, not the delivery: by then another one may lead its partitions.
    fn deliver(
        &mut self,
        mut round: Vec<Outgoing<'r>>,
        backoff: &mut Backoff,
    ) -> std::result::Result<(), Undelivered> {
        loop {
            let left = self.attempt(round, backoff);
            let doubtful = left.batches.iter().any(|batch| batch.doubtful);
            let end = |error| {
                if doubtful {
                    Undelivered::Unknown(error)
                } else {
                    Undelivered::Refused(error)
                }
            };
            if let Some(error) = left.lasting {
                return Err(end(error));
            }
            match left.passing {
                Some(error) => backoff.pause(error).map_err(end)?,
                None if left.batches.is_empty() => return Ok(()),
                // what was halved goes at once
                None => {}
            }
            round = left.batches;
            if left.leaders_lost {
                self.look_up_leaders(&round, backoff.attempt());
                round.retain_mut(|batch| !self.moved(batch));
            }
        }
    }

    /// Records without a key are not bound to a partition that has no leader; those of a transaction stay, for it knows its partitions.
    fn moved(&mut self, batch: &mut Outgoing<'r>) -> bool {
        let (topic, partition) = &batch.place;
        let bound =
            |entry: &Entry<'_>| entry.record.partition.is_some() || entry.record.key.is_some();
        let stays = batch.doubtful || self.writer.transactional || batch.entries.iter().any(bound);
        if stays || self.cluster.leader(topic, *partition).is_ok() {
            return false;
        }
        let partitions = self
            .cluster
            .seen_topic(topic)
            .map_or(0, |seen| seen.partitions.len() as i32);
        let other = led_partition(self.cluster, topic, partitions, *partition as u32 + 1);
        let moves = self.cluster.leader(topic, other).is_ok();
        if moves {
            let entries = std::mem::take(&mut batch.entries);
            self.queues
                .entry((topic.clone(), other))
                .or_default()
                .push_back(entries);
        }
        moves
    }

    /// Whatever goes wrong here shows again at the next attempt.
    fn look_up_leaders(&mut self, round: &[Outgoing<'_>], deadline: Instant) {
        let topics: Vec<Arc<str>> = round.iter().map(|batch| batch.place.0.clone()).collect();
        if let Err(error) = self.cluster.refresh(&topics, deadline) {
            log::debug!("metadata: {error}");
        }
    }

    /// Sends each batch once and reads the answers.
    fn attempt(&mut self, round: Vec<Outgoing<'r>>, backoff: &Backoff) -> Left<'r> {
        let mut left = Left::default();
        let mut sent = Vec::new();
        for (leader, batches) in self.by_leader(round, &mut left) {
            // from now on: connecting to the one before may have taken long
            if let Some(request) = self.send(&leader, &batches, backoff.attempt(), &mut left) {
                sent.push((leader, request, batches));
            } else {
                left.batches.extend(batches);
            }
        }
        for (leader, request, batches) in sent {
            match self.cluster.receive(&leader, request) {
                Ok(answer) => self.settle(&leader, answer, batches, &mut left),
                Err(error) => self.lost(error, batches, &mut left),
            }
        }
        left
    }

    fn by_leader(
        &self,
        round: Vec<Outgoing<'r>>,
        left: &mut Left<'r>,
    ) -> BTreeMap<String, Vec<Outgoing<'r>>> {
        let mut by_leader: BTreeMap<String, Vec<Outgoing<'r>>> = BTreeMap::new();
        for batch in round {
            match self.cluster.leader(&batch.place.0, batch.place.1) {
                Ok(leader) => by_leader.entry(leader).or_default().push(batch),
                Err(error) => left.keep(batch, error),
            }
        }
        by_leader
    }

    /// `None` when it could not be sent. A connection that can't even be made has certainly carried nothing; a request
    /// that was cut off while it was written counts as lost.
    fn send(
        &mut self,
        leader: &str,
        batches: &[Outgoing<'r>],
        deadline: Instant,
        left: &mut Left<'r>,
    ) -> Option<Sent<ProduceRequest>> {
        if let Err(error) = self.cluster.connection(leader, deadline) {
            left.note(error);
            return None;
        }
        let request = self.request(batches);
        // A half-written request is never executed: the broker acts on whole frames only.
        self.cluster
            .send(leader, &request, deadline)
            .map_err(|error| left.note(error))
            .ok()
    }

    fn request(&self, batches: &[Outgoing<'_>]) -> ProduceRequest {
        let mut topics: BTreeMap<&str, Vec<PartitionProduceData>> = BTreeMap::new();
        for batch in batches {
            let data = PartitionProduceData::default()
                .with_index(batch.place.1)
                .with_records(Some(batch.bytes.clone()));
            topics.entry(&batch.place.0).or_default().push(data);
        }
        let topic = |(name, partitions): (&str, Vec<_>)| {
            TopicProduceData::default()
                .with_name(topic_name(name))
                .with_partition_data(partitions)
        };
        ProduceRequest::default()
            .with_transactional_id(self.transactional_id.clone())
            .with_acks(-1)
            .with_timeout_ms(millis(self.cluster.config().request_timeout))
            .with_topic_data(topics.into_iter().map(topic).collect())
    }

    /// A lost answer is cured by sending the batch again, which its sequence number makes harmless. A batch that stays lost ends the
    /// epoch: it may still arrive, and then must not find a transaction of the same epoch open.
    fn lost(&self, error: Error, batches: Vec<Outgoing<'r>>, left: &mut Left<'r>) {
        left.batches
            .extend(batches.into_iter().map(|batch| Outgoing {
                doubtful: true,
                ..batch
            }));
        left.note(error);
    }

    fn settle(
        &mut self,
        leader: &str,
        answer: ProduceResponse,
        batches: Vec<Outgoing<'r>>,
        left: &mut Left<'r>,
    ) {
        let mut answers: HashMap<(String, i32), PartitionProduceResponse> = HashMap::new();
        for topic in answer.responses {
            for partition in topic.partition_responses {
                answers.insert((topic.name.0.to_string(), partition.index), partition);
            }
        }
        for batch in batches {
            let key = (batch.place.0.to_string(), batch.place.1);
            self.settle_batch(leader, answers.remove(&key), batch, left);
        }
    }

    fn settle_batch(
        &mut self,
        leader: &str,
        answer: Option<PartitionProduceResponse>,
        mut batch: Outgoing<'r>,
        left: &mut Left<'r>,
    ) {
        let Some(answer) = answer else {
            let cause = format!("it leaves out {}-{}", batch.place.0, batch.place.1);
            let error = Error::Decode {
                api: ProduceRequest::API,
                broker: leader.to_owned(),
                cause,
            };
            return self.lost(error, vec![batch], left);
        };
        let code = ErrorCode(answer.error_code);
        // An attempt whose answer was lost had written it already, more than five batches ago.
        let known = code == ErrorCode::DUPLICATE_SEQUENCE_NUMBER && batch.doubtful;
        if code == ErrorCode::NONE || known {
            self.sequences
                .advance(&batch.place, batch.entries.len() as i32);
            let (partition, base) = (
                batch.place.1,
                Some(answer.base_offset).filter(|base| *base >= 0),
            );
            for (delta, entry) in (0..).zip(&batch.entries) {
                self.written[entry.index] = Written {
                    partition,
                    offset: base.map(|base| base + delta),
                };
            }
            return;
        }
        if code == ErrorCode::MESSAGE_TOO_LARGE && batch.entries.len() > 1 && !batch.doubtful {
            return left.batches.push(self.halved(batch));
        }
        batch.doubtful |= may_be_written(code, answer.base_offset);
        let error = refused(leader, &batch.place, code, answer);
        left.keep(batch, error);
    }
}

impl<'r> Delivery<'_, 'r> {
    /// The first half of a batch, which takes its place; the second half goes next. Later batches for this topic are no larger.
    fn halved(
        &mut self,
        Outgoing {
            place, mut entries, ..
        }: Outgoing<'r>,
    ) -> Outgoing<'r> {
        let half: usize = entries.iter().map(estimated_size).sum::<usize>() / 2;
        self.cluster.limit_batches(&place.0, half);
        let rest = entries.split_off(fitting(&entries, half));
        self.queues
            .entry(place.clone())
            .or_default()
            .push_front(rest);
        let writer = Writer {
            base_sequence: self.sequences.next(&place),
            ..self.writer
        };
        Outgoing::new(place, entries, self.now, &writer)
    }
}

/// How many of these records fit into so many bytes: one at least.
fn fitting(entries: &[Entry<'_>], bytes: usize) -> usize {
    let mut size = 0;
    let too_many = entries.iter().position(|entry| {
        size += estimated_size(entry);
        size > bytes
    });
    too_many.unwrap_or(entries.len()).max(1)
}

impl<'r> Outgoing<'r> {
    fn new(
        place: PartitionKey,
        entries: Vec<Entry<'r>>,
        now: i64,
        writer: &Writer,
    ) -> Outgoing<'r> {
        let bytes = encode(&entries, now, writer);
        Outgoing {
            place,
            bytes,
            entries,
            doubtful: false,
        }
    }
}

impl<'r> Left<'r> {
    fn keep(&mut self, batch: Outgoing<'r>, error: Error) {
        self.batches.push(batch);
        self.note(error);
    }

    fn note(&mut self, error: Error) {
        self.leaders_lost |= error.loses_leader();
        if error.passes() {
            self.passing = Some(error);
        } else if self.lasting.is_none() {
            self.lasting = Some(error);
        }
    }
}

fn refused(
    leader: &str,
    place: &PartitionKey,
    code: ErrorCode,
    answer: PartitionProduceResponse,
) -> Error {
    let words = answer
        .error_message
        .map(|words| format!(": {words}"))
        .unwrap_or_default();
    Error::Refused {
        code,
        api: ProduceRequest::API,
        broker: leader.to_owned(),
        detail: format!("{}-{}{words}", place.0, place.1),
    }
}

/// Whether a batch that got this error may be in the log all the same. REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND
/// say so. NOT_LEADER_OR_FOLLOWER comes before writing, as from a topic that was just made, but also goes to those who wait
/// for the replicas of a leader that steps down; the offset, which a broker fills in once it has written, tells the two apart.
fn may_be_written(code: ErrorCode, base_offset: i64) -> bool {
    const NOT_LEADER_OR_FOLLOWER: ErrorCode = ErrorCode(6);
    match code {
        NOT_LEADER_OR_FOLLOWER => base_offset >= 0,
        code => !code.refuses_before_writing(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_refusal_leaves_the_sequence_numbers_as_they_were() {
        assert!(!may_be_written(ErrorCode(10), -1), "MESSAGE_TOO_LARGE");
        assert!(
            !may_be_written(ErrorCode(6), -1),
            "NOT_LEADER_OR_FOLLOWER of one that never was"
        );
        assert!(
            may_be_written(ErrorCode(6), 17),
            "NOT_LEADER_OR_FOLLOWER of one that stepped down"
        );
        assert!(may_be_written(ErrorCode(7), 17), "REQUEST_TIMED_OUT");
        assert!(
            may_be_written(ErrorCode(20), -1),
            "NOT_ENOUGH_REPLICAS_AFTER_APPEND"
        );
        assert!(may_be_written(ErrorCode(-1), -1), "UNKNOWN_SERVER_ERROR");
    }

    #[test]
    fn sequence_numbers_wrap_around_to_zero() {
        let (mut sequences, place) = (Sequences::default(), ("t".into(), 0));
        sequences.advance(&place, i32::MAX);
        assert_eq!(sequences.next(&place), i32::MAX);
        sequences.advance(&place, 3);
        assert_eq!(sequences.next(&place), 2);
    }
}
