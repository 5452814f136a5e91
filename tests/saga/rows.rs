//! What happens to an order: the eight rows of ARCHITECTURE.md, by real messages; compensation before action;
//! deadlines. Every expectation is typed in by hand.

use harness::{Instance, Message, Service, World, eventually, until};
use serde_json::{Value, json};
use uuid::Uuid;

/// One order over 300 for 2 pieces of tea by ann, placed and published while both participants are stopped.
struct Play {
    world: World,
    order: Instance,
    order_id: Uuid,
    participants: Vec<Instance>,
}

/// How a play ends.
struct End {
    /// What order says: the order, its payment side, its stock side.
    order: [&'static str; 3],
    /// Why it failed, and who said so.
    reason: Value,
    /// What payment's and stock's own tables say.
    payment: &'static str,
    reservation: &'static str,
    balance: i64,
    quantity: i64,
    /// The types of all records about the order, topic after topic.
    records: &'static [&'static str],
}

impl Play {
    /// Ann has `balance`, there are `quantity` pieces of tea.
    fn new(name: &str, balance: i64, quantity: i64) -> Play {
        Play::with(name, balance, quantity, &[])
    }

    fn with(name: &str, balance: i64, quantity: i64, settings: &[(&str, &str)]) -> Play {
        let world = World::with(name, settings);
        let [order, payment, stock] = world.start_all();
        payment.api().put_balance("ann", balance);
        stock.api().put_quantity("tea", quantity);
        assert!(payment.stop().success() && stock.stop().success());
        let order_id = order.api().place("ann", "tea", 300, 2);
        let play = Play {
            world,
            order,
            order_id,
            participants: vec![],
        };
        // by its deadline a side may have been asked to compensate already
        until("both requests on their topics", || {
            play.sides().iter().all(|side| side != "READY")
        });
        play
    }

    fn start(&mut self, participant: Service) {
        self.participants.push(self.world.start(participant));
    }

    fn sides(&self) -> [String; 2] {
        let order = self.order.api().order(self.order_id);
        ["paymentStatus", "stockStatus"]
            .map(|side| order[side].as_str().expect("a status").to_string())
    }

    /// Waits until GET shows the order with these statuses, not settled.
    fn shows(&self, order: &str, payment: &str, stock: &str) {
        let shown = eventually(&format!("{payment} and {stock}"), || {
            let shown = self.order.api().order(self.order_id);
            (shown["paymentStatus"] == payment && shown["stockStatus"] == stock).then_some(shown)
        });
        assert_eq!(shown["orderStatus"], order, "{shown}");
        assert_eq!(shown["settled"], false, "{shown}");
    }

    fn ends(&self, end: &End) {
        let settled = self.order.api().settled(self.order_id);
        self.world.wait_until_quiet();
        let shown =
            ["orderStatus", "paymentStatus", "stockStatus"].map(|status| settled[status].clone());
        assert_eq!(shown, end.order, "{settled}");
        assert_eq!(settled["reason"], end.reason, "{settled}");
        assert_eq!(
            self.order.api().order(self.order_id),
            settled,
            "settled once, settled for good"
        );
        assert_eq!(
            self.world.payment_status(self.order_id).as_deref(),
            Some(end.payment)
        );
        assert_eq!(
            self.world.reservation_status(self.order_id).as_deref(),
            Some(end.reservation)
        );
        assert_eq!(
            self.participant(Service::Payment).balance("ann"),
            end.balance
        );
        assert_eq!(
            self.participant(Service::Stock).quantity("tea"),
            end.quantity
        );
        assert_eq!(self.world.types_about(self.order_id), end.records);
        assert_eq!(self.world.parked(), 0);
        self.world.assert_conserved();
    }

    fn participant(&self, service: Service) -> &harness::Api {
        self.participants
            .iter()
            .find(|instance| instance.service() == service)
            .expect("started")
            .api()
    }

    /// Whether the side's confirmation says that something was undone.
    fn undone(&self, topic: &str, ce_type: &str) -> Value {
        let records = self.world.records(topic);
        let confirmation = records
            .iter()
            .find(|seen| seen.ce_type == ce_type)
            .expect("a confirmation");
        assert_eq!(confirmation.data["orderId"], self.order_id.to_string());
        confirmation.data["undone"].clone()
    }
}

fn too_little_balance() -> Value {
    json!({"code": "INSUFFICIENT_BALANCE", "from": "payment"})
}

fn too_little_stock() -> Value {
    json!({"code": "INSUFFICIENT_STOCK", "from": "stock"})
}

#[test]
fn row_1_payment_fails_after_stock_completed_and_stock_is_compensated() {
    let mut play = Play::new("row1", 299, 10);
    play.start(Service::Stock);
    play.shows("IN_PROGRESS", "IN_PROGRESS", "COMPLETED");
    assert_eq!(play.participant(Service::Stock).quantity("tea"), 8);
    play.start(Service::Payment);
    play.ends(&End {
        order: ["FAILED", "FAILED", "COMPENSATED"],
        reason: too_little_balance(),
        payment: "FAILED",
        reservation: "COMPENSATED",
        balance: 299,
        quantity: 10,
        records: &[
            "payment.requested",
            "payment.failed",
            "stock.requested",
            "stock.completed",
            "stock.compensated",
            "stock.compensation-requested",
        ],
    });
    assert_eq!(play.undone("stock.success", "stock.compensated"), true);
}

#[test]
fn row_2_payment_fails_while_stock_is_stopped_and_its_late_success_is_compensated() {
    let mut play = Play::new("row2", 299, 10);
    play.start(Service::Payment);
    play.shows("FAILED", "FAILED", "IN_PROGRESS");
    play.start(Service::Stock);
    play.ends(&End {
        order: ["FAILED", "FAILED", "COMPENSATED"],
        reason: too_little_balance(),
        payment: "FAILED",
        reservation: "COMPENSATED",
        balance: 299,
        quantity: 10,
        records: &[
            "payment.requested",
            "payment.failed",
            "stock.requested",
            "stock.completed",
            "stock.compensated",
            "stock.compensation-requested",
        ],
    });
    assert_eq!(play.undone("stock.success", "stock.compensated"), true);
}

#[test]
fn row_3_payment_fails_while_stock_is_stopped_then_stock_fails_and_nothing_is_compensated() {
    let mut play = Play::new("row3", 299, 1);
    play.start(Service::Payment);
    play.shows("FAILED", "FAILED", "IN_PROGRESS");
    play.start(Service::Stock);
    play.ends(&End {
        order: ["FAILED", "FAILED", "FAILED"],
        reason: too_little_balance(),
        payment: "FAILED",
        reservation: "FAILED",
        balance: 299,
        quantity: 1,
        records: &[
            "payment.requested",
            "payment.failed",
            "stock.requested",
            "stock.failed",
        ],
    });
}

#[test]
fn row_4_stock_fails_after_payment_completed_and_payment_is_compensated() {
    let mut play = Play::new("row4", 1_000, 1);
    play.start(Service::Payment);
    play.shows("IN_PROGRESS", "COMPLETED", "IN_PROGRESS");
    assert_eq!(play.participant(Service::Payment).balance("ann"), 700);
    play.start(Service::Stock);
    play.ends(&End {
        order: ["FAILED", "COMPENSATED", "FAILED"],
        reason: too_little_stock(),
        payment: "COMPENSATED",
        reservation: "FAILED",
        balance: 1_000,
        quantity: 1,
        records: &[
            "payment.requested",
            "payment.completed",
            "payment.compensated",
            "payment.compensation-requested",
            "stock.requested",
            "stock.failed",
        ],
    });
    assert_eq!(play.undone("payment.success", "payment.compensated"), true);
}

#[test]
fn row_5_stock_fails_while_payment_is_stopped_then_payment_fails_and_nothing_is_compensated() {
    let mut play = Play::new("row5", 0, 0);
    play.start(Service::Stock);
    play.shows("FAILED", "IN_PROGRESS", "FAILED");
    play.start(Service::Payment);
    play.ends(&End {
        order: ["FAILED", "FAILED", "FAILED"],
        reason: too_little_stock(),
        payment: "FAILED",
        reservation: "FAILED",
        balance: 0,
        quantity: 0,
        records: &[
            "payment.requested",
            "payment.failed",
            "stock.requested",
            "stock.failed",
        ],
    });
}

#[test]
fn row_6_stock_fails_while_payment_is_stopped_and_its_late_success_is_compensated() {
    let mut play = Play::new("row6", 300, 1);
    play.start(Service::Stock);
    play.shows("FAILED", "IN_PROGRESS", "FAILED");
    play.start(Service::Payment);
    play.ends(&End {
        order: ["FAILED", "COMPENSATED", "FAILED"],
        reason: too_little_stock(),
        payment: "COMPENSATED",
        reservation: "FAILED",
        balance: 300,
        quantity: 1,
        records: &[
            "payment.requested",
            "payment.completed",
            "payment.compensated",
            "payment.compensation-requested",
            "stock.requested",
            "stock.failed",
        ],
    });
    assert_eq!(play.undone("payment.success", "payment.compensated"), true);
}

#[test]
fn row_7_both_fail_before_order_hears_of_either_and_nothing_is_compensated() {
    let mut play = Play::new("row7", 299, 1);
    assert!(play.order.stop().success());
    play.start(Service::Payment);
    play.start(Service::Stock);
    until("both notices on their topics", || {
        ["payment.dlt", "stock.dlt"]
            .iter()
            .all(|topic| play.world.records(topic).len() == 1)
    });
    play.order = play.world.start(Service::Order);
    let settled = play.order.api().settled(play.order_id);
    // whichever notice is read first gives the reason
    let reason = settled["reason"].clone();
    assert!(
        reason == too_little_balance() || reason == too_little_stock(),
        "{reason}"
    );
    play.ends(&End {
        order: ["FAILED", "FAILED", "FAILED"],
        reason,
        payment: "FAILED",
        reservation: "FAILED",
        balance: 299,
        quantity: 1,
        records: &[
            "payment.requested",
            "payment.failed",
            "stock.requested",
            "stock.failed",
        ],
    });
}

#[test]
fn row_8_both_complete_and_the_order_completes() {
    let mut play = Play::new("row8", 300, 2);
    play.start(Service::Payment);
    play.start(Service::Stock);
    play.ends(&End {
        order: ["COMPLETED", "COMPLETED", "COMPLETED"],
        reason: Value::Null,
        payment: "COMPLETED",
        reservation: "COMPLETED",
        balance: 0,
        quantity: 0,
        records: &[
            "payment.requested",
            "payment.completed",
            "stock.requested",
            "stock.completed",
        ],
    });
}

/// Writes a message as a later version might: with a field more, here and in what is nested, and a header more.
fn produce_as_later(world: &World, topic: &str, order_id: Uuid, ce_type: &str, mut data: Value) {
    data["orderId"] = json!(order_id);
    data["addedLater"] = json!({"since": "0.2.0"});
    if data["reason"].is_object() {
        data["reason"]["addedLater"] = json!("why exactly");
    }
    let mut message = Message::event(topic, order_id, ce_type, &data);
    let header = ("added_later".to_string(), b"\xff".to_vec());
    message.headers.push(header);
    world.produce(&message);
}

#[test]
fn what_a_later_version_adds_to_requests_is_passed_over() {
    let world = World::new("later_requests");
    let (payment, stock) = (world.start(Service::Payment), world.start(Service::Stock));
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let order_id = Uuid::now_v7();
    let later = |topic: &str, ce_type: &str, data| {
        produce_as_later(&world, topic, order_id, ce_type, data);
    };
    later(
        "payment",
        "payment.requested",
        json!({"userName": "ann", "price": 300}),
    );
    later(
        "stock",
        "stock.requested",
        json!({"itemName": "tea", "quantity": 2}),
    );
    until("price and quantity to be taken", || {
        (payment.api().balance("ann"), stock.api().quantity("tea")) == (700, 8)
    });
    later(
        "payment.compensation",
        "payment.compensation-requested",
        json!({}),
    );
    later(
        "stock.compensation",
        "stock.compensation-requested",
        json!({}),
    );
    until("both to be given back", || {
        (payment.api().balance("ann"), stock.api().quantity("tea")) == (1_000, 10)
    });
    for (topic, types) in [
        (
            "payment.success",
            ["payment.completed", "payment.compensated"],
        ),
        ("stock.success", ["stock.completed", "stock.compensated"]),
    ] {
        until("both answers", || world.records(topic).len() == 2);
        let seen = world.records(topic);
        let seen: Vec<&str> = seen.iter().map(|seen| &*seen.ce_type).collect();
        assert_eq!(seen, types);
    }
}

#[test]
fn what_a_later_version_adds_to_answers_is_passed_over() {
    let world = World::new("later_answers");
    let order = world.start(Service::Order);
    let order_id = order.api().place("ann", "tea", 300, 2);
    let later = |topic: &str, ce_type: &str, data| {
        produce_as_later(&world, topic, order_id, ce_type, data);
    };
    let failed = json!({"reason": too_little_balance(), "attempts": 1});
    later("payment.dlt", "payment.failed", failed);
    later("stock.success", "stock.completed", json!({}));
    until("stock to be asked back", || {
        !world.records("stock.compensation").is_empty()
    });
    later(
        "stock.success",
        "stock.compensated",
        json!({"undone": true}),
    );
    let settled = order.api().settled(order_id);
    assert_eq!(settled["orderStatus"], "FAILED", "{settled}");
    assert_eq!(settled["paymentStatus"], "FAILED", "{settled}");
    assert_eq!(settled["stockStatus"], "COMPENSATED", "{settled}");
    assert_eq!(settled["reason"], too_little_balance(), "{settled}");
}

#[test]
fn an_unknown_user_and_an_unknown_item_fail_at_once() {
    let world = World::new("unknown");
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000);
    stock.api().put_quantity("tea", 10);
    let no_user = order.api().settled(order.api().place("bob", "tea", 1, 1));
    assert_eq!(
        no_user["reason"],
        json!({"code": "UNKNOWN_USER", "from": "payment"})
    );
    assert_eq!(no_user["stockStatus"], "COMPENSATED");
    let no_item = order.api().settled(order.api().place("ann", "gold", 1, 1));
    assert_eq!(
        no_item["reason"],
        json!({"code": "UNKNOWN_ITEM", "from": "stock"})
    );
    assert_eq!(no_item["paymentStatus"], "COMPENSATED");
    assert_eq!(
        (payment.api().balance("ann"), stock.api().quantity("tea")),
        (1_000, 10)
    );
    world.assert_conserved();
}

/// A participant's words: its topics, types, table and bodies.
struct Side {
    service: Service,
    path: &'static str,
    requests: &'static str,
    compensations: &'static str,
    successes: &'static str,
    requested: (&'static str, Value),
    compensation_requested: &'static str,
    compensated: &'static str,
}

fn payment_side(order_id: Uuid) -> Side {
    Side {
        service: Service::Payment,
        path: "payments",
        requests: "payment",
        compensations: "payment.compensation",
        successes: "payment.success",
        requested: (
            "payment.requested",
            json!({"orderId": order_id, "userName": "ann", "price": 7}),
        ),
        compensation_requested: "payment.compensation-requested",
        compensated: "payment.compensated",
    }
}

fn stock_side(order_id: Uuid) -> Side {
    Side {
        service: Service::Stock,
        path: "reservations",
        requests: "stock",
        compensations: "stock.compensation",
        successes: "stock.success",
        requested: (
            "stock.requested",
            json!({"orderId": order_id, "itemName": "tea", "quantity": 7}),
        ),
        compensation_requested: "stock.compensation-requested",
        compensated: "stock.compensated",
    }
}

/// Puts in 10, plays a compensation and then its request by hand, and answers what is left of the 10.
fn compensation_first(
    name: &str,
    order_id: Uuid,
    side: &Side,
    left: impl Fn(&Instance) -> i64,
) -> (World, i64) {
    let world = World::new(name);
    let participant = world.start(side.service);
    participant.api().put_balance_or_quantity(side.service);
    world.produce_event(
        side.compensations,
        order_id,
        side.compensation_requested,
        &json!({"orderId": order_id}),
    );
    let path = format!("/{}/{order_id}", side.path);
    let status = eventually("the cancellation", || {
        participant.api().get(&path).json["status"]
            .as_str()
            .map(String::from)
    });
    assert_eq!(status, "CANCELLED");
    let (ce_type, data) = &side.requested;
    world.produce_event(side.requests, order_id, ce_type, data);
    until("the request to be handled", || {
        world.is_at_the_ends(side.service)
    });
    assert_eq!(participant.api().found(&path)["status"], "CANCELLED");
    let left = left(&participant);
    (world, left)
}

/// Sets what the tests by hand take from.
trait PutTen {
    fn put_balance_or_quantity(&self, service: Service);
}

impl PutTen for harness::Api {
    fn put_balance_or_quantity(&self, service: Service) {
        match service {
            Service::Payment => self.put_balance("ann", 10),
            _ => self.put_quantity("tea", 10),
        }
    }
}

fn assert_only_confirmed(world: &World, side: &Side, order_id: Uuid) {
    world.wait_until_published(side.service);
    let said = world.records(side.successes);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].ce_type, side.compensated);
    assert_eq!(said[0].data, json!({"orderId": order_id, "undone": false}));
    assert_eq!(world.records(&format!("{}.dlt", side.service.name())), []);
}

#[test]
fn a_compensation_before_its_payment_request_cancels_it() {
    let order_id = Uuid::now_v7();
    let side = payment_side(order_id);
    let (world, left) = compensation_first("cancelpay", order_id, &side, |payment| {
        payment.api().balance("ann")
    });
    assert_eq!(left, 10);
    assert_only_confirmed(&world, &side, order_id);
}

#[test]
fn a_compensation_before_its_stock_request_cancels_it() {
    let order_id = Uuid::now_v7();
    let side = stock_side(order_id);
    let (world, left) = compensation_first("cancelstock", order_id, &side, |stock| {
        stock.api().quantity("tea")
    });
    assert_eq!(left, 10);
    assert_only_confirmed(&world, &side, order_id);
}

#[test]
fn every_compensation_request_is_confirmed_once_and_undoes_once() {
    let order_id = Uuid::now_v7();
    let side = payment_side(order_id);
    let world = World::new("confirmed");
    let payment = world.start(Service::Payment);
    payment.api().put_balance("ann", 10);
    world.produce_event(side.requests, order_id, side.requested.0, &side.requested.1);
    until("the payment", || {
        world.payment_status(order_id).as_deref() == Some("COMPLETED")
    });
    let ask = || {
        Message::event(
            side.compensations,
            order_id,
            side.compensation_requested,
            &json!({"orderId": order_id}),
        )
    };
    let (first, second) = (ask(), ask());
    for message in [&first, &first, &second, &first, &second] {
        world.produce(message);
    }
    until("all five to be handled", || {
        world.is_at_the_ends(Service::Payment)
    });
    world.wait_until_published(Service::Payment);
    let said: Vec<(String, Value)> = world
        .records(side.successes)
        .into_iter()
        .map(|seen| (seen.ce_type, seen.data["undone"].clone()))
        .collect();
    let expected = [
        ("payment.completed", Value::Null),
        ("payment.compensated", json!(true)),
        ("payment.compensated", json!(true)),
    ];
    assert_eq!(
        said,
        expected.map(|(ce_type, undone)| (ce_type.to_string(), undone))
    );
    assert_eq!(payment.api().balance("ann"), 10);
    world.assert_conserved();
}

#[test]
fn duplicates_of_every_message_change_nothing() {
    // the row that has the compensation asked again must not come due meanwhile
    let late = [("COMPENSATION_RETRY", "1h"), ("ORDER_DEADLINE", "1h")];
    let mut play = Play::with("duplicates", 1_000, 1, &late);
    play.start(Service::Payment);
    play.start(Service::Stock);
    play.order.api().settled(play.order_id);
    play.world.wait_until_quiet();
    let before = Service::ALL.map(|service| play.world.tables(service));
    let records = play.world.all_records();
    for seen in &records {
        let headers = seen
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into_bytes()))
            .collect();
        let (key, value) = (
            seen.key.clone().map(String::into_bytes),
            Some(seen.data.to_string().into_bytes()),
        );
        play.world.produce(&Message {
            topic: seen.topic.clone(),
            key,
            headers,
            value,
        });
    }
    play.world.wait_until_quiet();
    assert_eq!(
        Service::ALL.map(|service| play.world.tables(service)),
        before
    );
    assert_eq!(play.world.all_records().len(), 2 * records.len());
}

#[test]
fn a_side_not_heard_of_by_the_deadline_is_asked_to_compensate_and_confirms_later() {
    let mut play = Play::with("deadline", 1_000, 10, &[("ORDER_DEADLINE", "1s")]);
    play.start(Service::Stock);
    play.shows("FAILED", "COMPENSATING", "COMPENSATED");
    play.start(Service::Payment);
    let settled = play.order.api().settled(play.order_id);
    assert_eq!(settled["orderStatus"], "FAILED");
    assert_eq!(
        settled["reason"],
        json!({"code": "DEADLINE", "from": "order"})
    );
    assert_eq!(
        (&settled["paymentStatus"], &settled["stockStatus"]),
        (&json!("COMPENSATED"), &json!("COMPENSATED"))
    );
    play.world.wait_until_quiet();
    // payment reads its two topics in any order
    let payment = play.world.payment_status(play.order_id).expect("heard of");
    assert!(
        payment == "COMPENSATED" || payment == "CANCELLED",
        "{payment}"
    );
    assert_eq!(play.participant(Service::Payment).balance("ann"), 1_000);
    assert_eq!(play.participant(Service::Stock).quantity("tea"), 10);
    play.world.assert_conserved();
    let undone = play.undone("payment.success", "payment.compensated");
    assert_eq!(undone, payment == "COMPENSATED");
}

#[test]
fn a_compensation_not_confirmed_is_asked_again_as_a_new_message() {
    let settings = [("ORDER_DEADLINE", "1s"), ("COMPENSATION_RETRY", "1s")];
    let mut play = Play::with("askagain", 1_000, 10, &settings);
    play.start(Service::Stock);
    let asked = eventually("payment to be asked three times", || {
        Some(play.world.records("payment.compensation")).filter(|asked| asked.len() >= 3)
    });
    let mut ids: Vec<&str> = asked.iter().map(|seen| seen.ce_id.as_str()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), asked.len(), "each a message of its own");
    play.start(Service::Payment);
    let settled = play.order.api().settled(play.order_id);
    assert_eq!(settled["paymentStatus"], "COMPENSATED");
    play.world.wait_until_quiet();
    let asked = play.world.records("payment.compensation").len();
    let said = play.world.records("payment.success");
    assert_eq!(
        said.iter()
            .filter(|seen| seen.ce_type == "payment.compensated")
            .count(),
        asked,
        "each is confirmed"
    );
    assert_eq!(play.participant(Service::Payment).balance("ann"), 1_000);
    play.world.assert_conserved();
}
