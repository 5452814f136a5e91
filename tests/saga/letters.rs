//! What people do about parked records, by HTTP: find them, have them replayed, discard them; and what is kept of it (I3, I7).

use std::thread;

use harness::{Answer, Api, Message, Service, World, eventually};
use postgres::Client;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::poison::{
    COMPLETED, NUL_REFUSED, ONE_PARTITION, fail, failed, mend, newest, open_shop, payment_request,
    refusals, replay, spoil_nul, spoil_outbox, statuses, wait_for_parked,
};

const APPLIED: &str = "APPLIED";

fn post(api: &Api, path: &str, headers: &[(&str, &str)]) -> Answer {
    api.call("POST", path, headers, Some(b""))
        .unwrap_or_else(|error| panic!("POST {path}: {error}"))
}

/// What the problem says with which a call is refused for the record's state.
fn conflict(answer: Answer) -> String {
    let problem = &answer.json;
    assert_eq!(
        (answer.status, &problem["title"]),
        (409, &json!("Conflict")),
        "{}",
        answer.text
    );
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    problem["detail"].as_str().unwrap().to_string()
}

fn replay_refused(api: &Api, id: i64) -> String {
    conflict(post(api, &format!("/dead-letters/{id}/replay"), &[]))
}

fn discard(api: &Api, id: i64, actor: &str, reason: &str) -> Answer {
    api.json(
        "POST",
        &format!("/dead-letters/{id}/discard"),
        &[("X-Actor", actor)],
        &json!({ "reason": reason }),
    )
}

fn letter(api: &Api, id: i64) -> Value {
    api.found(&format!("/dead-letters/{id}"))
}

/// The numbers of the parked records that a query finds.
fn ids(api: &Api, query: &str) -> Vec<i64> {
    let page = api.found(&format!("/dead-letters?{query}"));
    page["deadLetters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| letter["id"].as_i64().unwrap())
        .collect()
}

/// A record's history: who did what, with which result, and why.
fn history(api: &Api, id: i64) -> Vec<[Value; 4]> {
    let letter = letter(api, id);
    let actions = letter["history"].as_array().unwrap();
    assert!(
        actions
            .iter()
            .all(|action| action["at"].as_str().is_some_and(|at| at.ends_with('Z'))),
        "{actions:?}"
    );
    actions
        .iter()
        .map(|action| ["actor", "action", "result", "detail"].map(|part| action[part].clone()))
        .collect()
}

fn of_replay(actor: &str, result: &str, detail: Option<&str>) -> [Value; 4] {
    [json!(actor), json!("REPLAY"), json!(result), json!(detail)]
}

/// Waits for the numbers of so many parked records, the oldest first.
fn wait_for_letters(api: &Api, count: usize) -> Vec<i64> {
    let mut found = eventually("the parked records", || {
        Some(ids(api, "")).filter(|ids| ids.len() >= count)
    });
    found.reverse();
    found
}

/// Has refunds fail by the message's own fault; or, by 53100, by the world's.
fn fail_refunds(db: &mut Client, of: &str, sqlstate: &str) {
    fail(
        db,
        "update on account",
        &format!("new.balance > old.balance and old.user_name like '{of}'"),
        sqlstate,
    );
}

/// Why a refund fails then.
const MADE_TO_FAIL: &str = "PostgreSQL: made to fail (SQLSTATE 23514)";

/// Orders that fail for want of the item, whose refunds are parked: the orders, and the numbers of the parked requests.
fn parked_refunds(
    world: &World,
    order: &Api,
    payment: &Api,
    users: &[&str],
) -> (Vec<Uuid>, Vec<i64>) {
    fail_refunds(&mut world.db(Service::Payment), "%", "23514");
    let before = ids(payment, "").len();
    let mut orders = vec![];
    for (at, user) in users.iter().enumerate() {
        payment.put_balance(user, 1_000);
        orders.push(order.place(user, "bed", 7, 2));
        wait_for_letters(payment, before + at + 1);
    }
    mend(&mut world.db(Service::Payment), "account");
    (
        orders,
        ids(payment, "topic=payment.compensation")
            .into_iter()
            .rev()
            .collect(),
    )
}

const REFUNDED: [&str; 3] = ["FAILED", "COMPENSATED", "FAILED"];
const WAITING: [&str; 3] = ["FAILED", "COMPENSATING", "FAILED"];

#[test]
fn an_answer_for_an_unknown_order_is_parked_and_completes_the_order_once_it_is_there() {
    let world = World::with("letters_unknown", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    // an order that Kafka has never seen either, and an answer that names no request
    let id = Uuid::now_v7();
    world.produce_event(
        "payment.success",
        id,
        "payment.completed",
        &json!({"orderId": id}),
    );
    let mut db = world.db(Service::Order);
    let parked = wait_for_parked(&world, Service::Order, 1);
    let why = format!("order {id} does not exist here");
    let facts = (
        parked[0].cause.as_str(),
        parked[0].detail.as_str(),
        parked[0].topic.as_str(),
        parked[0].attempts,
    );
    assert_eq!(facts, ("UNKNOWN_ORDER", why.as_str(), "payment.success", 1));

    let number = newest(order.api());
    assert_eq!(replay(order.api(), number), failed(&why));
    db.execute(
        "insert into orders (order_id, user_name, item_name, price, quantity, payment_status, stock_status, traceparent)
         values ($1, 'ann', 'lamp', 7, 2, 'IN_PROGRESS', 'COMPLETED', 't')",
        &[&id],
    )
    .unwrap();
    assert_eq!(replay(order.api(), number), json!({"result": APPLIED}));
    assert_eq!(statuses(&order.api().settled(id)), COMPLETED);
    let settled = order.api().order(id);
    let kept = letter(order.api(), number);
    let replayed_at = kept["replayedAt"].as_str().unwrap();
    let before = format!("dead letter {number} was replayed at {replayed_at} by unknown: APPLIED");
    assert_eq!(replay_refused(order.api(), number), before);
    assert_eq!(order.api().order(id), settled);
    assert_eq!(
        letter(order.api(), number),
        kept,
        "a refusal changes nothing"
    );
    assert_eq!(
        (&kept["state"], &kept["replays"], &kept["replayResult"]),
        (&json!("REPLAYED"), &json!(2), &json!(APPLIED))
    );
    world.wait_until_quiet();
    assert_eq!(world.types_about(id), ["payment.completed"]);
    assert_eq!(payment.api().balance("ann"), 1_000);
}

#[test]
fn an_undecodable_answer_completes_its_order_once_its_bytes_are_mended_and_replayed() {
    let world = World::with("letters_mended", &ONE_PARTITION);
    world.spoils_messages();
    let [order, ..] = open_shop(&world);
    spoil_outbox(
        &mut world.db(Service::Payment),
        "payment_outbox",
        "true",
        "payment.completed",
        "payment.kompleted",
    );
    let id = order.api().place("ann", "lamp", 7, 2);
    let parked = wait_for_parked(&world, Service::Order, 1);
    let why = "type payment.kompleted with these fields does not belong on payment.success";
    assert_eq!(
        (parked[0].cause.as_str(), parked[0].detail.as_str()),
        ("UNDECODABLE", why)
    );
    let of_order = order.api().found(&format!("/dead-letters?orderId={id}"));
    assert_eq!(of_order["deadLetters"][0]["orderId"], json!(id));
    let number = of_order["deadLetters"][0]["id"].as_i64().unwrap();
    assert_eq!(replay(order.api(), number), failed(why));
    assert_eq!(order.api().order(id)["settled"], false);
    let mended = "update dead_letter set header_values = array_replace(header_values, 'payment.kompleted', 'payment.completed')";
    assert_eq!(world.db(Service::Order).execute(mended, &[]).unwrap(), 1);
    assert_eq!(replay(order.api(), number), json!({"result": APPLIED}));
    assert_eq!(statuses(&order.api().settled(id)), COMPLETED);
    world.wait_until_quiet();
    assert_eq!(
        world.records("payment.success").len(),
        1,
        "nothing is published twice"
    );
    world.assert_conserved();
}

#[test]
fn a_parked_request_is_failed_for_good_and_its_replay_is_refused() {
    let world = World::with("letters_given_up", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    spoil_nul(&world);
    let id = order.api().place("nul", "lamp", 7, 2);
    assert_eq!(
        statuses(&order.api().settled(id)),
        ["FAILED", "FAILED", "COMPENSATED"]
    );
    world.wait_until_quiet();
    let number = newest(payment.api());
    let sent = world.all_records();
    assert_eq!(replay(payment.api(), number), failed(NUL_REFUSED));
    let mended = "update dead_letter set record_value = convert_to(replace(convert_from(record_value, 'UTF8'), 'n\\u0000l', 'ann'), 'UTF8')";
    assert_eq!(world.db(Service::Payment).execute(mended, &[]).unwrap(), 1);
    let why = format!("the request of order {id} was given up for good: it stays FAILED");
    assert_eq!(replay_refused(payment.api(), number), why);
    let kept = letter(payment.api(), number);
    assert_eq!(
        (&kept["state"], &kept["replays"]),
        (&json!("OPEN"), &json!(1))
    );
    world.wait_until_quiet();
    assert_eq!(world.all_records(), sent);
    assert_eq!(
        (
            world.payment_status(id).as_deref(),
            payment.api().balance("ann")
        ),
        (Some("FAILED"), 1_000)
    );
}

#[test]
fn a_parked_compensation_leaves_its_order_compensating_until_it_is_replayed() {
    let world = World::with("letters_compensation", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let mut db = world.db(Service::Payment);
    fail_refunds(&mut db, "ann", "23514");
    let id = order.api().place("ann", "bed", 7, 2);
    let parked = wait_for_parked(&world, Service::Payment, 1);
    let facts = (
        parked[0].cause.as_str(),
        parked[0].attempts,
        parked[0].topic.as_str(),
    );
    assert_eq!(facts, ("GIVEN_UP", 5, "payment.compensation"));
    let number = newest(payment.api());
    assert_eq!(replay(payment.api(), number), failed(MADE_TO_FAIL));
    let open = order.api().order(id);
    assert_eq!(
        (statuses(&open), &open["settled"]),
        (WAITING, &json!(false))
    );
    assert_eq!(
        (
            refusals(&world, "payment.dlt"),
            payment.api().balance("ann")
        ),
        (vec![], 993)
    );

    mend(&mut db, "account");
    assert_eq!(replay(payment.api(), number), json!({"result": APPLIED}));
    assert_eq!(statuses(&order.api().settled(id)), REFUNDED);
    assert!(replay_refused(payment.api(), number).ends_with("by unknown: APPLIED"));
    world.wait_until_quiet();
    assert_eq!(payment.api().balance("ann"), 1_000);
    assert_eq!(
        world.records("payment.success").len(),
        2,
        "completed and compensated, once each"
    );
    world.assert_conserved();
}

#[test]
fn a_replay_that_finds_nothing_left_to_do_has_handled_its_record() {
    let world = World::with("letters_unchanged", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let id = order.api().place("ann", "lamp", 7, 2);
    assert_eq!(statuses(&order.api().settled(id)), COMPLETED);
    world.produce(&Message {
        headers: vec![],
        ..payment_request(id, "ann", 7)
    });
    let number = wait_for_letters(payment.api(), 1)[0];
    let mended = "update dead_letter set header_names = '{ce_specversion,ce_id,ce_type}',
                         header_values = array['1.0'::bytea, '01a207b0-6c85-711f-941c-898f27171165', 'payment.requested']";
    assert_eq!(world.db(Service::Payment).execute(mended, &[]).unwrap(), 1);
    assert_eq!(
        replay(payment.api(), number),
        json!({"result": "UNCHANGED", "detail": "a duplicate"})
    );
    assert_eq!(letter(payment.api(), number)["state"], "REPLAYED");
    assert!(replay_refused(payment.api(), number).ends_with("by unknown: UNCHANGED: a duplicate"));
    assert_eq!(payment.api().balance("ann"), 993);
}

#[test]
fn two_replays_of_one_record_at_once_have_one_effect() {
    let world = World::with("letters_race", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let (orders, numbers) = parked_refunds(&world, order.api(), payment.api(), &["ann"]);
    let path = format!("/dead-letters/{}/replay", numbers[0]);
    world.stop_at(Service::Payment, "insert on dead_letter_action");
    let [first, second] = thread::scope(|scope| {
        let first = scope.spawn(|| post(payment.api(), &path, &[("X-Actor", "eve")]));
        world.wait_for_stopped(Service::Payment, 1);
        // it does not wait for long: the answer asks to repeat it
        let repeated = || {
            Some(post(payment.api(), &path, &[("X-Actor", "bob")]))
                .filter(|answer| answer.status != 503)
        };
        let second = scope.spawn(move || eventually("the second replay's answer", repeated));
        world.wait_for_waiting(Service::Payment, 1);
        world.let_go(Service::Payment);
        [first.join().unwrap(), second.join().unwrap()]
    });
    assert_eq!(
        (first.status, first.json),
        (200, json!({"result": APPLIED}))
    );
    assert!(conflict(second).ends_with("by eve: APPLIED"));
    assert_eq!(
        history(payment.api(), numbers[0]),
        [of_replay("eve", APPLIED, None)]
    );
    assert_eq!(statuses(&order.api().settled(orders[0])), REFUNDED);
    world.wait_until_quiet();
    assert_eq!(payment.api().balance("ann"), 1_000);
    assert_eq!(
        world.records("payment.success").len(),
        2,
        "completed and compensated, once each"
    );
    world.assert_conserved();
}

#[test]
fn after_five_failed_replays_another_one_must_be_forced() {
    let world = World::with("letters_guard", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let (orders, numbers) = parked_refunds(&world, order.api(), payment.api(), &["ann"]);
    let (api, id) = (payment.api(), numbers[0]);
    let mut db = world.db(Service::Payment);
    fail_refunds(&mut db, "ann", "23514");
    (0..5).for_each(|_| assert_eq!(replay(api, id), failed(MADE_TO_FAIL)));
    let held_back = |failed: &str| {
        format!(
            "{failed} replays have failed, the last one: {MADE_TO_FAIL}; ?force=true tries once more"
        )
    };
    assert_eq!(replay_refused(api, id), held_back("5"));
    let path = format!("/dead-letters/{id}/replay?force=true");
    let forced = || post(api, &path, &[("X-Actor", "eve")]);
    assert_eq!(forced().json, failed(MADE_TO_FAIL));
    mend(&mut db, "account");
    assert_eq!(replay_refused(api, id), held_back("6"));
    let skipped = post(api, "/dead-letters/replay", &[]).json;
    let expected = json!({"dryRun": false, "matched": 1, "replayed": [], "next": null,
        "skipped": [{"id": id, "detail": held_back("6")}]});
    assert_eq!(skipped, expected);
    assert_eq!(letter(api, id)["replays"], 6);

    assert_eq!(forced().json, json!({"result": APPLIED}));
    assert!(
        conflict(forced()).ends_with("by eve: APPLIED"),
        "force does not replay what was replayed"
    );
    let mut expected = vec![of_replay("unknown", "FAILED", Some(MADE_TO_FAIL)); 5];
    expected.extend([
        of_replay("eve", "FAILED", Some(MADE_TO_FAIL)),
        of_replay("eve", APPLIED, None),
    ]);
    assert_eq!(history(api, id), expected);
    assert_eq!(statuses(&order.api().settled(orders[0])), REFUNDED);
    world.assert_conserved();
}

#[test]
fn a_discarded_record_is_kept_with_its_reason_and_never_replayed() {
    let world = World::with("letters_discarded", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let (orders, numbers) = parked_refunds(&world, order.api(), payment.api(), &["ann", "ben"]);
    let (api, id) = (payment.api(), numbers[0]);
    let answer = discard(api, id, "eve", "  paid back by hand, ünder case 7 ");
    assert_eq!(
        (answer.status, answer.json),
        (200, json!({"result": "DISCARDED"}))
    );
    let kept = letter(api, id);
    let reason = "paid back by hand, ünder case 7";
    assert_eq!(
        (&kept["state"], &kept["discardReason"]),
        (&json!("DISCARDED"), &json!(reason))
    );
    assert_eq!(
        (&kept["replays"], &kept["replayedAt"]),
        (&json!(0), &json!(null))
    );
    assert_eq!(
        history(api, id),
        [[
            json!("eve"),
            json!("DISCARD"),
            json!("DISCARDED"),
            json!(reason)
        ]]
    );
    let before = format!(
        "dead letter {id} was discarded at {} by eve: {reason}",
        kept["discardedAt"].as_str().unwrap()
    );
    assert_eq!(conflict(discard(api, id, "bob", "again")), before);
    assert_eq!(replay_refused(api, id), before);
    assert_eq!(
        conflict(post(
            api,
            &format!("/dead-letters/{id}/replay?force=true"),
            &[]
        )),
        before
    );
    assert_eq!(letter(api, id), kept, "a refusal changes nothing");

    assert_eq!(replay(api, numbers[1]), json!({"result": APPLIED}));
    assert!(conflict(discard(api, numbers[1], "eve", "too late")).ends_with("by unknown: APPLIED"));
    assert_eq!(post(api, "/dead-letters/replay", &[]).json["matched"], 0);
    assert_eq!(statuses(&order.api().settled(orders[1])), REFUNDED);
    assert_eq!(statuses(&order.api().order(orders[0])), WAITING);
    assert_eq!((api.balance("ann"), api.balance("ben")), (993, 1_000));
    let handled =
        "select array_agg(handled_at in (discarded_at, replayed_at) order by id) from dead_letter";
    assert_eq!(
        world
            .db(Service::Payment)
            .query_one(handled, &[])
            .unwrap()
            .get::<_, Vec<bool>>(0),
        [true, true]
    );
    world.assert_conserved();
}

#[test]
fn parked_records_are_found_by_state_cause_topic_and_order() {
    let world = World::with("letters_filter", &ONE_PARTITION);
    let payment = world.start(Service::Payment);
    let api = payment.api();
    let [one, other] = [Uuid::now_v7(), Uuid::now_v7()];
    let undecodable = |message: Message| Message {
        headers: vec![],
        ..message
    };
    let compensation = |id: Uuid| Message {
        topic: "payment.compensation".into(),
        ..payment_request(id, "ann", 7)
    };
    let messages = [
        undecodable(payment_request(one, "ann", 7)),
        undecodable(payment_request(other, "ann", 7)),
        undecodable(compensation(one)),
        payment_request(other, "n\0l", 7),
        Message {
            key: Some(b"ann".to_vec()),
            ..payment_request(one, "ann", 7)
        },
    ];
    for (at, message) in messages.iter().enumerate() {
        world.produce(message);
        wait_for_letters(api, at + 1);
    }
    let [first, second, third, fourth, fifth] = wait_for_letters(api, 5)[..] else {
        panic!("five are parked")
    };
    assert_eq!(discard(api, second, "eve", "a test").status, 200);
    assert_eq!(
        letter(api, fifth)["orderId"],
        json!(null),
        "the key is no order's id"
    );
    let topic = format!("topic={}payment", world.prefix());
    let cases = [
        ("", vec![fifth, fourth, third, second, first]),
        ("state=OPEN", vec![fifth, fourth, third, first]),
        ("state=DISCARDED", vec![second]),
        ("state=REPLAYED", vec![]),
        ("cause=GIVEN_UP", vec![fourth]),
        ("cause=UNDECODABLE", vec![fifth, third, second, first]),
        ("cause=LOG_GAP", vec![]),
        ("topic=payment.compensation", vec![third]),
        ("topic=payment", vec![fifth, fourth, second, first]),
        (topic.as_str(), vec![fifth, fourth, second, first]),
        ("topic=stock", vec![]),
        (&format!("orderId={one}"), vec![third, first]),
        (&format!("orderId={other}&state=OPEN"), vec![fourth]),
        (
            &format!("orderId={one}&topic=payment&cause=UNDECODABLE"),
            vec![first],
        ),
        (&format!("orderId={}", Uuid::now_v7()), vec![]),
        ("state=OPEN&limit=2", vec![fifth, fourth]),
        (
            &format!("state=OPEN&limit=2&before={fourth}"),
            vec![third, first],
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(ids(api, query), expected, "{query}");
    }
}

#[test]
fn many_are_replayed_oldest_first_and_a_dry_run_changes_nothing() {
    let world = World::with("letters_many", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let api = payment.api();
    // a request that is given up, then three refunds
    fail(
        &mut world.db(Service::Payment),
        "update on account",
        "old.user_name = 'ann'",
        "23514",
    );
    let given_up = order.api().place("ann", "lamp", 7, 2);
    assert_eq!(
        statuses(&order.api().settled(given_up)),
        ["FAILED", "FAILED", "COMPENSATED"]
    );
    mend(&mut world.db(Service::Payment), "account");
    let (orders, numbers) = parked_refunds(&world, order.api(), api, &["ben", "cid", "dan"]);
    let [first, second, third, fourth] = wait_for_letters(api, 4)[..] else {
        panic!("four are parked")
    };
    assert_eq!(numbers, [second, third, fourth]);
    world.wait_until_quiet();

    let applied = |ids: &[i64]| {
        ids.iter()
            .map(|id| json!({"id": id, "result": APPLIED}))
            .collect::<Value>()
    };
    let why = format!("the request of order {given_up} was given up for good: it stays FAILED");
    let skipped = json!([{"id": first, "detail": why}]);
    let (tables, sent) = (world.tables(Service::Payment), world.all_records());
    let tried = post(api, "/dead-letters/replay?dryRun=true", &[]);
    let expected = json!({"dryRun": true, "matched": 4, "replayed": applied(&[second, third, fourth]),
        "skipped": skipped, "next": null});
    assert_eq!((tried.status, tried.json), (200, expected));
    assert_eq!(world.tables(Service::Payment), tables);
    assert_eq!(world.all_records(), sent);

    let call = |query: &str| {
        post(
            api,
            &format!("/dead-letters/replay?{query}"),
            &[("X-Actor", "eve")],
        )
        .json
    };
    let expected = json!({"dryRun": false, "matched": 1, "replayed": applied(&[third]), "skipped": [], "next": null});
    assert_eq!(call(&format!("orderId={}", orders[1])), expected);
    let expected = json!({"dryRun": false, "matched": 3, "replayed": applied(&[second]), "skipped": skipped, "next": second});
    assert_eq!(call("cause=GIVEN_UP&limit=2"), expected);
    let expected = json!({"dryRun": false, "matched": 1, "replayed": applied(&[fourth]), "skipped": [], "next": null});
    assert_eq!(
        call(&format!("cause=GIVEN_UP&limit=2&after={second}")),
        expected
    );
    let nothing =
        json!({"dryRun": false, "matched": 0, "replayed": [], "skipped": [], "next": null});
    assert_eq!(call("topic=payment.compensation"), nothing);
    assert_eq!(history(api, second), [of_replay("eve", APPLIED, None)]);
    orders
        .iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), REFUNDED));
    world.wait_until_quiet();
    assert_eq!(
        world.records("payment.success").len(),
        6,
        "completed and compensated, once each"
    );
    assert_eq!(
        ["ann", "ben", "cid", "dan"].map(|user| api.balance(user)),
        [1_000; 4]
    );
    world.assert_conserved();
}

#[test]
fn a_replay_whose_answer_can_not_be_stored_has_failed_and_holds_up_no_other() {
    let world = World::with("letters_append", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let api = payment.api();
    let (orders, numbers) = parked_refunds(&world, order.api(), api, &["ben", "cid"]);
    let [first, second] = numbers[..] else {
        panic!("two are parked")
    };
    let mut db = world.db(Service::Payment);
    fail(
        &mut db,
        "insert on payment_outbox",
        &format!("new.order_id = '{}'", orders[0]),
        "23514",
    );
    assert_eq!(replay(api, first), failed(MADE_TO_FAIL));
    assert_eq!(api.balance("ben"), 993, "the refund is undone");
    let replayed = json!([{"id": first, "result": "FAILED", "detail": MADE_TO_FAIL}, {"id": second, "result": APPLIED}]);
    for dry_run in [true, false] {
        let all = post(api, &format!("/dead-letters/replay?dryRun={dry_run}"), &[]).json;
        assert_eq!(all["replayed"], replayed, "dry run: {dry_run}");
    }
    assert_eq!(letter(api, first)["state"], "OPEN");
    assert_eq!(
        history(api, first),
        [(); 2].map(|()| of_replay("unknown", "FAILED", Some(MADE_TO_FAIL)))
    );
    mend(&mut db, "payment_outbox");
    assert_eq!(replay(api, first), json!({"result": APPLIED}));
    orders
        .iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), REFUNDED));
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn a_replay_of_many_passes_over_what_somebody_holds() {
    let world = World::with("letters_held", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let api = payment.api();
    let (orders, numbers) = parked_refunds(&world, order.api(), api, &["ann", "ben", "cid"]);
    let [anns, bens, cids] = numbers[..] else {
        panic!("three are parked")
    };
    let mut db = world.db(Service::Payment);
    let mut held = db.transaction().unwrap();
    held.execute("select from dead_letter where id = $1 for update", &[&anns])
        .unwrap();
    held.execute(
        "select from account where user_name = 'ben' for update",
        &[],
    )
    .unwrap();
    let why = "another database session holds a row or table that this call needs";
    for dry_run in [true, false] {
        let expected = json!({"dryRun": dry_run, "matched": 3, "replayed": [{"id": cids, "result": APPLIED}],
            "skipped": [{"id": anns, "detail": why}, {"id": bens, "detail": why}], "next": null});
        let answer = post(api, &format!("/dead-letters/replay?dryRun={dry_run}"), &[]);
        assert_eq!((answer.status, answer.json), (200, expected));
    }
    held.rollback().unwrap();
    let expected = json!({"dryRun": false, "matched": 2, "skipped": [], "next": null,
        "replayed": [{"id": anns, "result": APPLIED}, {"id": bens, "result": APPLIED}]});
    assert_eq!(post(api, "/dead-letters/replay", &[]).json, expected);
    orders
        .iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), REFUNDED));
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn a_replay_of_many_that_takes_long_answers_with_where_to_go_on() {
    let world = World::with("letters_long", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let api = payment.api();
    let (orders, numbers) = parked_refunds(&world, order.api(), api, &["ben", "cid"]);
    let [first, second] = numbers[..] else {
        panic!("two are parked")
    };
    let mut db = world.db(Service::Payment);
    // longer than the ten seconds after which no further one is begun
    db.batch_execute(
        "create function be_slow() returns trigger language plpgsql as $$ begin perform pg_sleep(11); return new; end $$;
         create trigger be_slow before insert on dead_letter_action for each row execute function be_slow()",
    )
    .unwrap();
    let applied = |id: i64| json!([{"id": id, "result": APPLIED}]);
    let expected = json!({"dryRun": false, "matched": 2, "replayed": applied(first), "skipped": [], "next": first});
    assert_eq!(post(api, "/dead-letters/replay", &[]).json, expected);
    db.batch_execute("drop trigger be_slow on dead_letter_action")
        .unwrap();
    let expected = json!({"dryRun": false, "matched": 1, "replayed": applied(second), "skipped": [], "next": null});
    assert_eq!(
        post(api, &format!("/dead-letters/replay?after={first}"), &[]).json,
        expected
    );
    orders
        .iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), REFUNDED));
    world.wait_until_quiet();
    world.assert_conserved();
}

#[test]
fn what_the_world_is_to_blame_for_ends_a_replay_and_counts_as_none() {
    let world = World::with("letters_world", &ONE_PARTITION);
    let [order, payment, _stock] = open_shop(&world);
    let api = payment.api();
    let (orders, numbers) = parked_refunds(&world, order.api(), api, &["ann", "ben", "cid"]);
    let mut db = world.db(Service::Payment);
    // 53100: the disk is full
    fail_refunds(&mut db, "ben", "53100");
    let answer = post(api, "/dead-letters/replay", &[]);
    let ended = "the database refuses: PostgreSQL: made to fail (SQLSTATE 53100); 1 of 3 dead letters were replayed, 0 skipped; repeat the request";
    assert_eq!(
        (
            answer.status,
            answer.json["detail"].as_str(),
            answer.header("retry-after")
        ),
        (503, Some(ended), Some("2"))
    );
    let states = || {
        numbers
            .iter()
            .map(|id| letter(api, *id)["state"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(), ["REPLAYED", "OPEN", "OPEN"]);
    assert_eq!(
        post(api, &format!("/dead-letters/{}/replay", numbers[1]), &[]).status,
        503
    );
    assert_eq!(letter(api, numbers[1])["replays"], 0);
    mend(&mut db, "account");
    let rest = post(api, "/dead-letters/replay", &[]).json;
    assert_eq!(
        rest["replayed"],
        json!([{"id": numbers[1], "result": APPLIED}, {"id": numbers[2], "result": APPLIED}])
    );
    orders
        .iter()
        .for_each(|id| assert_eq!(statuses(&order.api().settled(*id)), REFUNDED));
    world.assert_conserved();
}

#[test]
fn parked_records_are_listed_newest_first_in_pages_and_shown_with_their_bytes() {
    let world = World::with("letters_list", &ONE_PARTITION);
    let payment = world.start(Service::Payment);
    let api = payment.api();
    let message = Message {
        topic: "payment".into(),
        key: Some(b"ann".to_vec()),
        headers: vec![
            ("ce_type".into(), b"payment.requested".to_vec()),
            ("odd".into(), vec![0xff, 0x00]),
        ],
        value: Some(b"\x00caf\xc3\xa9\xff".to_vec()),
    };
    (0..5).for_each(|_| world.produce(&message));
    wait_for_parked(&world, Service::Payment, 5);
    let ids = |page: &Value| -> Vec<i64> {
        page["deadLetters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|letter| letter["id"].as_i64().unwrap())
            .collect()
    };
    let (first, second) = (
        api.found("/dead-letters?limit=2"),
        api.found("/dead-letters?limit=2&before=4"),
    );
    let third = api.found("/dead-letters?limit=2&before=2");
    assert_eq!(
        [&first, &second, &third].map(ids),
        [vec![5, 4], vec![3, 2], vec![1]]
    );
    assert_eq!(
        [&first, &second, &third].map(|page| page["next"].as_i64()),
        [Some(4), Some(2), None]
    );
    assert_eq!(ids(&api.found("/dead-letters")), [5, 4, 3, 2, 1]);

    let mut summary = first["deadLetters"][0].clone();
    let parked_at = summary.as_object_mut().unwrap().remove("parkedAt").unwrap();
    let expected = json!({"id": 5, "state": "OPEN", "cause": "UNDECODABLE", "detail": "the key is not an order id (UUID)",
        "attempts": 1, "topic": format!("{}payment", world.prefix()), "partition": 0, "offset": 4, "orderId": null,
        "replays": 0, "replayedAt": null, "replayResult": null, "discardedAt": null, "discardReason": null});
    assert_eq!(summary, expected);
    let mut shown = expected;
    shown["parkedAt"] = parked_at;
    shown["key"] = json!("ann");
    shown["keyBase64"] = json!("YW5u");
    shown["value"] = json!("\u{0}caf\u{e9}\u{fffd}");
    shown["valueBase64"] = json!("AGNhZsOp/w==");
    shown["headers"] = json!([
        {"name": "ce_type", "value": "payment.requested", "valueBase64": "cGF5bWVudC5yZXF1ZXN0ZWQ="},
        {"name": "odd", "value": "\u{fffd}\u{0}", "valueBase64": "/wA="},
    ]);
    shown["history"] = json!([]);
    assert_eq!(api.found("/dead-letters/5"), shown);
    assert_eq!(
        api.get("/dead-letters/6").json["detail"],
        "there is no dead letter 6"
    );
    assert_eq!(replay(api, 5), failed("the key is not an order id (UUID)"));
}
