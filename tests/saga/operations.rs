//! What is reported of a service's health, and what it counts.

use std::collections::BTreeSet;

use harness::proxy::kafka_request;
use harness::{Answer, Instance, Proxy, Service, World, eventually, threads, until};
use serde_json::{Value, json};

const JOIN_GROUP: i16 = 11;
/// Short enough for a test; every thread turns once a second at least.
const HEARTBEAT: (&str, &str) = ("HEARTBEAT_LIMIT", "5s");

fn healthy() -> Value {
    json!({"status": "ok", "reasons": []})
}

fn reasons(answer: &Answer) -> String {
    answer.json["reasons"].to_string()
}

/// The value of a series as it stands in the text: name, then labels if there are any.
pub(crate) fn metric(instance: &Instance, series: &str) -> f64 {
    let text = instance.api().get("/metrics").text;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("no {series} in\n{text}"))
}

fn wait_until_ready(instance: &Instance) {
    until(
        &format!("{} to be ready", instance.service().name()),
        || instance.api().get("/readyz").status == 200,
    );
}

#[test]
fn a_running_service_is_healthy_ready_and_counts_what_it_does() {
    let world = World::new("operations");
    let [order, payment, stock] = world.start_all();
    [&order, &payment, &stock]
        .into_iter()
        .for_each(wait_until_ready);
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("pen", 10);
    let completed = order.api().place("ann", "pen", 60, 1);
    order.api().settled(completed);
    let failed = order.api().place("ann", "pen", 60, 1);
    order.api().settled(failed);

    for instance in [&order, &payment, &stock] {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(instance.api().found(path), healthy(), "{path}");
        }
        assert_eq!(metric(instance, "saga_ready"), 1.0);
        assert_eq!(metric(instance, "saga_relay_leader"), 1.0);
        assert_eq!(metric(instance, "saga_dead_letters"), 0.0);
        assert!(
            metric(
                instance,
                "saga_relay_transactions_total{outcome=\"committed\"}"
            ) >= 1.0
        );
        assert_eq!(
            metric(
                instance,
                "saga_relay_transactions_total{outcome=\"fenced\"}"
            ),
            0.0
        );
        assert_eq!(
            metric(instance, "saga_consumer_parked_total{cause=\"GIVEN_UP\"}"),
            0.0
        );
    }
    // two orders, and a compensation of the second
    assert_eq!(metric(&order, "saga_relay_rows_total"), 3.0);
    assert_eq!(metric(&payment, "saga_relay_rows_total"), 2.0);
    assert_eq!(metric(&stock, "saga_relay_rows_total"), 3.0);
    assert_eq!(metric(&stock, "saga_consumer_records_total"), 3.0);
    assert_eq!(
        metric(&order, "saga_orders_total{status=\"IN_PROGRESS\"}"),
        2.0
    );
    assert_eq!(
        metric(&order, "saga_orders_total{status=\"COMPLETED\"}"),
        1.0
    );
    assert_eq!(metric(&order, "saga_orders_total{status=\"FAILED\"}"), 1.0);
    assert_eq!(metric(&order, "saga_order_settle_seconds_count"), 2.0);
    let posts = "saga_http_request_seconds_count{method=\"POST\",route=\"/orders\",status=\"202\"}";
    assert_eq!(metric(&order, posts), 2.0);
    order.api().get("/nowhere/at/all");
    let lost = "saga_http_request_seconds_count{method=\"GET\",route=\"none\",status=\"404\"}";
    assert_eq!(metric(&order, lost), 1.0);
    until("the monitor to see both orders", || {
        metric(&order, "saga_orders{status=\"FAILED\"}") == 1.0
    });
    until("everything to be read", || {
        metric(
            &order,
            "saga_consumer_lag_records{partition=\"0\",topic=\"stock.success\"}",
        ) == 0.0
    });
    // both are shown by the monitor's next round: five answers and their markers, and what became of the orders
    let overview = eventually("the overview to show them", || {
        let overview = order.api().found("/overview");
        let ends: i64 = overview["consumers"]
            .as_array()?
            .iter()
            .map(|place| place["end"].as_i64().unwrap_or_default())
            .sum();
        let orders = json!({"IN_PROGRESS": 0, "COMPLETED": 1, "FAILED": 1});
        (overview["orders"] == orders && ends >= 5).then_some(overview)
    });
    assert_eq!(overview["service"], "order");
    assert_eq!(
        (&overview["ready"], &overview["leader"]),
        (&json!(true), &json!(true))
    );
    let admission = &overview["admission"];
    assert_eq!(
        [
            &admission["open"],
            &admission["reason"],
            &admission["refused"]
        ],
        [&json!(true), &json!(null), &json!(0)]
    );
    // a quarter of the deadline
    assert_eq!(admission["limitSeconds"].as_f64(), Some(75.0));
    assert_eq!(metric(&order, "saga_admission_open"), 1.0);
    for reason in ["backlog", "outage", "queue"] {
        assert_eq!(
            metric(
                &order,
                &format!("saga_orders_refused_total{{reason=\"{reason}\"}}")
            ),
            0.0
        );
    }
    until("nothing to be in flight", || {
        metric(&order, "saga_orders_in_flight") == 0.0
    });
    // four topics of three partitions
    assert_eq!(overview["consumers"].as_array().map(Vec::len), Some(12));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_relay_whose_thread_is_gone_is_reported_by_both_and_another_instance_takes_its_place() {
    let world = World::with("operations_relay", &[HEARTBEAT]);
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("pen", 10);
    wait_until_ready(&payment);
    payment.wait_for_log("leading: producer");

    threads::end(payment.process(), "payment-relay");

    until("/healthz to answer 503", || {
        payment.api().get("/healthz").status == 503
    });
    let (health, ready) = (payment.api().get("/healthz"), payment.api().get("/readyz"));
    assert_eq!((health.status, ready.status), (503, 503));
    assert!(
        reasons(&health).contains("thread payment-relay has made no progress for"),
        "{}",
        health.text
    );
    assert!(
        reasons(&ready).contains("thread payment-relay has made no progress for"),
        "{}",
        ready.text
    );
    let id = order.api().place("ann", "pen", 60, 1);
    // the consumer still works, so the answer waits in the outbox: its age is seen although the relay is dead
    until("the answer's age to be seen", || {
        metric(&payment, "saga_outbox_oldest_seconds") > 0.5
    });
    assert_eq!(metric(&payment, "saga_ready"), 0.0);
    until("the lost lead to be seen", || {
        metric(&payment, "saga_relay_leader") == 0.0
    });

    let second = world.start(Service::Payment);
    assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
    second.wait_for_log("leading: producer");
    assert_eq!(payment.api().get("/healthz").status, 503);
    assert_eq!(second.api().get("/healthz").status, 200);
}

#[test]
fn a_service_whose_servers_are_away_turns_but_is_not_ready_until_they_are_back() {
    let world = World::new("operations_away");
    let (postgres, kafka) = (
        Proxy::to(&harness::env::postgres_address()),
        Proxy::to_kafka(&harness::env::brokers()),
    );
    let url = world.database_url_at(Service::Payment, &postgres.addr());
    let settings = [
        ("PAYMENT_DATABASE_URL", url.as_str()),
        ("KAFKA_BROKERS", &kafka.addr()),
    ];
    let payment = world.start_with(Service::Payment, &settings);
    for (proxy, name) in [(&postgres, "the database: "), (&kafka, "Kafka: ")] {
        wait_until_ready(&payment);
        proxy.cut();
        until(&format!("{name} to be missed"), || {
            let ready = payment.api().get("/readyz");
            ready.status == 503 && reasons(&ready).contains(name)
        });
        assert_eq!(payment.api().found("/healthz"), healthy());
        assert!(payment.api().get("/metrics").text.contains("saga_ready 0"));
        proxy.resume();
    }
    wait_until_ready(&payment);
}

#[test]
fn a_service_that_can_not_count_what_its_database_holds_works_all_the_same() {
    let world = World::new("operations_counts");
    let [order, payment, stock] = world.start_all();
    payment.api().put_balance("ann", 100);
    stock.api().put_quantity("pen", 10);
    wait_until_ready(&payment);
    until("the first counts", || {
        payment.api().found("/overview")["deadLetters"] == 0
    });
    let mut db = world.db(Service::Payment);
    let mut holder = db.transaction().unwrap();
    holder
        .batch_execute("lock table dead_letter in access exclusive mode")
        .unwrap();
    until("the counts to be missed", || {
        payment.api().found("/overview")["deadLetters"].is_null()
    });
    let overview = payment.api().found("/overview");
    assert_eq!(
        overview["outbox"],
        json!({"waiting": null, "oldestSeconds": null})
    );
    assert_eq!(overview["ready"], true);
    assert_eq!(payment.api().found("/readyz"), healthy());
    payment.wait_for_log("what the database holds can't be counted");
    let seen = metric(
        &payment,
        "saga_last_poll_timestamp_seconds{at=\"database\"}",
    );
    assert!(
        seen < metric(&payment, "saga_last_poll_timestamp_seconds{at=\"kafka\"}"),
        "that one is seen on"
    );
    let id = order.api().place("ann", "pen", 60, 1);
    assert_eq!(order.api().settled(id)["orderStatus"], "COMPLETED");
    holder.rollback().unwrap();
    until("the counts to be back", || {
        payment.api().found("/overview")["deadLetters"] == 0
    });
    assert!(
        metric(
            &payment,
            "saga_last_poll_timestamp_seconds{at=\"database\"}"
        ) > seen
    );
}

#[test]
fn a_service_whose_schema_fits_no_longer_is_not_ready() {
    let world = World::new("operations_schema");
    let payment = world.start(Service::Payment);
    let cases = [
        (
            "update schema_compat set min_version = 99",
            "update schema_compat set min_version = 1",
            "the database's schema needs a binary of schema version 99 or newer",
        ),
        (
            "alter table payment_outbox rename to aside",
            "alter table aside rename to payment_outbox",
            "what the database holds can't be counted: PostgreSQL: relation \\\"payment_outbox\\\" does not exist",
        ),
    ];
    for (spoil, mend, why) in cases {
        wait_until_ready(&payment);
        world.db(Service::Payment).batch_execute(spoil).unwrap();
        until(why, || reasons(&payment.api().get("/readyz")).contains(why));
        assert_eq!(payment.api().get("/readyz").status, 503);
        world.db(Service::Payment).batch_execute(mend).unwrap();
    }
    wait_until_ready(&payment);
}

#[test]
fn a_service_that_is_not_in_its_group_yet_is_not_ready() {
    let world = World::new("operations_group");
    let kafka = Proxy::to_kafka(&harness::env::brokers());
    kafka.hold_after(kafka_request(JOIN_GROUP, "payment-consumer-1"));
    let payment = world.start_with(Service::Payment, &[("KAFKA_BROKERS", &kafka.addr())]);
    // before that it is not in its group either: it has not asked to be
    until("its join to be answered", || kafka.holds_the_answer());
    until("the group to be missed", || {
        let ready = payment.api().get("/readyz");
        ready.status == 503
            && reasons(&ready).contains("thread payment-consumer-1 is not in its consumer group")
    });
    kafka.resume();
    wait_until_ready(&payment);
}

#[test]
fn what_a_stuck_partition_holds_is_counted_in_records_and_seconds() {
    let world = World::with("operations_lag", &[("TOPIC_PARTITIONS", "1")]);
    let postgres = Proxy::to(&harness::env::postgres_address());
    let url = world.database_url_at(Service::Payment, &postgres.addr());
    let payment = world.start_with(Service::Payment, &[("PAYMENT_DATABASE_URL", &url)]);
    let [order, stock] = [Service::Order, Service::Stock].map(|service| world.start(service));
    stock.api().put_quantity("pen", 10);
    payment.api().put_balance("ann", 100);
    wait_until_ready(&payment);
    // a failure of the world, not of the message: it is tried again without end
    world
        .db(Service::Payment)
        .batch_execute("alter table payment rename to payment_hidden")
        .unwrap();
    let first = order.api().place("ann", "pen", 1, 1);
    let lag = "saga_consumer_lag_records{partition=\"0\",topic=\"payment\"}";
    until("a record to wait", || metric(&payment, lag) >= 1.0);
    let seconds = "saga_consumer_lag_seconds{partition=\"0\",topic=\"payment\"}";
    until("its age", || metric(&payment, seconds) > 1.0);
    assert!(metric(&payment, "saga_consumer_retries_total{blame=\"transient\"}") >= 1.0);
    postgres.cut();
    until("the database to be missed", || {
        reasons(&payment.api().get("/readyz")).contains("the database: ")
    });
    assert!(
        metric(&payment, lag) >= 1.0 && metric(&payment, seconds) > 1.0,
        "what was known is not forgotten"
    );
    postgres.resume();
    world
        .db(Service::Payment)
        .batch_execute("alter table payment_hidden rename to payment")
        .unwrap();
    assert_eq!(order.api().settled(first)["orderStatus"], "COMPLETED");
    until("nothing to wait", || {
        metric(&payment, lag) == 0.0 && metric(&payment, seconds) == 0.0
    });
}

/// The names of metrics in a text: of histograms, the whole's.
fn metrics_named(text: &str) -> BTreeSet<String> {
    let words =
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let of_histogram = |name: &str| {
        let whole = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|part| name.strip_suffix(part));
        whole.unwrap_or(name).to_string()
    };
    words
        .filter(|word| word.starts_with("saga_"))
        .map(of_histogram)
        .collect()
}

/// The metrics of a text in Prometheus's format: name, kind, and labels as `docs/operations.md` writes them.
fn metrics_shown(text: &str) -> BTreeSet<[String; 3]> {
    let mut shown = BTreeSet::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let series = lines.next().expect("a series behind its type");
        // what stands outside of the quotes: `saga_x{a=`, `,b=`, `} 1`
        let mut labels: Vec<&str> = series
            .split('"')
            .step_by(2)
            .filter_map(|part| part.rsplit(['{', ',']).next()?.strip_suffix('='))
            .filter(|label| *label != "le")
            .collect();
        labels.sort_unstable();
        shown.insert([name, kind, &labels.join(", ")].map(str::to_string));
    }
    shown
}

/// The same by the tables in docs/operations.md.
fn metrics_documented() -> BTreeSet<[String; 3]> {
    let page = include_str!("../../docs/operations.md");
    let (_, section) = page
        .split_once("\n### Metrics\n")
        .expect("a section about metrics");
    let (section, _) = section.split_once("\n## ").expect("a section after it");
    let mut documented = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let mut labels: Vec<&str> = columns[3].split(", ").collect();
        labels.sort_unstable();
        documented
            .insert([columns[1], columns[2], &labels.join(", ")].map(|text| text.replace('`', "")));
    }
    documented
}

#[test]
fn the_metrics_of_a_start_are_those_of_operations_md_and_cover_alerts_and_dashboard() {
    let world = World::new("operations_names");
    let instances = world.start_all();
    instances.iter().for_each(wait_until_ready);
    let texts = instances
        .iter()
        .map(|instance| instance.api().get("/metrics").text);
    let shown: BTreeSet<[String; 3]> = texts.flat_map(|text| metrics_shown(&text)).collect();
    assert_eq!(shown, metrics_documented());
    let there: BTreeSet<String> = shown.into_iter().map(|[name, ..]| name).collect();
    for text in [
        include_str!("../../monitoring/alerts.yml"),
        include_str!("../../monitoring/dashboard.json"),
    ] {
        let asked = metrics_named(text);
        assert!(asked.len() >= 7, "{asked:?}");
        let missing: Vec<&String> = asked.difference(&there).collect();
        assert!(missing.is_empty(), "{missing:?} are not among {there:?}");
    }
}
