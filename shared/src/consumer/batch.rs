//! What was polled, cut into pieces for transactions.

use kafka::{Record, TopicPartition};

use crate::consumer::offsets::Move;
use crate::error::Error;
use crate::event::delivery::{self, Delivery};
use crate::event::envelope::{self, Undecodable};
use crate::event::trace::{self, Span};
use crate::event::{Event, Topic};

/// Records in one transaction: a participant's batch of this size takes 20 to 30 ms, short enough for those who wait
/// for its row locks.
const BATCH: usize = 500;

/// A record and what it says.
pub struct Input {
    /// As it was read.
    pub record: Record,
    /// How it came here.
    pub delivery: Delivery,
    /// As one of the saga's events.
    pub event: Result<Event, Undecodable>,
}

impl Input {
    /// Decodes a record of `topic`, from this partition, taken up `now` for this attempt.
    pub fn new(topic: Topic, partition: i32, record: Record, now: i64, attempt: i32) -> Input {
        let delivery = envelope::delivery(&record, partition, now, attempt);
        let event = envelope::decode(topic, &record).map(|event| Event {
            delivery: Some(delivery),
            ..event
        });
        Input {
            record,
            delivery,
            event,
        }
    }

    /// The span of this attempt at it, where it is recorded.
    pub fn span(&self) -> Option<Span> {
        Span::processing(self.event.as_ref().ok()?)
    }
}

/// A run of one partition's records.
pub struct PartitionBatch {
    /// Which partition.
    pub partition: TopicPartition,
    /// Where the partition's offset is believed to be.
    pub from: i64,
    /// Where it goes: behind the records and what the reader passed over.
    pub to: i64,
    /// In offset order, at least one.
    pub inputs: Vec<Input>,
}

impl PartitionBatch {
    /// Decodes what was polled from `topic`. `attempt`: which one this is of the record at an offset.
    pub fn new(
        topic: Topic,
        partition: TopicPartition,
        (from, to): (i64, i64),
        records: Vec<Record>,
        attempt: impl Fn(i64) -> i32,
    ) -> PartitionBatch {
        let now = delivery::now();
        let number = partition.partition;
        let inputs = records
            .into_iter()
            .map(|record| {
                let attempt = attempt(record.offset);
                Input::new(topic, number, record, now, attempt)
            })
            .collect();
        PartitionBatch {
            partition,
            from,
            to,
            inputs,
        }
    }

    /// The first `at` records, and the rest; both must have some.
    pub fn split(mut self, at: usize) -> (PartitionBatch, PartitionBatch) {
        let right = self.inputs.split_off(at);
        let middle = right[0].record.offset;
        let right = PartitionBatch {
            partition: self.partition.clone(),
            from: middle,
            to: self.to,
            inputs: right,
        };
        (PartitionBatch { to: middle, ..self }, right)
    }

    /// Offset of the first record.
    pub fn first_offset(&self) -> i64 {
        self.inputs[0].record.offset
    }

    /// This attempt has failed: the first record's span says why.
    pub fn failed(&self, error: &Error) {
        let span = self.inputs[0].span();
        let failed = span.map(|span| span.failed(error.to_string()));
        trace::end("process batch", failed.into_iter().collect());
    }

    /// The step of the partition's offset.
    pub fn step(&self) -> Move {
        Move {
            partition: self.partition.clone(),
            from: self.from,
            to: self.to,
        }
    }
}

/// Cuts what was polled into transactions of `BATCH` records at most; each partition's order is kept.
pub fn batches(parts: Vec<PartitionBatch>) -> Vec<Vec<PartitionBatch>> {
    let mut batches = Vec::new();
    let mut batch: Vec<PartitionBatch> = Vec::new();
    let mut room = BATCH;
    for mut rest in parts {
        while rest.inputs.len() > room {
            let (now, later) = rest.split(room);
            batch.push(now);
            batches.push(std::mem::take(&mut batch));
            (rest, room) = (later, BATCH);
        }
        room -= rest.inputs.len();
        batch.push(rest);
        if room == 0 {
            batches.push(std::mem::take(&mut batch));
            room = BATCH;
        }
    }
    batches.push(batch);
    batches.retain(|batch| !batch.is_empty());
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Channel, Side};

    fn part(partition: i32, from: i64, count: i64) -> PartitionBatch {
        let partition = TopicPartition {
            topic: "payment".into(),
            topic_id: uuid::Uuid::nil(),
            partition,
        };
        let record = |offset| Record {
            offset,
            timestamp: 0,
            key: None,
            value: None,
            headers: vec![],
        };
        let records = (from..from + count).map(record).collect();
        // one control record behind the last
        PartitionBatch::new(
            Topic(Side::Payment, Channel::Request),
            partition,
            (from, from + count + 1),
            records,
            |_| 1,
        )
    }

    fn steps(batch: &[PartitionBatch]) -> Vec<(i32, i64, i64, usize)> {
        batch
            .iter()
            .map(|part| {
                (
                    part.partition.partition,
                    part.from,
                    part.to,
                    part.inputs.len(),
                )
            })
            .collect()
    }

    #[test]
    fn a_batch_ends_at_its_limit_and_the_next_goes_on_where_it_ended() {
        let batches = batches(vec![part(0, 10, 300), part(1, 0, 900)]);
        assert_eq!(batches.len(), 3);
        assert_eq!(steps(&batches[0]), [(0, 10, 311, 300), (1, 0, 200, 200)]);
        assert_eq!(steps(&batches[1]), [(1, 200, 700, 500)]);
        assert_eq!(steps(&batches[2]), [(1, 700, 901, 200)]);
    }

    #[test]
    fn nothing_polled_is_no_batch() {
        assert!(batches(vec![]).is_empty());
        assert_eq!(batches(vec![part(0, 0, 500)]).len(), 1);
    }
}
