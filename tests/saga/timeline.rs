//! An order's timeline (`GET /orders/{orderId}/timeline`), built from what its messages carry, each step found again on the topics.

use harness::{Api, Instance, Message, Seen, Service, World, until};
use serde_json::{Value, json};
use uuid::Uuid;

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A shop with a rich ann and many lamps.
fn open_shop(name: &str) -> (World, [Instance; 3]) {
    let world = World::with(
        name,
        &[("COMPENSATION_RETRY", "1h"), ("ORDER_DEADLINE", "1h")],
    );
    let instances = world.start_all();
    instances[1].api().put_balance("ann", 1_000);
    instances[2].api().put_quantity("lamp", 1_000);
    (world, instances)
}

/// Places an order with [`TRACEPARENT`].
fn place(api: &Api, user: &str, item: &str, price: i64) -> Uuid {
    let body = json!({"userName": user, "itemName": item, "price": price, "quantity": 2});
    let answer = api.json("POST", "/orders", &[("traceparent", TRACEPARENT)], &body);
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json["orderId"].as_str().unwrap().parse().unwrap()
}

fn timeline(api: &Api, order_id: Uuid) -> Value {
    api.found(&format!("/orders/{order_id}/timeline"))
}

fn steps(timeline: &Value) -> &Vec<Value> {
    timeline["steps"].as_array().expect("steps")
}

/// Step, service, type and attempt of the steps of one side, in their order.
fn side_of(timeline: &Value, side: &str) -> Vec<String> {
    let line = |step: &Value| {
        let text = |field: &str| step[field].as_str().unwrap().to_string();
        format!(
            "{} {} {} {}",
            text("step"),
            text("service"),
            text("type"),
            step["attempt"]
        )
    };
    steps(timeline)
        .iter()
        .filter(|step| step["side"] == side)
        .map(line)
        .collect()
}

fn header<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.headers
        .iter()
        .find(|(header, _)| header == name)
        .map(|(_, value)| value.as_str())
}

/// Each step is about a record that a read-committed reader sees at its place; each record is shown; all of them carry the
/// trace context of the answer; the steps are in time order.
fn assert_shown_as_seen(world: &World, order_id: Uuid, timeline: &Value) {
    let key = Some(order_id.to_string());
    let seen: Vec<Seen> = world
        .all_records()
        .into_iter()
        .filter(|seen| seen.key == key)
        .collect();
    for step in steps(timeline) {
        let topic = step["topic"]
            .as_str()
            .unwrap()
            .strip_prefix(world.prefix())
            .expect("the topic as Kafka names it");
        let at =
            |seen: &&Seen| (seen.partition, seen.offset) == place_of(step) && seen.topic == topic;
        let record = seen
            .iter()
            .find(at)
            .unwrap_or_else(|| panic!("no record at {step}"));
        assert_eq!(
            (&step["messageId"], &step["type"]),
            (&json!(record.ce_id), &json!(record.ce_type)),
            "{step}"
        );
        assert_eq!(
            step["side"],
            record.ce_type.split('.').next().unwrap(),
            "{step}"
        );
        assert_time(world, step, record);
    }
    for record in &seen {
        let shown = steps(timeline)
            .iter()
            .any(|step| step["messageId"] == record.ce_id);
        assert!(shown, "nothing is shown of {record:?}");
        assert_eq!(
            header(record, "traceparent"),
            timeline["traceparent"].as_str(),
            "{record:?}"
        );
    }
    let times: Vec<&str> = steps(timeline)
        .iter()
        .map(|step| step["at"].as_str().unwrap().trim_end_matches('Z'))
        .collect();
    assert!(times.is_sorted(), "{times:?}");
}

fn place_of(step: &Value) -> (i32, i64) {
    (
        step["partition"].as_i64().unwrap_or(-1) as i32,
        step["offset"].as_i64().unwrap_or(-1),
    )
}

fn assert_time(world: &World, step: &Value, record: &Seen) {
    let at = step["at"].as_str().unwrap();
    match step["step"].as_str().unwrap() {
        "STORED" | "SUCCEEDED" | "FAILED" | "COMPENSATION_ASKED" | "CONFIRMED" => {
            assert_eq!(at, record.ce_time, "{step}")
        }
        "PUBLISHED" | "ANSWERED" | "COMPENSATION_PUBLISHED" => {
            assert!(at.starts_with(&millis(world, record.timestamp)), "{step}")
        }
        "ASKED" | "LEARNED" => {}
        other => panic!("no such step: {other}"),
    }
}

/// A record's timestamp, as RFC 3339 has it, without `Z`.
fn millis(world: &World, timestamp: i64) -> String {
    let sql = r#"select to_char(timestamptz 'epoch' + $1::bigint * interval '1 millisecond', 'YYYY-MM-DD"T"HH24:MI:SS.MS')"#;
    let mut db = world.db(Service::Order);
    db.batch_execute("set timezone to 'UTC'").unwrap();
    db.query_one(sql, &[&timestamp]).unwrap().get(0)
}

fn completed(side: &str) -> Vec<String> {
    vec![
        format!("STORED order {side}.requested null"),
        format!("PUBLISHED order {side}.requested null"),
        format!("ASKED {side} {side}.requested 1"),
        format!("SUCCEEDED {side} {side}.completed 1"),
        format!("ANSWERED {side} {side}.completed null"),
        format!("LEARNED order {side}.completed 1"),
    ]
}

#[test]
fn a_completed_order_is_listed_step_by_step_as_its_records_lie_on_the_topics() {
    let (world, [order, ..]) = open_shop("timeline_completed");
    let id = place(order.api(), "ann", "lamp", 7);
    assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
    world.wait_until_quiet();
    let shown = timeline(order.api(), id);
    let head = [
        "orderId",
        "traceId",
        "traceparent",
        "orderStatus",
        "settled",
    ]
    .map(|field| shown[field].clone());
    let expected = [
        json!(id),
        json!(TRACE_ID),
        json!(TRACEPARENT),
        json!("COMPLETED"),
        json!(true),
    ];
    assert_eq!(head, expected);
    assert_eq!(side_of(&shown, "payment"), completed("payment"));
    assert_eq!(side_of(&shown, "stock"), completed("stock"));
    assert_shown_as_seen(&world, id, &shown);
}

#[test]
fn a_failed_order_shows_why_and_how_the_other_side_was_compensated() {
    let (world, [order, ..]) = open_shop("timeline_failed");
    let id = place(order.api(), "ann", "lamp", 5_000);
    assert_eq!(order.api().settled(id)["stockStatus"], "COMPENSATED");
    world.wait_until_quiet();
    let shown = timeline(order.api(), id);
    assert_eq!(
        (&shown["orderStatus"], &shown["settled"]),
        (&json!("FAILED"), &json!(true))
    );
    assert_eq!(
        side_of(&shown, "payment"),
        [
            "STORED order payment.requested null",
            "PUBLISHED order payment.requested null",
            "ASKED payment payment.requested 1",
            "FAILED payment payment.failed 1",
            "ANSWERED payment payment.failed null",
            "LEARNED order payment.failed 1",
        ]
    );
    let compensated = [
        "COMPENSATION_ASKED order stock.compensation-requested null",
        "COMPENSATION_PUBLISHED order stock.compensation-requested null",
        "CONFIRMED stock stock.compensated 1",
        "ANSWERED stock stock.compensated null",
        "LEARNED order stock.compensated 1",
    ];
    assert_eq!(
        side_of(&shown, "stock"),
        [completed("stock"), compensated.map(String::from).to_vec()].concat()
    );
    let reason = json!({"code": "INSUFFICIENT_BALANCE", "from": "payment"});
    let reasons: Vec<_> = steps(&shown)
        .iter()
        .filter(|step| step["reason"] == reason)
        .map(|step| &step["step"])
        .collect();
    assert_eq!(reasons, ["FAILED", "COMPENSATION_ASKED"]);
    assert_shown_as_seen(&world, id, &shown);
}

#[test]
fn what_waits_for_a_participant_that_is_away_is_stored_and_published_and_not_asked() {
    let (world, [order, payment, stock]) = open_shop("timeline_away");
    assert!(payment.stop().success() && stock.stop().success());
    let id = place(order.api(), "ann", "lamp", 7);
    until("its requests to be published", || {
        order.api().order(id)["paymentStatus"] == "IN_PROGRESS"
    });
    let shown = timeline(order.api(), id);
    for side in ["payment", "stock"] {
        let expected = [
            format!("STORED order {side}.requested null"),
            format!("PUBLISHED order {side}.requested null"),
        ];
        assert_eq!(side_of(&shown, side), expected);
        let records = world.records(side);
        let [stored, published] = [0, 1].map(|at| {
            steps(&shown)
                .iter()
                .filter(|step| step["side"] == side)
                .nth(at)
                .unwrap()
        });
        for step in [stored, published] {
            assert_eq!(step["messageId"], records[0].ce_id, "{step}");
            assert_eq!(
                (&step["partition"], &step["offset"]),
                (&Value::Null, &Value::Null)
            );
        }
        assert_eq!(stored["at"], records[0].ce_time);
        assert!(published["at"].as_str().unwrap() >= millis(&world, records[0].timestamp).as_str());
    }
    assert_eq!(
        (&shown["orderStatus"], &shown["settled"]),
        (&json!("IN_PROGRESS"), &json!(false))
    );
    let _back = [world.start(Service::Payment), world.start(Service::Stock)];
    assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
    world.wait_until_quiet();
    let shown = timeline(order.api(), id);
    assert_eq!(
        (side_of(&shown, "payment"), side_of(&shown, "stock")),
        (completed("payment"), completed("stock"))
    );
    assert_shown_as_seen(&world, id, &shown);
}

#[test]
fn a_compensation_that_is_not_confirmed_yet_is_listed_with_the_reason() {
    let (world, [order, payment, stock]) = open_shop("timeline_unconfirmed");
    assert!(payment.stop().success() && stock.stop().success() && order.stop().success());
    let order = world.launch(Service::Order, &[("ORDER_DEADLINE", "1ms")]);
    order.wait_until_ready();
    let id = place(order.api(), "ann", "lamp", 7);
    until("the compensation to be asked for", || {
        order.api().order(id)["stockStatus"] == "COMPENSATING"
    });
    world.wait_until_published(Service::Order);
    let shown = timeline(order.api(), id);
    for side in ["payment", "stock"] {
        assert_eq!(
            side_of(&shown, side)[2..],
            [format!(
                "COMPENSATION_ASKED order {side}.compensation-requested null"
            )]
        );
        let asked = steps(&shown)
            .iter()
            .rfind(|step| step["side"] == side)
            .unwrap();
        assert_eq!(
            asked["messageId"],
            world.records(&format!("{side}.compensation"))[0].ce_id
        );
        assert_eq!(
            asked["reason"],
            json!({"code": "DEADLINE", "from": "order"})
        );
    }
}

/// Has payment fail by the message's fault at its first two attempts; the count outlives the rollback.
const TWO_FAILURES: &str = "create sequence tries;
    create function fail_twice() returns trigger language plpgsql as
    $$ begin if nextval('tries') <= 2 then raise exception 'made to fail' using errcode = '23514'; end if; return new; end $$;
    create trigger fail_twice before update on account for each row execute function fail_twice()";

#[test]
fn the_attempt_that_led_to_the_answer_is_listed() {
    let (world, [order, ..]) = open_shop("timeline_attempts");
    world
        .db(Service::Payment)
        .batch_execute(TWO_FAILURES)
        .unwrap();
    let id = place(order.api(), "ann", "lamp", 7);
    assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
    world.wait_until_quiet();
    let shown = timeline(order.api(), id);
    assert_eq!(
        side_of(&shown, "payment"),
        [
            "STORED order payment.requested null",
            "PUBLISHED order payment.requested null",
            "ASKED payment payment.requested 3",
            "SUCCEEDED payment payment.completed 3",
            "ANSWERED payment payment.completed null",
            "LEARNED order payment.completed 1",
        ]
    );
    assert_eq!(side_of(&shown, "stock"), completed("stock"));
    assert_shown_as_seen(&world, id, &shown);
}

/// Spoils order's requests of these prices: one can't be decoded, one fails by its own fault (22021).
const POISON: &str = r#"create function spoil() returns trigger language plpgsql as
    $$ begin
        new.messages = replace(replace(new.messages::text, '"price":77', '"price":0'), '"nul"', '"n\u0000l"')::json;
        return new;
    end $$;
    create trigger spoil before insert on order_outbox for each row execute function spoil()"#;

#[test]
fn a_request_that_was_given_up_is_listed_with_its_attempts_and_keeps_its_trace() {
    let (world, [order, ..]) = open_shop("timeline_given_up");
    world.spoils_messages();
    world.db(Service::Order).batch_execute(POISON).unwrap();
    let undecodable = (place(order.api(), "ann", "lamp", 77), 1);
    let given_up = (place(order.api(), "nul", "lamp", 7), 5);
    for (id, attempts) in [undecodable, given_up] {
        assert_eq!(order.api().settled(id)["orderStatus"], "FAILED");
        world.wait_until_quiet();
        let shown = timeline(order.api(), id);
        assert_eq!(
            side_of(&shown, "payment"),
            [
                "STORED order payment.requested null".to_string(),
                "PUBLISHED order payment.requested null".to_string(),
                format!("ASKED payment payment.requested {attempts}"),
                format!("FAILED payment payment.failed {attempts}"),
                "ANSWERED payment payment.failed null".to_string(),
                "LEARNED order payment.failed 1".to_string(),
            ]
        );
        assert_eq!(shown["traceparent"], TRACEPARENT);
        assert_shown_as_seen(&world, id, &shown);
    }
}

#[test]
fn topics_replayed_from_their_beginning_add_nothing_to_a_story() {
    let (world, instances) = open_shop("timeline_replayed");
    let id = place(instances[0].api(), "ann", "lamp", 5_000);
    assert_eq!(instances[0].api().settled(id)["stockStatus"], "COMPENSATED");
    world.wait_until_quiet();
    let before = timeline(instances[0].api(), id);
    assert_eq!(steps(&before).len(), 17);
    let rows = || world.tables(Service::Order).remove("timeline").unwrap();
    let kept = rows();
    assert_eq!(
        kept.len(),
        4,
        "two answers, a compensation request, its confirmation"
    );
    assert!(instances.iter().all(|instance| instance.stop().success()));
    for service in Service::ALL {
        let forgotten = world
            .db(service)
            .execute("delete from consumer_offset", &[])
            .unwrap();
        assert!(forgotten > 0, "{service:?} had read nothing");
    }
    let [order, ..] = world.start_all();
    world.wait_until_quiet();
    assert_eq!((timeline(order.api(), id), rows()), (before, kept));
}

/// A success as a participant of the version before sends it, with this header if there is one.
fn success(id: Uuid, answers: Option<Vec<u8>>) -> Message {
    let mut message = Message::event(
        "payment.success",
        id,
        "payment.completed",
        &json!({"orderId": id}),
    );
    message
        .headers
        .extend(answers.map(|text| ("answers".to_string(), text)));
    message
}

#[test]
fn an_answer_that_does_not_say_what_it_answers_still_gives_a_story() {
    let (world, [order, payment, _stock]) = open_shop("timeline_old");
    assert!(payment.stop().success());
    let future =
        br#"{"partition":0,"offset":1,"takenUp":9223372036854775807,"attempt":1}"#.to_vec();
    for answers in [
        None,
        Some(b"{".to_vec()),
        Some(future),
        Some(vec![b' '; 900_000]),
    ] {
        let id = place(order.api(), "ann", "lamp", 7);
        until("stock's answer", || {
            order.api().order(id)["stockStatus"] == "COMPLETED"
        });
        until("the order to be marked", || {
            order.api().order(id)["paymentStatus"] == "IN_PROGRESS"
        });
        world.produce(&success(id, answers));
        assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
        let shown = timeline(order.api(), id);
        assert_eq!(
            side_of(&shown, "payment"),
            [
                // as old as its `ce_time` says, and yet not before what led to it
                "STORED order payment.requested null",
                "PUBLISHED order payment.requested null",
                "SUCCEEDED payment payment.completed null",
                "ANSWERED payment payment.completed null",
                "LEARNED order payment.completed 1",
            ]
        );
        assert_eq!(side_of(&shown, "stock"), completed("stock"));
        let published = |side: &str| {
            let published = |step: &&Value| step["step"] == "PUBLISHED" && step["side"] == side;
            steps(&shown).iter().find(published).unwrap().clone()
        };
        assert_eq!(
            published("payment")["at"],
            published("stock")["at"],
            "one transaction"
        );
        let request = world
            .records("payment")
            .into_iter()
            .find(|seen| seen.key == Some(id.to_string()))
            .unwrap();
        assert_eq!(published("payment")["messageId"], request.ce_id);
        assert_eq!(world.parked(), 0);
    }
}

#[test]
fn a_timeline_is_written_as_an_aligned_table_too() {
    let (world, [order, ..]) = open_shop("timeline_text");
    let id = place(order.api(), "ann", "lamp", 5_000);
    assert_eq!(order.api().settled(id)["orderStatus"], "FAILED");
    world.wait_until_quiet();
    let shown = timeline(order.api(), id);
    let path = format!("/orders/{id}/timeline");
    let answer = order
        .api()
        .call("GET", &path, &[("Accept", "text/plain")], None)
        .unwrap();
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("text/plain; charset=utf-8"))
    );
    let lines: Vec<&str> = answer.text.lines().collect();
    assert_eq!(
        lines[0],
        format!("order {id}  FAILED, settled  trace {TRACE_ID}")
    );
    assert_eq!(lines[1], "");
    let columns = [
        "TIME",
        "STEP",
        "SERVICE",
        "MESSAGE",
        "TOPIC-PARTITION-OFFSET",
        "ATTEMPT",
        "REASON",
    ];
    let starts = columns.map(|column| lines[2].find(column).unwrap());
    let row = |line: &str| -> Vec<String> {
        let ends = starts.iter().skip(1).copied().chain([line.len()]);
        let cell = |(start, end): (&usize, usize)| {
            line.get(*start..end.min(line.len()))
                .unwrap_or("")
                .trim_end()
        };
        starts
            .iter()
            .zip(ends)
            .map(|place| cell(place).to_string())
            .collect()
    };
    let expected: Vec<Vec<String>> = steps(&shown)
        .iter()
        .map(|step| {
            let text = |field: &str| step[field].as_str().unwrap().to_string();
            let place = format!("{}-{}-{}", text("topic"), step["partition"], step["offset"]);
            let attempt = step["attempt"]
                .as_i64()
                .map_or("-".into(), |attempt| attempt.to_string());
            let reason = step["reason"]["code"].as_str().unwrap_or("").to_string();
            vec![
                text("at"),
                text("step"),
                text("service"),
                text("messageId"),
                place,
                attempt,
                reason,
            ]
        })
        .collect();
    assert_eq!(
        lines[3..].iter().map(|line| row(line)).collect::<Vec<_>>(),
        expected
    );
    for accept in ["application/json", "text/html", "*/*"] {
        let json = order
            .api()
            .call("GET", &path, &[("Accept", accept)], None)
            .unwrap();
        assert_eq!(
            (json.header("content-type"), &json.json),
            (Some("application/json"), &shown),
            "{accept}"
        );
    }
}

#[test]
fn without_a_trace_context_of_the_client_one_is_made_and_is_the_same_everywhere() {
    let (world, [order, ..]) = open_shop("timeline_trace");
    let ids = [
        order.api().place("ann", "lamp", 5_000, 1),
        order.api().place("ann", "lamp", 7, 1),
    ];
    let traces = ids.map(|id| {
        order.api().settled(id);
        world.wait_until_quiet();
        let shown = timeline(order.api(), id);
        assert_shown_as_seen(&world, id, &shown);
        let traceparent = shown["traceparent"].as_str().unwrap();
        let trace_id = shown["traceId"].as_str().unwrap();
        assert!(
            traceparent.starts_with(&format!("00-{trace_id}-")) && trace_id.len() == 32,
            "{traceparent}"
        );
        trace_id.to_string()
    });
    assert_ne!(traces[0], traces[1]);
}
