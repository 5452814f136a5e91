//! Mechanisms that can be turned off, one at a time, to show that the checks notice. Compiled with `--cfg sabotage` only;
//! other binaries hold nothing of it. `SABOTAGE` in the environment names the one that is off.

use kafka::{Producer, ProducerRecord};

use crate::db::Session;
use crate::error::Result;

/// What can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A request that was handled before changes nothing.
    NaturalKey,
    /// A consumer's offset moves only from where the consumer believes it to be.
    OffsetCas,
    /// Both messages of an order leave in one Kafka transaction.
    Pair,
    /// All relays of a database have one transactional id, so that the broker refuses all but the newest.
    Fencing,
    /// After a crash the position shows what was committed.
    Position,
    /// Rows are stored one after another: id order = stored time = commit order.
    AppendLock,
    /// Orders that could not be settled in time are refused, and settling goes before accepting.
    Admission,
    /// An order that the database lost is rebuilt from Kafka, and an answer that contradicts what is recorded has a consequence.
    Repair,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::NaturalKey => "natural-key",
            Mechanism::OffsetCas => "offset-cas",
            Mechanism::Pair => "pair",
            Mechanism::Fencing => "fencing",
            Mechanism::Position => "position",
            Mechanism::AppendLock => "append-lock",
            Mechanism::Admission => "admission",
            Mechanism::Repair => "repair",
        }
    }
}

/// Whether this mechanism is turned off.
pub fn is_off(mechanism: Mechanism) -> bool {
    std::env::var("SABOTAGE").is_ok_and(|name| name == mechanism.name())
}

/// A transactional id that no other process has, if relays shall not fence each other.
pub fn own_id(shared: String) -> String {
    if is_off(Mechanism::Fencing) {
        format!("{shared}-{}", std::process::id())
    } else {
        shared
    }
}

/// Publishes the payment messages in a Kafka transaction of their own, if pairs shall be torn; returns what is left.
pub fn publish_halves(
    producer: &mut Producer,
    records: Vec<ProducerRecord>,
) -> Result<Vec<ProducerRecord>> {
    if !is_off(Mechanism::Pair) {
        return Ok(records);
    }
    let (first, second): (Vec<_>, Vec<_>) = records
        .into_iter()
        .partition(|record| record.topic.ends_with("payment"));
    let mut transaction = producer.begin()?;
    transaction.send(first)?;
    transaction.commit()?;
    Ok(second)
}

/// The function of `sql/common` without its lock and without the last stored time, if they are turned off.
pub fn replace_append(session: &mut Session) -> Result<()> {
    if !is_off(Mechanism::AppendLock) {
        return Ok(());
    }
    session.batch_execute(
        "create or replace function stamp_outbox() returns timestamptz
             language sql volatile as 'select clock_timestamp()'",
    )
}
