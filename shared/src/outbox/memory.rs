//! Rows that this process has just committed, for its relay: it publishes them without reading them.
//!
//! A row in memory is as good as one that was read where three things hold. Else the relay reads, as it does in any case
//! for rows of other instances:
//!
//! * It is the next one: its id follows the last one that was published in this leadership. Ids are drawn in the order of
//!   commits (I4), so no row can come between. After a rolled-back id, or a row of another instance, the relay reads. A row that
//!   recovery found published is not taken in, however late it is handed over.
//! * Its commit was heard of. One in doubt is not handed over.
//! * It was committed in the database that the leader's session is on, since that server was started. A row of a server that
//!   was lost, or is no longer the primary, is not in the database that its position would name.
//!
//! Rows that somebody deletes or changes by hand meanwhile are published as they were, as they are between a read and its
//! publication. So that this is no longer than there, what is in memory is forgotten after a turn that took long.
//!
//! **Must not be changed**: each of the three.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::outbox::{Appended, Row};

/// Rows at most, two full transactions of the default size: with more the relay is behind, and reads.
const LIMIT: usize = 4_096;

/// What was handed over.
#[derive(Default)]
pub struct Memory(Mutex<Held>);

#[derive(Default)]
struct Held {
    /// The leader's, as [`Appended`] has it; rows of another one are not taken in.
    server: String,
    /// The last row that is known to be published when the leadership begins; rows up to it are not taken in.
    published: i64,
    rows: BTreeMap<i64, Row>,
    /// Whether there may be rows in the database that nobody has handed over.
    others: bool,
}

impl Held {
    fn forget(&mut self) {
        self.rows.clear();
        self.others = true;
    }
}

impl Memory {
    /// Forgets everything. From now on rows of this `server` behind the id `published` are taken in.
    pub fn begin(&self, server: String, published: i64) {
        *self.held() = Held {
            server,
            published,
            ..Held::default()
        };
    }

    /// Takes in what was appended: each row's order and messages, by id.
    pub fn hand_over(&self, appended: Option<&Appended>, rows: Vec<(Uuid, String)>) {
        let mut held = self.held();
        let is_next = |appended: &&Appended| {
            appended.server == held.server && appended.first > held.published
        };
        match appended.filter(is_next) {
            Some(appended) if held.rows.len() + rows.len() <= LIMIT => {
                for (id, (order_id, messages)) in (appended.first..).zip(rows) {
                    let stored_at = appended.stored_at.clone();
                    let row = Row {
                        id,
                        order_id,
                        stored_at,
                        messages,
                    };
                    held.rows.insert(id, row);
                }
            }
            _ => held.forget(),
        }
    }

    /// The relay has to read the next time: rows have been committed that are not in here, or may have been.
    pub fn must_read(&self) {
        self.held().others = true;
    }

    /// Forgets the rows; they are read.
    pub fn forget(&self) {
        self.held().forget();
    }

    /// The rows behind the id `floor`, `limit` at most, and whether they are all that is known of; none, where the relay has to read.
    /// `floor`: the last one that was published in this leadership, 0 where none was.
    pub fn take(&self, floor: i64, limit: usize) -> Option<(Vec<Row>, bool)> {
        let mut held = self.held();
        held.rows = held.rows.split_off(&(floor + 1));
        if std::mem::take(&mut held.others) || floor == 0 {
            return None;
        }
        let mut next = Vec::new();
        while next.len() < limit
            && let Some(row) = held.rows.remove(&(floor + 1 + next.len() as i64))
        {
            next.push(row);
        }
        (!next.is_empty()).then(|| (next, held.rows.is_empty()))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hand_over(memory: &Memory, server: &str, first: i64, count: usize) {
        let appended = Appended {
            first,
            stored_at: "2026-01-01T00:00:00.000000Z".into(),
            server: server.into(),
        };
        memory.hand_over(Some(&appended), vec![(Uuid::nil(), "[]".into()); count]);
    }

    /// The rows 1 to 3 of server a.
    fn memory() -> Memory {
        let memory = Memory::default();
        memory.begin("a".into(), 0);
        hand_over(&memory, "a", 1, 3);
        memory
    }

    /// Of three at most: their ids, and whether they are all.
    fn taken(memory: &Memory, floor: i64) -> Option<(Vec<i64>, bool)> {
        let (rows, all) = memory.take(floor, 3)?;
        Some((rows.iter().map(|row| row.id).collect(), all))
    }

    #[test]
    fn rows_are_taken_as_long_as_their_ids_follow_one_another() {
        let memory = memory();
        hand_over(&memory, "a", 6, 1);
        hand_over(&memory, "a", 4, 2);
        hand_over(&memory, "a", 8, 1);
        assert_eq!(taken(&memory, 1), Some((vec![2, 3, 4], false)));
        assert_eq!(taken(&memory, 4), Some((vec![5, 6], false)));
        assert_eq!(taken(&memory, 6), None, "7 is missing");
        assert_eq!(taken(&memory, 8), None, "8 was read");
        hand_over(&memory, "a", 9, 1);
        assert_eq!(taken(&memory, 8), Some((vec![9], true)));
    }

    #[test]
    fn nothing_is_taken_before_anything_was_published_and_once_after_others_have_committed() {
        let memory = memory();
        assert_eq!(taken(&memory, 0), None);
        memory.must_read();
        assert_eq!(taken(&memory, 1), None);
        assert_eq!(taken(&memory, 1), Some((vec![2, 3], true)));
    }

    #[test]
    fn rows_of_another_server_and_of_a_leadership_before_are_not_taken() {
        let memory = memory();
        hand_over(&memory, "b", 4, 1);
        assert_eq!(taken(&memory, 1), None);
        assert_eq!(taken(&memory, 3), None);
        hand_over(&memory, "a", 4, 1);
        memory.begin("a".into(), 0);
        assert_eq!(taken(&memory, 3), None);
    }

    #[test]
    fn a_row_that_recovery_found_published_is_not_taken_in_later() {
        let memory = memory();
        memory.begin("a".into(), 11);
        hand_over(&memory, "a", 11, 1);
        assert_eq!(taken(&memory, 10), None);
        hand_over(&memory, "a", 12, 1);
        assert_eq!(taken(&memory, 11), Some((vec![12], true)));
    }

    #[test]
    fn what_is_forgotten_is_read() {
        let memory = memory();
        memory.forget();
        assert_eq!(taken(&memory, 1), None);
        hand_over(&memory, "a", 4, 1);
        assert_eq!(taken(&memory, 3), Some((vec![4], true)));
    }

    #[test]
    fn what_an_append_did_not_say_and_more_rows_than_are_held_are_left_to_be_read() {
        let memory = memory();
        memory.hand_over(None, vec![(Uuid::nil(), "[]".into())]);
        assert_eq!(taken(&memory, 1), None);
        hand_over(&memory, "a", 5, LIMIT);
        assert_eq!(taken(&memory, 4), Some((vec![5, 6, 7], false)));
        hand_over(&memory, "a", 5 + LIMIT as i64, 4);
        assert_eq!(taken(&memory, 7), None);
        assert_eq!(taken(&memory, 7), None, "8 is forgotten");
    }
}
