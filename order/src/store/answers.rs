//! What the statements that change orders keep in the table `timeline`: a batch makes no further one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres::types::ToSql;
use shared::event::delivery::Delivery;
use shared::event::{Body, Event};
use uuid::Uuid;

/// Inserts the answers given by the parameters from $9 ([`Answers::params`]).
pub const ANSWERS: &str = "
    insert into timeline (order_id, message_id, type, reason_code, noted_at,
                          partition, record_offset, stored_at, published_at, attempt,
                          answered_id, answered_partition, answered_offset, answered_stored_at, answered_published_at,
                          answered_taken_up_at, answered_attempt)
    select order_id, message_id, type, reason_code, clock_timestamp(),
           partition, record_offset, stored_at, published_at, attempt,
           answered_id, answered_partition, answered_offset, answered_stored_at, answered_published_at,
           answered_taken_up_at, answered_attempt
      from unnest($9::uuid[], $10::uuid[], $11::text[], $12::text[],
                  $13::integer[], $14::bigint[], $15::timestamptz[], $16::timestamptz[], $17::integer[],
                  $18::uuid[], $19::integer[], $20::bigint[], $21::timestamptz[], $22::timestamptz[],
                  $23::timestamptz[], $24::integer[])
           as answer (order_id, message_id, type, reason_code,
                      partition, record_offset, stored_at, published_at, attempt,
                      answered_id, answered_partition, answered_offset, answered_stored_at, answered_published_at,
                      answered_taken_up_at, answered_attempt)";

/// Inserts the compensation requests whose order ids, message ids and types are $4, $5 and $6.
pub const COMPENSATIONS: &str = "
    insert into timeline (order_id, message_id, type, noted_at)
    select order_id, message_id, type, clock_timestamp()
      from unnest($4::uuid[], $5::uuid[], $6::text[]) as asked (order_id, message_id, type)";

/// The longest code of a reason that is kept: it comes from outside, and ours are shorter.
const CODE: usize = 64;

/// Answers, column by column.
pub struct Answers {
    order_ids: Vec<Uuid>,
    message_ids: Vec<Uuid>,
    types: Vec<String>,
    reason_codes: Vec<Option<String>>,
    deliveries: Deliveries,
    answered: Deliveries,
    answered_ids: Vec<Option<Uuid>>,
    taken_up_at: Vec<Option<SystemTime>>,
}

#[derive(Default)]
struct Deliveries {
    partitions: Vec<Option<i32>>,
    offsets: Vec<Option<i64>>,
    stored_at: Vec<Option<SystemTime>>,
    published_at: Vec<Option<SystemTime>>,
    attempts: Vec<Option<i32>>,
}

impl Answers {
    /// The columns of these answers.
    pub fn of(events: &[&Event]) -> Answers {
        let answered: Vec<_> = events.iter().map(|event| event.answers).collect();
        Answers {
            order_ids: events.iter().map(|event| event.order_id).collect(),
            message_ids: events.iter().map(|event| event.id).collect(),
            types: events.iter().map(|event| event.type_name()).collect(),
            reason_codes: events.iter().map(|event| reason_code(event)).collect(),
            deliveries: Deliveries::of(events.iter().map(|event| event.delivery)),
            answered: Deliveries::of(answered.iter().copied()),
            answered_ids: answered.iter().map(|delivery| (*delivery)?.id).collect(),
            taken_up_at: answered
                .iter()
                .map(|delivery| Some(time((*delivery)?.taken_up)))
                .collect(),
        }
    }

    /// The parameters of [`ANSWERS`], from $9.
    pub fn params(&self) -> [&(dyn ToSql + Sync); 16] {
        let Answers {
            deliveries,
            answered,
            ..
        } = self;
        [
            &self.order_ids,
            &self.message_ids,
            &self.types,
            &self.reason_codes,
            &deliveries.partitions,
            &deliveries.offsets,
            &deliveries.stored_at,
            &deliveries.published_at,
            &deliveries.attempts,
            &self.answered_ids,
            &answered.partitions,
            &answered.offsets,
            &answered.stored_at,
            &answered.published_at,
            &self.taken_up_at,
            &answered.attempts,
        ]
    }
}

impl Deliveries {
    fn of(deliveries: impl Iterator<Item = Option<Delivery>>) -> Deliveries {
        let mut columns = Deliveries::default();
        for delivery in deliveries {
            columns
                .partitions
                .push(delivery.map(|delivery| delivery.partition));
            columns
                .offsets
                .push(delivery.map(|delivery| delivery.offset));
            columns
                .stored_at
                .push(delivery.and_then(|delivery| delivery.stored).map(time));
            columns
                .published_at
                .push(delivery.and_then(|delivery| delivery.published).map(time));
            columns
                .attempts
                .push(delivery.map(|delivery| delivery.attempt));
        }
        columns
    }
}

fn reason_code(event: &Event) -> Option<String> {
    match &event.body {
        Body::Failed { reason, .. } => Some(reason.code.chars().take(CODE).collect()),
        _ => None,
    }
}

/// A delivery's time; none of them lies before 1970.
pub fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs())
}
