//! What the statements that settle orders count in the table `order_flow`: a batch makes no further one.

use std::collections::BTreeMap;

use uuid::Uuid;

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
