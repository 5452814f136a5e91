//! More orders than can be settled: what is accepted settles in time, and the rest is refused without a trace (I10).

use std::collections::BTreeSet;
use std::time::Duration;

use harness::flood::{Answered, Flood, Flooded};
use harness::{Answer, Instance, Service, World, contract, eventually, is_refusal, until, wire};
use serde_json::{Value, json};
use uuid::Uuid;

/// Short, so that what is accepted beyond what can be settled fails while the load lasts. A quarter of it is the limit.
const DEADLINE: (&str, &str) = ("ORDER_DEADLINE", "12s");
/// What payment takes for one request, on any machine: some 300 a second.
const SLOW: &str = "create function be_slow() returns trigger language plpgsql as
                    $$ begin perform pg_sleep(0.003); return new; end $$;
                    create trigger be_slow before insert on payment for each row execute function be_slow()";
/// Several times as many as payment takes; more would be work for the clients only, who share the machine.
const RATE: f64 = 1_000.0;
/// An order that waits for its turn keeps its connection: they are more than payment takes in three seconds, less a batch.
const CONNECTIONS: usize = 900;
/// Two deadlines.
const TIME: Duration = Duration::from_secs(24);
/// One order in so many is that of a user whom payment does not know.
const FAILING: usize = 10;

fn key(number: usize) -> String {
    format!("order-{number}")
}

fn terms(number: usize) -> Value {
    let user = if number.is_multiple_of(FAILING) {
        "nobody"
    } else {
        "ann"
    };
    json!({"userName": user, "itemName": "lamp", "price": 3, "quantity": 2})
}

fn end(number: usize) -> &'static str {
    if number.is_multiple_of(FAILING) {
        "FAILED"
    } else {
        "COMPLETED"
    }
}

fn placed(answer: &Answer) -> Uuid {
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json["orderId"].as_str().unwrap().parse().unwrap()
}

/// Places far more orders than can be settled, each under a key of its own.
fn flood(order: &Instance) -> Flooded {
    let flood = Flood {
        ports: vec![order.port()],
        connections: CONNECTIONS,
        rate: RATE,
        time: TIME,
    };
    let request = |number| {
        let mut request = vec![];
        let key = key(number);
        wire::write_post(
            &mut request,
            "/orders",
            &[("Idempotency-Key", &key)],
            &terms(number).to_string(),
        )
        .unwrap();
        request
    };
    let requests: Vec<Vec<u8>> = (0..(RATE * TIME.as_secs_f64()) as usize)
        .map(request)
        .collect();
    flood.run(&requests).unwrap()
}

fn count(world: &World, service: Service, sql: &str) -> i64 {
    world
        .db(service)
        .query_one(&format!("select count(*) from {sql}"), &[])
        .unwrap()
        .get(0)
}

fn failed_by_deadline(world: &World) -> i64 {
    count(
        world,
        Service::Order,
        "orders where reason_code = 'DEADLINE'",
    )
}

const UNSETTLED: &str =
    "orders where order_status = 'IN_PROGRESS' or payment_status in ('READY', 'IN_PROGRESS', 'COMPENSATING')
                                   or stock_status in ('READY', 'IN_PROGRESS', 'COMPENSATING')";

/// An answer of which the load kept the text.
fn whole(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let (first, headers) = head.split_once("\r\n").unwrap();
    let header = |line: &str| {
        line.split_once(": ")
            .map(|(name, value)| (name.to_lowercase(), value.to_string()))
    };
    Answer {
        status: first.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: headers.split("\r\n").filter_map(header).collect(),
        json: serde_json::from_str(body).unwrap_or_default(),
        text: body.to_string(),
    }
}

/// A problem document that says when to come again, and names no order.
fn assert_refusal(text: &str) {
    let answer = whole(text);
    contract::check("POST", "/orders", &answer);
    assert_eq!(answer.status, 503, "{text}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json"),
        "{text}"
    );
    let retry_after: Option<u32> = answer
        .header("retry-after")
        .and_then(|seconds| seconds.parse().ok());
    assert!(
        retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)),
        "{text}"
    );
    assert_eq!(answer.json["status"], 503);
    assert_eq!(
        answer.json["orderId"],
        Value::Null,
        "nothing was stored: {text}"
    );
}

/// What the service itself counts.
fn refused_total(order: &Instance) -> usize {
    let text = order.api().get("/metrics").text;
    let lines = text.lines().filter_map(|line| {
        line.strip_prefix("saga_orders_refused_total{")?
            .split_once("} ")
    });
    lines
        .map(|(_, value)| value.parse::<f64>().unwrap() as usize)
        .sum()
}

/// Exactly these orders are in the tables, each with all that belongs to it.
fn assert_nothing_else_was_stored(world: &World, accepted: &BTreeSet<Uuid>) {
    let ids = |service, sql: &str| -> BTreeSet<Uuid> {
        world
            .db(service)
            .query(sql, &[])
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect()
    };
    for (service, table) in [
        (Service::Order, "orders"),
        (Service::Order, "idempotency_key"),
        (Service::Order, "timeline"),
        (Service::Payment, "payment"),
        (Service::Stock, "reservation"),
    ] {
        assert_eq!(
            &ids(service, &format!("select order_id from {table}")),
            accepted,
            "{table}"
        );
    }
    assert_eq!(
        count(world, Service::Order, "idempotency_key"),
        accepted.len() as i64
    );
}

#[test]
fn above_capacity_what_is_accepted_settles_in_time_and_the_rest_is_refused_without_a_trace() {
    let world = World::with("overload", &[DEADLINE]);
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 1_000_000_000);
    stock.api().put_quantity("lamp", 1_000_000_000);
    // payment's consumer and order's admission have worked before they are slowed down
    let first = placed(&order.api().json(
        "POST",
        "/orders",
        &[("Idempotency-Key", "first")],
        &terms(1),
    ));
    assert_eq!(order.api().settled(first)["orderStatus"], "COMPLETED");
    world.db(Service::Payment).batch_execute(SLOW).unwrap();

    let flooded = flood(&order);

    let answered = &flooded.answered;
    let accepted: Vec<&Answered> = answered.iter().filter(|it| it.status == 202).collect();
    let refused: Vec<&Answered> = answered.iter().filter(|it| is_refusal(it.status)).collect();
    assert_eq!(
        accepted.len() + refused.len(),
        flooded.answered.len(),
        "{:?}",
        flooded.refusals.first()
    );
    assert_eq!(flooded.lost, [0; 0]);
    assert!(!accepted.is_empty());
    assert_eq!(
        failed_by_deadline(&world),
        0,
        "of {} accepted orders",
        accepted.len()
    );
    assert!(!refused.is_empty());
    flooded
        .refusals
        .iter()
        .for_each(|(_, text)| assert_refusal(text));
    assert_eq!(refused_total(&order), refused.len());

    until("what was accepted to settle", || {
        count(&world, Service::Order, UNSETTLED) == 0
    });
    assert_eq!(
        failed_by_deadline(&world),
        0,
        "of {} accepted orders",
        accepted.len()
    );
    let mut stored: BTreeSet<Uuid> = accepted
        .iter()
        .map(|answered| answered.order_id.unwrap())
        .collect();
    assert_eq!(stored.len(), accepted.len());
    stored.insert(first);
    for Answered {
        number, order_id, ..
    } in accepted.iter().rev().take(2 * FAILING)
    {
        assert_eq!(
            order.api().order(order_id.unwrap())["orderStatus"],
            end(*number)
        );
    }

    // a refused request can be repeated, by its key, as if it had not been sent before
    let number = refused[0].number;
    let repeat = || {
        order.api().json(
            "POST",
            "/orders",
            &[("Idempotency-Key", &key(number))],
            &terms(number),
        )
    };
    let answer = eventually("the repeated order to be accepted", || {
        Some(repeat()).filter(|answer| answer.status == 202)
    });
    let order_id = placed(&answer);
    assert_eq!(order.api().settled(order_id)["orderStatus"], end(number));
    assert_eq!(
        repeat().text,
        answer.text,
        "from then on the key stands for this order"
    );
    assert!(stored.insert(order_id));

    world.wait_until_quiet();
    assert_nothing_else_was_stored(&world, &stored);
    assert_eq!(world.parked(), 0);
    world.assert_conserved();
    until("admission to be open, with nothing in flight", || {
        let admission = &order.api().found("/overview")["admission"];
        admission["open"] == true
            && admission["inFlight"] == 0
            && admission["refused"].as_u64() >= Some(refused.len() as u64)
    });
}
