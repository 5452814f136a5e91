//! All SQL of the table `dead_letter_action`: who did what to which parked record when, and what came of it.

use serde::Serialize;

use crate::db::{Query, Tx};
use crate::dead_letter::scrubbed;
use crate::error::Result;

/// What can be done about a parked record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Handed to the handler again.
    Replay,
    /// Given up, with a reason.
    Discard,
}

crate::names! { ActionKind: Replay = "REPLAY", Discard = "DISCARD" }

/// A part of a parked record's history.
#[derive(Debug, Serialize)]
pub struct Action {
    /// RFC 3339.
    pub at: String,
    /// Who, as the request named them.
    pub actor: String,
    /// [`ActionKind::name`].
    pub action: String,
    /// `APPLIED`, `UNCHANGED`, `FAILED`; `DISCARDED`.
    pub result: String,
    /// Why it changed nothing or failed, or the reason for discarding.
    pub detail: Option<String>,
}

/// Adds to a parked record's history, in the transaction that does it.
pub fn note(
    tx: &mut Tx<'_>,
    id: i64,
    actor: &str,
    kind: ActionKind,
    result: &str,
    detail: Option<&str>,
) -> Result<()> {
    tx.execute(
        "insert into dead_letter_action (dead_letter_id, actor, action, result, detail) values ($1, $2, $3, $4, $5)",
        &[&id, &actor, &kind.name(), &result, &detail.map(scrubbed)],
    )?;
    Ok(())
}

/// A parked record's history, the oldest first.
pub fn read_history(session: &mut impl Query, id: i64) -> Result<Vec<Action>> {
    let sql = r#"select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), actor, action, result, detail
                   from dead_letter_action a where dead_letter_id = $1 order by a.id"#;
    Ok(session.query(sql, &[&id])?.iter().map(action).collect())
}

fn action(row: &postgres::Row) -> Action {
    Action {
        at: row.get(0),
        actor: row.get(1),
        action: row.get(2),
        result: row.get(3),
        detail: row.get(4),
    }
}
