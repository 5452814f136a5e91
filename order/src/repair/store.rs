//! All SQL of the table `repair`.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use shared::columns;
use shared::db::cleanup::Cleanup;
use shared::db::{Query, Session, Tx};
use shared::error::Result;
use shared::event::{Event, Side};
use uuid::Uuid;

use crate::repair::{Kind, Repair};

/// Lists repairs, and marks their orders as repaired.
pub fn insert(tx: &mut Tx<'_>, repairs: &[Repair]) -> Result<()> {
    if repairs.is_empty() {
        return Ok(());
    }
    tx.execute(
        "with marked as (
             update orders o set repaired = true from unnest($1::uuid[]) as r (order_id)
              where o.order_id = r.order_id and not o.repaired
         )
         insert into repair (order_id, kind, side, message_id, detail, repaired_at, done_at)
         select order_id, kind, side, message_id, detail, clock_timestamp(), case when done then clock_timestamp() end
           from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::bool[]) with ordinality
                as r (order_id, kind, side, message_id, detail, done, place)
          order by place",
        &columns!(repairs, |repair| [
            repair.order_id,
            repair.kind.name(),
            repair.side.map(Side::name),
            repair.message_id,
            &*repair.detail,
            repair.is_done,
        ]),
    )?;
    Ok(())
}

/// Notes the confirmations of these sides: a repair of the side is done, and one of both sides once the order is settled.
pub fn finish(tx: &mut Tx<'_>, confirmed: &[(Uuid, Side, bool)]) -> Result<()> {
    if confirmed.is_empty() {
        return Ok(());
    }
    tx.execute(
        "update repair r set done_at = clock_timestamp()
           from unnest($1::uuid[], $2::text[], $3::bool[]) as c (order_id, side, settled)
          where r.order_id = c.order_id and r.done_at is null and (r.side = c.side or r.side is null and c.settled)",
        &columns!(confirmed, |(order_id, side, settled)| [*order_id, side.name(), *settled]),
    )?;
    Ok(())
}

/// Which of these messages have been handled with a consequence before: those that a timeline or a repair names.
pub fn find_known_messages(tx: &mut Tx<'_>, events: &[Event]) -> Result<HashSet<Uuid>> {
    let rows = tx.query(
        "with asked as materialized (select * from unnest($1::uuid[], $2::uuid[]) as a (order_id, id))
         select t.message_id from asked a join timeline t on t.order_id = a.order_id and t.message_id = a.id
         union
         select r.message_id from asked a join repair r on r.order_id = a.order_id and r.message_id = a.id",
        &columns!(events, |event| [event.order_id, event.id]),
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The sides of these orders that were asked back and have not confirmed.
pub fn find_unconfirmed(tx: &mut Tx<'_>, order_ids: &[Uuid]) -> Result<Vec<(Uuid, Side)>> {
    if order_ids.is_empty() {
        return Ok(vec![]);
    }
    let rows = tx.query(
        "select distinct r.order_id, r.side from unnest($1::uuid[]) as wanted (order_id) join repair r using (order_id)
          where r.done_at is null and r.side is not null order by r.order_id, r.side",
        &[&order_ids],
    )?;
    Ok(rows
        .iter()
        .filter_map(|row| Some((row.get(0), Side::from_name(row.get(1))?)))
        .collect())
}

/// Which repairs are meant: those that all given parts fit.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// What was done.
    pub kind: Option<Kind>,
    /// Of which order.
    pub order_id: Option<Uuid>,
    /// Whether it is done.
    pub is_done: Option<bool>,
}

/// A repair as the list shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its number.
    pub id: i64,
    /// Which order.
    pub order_id: Uuid,
    /// [`Kind::name`].
    pub kind: String,
    /// On whose side; null: on both.
    pub side: Option<String>,
    /// The answer that showed that it was needed.
    pub message_id: Uuid,
    /// The same for a person.
    pub detail: String,
    /// `OPEN`, `DONE`.
    pub state: &'static str,
    /// RFC 3339.
    pub repaired_at: String,
    /// RFC 3339; null: a confirmation is waited for.
    pub done_at: Option<String>,
}

/// The newest repairs that fit before number `before`, `limit` at most. An order's are found by its index, so that filter has a
/// statement of its own.
pub fn list(
    session: &mut Session,
    filter: &Filter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Listed>> {
    let of_order = if filter.order_id.is_some() {
        "order_id = $3"
    } else {
        "$3::uuid is null"
    };
    let sql = format!(
        r#"select id, order_id, kind, side, message_id, detail,
                  to_char(repaired_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                  to_char(done_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
             from repair
            where ($1::text is null or kind = $1) and ($2::bool is null or (done_at is not null) = $2) and {of_order}
              and id < $4 order by id desc limit $5"#
    );
    let kind = filter.kind.map(Kind::name);
    let before = before.unwrap_or(i64::MAX);
    let rows = session.query(
        &sql,
        &[&kind, &filter.is_done, &filter.order_id, &before, &limit],
    )?;
    Ok(rows.iter().map(listed).collect())
}

fn listed(row: &postgres::Row) -> Listed {
    let done_at: Option<String> = row.get(7);
    Listed {
        id: row.get(0),
        order_id: row.get(1),
        kind: row.get(2),
        side: row.get(3),
        message_id: row.get(4),
        detail: row.get(5),
        state: if done_at.is_some() { "DONE" } else { "OPEN" },
        repaired_at: row.get(6),
        done_at,
    }
}

/// Repairs that are counted before it is left at "many".
const MANY: i64 = 10_000;

/// The latest `MANY` repairs by kind, and how many are open, `MANY` at most.
pub fn count(session: &mut Session) -> Result<(Vec<(String, i64)>, i64)> {
    let latest = "select kind, count(*) from (select kind from repair order by id desc limit $1) as latest group by kind";
    let kinds = session
        .query(latest, &[&MANY])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let open =
        "select count(*) from (select from repair where done_at is null limit $1) as counted";
    Ok((kinds, session.query(open, &[&MANY])?[0].get(0)))
}

/// Removes those that were done so long ago. (A message that topics still hold must be known when it comes again.)
pub fn clean_up(retention: Option<Duration>) -> Cleanup {
    let sql = "delete from repair where id in
                   (select id from repair where done_at < clock_timestamp() - $1 * interval '1 millisecond'
                     order by done_at limit $2 for update skip locked)";
    Cleanup {
        what: "repairs",
        retention,
        sql: sql.into(),
    }
}
