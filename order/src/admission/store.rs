//! All SQL of the table `order_flow`. It is counted up by the statements that place and settle orders
//! (`place_new_orders`, [`crate::store`]): a batch makes no further one.

use std::collections::BTreeMap;

use shared::db::{Query, Session};
use shared::error::Result;
use uuid::Uuid;

use super::estimate::Second;
use crate::store::unsettled_in_second;

/// Counts settled orders: the parameters $7 and $8 are seconds and how many orders of each are settled.
pub const COUNT_SETTLED: &str = "
    insert into order_flow (second, session, settled)
    select second, pg_backend_pid(), settled from unnest($7::bigint[], $8::bigint[]) as done (second, settled)
    on conflict (second, session) do update set settled = order_flow.settled + excluded.settled";

/// How many of these orders belong to which second: the parameters of [`COUNT_SETTLED`].
pub fn by_second(settled: &[Uuid]) -> (Vec<i64>, Vec<i64>) {
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    for order_id in settled {
        *counts.entry(second_of(*order_id)).or_default() += 1;
    }
    counts.into_iter().unzip()
}

/// The second in which an order's id was drawn, as `place_new_orders` reads it: the first 48 bits are milliseconds.
fn second_of(order_id: Uuid) -> i64 {
    (order_id.as_u128() >> 80) as i64 / 1_000
}

/// The seconds from `horizon` on, oldest first, and how many sessions have placed orders since `recent`.
///
/// # Errors
/// What PostgreSQL says.
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
///
/// # Errors
/// What PostgreSQL says.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_counted_by_the_second_in_which_their_ids_were_drawn() {
        let at = |millis: u128| Uuid::from_u128(millis << 80 | 7 << 76);
        let settled = [
            at(1_795_602_030_999),
            at(1_795_602_031_000),
            at(1_795_602_030_000),
        ];
        assert_eq!(
            by_second(&settled),
            (vec![1_795_602_030, 1_795_602_031], vec![2, 1])
        );
        assert_eq!(by_second(&[]), (vec![], vec![]));
    }
}
