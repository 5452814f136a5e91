//! The parked records over HTTP, the same on every service.

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;

use crate::db::pool::Pool;
use crate::dead_letter::action;
use crate::dead_letter::replay::{self, Ask, Replayer, Verdict};
use crate::dead_letter::replay_many::{AskMany, Replays, replay_many};
use crate::dead_letter::view::Detail;
use crate::dead_letter::{self, Filter, LetterState, Summary};
use crate::error::{Cause, Error};
use crate::handler::Handler;
use crate::http::{
    Fields, Method, Problem, QueryString, Request, Response, Routes, json_object, merge,
};
use crate::outbox::wake::Waker;

/// The numbers of parked records.
const IDS: RangeInclusive<i64> = 1..=i64::MAX;
/// How many of them one request lists or replays, and how many if it does not say.
const LIMIT: RangeInclusive<i64> = 1..=200;
const USUAL_LIMIT: i64 = 50;
/// Kafka's limit for the name of a topic.
const TOPIC_LENGTH: RangeInclusive<usize> = 1..=249;
/// The characters of the reason for discarding, at most: a sentence or two.
const REASON_LENGTH: usize = 500;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    dead_letters: Vec<Summary>,
    /// What to pass as `before` for the next page; null: there is none.
    next: Option<i64>,
}

struct Calls {
    pool: Pool,
    replayer: Replayer,
}

/// Adds the calls about parked records to `routes`: list, look, replay one or many, discard.
pub fn routes(
    routes: Routes,
    pool: Pool,
    prefix: String,
    waker: Waker,
    handler: Arc<dyn Fn() -> Box<dyn Handler> + Send + Sync>,
) -> Routes {
    let calls = Arc::new(Calls {
        pool,
        replayer: Replayer {
            prefix,
            handler,
            waker,
        },
    });
    routes
        .route_on(&calls, Method::Get, "/dead-letters", Calls::list)
        .route_on(&calls, Method::Get, "/dead-letters/{id}", Calls::show)
        .route_on(
            &calls,
            Method::Post,
            "/dead-letters/replay",
            Calls::replay_many,
        )
        .route_on(
            &calls,
            Method::Post,
            "/dead-letters/{id}/replay",
            Calls::replay,
        )
        .route_on(
            &calls,
            Method::Post,
            "/dead-letters/{id}/discard",
            Calls::discard,
        )
}

impl Calls {
    fn list(&self, request: &Request) -> Result<Response, Problem> {
        let query = &request.query;
        let known = query.allow_only(&["state", "cause", "topic", "orderId", "limit", "before"]);
        let page = merge(limit(query), query.integer("before", IDS));
        let (_, ((state, filter), (limit, before))) =
            merge(known, merge(merge(state(query), self.filter(query)), page))?;
        let filter = Filter { state, ..filter };
        let found = self
            .pool
            .with(|session| dead_letter::list(session, &filter, before, limit))?;
        let next = found
            .last()
            .filter(|_| found.len() as i64 == limit)
            .map(|last| last.id);
        Ok(Response::json(
            200,
            &Page {
                dead_letters: found,
                next,
            },
        ))
    }

    fn show(&self, request: &Request) -> Result<Response, Problem> {
        let (id, ()) = merge(id(request), request.query.allow_only(&[]))?;
        let (kept, history) = self.pool.with(|session| {
            Ok((
                dead_letter::find(session, id)?,
                action::read_history(session, id)?,
            ))
        })?;
        Ok(Response::json(
            200,
            &Detail::new(kept.ok_or_else(|| unknown(id))?, history),
        ))
    }

    fn replay(&self, request: &Request) -> Result<Response, Problem> {
        without_body(request)?;
        let query = merge(
            request.query.allow_only(&["force"]),
            request.query.flag("force"),
        );
        let ((id, (_, force)), actor) = merge(merge(id(request), query), request.actor())?;
        let ask = Ask {
            id,
            actor: &actor,
            force,
            dry_run: false,
            wait: true,
        };
        let verdict = self
            .pool
            .once(|session| self.replayer.replay(session, &ask))?;
        Ok(Response::json(200, &done(id, verdict)?))
    }

    fn replay_many(&self, request: &Request) -> Result<Response, Problem> {
        without_body(request)?;
        let query = &request.query;
        let known = query.allow_only(&["cause", "topic", "orderId", "limit", "after", "dryRun"]);
        let page = merge(
            limit(query),
            merge(query.integer("after", IDS), query.flag("dryRun")),
        );
        let (_, (filter, (limit, (after, dry_run)))) =
            merge(known, merge(self.filter(query), page))?;
        let actor = request.actor()?;
        let ask = AskMany {
            filter,
            after: after.unwrap_or(0),
            limit,
            actor: &actor,
            dry_run,
        };
        let (done, end) = replay_many(&self.pool, &self.replayer, &ask);
        end.map_err(|error| interrupted(&done, &error))?;
        Ok(Response::json(200, &done))
    }

    fn discard(&self, request: &Request) -> Result<Response, Problem> {
        let (id, ()) = merge(id(request), request.query.allow_only(&[]))?;
        let (reason, actor) = merge(reason(request), request.actor())?;
        let verdict = self
            .pool
            .once(|session| replay::discard(session, id, &actor, &reason))?;
        done(id, verdict)?;
        let result = LetterState::Discarded;
        Ok(Response::json(
            200,
            &serde_json::json!({ "result": result }),
        ))
    }

    fn filter(&self, query: &QueryString) -> Result<Filter, Problem> {
        let (cause, (topics, order_id)) = merge(
            cause(query),
            merge(self.topics(query), query.uuid("orderId")),
        )?;
        Ok(Filter {
            state: None,
            cause,
            topics,
            order_id,
        })
    }

    /// A topic may be named as the contract does, or as Kafka does: with the installation's prefix.
    fn topics(&self, query: &QueryString) -> Result<Option<Vec<String>>, Problem> {
        let Some(name) = query.get("topic") else {
            return Ok(None);
        };
        if !TOPIC_LENGTH.contains(&name.len())
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        {
            return Err(Problem::field("topic", "must be the name of a topic"));
        }
        Ok(Some(vec![
            name.into(),
            format!("{}{name}", self.replayer.prefix),
        ]))
    }
}

/// What stands in a body would be passed over: a `dryRun`, say.
fn without_body(request: &Request) -> Result<(), Problem> {
    let sentence =
        "a replay takes no body: give cause, topic, orderId, dryRun, force, … in the query";
    if request.body.is_empty() {
        Ok(())
    } else {
        Err(Problem::new(422, sentence))
    }
}

fn id(request: &Request) -> Result<i64, Problem> {
    request.integer_param("id", IDS)
}

fn limit(query: &QueryString) -> Result<i64, Problem> {
    Ok(query.integer("limit", LIMIT)?.unwrap_or(USUAL_LIMIT))
}

fn state(query: &QueryString) -> Result<Option<LetterState>, Problem> {
    query.one_of(
        "state",
        LetterState::from_name,
        &LetterState::ALL.map(LetterState::name),
    )
}

fn cause(query: &QueryString) -> Result<Option<Cause>, Problem> {
    query.one_of("cause", Cause::from_name, &Cause::ALL.map(Cause::name))
}

fn reason(request: &Request) -> Result<String, Problem> {
    let mut fields = Fields::new(json_object(request)?);
    let reason = fields.text("reason", REASON_LENGTH);
    fields.finish(|| reason)
}

fn done<T>(id: i64, verdict: Verdict<T>) -> Result<T, Problem> {
    match verdict {
        Verdict::Done(done) => Ok(done),
        Verdict::Refused(why) => Err(Problem::new(409, why)),
        Verdict::Unknown => Err(unknown(id)),
    }
}

/// What was done stays done, and is in the records' histories.
fn interrupted(done: &Replays, error: &Error) -> Problem {
    log::warn!("replaying dead letters ended early: {error}");
    let (replayed, skipped) = (done.replayed.len(), done.skipped.len());
    let story = format!(
        "{replayed} of {} dead letters were replayed, {skipped} skipped",
        done.matched
    );
    Problem::unavailable(
        format!("{}; {story}; repeat the request", error.for_clients()),
        Problem::RETRY_AFTER,
    )
}

fn unknown(id: i64) -> Problem {
    Problem::new(404, format!("there is no dead letter {id}"))
}
