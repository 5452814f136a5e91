//! Reads and removes the rows of the table `timeline`. They are inserted by the statements that change orders
//! ([`crate::store::answers`]).

use std::time::Duration;

use postgres::Row;
use shared::db::cleanup::Cleanup;
use shared::db::{Query, Session};
use shared::error::Result;
use shared::event::Topic;
use uuid::Uuid;

use crate::store;
use crate::timeline::{Entry, Message, Timeline};

/// Removes the entries of orders that are settled and have not changed for so long. (Order ids hold the time at which they
/// were drawn: older ones only need be looked at.)
pub fn clean_up(retention: Option<Duration>) -> Cleanup {
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
    Cleanup {
        what: "steps of settled orders",
        retention,
        sql,
    }
}

fn micros(column: &str) -> String {
    format!(r#"to_char({column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#)
}

fn millis(column: &str) -> String {
    format!(r#"to_char({column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#)
}

/// An order's timeline, as one statement sees it; none if there is no such order.
pub fn find(session: &mut Session, order_id: Uuid) -> Result<Option<Timeline>> {
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
    Ok(rows.first().map(|first| timeline(order_id, first, &rows)))
}

fn timeline(order_id: Uuid, order: &Row, rows: &[Row]) -> Timeline {
    Timeline {
        order_id,
        saga: store::saga(order, 0),
        traceparent: order.get(4),
        created_at: order.get(5),
        stored_at: order.get(6),
        published_at: order.get(7),
        requests: [order.get(8), order.get(9)],
        entries: rows.iter().filter_map(entry).collect(),
    }
}

/// None in the one row of an order without entries, and of a type that only a newer version knows.
fn entry(row: &Row) -> Option<Entry> {
    let type_name: String = row.get::<_, Option<String>>(10)?;
    Some(Entry {
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
