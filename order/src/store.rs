//! All SQL of the tables `orders`, `idempotency_key` and `deadline`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use postgres::Row;
use shared::columns;
use shared::consumer::at_once::{AtOnce, Effect};
use shared::consumer::set_aside;
use shared::db::cleanup::Cleanup;
use shared::db::{Params, Query, Session, Tx};
use shared::error::Result;
use shared::event::{Event, Reason};
use shared::outbox::{APPENDED, Appended};
use uuid::Uuid;

use crate::order::{NewOrder, Order, OrderStatus, Saga, SideStatus};
use crate::repair::Rebuilt;
use answers::{ANSWERS, COMPENSATIONS, answer_columns, time};
use flow::{COUNT_SETTLED, by_second};

pub mod answers;
pub mod flow;

/// An order as it is when it is decided on.
pub struct Current {
    /// Its two sides.
    pub saga: Saga,
    /// What they were when it was read.
    pub was: Saga,
    /// W3C trace context of the request that made it.
    pub traceparent: String,
    /// Whether it has repairs.
    pub repaired: bool,
}

/// What became of a batch of new orders.
pub struct Placement {
    /// For each, the id of the order that stands for it: its own, or that of an earlier request with its idempotency key.
    pub standing: Vec<Uuid>,
    /// Those that this call has placed.
    pub placed: HashSet<Uuid>,
    /// When; RFC 3339, UTC, six digits.
    pub placed_at: String,
    /// Their outbox rows.
    pub appended: Option<Appended>,
}

/// Stores orders with their outbox rows in one call. `messages`: each order's outbox row. A call repeated with the
/// same ids after a lost answer changes nothing; a concurrent call with one of the keys is waited for.
///
/// # Errors
/// What PostgreSQL says: nothing was stored, or (connection lost) it is unknown.
pub fn place(
    session: &mut Session,
    orders: &[&NewOrder],
    messages: &[String],
) -> Result<Placement> {
    let sql = format!(
        "select standing, placed, placed_at, {APPENDED} from place_new_orders($1, $2, $3, $4, $5, $6, $7, $8)"
    );
    let rows = session.query(
        &sql,
        &columns!(
            orders,
            |order| [
                order.order_id,
                &*order.user_name,
                &*order.item_name,
                order.price,
                order.quantity,
                order.key.as_deref(),
                &*order.traceparent,
            ],
            messages
        ),
    )?;
    let placed: Vec<Uuid> = rows[0].get(1);
    Ok(Placement {
        standing: rows[0].get(0),
        placed: placed.into_iter().collect(),
        placed_at: rows[0].get(2),
        appended: Appended::read(&rows[0], 3),
    })
}

const COLUMNS: &str = r#"o.order_id, o.user_name, o.item_name, o.price, o.quantity, o.payment_status, o.stock_status,
    o.reason_code, o.reason_from,
    to_char(o.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    to_char(o.updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;

fn order(row: &Row) -> Order {
    Order {
        order_id: row.get(0),
        user_name: row.get(1),
        item_name: row.get(2),
        price: row.get(3),
        quantity: row.get(4),
        saga: saga(row, 5),
        created_at: row.get(9),
        updated_at: row.get(10),
    }
}

/// The four columns from `at`: both statuses, then the reason.
pub(crate) fn saga(row: &Row, at: usize) -> Saga {
    let [payment, stock] = [at, at + 1]
        .map(|column| SideStatus::from_name(row.get(column)).expect("the table checks the names"));
    let reason: Option<String> = row.get(at + 2);
    Saga {
        payment,
        stock,
        reason: reason.map(|code| (code, row.get(at + 3))),
    }
}

/// The orders of `order_ids` that exist, by id.
pub fn find(session: &mut Session, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Order>> {
    let sql = format!(
        "select {COLUMNS} from unnest($1::uuid[]) as wanted (order_id) join orders o using (order_id)"
    );
    let rows = session.query(&sql, &[&order_ids])?;
    Ok(rows
        .iter()
        .map(order)
        .map(|order| (order.order_id, order))
        .collect())
}

/// One page of the orders, newest first.
pub struct Page {
    /// Those that fit.
    pub orders: Vec<Order>,
    /// Where the next page begins; none at the end.
    pub next: Option<Uuid>,
}

/// What holds for orders `o` that are not settled: the SQL of `not` [`Saga::is_settled`].
pub(crate) const UNSETTLED: &str = "(o.payment_status in ('READY', 'IN_PROGRESS', 'COMPENSATING')
     or o.stock_status in ('READY', 'IN_PROGRESS', 'COMPENSATING'))";

/// Orders looked at for one page, so that a rare status costs no scan of the whole history.
const SCAN: i64 = 10_000;

/// The orders of `status` (or all) older than `after`, newest first. At most `SCAN` orders are looked at: a page may
/// hold fewer than `limit` and still have a `next`.
pub fn list(
    session: &mut Session,
    status: Option<OrderStatus>,
    limit: i64,
    after: Option<Uuid>,
) -> Result<Page> {
    let sql = format!(
        "with seen as materialized (select * from orders where order_id < $1 order by order_id desc limit $2)
         select {COLUMNS} from seen o where $3::text is null or order_status = $3 order by o.order_id desc limit $4"
    );
    let after = after.unwrap_or(Uuid::max());
    // without a filter nothing is passed over: look at the page's own rows only
    let scan = if status.is_some() { SCAN } else { limit };
    let orders: Vec<Order> = session
        .query(
            &sql,
            &[&after, &scan, &status.map(OrderStatus::name), &limit],
        )?
        .iter()
        .map(order)
        .collect();
    let next = match orders.last() {
        Some(last) if orders.len() as i64 == limit => Some(last.order_id),
        _ => end_of_scan(session, after, scan)?,
    };
    Ok(Page { orders, next })
}

/// The last of the `scan` orders after `after`; none if there are fewer.
fn end_of_scan(session: &mut Session, after: Uuid, scan: i64) -> Result<Option<Uuid>> {
    let sql =
        "select order_id from orders where order_id < $1 order by order_id desc offset $2 limit 1";
    Ok(session
        .query(sql, &[&after, &(scan - 1)])?
        .first()
        .map(|row| row.get(0)))
}

/// Locks the orders of `order_ids` that exist, in id order.
pub fn lock(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Current>> {
    lock_where(tx, order_ids, "true")
}

/// The same for those that are not settled, or have repairs. Once settled, always settled: who is passed over has nothing left
/// to happen, and a lock would cost a write.
pub fn lock_unsettled(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Current>> {
    lock_where(tx, order_ids, &format!("({UNSETTLED} or o.repaired)"))
}

/// The orders of `order_ids` that exist, as they are now: without locks.
pub fn read(session: &mut Session, order_ids: &[Uuid]) -> Result<HashMap<Uuid, Current>> {
    read_where(session, order_ids, "true")
}

fn lock_where(
    tx: &mut Tx<'_>,
    order_ids: &[Uuid],
    condition: &str,
) -> Result<HashMap<Uuid, Current>> {
    read_where(
        tx,
        order_ids,
        &format!("{condition} order by o.order_id for update of o"),
    )
}

fn read_where(
    query: &mut impl Query,
    order_ids: &[Uuid],
    condition: &str,
) -> Result<HashMap<Uuid, Current>> {
    let sql = format!(
        "select o.order_id, o.payment_status, o.stock_status, o.reason_code, o.reason_from, o.traceparent,
                o.repaired
           from unnest($1::uuid[]) as wanted (order_id) join orders o using (order_id)
          where {condition}"
    );
    let rows = query.query(&sql, &[&order_ids])?;
    let mut locked = HashMap::with_capacity(rows.len());
    for row in &rows {
        let was = saga(row, 1);
        let order = Current {
            saga: was.clone(),
            was,
            traceparent: row.get(5),
            repaired: row.get(6),
        };
        locked.insert(row.get(0), order);
    }
    Ok(locked)
}

/// What a batch of answers writes: the sagas of orders, into their timeline the answers that are `recorded`, and the count of those
/// that are `settled` now.
pub struct Written<'a> {
    /// Each order with what its saga was and is.
    pub changed: Vec<(Uuid, &'a Saga, &'a Saga)>,
    /// Those that are settled by it.
    pub settled: &'a [Uuid],
    /// The answers that the timeline keeps.
    pub recorded: &'a [&'a Event],
}

/// An order is touched only where its statuses are what they were; $27: also one that has repairs.
const CHANGED: &str = "
    update orders o set order_status = c.status, payment_status = c.payment, stock_status = c.stock,
           reason_code = c.code, reason_from = c.reason_from, updated_at = clock_timestamp()
      from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $25::text[], $26::text[])
           as c (order_id, status, payment, stock, code, reason_from, payment_was, stock_was)
     where o.order_id = c.order_id and o.payment_status = c.payment_was and o.stock_status = c.stock_was
           and (not o.repaired or $27)
 returning o.order_id";

/// Writes what changed of locked orders, by one statement.
pub fn update(tx: &mut Tx<'_>, written: &Written<'_>) -> Result<()> {
    if written.changed.is_empty() && written.recorded.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "with counted as ({COUNT_SETTLED}), recorded as ({ANSWERS}), changed as ({CHANGED}) select count(*) from changed"
    );
    let rows = with_columns(written, true, |params| tx.query(&sql, params))?;
    debug_assert_eq!(rows[0].get::<_, i64>(0), written.changed.len() as i64);
    Ok(())
}

/// The same of orders that were read without locks and have no repairs. Returns false where that no longer holds of one.
pub fn update_at_once(at_once: &mut AtOnce<'_>, written: &Written<'_>) -> Result<bool> {
    let effect = |name, sql, rows| Effect { name, sql, rows };
    let effects = [
        effect("changed", CHANGED, Some(written.changed.len())),
        effect("counted", COUNT_SETTLED, None),
        effect("recorded", ANSWERS, None),
    ];
    with_columns(written, false, |params| {
        at_once.commit(&effects, params, &[])
    })
}

/// Calls `run` with the parameters of [`CHANGED`], [`COUNT_SETTLED`] and [`ANSWERS`].
fn with_columns<T>(
    written: &Written<'_>,
    also_repaired: bool,
    run: impl FnOnce(Params<'_>) -> T,
) -> T {
    let (seconds, counts) = by_second(written.settled);
    let sagas = columns!(
        written.changed,
        |(order_id, _, saga)| [
            *order_id,
            saga.status().name(),
            saga.payment.name(),
            saga.stock.name(),
            saga.reason.as_ref().map(|(code, _)| &**code),
            saga.reason.as_ref().map(|(_, from)| &**from),
        ],
        seconds,
        counts
    );
    let were = columns!(
        written.changed,
        |(_, was, _)| [was.payment.name(), was.stock.name()],
        also_repaired
    );
    let recorded = written.recorded;
    run(&[&sagas[..], &answer_columns!(recorded), &were].concat())
}
/// Stores the idempotency keys of orders that are rebuilt; returns those whose key stands for another order by now. (After
/// `retention` a key may be used again: the orders of then and now have nothing to do with each other.) A call of the writer
/// with one of the keys is waited for.
pub fn claim_keys(
    tx: &mut Tx<'_>,
    rebuilt: &[Rebuilt],
    retention: Duration,
) -> Result<HashSet<Uuid>> {
    let with_key: Vec<(&str, &Rebuilt)> = rebuilt
        .iter()
        .filter_map(|order| Some((order.key.as_deref()?, order)))
        .collect();
    if with_key.is_empty() {
        return Ok(HashSet::new());
    }
    let keys = columns!(with_key, |(key, order)| [
        *key,
        order.order_id,
        time(order.created)
    ]);
    tx.execute(
        "insert into idempotency_key (idempotency_key, order_id, created_at)
         select key, order_id, created_at from unnest($1::text[], $2::uuid[], $3::timestamptz[]) as r (key, order_id, created_at)
          order by key, order_id on conflict (idempotency_key) do nothing",
        &keys,
    )?;
    // a statement of its own: it sees the keys whose inserts were waited for
    let rows = tx.query(
        "select r.order_id
           from unnest($1::text[], $2::uuid[], $3::timestamptz[]) as r (key, order_id, created_at)
           join idempotency_key k on k.idempotency_key = r.key
          where k.order_id <> r.order_id
            and abs(extract(epoch from k.created_at - r.created_at)::float8) * 1000 < $4",
        &[&keys[..], &[&(retention.as_millis() as f64)]].concat(),
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Stores rebuilt orders, in id order; those that can be gone on with get a deadline, as if they had been published now. Answers
/// which were stored: another instance may have rebuilt the others at the same moment.
pub fn rebuild(tx: &mut Tx<'_>, rebuilt: &[Rebuilt], deadline: Duration) -> Result<HashSet<Uuid>> {
    let rows = tx.query(
        "with rebuilt as (
             insert into orders (order_id, user_name, item_name, price, quantity, order_status, payment_status, stock_status,
                                 reason_code, reason_from, traceparent, created_at, stored_at, published_at,
                                 payment_request, stock_request, repaired)
             select order_id, user_name, item_name, price, quantity, status, payment, stock, code, reason_from, traceparent,
                    created_at, stored_at, published_at, of_payment, of_stock, true
               from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[],
                           $9::text[], $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[],
                           $15::uuid[], $16::uuid[])
                    as r (order_id, user_name, item_name, price, quantity, status, payment, stock, code, reason_from,
                          traceparent, created_at, stored_at, published_at, of_payment, of_stock)
              order by order_id
             on conflict (order_id) do nothing
             returning order_id, order_status
         ), due as (
             insert into deadline (due_at, round, order_ids)
             select clock_timestamp() + $17 * interval '1 millisecond', 0, array_agg(order_id)
               from rebuilt where order_status = 'IN_PROGRESS' having count(*) > 0
         )
         select order_id from rebuilt",
        &columns!(
            rebuilt,
            |order| [
                order.order_id,
                order.user_name.as_deref(),
                order.item_name.as_deref(),
                order.price,
                order.quantity,
                order.saga.status().name(),
                order.saga.payment.name(),
                order.saga.stock.name(),
                order.saga.reason.as_ref().map(|(code, _)| &**code),
                order.saga.reason.as_ref().map(|(_, from)| &**from),
                &*order.traceparent,
                time(order.created),
                order.stored.map(time),
                order.published.map(time),
                order.requests[0],
                order.requests[1],
            ],
            deadline.as_millis() as f64
        ),
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Orders to look at again.
pub struct Due {
    /// 0: the sides' deadline; above: how often the compensation was asked.
    pub round: i32,
    /// Which orders, sorted.
    pub order_ids: Vec<Uuid>,
}

/// Has the orders of these compensation requests looked at again after `wait`, and notes the requests in their timeline, by
/// one statement.
pub fn look_again(tx: &mut Tx<'_>, asked: &[Event], round: i32, wait: Duration) -> Result<()> {
    if asked.is_empty() {
        return Ok(());
    }
    let order_ids: BTreeSet<Uuid> = asked.iter().map(|event| event.order_id).collect();
    let order_ids: Vec<Uuid> = order_ids.into_iter().collect();
    let sql = format!(
        "with asked as ({COMPENSATIONS})
         insert into deadline (due_at, round, order_ids)
         values (clock_timestamp() + $4 * interval '1 millisecond', $5, $6)"
    );
    let wait = wait.as_millis() as f64;
    let params = columns!(
        asked,
        |event| [event.order_id, event.id, event.type_name()],
        wait,
        round,
        order_ids
    );
    tx.execute(&sql, &params)?;
    Ok(())
}

/// Takes the earliest rows that are due and that no other instance is working on, of one round. Few at once: each may
/// stand for a whole batch of orders.
pub fn take_due(tx: &mut Tx<'_>) -> Result<Option<Due>> {
    let rows = tx.query(
        "with due as materialized (
             select id from deadline
              where due_at <= clock_timestamp()
                and round = (select round from deadline where due_at <= clock_timestamp() order by due_at limit 1)
              order by due_at limit 20 for update skip locked
         )
         delete from deadline d using due where d.id = due.id returning d.round, d.order_ids",
        &[],
    )?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let mut order_ids: Vec<Uuid> = rows
        .iter()
        .flat_map(|row| row.get::<_, Vec<Uuid>>(1))
        .collect();
    order_ids.sort();
    order_ids.dedup();
    Ok(Some(Due {
        round: first.get(0),
        order_ids,
    }))
}

/// Has orders that are due looked at again a little later, as if nothing had happened: somebody holds their rows.
pub fn reschedule(tx: &mut Tx<'_>, round: i32, order_ids: &[Uuid]) -> Result<()> {
    let sql = "insert into deadline (due_at, round, order_ids) values (clock_timestamp() + interval '5 seconds', $1, $2)";
    tx.execute(sql, &[&round, &order_ids]).map(drop)
}

/// Removes idempotency keys so old. A repeated request finds its order for at least that long.
pub fn clean_up_keys(retention: Duration) -> Cleanup {
    let sql = "delete from idempotency_key where idempotency_key in
                   (select idempotency_key from idempotency_key
                     where created_at < clock_timestamp() - $1 * interval '1 millisecond'
                     order by created_at limit $2 for update skip locked)";
    Cleanup {
        what: "idempotency keys",
        retention: Some(retention),
        sql: sql.into(),
    }
}

/// The latest `SCAN` orders, counted by status.
pub fn count_latest(session: &mut Session) -> Result<Vec<(String, i64)>> {
    let sql = "select order_status, count(*)
                 from (select order_status from orders order by order_id desc limit $1) as latest group by order_status";
    Ok(session
        .query(sql, &[&SCAN])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect())
}

/// Which of these orders somebody else holds, each with the row and the holder in words; all others are locked.
pub fn find_held(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<HashMap<String, String>> {
    set_aside::find_held(tx, ("orders", "order_id", "uuid"), &order_ids)
}

/// Which of these idempotency keys have a row that somebody else holds, each with the row and the holder in words; the rows of all
/// others are locked.
pub fn find_held_keys(tx: &mut Tx<'_>, keys: &[&str]) -> Result<HashMap<String, String>> {
    set_aside::find_held(tx, ("idempotency_key", "idempotency_key", "text"), &keys)
}

/// Orders `o` whose ids were drawn in a `second` since 1970, and which are not settled.
pub(crate) fn unsettled_in_second() -> String {
    format!(
        "o.order_id >= rpad(lpad(to_hex(second * 1000), 12, '0'), 32, '0')::uuid
         and o.order_id < rpad(lpad(to_hex((second + 1) * 1000), 12, '0'), 32, '0')::uuid
         and {UNSETTLED}"
    )
}

/// Orders that are not settled so many milliseconds ($2) after they were placed, and whose rows in the outbox, or later in
/// `deadline`, somebody has deleted: nobody will ask for anything about them. An outbox whose oldest row is older than the order
/// may still hold it. All of `deadline` is read where there are such orders, and nothing of it where there are none.
fn forgotten() -> String {
    format!(
        "
    with late as materialized (
        select o.order_id
          from (select second from order_flow
                 group by second having sum(placed) > sum(settled)
                                    and second < extract(epoch from clock_timestamp()) - $2::float8 / 1000) as late
          join orders o on {}
         where o.created_at < clock_timestamp() - $2::float8 * interval '1 millisecond'
           and o.created_at < coalesce((select stored_at from order_outbox order by id limit 1), 'infinity') - interval '1 minute'
         limit $1),
    unknown as materialized (
        select order_id from late
        except select due.order_id from deadline d cross join unnest(d.order_ids) as due (order_id)
                where exists (select from late))
    select order_id from unknown where not exists (select from order_outbox b where b.order_id = unknown.order_id)",
        unsettled_in_second()
    )
}

/// Orders that may be overdue: their compensation was requested again (round 2 and above of `deadline`; a settled order may
/// be among them), their deadline is long due and nobody looks, or they are [`forgotten`], with its parameters.
fn overdue() -> String {
    format!(
        "(select due.order_id from deadline d cross join unnest(d.order_ids) as due (order_id)
           where d.round > 1 or d.due_at < clock_timestamp() - interval '10 seconds' limit $1)
          union ({})",
        forgotten()
    )
}

/// Orders that are not settled although their time is over, among `SCAN` whose time is. `deadline`: after which one that
/// was not published counts.
pub fn count_overdue(session: &mut Session, deadline: Duration) -> Result<i64> {
    let sql = format!(
        "select count(*) from ({}) as late join orders o using (order_id) where {UNSETTLED}",
        overdue()
    );
    Ok(session.query(&sql, &[&SCAN, &(deadline.as_millis() as f64)])?[0].get(0))
}

/// Those orders, older than `after`, newest first.
pub fn list_overdue(
    session: &mut Session,
    deadline: Duration,
    limit: i64,
    after: Option<Uuid>,
) -> Result<Page> {
    let sql = format!(
        "select {COLUMNS} from ({}) as late join orders o using (order_id)
          where {UNSETTLED} and o.order_id < $3 order by o.order_id desc limit $4",
        overdue()
    );
    let after = after.unwrap_or(Uuid::max());
    let rows = session.query(
        &sql,
        &[&SCAN, &(deadline.as_millis() as f64), &after, &limit],
    )?;
    let orders: Vec<Order> = rows.iter().map(order).collect();
    let next = orders
        .last()
        .filter(|_| orders.len() as i64 == limit)
        .map(|last| last.order_id);
    Ok(Page { orders, next })
}

/// Ends the wait of orders that are `forgotten` `after` so long: they are marked as published, and what `deadline` has of a side in
/// their state is due. Answers how many they are.
pub fn give_up_forgotten(session: &mut Session, after: Duration) -> Result<i64> {
    let sql = format!(
        "with lost as (
             select o.order_id from orders o where o.order_id in ({}) order by o.order_id for update skip locked
         ), marked as (
             update orders o
                set payment_status = case when o.payment_status = 'READY' then 'IN_PROGRESS' else o.payment_status end,
                    stock_status = case when o.stock_status = 'READY' then 'IN_PROGRESS' else o.stock_status end,
                    updated_at = clock_timestamp()
               from lost where o.order_id = lost.order_id and {UNSETTLED}
             returning o.order_id, o.payment_status, o.stock_status
         ), due as (
             insert into deadline (due_at, round, order_ids)
             select clock_timestamp(), case when 'IN_PROGRESS' in (payment_status, stock_status) then 0 else 1 end as round,
                    array_agg(order_id)
               from marked group by round
         )
         select count(*) from marked",
        forgotten()
    );
    Ok(session.query(&sql, &[&SCAN, &(after.as_millis() as f64)])?[0].get(0))
}

impl Order {
    /// An order as it was placed.
    pub fn placed(order: &NewOrder, placed_at: &str) -> Order {
        Order {
            order_id: order.order_id,
            user_name: Some(order.user_name.clone()),
            item_name: Some(order.item_name.clone()),
            price: Some(order.price),
            quantity: Some(order.quantity),
            saga: Saga::new(),
            created_at: placed_at.to_string(),
            updated_at: placed_at.to_string(),
        }
    }

    /// Why it failed, as events and JSON carry it.
    pub fn reason(&self) -> Option<Reason> {
        self.saga
            .reason
            .clone()
            .map(|(code, from)| Reason { code, from })
    }
}
