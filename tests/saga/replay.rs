//! Every topic replayed from its beginning changes nothing (I3).

use std::collections::BTreeMap;

use harness::{Seen, Service, World};

type Tables = [BTreeMap<String, Vec<String>>; 3];

/// Orders of every end: completed, refused by either side, by both.
fn play(world: &World) {
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let orders = [
        ("ann", "tea", 100, 1),
        ("ann", "tea", 100, 11),
        ("ann", "tea", 5_000, 1),
        ("bob", "gold", 1, 1),
    ];
    let placed =
        orders.map(|(user, item, price, quantity)| order.api().place(user, item, price, quantity));
    let ends = placed.map(|order_id| order.api().settled(order_id)["orderStatus"].clone());
    assert_eq!(ends, ["COMPLETED", "FAILED", "FAILED", "FAILED"]);
    world.wait_until_quiet();
    for instance in [order, payment, stock] {
        assert!(instance.stop().success());
    }
}

fn state(world: &World) -> (Tables, Vec<Seen>) {
    (
        Service::ALL.map(|service| world.tables(service)),
        world.all_records(),
    )
}

fn forget_offsets(world: &World) {
    for service in Service::ALL {
        let forgotten = world
            .db(service)
            .execute("delete from consumer_offset", &[])
            .expect("the table is there");
        assert!(forgotten > 0, "{service:?} had read nothing");
    }
}

#[test]
fn every_topic_replayed_from_its_beginning_changes_nothing() {
    // the row that has a compensation asked again must not come due meanwhile
    let world = World::with(
        "replay",
        &[("COMPENSATION_RETRY", "1h"), ("ORDER_DEADLINE", "1h")],
    );
    play(&world);
    let before = state(&world);
    // 4 payment and 4 stock requests; 4 + 4 answers; one compensation each way with its confirmation
    assert_eq!(before.1.len(), 20, "{:?}", before.1);
    forget_offsets(&world);
    let _services = world.start_all();
    world.wait_until_quiet();
    let after = state(&world);
    assert_eq!(after.0, before.0, "the tables");
    assert_eq!(after.1, before.1, "the topics");
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
}
