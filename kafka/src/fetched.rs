//! Reading what one Fetch answer holds for one partition: whole batches, without control batches and, read-committed,
//! without aborted transactions.

use std::collections::HashSet;

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::AbortedTransaction;

use crate::batch::{Corrupt, Next, RawBatch, next_batch};
use crate::record::Record;

/// What was read of one partition.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) records: Vec<Record>,
    /// Where to go on: past everything that was read or skipped.
    pub(crate) next_offset: i64,
    /// A batch at `next_offset` that can't be read.
    pub(crate) corrupt: Option<Corrupt>,
}

/// Reads the batches of `bytes` from offset `from` on. Answers begin with the batch that contains `from`, so the
/// records before it are left out. The last batch may be cut off; then it is left for the next fetch. Stops before a batch that
/// can't be read. A batch that claims more than `longest` bytes is one.
pub(crate) fn read_fetched(
    mut bytes: Bytes,
    from: i64,
    aborted: Option<Vec<AbortedTransaction>>,
    longest: usize,
) -> Fetched {
    let mut aborted = Aborted::new(aborted);
    let mut fetched = Fetched { records: Vec::new(), next_offset: from, corrupt: None };
    loop {
        match next_batch(&mut bytes, longest) {
            Next::End => return fetched,
            Next::Batch(batch) => fetched.corrupt = fetched.take(batch, &mut aborted).err(),
            Next::Corrupt(corrupt) => fetched.corrupt = Some(corrupt),
        }
        if fetched.corrupt.is_some() {
            return fetched;
        }
    }
}

impl Fetched {
    fn take(&mut self, batch: RawBatch, aborted: &mut Aborted) -> Result<(), Corrupt> {
        aborted.reach(batch.last_offset);
        if batch.is_control() {
            if batch.is_transactional() && batch.is_abort_marker()? {
                aborted.end(batch.producer_id);
            }
        } else if !(batch.is_transactional() && aborted.holds(batch.producer_id)) {
            batch.decode(self.next_offset, &mut self.records)?;
        }
        self.next_offset = self.next_offset.max(batch.last_offset.saturating_add(1));
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
        Aborted { ahead, open: HashSet::new() }
    }

    fn reach(&mut self, offset: i64) {
        while self.ahead.last().is_some_and(|next| next.first_offset <= offset) {
            if let Some(next) = self.ahead.pop() {
                self.open.insert(next.producer_id.0);
            }
        }
    }

    fn end(&mut self, producer_id: i64) {
        self.open.remove(&producer_id);
    }

    fn holds(&self, producer_id: i64) -> bool {
        self.open.contains(&producer_id)
    }
}
