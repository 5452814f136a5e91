//! An order's timeline: the steps that follow from its messages. No I/O, no clock.
//!
//! Order builds it from its own database, by what the messages carried, and asks no other service. An answer carries
//! how its request was delivered ([`shared::event::delivery`]).
//!
//! ```text
//! a request        STORED ─► PUBLISHED ─► ASKED ─► SUCCEEDED or FAILED ─► ANSWERED ─► LEARNED
//! a compensation   COMPENSATION_ASKED ─► COMPENSATION_PUBLISHED ─► CONFIRMED ─► ANSWERED ─► LEARNED
//! ```
//!
//! What is kept:
//!
//! * An answer that changed its order leaves one row in `timeline`: the request's delivery, the answer, and when and in
//!   which attempt order handled it. A duplicate changes nothing and leaves none, so a topic that is read again adds
//!   nothing.
//! * A compensation request leaves a row when it is made, because its confirmation may take long.
//! * In the row of an order that still waits, `remove_published` keeps when its requests were stored, by when they were
//!   published, and their ids.
//!
//! What is shown:
//!
//! * `at` is the time of the nearest clock. For what order stores or handles that is the database's (six digits). For
//!   what is published it is the relay's (the record's timestamp, three digits), and for what a participant took up,
//!   the participant's.
//! * Steps stand in time order, but none before the one that led to it, whatever the clocks show.
//! * While a request waits, `PUBLISHED` is when its order was marked, some 50 ms later.
//! * A success that came after the deadline is shown, though it changed nothing.
//! * Duplicates are not shown, nor attempts before the last one: they are in the participant's log. (An instance counts
//!   them; another one begins anew.)

use serde::{Serialize, Serializer};
use shared::event::{Channel, Reason, Service, Side, Topic};
use uuid::Uuid;

use crate::order::Saga;
use StepKind::*;

pub mod store;
pub mod text;

/// What is kept of an order's messages. Times are RFC 3339, UTC, with six digits; a record's timestamp has three.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The order.
    pub order_id: Uuid,
    /// Its two sides.
    pub saga: Saga,
    /// W3C trace context of the request that made it.
    pub traceparent: String,
    /// When it was placed, just before its requests were stored.
    pub created_at: String,
    /// When its requests were stored, if it had to wait for an answer.
    pub stored_at: Option<String>,
    /// By when they were published, if it had to wait for an answer.
    pub published_at: Option<String>,
    /// Message ids of its requests (payment, stock), if it had to wait for an answer.
    pub requests: [Option<Uuid>; 2],
    /// The answers that changed it and the compensations it asked for, in the order in which it handled them.
    pub entries: Vec<Entry>,
}

/// An answer that changed the order, or a compensation request of the order.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The topic that carries it.
    pub topic: Topic,
    /// `ce_type`.
    pub type_name: String,
    /// The answer, or the request.
    pub message: Message,
    /// When order handled it, or asked.
    pub noted_at: String,
    /// Which attempt of order's that was.
    pub attempt: Option<i32>,
    /// Why a part has failed.
    pub reason_code: Option<String>,
    /// What it answers; nothing is known of it if the participant is of the version before.
    pub answered: Message,
    /// When the participant took that up.
    pub taken_up_at: Option<String>,
    /// Which attempt of the participant's led to the answer.
    pub answered_attempt: Option<i32>,
}

/// A message, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `ce_id`.
    pub id: Option<Uuid>,
    /// Partition and offset.
    pub place: Option<(i32, i64)>,
    /// When it was stored in its writer's outbox.
    pub stored_at: Option<String>,
    /// When it was published.
    pub published_at: Option<String>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// A request lies in order's outbox.
    Stored,
    /// It is in Kafka.
    Published,
    /// The participant took it up.
    Asked,
    /// The participant has done its part; its answer lies in its outbox.
    Succeeded,
    /// The participant's part has failed for good; its answer lies in its outbox.
    Failed,
    /// The answer is in Kafka.
    Answered,
    /// Order handled it.
    Learned,
    /// A compensation request lies in order's outbox.
    CompensationAsked,
    /// It is in Kafka.
    CompensationPublished,
    /// The participant has compensated; its confirmation lies in its outbox.
    Confirmed,
}

shared::names! { StepKind:
    Stored = "STORED", Published = "PUBLISHED", Asked = "ASKED", Succeeded = "SUCCEEDED",
    Failed = "FAILED", Answered = "ANSWERED", Learned = "LEARNED",
    CompensationAsked = "COMPENSATION_ASKED", CompensationPublished = "COMPENSATION_PUBLISHED",
    Confirmed = "CONFIRMED",
}

impl Serialize for StepKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One step. What is not known is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineStep {
    /// What happened.
    pub step: StepKind,
    /// When, by the clock of the service or of its database.
    pub at: String,
    /// Where.
    pub service: &'static str,
    /// On whose side.
    pub side: &'static str,
    /// `ce_id` of the message that was stored, published or handled.
    pub message_id: Option<Uuid>,
    /// Its `ce_type`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: Option<i32>,
    /// Its offset.
    pub offset: Option<i64>,
    /// Which attempt of the service that was; null where nothing was handled.
    pub attempt: Option<i32>,
    /// Why the part failed; why the order asks to compensate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl Timeline {
    /// The trace's id, in the trace context.
    pub fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }

    /// Its steps in time order. None stands before the one that led to it, whatever the clocks say. Topics get `prefix`.
    pub fn steps(&self, prefix: &str) -> Vec<TimelineStep> {
        let builder = TimelineBuilder {
            timeline: self,
            prefix,
        };
        let sides = Side::ALL.map(|side| builder.of_request(side));
        let compensations = self
            .entries
            .iter()
            .filter(|entry| entry.is(Channel::Compensation));
        let compensations = compensations.map(|asked| builder.of_compensation(asked));
        let unasked = self
            .entries
            .iter()
            .filter(|entry| entry.is_confirmation() && self.asked_for(entry).is_none());
        let unasked = unasked.map(|confirmation| builder.of_answer(Confirmed, confirmation));
        let mut steps: Vec<(String, TimelineStep)> = sides
            .into_iter()
            .chain(compensations)
            .chain(unasked)
            .flat_map(in_causal_order)
            .collect();
        steps.sort_by(|(one, _), (other, _)| one.cmp(other));
        steps.into_iter().map(|(_, step)| step).collect()
    }

    /// The answer to a side's request.
    fn outcome(&self, side: Side) -> Option<&Entry> {
        self.entries
            .iter()
            .filter(|entry| {
                entry.is(Channel::Dlt) || entry.is(Channel::Success) && !entry.is_confirmation()
            })
            .find(|entry| entry.topic.0 == side)
    }

    /// The compensation request that is confirmed by this.
    fn asked_for(&self, confirmation: &Entry) -> Option<&Entry> {
        let asked = self
            .entries
            .iter()
            .filter(|entry| entry.is(Channel::Compensation));
        asked
            .into_iter()
            .find(|asked| asked.message.id == confirmation.answered.id)
    }

    fn confirmation(&self, asked: &Entry) -> Option<&Entry> {
        let confirmations = self.entries.iter().filter(|entry| entry.is_confirmation());
        confirmations
            .into_iter()
            .find(|entry| entry.answered.id == asked.message.id)
    }

    /// A side's request. Both sides' are one row of the outbox and leave in one transaction: what is known of the one's times
    /// holds for the other.
    fn request(&self, side: Side) -> Message {
        let [own, other] = [side, other(side)].map(|side| {
            self.outcome(side)
                .map(|entry| entry.answered.clone())
                .unwrap_or_default()
        });
        let kept = self.requests[if side == Side::Payment { 0 } else { 1 }];
        let stored_at = own.stored_at.or(self.stored_at.clone()).or(other.stored_at);
        Message {
            id: own.id.or(kept),
            place: own.place,
            stored_at: stored_at.or(Some(self.created_at.clone())),
            published_at: own
                .published_at
                .or(other.published_at)
                .or(self.published_at.clone()),
        }
    }
}

impl Entry {
    fn is(&self, channel: Channel) -> bool {
        self.topic.1 == channel
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            topic: self.topic,
            type_name: &self.type_name,
            message: &self.message,
        }
    }

    fn is_confirmation(&self) -> bool {
        self.type_name.ends_with(".compensated")
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Payment => Side::Stock,
        Side::Stock => Side::Payment,
    }
}

/// What a step is about.
struct Subject<'a> {
    topic: Topic,
    type_name: &'a str,
    message: &'a Message,
}

/// Builds a timeline's steps, each chain of them in causal order.
struct TimelineBuilder<'a> {
    timeline: &'a Timeline,
    prefix: &'a str,
}

impl TimelineBuilder<'_> {
    fn of_request(&self, side: Side) -> Vec<TimelineStep> {
        let type_name = format!("{}.requested", side.name());
        let message = self.timeline.request(side);
        let request = Subject {
            topic: Topic(side, Channel::Request),
            type_name: &type_name,
            message: &message,
        };
        let published = published(&message);
        let mut steps = Vec::new();
        steps.extend(self.step(Stored, &message.stored_at, Service::Order, &request));
        steps.extend(self.step(Published, &published, Service::Order, &request));
        if let Some(outcome) = self.timeline.outcome(side) {
            let asked = self.step(Asked, &outcome.taken_up_at, side.service(), &request);
            steps.extend(asked.map(|step| TimelineStep {
                attempt: outcome.answered_attempt,
                ..step
            }));
            let failed = outcome.is(Channel::Dlt);
            steps.extend(self.of_answer(if failed { Failed } else { Succeeded }, outcome));
        }
        steps
    }

    fn of_compensation(&self, asked: &Entry) -> Vec<TimelineStep> {
        let confirmation = self.timeline.confirmation(asked);
        let known = confirmation
            .map(|entry| entry.answered.clone())
            .unwrap_or_default();
        let message = Message {
            id: asked.message.id,
            stored_at: known.stored_at.or(Some(asked.noted_at.clone())),
            ..known
        };
        let request = Subject {
            message: &message,
            ..asked.subject()
        };
        let (asked_at, published_at) = (&message.stored_at, published(&message));
        let mut steps = Vec::new();
        let asked = self.step(CompensationAsked, asked_at, Service::Order, &request);
        steps.extend(asked.map(|step| TimelineStep {
            reason: self.reason(),
            ..step
        }));
        steps.extend(self.step(
            CompensationPublished,
            &published_at,
            Service::Order,
            &request,
        ));
        if let Some(confirmation) = confirmation {
            steps.extend(self.of_answer(Confirmed, confirmation));
        }
        steps
    }

    /// What a participant decided, and its answer's way to order.
    fn of_answer(&self, kind: StepKind, entry: &Entry) -> Vec<TimelineStep> {
        let (answer, service) = (entry.subject(), entry.topic.0.service());
        let code = entry.reason_code.as_deref();
        let (published_at, noted_at) = (published(&entry.message), Some(entry.noted_at.clone()));
        let mut steps = Vec::new();
        let decided = self.step(kind, &entry.message.stored_at, service, &answer);
        steps.extend(decided.map(|step| TimelineStep {
            attempt: entry.answered_attempt,
            reason: code.map(|code| Reason::new(code, service)),
            ..step
        }));
        steps.extend(self.step(Answered, &published_at, service, &answer));
        let learned = self.step(Learned, &noted_at, Service::Order, &answer);
        steps.extend(learned.map(|step| TimelineStep {
            attempt: entry.attempt,
            ..step
        }));
        steps
    }

    /// None if it is not known when.
    fn step(
        &self,
        step: StepKind,
        at: &Option<String>,
        service: Service,
        about: &Subject<'_>,
    ) -> Option<TimelineStep> {
        let Subject {
            topic,
            type_name,
            message,
        } = about;
        Some(TimelineStep {
            step,
            at: at.clone()?,
            service: service.name(),
            side: topic.0.name(),
            message_id: message.id,
            type_name: type_name.to_string(),
            topic: format!("{}{}", self.prefix, topic.name()),
            partition: message.place.map(|(partition, _)| partition),
            offset: message.place.map(|(_, offset)| offset),
            attempt: None,
            reason: None,
        })
    }

    fn reason(&self) -> Option<Reason> {
        self.timeline
            .saga
            .reason
            .clone()
            .map(|(code, from)| Reason { code, from })
    }
}

/// When a message was published. A record's timestamp begins its millisecond: a message stored in it was published no
/// earlier.
fn published(message: &Message) -> Option<String> {
    let at = message.published_at.as_ref()?;
    let stored_at = message
        .stored_at
        .as_ref()
        .filter(|stored_at| stored_at.starts_with(bare(at)));
    Some(stored_at.unwrap_or(at).clone())
}

/// A time that sorts as text: without its `Z`, so that fewer digits come first.
fn bare(at: &str) -> &str {
    at.trim_end_matches('Z')
}

/// Each step with the time by which it is sorted: its own, or that of the latest before it, should clocks disagree.
fn in_causal_order(chain: Vec<TimelineStep>) -> Vec<(String, TimelineStep)> {
    let mut latest = String::new();
    chain
        .into_iter()
        .map(|step| {
            if bare(&step.at) > latest.as_str() {
                latest = bare(&step.at).to_string();
            }
            (latest.clone(), step)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::SideStatus;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn id(number: u128) -> Option<Uuid> {
        Some(Uuid::from_u128(number))
    }

    /// A time of 2026-01-02T03:04 by its seconds.
    fn at(seconds: &str) -> String {
        format!("2026-01-02T03:04:{seconds}Z")
    }

    fn message(number: u128, offset: i64, stored: &str, published: &str) -> Message {
        Message {
            id: id(number),
            place: Some((1, offset)),
            stored_at: Some(at(stored)),
            published_at: Some(at(published)),
        }
    }

    fn entry(
        type_name: &str,
        message: Message,
        noted: &str,
        answered: Message,
        taken_up: &str,
    ) -> Entry {
        Entry {
            topic: Topic::of_type(type_name).unwrap(),
            type_name: type_name.into(),
            message,
            noted_at: at(noted),
            attempt: Some(1),
            reason_code: None,
            answered,
            taken_up_at: Some(at(taken_up)),
            answered_attempt: Some(1),
        }
    }

    fn asked(side: &str, number: u128, noted: &str) -> Entry {
        let message = Message {
            id: id(number),
            ..Message::default()
        };
        let type_name = format!("{side}.compensation-requested");
        let entry = entry(&type_name, message, noted, Message::default(), "00.000000");
        Entry {
            attempt: None,
            taken_up_at: None,
            answered_attempt: None,
            ..entry
        }
    }

    fn timeline(entries: Vec<Entry>) -> Timeline {
        let saga = Saga {
            payment: SideStatus::Failed,
            stock: SideStatus::Compensated,
            reason: Some(("INSUFFICIENT_BALANCE".into(), "payment".into())),
        };
        Timeline {
            order_id: Uuid::from_u128(1),
            saga,
            traceparent: TRACE.into(),
            created_at: at("01.000000"),
            stored_at: None,
            published_at: None,
            requests: [None, None],
            entries,
        }
    }

    /// Step, seconds, service, message, topic, offset, attempt.
    type Short = (
        StepKind,
        String,
        &'static str,
        Option<u128>,
        String,
        Option<i64>,
        Option<i32>,
    );

    fn short(timeline: &Timeline) -> Vec<Short> {
        let short = |step: TimelineStep| {
            let seconds = bare(&step.at)[17..].to_string();
            let id = step.message_id.map(|id| id.as_u128());
            (
                step.step,
                seconds,
                step.service,
                id,
                step.topic,
                step.offset,
                step.attempt,
            )
        };
        timeline.steps("").into_iter().map(short).collect()
    }

    #[allow(clippy::too_many_arguments)]
    fn line(
        step: StepKind,
        seconds: &str,
        service: &'static str,
        id: impl Into<Option<u128>>,
        topic: &str,
        offset: impl Into<Option<i64>>,
        attempt: impl Into<Option<i32>>,
    ) -> Short {
        (
            step,
            seconds.into(),
            service,
            id.into(),
            topic.into(),
            offset.into(),
            attempt.into(),
        )
    }

    fn completed(side: &str, number: u128, answer: u128) -> Entry {
        let request = message(number, 10, "01.000300", "01.002");
        entry(
            &format!("{side}.completed"),
            message(answer, 20, "01.005000", "01.006"),
            "01.008000",
            request,
            "01.004000",
        )
    }

    #[test]
    fn a_completed_order_s_steps_follow_from_both_answers() {
        let stock = Entry {
            message: message(6, 21, "01.007000", "01.008"),
            noted_at: at("01.009000"),
            taken_up_at: Some(at("01.003500")),
            answered_attempt: Some(3),
            ..completed("stock", 3, 6)
        };
        assert_eq!(
            short(&timeline(vec![completed("payment", 2, 5), stock])),
            [
                line(Stored, "01.000300", "order", 2, "payment", 10, None),
                line(Stored, "01.000300", "order", 3, "stock", 10, None),
                line(Published, "01.002", "order", 2, "payment", 10, None),
                line(Published, "01.002", "order", 3, "stock", 10, None),
                line(Asked, "01.003500", "stock", 3, "stock", 10, 3),
                line(Asked, "01.004000", "payment", 2, "payment", 10, 1),
                line(
                    Succeeded,
                    "01.005000",
                    "payment",
                    5,
                    "payment.success",
                    20,
                    1
                ),
                line(
                    Answered,
                    "01.006",
                    "payment",
                    5,
                    "payment.success",
                    20,
                    None
                ),
                line(Succeeded, "01.007000", "stock", 6, "stock.success", 21, 3),
                line(Answered, "01.008", "stock", 6, "stock.success", 21, None),
                line(Learned, "01.008000", "order", 5, "payment.success", 20, 1),
                line(Learned, "01.009000", "order", 6, "stock.success", 21, 1),
            ]
        );
    }

    #[test]
    fn an_order_nobody_answered_yet_shows_what_order_itself_knows() {
        let new = timeline(vec![]);
        let stored = |id| {
            [
                line(Stored, "01.000000", "order", id, "payment", None, None),
                { line(Stored, "01.000000", "order", id, "stock", None, None) },
            ]
        };
        assert_eq!(short(&new), stored(None));
        let requests = [id(2), id(3)];
        let waits = Timeline {
            stored_at: Some(at("01.000300")),
            published_at: Some(at("01.060000")),
            requests,
            ..new
        };
        assert_eq!(
            short(&waits),
            [
                line(Stored, "01.000300", "order", 2, "payment", None, None),
                line(Stored, "01.000300", "order", 3, "stock", None, None),
                line(Published, "01.060000", "order", 2, "payment", None, None),
                line(Published, "01.060000", "order", 3, "stock", None, None),
            ]
        );
        // one answer says when both were published
        let half = Timeline {
            entries: vec![completed("payment", 2, 5)],
            ..waits
        };
        assert_eq!(
            short(&half)[2..4],
            [
                line(Published, "01.002", "order", 2, "payment", 10, None),
                line(Published, "01.002", "order", 3, "stock", None, None),
            ]
        );
        assert_eq!(short(&half).len(), 8);
    }

    #[test]
    fn a_compensation_has_steps_when_it_is_asked_and_all_of_them_when_it_is_confirmed() {
        let failed = Entry {
            topic: Topic(Side::Payment, Channel::Dlt),
            type_name: "payment.failed".into(),
            reason_code: Some("INSUFFICIENT_BALANCE".into()),
            answered_attempt: Some(5),
            ..completed("payment", 2, 5)
        };
        let mut timeline = timeline(vec![
            completed("stock", 3, 6),
            failed,
            asked("stock", 7, "01.008500"),
        ]);
        let steps = timeline.steps("");
        let last = &steps[steps.len() - 1];
        assert_eq!(
            (last.step, last.message_id, last.offset),
            (CompensationAsked, id(7), None)
        );
        assert_eq!(
            last.reason,
            Some(Reason::new("INSUFFICIENT_BALANCE", Service::Payment))
        );
        let failed = steps.iter().find(|step| step.step == Failed).unwrap();
        assert_eq!((&failed.reason, failed.attempt), (&last.reason, Some(5)));

        // asked again meanwhile; the first one is confirmed
        timeline.entries.push(asked("stock", 8, "02.000000"));
        let request = message(7, 30, "01.008600", "01.010");
        timeline.entries.push(entry(
            "stock.compensated",
            message(9, 22, "02.500000", "02.501"),
            "02.600000",
            request,
            "02.4",
        ));
        assert_eq!(
            short(&timeline)[12..],
            [
                line(
                    CompensationAsked,
                    "01.008600",
                    "order",
                    7,
                    "stock.compensation",
                    30,
                    None
                ),
                line(
                    CompensationPublished,
                    "01.010",
                    "order",
                    7,
                    "stock.compensation",
                    30,
                    None
                ),
                line(
                    CompensationAsked,
                    "02.000000",
                    "order",
                    8,
                    "stock.compensation",
                    None,
                    None
                ),
                line(Confirmed, "02.500000", "stock", 9, "stock.success", 22, 1),
                line(Answered, "02.501", "stock", 9, "stock.success", 22, None),
                line(Learned, "02.600000", "order", 9, "stock.success", 22, 1),
            ]
        );
    }

    #[test]
    fn an_answer_of_the_version_before_still_gives_a_timeline() {
        let old = |entry: Entry| Entry {
            answered: Message::default(),
            taken_up_at: None,
            answered_attempt: None,
            ..entry
        };
        let compensated = Entry {
            type_name: "payment.compensated".into(),
            ..completed("payment", 0, 9)
        };
        let entries = vec![old(completed("payment", 2, 5)), old(compensated)];
        assert_eq!(
            short(&timeline(entries)),
            [
                line(Stored, "01.000000", "order", None, "payment", None, None),
                line(Stored, "01.000000", "order", None, "stock", None, None),
                line(
                    Succeeded,
                    "01.005000",
                    "payment",
                    5,
                    "payment.success",
                    20,
                    None
                ),
                line(
                    Confirmed,
                    "01.005000",
                    "payment",
                    9,
                    "payment.success",
                    20,
                    None
                ),
                line(
                    Answered,
                    "01.006",
                    "payment",
                    5,
                    "payment.success",
                    20,
                    None
                ),
                line(
                    Answered,
                    "01.006",
                    "payment",
                    9,
                    "payment.success",
                    20,
                    None
                ),
                line(Learned, "01.008000", "order", 5, "payment.success", 20, 1),
                line(Learned, "01.008000", "order", 9, "payment.success", 20, 1),
            ]
        );
    }

    #[test]
    fn no_step_stands_before_the_one_that_led_to_it() {
        // published in the millisecond in which it was stored; the participant's clock is behind
        let entry = Entry {
            answered: message(2, 10, "01.000300", "01.000"),
            taken_up_at: Some(at("00.900000")),
            message: message(5, 20, "00.950000", "00.951"),
            ..completed("payment", 2, 5)
        };
        let payment: Vec<_> = short(&timeline(vec![entry]))
            .into_iter()
            .filter(|step| step.4.starts_with("payment"))
            .collect();
        assert_eq!(
            payment,
            [
                line(Stored, "01.000300", "order", 2, "payment", 10, None),
                line(Published, "01.000300", "order", 2, "payment", 10, None),
                line(Asked, "00.900000", "payment", 2, "payment", 10, 1),
                line(
                    Succeeded,
                    "00.950000",
                    "payment",
                    5,
                    "payment.success",
                    20,
                    1
                ),
                line(
                    Answered,
                    "00.951",
                    "payment",
                    5,
                    "payment.success",
                    20,
                    None
                ),
                line(Learned, "01.008000", "order", 5, "payment.success", 20, 1),
            ]
        );
    }
}
