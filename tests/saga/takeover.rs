//! Of several copies of an installation's databases one may use its topics: the one that wrote last. Any other is refused,
//! until an operator says that it takes over; then the former is. A standby that was promoted goes on by itself.

use harness::{Instance, Message, Replicated, Service, World, eventually, until};
use postgres::{Client, NoTls};
use serde_json::json;
use uuid::Uuid;

const REFUSED: &str = "database is not the one that wrote last";

fn admin() -> Client {
    Client::connect(&harness::env::database_url("postgres"), NoTls).expect("the test PostgreSQL")
}

/// Another world with the same topics, and with copies of these databases, whose services must be stopped.
fn cloned(world: &World, name: &str) -> World {
    let clone = World::with(name, &[("TOPIC_PREFIX", world.prefix())]);
    for service in Service::ALL {
        let (from, to) = (world.database(service), clone.database(service));
        admin()
            .batch_execute(&format!("drop database {to}"))
            .expect("an empty database");
        admin()
            .batch_execute(&format!("create database {to} template {from}"))
            .expect("a copy");
    }
    clone
}

fn stop(instances: &[Instance]) {
    instances
        .iter()
        .for_each(|instance| assert!(instance.stop().success(), "{}", instance.log()));
}

/// A start of the service ends by itself and says why, and so does `--check`.
fn assert_refused(world: &World, service: Service, why: &str) {
    let instance = world.launch(service, &[]);
    assert_eq!(instance.process().exit().code(), Some(1));
    assert_says(&instance.log(), service, why);
    let (code, said) = world.ask(service, &["--check"], &[]);
    assert_eq!(code, 1, "{said}");
    let line = said
        .lines()
        .find(|line| line.starts_with("position: failed: "))
        .unwrap_or_else(|| panic!("{said}"));
    assert_says(line, service, why);
}

fn assert_says(said: &str, service: Service, why: &str) {
    let what_to_do = format!(
        "Stop the other one and run `{} --take-over`",
        service.name()
    );
    for words in [REFUSED, why, &what_to_do, "TOPIC_PREFIX"] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
}

fn assert_nothing_to_take_over(world: &World, service: Service) {
    assert_eq!(
        world.take_over(service),
        "nothing to take over: no other database has written last\n"
    );
}

/// Places an order and waits until its requests are on the topics, and its row is gone.
fn publish(world: &World, order: &Instance) -> Uuid {
    let order_id = order.api().place("ann", "tea", 1, 1);
    until("the order's requests", || {
        world.types_about(order_id) == ["payment.requested", "stock.requested"]
    });
    world.wait_until_published(Service::Order);
    order_id
}

#[test]
fn a_clone_is_refused_until_it_is_taken_over_and_then_the_original_is() {
    let world = World::new("original");
    let all = world.start_all();
    all[1].api().put_balance("ann", 100);
    all[2].api().put_quantity("tea", 100);
    let order_id = all[0].api().place("ann", "tea", 3, 2);
    assert_eq!(all[0].api().settled(order_id)["orderStatus"], "COMPLETED");
    world.wait_until_quiet();
    stop(&all);

    let clone = cloned(&world, "clone");
    for service in Service::ALL {
        assert_refused(&clone, service, "another copy of the same installation");
        let said = clone.take_over(service);
        let taken = "taken over (number 1): what was stored up to 20";
        assert!(
            said.contains("another copy of the same installation") && said.contains(taken),
            "{said}"
        );
        assert_nothing_to_take_over(&clone, service);
        assert_eq!(clone.ask(service, &["--check"], &[]).0, 0);
    }
    let all = clone.start_all();
    let order_id = all[0].api().place("ann", "tea", 30, 20);
    assert_eq!(all[0].api().settled(order_id)["orderStatus"], "COMPLETED");
    assert_eq!(
        (all[1].api().balance("ann"), all[2].api().quantity("tea")),
        (67, 78)
    );
    clone.wait_until_quiet();
    stop(&all);

    for service in Service::ALL {
        assert_refused(&world, service, "which has taken over from it");
    }
    // the way back
    assert!(
        world
            .take_over(Service::Order)
            .contains("taken over (number 2)")
    );
    let order = world.start(Service::Order);
    publish(&world, &order);
    assert_refused(&clone, Service::Order, "which has taken over from it");
}

#[test]
fn an_original_that_still_runs_stops_once_its_clone_has_published() {
    let world = World::new("running");
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[order]);
    let clone = {
        world.start(Service::Payment).stop();
        world.start(Service::Stock).stop();
        cloned(&world, "taker")
    };
    let original = world.start(Service::Order);
    original.wait_for_log("leading: producer");
    clone.take_over(Service::Order);
    let taker = clone.start(Service::Order);
    taker.wait_for_log("leading: producer");
    publish(&clone, &taker);
    let lost = original.api().place("ann", "tea", 1, 1);
    assert_eq!(original.process().exit().code(), Some(1));
    assert_says(
        &original.log(),
        Service::Order,
        "which has taken over from it",
    );
    publish(&clone, &taker);
    assert_eq!(
        world.types_about(lost),
        [""; 0],
        "it is in the original's outbox"
    );
}

#[test]
fn what_the_original_stores_after_it_was_taken_over_from_stops_the_clone() {
    let world = World::new("storedsince");
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[
        order,
        world.start(Service::Payment),
        world.start(Service::Stock),
    ]);
    let clone = cloned(&world, "overtaken");
    clone.take_over(Service::Order);
    // nobody knows yet: the clone has published nothing
    let original = world.start(Service::Order);
    publish(&world, &original);
    stop(&[original]);
    assert_refused(
        &clone,
        Service::Order,
        "from which this one has taken over only what was stored up to 20",
    );
    assert!(
        clone
            .take_over(Service::Order)
            .contains("taken over (number 2)")
    );
    publish(&clone, &clone.start(Service::Order));
    assert_refused(&world, Service::Order, "which has taken over from it");
}

#[test]
fn positions_of_the_version_before_are_read_and_accepted_from_whatever_copy() {
    let world = World::with("oldposition", &[("TOPIC_PARTITIONS", "1")]);
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[
        order,
        world.start(Service::Payment),
        world.start(Service::Stock),
    ]);
    let clone = cloned(&world, "oldclone");
    clone.spoils_messages();
    let sql = "select install_id::text from install";
    let install: String = clone
        .db(Service::Order)
        .query_one(sql, &[])
        .expect("one row")
        .get(0);
    for topic in ["payment", "stock"] {
        let mut message = Message::event(topic, Uuid::now_v7(), "foreign", &json!({}));
        let position = json!({"install": install, "first": 1, "last": 1, "count": 1, "message": Uuid::now_v7()});
        message
            .headers
            .push(("outbox_position".into(), position.to_string().into_bytes()));
        world.produce(&message);
    }
    assert_nothing_to_take_over(&clone, Service::Order);
    let order = clone.start(Service::Order);
    publish(&clone, &order);
    // and now the last ones name the clone
    assert_refused(
        &world,
        Service::Order,
        "another copy of the same installation",
    );
}

#[test]
fn an_installation_of_its_own_and_a_schema_that_is_not_there_are_not_taken_over() {
    let world = World::new("owned");
    let order = world.start(Service::Order);
    publish(&world, &order);
    let foreign = World::with("notowned", &[("TOPIC_PREFIX", world.prefix())]);
    let (code, said) = foreign.ask(Service::Order, &["--take-over"], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.starts_with("failed: the schema lacks ") && said.contains("start order once"),
        "{said}"
    );
    foreign.launch(Service::Order, &[]).process().exit();
    let (code, said) = foreign.ask(Service::Order, &["--take-over"], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.starts_with("failed: Kafka holds the position of another order database"),
        "{said}"
    );
    let taken: i64 = foreign
        .db(Service::Order)
        .query_one("select count(*) from takeover", &[])
        .expect("a count")
        .get(0);
    assert_eq!(taken, 0);
    assert_nothing_to_take_over(&world, Service::Order);
}

#[test]
fn where_the_cluster_may_not_be_identified_a_clone_on_the_same_server_is_refused_all_the_same() {
    let world = World::new("unidentified");
    let user = format!("{}_owner", world.database(Service::Order));
    admin()
        .batch_execute(&format!("create role {user} login password 'owner'"))
        .expect("a role");
    let as_user = |world: &World| {
        let sql = "revoke execute on function pg_control_system(), pg_current_wal_lsn() from public; grant all on schema public to";
        let mut db = world.db(Service::Order);
        db.batch_execute(&format!(
            "{sql} {user}; grant all on all tables in schema public to {user}"
        ))
        .expect("granted");
        let url = world.database_url(Service::Order);
        format!(
            "postgres://{user}:owner@{}",
            url.split_once('@').expect("a password").1
        )
    };
    let url = as_user(&world);
    let order = world.start_with(Service::Order, &[("ORDER_DATABASE_URL", &url)]);
    order.wait_for_log("permission denied for function pg_control_system");
    publish(&world, &order);
    stop(&[
        order,
        world.start(Service::Payment),
        world.start(Service::Stock),
    ]);
    assert_eq!(
        world
            .ask(
                Service::Order,
                &["--check"],
                &[("ORDER_DATABASE_URL", &url)]
            )
            .0,
        0
    );
    // who may read the identifier takes it for the same database
    assert_eq!(world.ask(Service::Order, &["--check"], &[]).0, 0);
    let clone = cloned(&world, "unidentifiedclone");
    let url = as_user(&clone);
    let refused = clone.launch(Service::Order, &[("ORDER_DATABASE_URL", &url)]);
    assert_eq!(refused.process().exit().code(), Some(1));
    assert_says(
        &refused.log(),
        Service::Order,
        "another copy of the same installation",
    );
    for world in [&world, &clone] {
        world
            .db(Service::Order)
            .batch_execute(&format!("drop owned by {user} cascade"))
            .expect("dropped");
    }
    admin()
        .batch_execute(&format!("drop role {user}"))
        .expect("dropped");
}

#[test]
fn an_older_snapshot_of_the_database_stops_a_running_service_and_is_refused_until_it_is_taken_over()
{
    let servers = Replicated::start();
    let world = World::new("snapshot").on(Service::Order, &servers);
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[order]);
    let snapshot = servers.snapshot();
    let order = world.start(Service::Order);
    publish(&world, &order);
    let original = servers.swap(snapshot);
    // with an empty outbox
    assert_eq!(order.process().exit().code(), Some(1));
    assert_says(&order.log(), Service::Order, "of which it is an older copy");
    assert_refused(&world, Service::Order, "of which it is an older copy");
    assert!(
        world
            .take_over(Service::Order)
            .contains("taken over (number 1)")
    );
    assert_nothing_to_take_over(&world, Service::Order);
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[order]);
    let snapshot = servers.swap(original);
    assert_refused(&world, Service::Order, "which has taken over from it");
    drop(snapshot);
}

#[test]
fn of_two_physical_copies_that_have_parted_unseen_one_stops_as_soon_as_both_have_published() {
    let servers = Replicated::start();
    let world = World::new("parted").on(Service::Order, &servers);
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[order]);
    let mut snapshot = servers.snapshot();
    let copy = servers.start_aside(&mut snapshot, &world.database(Service::Order));
    // nothing tells them apart yet: a server that was moved looks like this, too
    let original = world.start(Service::Order);
    original.wait_for_log("leading: producer");
    let copy = world.start_with(Service::Order, &[("ORDER_DATABASE_URL", &copy)]);
    copy.wait_for_log("leading: producer");
    let by_copy = copy.api().place("ann", "tea", 1, 1);
    until("the copy to publish", || {
        world.types_about(by_copy) == ["payment.requested", "stock.requested"]
    });
    // later than what the copy has stored
    let by_original = original.api().place("ann", "tea", 1, 1);
    assert_eq!(original.process().exit().code(), Some(1));
    assert_says(
        &original.log(),
        Service::Order,
        "a physical copy of it, which has published since",
    );
    let next = copy.api().place("ann", "tea", 1, 1);
    until("the copy to go on", || {
        world.types_about(next) == ["payment.requested", "stock.requested"]
    });
    assert_eq!(world.types_about(by_original), [""; 0]);
    assert_refused(&world, Service::Order, "of which it is an older copy");
}

fn lost_tails(order: &Instance) -> usize {
    order
        .log()
        .matches("was promoted (timeline 2) without the tail of the old primary (timeline 1)")
        .count()
}

#[test]
fn a_promoted_standby_goes_on_by_itself_and_the_old_primary_is_refused_until_it_is_taken_over() {
    let servers = Replicated::start();
    let world = World::new("promoted").on(Service::Order, &servers);
    let order = world.start(Service::Order);
    publish(&world, &order);
    servers.lag();
    let lost = publish(&world, &order);
    let old_primary = servers.fail_over();
    // the same process, which nobody has restarted
    order.wait_for_log("without the tail of the old primary");
    publish(&world, &order);
    assert_eq!(lost_tails(&order), 1);
    assert_eq!(order.api().get(&format!("/orders/{lost}")).status, 404);
    assert!(
        order
            .api()
            .get("/metrics")
            .text
            .contains("\nsaga_lost_tails_total 1\n")
    );
    stop(&[order]);
    let (code, said) = world.ask(Service::Order, &["--check"], &[]);
    assert!(code == 0 && said.contains("position: ok\n"), "{said}");
    let order = world.start(Service::Order);
    order.wait_for_log("leading: producer");
    assert_eq!(lost_tails(&order), 0, "it is over");
    stop(&[order]);

    let promoted = servers.swap(old_primary);
    assert_refused(
        &world,
        Service::Order,
        "which was promoted in place of this one",
    );
    assert!(
        world
            .take_over(Service::Order)
            .contains("taken over (number 1)")
    );
    let order = world.start(Service::Order);
    publish(&world, &order);
    stop(&[order]);
    let _old_primary = servers.swap(promoted);
    assert_refused(&world, Service::Order, "which has taken over from it");
}

#[test]
fn a_promoted_standby_that_lost_nothing_says_nothing_of_it() {
    let servers = Replicated::start();
    let world = World::new("complete").on(Service::Order, &servers);
    let order = world.start(Service::Order);
    publish(&world, &order);
    servers.lag();
    servers.lose_tail();
    let next = eventually("the promoted one", || {
        let body = json!({"userName": "ann", "itemName": "tea", "price": 1, "quantity": 1});
        let placed = order.api().post("/orders", &body);
        (placed.status == 202).then(|| {
            placed.json["orderId"]
                .as_str()
                .and_then(|id| id.parse().ok())
        })?
    });
    until("it to be published", || {
        world.types_about(next) == ["payment.requested", "stock.requested"]
    });
    assert!(!order.log().contains("without the tail"), "{}", order.log());
    assert!(
        order
            .api()
            .get("/metrics")
            .text
            .contains("\nsaga_lost_tails_total 0\n")
    );
}
