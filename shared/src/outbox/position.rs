//! The position: which outbox rows are published for certain. Every Kafka transaction of the relay carries it, as a
//! header of the last record that it writes to each partition. So it is committed with the records, or never. With it a
//! new leader knows which rows were published and not yet deleted (I8).
//!
//! A [`Position`] names the installation, the first and last row that may still be in the outbox, their number, and the
//! last message. It also names the physical database that wrote it, and under which leadership.
//!
//! ```text
//! turn 1 publishes rows 3 to 5                position 3 to 5
//! turn 2 publishes rows 6 and 7               position 3 to 7: 3 to 5 are still there
//! turn 3 deletes 3 to 7, publishes 8 and 9    position 8 to 9: the delete is over before EndTxn
//! ```
//!
//! # Reading it
//!
//! [`find`] goes backwards through the partitions that the service writes, past markers, aborted transactions and
//! foreign records, to the last record with a position. It waits where a transaction is open. With an empty outbox it
//! waits for none: the positions then only show which copy wrote last.
//!
//! No partition knows which of the others has the latest position, and a restored database draws row ids again. So the
//! relay compares each position with the outbox, the latest rows first:
//!
//! | in the outbox | means |
//! | --- | --- |
//! | its last row is gone | its publisher has deleted the rows |
//! | that row has another message | the position is of an earlier life of the database; the rows that have these ids now were never published |
//! | else | all of its rows must be there, and are deleted |
//!
//! The last positions also say which database wrote last. One that is not the one at hand refuses it ([`require_own`],
//! [`judge`]): at a start, at every new leadership, and in `--check`. [`origin`] decides.
//!
//! **Must not be changed**: the position names, at all times, every published row that may still be there. That is why
//! the delete of published rows beside a turn's writes ([`crate::outbox::overlap`]) is over before that turn's EndTxn.

use kafka::{
    Bytes, Config, Header, Interrupt, Isolation, Record, StrBytes, TopicPartition, last_records,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::Session;
use crate::error::{Error, Result};
use crate::event::Service;
use crate::event::delivery;
use crate::event::envelope;
use crate::heartbeat;
use crate::outbox::origin::{self, Judgement, Leader, Origin, OriginState, Refusal};

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
    /// The physical database; none in those of the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The leadership, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<Leader>,
}

impl Position {
    /// The rows of a position before, which are still there, and those of this one behind them.
    pub fn behind(self, before: &Position) -> Position {
        Position {
            first: before.first,
            count: before.count + self.count,
            ..self
        }
    }

    /// As it travels.
    pub fn to_header(&self) -> Header {
        let text = serde_json::to_vec(self).expect("plain data is always JSON");
        (StrBytes::from_static_str(HEADER), Some(Bytes::from(text)))
    }

    /// Whether the outbox holds its rows; `there` is the last message of the last one, if that is there.
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

/// A position, and where it was found.
#[derive(Clone, Debug)]
pub struct FoundPosition {
    /// Partition and offset of its record.
    pub place: String,
    /// When its record was stored (`ce_time`); none if the record does not say so.
    pub stored: Option<String>,
    /// The position itself.
    pub position: Position,
}

/// The last committed position in each partition of these topics, all of them written by the service. `ends` says whether
/// open transactions are waited for ([`last_records`]).
///
/// # Errors
/// [`Error::Fatal`] for one of another installation, saying what to do, or one that can't be read; Kafka's errors,
/// `Undecided` among them.
pub fn find(
    topics: &[String],
    kafka: &Config,
    interrupt: &Interrupt,
    service: Service,
    install_id: Uuid,
    ends: Isolation,
) -> Result<Vec<FoundPosition>> {
    // under a quota it may take long
    let last = last_records(kafka, interrupt, topics, ends, |record| {
        heartbeat::beat();
        text(record).is_some()
    })?;
    last.iter()
        .map(|(place, record)| own(place, record, service, install_id))
        .collect()
}

/// The positions, the latest rows first, each once.
pub fn latest_first(found: Vec<FoundPosition>) -> Vec<Position> {
    let mut positions: Vec<Position> = found.into_iter().map(|found| found.position).collect();
    // what was published together and is not deleted yet may stand in positions of several turns: the widest comes first
    positions.sort_by_key(|position| (std::cmp::Reverse(position.last), position.first));
    positions.dedup();
    positions
}

/// Refuses, before a service works, a database that is not the one that wrote these positions last. `connect` opens a
/// session, unless the positions say nothing of databases.
///
/// # Errors
/// As [`judge`]; what PostgreSQL says.
pub fn require_own(
    found: &[FoundPosition],
    service: Service,
    connect: impl FnOnce() -> Result<Session>,
) -> Result<Option<LostTail>> {
    if found.iter().all(|found| found.position.origin.is_none()) {
        return Ok(None);
    }
    judge(found, &origin::read(&mut connect()?)?, service)
}

/// After a promotion: the latest of the messages in Kafka that the database does not know of any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostTail {
    /// When it was stored.
    pub stored: String,
    /// In words.
    pub what: String,
}

/// Whether the database at hand, in this state, may go on after these positions, which were read before its state.
///
/// # Errors
/// [`Error::Fatal`] where another one has written last, saying which one, where, and what to do.
pub fn judge(
    found: &[FoundPosition],
    state: &OriginState,
    service: Service,
) -> Result<Option<LostTail>> {
    if let Some(Wrong { what, .. }) = wrong(found, state).last() {
        let name = service.name();
        return Err(Error::Fatal(format!(
            "this {name} database is not the one that wrote last: {what}. Stop the other one and run `{name} --take-over` to \
             go on with this one; or, if this one shall live beside it, set TOPIC_PREFIX to a prefix of its own"
        )));
    }
    let lost = found
        .iter()
        .filter(|found| judgement(found, state) == Some(Judgement::LostTail));
    let lost = lost.max_by_key(|found| &found.stored);
    Ok(lost.and_then(|found| {
        Some(LostTail {
            stored: found.stored.clone()?,
            what: lost_tail(found, state),
        })
    }))
}

/// What a database other than the one at hand has written last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Who wrote it.
    pub origin: Origin,
    /// Where, when, and how the two are related.
    pub what: String,
}

/// The latest position of each other database, the latest one last; none if the database at hand may go on.
pub fn wrong(found: &[FoundPosition], state: &OriginState) -> Vec<Wrong> {
    let mut latest: Vec<&FoundPosition> = found.iter().collect();
    latest.sort_by_key(|found| std::cmp::Reverse(&found.stored));
    let mut wrong: Vec<Wrong> = Vec::new();
    for found in latest {
        let Some(origin) = found.position.origin else {
            continue;
        };
        let Some(Judgement::Refused(why)) = judgement(found, state) else {
            continue;
        };
        if wrong.iter().all(|other| other.origin != origin) {
            wrong.push(Wrong {
                origin,
                what: cause(found, origin, why, state),
            });
        }
    }
    wrong.reverse();
    wrong
}

/// None where the position does not say who wrote it.
fn judgement(found: &FoundPosition, state: &OriginState) -> Option<Judgement> {
    let Position { origin, leader, .. } = found.position;
    Some(state.judge(origin?, leader, found.stored.as_deref()))
}

fn time_or_never(time: &Option<String>) -> &str {
    time.as_deref().unwrap_or("never")
}

fn cause(found: &FoundPosition, origin: Origin, why: Refusal, state: &OriginState) -> String {
    let relation = match why {
        Refusal::TakenOver => "which has taken over from it".into(),
        Refusal::StoredSince => {
            format!(
                "from which this one has taken over only what was stored up to {}",
                time_or_never(&state.accepted_to)
            )
        }
        Refusal::OtherDatabase => "another copy of the same installation".into(),
        Refusal::OldPrimary => "which was promoted in place of this one".into(),
        Refusal::OtherLeader => {
            "a physical copy of it, which has published since (the two have parted)".into()
        }
        Refusal::OlderCopy => format!(
            "of which it is an older copy (it last stored: {})",
            time_or_never(&state.last_stored)
        ),
    };
    format!(
        "{}, stored {}, is of {}, {relation}; this one is {} (installation {})",
        found.place,
        time_or_never(&found.stored),
        origin.describe(),
        state.origin.describe(),
        found.position.install
    )
}

fn lost_tail(found: &FoundPosition, state: &OriginState) -> String {
    format!(
        "this database was promoted (timeline {}) without the tail of the old primary (timeline {}): it last stored {}, \
         and {} was stored {}; it goes on from here, and docs/restoring.md says what becomes of what was lost",
        state.origin.timeline(),
        found.position.origin.map_or(0, |origin| origin.timeline()),
        state.last_stored.as_deref().unwrap_or("nothing"),
        found.place,
        found.stored.as_deref().unwrap_or_default()
    )
}

fn text(record: &Record) -> Option<&Bytes> {
    record
        .headers
        .iter()
        .find(|(name, _)| &**name == HEADER)?
        .1
        .as_ref()
}

fn own(
    place: &TopicPartition,
    record: &Record,
    service: Service,
    install_id: Uuid,
) -> Result<FoundPosition> {
    let place = format!("{place}, offset {}", record.offset);
    let position: Position = serde_json::from_slice(text(record).map_or(&[][..], |text| text))
        .map_err(|error| Error::Fatal(format!("the position in {place} can't be read: {error}")))?;
    if position.install != install_id {
        return Err(Error::Fatal(format!(
            "Kafka holds the position of another {} database (installation {}, ours is {install_id}) in {place}: \
             set TOPIC_PREFIX to a prefix of this installation's own, or delete the topics if that database is gone for good",
            service.name(),
            position.install
        )));
    }
    let stored =
        envelope::header(record, "ce_time").filter(|time| delivery::from_rfc3339(time).is_some());
    Ok(FoundPosition {
        place,
        stored: stored.map(str::to_string),
        position,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: Position = Position {
        install: Uuid::nil(),
        first: 4,
        last: 9,
        count: 5,
        message: Uuid::nil(),
        origin: None,
        leader: None,
    };

    #[test]
    fn a_position_names_what_an_earlier_one_named_too() {
        let position = |first, last, count, message| Position {
            first,
            last,
            count,
            message: Uuid::from_u128(message),
            ..BARE
        };
        assert_eq!(
            position(8, 9, 2, 9).behind(&position(3, 7, 4, 7)),
            position(3, 9, 6, 9)
        );
    }

    #[test]
    fn a_position_says_who_wrote_it_in_few_bytes_and_one_of_the_version_before_is_read() {
        let nil = "00000000-0000-0000-0000-000000000000";
        let old =
            format!(r#"{{"install":"{nil}","first":4,"last":9,"count":5,"message":"{nil}"}}"#);
        let text = |position: &Position| {
            String::from_utf8(position.to_header().1.unwrap().to_vec()).unwrap()
        };
        assert_eq!(
            (text(&BARE), serde_json::from_str(&old).ok()),
            (old.clone(), Some(BARE))
        );
        let position = Position {
            origin: "7712376514795047735.16390.2".parse().ok(),
            leader: Some((4001, 7)),
            ..BARE
        };
        let more = r#","origin":"7712376514795047735.16390.2","leader":[4001,7]}"#;
        let new = old.replace('}', more);
        assert_eq!(
            (text(&position), serde_json::from_str(&new).ok()),
            (new, Some(position))
        );
    }

    #[test]
    fn rows_are_the_positions_own_only_by_the_last_ones_message() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let position = Position {
            install: Uuid::nil(),
            first: 4,
            last: 9,
            count: 5,
            message: ours,
            origin: None,
            leader: None,
        };
        assert!(position.is_held(Some(ours)));
        assert!(!position.is_held(Some(other)), "ids drawn again");
        assert!(!position.is_held(None), "deleted");
    }
}
