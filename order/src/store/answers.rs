//! What the statements that change orders keep in the table `timeline`: a batch makes no further one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared::event::{Body, Event};

/// Inserts the answers given by the parameters from $9 (`answer_columns!`).
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

/// Inserts the compensation requests whose order ids, message ids and types are $1, $2 and $3.
pub const COMPENSATIONS: &str = "
    insert into timeline (order_id, message_id, type, noted_at)
    select order_id, message_id, type, clock_timestamp()
      from unnest($1::uuid[], $2::uuid[], $3::text[]) as asked (order_id, message_id, type)";

/// The longest code of a reason that is kept: it comes from outside, and ours are shorter.
const CODE: usize = 64;

/// What [`ANSWERS`] takes, of these events: how each was delivered, and how the request was that it answers.
macro_rules! answer_columns {
    ($events:expr) => {
        shared::columns!($events, |event| [
            event.order_id,
            event.id,
            event.type_name(),
            $crate::store::answers::reason_code(event),
            event.delivery.map(|answer| answer.partition),
            event.delivery.map(|answer| answer.offset),
            event.delivery.and_then(|answer| answer.stored).map(time),
            event.delivery.and_then(|answer| answer.published).map(time),
            event.delivery.map(|answer| answer.attempt),
            event.answers.and_then(|request| request.id),
            event.answers.map(|request| request.partition),
            event.answers.map(|request| request.offset),
            event.answers.and_then(|request| request.stored).map(time),
            event
                .answers
                .and_then(|request| request.published)
                .map(time),
            event.answers.map(|request| time(request.taken_up)),
            event.answers.map(|request| request.attempt),
        ])
    };
}
pub(crate) use answer_columns;

/// The code of a failure's reason, as it is kept.
pub fn reason_code(event: &Event) -> Option<String> {
    match &event.body {
        Body::Failed { reason, .. } => Some(reason.code.chars().take(CODE).collect()),
        _ => None,
    }
}

/// A delivery's time; none of them lies before 1970.
pub fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs())
}
