//! Reads and removes the rows of the table `order_flow`. They are counted up by the statements that place and settle orders
//! (`place_new_orders`, [`crate::store::flow`]).

use shared::db::{Query, Session};
use shared::error::Result;

use super::estimate::Second;
use crate::store::unsettled_in_second;

/// The seconds from `horizon` on, oldest first, and how many sessions have placed orders since `recent`.
pub fn read(session: &mut Session, horizon: i64, recent: i64) -> Result<(Vec<Second>, i64)> {
    let rows = session.query(
        "select second, sum(placed)::bigint, sum(settled)::bigint,
                count(*) filter (where placed > 0 and second >= $2)
           from order_flow where second >= $1 group by second order by second",
        &[&horizon, &recent],
    )?;
    let seconds = rows.iter().map(|row| Second {
        second: row.get(0),
        placed: row.get(1),
        settled: row.get(2),
    });
    Ok((
        seconds.collect(),
        rows.iter().map(|row| row.get(3)).max().unwrap_or(0),
    ))
}

/// Removes seconds that nothing can be added to any more, older than `closed`: all their orders are settled, or they are
/// older than `horizon`, younger ones are settled, and none of them waits to be published
/// ([`crate::store::give_up_forgotten`] looks for those by their seconds).
pub fn remove_passed(session: &mut Session, closed: i64, horizon: i64) -> Result<()> {
    let sql = format!(
        "delete from order_flow where (second, session) in (
             select f.second, f.session
               from (select second, sum(placed) as placed, sum(settled) as settled,
                            max(case when sum(settled) * 2 > sum(placed) then second end) over () as head
                       from order_flow group by second) as total
               join order_flow f using (second)
              where second < $1
                and (total.placed <= total.settled
                     or second < least($2, head) and not exists (
                            select from orders o where {}))
              order by f.second, f.session limit 1000 for update of f skip locked)",
        unsettled_in_second()
    );
    session.execute(&sql, &[&closed, &horizon]).map(drop)
}
