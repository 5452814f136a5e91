//! The parked records over HTTP, the same on every service.

use std::sync::Arc;

use postgres::error::SqlState;
use serde::Serialize;

use crate::dead_letter::{self, Summary};
use crate::error::Error;
use crate::handler::Handler;
use crate::http::{Method, Problem, Response, Routes};
use crate::pool::Pool;
use crate::replay::{self, Replay};
use crate::wake::Waker;

/// Seconds after which a client may repeat what failed for want of the database.
const RETRY_AFTER: u32 = 2;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    dead_letters: Vec<Summary>,
    /// What to pass as `before` for the next page; null: there is none.
    next: Option<i64>,
}

/// Adds `GET /dead-letters`, `GET /dead-letters/{id}` and `POST /dead-letters/{id}/replay` to `routes`.
pub fn routes(
    routes: Routes,
    pool: Pool,
    prefix: String,
    waker: Waker,
    handler: Arc<dyn Fn() -> Box<dyn Handler> + Send + Sync>,
) -> Routes {
    let (list, find) = (pool.clone(), pool.clone());
    routes
        .answer(Method::Get, "/dead-letters", move |request| {
            request.query.only(&["limit", "before"])?;
            let limit = request.query.integer("limit", 1..=200)?.unwrap_or(50);
            let before = request.query.integer("before", 1..=i64::MAX)?;
            let found = list.with(|session| dead_letter::list(session, before, limit)).map_err(problem)?;
            let next = found.last().filter(|_| found.len() as i64 == limit).map(|last| last.id);
            Ok(Response::json(200, &Page { dead_letters: found, next }))
        })
        .answer(Method::Get, "/dead-letters/{id}", move |request| {
            let id = request.integer_param("id", 1..=i64::MAX)?;
            let found = find.with(|session| dead_letter::find(session, id)).map_err(problem)?;
            Ok(Response::json(200, &found.ok_or_else(|| unknown(id))?))
        })
        .answer(Method::Post, "/dead-letters/{id}/replay", move |request| {
            let id = request.integer_param("id", 1..=i64::MAX)?;
            let replayed = pool.with(|session| replay::replay(session, &prefix, &mut *handler(), id));
            let replay = replayed.map_err(problem)?.ok_or_else(|| unknown(id))?;
            if replay == Replay::Applied {
                waker.wake();
            }
            Ok(Response::json(200, &replay))
        })
}

fn unknown(id: i64) -> Problem {
    Problem::new(404, format!("there is no dead letter {id}"))
}

/// The answer when a request could not be served for the database's sake: the client may repeat it.
pub fn problem(error: Error) -> Problem {
    log::warn!("a request failed: {error}");
    match &error {
        Error::Database(cause) if cause.code() == Some(&SqlState::QUERY_CANCELED) => {
            Problem::unavailable("the database took too long; repeat the request", RETRY_AFTER)
        }
        Error::Database(cause) if cause.code().is_some_and(|code| matches!(&code.code()[..2], "22" | "23")) => {
            Problem::new(500, "the request could not be stored; nothing was changed")
        }
        _ => Problem::unavailable("the database is not there; repeat the request", RETRY_AFTER),
    }
}
