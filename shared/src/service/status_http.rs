//! What an operator and an orchestrator ask, the same on every service. None of it waits for a server.

use serde::Serialize;

use crate::event::Service;
use crate::http::{Method, Response, Routes};
use crate::service::monitor::StatusBoard;
use crate::{heartbeat, metrics};

/// Prometheus's text format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Serialize)]
struct Health {
    status: &'static str,
    reasons: Vec<String>,
}

/// Adds `GET /healthz`, `GET /readyz`, `GET /metrics` and `GET /overview` to `routes`. The first three pass over parameters: probes
/// and scrapers send those of other programs (`verbose`, `name[]`), and a refusal would read as a failure.
pub fn routes(routes: Routes, service: Service, board: StatusBoard) -> Routes {
    let (ready, measured, seen) = (board.clone(), board.clone(), board);
    routes
        .route(Method::Get, "/healthz", move |_| {
            Ok(health(heartbeat::stalled()))
        })
        .always()
        .route(Method::Get, "/readyz", move |_| Ok(health(ready.reasons())))
        .always()
        .route(Method::Get, "/metrics", move |_| Ok(metrics(&measured)))
        .always()
        .route(Method::Get, "/overview", move |request| {
            request
                .query
                .allow_only(&[])
                .map(|()| Response::json(200, &seen.overview(service)))
        })
        .always()
}

fn health(reasons: Vec<String>) -> Response {
    let (code, status) = match reasons.is_empty() {
        true => (200, "ok"),
        false => (503, "failing"),
    };
    Response::json(code, &Health { status, reasons })
}

fn metrics(board: &StatusBoard) -> Response {
    let text = metrics::text(board.reasons().is_empty(), &heartbeat::ages());
    Response::new(200, METRICS, text.into_bytes())
}
