//! A batch that was decided on what was read without locks: what has changed until it is committed is neither overwritten nor passed
//! over. A person's transaction changes a row after the service has read it, and is committed when the service waits for it.

use harness::{Service, World, until};
use postgres::Client;
use uuid::Uuid;

/// Waits until the one statement that commits a batch waits for a lock. (Its end is not shown: it is long.)
fn wait_for_statement(world: &World, service: Service) {
    let sql = "select count(*) from pg_stat_activity
                where datname = $1 and wait_event_type = 'Lock' and query ~ '^with (placed|changed) as'";
    let database = world.database(service);
    until("the batch's statement to wait", || {
        let row = world.db(service).query_one(sql, &[&database]).unwrap();
        row.get::<_, i64>(0) >= 1
    });
}

/// Changes rows as a person does who has not committed yet.
fn change<'a>(db: &'a mut Client, sql: &str) -> postgres::Transaction<'a> {
    let mut open = db.transaction().unwrap();
    open.batch_execute(sql).unwrap();
    open
}

#[test]
fn a_balance_and_a_quantity_that_change_after_they_were_read_are_not_overwritten() {
    let world = World::new("at_once_taken");
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 100);
    let changes = [
        (
            Service::Payment,
            "update account set balance = balance - 400, deposited = deposited - 400",
        ),
        (
            Service::Stock,
            "update item set quantity = quantity - 40, deposited = deposited - 40",
        ),
    ];
    for (service, sql) in changes {
        let mut person = world.db(service);
        let open = change(&mut person, sql);
        let order_id = order_service.api().place("ann", "tea", 10, 1);
        wait_for_statement(&world, service);
        open.commit().unwrap();
        let order = order_service.api().settled(order_id);
        assert_eq!(order["orderStatus"], "COMPLETED");
    }
    assert_eq!(payment.api().balance("ann"), 580);
    assert_eq!(stock.api().quantity("tea"), 58);
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn an_order_that_fails_after_it_was_read_for_an_answer_stays_failed_and_is_given_back() {
    let world = World::new("at_once_failed");
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 100);
    assert!(payment.stop().success() && stock.stop().success());
    let order_id = order_service.api().place("ann", "tea", 10, 1);
    world.wait_until_published(Service::Order);
    // as another instance's deadline does
    let mut person = world.db(Service::Order);
    let open = change(
        &mut person,
        "update orders set order_status = 'FAILED', payment_status = 'COMPENSATING', stock_status = 'COMPENSATING',
                           reason_code = 'DEADLINE', reason_from = 'order';
         insert into deadline (due_at, round, order_ids) select now(), 1, array_agg(order_id) from orders",
    );
    // both at once: the first answer's statement waits for the row for five seconds only
    let [payment, stock] =
        [Service::Payment, Service::Stock].map(|service| world.launch(service, &[]));
    wait_for_statement(&world, Service::Order);
    open.commit().unwrap();
    payment.wait_until_ready();
    stock.wait_until_ready();
    let order = order_service.api().settled(order_id);
    assert_eq!(
        ["orderStatus", "paymentStatus", "stockStatus"].map(|field| order[field].clone()),
        ["FAILED", "COMPENSATED", "COMPENSATED"]
    );
    assert_eq!(payment.api().balance("ann"), 1_000);
    assert_eq!(stock.api().quantity("tea"), 100);
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn a_batch_whose_offsets_were_moved_after_it_was_read_has_no_effect() {
    let world = World::new("at_once_moved");
    let [order_service, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 100);
    let api = order_service.api();
    assert_eq!(
        api.settled(api.place("ann", "tea", 10, 1))["orderStatus"],
        "COMPLETED"
    );
    // as another consumer does that has handled the record
    let mut person = world.db(Service::Payment);
    let mut open = change(
        &mut person,
        "update consumer_offset set next_offset = next_offset + 1 where topic like '%payment'",
    );
    let passed_over = api.place("ann", "tea", 10, 1);
    wait_for_statement(&world, Service::Payment);
    let records = world.records("payment");
    let key = Some(passed_over.to_string());
    let record = records.iter().find(|record| record.key == key).unwrap();
    open.execute(
        "update consumer_offset set next_offset = next_offset - 1 where topic like '%payment' and partition <> $1",
        &[&record.partition],
    )
    .unwrap();
    open.commit().unwrap();
    let later: Vec<Uuid> = (0..12).map(|_| api.place("ann", "tea", 10, 1)).collect();
    for order_id in later {
        assert_eq!(api.settled(order_id)["orderStatus"], "COMPLETED");
    }
    assert_eq!(payment.api().balance("ann"), 870);
    let sql = "select count(*) from payment where order_id = $1";
    let row = world.db(Service::Payment).query_one(sql, &[&passed_over]);
    assert_eq!(row.unwrap().get::<_, i64>(0), 0);
}
