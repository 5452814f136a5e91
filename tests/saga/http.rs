//! HTTP: every error of the contract with its status and body, and what a success answers. On the real services.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use harness::{Answer, Api, Instance, LIMIT, Service, World, eventually, until};
use serde_json::{Value, json};

/// An order that nothing was ever heard of.
const NOBODY: &str = "0198c0de-0000-7000-8000-000000000001";

const JSON: (&str, &str) = ("Content-Type", "application/json");
const PRICE: &str = "must be from 1 to 1000000000000000";
const QUANTITY: &str = "must be from 1 to 1000000000";
const AMOUNT: &str = "must be from 0 to 1000000000000000";
const WHOLE: &str = "must be a whole number, without fraction or exponent";
const LENGTH: &str = "must have 1 to 200 characters";
const CONTROL: &str = "must not contain control characters";
const MEDIA_TYPE: &str =
    "the body must be sent as Content-Type: application/json, in UTF-8, without Content-Encoding";

/// A call that must be refused, and how.
struct Refused {
    call: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    detail: String,
    errors: Vec<(&'static str, &'static str)>,
    allow: Option<&'static str>,
}

/// `call`: method and target.
fn refused(call: impl Into<String>, status: u16, detail: &str) -> Refused {
    let (headers, body, errors) = (vec![], vec![], vec![]);
    Refused {
        call: call.into(),
        headers,
        body,
        status,
        detail: detail.into(),
        errors,
        allow: None,
    }
}

/// A call refused with 422 for these fields.
fn bad_fields(call: impl Into<String>, errors: &[(&'static str, &'static str)]) -> Refused {
    let sentences: Vec<String> = errors
        .iter()
        .map(|(field, detail)| format!("`{field}` {detail}"))
        .collect();
    Refused {
        errors: errors.to_vec(),
        ..refused(call, 422, &sentences.join("; "))
    }
}

impl Refused {
    fn header(mut self, name: &'static str, value: impl Into<String>) -> Refused {
        self.headers.push((name, value.into()));
        self
    }

    fn json(mut self, body: impl Into<Vec<u8>>) -> Refused {
        self.body = body.into();
        self.header(JSON.0, JSON.1)
    }

    fn allow(mut self, methods: &'static str) -> Refused {
        self.allow = Some(methods);
        self
    }

    fn problem(&self) -> Value {
        let mut problem =
            json!({"title": title(self.status), "status": self.status, "detail": self.detail});
        if !self.errors.is_empty() {
            let errors = self
                .errors
                .iter()
                .map(|(field, detail)| json!({"field": field, "detail": detail}));
            problem["errors"] = errors.collect();
        }
        problem
    }

    fn check(&self, api: &Api) {
        let (method, target) = self.call.split_once(' ').expect("method and target");
        let headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let answer = call(api, method, target, &headers, &self.body);
        let what = format!(
            "{} {}",
            self.call,
            String::from_utf8_lossy(&self.body[..self.body.len().min(300)])
        );
        assert_eq!(answer.status, self.status, "{what}: {}", answer.text);
        assert_eq!(answer.json, self.problem(), "{what}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{what}"
        );
        assert_eq!(answer.header("allow"), self.allow, "{what}");
    }
}

fn call(api: &Api, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let body = Some(body).filter(|_| method != "GET");
    api.call(method, target, headers, body)
        .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
}

fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        503 => "Service Unavailable",
        _ => panic!("no title typed in for {status}"),
    }
}

/// An order's body with one field replaced by `value`, as written.
fn order_with(field: &str, value: &str) -> String {
    let fields = [
        ("userName", r#""ann""#),
        ("itemName", r#""lamp""#),
        ("price", "7"),
        ("quantity", "2"),
    ];
    let fields = fields
        .map(|(name, good)| format!(r#""{name}":{}"#, if name == field { value } else { good }));
    format!("{{{}}}", fields.join(","))
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

const GOOD: &str = r#"{"userName":"ann","itemName":"lamp","price":7,"quantity":2}"#;

fn unknown_paths_and_methods() -> Vec<Refused> {
    let nothing = "there is nothing at this path";
    vec![
        refused("PUT /", 405, "this path knows GET, HEAD").allow("GET, HEAD"),
        refused("GET /nothing", 404, nothing),
        refused("GET /orders/", 404, nothing),
        refused(format!("GET /orders/{NOBODY}/x"), 404, nothing),
        refused("DELETE /orders", 405, "this path knows GET, HEAD, POST").allow("GET, HEAD, POST"),
        refused("PATCH /orders", 405, "this path knows GET, HEAD, POST").allow("GET, HEAD, POST"),
        refused(
            format!("PUT /orders/{NOBODY}"),
            405,
            "this path knows GET, HEAD",
        )
        .allow("GET, HEAD"),
        refused("POST /dead-letters", 405, "this path knows GET, HEAD").allow("GET, HEAD"),
        refused("POST /dead-letters/1", 405, "this path knows GET, HEAD").allow("GET, HEAD"),
        refused("GET /dead-letters/1/replay", 405, "this path knows POST").allow("POST"),
        refused("GET /dead-letters/1/discard", 405, "this path knows POST").allow("POST"),
        refused(
            "DELETE /dead-letters/replay",
            405,
            "this path knows GET, HEAD, POST",
        )
        .allow("GET, HEAD, POST"),
        refused(
            format!("GET /orders/{NOBODY}"),
            404,
            &format!("there is no order {NOBODY}"),
        ),
        refused(
            format!("GET /orders/{NOBODY}/timeline"),
            404,
            &format!("there is no order {NOBODY}"),
        ),
        refused(
            format!("GET /orders/{NOBODY}/timeline"),
            404,
            &format!("there is no order {NOBODY}"),
        )
        .header("Accept", "text/plain"),
        refused(
            format!("PUT /orders/{NOBODY}/timeline"),
            405,
            "this path knows GET, HEAD",
        )
        .allow("GET, HEAD"),
        refused("GET /dead-letters/7", 404, "there is no dead letter 7"),
        refused(
            "POST /dead-letters/7/replay",
            404,
            "there is no dead letter 7",
        ),
        refused(
            "POST /dead-letters/7/discard",
            404,
            "there is no dead letter 7",
        )
        .json(r#"{"reason":"a test"}"#),
    ]
}

fn unreadable_bodies() -> Vec<Refused> {
    let text = |media_type: &str| {
        Refused {
            body: GOOD.into(),
            ..refused("POST /orders", 415, MEDIA_TYPE)
        }
        .header("Content-Type", media_type)
    };
    let not_json = |body: &[u8], detail: &str| refused("POST /orders", 400, detail).json(body);
    let too_long = " ".repeat(65_537);
    vec![
        Refused {
            body: GOOD.into(),
            ..refused("POST /orders", 415, MEDIA_TYPE)
        },
        text("text/plain"),
        text("application/json; charset=latin1"),
        text("application/vnd.api+xml"),
        text("+json"),
        text("application/json").header("Content-Encoding", "gzip"),
        refused("POST /orders", 413, "the body is larger than 65536 bytes").json(too_long),
        not_json(
            b"",
            "the body is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        not_json(
            b"{\"userName\": \"ann\",\n  \"price\": }",
            "the body is not JSON: expected value at line 2 column 12",
        ),
        not_json(
            b"{\"userName\":\"ann\"",
            "the body is not JSON: EOF while parsing an object at line 1 column 17",
        ),
        not_json(
            b"{}\n{}",
            "the body is not JSON: trailing characters at line 2 column 1",
        ),
        not_json(
            b"{\n\"userName\": \"\xff\"}",
            "the body is not UTF-8 at line 2 column 14",
        ),
        refused("POST /orders", 422, "the body must be a JSON object").json("[1]"),
        refused("POST /orders", 422, "the body must be a JSON object").json("null"),
    ]
}

fn bad_orders() -> Vec<Refused> {
    let bad = |field: &'static str, value: &str, detail: &'static str| {
        bad_fields("POST /orders", &[(field, detail)]).json(order_with(field, value))
    };
    let mut cases = vec![
        bad("userName", "7", "must be a string"),
        bad("userName", "null", "must be a string"),
        bad("userName", r#""""#, LENGTH),
        bad("userName", r#"" \t ""#, LENGTH),
        bad("userName", &quoted(&"ü".repeat(201)), LENGTH),
        bad("itemName", &quoted(&"x".repeat(201)), LENGTH),
        bad("userName", r#""a\u0000b""#, CONTROL),
        bad("itemName", r#""a\nb""#, CONTROL),
        bad("itemName", r#""a\u0085b""#, CONTROL),
    ];
    let no_whole_numbers = ["1.5", "1.0", "1e3", "\"1\"", "true", "[1]", "null", "-0.0"];
    for value in no_whole_numbers {
        cases.push(bad("price", value, WHOLE));
        cases.push(bad("quantity", value, WHOLE));
    }
    for value in [
        "0",
        "-1",
        "1000000000000001",
        "9223372036854775808",
        "123456789012345678901234567890",
    ] {
        cases.push(bad("price", value, PRICE));
    }
    for value in ["0", "-1", "1000000001"] {
        cases.push(bad("quantity", value, QUANTITY));
    }
    cases
}

fn several_bad_fields() -> Vec<Refused> {
    let missing = "is missing";
    vec![
        bad_fields(
            "POST /orders",
            &[
                ("userName", missing),
                ("itemName", missing),
                ("price", missing),
                ("quantity", missing),
            ],
        )
        .json("{}"),
        bad_fields(
            "POST /orders",
            &[
                ("userName", "must be a string"),
                ("itemName", LENGTH),
                ("price", WHOLE),
                ("quantity", missing),
                ("colour", "is unknown"),
            ],
        )
        .json(r#"{"colour":"red","price":1.5,"itemName":"","userName":1}"#),
        bad_fields("POST /orders", &[("price", "is given more than once")])
            .json(r#"{"userName":"ann","itemName":"lamp","price":7,"quantity":2,"price":8}"#),
    ]
}

fn with_key(value: &str) -> Refused {
    let key = "Idempotency-Key must be one value of 1 to 255 visible ASCII characters";
    refused("POST /orders", 400, key)
        .json(GOOD)
        .header("Idempotency-Key", value)
}

fn by(actor: &str) -> Refused {
    let why = "X-Actor must be one value of 1 to 100 characters, without control characters";
    refused("POST /dead-letters/7/replay", 400, why).header("X-Actor", actor)
}

fn bad_targets_and_headers() -> Vec<Refused> {
    let time = "must be a time such as 500ms, 10s or 1m";
    vec![
        refused(
            "GET /orders/%zz",
            400,
            "the path has a broken percent escape",
        ),
        refused(
            "GET /orders/%2",
            400,
            "the path has a broken percent escape",
        ),
        refused("GET /orders/%ff", 400, "the path is not UTF-8"),
        refused(
            "GET /orders?status=%zz",
            400,
            "the query has a broken percent escape",
        ),
        bad_fields("GET /orders/x", &[("orderId", "must be a UUID")]),
        bad_fields(
            "GET /orders/0198c0de00007000800000000000000a",
            &[("orderId", "must be a UUID")],
        ),
        bad_fields(
            format!("GET /orders/{NOBODY}?wait=31s"),
            &[("wait", "must be at most 30s")],
        ),
        bad_fields(format!("GET /orders/{NOBODY}?wait=soon"), &[("wait", time)]),
        bad_fields(format!("GET /orders/{NOBODY}?wait=5"), &[("wait", time)]),
        bad_fields(format!("GET /orders/{NOBODY}?wait=-5s"), &[("wait", time)]),
        bad_fields(
            format!("GET /orders/{NOBODY}?colour=red"),
            &[("colour", "is unknown")],
        ),
        bad_fields("GET /orders?limit=0", &[("limit", "must be from 1 to 200")]),
        bad_fields(
            "GET /orders?limit=201",
            &[("limit", "must be from 1 to 200")],
        ),
        bad_fields("GET /orders?limit=ten", &[("limit", WHOLE)]),
        bad_fields(
            "GET /orders?status=DONE",
            &[(
                "status",
                "must be IN_PROGRESS, COMPLETED, FAILED or OVERDUE",
            )],
        ),
        bad_fields(
            "GET /orders?status=completed",
            &[(
                "status",
                "must be IN_PROGRESS, COMPLETED, FAILED or OVERDUE",
            )],
        ),
        bad_fields("GET /orders?after=x", &[("after", "must be a UUID")]),
        bad_fields(
            "GET /orders?colour=red&limit=2&limit=3",
            &[
                ("colour", "is unknown"),
                ("limit", "is given more than once"),
            ],
        ),
        bad_fields(
            "GET /orders?after=x&limit=0&status=DONE&colour=red",
            &[
                ("colour", "is unknown"),
                (
                    "status",
                    "must be IN_PROGRESS, COMPLETED, FAILED or OVERDUE",
                ),
                ("limit", "must be from 1 to 200"),
                ("after", "must be a UUID"),
            ],
        ),
        bad_fields(
            "GET /orders/x/timeline?wait=1s",
            &[("orderId", "must be a UUID"), ("wait", "is unknown")],
        ),
        bad_fields(
            "GET /orders/x?wait=31s",
            &[
                ("orderId", "must be a UUID"),
                ("wait", "must be at most 30s"),
            ],
        ),
        bad_fields("POST /orders?colour=red", &[("colour", "is unknown")]).json(GOOD),
        bad_fields(
            "GET /dead-letters/0",
            &[("id", "must be from 1 to 9223372036854775807")],
        ),
        bad_fields("GET /dead-letters/x", &[("id", WHOLE)]),
        bad_fields(
            "GET /dead-letters?limit=201",
            &[("limit", "must be from 1 to 200")],
        ),
        bad_fields(
            "GET /dead-letters/7?colour=red",
            &[("colour", "is unknown")],
        ),
        with_key(""),
        with_key("a b"),
        with_key(&"k".repeat(256)),
        with_key("one").header("Idempotency-Key", "two"),
    ]
}

fn bad_calls_about_dead_letters() -> Vec<Refused> {
    let actor = "X-Actor must be one value of 1 to 100 characters, without control characters";
    let (states, causes) = (
        "must be one of OPEN, REPLAYED, DISCARDED",
        "must be one of UNDECODABLE, GIVEN_UP, UNKNOWN_ORDER, CONTRADICTION, LOG_GAP",
    );
    let (no_uuid, no_topic, no_flag) = (
        "must be a UUID",
        "must be the name of a topic",
        "must be true or false",
    );
    let discard = |errors: &[(&'static str, &'static str)]| {
        bad_fields("POST /dead-letters/7/discard", errors)
    };
    let reason = "must have 1 to 500 characters";
    vec![
        bad_fields(
            "GET /dead-letters?before=0&limit=0&orderId=x&topic=a%20b&cause=NONE&state=open&force=true",
            &[
                ("force", "is unknown"),
                ("state", states),
                ("cause", causes),
                ("topic", no_topic),
                ("orderId", no_uuid),
                ("limit", "must be from 1 to 200"),
                ("before", "must be from 1 to 9223372036854775807"),
            ],
        ),
        bad_fields("GET /dead-letters?topic=", &[("topic", no_topic)]),
        bad_fields(
            "POST /dead-letters/replay?state=OPEN&cause=&limit=201&after=x&dryRun=yes",
            &[
                ("state", "is unknown"),
                ("cause", causes),
                ("limit", "must be from 1 to 200"),
                ("after", WHOLE),
                ("dryRun", no_flag),
            ],
        ),
        refused("POST /dead-letters/replay", 400, actor).header("X-Actor", "x".repeat(101)),
        bad_fields(
            "POST /dead-letters/x/replay?force=1&colour=red",
            &[("id", WHOLE), ("colour", "is unknown"), ("force", no_flag)],
        ),
        by(""),
        by("ann").header("X-Actor", "bob"),
        refused("POST /dead-letters/7/discard", 415, MEDIA_TYPE),
        discard(&[("reason", "is missing"), ("why", "is unknown")]).json(r#"{"why":"so"}"#),
        discard(&[("reason", "must be a string")]).json(r#"{"reason":7}"#),
        discard(&[("reason", reason)]).json(r#"{"reason":"  "}"#),
        discard(&[("reason", reason)]).json(format!(r#"{{"reason":"{}"}}"#, "ü".repeat(501))),
        discard(&[("reason", CONTROL)]).json(r#"{"reason":"a\u0000b"}"#),
    ]
}

#[test]
fn order_says_what_is_wrong_with_a_request_and_changes_nothing() {
    let world = World::new("http_refusals");
    let order = world.start(Service::Order);
    let api = order.api();
    let groups = [
        unknown_paths_and_methods(),
        unreadable_bodies(),
        bad_orders(),
        several_bad_fields(),
        bad_targets_and_headers(),
        bad_calls_about_dead_letters(),
    ];
    groups
        .iter()
        .flatten()
        .for_each(|refused| refused.check(api));
    for table in [
        "orders",
        "idempotency_key",
        "order_outbox",
        "deadline",
        "dead_letter",
    ] {
        assert_eq!(rows(&world, Service::Order, table), 0, "{table}");
    }
    let stored: i64 = world
        .db(Service::Order)
        .query_one("select last_value from outbox_clock", &[])
        .unwrap()
        .get(0);
    assert_eq!(stored, 1, "something was stored and removed again");
}

fn rows(world: &World, service: Service, table: &str) -> i64 {
    world
        .db(service)
        .query_one(&format!("select count(*) from {table}"), &[])
        .unwrap()
        .get(0)
}

/// The refusals that payment and stock share: `things/{name}` with one number, `parts/{orderId}`.
fn participant_refusals(
    things: &str,
    name: &'static str,
    number: &'static str,
    parts: &str,
) -> Vec<Refused> {
    let put = format!("PUT /{things}/ann");
    let bad = |value: &str, detail: &'static str| {
        bad_fields(put.clone(), &[(number, detail)]).json(format!(r#"{{"{number}":{value}}}"#))
    };
    let named = |segment: String, detail: &'static str| {
        bad_fields(format!("PUT /{things}/{segment}"), &[(name, detail)])
            .json(format!(r#"{{"{number}":1}}"#))
    };
    let mut cases = vec![
        refused(
            format!("PUT /{things}/"),
            404,
            "there is nothing at this path",
        )
        .json("{}"),
        refused(
            format!("POST /{things}/ann"),
            405,
            "this path knows GET, HEAD, PUT",
        )
        .allow("GET, HEAD, PUT"),
        refused(
            format!("PUT /{parts}/{NOBODY}"),
            405,
            "this path knows GET, HEAD",
        )
        .allow("GET, HEAD"),
        Refused {
            body: b"{}".into(),
            ..refused(put.clone(), 415, MEDIA_TYPE)
        },
        refused(put.clone(), 413, "the body is larger than 65536 bytes").json(" ".repeat(65_537)),
        refused(
            put.clone(),
            400,
            "the body is not JSON: key must be a string at line 1 column 2",
        )
        .json("{1}"),
        refused(
            format!("PUT /{things}/%zz"),
            400,
            "the path has a broken percent escape",
        )
        .json("{}"),
        refused(format!("PUT /{things}/%ff"), 400, "the path is not UTF-8").json("{}"),
        named("%20".into(), LENGTH),
        named("x".repeat(201), LENGTH),
        named("a%00b".into(), CONTROL),
        bad_fields(
            format!("PUT /{things}/%20"),
            &[(name, LENGTH), (number, AMOUNT)],
        )
        .json(format!(r#"{{"{number}":-1}}"#)),
        bad_fields(format!("GET /{things}/a%07b"), &[(name, CONTROL)]),
        bad_fields(format!("GET /{parts}/x"), &[("orderId", "must be a UUID")]),
        bad_fields(
            put.clone(),
            &[(number, "is missing"), ("colour", "is unknown")],
        )
        .json(r#"{"colour":1}"#),
        bad_fields(format!("{put}?colour=red"), &[("colour", "is unknown")])
            .json(format!(r#"{{"{number}":1}}"#)),
    ];
    cases.extend(["1.0", "1e3", "0.5", "\"1\"", "null"].map(|value| bad(value, WHOLE)));
    cases
        .extend(["-1", "1000000000000001", "99999999999999999999"].map(|value| bad(value, AMOUNT)));
    cases
}

#[test]
fn payment_and_stock_say_what_is_wrong_with_a_request_and_change_nothing() {
    let world = World::new("http_parts");
    let (payment, stock) = (world.start(Service::Payment), world.start(Service::Stock));
    let mut of_payment = participant_refusals("accounts", "userName", "balance", "payments");
    of_payment.push(refused("GET /accounts/bob", 404, "there is no account bob"));
    of_payment.push(refused(
        format!("GET /payments/{NOBODY}"),
        404,
        &format!("payment has not heard of order {NOBODY}"),
    ));
    let mut of_stock = participant_refusals("items", "itemName", "quantity", "reservations");
    of_stock.push(refused("GET /items/bed", 404, "there is no item bed"));
    of_stock.push(refused(
        format!("GET /reservations/{NOBODY}"),
        404,
        &format!("stock has not heard of order {NOBODY}"),
    ));
    of_payment
        .iter()
        .for_each(|refused| refused.check(payment.api()));
    of_stock
        .iter()
        .for_each(|refused| refused.check(stock.api()));
    assert_eq!(
        (
            rows(&world, Service::Payment, "account"),
            rows(&world, Service::Payment, "payment")
        ),
        (0, 0)
    );
    assert_eq!(
        (
            rows(&world, Service::Stock, "item"),
            rows(&world, Service::Stock, "reservation")
        ),
        (0, 0)
    );
}

#[test]
fn malformed_http_is_answered_with_a_problem_and_the_service_goes_on() {
    let world = World::new("http_malformed");
    let order = world.start(Service::Order);
    let host = "Host: a\r\nConnection: close\r\n";
    let cases = [
        ("GET /orders HTTP/1.1\r\n\r\n".to_string(), 400),
        (format!("GET  /orders HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET orders HTTP/1.1\r\n{host}\r\n"), 400),
        ("\u{1}\u{2}\u{3}\r\n\r\n".to_string(), 400),
        (format!("GET /orders HTTP/2.5\r\n{host}\r\n"), 505),
        (
            format!(
                "POST /orders HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            400,
        ),
        (
            format!("POST /orders HTTP/1.1\r\n{host}Content-Length: many\r\n\r\n"),
            400,
        ),
        (
            format!("POST /orders HTTP/1.1\r\n{host}Content-Length: 10000000000000\r\n\r\n"),
            413,
        ),
        (
            format!("POST /orders HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n"),
            501,
        ),
        (
            format!("GET /{} HTTP/1.1\r\n{host}\r\n", "x".repeat(20_000)),
            414,
        ),
        (
            format!(
                "GET /orders HTTP/1.1\r\n{host}X: {}\r\n\r\n",
                "x".repeat(20_000)
            ),
            431,
        ),
    ];
    for (request, status) in cases {
        let (head, body) = exchange(order.port(), request.as_bytes());
        let what = &request[..request.len().min(80)];
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what:?}: {head}"
        );
        assert!(
            head.contains("Content-Type: application/problem+json\r\n"),
            "{what:?}: {head}"
        );
        let problem: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{what:?}: {error}: {body}"));
        assert_eq!(problem["status"], status, "{what:?}");
        assert!(
            problem["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty()),
            "{what:?}"
        );
    }
    // header fields are ASCII, but who sends other bytes gets the same answers as everybody else
    for refused in [with_key("ü"), by(&"ü".repeat(101))] {
        refused.check(order.api());
    }
    assert_eq!(
        order.api().found("/orders"),
        json!({"orders": [], "next": null})
    );
}

/// Sends bytes, reads to the connection's end; head and body of the answer.
fn exchange(port: u16, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // the service may answer before it has read all of it
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (format!("{head}\r\n"), body.to_string())
}

/// The three services of a world with a rich ann and many lamps.
fn shop(world: &World) -> [Instance; 3] {
    let instances = world.start_all();
    assert_eq!(
        instances[1]
            .api()
            .put("/accounts/ann", &json!({"balance": 1000}))
            .status,
        201
    );
    assert_eq!(
        instances[2]
            .api()
            .put("/items/lamp", &json!({"quantity": 1000}))
            .status,
        201
    );
    instances
}

fn post(api: &Api, body: &str, key: Option<&str>) -> Answer {
    let mut headers = vec![JSON];
    headers.extend(key.map(|key| ("Idempotency-Key", key)));
    call(api, "POST", "/orders", &headers, body.as_bytes())
}

/// The order of an accepted request.
fn accepted(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json["orderId"].as_str().unwrap().to_string()
}

fn without(mut value: Value, fields: &[&str]) -> Value {
    for field in fields {
        assert!(
            value.as_object_mut().unwrap().remove(*field).is_some(),
            "{field} is missing in {value}"
        );
    }
    value
}

#[test]
fn an_accepted_order_is_found_at_its_location_and_ends_completed() {
    let world = World::new("http_accepted");
    let [order, payment, stock] = shop(&world);
    let answer = post(
        order.api(),
        r#"{"userName":" ann ","itemName":"lamp","price":7,"quantity":2}"#,
        None,
    );
    let id = accepted(&answer);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(
        answer.header("location"),
        Some(format!("/orders/{id}").as_str())
    );
    let times = ["createdAt", "updatedAt"];
    let stored = json!({"orderId": id, "userName": "ann", "itemName": "lamp", "price": 7, "quantity": 2,
        "orderStatus": "IN_PROGRESS", "paymentStatus": "READY", "stockStatus": "READY", "reason": null, "settled": false});
    assert_eq!(without(answer.json, &times), stored);
    assert_eq!(id.as_bytes()[14], b'7', "{id} is no UUID version 7");

    let settled = order.api().settled(id.parse().unwrap());
    let completed = json!({"orderId": id, "userName": "ann", "itemName": "lamp", "price": 7, "quantity": 2,
        "orderStatus": "COMPLETED", "paymentStatus": "COMPLETED", "stockStatus": "COMPLETED", "reason": null, "settled": true});
    assert_eq!(without(settled, &times), completed);
    assert_eq!(
        payment.api().found("/accounts/ann"),
        json!({"userName": "ann", "balance": 993})
    );
    assert_eq!(
        stock.api().found("/items/lamp"),
        json!({"itemName": "lamp", "quantity": 998})
    );
    let paid = payment.api().found(&format!("/payments/{id}"));
    let part = json!({"orderId": id, "userName": "ann", "amount": 7, "status": "COMPLETED", "reason": null});
    assert_eq!(without(paid, &times), part);
    let reserved = stock.api().found(&format!("/reservations/{id}"));
    let part = json!({"orderId": id, "itemName": "lamp", "quantity": 2, "status": "COMPLETED", "reason": null});
    assert_eq!(without(reserved, &times), part);
}

#[test]
fn the_largest_values_are_accepted() {
    let world = World::new("http_largest");
    let order = world.start(Service::Order);
    let name = "ü".repeat(200);
    let body = json!({"userName": name, "itemName": name, "price": 1_000_000_000_000_000_i64, "quantity": 1_000_000_000});
    let answer = post(order.api(), &body.to_string(), Some(&"k".repeat(255)));
    let id = accepted(&answer);
    let found = order.api().found(&format!("/orders/{id}"));
    for field in ["userName", "itemName", "price", "quantity"] {
        assert_eq!(found[field], body[field]);
    }
    let padded = format!("{}{GOOD}", " ".repeat(65_536 - GOOD.len()));
    assert_eq!(post(order.api(), &padded, None).status, 202);
}

#[test]
fn the_first_put_creates_and_the_next_ones_set() {
    let world = World::new("http_put");
    let (payment, stock) = (world.start(Service::Payment), world.start(Service::Stock));
    let names = [
        ("ann", "ann"),
        ("M%C3%BCller%2FS%C3%B6hne%20KG", "Müller/Söhne KG"),
        ("%20a+b%3F%20", "a+b?"),
        ("%252F", "%2F"),
    ];
    for (segment, name) in names {
        for (amount, status) in [(5, 201), (1_000_000_000_000_000_i64, 200), (0, 200)] {
            let account = payment
                .api()
                .put(&format!("/accounts/{segment}"), &json!({"balance": amount}));
            assert_eq!(
                (account.status, account.json),
                (status, json!({"userName": name, "balance": amount}))
            );
            let item = stock
                .api()
                .put(&format!("/items/{segment}"), &json!({"quantity": amount}));
            assert_eq!(
                (item.status, item.json),
                (status, json!({"itemName": name, "quantity": amount}))
            );
        }
        let account = payment.api().get(&format!("/accounts/{segment}"));
        assert_eq!(
            (account.status, account.json),
            (200, json!({"userName": name, "balance": 0}))
        );
        let item = stock.api().get(&format!("/items/{segment}"));
        assert_eq!(
            (item.status, item.json),
            (200, json!({"itemName": name, "quantity": 0}))
        );
    }
    let deposited: i64 = world
        .db(Service::Payment)
        .query_one("select sum(deposited)::bigint from account", &[])
        .unwrap()
        .get(0);
    assert_eq!(deposited, 0);
}

/// The ids of a page, and where the next one begins.
fn page(api: &Api, query: &str) -> (Vec<String>, Option<String>) {
    let answer = api.get(&format!("/orders{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let page = answer.json;
    let ids = page["orders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|order| order["orderId"].as_str().unwrap().to_string());
    (ids.collect(), page["next"].as_str().map(str::to_string))
}

#[test]
fn the_list_is_newest_first_and_pages_by_next_and_by_status() {
    let world = World::new("http_list");
    let [order, ..] = shop(&world);
    let api = order.api();
    // every second order asks too much of ann
    let place = |number| api.place("ann", "lamp", if number % 2 == 0 { 1 } else { 5_000 }, 1);
    let mut placed: Vec<String> = (0..7).map(|number| place(number).to_string()).collect();
    placed
        .iter()
        .for_each(|id| drop(api.settled(id.parse().unwrap())));
    let (completed, failed): (Vec<_>, Vec<_>) = placed
        .iter()
        .cloned()
        .enumerate()
        .partition(|(number, _)| number % 2 == 0);
    let newest_first =
        |list: Vec<(usize, String)>| list.into_iter().rev().map(|(_, id)| id).collect::<Vec<_>>();
    let (completed, failed) = (newest_first(completed), newest_first(failed));
    placed.reverse();

    assert_eq!(page(api, ""), (placed.clone(), None));
    assert_eq!(page(api, "?limit=200"), (placed.clone(), None));
    let (first, next) = page(api, "?limit=4");
    assert_eq!(
        (&first[..], next.as_ref()),
        (&placed[..4], Some(&placed[3]))
    );
    assert_eq!(
        page(api, &format!("?limit=4&after={}", next.unwrap())),
        (placed[4..].to_vec(), None)
    );
    assert_eq!(page(api, "?status=COMPLETED").0, completed);
    assert_eq!(page(api, "?status=IN_PROGRESS").0, Vec::<String>::new());
    let (first, next) = page(api, "?status=FAILED&limit=2");
    assert_eq!(first, failed[..2]);
    assert_eq!(
        page(
            api,
            &format!("?status=FAILED&limit=2&after={}", next.unwrap())
        )
        .0,
        failed[2..]
    );
}

/// An order without messages: it stays as it is.
fn stuck_order(world: &World) -> String {
    world
        .db(Service::Order)
        .query_one(
            "insert into orders (order_id, user_name, item_name, price, quantity, traceparent)
             values (gen_random_uuid(), 'ann', 'lamp', 1, 1, '') returning order_id::text",
            &[],
        )
        .unwrap()
        .get(0)
}

/// Asks in a thread; the answer comes through the channel.
fn ask(api: &Api, target: String) -> mpsc::Receiver<Answer> {
    let (api, (sender, receiver)) = (api.clone(), mpsc::channel());
    thread::spawn(move || sender.send(api.get(&target)));
    receiver
}

/// The same, again and again while the answer is that somebody holds the table.
fn ask_on(api: &Api, target: String) -> mpsc::Receiver<Answer> {
    let (api, (sender, receiver)) = (api.clone(), mpsc::channel());
    thread::spawn(move || {
        let ask = || Some(api.get(&target)).filter(|answer| answer.status != 503);
        sender.send(eventually("the table to be free", ask))
    });
    receiver
}

#[test]
fn a_wait_ends_when_the_order_settles_on_whichever_instance() {
    let world = World::new("http_wait");
    let instances =
        [Service::Order, Service::Order, Service::Stock].map(|service| world.start(service));
    instances[2].api().put_quantity("lamp", 10);
    let id = instances[0].api().place("ann", "lamp", 7, 2);
    until("stock's answer", || {
        instances[0].api().order(id)["stockStatus"] == "COMPLETED"
    });
    // else the relay, which marks the order as published, would wait at the door too
    world.wait_until_published(Service::Order);
    let stuck = stuck_order(&world);
    // stopped at the door of the table, so that all of them have found the order open before it settles
    let mut db = world.db(Service::Order);
    let mut lock = db.transaction().unwrap();
    lock.batch_execute("lock table orders in access exclusive mode")
        .unwrap();
    let both = |target: String| [0, 1].map(|at: usize| ask_on(instances[at].api(), target.clone()));
    // waits that last to their end, or that only another wait's end has looked at, end after this one
    let control = both(format!("/orders/{stuck}?wait=25s"));
    let waits = both(format!("/orders/{id}?wait=30s"));
    world.wait_for_waiting(Service::Order, 4);
    lock.rollback().unwrap();
    world.wait_for_none_waiting(Service::Order);
    world.produce_event(
        "payment.success",
        id,
        "payment.completed",
        &json!({"orderId": id}),
    );
    for wait in waits {
        let answer = wait.recv_timeout(LIMIT).unwrap();
        assert_eq!(
            (answer.status, &answer.json["orderStatus"]),
            (200, &json!("COMPLETED"))
        );
    }
    settle_by_hand(&world);
    for wait in control {
        let answer = wait.recv_timeout(LIMIT).unwrap();
        assert_eq!(
            (answer.status, &answer.json["settled"]),
            (200, &json!(true)),
            "the others ended too late"
        );
    }
}

/// Completes all orders that nothing was done for.
fn settle_by_hand(world: &World) {
    let sql = "update orders set order_status = 'COMPLETED', payment_status = 'COMPLETED', stock_status = 'COMPLETED'
                where payment_status = 'READY'";
    assert_eq!(world.db(Service::Order).execute(sql, &[]).unwrap(), 1);
}

#[test]
fn a_wait_ends_with_the_order_as_it_stands_when_its_time_is_over() {
    let world = World::new("http_wait_over");
    let order = world.start(Service::Order);
    let id = order.api().place("ann", "lamp", 7, 2);
    eventually("the order is published", || {
        (order.api().get(&format!("/orders/{id}")).json["paymentStatus"] == "IN_PROGRESS")
            .then_some(())
    });
    for wait in ["1s", "200ms", "0s"] {
        let answer = order.api().get(&format!("/orders/{id}?wait={wait}"));
        assert_eq!(
            (answer.status, &answer.json["orderStatus"]),
            (200, &json!("IN_PROGRESS"))
        );
        assert_eq!(answer.json["settled"], false);
    }
}

#[test]
fn waiting_requests_beyond_the_limit_are_refused_with_retry_after() {
    // 1,000 in the waiting room, 1,000 before its door
    let room = 2_000;
    let world = World::new("http_waiters");
    let order = world.start(Service::Order);
    let stuck = stuck_order(&world);
    let request = format!("GET /orders/{stuck}?wait=30s HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut waiting: Vec<TcpStream> = Vec::new();
    let (mut over, mut refused) = (0, Vec::new());
    let mut take_answers = |waiting: &mut Vec<TcpStream>| {
        waiting.retain_mut(|stream| match received(stream) {
            // on a busy machine the first have waited for their 30 s before the room is full
            Some(answer) if answer.starts_with("HTTP/1.1 200 OK\r\n") => {
                over += 1;
                false
            }
            Some(answer) => {
                refused.push(answer);
                false
            }
            None => true,
        });
        (over, refused.len())
    };
    eventually("20 requests beyond the limit are refused", || {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(("127.0.0.1", order.port())).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            waiting.push(stream);
        }
        // no faster than they are handled: none may miss its turn
        assert_eq!(order.api().get(&format!("/orders/{stuck}")).status, 200);
        let (before, (over, refused)) = (waiting.len(), take_answers(&mut waiting));
        assert!(
            refused == 0 || before >= room,
            "{refused} with {before} waiting"
        );
        (refused >= 20).then_some(over)
    });
    until("all beyond the limit are answered", || {
        take_answers(&mut waiting);
        waiting.len() <= room
    });
    let (over, _) = take_answers(&mut waiting);
    assert!(over > 0 || waiting.len() == room, "{} wait", waiting.len());
    for answer in refused {
        assert!(
            answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{answer}"
        );
        assert!(answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
        let problem = r#"{"title":"Service Unavailable","status":503,"detail":"too many requests are waiting; ask without ?wait"}"#;
        assert!(answer.ends_with(problem), "{answer}");
    }
    assert_eq!(order.api().get(&format!("/orders/{stuck}")).status, 200);
}

/// What has arrived, if anything has.
fn received(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(count) => Some(String::from_utf8_lossy(&bytes[..count]).into_owned()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn requests_that_get_no_turn_are_refused_with_retry_after() {
    let world = World::with("http_turns", &[("HTTP_WORKERS", "1")]);
    let order = world.start(Service::Order);
    let mut db = world.db(Service::Order);
    let mut lock = db.transaction().unwrap();
    lock.batch_execute("lock table orders in access exclusive mode")
        .unwrap();
    // each that has its turn waits 1 s for the table; the turn of the others never comes within their 10 s
    let asked: Vec<_> = (0..20)
        .map(|_| ask(order.api(), format!("/orders/{NOBODY}")))
        .collect();
    let answers: Vec<Answer> = asked
        .iter()
        .map(|asked| asked.recv_timeout(Duration::from_secs(60)).unwrap())
        .collect();
    lock.rollback().unwrap();
    let details: BTreeSet<String> = answers
        .iter()
        .map(|a| a.json["detail"].as_str().unwrap().to_string())
        .collect();
    for answer in &answers {
        assert_eq!(
            (answer.status, &answer.json["title"]),
            (503, &json!("Service Unavailable"))
        );
        assert!(answer.header("retry-after").is_some(), "{}", answer.text);
    }
    assert!(
        details.contains("too many requests are being handled"),
        "{details:?}"
    );
    assert_eq!(order.api().get(&format!("/orders/{NOBODY}")).status, 404);
}

#[test]
fn a_hundred_equal_posts_with_one_key_at_once_make_one_order() {
    let world = World::new("http_key");
    let [order, payment, _stock] = shop(&world);
    let second = world.start(Service::Order);
    let apis = [order.api().clone(), second.api().clone()];
    let start = Arc::new(Barrier::new(100));
    let posts: Vec<_> = (0..100)
        .map(|number| {
            let (api, start) = (apis[number % 2].clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                post(&api, GOOD, Some("the-one"))
            })
        })
        .collect();
    let answers: Vec<Answer> = posts.into_iter().map(|post| post.join().unwrap()).collect();
    let id = accepted(&answers[0]);
    for answer in &answers {
        assert_eq!((answer.status, &answer.text), (202, &answers[0].text));
        assert_eq!(
            answer.header("location"),
            Some(format!("/orders/{id}").as_str())
        );
    }
    assert_eq!(
        order.api().settled(id.parse().unwrap())["orderStatus"],
        "COMPLETED"
    );
    assert_eq!(rows(&world, Service::Order, "orders"), 1);
    assert_eq!(rows(&world, Service::Order, "idempotency_key"), 1);
    assert_eq!(
        (world.records("payment").len(), world.records("stock").len()),
        (1, 1)
    );
    assert_eq!(payment.api().get("/accounts/ann").json["balance"], 993);
    // also when the order has come to its end: the first answer, byte for byte
    assert_eq!(post(&apis[1], GOOD, Some("the-one")).text, answers[0].text);
}

#[test]
fn a_key_is_bound_to_its_body_and_survives_a_kill() {
    let world = World::new("http_key_kept");
    let order = world.start(Service::Order);
    let first = post(order.api(), GOOD, Some("kept"));
    let id = accepted(&first);
    order.kill();
    let order = world.start(Service::Order);
    let again = post(order.api(), GOOD, Some("kept"));
    assert_eq!((again.status, again.text), (202, first.text));
    for (field, value) in [
        ("userName", r#""bob""#),
        ("itemName", r#""bed""#),
        ("price", "8"),
        ("quantity", "3"),
    ] {
        let other = post(order.api(), &order_with(field, value), Some("kept"));
        let detail = format!(
            "this Idempotency-Key was used for order {id} with another body; use a new key"
        );
        assert_eq!(
            other.json,
            json!({"title": "Unprocessable Content", "status": 422, "detail": detail})
        );
    }
    let same = r#"{ "quantity":2, "price":7, "itemName":" lamp", "userName":"ann" }"#;
    assert_eq!(
        accepted(&post(order.api(), same, Some("kept"))),
        id,
        "the same order, written otherwise"
    );
    assert_ne!(
        accepted(&post(order.api(), GOOD, Some("Kept"))),
        id,
        "keys are distinguished by case"
    );
    assert_ne!(
        accepted(&post(order.api(), GOOD, None)),
        id,
        "no key, no memory"
    );
    assert_eq!(
        (
            rows(&world, Service::Order, "orders"),
            rows(&world, Service::Order, "idempotency_key")
        ),
        (3, 2)
    );
}
