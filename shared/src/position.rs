//! The position: which outbox rows are published for certain. Every Kafka transaction of the relay carries it, as a header
//! of the last record it writes to each partition, so it is committed with the records, or never. A new leader reads the
//! last ones back.

use kafka::{Bytes, Config, Header, Interrupt, Isolation, Record, StrBytes, TopicPartition, last_records};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::event::Service;

/// The header's name.
const HEADER: &str = "outbox_position";

/// The published rows that may still be there when the transaction that carries it is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The database's installation.
    pub install: Uuid,
    /// The first row's id.
    pub first: i64,
    /// The last row's id.
    pub last: i64,
    /// How many rows they are.
    pub count: usize,
    /// The first row's last message and the last row's.
    pub messages: [Uuid; 2],
}

impl Position {
    /// The rows of a position before, which are still there, and those of this one behind them.
    pub fn behind(self, before: &Position) -> Position {
        let messages = [before.messages[0], self.messages[1]];
        Position { first: before.first, count: before.count + self.count, messages, ..self }
    }

    /// As it travels.
    pub fn to_header(&self) -> Header {
        let text = serde_json::to_vec(self).expect("plain data is always JSON");
        (StrBytes::from_static_str(HEADER), Some(Bytes::from(text)))
    }

    /// Whether the outbox holds rows of it. `rows` are those of its first and last one that are there, by id, with their
    /// last messages.
    ///
    /// None is there: deleted by whoever published them. Other messages: a restored database draws row ids again, and the
    /// position is of its earlier life. Then these rows were never published.
    pub fn is_held(&self, rows: &[(i64, Uuid)]) -> bool {
        let expected = |id: i64| self.messages[usize::from(id == self.last && id != self.first)];
        let same = rows.iter().all(|(id, message)| *message == expected(*id));
        if !same {
            log::error!(
                "a position in Kafka (outbox rows {} to {}) is of an earlier life of this database; its rows are published again",
                self.first,
                self.last
            );
        }
        same && !rows.is_empty()
    }
}

/// The last committed position in each partition of the topics that the service writes, the latest rows first, each once.
/// It waits until all that was written there before is decided.
///
/// # Errors
/// [`Error::Fatal`] for one of another installation, saying what to do, or one that can't be read; Kafka's errors,
/// `Undecided` among them.
pub fn read(
    kafka: &Config,
    interrupt: &Interrupt,
    service: Service,
    prefix: &str,
    install_id: Uuid,
) -> Result<Vec<Position>> {
    let mut positions = read_own(kafka, interrupt, service, prefix, install_id, Isolation::ReadUncommitted)?;
    // what was published together and is not deleted yet may stand in positions of several turns: the widest comes first
    positions.sort_by_key(|position| (std::cmp::Reverse(position.last), position.first));
    positions.dedup();
    Ok(positions)
}

/// Refuses, at start, topics that hold another installation's position.
///
/// # Errors
/// As [`read`], but nothing is waited for: any position tells whose it is.
pub fn require_own(
    kafka: &Config,
    interrupt: &Interrupt,
    service: Service,
    prefix: &str,
    install_id: Uuid,
) -> Result<()> {
    read_own(kafka, interrupt, service, prefix, install_id, Isolation::ReadCommitted).map(drop)
}

fn read_own(
    kafka: &Config,
    interrupt: &Interrupt,
    service: Service,
    prefix: &str,
    install_id: Uuid,
    ends: Isolation,
) -> Result<Vec<Position>> {
    let topics: Vec<String> = service.writes().iter().map(|topic| format!("{prefix}{}", topic.name())).collect();
    let last = last_records(kafka, interrupt, &topics, ends, |record| text(record).is_some())?;
    last.iter().map(|(place, record)| own(place, record, service, install_id)).collect()
}

fn text(record: &Record) -> Option<&Bytes> {
    record.headers.iter().find(|(name, _)| &**name == HEADER)?.1.as_ref()
}

fn own(place: &TopicPartition, record: &Record, service: Service, install_id: Uuid) -> Result<Position> {
    let found = format!("{place}, offset {}", record.offset);
    let position: Position = serde_json::from_slice(text(record).map_or(&[][..], |text| text))
        .map_err(|error| Error::Fatal(format!("the position in {found} can't be read: {error}")))?;
    if position.install == install_id {
        return Ok(position);
    }
    Err(Error::Fatal(format!(
        "Kafka holds the position of another {} database (installation {}, ours is {install_id}) in {found}: \
         set TOPIC_PREFIX to a prefix of this installation's own, or delete the topics if that database is gone for good",
        service.name(),
        position.install
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);
    const C: Uuid = Uuid::from_u128(3);

    fn position(first: i64, last: i64, count: usize, messages: [Uuid; 2]) -> Position {
        Position { install: Uuid::nil(), first, last, count, messages }
    }

    #[test]
    fn rows_are_the_positions_own_by_their_messages() {
        let turn = position(4, 9, 5, [A, B]);
        assert!(turn.is_held(&[(4, A), (9, B)]));
        assert!(turn.is_held(&[(4, A)]), "and the count will tell that some are missing");
        assert!(turn.is_held(&[(9, B)]));
        assert!(!turn.is_held(&[]), "deleted");
        assert!(!turn.is_held(&[(4, A), (9, C)]), "ids drawn again");
        assert!(!turn.is_held(&[(4, B)]), "ids drawn again");
        let lone = position(7, 7, 1, [C, C]);
        assert!(lone.is_held(&[(7, C)]));
        assert!(!lone.is_held(&[(7, A)]));
    }

    #[test]
    fn a_position_names_what_an_earlier_one_named_too() {
        let joined = position(8, 9, 2, [B, C]).behind(&position(3, 7, 4, [A, B]));
        assert_eq!(joined, position(3, 9, 6, [A, C]));
    }
}
