//! Where a consumer is in each of its partitions, and which of them wait before their next attempt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kafka::TopicPartition;

use crate::backoff;
use crate::consumer::batch::PartitionBatch;
use crate::consumer::offsets::{self, Move, Start};
use crate::waits;

/// The assigned partitions. What the process knows of them goes with this.
#[derive(Default)]
pub struct Partitions(HashMap<TopicPartition, Partition>);

struct Partition {
    next: i64,
    /// What was committed to Kafka last, for lag tools.
    committed: i64,
    retry: Option<Retry>,
}

struct Retry {
    attempts: u32,
    /// The record that fails by its own fault; none while the failure is transient.
    poison_offset: Option<i64>,
    retry_at: Instant,
    paused: bool,
    /// The broker has refused to give records, and does not say when it would.
    refused: bool,
}

/// Where nothing is refused any more within it there is nothing to read, which is no refusal: longer than a poll takes.
const NOT_REFUSED_AFTER: Duration = Duration::from_secs(3);

impl Partitions {
    /// Partitions at the offsets that the database holds.
    pub fn new(starts: Vec<Start>) -> Partitions {
        let mut partitions = Partitions::default();
        for Start {
            partition, next, ..
        } in starts
        {
            offsets::know(&partition, next);
            waits::goes_on(&partition);
            let at = Partition {
                next,
                committed: -1,
                retry: None,
            };
            partitions.0.insert(partition, at);
        }
        partitions
    }

    /// The next offset; none if the partition is not assigned.
    pub fn next(&self, partition: &TopicPartition) -> Option<i64> {
        self.0.get(partition).map(|partition| partition.next)
    }

    /// False once the batch's partition was paused or has advanced elsewhere, earlier in the same pass.
    pub fn expects(&self, part: &PartitionBatch) -> bool {
        let partition = self.0.get(&part.partition);
        partition.is_some_and(|p| {
            p.next == part.from && p.retry.as_ref().is_none_or(|retry| !retry.paused)
        })
    }

    /// Whether nothing has failed since the last success.
    pub fn is_healthy(&self, part: &PartitionBatch) -> bool {
        self.retry(&part.partition).is_none()
    }

    /// The record known to fail by its own fault.
    pub fn poison_offset(&self, partition: &TopicPartition) -> Option<i64> {
        self.retry(partition).and_then(|retry| retry.poison_offset)
    }

    /// The failed attempts so far of `poison_offset`, or of a transient failure.
    pub fn attempts(&self, partition: &TopicPartition, poison_offset: Option<i64>) -> u32 {
        self.retry(partition)
            .filter(|retry| retry.poison_offset == poison_offset)
            .map_or(0, |retry| retry.attempts)
    }

    /// Which attempt comes next of the record at `offset`, from 1. A transient failure counts for all that waits.
    pub fn attempt(&self, partition: &TopicPartition, offset: i64) -> i32 {
        1 + self
            .retry(partition)
            .filter(|retry| {
                retry
                    .poison_offset
                    .is_none_or(|poison_offset| poison_offset == offset)
            })
            .map_or(0, |retry| retry.attempts as i32)
    }

    /// The partition waits; returns its next offset.
    pub fn postpone(
        &mut self,
        partition: &TopicPartition,
        attempts: u32,
        poison_offset: Option<i64>,
    ) -> Option<i64> {
        let retry_at = Instant::now() + backoff::delay(attempts);
        let partition = self.0.get_mut(partition)?;
        partition.retry = Some(Retry {
            attempts,
            poison_offset,
            retry_at,
            paused: true,
            refused: false,
        });
        Some(partition.next)
    }

    /// The partition's records before `next` are done with.
    pub fn advance(&mut self, partition: &TopicPartition, next: i64) {
        offsets::know(partition, next);
        if let Some(partition) = self.0.get_mut(partition) {
            partition.next = next;
            partition.retry = None;
        }
    }

    /// It waits because the broker refuses to give its records.
    pub fn refused(&mut self, partition: &TopicPartition) {
        if let Some(retry) = self
            .0
            .get_mut(partition)
            .and_then(|partition| partition.retry.as_mut())
        {
            retry.refused = true;
        }
    }

    /// Ends what was refused and is no longer; returns whose.
    pub fn end_refusals(&mut self) -> Vec<TopicPartition> {
        let mut gone_on = Vec::new();
        for (name, partition) in &mut self.0 {
            let ended = partition.retry.take_if(|retry| {
                retry.refused && !retry.paused && retry.retry_at.elapsed() > NOT_REFUSED_AFTER
            });
            if ended.is_some() {
                waits::goes_on(name);
                gone_on.push(name.clone());
            }
        }
        gone_on
    }

    /// None of those that go on can be read, for this.
    pub fn all_wait(&self, why: &str) {
        self.healthy()
            .for_each(|(name, _)| waits::back_off(name, why.into()));
    }

    /// They can again.
    pub fn all_go_on(&self) {
        self.healthy().for_each(|(name, _)| waits::goes_on(name));
    }

    /// Ends the pauses that are over; returns whose.
    pub fn end_pauses(&mut self) -> Vec<TopicPartition> {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (name, partition) in &mut self.0 {
            let over = partition
                .retry
                .as_mut()
                .filter(|retry| retry.paused && retry.retry_at <= now);
            if let Some(retry) = over {
                retry.paused = false;
                ended.push(name.clone());
            }
        }
        ended
    }

    /// None while there is something to poll; else when the first pause ends (none of none).
    pub fn all_paused_until(&self) -> Option<Option<Instant>> {
        let pauses: Option<Vec<Instant>> = self
            .0
            .values()
            .map(|partition| {
                partition
                    .retry
                    .as_ref()
                    .filter(|t| t.paused)
                    .map(|t| t.retry_at)
            })
            .collect();
        pauses.map(|pauses| pauses.into_iter().min())
    }

    /// The steps of partitions that the reader is beyond, by `position`, without having met a record.
    pub fn passed_over(&self, position: impl Fn(&TopicPartition) -> Option<i64>) -> Vec<Move> {
        self.healthy()
            .filter_map(|(name, partition)| {
                let to = position(name).filter(|position| *position > partition.next)?;
                Some(Move {
                    partition: name.clone(),
                    from: partition.next,
                    to,
                })
            })
            .collect()
    }

    /// The offsets not committed to Kafka yet, with their metadata.
    pub fn uncommitted(&self) -> Vec<(TopicPartition, i64, String)> {
        let uncommitted = self
            .0
            .iter()
            .filter(|(_, partition)| partition.next != partition.committed);
        uncommitted
            .map(|(name, partition)| (name.clone(), partition.next, String::new()))
            .collect()
    }

    /// All offsets are committed to Kafka.
    pub fn mark_committed(&mut self) {
        self.0
            .values_mut()
            .for_each(|partition| partition.committed = partition.next);
    }

    fn healthy(&self) -> impl Iterator<Item = (&TopicPartition, &Partition)> {
        self.0
            .iter()
            .filter(|(_, partition)| partition.retry.is_none())
    }

    fn retry(&self, partition: &TopicPartition) -> Option<&Retry> {
        self.0.get(partition)?.retry.as_ref()
    }
}

impl Drop for Partitions {
    fn drop(&mut self) {
        for partition in self.0.keys() {
            offsets::forget(partition);
            waits::goes_on(partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_counted_for_the_poison_record_alone_and_transient_ones_for_all_that_waits() {
        let partition = TopicPartition {
            topic: "payment".into(),
            topic_id: uuid::Uuid::nil(),
            partition: 0,
        };
        let mut partitions = Partitions::new(vec![Start {
            partition: partition.clone(),
            next: 5,
            leader_epoch: None,
        }]);
        assert_eq!(partitions.attempt(&partition, 5), 1);
        partitions.postpone(&partition, 2, None);
        assert_eq!(
            (
                partitions.attempt(&partition, 5),
                partitions.attempt(&partition, 6)
            ),
            (3, 3)
        );
        partitions.postpone(&partition, 1, Some(5));
        assert_eq!(
            (
                partitions.attempt(&partition, 5),
                partitions.attempt(&partition, 6)
            ),
            (2, 1)
        );
        partitions.advance(&partition, 6);
        assert_eq!(partitions.attempt(&partition, 6), 1);
    }
}
