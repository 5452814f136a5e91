//! The position: which outbox rows are published for certain. Every Kafka transaction of the relay carries it, as a header
//! of the last record it writes to each partition, so it is committed with the records, or never. A new leader reads the
//! last ones back.

use kafka::{Bytes, Config, Header, Interrupt, Isolation, Record, StrBytes, TopicPartition, last_records};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::event::Service;
use crate::topics;

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
    /// The last row's last message.
    pub message: Uuid,
}

impl Position {
    /// The rows of a position before, which are still there, and those of this one behind them.
    pub fn behind(self, before: &Position) -> Position {
        Position { first: before.first, count: before.count + self.count, ..self }
    }

    /// As it travels.
    pub fn to_header(&self) -> Header {
        let text = serde_json::to_vec(self).expect("plain data is always JSON");
        (StrBytes::from_static_str(HEADER), Some(Bytes::from(text)))
    }

    /// Whether the outbox holds its rows; `there` is the last message of the last one, if that is there.
    ///
    /// It is not: deleted by whoever published them. Another message: a restored database draws row ids again, and the
    /// position is of its earlier life. Then the rows that have these ids now were never published.
    pub fn is_held(&self, there: Option<Uuid>) -> bool {
        if there.is_some_and(|message| message != self.message) {
            log::error!(
                "a position in Kafka (outbox rows {} to {}) is of an earlier life of this database; its rows are published again",
                self.first,
                self.last
            );
        }
        there == Some(self.message)
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
    let topics = topics::names(prefix, &service.writes());
    let mut positions = read_own(&topics, kafka, interrupt, service, install_id, Isolation::ReadUncommitted)?;
    // what was published together and is not deleted yet may stand in positions of several turns: the widest comes first
    positions.sort_by_key(|position| (std::cmp::Reverse(position.last), position.first));
    positions.dedup();
    Ok(positions)
}

/// Refuses, at start, any of these topics, all of them written by the service, that holds another installation's position.
///
/// # Errors
/// As [`read`], but nothing is waited for: any position tells whose it is.
pub fn require_own(
    topics: &[String],
    kafka: &Config,
    interrupt: &Interrupt,
    service: Service,
    install_id: Uuid,
) -> Result<()> {
    read_own(topics, kafka, interrupt, service, install_id, Isolation::ReadCommitted).map(drop)
}

fn read_own(
    topics: &[String],
    kafka: &Config,
    interrupt: &Interrupt,
    service: Service,
    install_id: Uuid,
    ends: Isolation,
) -> Result<Vec<Position>> {
    let last = last_records(kafka, interrupt, topics, ends, |record| text(record).is_some())?;
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

    #[test]
    fn a_position_names_what_an_earlier_one_named_too() {
        let position = |first, last, count, message| Position {
            install: Uuid::nil(),
            first,
            last,
            count,
            message: Uuid::from_u128(message),
        };
        assert_eq!(position(8, 9, 2, 9).behind(&position(3, 7, 4, 7)), position(3, 9, 6, 9));
    }

    #[test]
    fn rows_are_the_positions_own_only_by_the_last_ones_message() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let position = Position { install: Uuid::nil(), first: 4, last: 9, count: 5, message: ours };
        assert!(position.is_held(Some(ours)));
        assert!(!position.is_held(Some(other)), "ids drawn again");
        assert!(!position.is_held(None), "deleted");
    }
}
