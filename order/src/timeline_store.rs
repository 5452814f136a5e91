//! All SQL of the table `timeline`. Its rows are inserted by the statements that change orders ([`crate::store`]): a batch
//! makes no further one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres::Row;
use postgres::types::ToSql;
use shared::db::cleanup::Sweep;
use shared::db::{Query, Session};
use shared::error::Result;
use shared::event::delivery::Delivery;
use shared::event::{Body, Event, Topic};
use uuid::Uuid;

use crate::store;
use crate::timeline::{Message, Story, Told};

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

/// Inserts the compensation requests whose order ids, message ids and types are $6, $7 and $8.
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
        let answered = || events.iter().map(|event| event.answers);
        Answers {
            order_ids: events.iter().map(|event| event.order_id).collect(),
            message_ids: events.iter().map(|event| event.id).collect(),
            types: events.iter().map(|event| event.type_name()).collect(),
            reason_codes: events.iter().map(|event| reason_code(event)).collect(),
            deliveries: Deliveries::of(events.iter().map(|event| event.delivery)),
            answered: Deliveries::of(answered()),
            answered_ids: answered().map(|delivery| delivery?.id).collect(),
            taken_up_at: answered()
                .map(|delivery| Some(time(delivery?.taken_up)))
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

/// Removes what was told of orders that are settled and have not changed for so long. (Order ids hold the time at which they
/// were drawn: older ones only need be looked at.)
pub fn sweep(retention: Option<Duration>) -> Sweep {
    let sql = format!(
        "delete from timeline where ctid = any (array(
                   select t.ctid from timeline t join orders o using (order_id)
                    where t.order_id < (lpad(to_hex(greatest(extract(epoch from clock_timestamp())::float8 * 1000 - $1, 0)::bigint),
                                             12, '0') || repeat('0', 20))::uuid
                      and extract(epoch from clock_timestamp() - o.updated_at)::float8 * 1000 > $1
                      and not {}
                    order by t.order_id limit $2 for update of t skip locked))",
        store::UNSETTLED
    );
    Sweep {
        what: "steps of settled orders",
        retention,
        sql,
    }
}

/// An order's story, as one statement sees it; none if there is no such order.
///
/// # Errors
/// What PostgreSQL says.
pub fn find(session: &mut Session, order_id: Uuid) -> Result<Option<Story>> {
    let micros = |column: &str| {
        format!(r#"to_char({column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#)
    };
    let millis = |column: &str| {
        format!(r#"to_char({column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#)
    };
    let sql = format!(
        "select o.payment_status, o.stock_status, o.reason_code, o.reason_from, o.traceparent,
                {}, {}, {}, o.payment_request, o.stock_request,
                t.type, t.reason_code, {}, {}, t.attempt, t.answered_attempt,
                t.message_id, t.partition, t.record_offset, {}, {},
                t.answered_id, t.answered_partition, t.answered_offset, {}, {}
           from orders o left join timeline t using (order_id) where o.order_id = $1 order by t.noted_at",
        micros("o.created_at"),
        micros("o.stored_at"),
        micros("o.published_at"),
        micros("t.noted_at"),
        micros("t.answered_taken_up_at"),
        micros("t.stored_at"),
        millis("t.published_at"),
        micros("t.answered_stored_at"),
        millis("t.answered_published_at"),
    );
    let rows = session.query(&sql, &[&order_id])?;
    Ok(rows.first().map(|first| story(order_id, first, &rows)))
}

fn story(order_id: Uuid, order: &Row, rows: &[Row]) -> Story {
    Story {
        order_id,
        saga: store::saga(order, 0),
        traceparent: order.get(4),
        created_at: order.get(5),
        stored_at: order.get(6),
        published_at: order.get(7),
        requests: [order.get(8), order.get(9)],
        told: rows.iter().filter_map(told).collect(),
    }
}

/// None in the one row of an order of which nothing was told, and of a type that only a newer version knows.
fn told(row: &Row) -> Option<Told> {
    let type_name: String = row.get::<_, Option<String>>(10)?;
    Some(Told {
        topic: Topic::of_type(&type_name)?,
        type_name,
        reason_code: row.get(11),
        noted_at: row.get(12),
        taken_up_at: row.get(13),
        attempt: row.get(14),
        answered_attempt: row.get(15),
        message: message(row, 16),
        answered: message(row, 21),
    })
}

/// The five columns from `at`.
fn message(row: &Row, at: usize) -> Message {
    let (partition, offset): (Option<i32>, Option<i64>) = (row.get(at + 1), row.get(at + 2));
    Message {
        id: row.get(at),
        place: partition.zip(offset),
        stored_at: row.get(at + 3),
        published_at: row.get(at + 4),
    }
}
