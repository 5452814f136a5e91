//! The order service's calls.

use std::time::Duration;

use serde::Serialize;
use shared::config::Config;
use shared::db::pool::Pool;
use shared::event::Reason;
use shared::event::trace::{self, Received};
use shared::http::{
    Fields, Method, Problem, Request, Responder, Response, Routes, idempotency_key, json_object,
    merge,
};
use uuid::Uuid;

use crate::admission::Refusal;
use crate::long_poll::{LongPolls, Waited};
use crate::order::{NewOrder, Order, OrderStatus, Saga};
use crate::repair::store::{Filter, Listed};
use crate::repair::{self, Kind};
use crate::store;
use crate::timeline::{self, Timeline, TimelineStep};
use crate::writer::{PATIENCE, Placed, Queue};

/// The largest price.
const PRICE: i64 = 1_000_000_000_000_000;
/// The largest quantity of one order.
const QUANTITY: i64 = 1_000_000_000;
/// The longest `?wait`.
const WAIT: Duration = Duration::from_secs(30);
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderView<'a> {
    order_id: Uuid,
    user_name: Option<&'a str>,
    item_name: Option<&'a str>,
    price: Option<i64>,
    quantity: Option<i64>,
    order_status: &'static str,
    payment_status: &'static str,
    stock_status: &'static str,
    reason: Option<Reason>,
    settled: bool,
    created_at: &'a str,
    updated_at: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TimelineView<'a> {
    order_id: Uuid,
    trace_id: &'a str,
    traceparent: &'a str,
    order_status: &'static str,
    settled: bool,
    steps: Vec<TimelineStep>,
}

impl<'a> TimelineView<'a> {
    fn new(timeline: &'a Timeline, prefix: &str) -> TimelineView<'a> {
        TimelineView {
            order_id: timeline.order_id,
            trace_id: timeline.trace_id(),
            traceparent: &timeline.traceparent,
            order_status: timeline.saga.status().name(),
            settled: timeline.saga.is_settled(),
            steps: timeline.steps(prefix),
        }
    }
}

#[derive(Serialize)]
struct PageView<'a> {
    orders: Vec<OrderView<'a>>,
    next: Option<Uuid>,
}

#[derive(Serialize)]
struct RepairsView {
    repairs: Vec<Listed>,
    /// What to pass as `before` for the next page; null: there is none.
    next: Option<i64>,
}

impl<'a> From<&'a Order> for OrderView<'a> {
    fn from(order: &'a Order) -> OrderView<'a> {
        OrderView {
            order_id: order.order_id,
            user_name: order.user_name.as_deref(),
            item_name: order.item_name.as_deref(),
            price: order.price,
            quantity: order.quantity,
            order_status: order.saga.status().name(),
            payment_status: order.saga.payment.name(),
            stock_status: order.saga.stock.name(),
            reason: order.reason(),
            settled: order.saga.is_settled(),
            created_at: &order.created_at,
            updated_at: &order.updated_at,
        }
    }
}

/// `POST /orders`, `GET /orders/{orderId}`, `GET /orders`, `GET /orders/{orderId}/timeline`, `GET /repairs`.
pub fn routes(
    routes: Routes,
    pool: Pool,
    queue: Queue,
    long_polls: LongPolls,
    config: &Config,
) -> Routes {
    let (prefix, deadline) = (config.topic_prefix.clone(), config.order_deadline);
    let (listed, traced, repaired) = (pool.clone(), pool.clone(), pool.clone());
    let gate = queue.clone();
    routes
        .route_deferred(Method::Post, "/orders", move |request, responder| {
            place(&queue, &request, responder)
        })
        .without_token()
        .gated(move || gate.admit().map_err(refused))
        .route_deferred(
            Method::Get,
            "/orders/{orderId}",
            move |request, responder| get(&pool, &long_polls, &request, responder),
        )
        .route(Method::Get, "/orders", move |request| {
            list(&listed, deadline, request)
        })
        .route(Method::Get, "/repairs", move |request| {
            repairs(&repaired, request)
        })
        .route(Method::Get, "/orders/{orderId}/timeline", move |request| {
            timeline(&traced, &prefix, request)
        })
}

fn place(queue: &Queue, request: &Request, responder: Responder) {
    let (order, span) = match new_order(request) {
        Ok(order) => order,
        Err(problem) => return responder.send(problem),
    };
    if let Some(span) = span {
        responder.before_sending(|response| {
            span.answered(response.status);
            response
        });
    }
    let asked = order.clone();
    // the writer may hang in a call to a silent database; its own patience ends before
    responder.or_after(PATIENCE + Duration::from_secs(2), outcome_unknown(&asked));
    queue.place(order, move |placed| responder.send(answer(&asked, placed)));
}

/// Nothing of the request was looked at: its key stands for nothing.
fn refused(refusal: Refusal) -> Problem {
    let (why, seconds) = match refusal {
        Refusal::Backlog(seconds) => ("more orders wait than can be settled in time", seconds),
        Refusal::Outage => (
            "a part of the system has been away for long, and an order might not be settled in time",
            5,
        ),
        Refusal::Queue => ("too many orders are waiting to be stored", 1),
        Refusal::Database => ("the database does not store it", 2),
    };
    unchanged(why, seconds)
}

fn unchanged(why: &str, seconds: u32) -> Problem {
    Problem::unavailable(
        format!("{why}; nothing was changed, repeat the request later"),
        seconds,
    )
}

/// The order, and the span of its request.
fn new_order(request: &Request) -> Result<(NewOrder, Option<Received>), Problem> {
    request.query.allow_only(&[])?;
    let key = idempotency_key(request)?.map(str::to_string);
    let mut fields = Fields::new(json_object(request)?);
    let (user_name, item_name) = (fields.name("userName"), fields.name("itemName"));
    let (price, quantity) = (
        fields.integer("price", 1..=PRICE),
        fields.integer("quantity", 1..=QUANTITY),
    );
    let order_id = Uuid::now_v7();
    let (traceparent, span) = trace::receive(request.headers.get("traceparent"), order_id);
    let order = fields.finish(|| {
        Some(NewOrder {
            order_id,
            user_name: user_name?,
            item_name: item_name?,
            price: price?,
            quantity: quantity?,
            key,
            traceparent,
        })
    })?;
    Ok((order, span))
}

fn answer(asked: &NewOrder, placed: Placed) -> Response {
    match placed {
        Placed::Stored(order) if is_same(asked, &order) => accepted(*order),
        Placed::Stored(order) => Problem::new(
            422,
            format!(
                "this Idempotency-Key was used for order {} with another body; use a new key",
                order.order_id
            ),
        )
        .into(),
        Placed::QueueFull => refused(Refusal::Queue).into(),
        Placed::Refused(why) => Problem::new(
            500,
            format!("the order could not be stored: {why}; nothing was changed"),
        )
        .into(),
        Placed::NotStored(why) => unchanged(&why, 2).into(),
        Placed::Unknown => outcome_unknown(asked).into(),
    }
}

fn outcome_unknown(asked: &NewOrder) -> Problem {
    let order_id = asked.order_id;
    let what_to_do = match asked.key {
        Some(_) => "repeat the request with the same Idempotency-Key".to_string(),
        None => format!("look at /orders/{order_id} before you repeat the request"),
    };
    let detail = format!(
        "order {order_id}: outcome unknown, the database did not answer in time; {what_to_do}"
    );
    Problem::unavailable(detail, 2).with_order(order_id)
}

fn is_same(asked: &NewOrder, order: &Order) -> bool {
    (
        Some(&asked.user_name),
        Some(&asked.item_name),
        Some(asked.price),
        Some(asked.quantity),
    ) == (
        order.user_name.as_ref(),
        order.item_name.as_ref(),
        order.price,
        order.quantity,
    )
}

/// The order as it was when it was stored: a repeated request gets the first answer, byte for byte.
fn accepted(order: Order) -> Response {
    let first = Order {
        saga: Saga::new(),
        updated_at: order.created_at.clone(),
        ..order
    };
    Response::json(202, &OrderView::from(&first))
        .with_header("Location", format!("/orders/{}", first.order_id))
}

fn get(pool: &Pool, long_polls: &LongPolls, request: &Request, responder: Responder) {
    let (order, wait) = match find(pool, request) {
        Ok(found) => found,
        Err(problem) => return responder.send(problem),
    };
    let Some(wait) = wait.filter(|_| !order.saga.is_settled()) else {
        return responder.send(Response::json(200, &OrderView::from(&order)));
    };
    long_polls.add(order.order_id, wait, move |waited| {
        responder.send(match waited {
            Waited::Over(later) => Response::json(200, &OrderView::from(&later.unwrap_or(order))),
            Waited::TooMany => {
                Problem::unavailable("too many requests are waiting; ask without ?wait", 1).into()
            }
        });
    });
}

fn find(pool: &Pool, request: &Request) -> Result<(Order, Option<Duration>), Problem> {
    let query = merge(
        request.query.allow_only(&["wait"]),
        request.query.duration("wait", WAIT),
    );
    let (order_id, (_, wait)) = merge(request.uuid_param("orderId"), query)?;
    let found = pool.with(|session| store::find(session, &[order_id]))?;
    let order = found
        .into_values()
        .next()
        .ok_or_else(|| Problem::new(404, format!("there is no order {order_id}")))?;
    Ok((order, wait))
}

fn list(pool: &Pool, deadline: Duration, request: &Request) -> Result<Response, Problem> {
    let query = &request.query;
    let known = query.allow_only(&["status", "limit", "after"]);
    let status = query.get("status").map(status).transpose();
    let page = merge(query.integer("limit", 1..=200), query.uuid("after"));
    let (_, (status, (limit, after))) = merge(known, merge(status, page))?;
    let limit = limit.unwrap_or(50);
    let page = pool.with(|session| match status {
        Some(Listing::Overdue) => store::list_overdue(session, deadline, limit, after),
        Some(Listing::Of(status)) => store::list(session, Some(status), limit, after),
        None => store::list(session, None, limit, after),
    })?;
    let orders = page.orders.iter().map(OrderView::from).collect();
    Ok(Response::json(
        200,
        &PageView {
            orders,
            next: page.next,
        },
    ))
}

fn repairs(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    let query = &request.query;
    let known = query.allow_only(&["kind", "orderId", "state", "limit", "before"]);
    let kind = query.one_of("kind", Kind::from_name, &Kind::ALL.map(Kind::name));
    let is_done = query.one_of("state", is_done, &["OPEN", "DONE"]);
    let page = merge(
        query.integer("limit", 1..=200),
        query.integer("before", 1..=i64::MAX),
    );
    let filters = merge(merge(kind, is_done), query.uuid("orderId"));
    let (_, (((kind, is_done), order_id), (limit, before))) = merge(known, merge(filters, page))?;
    let filter = Filter {
        kind,
        order_id,
        is_done,
    };
    let limit = limit.unwrap_or(50);
    let repairs = pool.with(|session| repair::store::list(session, &filter, before, limit))?;
    let next = repairs
        .last()
        .filter(|_| repairs.len() as i64 == limit)
        .map(|last| last.id);
    Ok(Response::json(200, &RepairsView { repairs, next }))
}

fn is_done(state: &str) -> Option<bool> {
    [("OPEN", false), ("DONE", true)]
        .into_iter()
        .find(|(name, _)| *name == state)
        .map(|(_, is_done)| is_done)
}

fn timeline(pool: &Pool, prefix: &str, request: &Request) -> Result<Response, Problem> {
    let (order_id, _) = merge(request.uuid_param("orderId"), request.query.allow_only(&[]))?;
    let found = pool.with(|session| timeline::store::find(session, order_id))?;
    let timeline =
        found.ok_or_else(|| Problem::new(404, format!("there is no order {order_id}")))?;
    // a client that wants a table names it; what else it can take does not matter
    let response = if request
        .headers
        .all("Accept")
        .any(|accept| accept.to_ascii_lowercase().contains("text/plain"))
    {
        Response::new(
            200,
            "text/plain; charset=utf-8",
            timeline::text::table(&timeline, prefix).into(),
        )
    } else {
        Response::json(200, &TimelineView::new(&timeline, prefix))
    };
    Ok(response.with_header("Vary", "Accept"))
}

/// Which orders are to be listed.
#[derive(Clone, Copy)]
enum Listing {
    Of(OrderStatus),
    /// Not settled, whatever their status: [`store::list_overdue`].
    Overdue,
}

fn status(name: &str) -> Result<Listing, Problem> {
    let overdue = (name == "OVERDUE").then_some(Listing::Overdue);
    let found = overdue.or_else(|| OrderStatus::from_name(name).map(Listing::Of));
    found.ok_or_else(|| {
        Problem::field(
            "status",
            "must be IN_PROGRESS, COMPLETED, FAILED or OVERDUE",
        )
    })
}
