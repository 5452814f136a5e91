//! A batch in two statements: one reads without locks, the other commits all that was decided on it.
//!
//! ```text
//! under locks   BEGIN, move offsets, place, lock ── decide ── write, append, COMMIT     7 round trips
//! at once       read ── decide ── move offsets, write what is as it was read, append    2
//! ```
//!
//! At light load a batch is an order or two, and the round trips are what it costs. So a handler may decide on rows that
//! it has read without locks ([`Handler::handle_at_once`](crate::handler::Handler::handle_at_once)). The statement that
//! commits compares each row that it changes with what was read, and moves the offsets by compare-and-set. Where
//! anything differs, `require_unchanged` (`sql/common`) raises an error, which undoes all of it, and the batch is
//! handled under locks. A lost answer leaves the same doubt as that of a COMMIT, and the offsets end it in the same way.
//!
//! Why a row that was read and is not changed need not be compared: all rows were read by one statement, so the batch
//! is as good as handled at that moment, when those that it changes were the same as now.
//!
//! The parts are evaluated in the order of locks: offsets, the handler's rows in the order that it names them, the append
//! lock. The row of `moved` comes first, then the columns from left to right; an effect is made when its rows are
//! counted.
//!
//! **Must not be changed**: every value that decided about a change is compared, and every count is required.

use std::time::{Duration, Instant};

use postgres::error::SqlState;
use uuid::Uuid;

use crate::consumer::offsets::{self, Move};
use crate::db::{Params, Query, Session};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::outbox::wake::Waker;
use crate::outbox::{self, APPENDED, Appended};

/// After a conflict batches are handled under locks for so long: what others write just now, they write again.
const REST: Duration = Duration::from_millis(100);

/// When batches may be handled at once.
#[derive(Default)]
pub struct Contention {
    until: Option<Instant>,
}

impl Contention {
    /// Whether the last conflict was long enough ago.
    pub fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    /// Somebody has changed what was read.
    pub fn met(&mut self) {
        self.until = Some(Instant::now() + REST);
    }
}

/// What a handler's statement changes.
pub struct Effect<'a> {
    /// The name of a common table expression that returns a row for each row it touches.
    pub name: &'a str,
    /// Its statement, which touches a row only where it is as it was read.
    pub sql: &'a str,
    /// How many rows it must touch; none: any number, also without looking.
    pub rows: Option<usize>,
}

/// One batch that is to be read without locks and committed by one statement.
pub struct AtOnce<'a> {
    session: &'a mut Session,
    moves: &'a [Move],
    waker: &'a Waker,
    contention: &'a mut Contention,
}

impl AtOnce<'_> {
    /// `moves`: the offsets of the batch; `waker` is called after a commit that appended; `contention` keeps that a row was no
    /// longer as it was read.
    pub fn new<'a>(
        session: &'a mut Session,
        moves: &'a [Move],
        waker: &'a Waker,
        contention: &'a mut Contention,
    ) -> AtOnce<'a> {
        AtOnce {
            session,
            moves,
            waker,
            contention,
        }
    }

    /// For what is read.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }

    /// Moves the offsets, makes the effects, whose parameters are `params`, and appends `outgoing`. Returns false where a
    /// row is no longer as it was read: nothing was changed.
    ///
    /// # Errors
    /// What PostgreSQL says: nothing was changed, or (connection lost) it is unknown.
    pub fn commit(
        &mut self,
        effects: &[Effect<'_>],
        params: Params<'_>,
        outgoing: &[Event],
    ) -> Result<bool> {
        let counts: Vec<i64> = effects
            .iter()
            .filter_map(|effect| Some(effect.rows? as i64))
            .collect();
        let (order_ids, messages): (Vec<Uuid>, Vec<String>) =
            outgoing.iter().map(outbox::stored).unzip();
        let rows = offsets::with_columns(self.moves, |moves| {
            let mut all = [params, moves].concat();
            counts.iter().for_each(|count| all.push(count));
            if !outgoing.is_empty() {
                all.push(&order_ids);
                all.push(&messages);
            }
            let sql = statement(effects, params.len(), !outgoing.is_empty());
            self.session.query(&sql, &all)
        });
        let rows = match rows {
            Err(Error::Database(error))
                if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) =>
            {
                self.contention.met();
                return Ok(false);
            }
            done => done?,
        };
        offsets::note_places(self.moves, rows[0].get(0));
        if !outgoing.is_empty() {
            let appended = Appended::read(&rows[0], rows[0].len() - 1);
            self.waker
                .wake(appended.as_ref(), order_ids.into_iter().zip(messages));
        }
        Ok(true)
    }
}

/// The parameters: those of the effects, six of the offsets, a count for each effect that has one, two of what is appended.
fn statement(effects: &[Effect<'_>], params: usize, appends: bool) -> String {
    let mut sql = "with ".to_string();
    for Effect {
        name, sql: effect, ..
    } in effects
    {
        sql += &format!("{name} as ({effect}), ");
    }
    let mut next = params;
    let mut place = || {
        next += 1;
        format!("${next}")
    };
    let moves: Vec<String> = (0..6).map(|_| place()).collect();
    sql += &format!(
        "moved as materialized (select move_offsets({}) as places)
         select places, require_unchanged(cardinality(array_remove(places, null)), cardinality(places))",
        moves.join(", ")
    );
    for effect in effects.iter().filter(|effect| effect.rows.is_some()) {
        sql += &format!(
            ", require_unchanged((select count(*) from {}), {})",
            effect.name,
            place()
        );
    }
    if appends {
        sql += &format!(", append_outbox({}, {}), {APPENDED}", place(), place());
    }
    sql + " from moved"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_come_first_then_the_effects_in_their_order_then_the_append() {
        let effects = [
            Effect {
                name: "noted",
                sql: "insert into a select $1",
                rows: None,
            },
            Effect {
                name: "taken",
                sql: "update b set c = $2 returning c",
                rows: Some(1),
            },
        ];
        let sql = statement(&effects, 2, true);
        let words: Vec<&str> = sql.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "with noted as (insert into a select $1), taken as (update b set c = $2 returning c), \
             moved as materialized (select move_offsets($3, $4, $5, $6, $7, $8) as places) \
             select places, require_unchanged(cardinality(array_remove(places, null)), cardinality(places)), \
             require_unchanged((select count(*) from taken), $9), append_outbox($10, $11), \
             current_setting('saga.appended', true) from moved"
        );
    }
}
