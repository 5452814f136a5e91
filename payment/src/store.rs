//! All SQL of the tables `account` and `payment`.

use std::collections::HashMap;

use postgres::Row;
use shared::columns;
use shared::consumer::at_once::{AtOnce, Effect};
use shared::db::{Query, Session, Tx};
use shared::error::Result;
use shared::event::Reason;
use uuid::Uuid;

use crate::payment::{Batch, Payment, Status};

/// Places a payment for each order that has none, then locks those that were there; `order_ids` must be sorted. One
/// placed just now is ours without a lock.
pub fn place_and_lock(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Payment>> {
    let placed = tx.query(
        "insert into payment (order_id) select order_id from unnest($1::uuid[]) as p (order_id) order by order_id
         on conflict (order_id) do nothing returning order_id",
        &[&order_ids],
    )?;
    let mut locked: HashMap<Uuid, Payment> = placed
        .iter()
        .map(|row| (row.get(0), Payment::new()))
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

fn lock(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Payment>> {
    let rows = tx.query(
        "select p.order_id, p.user_name, p.amount, p.status, p.reason_code, p.reason_from, p.confirmed
           from unnest($1::uuid[]) as wanted (order_id) join payment p using (order_id)
          order by p.order_id for update of p",
        &[&order_ids],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), payment(row))).collect())
}

fn payment(row: &Row) -> Payment {
    let user_name: Option<String> = row.get(1);
    let code: Option<String> = row.get(4);
    Payment {
        terms: user_name.map(|user_name| (user_name, row.get(2))),
        status: Status::from_name(row.get(3)).expect("the table checks the names"),
        reason: code.map(|code| Reason {
            code,
            from: row.get(5),
        }),
        confirmed: row.get(6),
    }
}

/// Locks the accounts of `user_names` (sorted) that exist; returns their balances.
pub fn lock_balances(tx: &mut Tx<'_>, user_names: &[&str]) -> Result<HashMap<String, i64>> {
    let rows = tx.query(
        "select a.user_name, a.balance from unnest($1::text[]) as wanted (user_name) join account a using (user_name)
          order by a.user_name for update of a",
        &[&user_names],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The balances of `user_names` (sorted) that exist, without locks.
pub fn find_balances(session: &mut Session, user_names: &[&str]) -> Result<HashMap<String, i64>> {
    let rows = session.query(
        "select a.user_name, a.balance from unnest($1::text[]) as wanted (user_name) join account a using (user_name)",
        &[&user_names],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Writes what changed in the batch: payments and balances by one statement, all of them locked before.
pub fn write(tx: &mut Tx<'_>, batch: &Batch) -> Result<()> {
    if batch.changed_payments.is_empty() {
        return Ok(());
    }
    let changed = changed(batch);
    let payments = columns!(changed, |(order_id, payment)| [
        *order_id,
        payment.terms.as_ref().map(|(name, _)| name.as_str()),
        payment.terms.as_ref().map(|(_, amount)| *amount),
        payment.status.name(),
        payment.reason.as_ref().map(|reason| reason.code.as_str()),
        payment.reason.as_ref().map(|reason| reason.from.as_str()),
        array_text(&payment.confirmed),
    ]);
    let balances = columns!(batch.changed_balances, |name| [
        name.as_str(),
        batch.balances[name],
    ]);
    tx.execute(
        "with written as (
             update payment p set user_name = c.user_name, amount = c.amount, status = c.status, reason_code = c.code,
                    reason_from = c.reason_from, confirmed = c.confirmed::uuid[], updated_at = clock_timestamp()
               from unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
                    as c (order_id, user_name, amount, status, code, reason_from, confirmed)
              where p.order_id = c.order_id
         )
         update account a set balance = c.balance from unnest($8::text[], $9::bigint[]) as c (user_name, balance)
          where a.user_name = c.user_name",
        &[&payments[..], &balances].concat(),
    )?;
    Ok(())
}

/// Writes a batch of payments that were not known, decided on the balances `read` without locks. Returns false where one is
/// known by now, or one of the balances is another.
pub fn write_at_once(
    at_once: &mut AtOnce<'_>,
    batch: &Batch,
    read: &HashMap<String, i64>,
) -> Result<bool> {
    let changed = changed(batch);
    let payments = columns!(changed, |(order_id, payment)| [
        *order_id,
        payment.terms.as_ref().map(|(name, _)| name.as_str()),
        payment.terms.as_ref().map(|(_, amount)| *amount),
        payment.status.name(),
        payment.reason.as_ref().map(|reason| reason.code.as_str()),
        payment.reason.as_ref().map(|reason| reason.from.as_str()),
    ]);
    let balances = columns!(batch.changed_balances, |name| [
        name.as_str(),
        read[name],
        batch.balances[name],
    ]);
    let placed = "insert into payment (order_id, user_name, amount, status, reason_code, reason_from)
        select * from unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[]) as p (order_id)
         order by order_id
            on conflict (order_id) do nothing returning order_id";
    let taken = "update account a set balance = c.becomes
          from unnest($7::text[], $8::bigint[], $9::bigint[]) as c (user_name, was, becomes)
         where a.user_name = c.user_name and a.balance = c.was returning a.user_name";
    at_once.commit(
        &[
            Effect {
                name: "placed",
                sql: placed,
                rows: Some(batch.changed_payments.len()),
            },
            Effect {
                name: "taken",
                sql: taken,
                rows: Some(batch.changed_balances.len()),
            },
        ],
        &[&payments[..], &balances].concat(),
        &batch.outgoing,
    )
}

fn changed(batch: &Batch) -> Vec<(Uuid, &Payment)> {
    let changed = batch.changed_payments.iter();
    changed
        .map(|order_id| (*order_id, &batch.payments[order_id]))
        .collect()
}

/// PostgreSQL's text form of an array: `unnest` would flatten an array of arrays.
fn array_text(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    format!("{{{}}}", ids.join(","))
}

/// Sets an account's balance; the difference counts as deposited. True if the account is new.
pub fn set_balance(session: &mut Session, user_name: &str, balance: i64) -> Result<bool> {
    let rows = session.query(
        "insert into account as a (user_name, balance, deposited) values ($1, $2, $2)
         on conflict (user_name) do update
            set deposited = a.deposited + excluded.balance - a.balance, balance = excluded.balance
         returning xmax = 0",
        &[&user_name, &balance],
    )?;
    Ok(rows[0].get(0))
}

/// An account's balance; none if there is no such account.
pub fn find_balance(session: &mut Session, user_name: &str) -> Result<Option<i64>> {
    let rows = session.query(
        "select balance from account where user_name = $1",
        &[&user_name],
    )?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// A payment with its times (RFC 3339, UTC); none if the order is unknown here.
pub fn find(session: &mut Session, order_id: Uuid) -> Result<Option<(Payment, String, String)>> {
    let rows = session.query(
        r#"select order_id, user_name, amount, status, reason_code, reason_from, confirmed,
                  to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                  to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
             from payment where order_id = $1"#,
        &[&order_id],
    )?;
    Ok(rows
        .first()
        .map(|row| (payment(row), row.get(7), row.get(8))))
}
