//! Getting batches to the leaders of their partitions: one Produce request a broker, all sent before the answers are read.

use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TransactionalId};

use crate::config::millis;
use crate::error::{Error, ErrorCode, Result};
use crate::net::backoff::Backoff;
use crate::net::cluster::{Cluster, by_topic};
use crate::producer::partitioner::partition_for_key;
use crate::record::ProducerRecord;
use crate::wire::batch::{Entry, Writer, encode, estimated_size};

/// A round takes no further batch once it has so many bytes; then it is sent, and its answers are read. It bounds what is encoded at
/// once, as `max.request.size` does in Kafka's own producer; unlike that it refuses no record, which is the topic's affair
/// (`max.message.bytes`). Brokers take requests of 100 MiB (`socket.request.max.bytes`).
const ROUND_BYTES: usize = 8 << 20;

/// A partition by its topic's name.
pub(crate) type PartitionKey = (Arc<str>, i32);
/// Records by partition.
pub(crate) type Queues<'r> = BTreeMap<PartitionKey, VecDeque<Entry<'r>>>;

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

/// Sorts records by partition, keeping their order. `spread` chooses the partition of records without a key.
///
/// Errors: `Refused` for a topic that can't be found within the call's limit, `Invalid` for a partition that does not
/// exist, those of the connection.
pub(crate) fn split<'r>(
    cluster: &mut Cluster,
    records: &'r [ProducerRecord],
    spread: u32,
) -> Result<Queues<'r>> {
    let mut backoff = cluster.backoff();
    let mut sorted: BTreeMap<Arc<str>, Vec<VecDeque<Entry<'_>>>> = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let queues = match sorted.entry(record.topic.clone()) {
            Occupied(seen) => seen.into_mut(),
            Vacant(new) => new.insert(vec![
                VecDeque::new();
                partition_count(cluster, &record.topic, &mut backoff)?
            ]),
        };
        let partition = match (record.partition, &record.key) {
            (Some(given), _) => given,
            (None, Some(key)) => partition_for_key(key, queues.len() as i32),
            (None, None) => led_partition(cluster, &record.topic, queues.len() as i32, spread),
        };
        let number = usize::try_from(partition).unwrap_or(usize::MAX);
        if number >= queues.len() {
            // it may have been added since the topic was seen
            cluster.refresh(std::slice::from_ref(&record.topic), backoff.attempt())?;
            let partitions = partition_count(cluster, &record.topic, &mut backoff)?;
            queues.resize_with(partitions.max(queues.len()), VecDeque::new);
        }
        let queue = queues.get_mut(number).ok_or_else(|| {
            Error::Invalid(format!(
                "topic {} has no partition {partition}",
                record.topic
            ))
        })?;
        queue.push_back(Entry {
            index,
            record,
            mark: None,
        });
    }
    let mut queues = Queues::new();
    for (topic, partitions) in sorted {
        let numbered = (0..).zip(partitions).filter(|(_, queue)| !queue.is_empty());
        queues.extend(numbered.map(|(number, queue)| ((topic.clone(), number), queue)));
    }
    Ok(queues)
}

fn partition_count(
    cluster: &mut Cluster,
    topic: &Arc<str>,
    backoff: &mut Backoff,
) -> Result<usize> {
    backoff.retry(|backoff| Ok(cluster.topic(topic, backoff.attempt())?.partitions.len()))
}

/// One of those that have a leader, as far as any has; the next one the next time.
fn led_partition(cluster: &Cluster, topic: &str, partitions: i32, spread: u32) -> i32 {
    let first = (spread % partitions.max(1) as u32) as i32;
    let mut in_turn = (first..partitions).chain(0..first);
    in_turn
        .find(|partition| cluster.leader(topic, *partition).is_ok())
        .unwrap_or(first)
}

/// What it takes to write under one identity.
pub(crate) struct Delivery<'a, 'r> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) sequences: &'a mut Sequences,
    pub(crate) writer: Writer,
    pub(crate) transactional_id: Option<TransactionalId>,
    /// What is not on its way yet.
    pub(crate) queues: Queues<'r>,
    /// Where each record is, as far as it is written.
    pub(crate) written: Vec<Written>,
    /// The time of records that have none, in milliseconds since 1970.
    pub(crate) now: i64,
    /// Partitions that have acknowledged some of it; kept outside of transactions only, for [`Delivery::may_begin_epoch`].
    pub(crate) acknowledged: HashSet<PartitionKey>,
    /// A batch that was not acknowledged may be written, now or later; else the sequence numbers still hold after an error.
    pub(crate) is_astray: bool,
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
    /// Batches whose partition no longer holds what this producer has written before them.
    out_of_sequence: Vec<Outgoing<'r>>,
    /// Some leader was not there, or was none.
    leaders_lost: bool,
}

impl<'r> Delivery<'_, 'r> {
    /// Writes all of it, a partition's batches one after the other: at most one is under way, so a refused one leaves
    /// no hole in the sequence numbers.
    pub(crate) fn run(&mut self, limit: Duration) -> Result<()> {
        let mut backoff = self.cluster.backoff_for(limit);
        while !self.queues.is_empty() {
            let round = self.next_round();
            backoff.goes_on();
            self.deliver(round, &mut backoff)?;
        }
        Ok(())
    }

    fn next_round(&mut self) -> Vec<Outgoing<'r>> {
        let mut queues = std::mem::take(&mut self.queues);
        let (mut round, mut size) = (Vec::with_capacity(queues.len()), 0);
        for (place, queue) in &mut queues {
            if size >= ROUND_BYTES {
                break;
            }
            let fitting = fitting(queue.iter(), self.cluster.batch_limit(&place.0));
            let batch = self.outgoing(place.clone(), queue.drain(..fitting).collect());
            size += batch.bytes.len();
            round.push(batch);
        }
        queues.retain(|_, queue| !queue.is_empty());
        self.queues = queues;
        round
    }

    fn outgoing(&self, place: PartitionKey, entries: Vec<Entry<'r>>) -> Outgoing<'r> {
        let base_sequence = self.sequences.next(&place);
        let writer = Writer {
            base_sequence,
            ..self.writer
        };
        let bytes = encode(&entries, self.now, &writer);
        Outgoing {
            place,
            bytes,
            entries,
            doubtful: false,
        }
    }

    /// A broker that is silent ends an attempt, not the delivery: by then another one may lead its partitions.
    fn deliver(&mut self, mut round: Vec<Outgoing<'r>>, backoff: &mut Backoff) -> Result<()> {
        let mut out_of_sequence = Vec::new();
        loop {
            let left = self.attempt(round, backoff);
            out_of_sequence.extend(left.out_of_sequence);
            let mut unwritten = left.batches.iter().chain(&out_of_sequence);
            self.is_astray = unwritten.any(|batch| batch.doubtful);
            if let Some(error) = left.lasting {
                return Err(error);
            }
            match left.passing {
                Some(error) => backoff.pause_for(error)?,
                // what was halved goes at once
                None if !left.batches.is_empty() => {}
                None if out_of_sequence.is_empty() => return Ok(()),
                None => {
                    backoff.goes_on();
                    round = self.begin_epoch(std::mem::take(&mut out_of_sequence));
                    continue;
                }
            }
            round = left.batches;
            if left.leaders_lost {
                let topics: Vec<_> = round.iter().map(|batch| batch.place.0.clone()).collect();
                // Whatever goes wrong here shows again at the next attempt.
                if let Err(error) = self.cluster.refresh(&topics, backoff.attempt()) {
                    log::debug!("metadata: {error}");
                }
                round.retain_mut(|batch| !self.moved(batch));
            }
        }
    }

    /// Numbers these batches from 0, under the next epoch, as Kafka's own client does (KIP-360): in the place that they had, their
    /// partitions would refuse them for ever. Unlike there they wait until nothing else is under way, so that no batch of another
    /// partition that may have been written is numbered anew.
    fn begin_epoch(&mut self, batches: Vec<Outgoing<'r>>) -> Vec<Outgoing<'r>> {
        self.writer.epoch += 1;
        *self.sequences = Sequences::default();
        log::info!(
            "producer {} goes on under epoch {}",
            self.writer.producer_id,
            self.writer.epoch
        );
        let batches = batches.into_iter().map(|batch| Outgoing {
            doubtful: batch.doubtful,
            ..self.outgoing(batch.place, batch.entries)
        });
        batches.collect()
    }

    /// Not where the partition has acknowledged a part of this very call: that is lost, and the call must not succeed. The epochs
    /// of transactions are given by their coordinator.
    fn may_begin_epoch(&self, place: &PartitionKey) -> bool {
        self.transactional_id.is_none()
            && self.writer.epoch < i16::MAX
            && !self.acknowledged.contains(place)
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
            let queue = self.queues.entry((topic.clone(), other)).or_default();
            queue.extend(batch.entries.drain(..));
        }
        moves
    }

    /// Sends each batch once and reads the answers.
    fn attempt(&mut self, round: Vec<Outgoing<'r>>, backoff: &Backoff) -> Left<'r> {
        let mut left = Left::default();
        let mut by_leader: BTreeMap<String, Vec<Outgoing<'r>>> = BTreeMap::new();
        for batch in round {
            match self.cluster.leader(&batch.place.0, batch.place.1) {
                Ok(leader) => by_leader.entry(leader).or_default().push(batch),
                Err(error) => left.keep([batch], error),
            }
        }
        let mut sent = Vec::new();
        for (leader, batches) in by_leader {
            let request = self.request(&batches);
            // The limit begins now: connecting to the leader before may have taken long. What could not be sent was certainly not
            // executed: a broker acts on whole frames only.
            match self.cluster.send(&leader, &request, backoff.attempt()) {
                Ok(request) => sent.push((leader, request, batches)),
                Err(error) => left.keep(batches, error),
            }
        }
        for (leader, request, batches) in sent {
            match self.cluster.receive(&leader, request) {
                Ok(answer) => self.settle(&leader, answer, batches, &mut left),
                Err(error) => left.lose(batches, error),
            }
        }
        left
    }

    fn request(&self, batches: &[Outgoing<'_>]) -> ProduceRequest {
        let by_topic = by_topic(batches.iter().map(|Outgoing { place, bytes, .. }| {
            let data = PartitionProduceData::default();
            let data = data.with_index(place.1).with_records(Some(bytes.clone()));
            (&*place.0, data)
        }));
        let topics = by_topic.map(|(name, partitions)| {
            TopicProduceData::default()
                .with_name(name)
                .with_partition_data(partitions)
        });
        ProduceRequest::default()
            .with_transactional_id(self.transactional_id.clone())
            .with_acks(-1)
            .with_timeout_ms(millis(self.cluster.config().request_timeout))
            .with_topic_data(topics.collect())
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
        for mut batch in batches {
            let (topic, partition) = (batch.place.0.clone(), batch.place.1);
            let Some(answer) = answers.remove(&(topic.to_string(), partition)) else {
                let cause = format!("it leaves out {topic}-{partition}");
                left.lose([batch], Error::malformed::<ProduceRequest>(leader, cause));
                continue;
            };
            let code = ErrorCode(answer.error_code);
            // An attempt whose answer was lost had written it already, more than five batches ago.
            let known = code == ErrorCode::DUPLICATE_SEQUENCE_NUMBER && batch.doubtful;
            if code == ErrorCode::NONE || known {
                self.sequences
                    .advance(&batch.place, batch.entries.len() as i32);
                if self.transactional_id.is_none() {
                    self.acknowledged.insert(batch.place.clone());
                }
                for (delta, entry) in (0..).zip(&batch.entries) {
                    let offset = (answer.base_offset >= 0).then_some(answer.base_offset + delta);
                    self.written[entry.index] = Written { partition, offset };
                }
            } else if code == ErrorCode::MESSAGE_TOO_LARGE
                && batch.entries.len() > 1
                && !batch.doubtful
            {
                left.batches.push(self.halved(batch));
            } else {
                let words = answer.error_message.map(|words| format!(": {words}"));
                let detail = format!("{topic}-{partition}{}", words.unwrap_or_default());
                let error = Error::refused::<ProduceRequest>(code, leader, detail);
                if code.loses_sequence() && self.may_begin_epoch(&batch.place) {
                    log::warn!(
                        "{topic}-{partition} no longer holds what this producer wrote last, which was acknowledged: {error}"
                    );
                    left.passing = Some(error);
                    left.out_of_sequence.push(batch);
                } else {
                    batch.doubtful |= may_be_written(code, answer.base_offset);
                    left.keep([batch], error);
                }
            }
        }
    }

    /// The first half of a batch, which takes its place; the second half goes next. Later batches for this topic are no larger.
    fn halved(&mut self, mut batch: Outgoing<'r>) -> Outgoing<'r> {
        let half = batch.entries.iter().map(estimated_size).sum::<usize>() / 2;
        self.cluster.limit_batches(&batch.place.0, half);
        let rest = batch.entries.split_off(fitting(batch.entries.iter(), half));
        let queue = self.queues.entry(batch.place.clone()).or_default();
        rest.into_iter()
            .rev()
            .for_each(|entry| queue.push_front(entry));
        self.outgoing(batch.place, batch.entries)
    }
}

/// How many of these records fit into so many bytes: one at least, for the broker to refuse if it is too large for any batch.
fn fitting<'a, 'r: 'a>(entries: impl Iterator<Item = &'a Entry<'r>>, bytes: usize) -> usize {
    let sums = entries.scan(0, |sum, entry| {
        *sum += estimated_size(entry);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= bytes).count().max(1)
}

impl<'r> Left<'r> {
    fn keep(&mut self, batches: impl IntoIterator<Item = Outgoing<'r>>, error: Error) {
        self.batches.extend(batches);
        self.leaders_lost |= error.loses_leader();
        if error.passes() {
            self.passing = Some(error);
        } else if self.lasting.is_none() {
            self.lasting = Some(error);
        }
    }

    /// A lost answer is cured by sending the batch again, which its sequence number makes harmless. A batch that stays lost ends the
    /// epoch: it may still arrive, and then must not find a transaction of the same epoch open.
    fn lose(&mut self, batches: impl IntoIterator<Item = Outgoing<'r>>, error: Error) {
        let doubtful = batches.into_iter().map(|batch| Outgoing {
            doubtful: true,
            ..batch
        });
        self.keep(doubtful, error);
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
