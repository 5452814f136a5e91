//! What a person does about a parked record: replays it, which hands the kept record to the handler again, or discards
//! it.
//!
//! ```text
//! parked ──► OPEN ──┬── replay: APPLIED or UNCHANGED ──► REPLAYED
//!             ▲     ├── discard, with a reason ────────► DISCARDED
//!             └─────┴── replay: FAILED
//! ```
//!
//! A replay is one transaction with its effect and with the note of the actor (`dead_letter_action`). The record keeps
//! its message id, so its effect happens once. It stays where it is in Kafka: nothing is published twice. The row's
//! lock is held throughout: two requests for one record have one effect, and the second sees the first one's result.
//!
//! * A failure by the record's own fault is undone up to a savepoint below that lock, noted FAILED, and the record
//!   stays OPEN.
//! * A failure of a server leaves no trace (503).
//! * PostgreSQL derives a row's state from its columns, so a row has a state whichever version of an instance wrote it.
//!
//! Refused with 409 and the reason are:
//!
//! * a request that was given up, once it can be handled: its part is FAILED and order was informed, so only discarding
//!   is left. Before that its replay fails as any other does;
//! * a record that was replayed with success (`UNCHANGED` is one) or discarded, by whom and when;
//! * until `?force=true`, a record whose replays failed five times, because each costs locks and an attempt.

use std::sync::Arc;

use serde::Serialize;

use crate::consumer::POISON_ATTEMPTS;
use crate::db::{Session, Tx};
use crate::dead_letter::action::{self, Action, ActionKind};
use crate::dead_letter::{self, Kept, LetterState, Summary};
use crate::error::Cause;
use crate::error::{Blame, Error, Result};
use crate::event::delivery;
use crate::event::envelope;
use crate::event::{Event, Topic};
use crate::handler::{self, Handler, Outcome};
use crate::outbox;
use crate::outbox::wake::Waker;

/// After so many failed replays another one must be forced: as many as a record has attempts before it is parked. What failed
/// so often will not come right by being asked again.
const FAILED_REPLAYS: usize = POISON_ATTEMPTS as usize;

/// What a replay came to.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(
    tag = "result",
    content = "detail",
    rename_all = "SCREAMING_SNAKE_CASE"
)]
pub enum Replay {
    /// The record had its effect.
    Applied,
    /// It changed nothing, and why.
    Unchanged(String),
    /// It still can't be handled, and why.
    Failed(String),
}

impl Replay {
    fn result(&self) -> &'static str {
        match self {
            Replay::Applied => "APPLIED",
            Replay::Unchanged(_) => "UNCHANGED",
            Replay::Failed(_) => "FAILED",
        }
    }

    fn detail(&self) -> Option<&str> {
        match self {
            Replay::Applied => None,
            Replay::Unchanged(why) | Replay::Failed(why) => Some(why),
        }
    }
}

/// What became of a request about one parked record.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It was done.
    Done(T),
    /// The record's state does not allow it, and why. Nothing was changed.
    Refused(String),
    /// There is no record of that number.
    Unknown,
}

/// A request for a replay.
pub struct Ask<'a> {
    /// The parked record's number.
    pub id: i64,
    /// Who asks.
    pub actor: &'a str,
    /// Also when replays have failed too often.
    pub force: bool,
    /// Only to see what would come of it: nothing is changed.
    pub dry_run: bool,
    /// Whether to wait for the record while somebody holds it.
    pub wait: bool,
}

/// Replays parked records.
#[derive(Clone)]
pub struct Replayer {
    /// The topics' prefix.
    pub prefix: String,
    /// Makes what handles an event.
    pub handler: Arc<dyn Fn() -> Box<dyn Handler> + Send + Sync>,
    /// Called after a commit that appended.
    pub waker: Waker,
}

impl Replayer {
    /// Replays a parked record.
    ///
    /// # Errors
    /// What PostgreSQL or Kafka says, when it is not the record's fault; nothing was changed.
    pub fn replay(&self, session: &mut Session, ask: &Ask<'_>) -> Result<Verdict<Replay>> {
        let mut handler = (self.handler)();
        match self.try_replay(session, ask, &mut *handler) {
            Err(Error::Unprepared) => {
                handler.prepare()?;
                self.try_replay(session, ask, &mut *handler)
            }
            done => done,
        }
    }

    fn try_replay(
        &self,
        session: &mut Session,
        ask: &Ask<'_>,
        handler: &mut dyn Handler,
    ) -> Result<Verdict<Replay>> {
        let mut tx = session.transaction()?;
        let Some((kept, history)) = lock(&mut tx, ask.id, ask.wait)? else {
            return Ok(Verdict::Unknown);
        };
        let objection =
            handled(&kept.summary, &history).or_else(|| held_back(&history).filter(|_| !ask.force));
        if let Some(why) = objection {
            return Ok(Verdict::Refused(why));
        }
        let savepoint = tx.savepoint()?;
        let done = match decode(&self.prefix, &kept) {
            Ok(event) => apply(&mut tx, handler, event),
            Err(undecodable) => Ok((vec![], Verdict::Done(undecodable))),
        };
        // of a replay that fails by the record's fault nothing is left but the locks, the record's own among them
        let (outgoing, replay) = match done {
            Ok((outgoing, Verdict::Done(replay))) => (outgoing, replay),
            Ok((_, refused)) => return Ok(refused),
            Err(error) if error.blame() == Blame::Poison => {
                (vec![], Replay::Failed(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        if matches!(replay, Replay::Failed(_)) {
            tx.rollback_to(&savepoint)?;
        }
        note(&mut tx, ask, &replay)?;
        let replay = match outbox::append(&mut tx, &self.waker, &outgoing) {
            Err(error) if error.blame() == Blame::Poison => {
                tx.rollback_to(&savepoint)?;
                let failed = Replay::Failed(error.to_string());
                note(&mut tx, ask, &failed)?;
                failed
            }
            done => done.map(|()| replay)?,
        };
        if ask.dry_run {
            return Ok(Verdict::Done(replay));
        }
        tx.commit()?;
        log::info!(
            "dead letter {} replayed by {}: {replay:?}",
            ask.id,
            ask.actor
        );
        Ok(Verdict::Done(replay))
    }
}

/// Marks a parked record as discarded; it is kept. Refused where it was handled before.
///
/// # Errors
/// What PostgreSQL says; nothing was changed.
pub fn discard(session: &mut Session, id: i64, actor: &str, reason: &str) -> Result<Verdict<()>> {
    let mut tx = session.transaction()?;
    let Some((kept, history)) = lock(&mut tx, id, true)? else {
        return Ok(Verdict::Unknown);
    };
    if let Some(why) = handled(&kept.summary, &history) {
        return Ok(Verdict::Refused(why));
    }
    dead_letter::discard(&mut tx, id, reason)?;
    action::note(
        &mut tx,
        id,
        actor,
        ActionKind::Discard,
        LetterState::Discarded.name(),
        Some(reason),
    )?;
    tx.commit()?;
    log::info!("dead letter {id} discarded by {actor}: {reason}");
    Ok(Verdict::Done(()))
}

fn lock(tx: &mut Tx<'_>, id: i64, wait: bool) -> Result<Option<(Kept, Vec<Action>)>> {
    let Some(kept) = dead_letter::lock(tx, id, wait)? else {
        return Ok(None);
    };
    Ok(Some((kept, action::read_history(tx, id)?)))
}

/// How, when and by whom it was handled, if it was.
fn handled(summary: &Summary, history: &[Action]) -> Option<String> {
    let (done, at, result) = match summary.state {
        LetterState::Open => return None,
        LetterState::Replayed => ("replayed", &summary.replayed_at, &summary.replay_result),
        LetterState::Discarded => ("discarded", &summary.discarded_at, &summary.discard_reason),
    };
    let actor = history.last().map_or("unknown", |action| &action.actor);
    Some(format!(
        "dead letter {} was {done} at {} by {actor}: {}",
        summary.id,
        at.as_deref().unwrap_or_default(),
        result.as_deref().unwrap_or_default()
    ))
}

/// Why it may not be replayed once more without force.
fn held_back(history: &[Action]) -> Option<String> {
    let failed: Vec<&Action> = history
        .iter()
        .filter(|action| action.result == "FAILED")
        .collect();
    let last = failed.last().filter(|_| failed.len() >= FAILED_REPLAYS)?;
    let why = last.detail.as_deref().unwrap_or_default();
    Some(format!(
        "{} replays have failed, the last one: {why}; ?force=true tries once more",
        failed.len()
    ))
}

fn decode(prefix: &str, kept: &Kept) -> std::result::Result<Event, Replay> {
    if kept.summary.cause == Cause::LogGap.name() {
        return Err(Replay::Unchanged(
            "a gap holds no record that could be handled".into(),
        ));
    }
    let name = &kept.partition.topic;
    let topic = Topic::from_name(name, prefix).ok_or_else(|| {
        Replay::Failed(format!("{name} is not one of this installation's topics"))
    })?;
    let event = envelope::decode(topic, &kept.record)
        .map_err(|undecodable| Replay::Failed(undecodable.why))?;
    let attempt = kept.summary.attempts + 1;
    let delivery = envelope::delivery(
        &kept.record,
        kept.partition.partition,
        delivery::now(),
        attempt,
    );
    Ok(Event {
        delivery: Some(delivery),
        ..event
    })
}

/// What is to be sent, and what came of it.
fn apply(
    tx: &mut Tx<'_>,
    handler: &mut dyn Handler,
    event: Event,
) -> Result<(Vec<Event>, Verdict<Replay>)> {
    let order_id = event.order_id;
    let handled = handler::handle(handler, tx, &[event])?;
    let verdict = match handled.outcomes.into_iter().next() {
        Some(Outcome::Unchanged(why)) => Verdict::Done(Replay::Unchanged(why.into())),
        Some(Outcome::Refused(_, why)) => return Ok((vec![], Verdict::Done(Replay::Failed(why)))),
        Some(Outcome::GivenUp) => Verdict::Refused(format!(
            "the request of order {order_id} was given up for good: it stays FAILED"
        )),
        Some(Outcome::Changed) | None => Verdict::Done(Replay::Applied),
    };
    Ok((handled.events, verdict))
}

fn note(tx: &mut Tx<'_>, ask: &Ask<'_>, replay: &Replay) -> Result<()> {
    let (result, detail) = (replay.result(), replay.detail());
    let text = detail.map_or(result.to_string(), |why| format!("{result}: {why}"));
    dead_letter::note_replay(tx, ask.id, &text)?;
    action::note(tx, ask.id, ask.actor, ActionKind::Replay, result, detail)
}
