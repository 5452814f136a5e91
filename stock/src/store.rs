//! All SQL of the tables `item` and `reservation`.

use std::collections::HashMap;

use postgres::Row;
use shared::columns;
use shared::consumer::at_once::{AtOnce, Effect};
use shared::db::{Query, Session, Tx};
use shared::error::Result;
use shared::event::Reason;
use uuid::Uuid;

use crate::reservation::{Batch, Reservation, Status};

/// Places a reservation for each order that has none, then locks those that were there; `order_ids` must be sorted. One
/// placed just now is ours without a lock.
pub fn place_and_lock(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Reservation>> {
    let placed = tx.query(
        "insert into reservation (order_id) select order_id from unnest($1::uuid[]) as p (order_id) order by order_id
         on conflict (order_id) do nothing returning order_id",
        &[&order_ids],
    )?;
    let mut locked: HashMap<Uuid, Reservation> = placed
        .iter()
        .map(|row| (row.get(0), Reservation::new()))
        .collect();
    let known: Vec<Uuid> = order_ids
        .iter()
        .copied()
        .filter(|order_id| !locked.contains_key(order_id))
        .collect();
    if !known.is_empty() {
        locked.extend(lock(tx, &known)?);
    }
    Ok(locked)
}

fn lock(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Reservation>> {
    let rows = tx.query(
        "select r.order_id, r.item_name, r.quantity, r.status, r.reason_code, r.reason_from, r.confirmed
           from unnest($1::uuid[]) as wanted (order_id) join reservation r using (order_id)
          order by r.order_id for update of r",
        &[&order_ids],
    )?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), reservation(row)))
        .collect())
}

fn reservation(row: &Row) -> Reservation {
    let item_name: Option<String> = row.get(1);
    let code: Option<String> = row.get(4);
    Reservation {
        terms: item_name.map(|item_name| (item_name, row.get(2))),
        status: Status::from_name(row.get(3)).expect("the table checks the names"),
        reason: code.map(|code| Reason {
            code,
            from: row.get(5),
        }),
        confirmed: row.get(6),
    }
}

/// Locks the items of `item_names` (sorted) that exist; returns their quantities.
pub fn lock_quantities(tx: &mut Tx<'_>, item_names: &[&str]) -> Result<HashMap<String, i64>> {
    let rows = tx.query(
        "select i.item_name, i.quantity from unnest($1::text[]) as wanted (item_name) join item i using (item_name)
          order by i.item_name for update of i",
        &[&item_names],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The quantities of `item_names` (sorted) that exist, without locks.
pub fn find_quantities(session: &mut Session, item_names: &[&str]) -> Result<HashMap<String, i64>> {
    let rows = session.query(
        "select i.item_name, i.quantity from unnest($1::text[]) as wanted (item_name) join item i using (item_name)",
        &[&item_names],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes what changed in the batch: reservations and quantities by one statement, all of them locked before.
pub fn write(tx: &mut Tx<'_>, batch: &Batch) -> Result<()> {
    if batch.changed_reservations.is_empty() {
        return Ok(());
    }
    let changed = changed(batch);
    let reservations = columns!(changed, |(order_id, reservation)| [
        *order_id,
        reservation.terms.as_ref().map(|(name, _)| name.as_str()),
        reservation.terms.as_ref().map(|(_, amount)| *amount),
        reservation.status.name(),
        reservation
            .reason
            .as_ref()
            .map(|reason| reason.code.as_str()),
        reservation
            .reason
            .as_ref()
            .map(|reason| reason.from.as_str()),
        array_text(&reservation.confirmed),
    ]);
    let quantities = columns!(batch.changed_quantities, |name| [
        name.as_str(),
        batch.quantities[name],
    ]);
    tx.execute(
        "with written as (
             update reservation r set item_name = c.item_name, quantity = c.quantity, status = c.status,
                    reason_code = c.code, reason_from = c.reason_from, confirmed = c.confirmed::uuid[],
                    updated_at = clock_timestamp()
               from unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
                    as c (order_id, item_name, quantity, status, code, reason_from, confirmed)
              where r.order_id = c.order_id
         )
         update item i set quantity = c.quantity from unnest($8::text[], $9::bigint[]) as c (item_name, quantity)
          where i.item_name = c.item_name",
        &[&reservations[..], &quantities].concat(),
    )?;
    Ok(())
}

/// Writes a batch of reservations that were not known, decided on the quantities `read` without locks. Returns false where one is
/// known by now, or one of the quantities is another.
pub fn write_at_once(
    at_once: &mut AtOnce<'_>,
    batch: &Batch,
    read: &HashMap<String, i64>,
) -> Result<bool> {
    let changed = changed(batch);
    let reservations = columns!(changed, |(order_id, reservation)| [
        *order_id,
        reservation.terms.as_ref().map(|(name, _)| name.as_str()),
        reservation.terms.as_ref().map(|(_, amount)| *amount),
        reservation.status.name(),
        reservation
            .reason
            .as_ref()
            .map(|reason| reason.code.as_str()),
        reservation
            .reason
            .as_ref()
            .map(|reason| reason.from.as_str()),
    ]);
    let quantities = columns!(batch.changed_quantities, |name| [
        name.as_str(),
        read[name],
        batch.quantities[name],
    ]);
    let placed = "insert into reservation (order_id, item_name, quantity, status, reason_code, reason_from)
        select * from unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[]) as p (order_id)
         order by order_id
            on conflict (order_id) do nothing returning order_id";
    let taken = "update item i set quantity = c.becomes
          from unnest($7::text[], $8::bigint[], $9::bigint[]) as c (item_name, was, becomes)
         where i.item_name = c.item_name and i.quantity = c.was returning i.item_name";
    at_once.commit(
        &[
            Effect {
                name: "placed",
                sql: placed,
                rows: Some(batch.changed_reservations.len()),
            },
            Effect {
                name: "taken",
                sql: taken,
                rows: Some(batch.changed_quantities.len()),
            },
        ],
        &[&reservations[..], &quantities].concat(),
        &batch.outgoing,
    )
}

fn changed(batch: &Batch) -> Vec<(Uuid, &Reservation)> {
    let changed = batch.changed_reservations.iter();
    changed
        .map(|order_id| (*order_id, &batch.reservations[order_id]))
        .collect()
}

/// PostgreSQL's text form of an array: `unnest` would flatten an array of arrays.
fn array_text(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    format!("{{{}}}", ids.join(","))
}

/// Sets an item's quantity; the difference counts as deposited. True if the item is new.
pub fn set_quantity(session: &mut Session, item_name: &str, quantity: i64) -> Result<bool> {
    let rows = session.query(
        "insert into item as i (item_name, quantity, deposited) values ($1, $2, $2)
         on conflict (item_name) do update
            set deposited = i.deposited + excluded.quantity - i.quantity, quantity = excluded.quantity
         returning xmax = 0",
        &[&item_name, &quantity],
    )?;
    Ok(rows[0].get(0))
}

/// An item's quantity; none if there is no such item.
pub fn find_quantity(session: &mut Session, item_name: &str) -> Result<Option<i64>> {
    let rows = session.query(
        "select quantity from item where item_name = $1",
        &[&item_name],
    )?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// A reservation with its times (RFC 3339, UTC); none if the order is unknown here.
pub fn find(
    session: &mut Session,
    order_id: Uuid,
) -> Result<Option<(Reservation, String, String)>> {
    let rows = session.query(
        r#"select order_id, item_name, quantity, status, reason_code, reason_from, confirmed,
                  to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                  to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
             from reservation where order_id = $1"#,
        &[&order_id],
    )?;
    Ok(rows
        .first()
        .map(|row| (reservation(row), row.get(7), row.get(8))))
}
