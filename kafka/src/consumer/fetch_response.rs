//! Reading what one Fetch answer holds for one partition: whole batches, without control batches and, read-committed,
//! without aborted transactions.

use std::collections::HashSet;

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::AbortedTransaction;

use crate::record::Record;
use crate::wire::batch::{CONTROL, Corrupt, Next, RawBatch, TRANSACTIONAL, next_batch};

/// What was read of one partition.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) records: Vec<Record>,
    /// Where to go on: past everything that was read or skipped.
    pub(crate) next_offset: i64,
    /// Of the last batch that was read or skipped.
    pub(crate) leader_epoch: Option<i32>,
    /// A batch at `next_offset` that can't be read.
    pub(crate) corrupt: Option<Corrupt>,
}

/// Reads the batches of `bytes` from offset `from` on. Answers begin with the batch that contains `from`, so the
/// records before it are left out. The last batch may be cut off; then it is left for the next fetch. Stops before a batch that
/// can't be read. A batch that claims more than `longest` bytes is one. What records take when uncompressed goes off `budget`; once
/// that is used up, the batches that follow are left for the next fetch, too.
pub(crate) fn read_fetched(
    mut bytes: Bytes,
    from: i64,
    aborted: Option<Vec<AbortedTransaction>>,
    longest: usize,
    budget: &mut usize,
) -> Fetched {
    let mut aborted = Aborted::new(aborted);
    let mut fetched = Fetched {
        records: Vec::new(),
        next_offset: from,
        leader_epoch: None,
        corrupt: None,
    };
    while *budget > 0 {
        match next_batch(&mut bytes, longest) {
            Next::End => return fetched,
            Next::Batch(batch) => fetched.corrupt = fetched.take(batch, &mut aborted, budget).err(),
            Next::Corrupt(corrupt) => fetched.corrupt = Some(corrupt),
        }
        if fetched.corrupt.is_some() {
            return fetched;
        }
    }
    fetched
}

impl Fetched {
    fn take(
        &mut self,
        batch: RawBatch,
        aborted: &mut Aborted,
        budget: &mut usize,
    ) -> Result<(), Corrupt> {
        aborted.reach(batch.last_offset);
        if batch.is(CONTROL) {
            if batch.is(TRANSACTIONAL) && batch.is_abort_marker()? {
                aborted.open.remove(&batch.producer_id);
            }
        } else if !(batch.is(TRANSACTIONAL) && aborted.open.contains(&batch.producer_id)) {
            *budget = budget.saturating_sub(batch.decode(self.next_offset, &mut self.records)?);
        }
        self.next_offset = self.next_offset.max(batch.last_offset.saturating_add(1));
        self.leader_epoch = Some(batch.leader_epoch);
        Ok(())
    }
}

/// The aborted transactions of a fetched range. The answer lists each with its producer and first offset (FetchResponse,
/// `aborted_transactions`); it ends at that producer's ABORT marker.
struct Aborted {
    /// Those not reached yet, the earliest last.
    ahead: Vec<AbortedTransaction>,
    open: HashSet<i64>,
}

impl Aborted {
    fn new(listed: Option<Vec<AbortedTransaction>>) -> Aborted {
        let mut ahead = listed.unwrap_or_default();
        ahead.sort_by_key(|transaction| std::cmp::Reverse(transaction.first_offset));
        Aborted {
            ahead,
            open: HashSet::new(),
        }
    }

    fn reach(&mut self, offset: i64) {
        while self
            .ahead
            .last()
            .is_some_and(|next| next.first_offset <= offset)
        {
            if let Some(next) = self.ahead.pop() {
                self.open.insert(next.producer_id.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Compression;
    use crate::record::ProducerRecord;
    use crate::wire::batch::Writer;
    use crate::wire::batch::tests::batch_of;
    use kafka_protocol::messages::ProducerId;

    const LONGEST: usize = 1 << 20;

    fn read(bytes: Bytes, from: i64, aborted: Option<Vec<AbortedTransaction>>) -> Fetched {
        let mut budget = usize::MAX;
        read_fetched(bytes, from, aborted, LONGEST, &mut budget)
    }

    /// A batch of one record at this offset.
    fn batch(offset: i64, producer_id: i64, transactional: bool, key: &[u8]) -> Vec<u8> {
        let record = ProducerRecord {
            topic: "t".into(),
            key: Some(Bytes::copy_from_slice(key)),
            value: None,
            headers: Vec::new(),
            timestamp: Some(0),
            partition: None,
        };
        let mut bytes = batch_of(
            &[record],
            &Writer {
                producer_id,
                epoch: 0,
                base_sequence: 0,
                transactional,
                compression: Compression::None,
            },
        )
        .to_vec();
        // The base offset is not part of the checksum: the broker sets it.
        bytes[..8].copy_from_slice(&offset.to_be_bytes());
        bytes
    }

    /// A control batch: its record's key is version 0 and the type, 0 ABORT or 1 COMMIT.
    fn marker(offset: i64, producer_id: i64, kind: u8) -> Vec<u8> {
        let mut bytes = batch(offset, producer_id, true, &[0, 0, 0, kind]);
        bytes[22] |= 1 << 5;
        let sum = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn aborted(producer_id: i64, first_offset: i64) -> AbortedTransaction {
        AbortedTransaction::default()
            .with_producer_id(ProducerId(producer_id))
            .with_first_offset(first_offset)
    }

    fn keys(fetched: &Fetched) -> Vec<Bytes> {
        fetched
            .records
            .iter()
            .map(|record| record.key.clone().unwrap())
            .collect()
    }

    #[test]
    fn an_aborted_transaction_is_left_out_up_to_its_marker_and_no_further() {
        let log = [
            batch(0, 1, true, b"aborted"),
            batch(1, 2, true, b"of another"),
            batch(2, 1, true, b"aborted too"),
            marker(3, 1, 0),
            batch(4, 1, true, b"next of the first"),
            marker(5, 1, 1),
            marker(6, 2, 1),
        ];
        let fetched = read(Bytes::from(log.concat()), 0, Some(vec![aborted(1, 0)]));
        assert_eq!(keys(&fetched), ["of another", "next of the first"]);
        assert_eq!(fetched.next_offset, 7);
    }

    #[test]
    fn markers_alone_move_the_position() {
        let fetched = read(Bytes::from(marker(9, 1, 1)), 9, None);
        assert!(fetched.records.is_empty());
        assert_eq!(fetched.next_offset, 10);
    }

    #[test]
    fn a_truncated_last_batch_waits_for_the_next_fetch() {
        let mut bytes = [batch(0, -1, false, b"a"), batch(1, -1, false, b"b")].concat();
        bytes.pop();
        let fetched = read(Bytes::from(bytes), 0, None);
        assert_eq!(keys(&fetched), ["a"]);
        assert_eq!(fetched.next_offset, 1);
        assert!(fetched.corrupt.is_none());
    }

    #[test]
    fn what_lies_before_a_corrupt_batch_is_read_and_the_position_stays_at_it() {
        let mut broken = batch(1, -1, false, b"b");
        *broken.last_mut().unwrap() ^= 0xff;
        let bytes = [
            batch(0, -1, false, b"a"),
            broken.clone(),
            batch(2, -1, false, b"c"),
        ]
        .concat();
        let fetched = read(Bytes::from(bytes), 0, None);
        assert_eq!(keys(&fetched), ["a"]);
        assert_eq!(fetched.next_offset, 1);
        let corrupt = fetched.corrupt.unwrap();
        assert_eq!((corrupt.base_offset, corrupt.last_offset), (1, 1));
        assert_eq!(corrupt.bytes, broken);
    }

    #[test]
    fn batches_before_the_position_are_skipped() {
        let bytes = [batch(0, -1, false, b"a"), batch(1, -1, false, b"b")].concat();
        let fetched = read(Bytes::from(bytes), 1, None);
        assert_eq!(keys(&fetched), ["b"]);
    }

    #[test]
    fn what_a_spent_budget_leaves_over_waits_for_the_next_fetch() {
        let bytes = [batch(0, -1, false, b"a"), batch(1, -1, false, b"b")].concat();
        let mut budget = 1;
        let fetched = read_fetched(Bytes::from(bytes), 0, None, LONGEST, &mut budget);
        assert_eq!(
            (keys(&fetched), fetched.next_offset, budget),
            (vec![Bytes::from("a")], 1, 0)
        );
    }
}
