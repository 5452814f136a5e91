//! Spans of an order, in a real Jaeger; and collectors that are no good cost no order.

use std::net::TcpListener;

use harness::jaeger::{Jaeger, Shown};
use harness::{Api, Instance, Service, World, eventually, free_port, until};
use serde_json::json;
use uuid::Uuid;

use crate::operations::metric;

/// A caller's own span, which it has recorded elsewhere.
const CALLER: &str = "00f067aa0ba902b7";
const DROPPED: &str = r#"saga_trace_spans_total{outcome="dropped"}"#;

fn place(api: &Api, trace_id: &str, flags: &str, user: &str, price: i64) -> Uuid {
    let body = json!({"userName": user, "itemName": "lamp", "price": price, "quantity": 1});
    let traceparent = format!("00-{trace_id}-{CALLER}-{flags}");
    let headers = [("traceparent", &*traceparent)];
    let answer = api.json("POST", "/orders", &headers, &body);
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json["orderId"].as_str().unwrap().parse().unwrap()
}

fn open_shop(world: &World) -> [Instance; 3] {
    let instances = world.start_all();
    instances[1].api().put_balance("ann", 1_000);
    instances[1].api().put_balance("kim", 1_000);
    instances[2].api().put_quantity("lamp", 1_000);
    instances
}

/// Each span as "its title < its parent's title", sorted; a parent that Jaeger does not have by its id.
fn tree(spans: &[Shown]) -> Vec<String> {
    let title = |id: &String| {
        let parent = spans.iter().find(|span| span.id == *id);
        parent.map_or(id.clone(), |parent| parent.title.clone())
    };
    let line = |span: &Shown| {
        let parent = span.parent.as_ref().map_or("nothing".into(), title);
        format!("{} < {parent}", span.title)
    };
    let mut lines: Vec<String> = spans.iter().map(line).collect();
    lines.sort();
    lines
}

/// The spans of a trace, once there are so many.
fn trace(jaeger: &Jaeger, trace_id: &str, count: usize) -> Vec<Shown> {
    eventually(&format!("{count} spans of {trace_id}"), || {
        Some(jaeger.trace(trace_id)).filter(|spans| spans.len() >= count)
    })
}

/// `./run.sh proof`, or `JAEGER_BIN=… cargo test -p saga-tests --test saga jaeger -- --include-ignored`.
#[test]
#[ignore = "needs Jaeger"]
fn jaeger_shows_each_step_of_an_order_below_the_one_that_caused_it() {
    let jaeger = Jaeger::start();
    let endpoint = jaeger.endpoint();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "300000"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let world = World::with("traces", &settings);
    let [order, payment, stock] = open_shop(&world);
    let api = order.api();

    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let completed = place(api, trace_id, "01", "ann", 10);
    assert_eq!(api.settled(completed)["orderStatus"], "COMPLETED");
    let spans = trace(&jaeger, trace_id, 12);
    assert_eq!(
        tree(&spans),
        [
            "order: POST /orders < 00f067aa0ba902b7",
            "order: decide order < order: process payment.success",
            "order: decide order < order: process stock.success",
            "order: process payment.success < payment: send payment.success",
            "order: process stock.success < stock: send stock.success",
            "order: send payment < order: POST /orders",
            "order: send stock < order: POST /orders",
            "order: store order < order: POST /orders",
            "payment: process payment < order: send payment",
            "payment: send payment.success < payment: process payment",
            "stock: process stock < order: send stock",
            "stock: send stock.success < stock: process stock",
        ]
    );
    let request = spans
        .iter()
        .find(|span| span.title == "order: POST /orders");
    let tags = &request.unwrap().tags;
    assert_eq!(tags["http.response.status_code"], "202");
    assert_eq!(tags["saga.order.id"], completed.to_string());
    let decided = spans
        .iter()
        .filter_map(|span| span.tags.get("saga.order.status"));
    let mut decided: Vec<&String> = decided.collect();
    decided.sort();
    assert_eq!(decided, ["COMPLETED", "IN_PROGRESS"]);

    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let compensated = place(api, trace_id, "01", "ann", 5_000);
    let settled = api.settled(compensated);
    assert_eq!(settled["stockStatus"], "COMPENSATED", "{settled}");
    let spans = trace(&jaeger, trace_id, 17);
    let failed = spans
        .iter()
        .find(|span| span.title == "order: process payment.dlt");
    let tags = &failed.unwrap().tags;
    assert_eq!(tags["saga.message.type"], "payment.failed");
    assert_eq!(tags["saga.reason"], "INSUFFICIENT_BALANCE");
    let shown = tree(&spans);
    // whichever of the two answers came second has asked for it
    let asked = shown
        .iter()
        .find(|line| line.starts_with("order: send stock.compensation"));
    let by = asked.unwrap().split(" < ").nth(1).unwrap();
    assert!(
        ["order: process payment.dlt", "order: process stock.success"].contains(&by),
        "{shown:?}"
    );
    let others: Vec<&String> = shown.iter().filter(|line| Some(*line) != asked).collect();
    assert_eq!(
        others,
        [
            "order: POST /orders < 00f067aa0ba902b7",
            "order: decide order < order: process payment.dlt",
            "order: decide order < order: process stock.success",
            "order: decide order < order: process stock.success",
            "order: process payment.dlt < payment: send payment.dlt",
            "order: process stock.success < stock: send stock.success",
            "order: process stock.success < stock: send stock.success",
            "order: send payment < order: POST /orders",
            "order: send stock < order: POST /orders",
            "order: store order < order: POST /orders",
            "payment: process payment < order: send payment",
            "payment: send payment.dlt < payment: process payment",
            "stock: process stock < order: send stock",
            "stock: process stock.compensation < order: send stock.compensation",
            "stock: send stock.success < stock: process stock",
            "stock: send stock.success < stock: process stock.compensation",
        ]
    );

    // attempts, each with why it failed; what follows is below the last
    let trace_id = "7e31b0d2c8f94a1e9d5c6b7a8f901234";
    let constraint = "alter table payment add constraint not_kim check (user_name <> 'kim')";
    world
        .db(Service::Payment)
        .batch_execute(constraint)
        .unwrap();
    let given_up = place(api, trace_id, "01", "kim", 10);
    assert_eq!(api.settled(given_up)["paymentStatus"], "FAILED");
    let spans = trace(&jaeger, trace_id, 21);
    let attempts = spans
        .iter()
        .filter(|span| span.title == "payment: process payment");
    let mut attempts: Vec<(&str, &str, &str)> = attempts
        .map(|span| {
            let tag = |name: &str| span.tags.get(name).map_or("", String::as_str);
            assert!(
                tag("otel.status_description").contains("not_kim"),
                "{span:?}"
            );
            (tag("saga.attempt"), tag("otel.status_code"), &*span.id)
        })
        .collect();
    attempts.sort();
    let numbers: Vec<(&str, &str)> = attempts.iter().map(|it| (it.0, it.1)).collect();
    assert_eq!(
        numbers,
        [
            ("1", "ERROR"),
            ("2", "ERROR"),
            ("3", "ERROR"),
            ("4", "ERROR"),
            ("5", "ERROR")
        ]
    );
    let answer = spans
        .iter()
        .find(|span| span.title == "payment: send payment.dlt");
    assert_eq!(answer.unwrap().parent.as_deref(), Some(attempts[4].2));

    // a caller that does not record its request has none of it recorded
    let trace_id = "11111111111111111111111111111111";
    api.settled(place(api, trace_id, "00", "ann", 10));
    for instance in [&order, &payment] {
        assert_eq!(metric(instance, DROPPED), 0.0);
    }
    for instance in [&order, &payment, &stock] {
        assert!(instance.stop().success());
    }
    assert_eq!(jaeger.trace(trace_id).len(), 0);
    assert_eq!(jaeger.trace("4bf92f3577b34da6a3ce929d0e0e4736").len(), 12);
}

/// One refuses, one takes connections and never answers.
#[test]
fn a_collector_that_is_no_good_costs_spans_and_no_order() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for port in [free_port(), silent.local_addr().unwrap().port()] {
        let endpoint = format!("http://127.0.0.1:{port}");
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
        ];
        let world = World::with("traces_away", &settings);
        let [order, payment, stock] = open_shop(&world);
        let api = order.api();
        let placed: Vec<Uuid> = (0..20).map(|_| api.place("ann", "lamp", 10, 1)).collect();
        for order_id in placed {
            assert_eq!(api.settled(order_id)["orderStatus"], "COMPLETED");
        }
        for instance in [&order, &payment, &stock] {
            until("spans to be dropped", || metric(instance, DROPPED) > 0.0);
            let exported = r#"saga_trace_spans_total{outcome="exported"}"#;
            assert_eq!(metric(instance, exported), 0.0);
            instance.wait_for_log("the collector does not take them");
            assert_eq!(instance.api().get("/healthz").status, 200);
            assert!(instance.stop().success());
        }
    }
}
