//! One transaction of a transactional producer (KIP-98, transaction version 1).

use std::collections::HashSet;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ProducerId,
    TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::StrBytes;

use crate::error::{Error, ErrorCode, ErrorKind, Result};
use crate::group::Assignment;
use crate::net::cluster::{CoordinatorKey, Retry, by_topic, group_id};
use crate::producer::sender::{PartitionKey, Queues, Written};
use crate::producer::{Open, Producer, ProducerIdentity};
use crate::record::{Header, ProducerRecord, TopicPartition};
use crate::wire::protocol::{CoordinatorRequest, Refusal};

/// An open transaction: what is written in it becomes visible to read-committed readers as a whole, at
/// [`commit`](Transaction::commit), or never. It borrows its producer, so there is one at a time.
///
/// One that is dropped without an end leaves the producer not initialised (unless nothing was sent in it); the next
/// [`initialise`](Producer::initialise) aborts it.
pub struct Transaction<'p> {
    producer: &'p mut Producer,
    partitions: HashSet<PartitionKey>,
    groups: HashSet<String>,
    /// The broker may know of this transaction.
    begun: bool,
    /// Something of it could not be written: it must not be committed.
    failed: bool,
    ended: bool,
    /// The last call took more than one attempt.
    repeated: bool,
}

impl<'p> Transaction<'p> {
    pub(crate) fn new(producer: &'p mut Producer) -> Transaction<'p> {
        let (partitions, groups) = (HashSet::new(), HashSet::new());
        Transaction {
            producer,
            partitions,
            groups,
            begun: false,
            failed: false,
            ended: false,
            repeated: false,
        }
    }

    /// Writes records into the transaction and waits until all in-sync replicas have them. Returns where each of them is, in their order.
    ///
    /// After an error the transaction can't be committed. If a broker has plainly refused something (`Refused` with MESSAGE_TOO_LARGE, …)
    /// it can be aborted and the producer goes on; after everything else (`Timeout`, `Io`, an epoch that is over, …) the producer is not initialised.
    /// `Invalid`: a partition that does not exist.
    pub fn send(&mut self, records: impl AsRef<[ProducerRecord]>) -> Result<Vec<Written>> {
        let sent = self.try_send(records.as_ref(), None);
        self.note(sent)
    }

    /// Writes records as [`send`](Transaction::send) does, with the same errors, and adds a header to the last one of
    /// each partition: whoever reads a partition backwards ([`last_records`](crate::last_records)) meets it first.
    pub fn send_marked(
        &mut self,
        records: impl AsRef<[ProducerRecord]>,
        mark: &Header,
    ) -> Result<Vec<Written>> {
        let sent = self.try_send(records.as_ref(), Some(mark));
        self.note(sent)
    }

    fn try_send(
        &mut self,
        records: &[ProducerRecord],
        mark: Option<&Header>,
    ) -> Result<Vec<Written>> {
        self.initialised()?;
        let mut queues = self.producer.split(records)?;
        let lasts = queues.values_mut().filter_map(|queue| queue.back_mut());
        lasts.for_each(|last| last.mark = mark);
        self.add_partitions(&queues)?;
        self.producer.deliver(queues, records.len())
    }

    /// AddPartitionsToTxn for those that are not in the transaction yet. It is the first request of a transaction, so
    /// CONCURRENT_TRANSACTIONS, while the markers of the one before are being written, mostly comes here.
    fn add_partitions(&mut self, queues: &Queues<'_>) -> Result<()> {
        let new: Vec<PartitionKey> = queues
            .keys()
            .filter(|place| !self.partitions.contains(*place))
            .cloned()
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let (id, identity) = self.initialised()?;
        let topics = by_topic(new.iter().map(|(topic, partition)| (&**topic, *partition)));
        let topics = topics.map(|(name, partitions)| {
            AddPartitionsToTxnTopic::default()
                .with_name(name)
                .with_partitions(partitions)
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id)
            .with_v3_and_below_producer_id(ProducerId(identity.id))
            .with_v3_and_below_producer_epoch(identity.epoch)
            .with_v3_and_below_topics(topics.collect());
        // Adding a partition twice is the same as once.
        self.call(self.producer.coordinator(), &request, Retry::Idempotent)?;
        self.producer.open = Open::Yes;
        self.partitions.extend(new);
        Ok(())
    }

    /// Commits the next offsets to be read of a group with the transaction, each with a text that is kept beside it
    /// (AddOffsetsToTxn, TxnOffsetCommit): they become readable with the records, or never. `member`: what this process was given
    /// to read, so that one that has lost it meanwhile commits nothing (KIP-447); `None`: nobody is a member of the group.
    ///
    /// Errors as for [`send`](Transaction::send); of the plain refusals ILLEGAL_GENERATION and UNKNOWN_MEMBER_ID say that
    /// the group has given the partitions away. Reading offsets back needs `require_stable`.
    pub fn commit_offsets(
        &mut self,
        group: &str,
        member: Option<&Assignment>,
        offsets: &[(TopicPartition, i64, String)],
    ) -> Result<()> {
        let done = self.send_offsets(group, member, offsets);
        self.note(done)
    }

    fn send_offsets(
        &mut self,
        group: &str,
        member: Option<&Assignment>,
        offsets: &[(TopicPartition, i64, String)],
    ) -> Result<()> {
        let (id, identity) = self.initialised()?;
        if !self.groups.contains(group) {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(id.clone())
                .with_producer_id(ProducerId(identity.id))
                .with_producer_epoch(identity.epoch)
                .with_group_id(group_id(group));
            self.call(self.producer.coordinator(), &request, Retry::Idempotent)?;
            self.producer.open = Open::Yes;
            self.groups.insert(group.to_owned());
        }
        let topics = by_topic(offsets.iter().map(|(place, offset, metadata)| {
            let partition = TxnOffsetCommitRequestPartition::default()
                .with_partition_index(place.partition)
                .with_committed_offset(*offset)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::from_string(metadata.clone())));
            (&*place.topic, partition)
        }));
        let topics = topics.map(|(name, partitions)| {
            TxnOffsetCommitRequestTopic::default()
                .with_name(name)
                .with_partitions(partitions)
        });
        // Generation -1 and no member id: no generation is checked.
        let (generation, member_id) =
            member.map_or((-1, ""), |member| (member.generation, &member.member_id));
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id)
            .with_group_id(group_id(group))
            .with_producer_id(ProducerId(identity.id))
            .with_producer_epoch(identity.epoch)
            .with_generation_id(generation)
            .with_member_id(StrBytes::from_string(member_id.to_owned()))
            .with_topics(topics.collect());
        // Like a lost batch, a lost offset may arrive late and must not find a later transaction of this epoch open.
        let coordinator = CoordinatorKey::Group(group.to_owned());
        self.call(Some(coordinator), &request, Retry::Once)
    }

    /// Makes all of it visible. Returns once the broker has decided so; readers may see it a few milliseconds later.
    ///
    /// # Errors
    /// `TransactionFailed` when a part had failed; that the epoch is over (whether another producer took over, `initialise`
    /// shows); those of the connection. After an error the producer is not initialised and it is unknown whether the
    /// transaction was committed (also when the epoch is over). A position in the transaction shows it, read after
    /// `initialise`: a header of its last records ([`send_marked`](Transaction::send_marked), read with
    /// [`last_records`](crate::last_records)), or an offset ([`commit_offsets`](Transaction::commit_offsets)).
    pub fn commit(mut self) -> Result<()> {
        if self.failed {
            return Err(Error::TransactionFailed);
        }
        self.end(true)
    }

    /// Drops all of it. The same producer can begin the next one.
    ///
    /// # Errors
    /// `NotInitialised` when an earlier error has left open what the broker did (then `initialise` aborts it); that the
    /// epoch is over; those of the connection. After an error the producer is not initialised, and nothing of the
    /// transaction will be visible.
    pub fn abort(mut self) -> Result<()> {
        self.end(false)
    }

    fn end(&mut self, committed: bool) -> Result<()> {
        let (_, identity) = self.initialised()?;
        if self.begun {
            let request = self.producer.end_request(identity, committed);
            let done = self.call(self.producer.coordinator(), &request, Retry::Once);
            // a fenced one was not ended by this, unless an attempt before it was executed
            let code = done.as_ref().err().and_then(Error::code);
            let fenced = code.is_some_and(|code| code.kind() == ErrorKind::Fenced);
            self.producer.open = match done {
                Ok(()) => Open::No,
                Err(_) if fenced && !self.repeated => Open::Yes,
                Err(_) => Open::Maybe,
            };
            // Any error of an end leaves its fate open, a refusal too: the one before may have been executed.
            done.inspect_err(|_| self.producer.state = None)?;
        }
        self.ended = true;
        Ok(())
    }

    /// A plain refusal of the first request leaves the transaction not begun: the broker would answer its end with
    /// INVALID_TXN_STATE. An attempt before it whose answer was lost may have begun one all the same, without a record: the next
    /// transaction ends it, or `initialise`, which therefore aborts before it shows the identity it had.
    fn call<R: CoordinatorRequest>(
        &mut self,
        coordinator: Option<CoordinatorKey>,
        request: &R,
        retry: Retry,
    ) -> Result<()> {
        let coordinator = coordinator.ok_or(Error::NotInitialised)?;
        let mut backoff = self.producer.cluster.backoff();
        let answered =
            self.producer
                .cluster
                .call_coordinator(&coordinator, request, retry, &mut backoff);
        self.repeated = backoff.has_paused();
        let refused = matches!(answered, Err(Error::Refused { .. }));
        self.begun |= !refused;
        if answered.is_err() && self.producer.open == Open::No {
            self.producer.open = Open::Maybe;
        }
        answered
            .map(drop)
            .map_err(|error| self.producer.forget_identity_unless_refused(error))
    }

    fn note<T>(&mut self, done: Result<T>) -> Result<T> {
        self.failed |= done.is_err();
        done
    }

    fn initialised(&self) -> Result<(TransactionalId, ProducerIdentity)> {
        let both = self
            .producer
            .transactional_id()
            .zip(self.producer.identity());
        both.ok_or(Error::NotInitialised)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.begun && !self.ended {
            self.producer.state = None;
        }
    }
}

impl CoordinatorRequest for AddPartitionsToTxnRequest {
    /// The partition that is to blame; the others of the same request get OPERATION_NOT_ATTEMPTED.
    fn refusal(answer: &AddPartitionsToTxnResponse) -> Refusal {
        let mut found = Refusal {
            code: ErrorCode::NONE,
            about: None,
        };
        for topic in &answer.results_by_topic_v3_and_below {
            for at in &topic.results_by_partition {
                let code = ErrorCode(at.partition_error_code);
                let first =
                    found.about.is_none() || found.code == ErrorCode::OPERATION_NOT_ATTEMPTED;
                if code != ErrorCode::NONE && first {
                    found = Refusal {
                        code,
                        about: Some(format!("{}-{}", topic.name.0, at.partition_index)),
                    };
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::add_partitions_to_txn_response::{
        AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
    };

    use super::*;
    use crate::net::cluster::topic_name;

    fn refusal(codes: &[(&str, i32, i16)]) -> (i16, Option<String>) {
        let topic = |(name, number, code): &(&str, i32, i16)| {
            let result = AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*number)
                .with_partition_error_code(*code);
            AddPartitionsToTxnTopicResult::default()
                .with_name(topic_name(name))
                .with_results_by_partition(vec![result])
        };
        let topics = codes.iter().map(topic).collect();
        let answer =
            AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics);
        let Refusal { code, about } = AddPartitionsToTxnRequest::refusal(&answer);
        (code.0, about)
    }

    #[test]
    fn the_partition_to_blame_is_named_and_not_those_that_were_refused_for_its_sake() {
        assert_eq!(refusal(&[("a", 0, 0), ("b", 1, 0)]), (0, None));
        // OPERATION_NOT_ATTEMPTED, TOPIC_AUTHORIZATION_FAILED
        assert_eq!(
            refusal(&[("a", 0, 55), ("b", 1, 29), ("c", 2, 55)]),
            (29, Some("b-1".to_owned()))
        );
        assert_eq!(
            refusal(&[("a", 0, 3), ("b", 1, 55)]),
            (3, Some("a-0".to_owned()))
        );
        assert_eq!(refusal(&[("a", 0, 55)]), (55, Some("a-0".to_owned())));
    }
}
