//! The stock service's calls.

use std::sync::Arc;

use serde::Serialize;
use shared::db::pool::Pool;
use shared::event::Reason;
use shared::http::{Fields, Method, Problem, Request, Response, Routes, json_object, merge};
use uuid::Uuid;

use crate::store;

/// The largest quantity. Checked here, not by the table: a release must not be refusable.
const QUANTITY: i64 = 1_000_000_000_000_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemView {
    item_name: String,
    quantity: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReservationView {
    order_id: Uuid,
    item_name: Option<String>,
    quantity: Option<i64>,
    status: &'static str,
    reason: Option<Reason>,
    created_at: String,
    updated_at: String,
}

/// `PUT` and `GET /items/{itemName}`, `GET /reservations/{orderId}`.
pub fn routes(routes: Routes, pool: Pool) -> Routes {
    let pool = Arc::new(pool);
    routes
        .route_on(&pool, Method::Put, "/items/{itemName}", set_quantity)
        .route_on(&pool, Method::Get, "/items/{itemName}", quantity)
        .route_on(&pool, Method::Get, "/reservations/{orderId}", reservation)
}

fn set_quantity(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&[])?;
    let (item_name, quantity) = merge(request.name_param("itemName"), new_quantity(request))?;
    let created = pool.once(|session| store::set_quantity(session, &item_name, quantity))?;
    Ok(Response::json(
        if created { 201 } else { 200 },
        &ItemView {
            item_name,
            quantity,
        },
    ))
}

fn new_quantity(request: &Request) -> Result<i64, Problem> {
    let mut fields = Fields::new(json_object(request)?);
    let quantity = fields.integer("quantity", 0..=QUANTITY);
    fields.finish(|| quantity)
}

fn quantity(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&[])?;
    let item_name = request.name_param("itemName")?;
    let found = pool.with(|session| store::find_quantity(session, &item_name))?;
    let quantity =
        found.ok_or_else(|| Problem::new(404, format!("there is no item {item_name}")))?;
    Ok(Response::json(
        200,
        &ItemView {
            item_name,
            quantity,
        },
    ))
}

fn reservation(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&[])?;
    let order_id = request.uuid_param("orderId")?;
    let found = pool.with(|session| store::find(session, order_id))?;
    let (reservation, created_at, updated_at) = found
        .ok_or_else(|| Problem::new(404, format!("stock has not heard of order {order_id}")))?;
    let (item_name, quantity) = reservation.terms.unzip();
    let status = reservation.status.name();
    Ok(Response::json(
        200,
        &ReservationView {
            order_id,
            item_name,
            quantity,
            status,
            reason: reservation.reason,
            created_at,
            updated_at,
        },
    ))
}
