//! Replay: a parked record handed to the handler again. The record itself stays where it is in Kafka: nothing is
//! published twice.

use serde::Serialize;

use crate::db::{Session, Tx};
use crate::dead_letter::{self, Detail};
use crate::envelope;
use crate::error::{Blame, Result};
use crate::event::{Event, Topic};
use crate::handler::{self, Cause, Handler, Outcome};
use crate::outbox;

/// What a replay came to.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "detail", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Replay {
    /// The record had its effect.
    Applied,
    /// It changed nothing, and why.
    Unchanged(String),
    /// It still can't be handled, and why.
    Failed(String),
}

/// Replays a parked record, in one transaction with what it causes. None if there is no such number.
///
/// # Errors
/// What PostgreSQL says, when it is not the record's fault; nothing was changed.
pub fn replay(session: &mut Session, prefix: &str, handler: &mut dyn Handler, id: i64) -> Result<Option<Replay>> {
    let mut tx = session.transaction()?;
    let Some(kept) = dead_letter::lock(&mut tx, id)? else { return Ok(None) };
    let replay = match handle(&mut tx, prefix, handler, id, &kept) {
        Ok(replay) => {
            tx.commit()?;
            handler.committed();
            replay
        }
        Err(error) if error.blame() == Blame::Message => {
            drop(tx);
            note_failure(session, id, error.to_string())?
        }
        Err(error) => return Err(error),
    };
    log::info!("replayed dead letter {id}: {replay:?}");
    Ok(Some(replay))
}

fn handle(tx: &mut Tx<'_>, prefix: &str, handler: &mut dyn Handler, id: i64, kept: &Detail) -> Result<Replay> {
    let (sent, replay) = match decode(prefix, kept) {
        Ok(event) => effects(tx, handler, event)?,
        Err(why_not) => (vec![], why_not),
    };
    dead_letter::note_replay(tx, id, &text(&replay))?;
    outbox::append(tx, &sent)?;
    Ok(replay)
}

fn decode(prefix: &str, kept: &Detail) -> std::result::Result<Event, Replay> {
    if kept.summary.cause == Cause::LogGap.name() {
        return Err(Replay::Unchanged("a gap holds no record that could be handled".into()));
    }
    let (partition, record) = &kept.raw;
    let topic = Topic::from_name(&partition.topic, prefix)
        .ok_or_else(|| Replay::Failed(format!("{} is not one of this installation's topics", partition.topic)))?;
    envelope::decode(topic, record).map_err(|undecodable| Replay::Failed(undecodable.why))
}

fn effects(tx: &mut Tx<'_>, handler: &mut dyn Handler, event: Event) -> Result<(Vec<Event>, Replay)> {
    let handled = handler::handle(handler, tx, &[event])?;
    let replay = match handled.outcomes.into_iter().next() {
        Some(Outcome::Unchanged(why)) => Replay::Unchanged(why.into()),
        Some(Outcome::GivenUp) => Replay::Unchanged("it was given up for good".into()),
        Some(Outcome::Refused(_, why)) => Replay::Failed(why),
        Some(Outcome::Changed) | None => Replay::Applied,
    };
    Ok((handled.events, replay))
}

fn note_failure(session: &mut Session, id: i64, why: String) -> Result<Replay> {
    let replay = Replay::Failed(why);
    let mut tx = session.transaction()?;
    dead_letter::note_replay(&mut tx, id, &text(&replay))?;
    tx.commit()?;
    Ok(replay)
}

fn text(replay: &Replay) -> String {
    match replay {
        Replay::Applied => "APPLIED".to_string(),
        Replay::Unchanged(why) => format!("UNCHANGED: {why}"),
        Replay::Failed(why) => format!("FAILED: {why}"),
    }
}
