//! The payment service's calls.

use std::sync::Arc;

use serde::Serialize;
use shared::db::pool::Pool;
use shared::event::Reason;
use shared::http::{Fields, Method, Problem, Request, Response, Routes, json_object, merge};
use uuid::Uuid;

use crate::store;

/// The largest balance. Checked here, not by the table: a refund must not be refusable.
const BALANCE: i64 = 1_000_000_000_000_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountView {
    user_name: String,
    balance: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PaymentView {
    order_id: Uuid,
    user_name: Option<String>,
    amount: Option<i64>,
    status: &'static str,
    reason: Option<Reason>,
    created_at: String,
    updated_at: String,
}

/// `PUT` and `GET /accounts/{userName}`, `GET /payments/{orderId}`.
pub fn routes(routes: Routes, pool: Pool) -> Routes {
    let pool = Arc::new(pool);
    routes
        .route_on(&pool, Method::Put, "/accounts/{userName}", set_balance)
        .route_on(&pool, Method::Get, "/accounts/{userName}", balance)
        .route_on(&pool, Method::Get, "/payments/{orderId}", payment)
}

fn set_balance(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&[])?;
    let (user_name, balance) = merge(request.name_param("userName"), new_balance(request))?;
    let created = pool.once(|session| store::set_balance(session, &user_name, balance))?;
    Ok(Response::json(
        if created { 201 } else { 200 },
        &AccountView { user_name, balance },
    ))
}

fn new_balance(request: &Request) -> Result<i64, Problem> {
    let mut fields = Fields::new(json_object(request)?);
    let balance = fields.integer("balance", 0..=BALANCE);
    fields.finish(|| balance)
}

fn balance(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&[])?;
    let user_name = request.name_param("userName")?;
    let found = pool.with(|session| store::find_balance(session, &user_name))?;
    let balance =
        found.ok_or_else(|| Problem::new(404, format!("there is no account {user_name}")))?;
    Ok(Response::json(200, &AccountView { user_name, balance }))
}

fn payment(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&[])?;
    let order_id = request.uuid_param("orderId")?;
    let found = pool.with(|session| store::find(session, order_id))?;
    let (payment, created_at, updated_at) = found
        .ok_or_else(|| Problem::new(404, format!("payment has not heard of order {order_id}")))?;
    let (user_name, amount) = payment.terms.unzip();
    let status = payment.status.name();
    Ok(Response::json(
        200,
        &PaymentView {
            order_id,
            user_name,
            amount,
            status,
            reason: payment.reason,
            created_at,
            updated_at,
        },
    ))
}
