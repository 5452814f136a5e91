//! Where a consumer is in each of its partitions, and which of them wait before their next attempt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kafka::TopicPartition;

use crate::backoff;
use crate::consumer::batch::Slice;
use crate::consumer::offsets::{self, Move, Start};
use crate::waits;

/// The assigned partitions. What the process knows of them goes with this.
#[derive(Default)]
pub struct Progress(HashMap<TopicPartition, Partition>);

struct Partition {
    next: i64,
    /// What Kafka was told last, for lag tools.
    told: i64,
    trouble: Option<Trouble>,
}

struct Trouble {
    attempts: u32,
    /// The record that stands alone as the culprit; none while the world is to blame.
    culprit: Option<i64>,
    retry_at: Instant,
    paused: bool,
    /// The broker has refused to give records, and does not say when it would.
    refused: bool,
}

/// Where nothing is refused any more within it there is nothing to read, which is no refusal: longer than a poll takes.
const NOT_REFUSED_AFTER: Duration = Duration::from_secs(3);

impl Progress {
    /// Partitions at the offsets that the database holds.
    pub fn new(starts: Vec<Start>) -> Progress {
        for Start {
            partition, next, ..
        } in &starts
        {
            offsets::know(partition, *next);
            waits::goes_on(partition);
        }
        let partition = |next| Partition {
            next,
            told: -1,
            trouble: None,
        };
        Progress(
            starts
                .into_iter()
                .map(|start| (start.partition, partition(start.next)))
                .collect(),
        )
    }

    /// The next offset; none if the partition is not assigned.
    pub fn next(&self, partition: &TopicPartition) -> Option<i64> {
        self.0.get(partition).map(|partition| partition.next)
    }

    /// False once the slice's partition was put off or moved elsewhere, earlier in the same pass.
    pub fn expects(&self, slice: &Slice) -> bool {
        let partition = self.0.get(&slice.partition);
        partition.is_some_and(|p| {
            p.next == slice.from && p.trouble.as_ref().is_none_or(|trouble| !trouble.paused)
        })
    }

    /// Whether nothing has failed since the last success.
    pub fn is_untroubled(&self, slice: &Slice) -> bool {
        self.trouble(&slice.partition).is_none()
    }

    /// The record known to fail by its own fault.
    pub fn culprit(&self, partition: &TopicPartition) -> Option<i64> {
        self.trouble(partition).and_then(|trouble| trouble.culprit)
    }

    /// The failed attempts so far of `culprit`, or of the world's.
    pub fn attempts(&self, partition: &TopicPartition, culprit: Option<i64>) -> u32 {
        self.trouble(partition)
            .filter(|trouble| trouble.culprit == culprit)
            .map_or(0, |trouble| trouble.attempts)
    }

    /// Which attempt comes next of the record at `offset`, from 1. What the world is to blame for counts for all that waits.
    pub fn attempt(&self, partition: &TopicPartition, offset: i64) -> i32 {
        let concerns = |trouble: &&Trouble| trouble.culprit.is_none_or(|culprit| culprit == offset);
        1 + self
            .trouble(partition)
            .filter(concerns)
            .map_or(0, |trouble| trouble.attempts as i32)
    }

    /// The partition waits; answers its next offset.
    pub fn postpone(
        &mut self,
        partition: &TopicPartition,
        attempts: u32,
        culprit: Option<i64>,
    ) -> Option<i64> {
        let retry_at = Instant::now() + backoff::delay(attempts);
        let partition = self.0.get_mut(partition)?;
        partition.trouble = Some(Trouble {
            attempts,
            culprit,
            retry_at,
            paused: true,
            refused: false,
        });
        Some(partition.next)
    }

    /// The partition's records before `next` are done with.
    pub fn moved(&mut self, partition: &TopicPartition, next: i64) {
        offsets::know(partition, next);
        if let Some(partition) = self.0.get_mut(partition) {
            partition.next = next;
            partition.trouble = None;
        }
    }

    /// It waits because the broker refuses to give its records.
    pub fn refused(&mut self, partition: &TopicPartition) {
        if let Some(trouble) = self
            .0
            .get_mut(partition)
            .and_then(|partition| partition.trouble.as_mut())
        {
            trouble.refused = true;
        }
    }

    /// Ends what was refused and is no longer; answers whose.
    pub fn end_refusals(&mut self) -> Vec<TopicPartition> {
        let ended = |trouble: &Trouble| {
            trouble.refused && !trouble.paused && trouble.retry_at.elapsed() > NOT_REFUSED_AFTER
        };
        let mut gone_on = Vec::new();
        for (name, partition) in &mut self.0 {
            if partition
                .trouble
                .take_if(|trouble| ended(trouble))
                .is_some()
            {
                waits::goes_on(name);
                gone_on.push(name.clone());
            }
        }
        gone_on
    }

    /// None of those that go on can be read, for this.
    pub fn all_wait(&self, why: &str) {
        self.untroubled()
            .for_each(|(name, _)| waits::put_off(name, why.into()));
    }

    /// They can again.
    pub fn all_go_on(&self) {
        self.untroubled().for_each(|(name, _)| waits::goes_on(name));
    }

    /// Ends the pauses that are over; answers whose.
    pub fn end_pauses(&mut self) -> Vec<TopicPartition> {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (name, partition) in &mut self.0 {
            let over = partition
                .trouble
                .as_mut()
                .filter(|trouble| trouble.paused && trouble.retry_at <= now);
            if let Some(trouble) = over {
                trouble.paused = false;
                ended.push(name.clone());
            }
        }
        ended
    }

    /// None while there is something to poll; else when the first pause ends (none of none).
    pub fn all_paused_until(&self) -> Option<Option<Instant>> {
        let pause = |partition: &Partition| {
            partition
                .trouble
                .as_ref()
                .filter(|t| t.paused)
                .map(|t| t.retry_at)
        };
        let pauses: Option<Vec<Instant>> = self.0.values().map(pause).collect();
        pauses.map(|pauses| pauses.into_iter().min())
    }

    /// The steps of partitions that the reader is beyond, by `position`, without having met a record.
    pub fn passed_over(&self, position: impl Fn(&TopicPartition) -> Option<i64>) -> Vec<Move> {
        let step = |(name, partition): (&TopicPartition, &Partition)| {
            let to = position(name).filter(|position| *position > partition.next)?;
            Some(Move {
                partition: name.clone(),
                from: partition.next,
                to,
            })
        };
        self.untroubled().filter_map(step).collect()
    }

    /// The offsets that Kafka was not told yet, with their metadata.
    pub fn untold(&self) -> Vec<(TopicPartition, i64, String)> {
        let untold = self
            .0
            .iter()
            .filter(|(_, partition)| partition.next != partition.told);
        untold
            .map(|(name, partition)| (name.clone(), partition.next, String::new()))
            .collect()
    }

    /// Kafka was told all offsets.
    pub fn told(&mut self) {
        self.0
            .values_mut()
            .for_each(|partition| partition.told = partition.next);
    }

    fn untroubled(&self) -> impl Iterator<Item = (&TopicPartition, &Partition)> {
        self.0
            .iter()
            .filter(|(_, partition)| partition.trouble.is_none())
    }

    fn trouble(&self, partition: &TopicPartition) -> Option<&Trouble> {
        self.0.get(partition)?.trouble.as_ref()
    }
}

impl Drop for Progress {
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
    fn an_attempt_is_counted_for_the_culprit_alone_and_the_worlds_for_all_that_waits() {
        let partition = TopicPartition {
            topic: "payment".into(),
            topic_id: uuid::Uuid::nil(),
            partition: 0,
        };
        let mut progress = Progress::new(vec![Start {
            partition: partition.clone(),
            next: 5,
            leader_epoch: None,
        }]);
        assert_eq!(progress.attempt(&partition, 5), 1);
        progress.postpone(&partition, 2, None);
        assert_eq!(
            (
                progress.attempt(&partition, 5),
                progress.attempt(&partition, 6)
            ),
            (3, 3)
        );
        progress.postpone(&partition, 1, Some(5));
        assert_eq!(
            (
                progress.attempt(&partition, 5),
                progress.attempt(&partition, 6)
            ),
            (2, 1)
        );
        progress.moved(&partition, 6);
        assert_eq!(progress.attempt(&partition, 6), 1);
    }
}
