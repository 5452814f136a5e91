//! Orders settled long ago: rows made by SQL, as the services leave them.

use harness::Service;

use crate::books::said;
use crate::stage::Stage;

/// 2026-01-01 in milliseconds since 1970: ids sort before those of new orders.
const BEGIN: &str = "1767225600000";

/// Puts completed orders into all three databases, with what they took; money and stock stay conserved.
///
/// # Errors
/// What PostgreSQL says.
pub fn put_in(stage: &mut Stage, orders: usize) -> Result<(), String> {
    let (users, items) = (stage.names.users, stage.names.items);
    // a version 7 id of each order's millisecond, the same in all databases
    let rows = format!(
        "select (lpad(to_hex({BEGIN} + n), 12, '0') || '7' || lpad(to_hex(n & 4095), 3, '0') || '8' || left(md5(n::text), 15))::uuid as order_id,
                'user-' || n % {users} as user_name, 'item-' || n / 3 % {items} as item_name,
                100 + n % 900 as price, 1 + n % 5 as quantity, to_timestamp(({BEGIN} + n) / 1000.0) as at
           from generate_series(0, {orders} - 1) as n"
    );
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let of_order = format!(
        "insert into orders select order_id, user_name, item_name, price, quantity, 'COMPLETED', 'COMPLETED', 'COMPLETED',
                null, null, '{traceparent}', at, at from ({rows}) r"
    );
    let of_payment = effects(
        &rows,
        [
            "payment",
            "amount",
            "price",
            "account",
            "user_name",
            "balance",
        ],
    );
    let of_stock = effects(
        &rows,
        [
            "reservation",
            "quantity",
            "quantity",
            "item",
            "item_name",
            "quantity",
        ],
    );
    let all = [
        (Service::Order, of_order),
        (Service::Payment, of_payment),
        (Service::Stock, of_stock),
    ];
    for (service, statements) in all {
        // what was written is out of the way before anything is measured
        let statements = [statements.as_str(), "vacuum analyze", "checkpoint"];
        let client = stage.books.of(service);
        statements
            .iter()
            .try_for_each(|statements| client.batch_execute(statements))
            .map_err(said)?;
    }
    Ok(())
}

fn effects(rows: &str, [table, amount, of_order, source, name, left]: [&str; 6]) -> String {
    format!(
        "insert into {table} (order_id, {name}, {amount}, status, created_at, updated_at)
            select order_id, {name}, {of_order}, 'COMPLETED', at, at from ({rows}) r;
         update {source} s set {left} = {left} - taken
           from (select {name}, sum({amount}) as taken from {table} group by 1) t where s.{name} = t.{name}"
    )
}
