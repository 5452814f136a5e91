//! Who may change things, and which pages a browser lets in.

use harness::{Answer, Instance, Service, World};
use serde_json::json;

const TOKEN: &str = "correct-horse-battery-staple";
const PAGE: &str = "http://page.example:8080";

fn put(instance: &Instance, authorization: Option<&str>) -> Answer {
    let headers: Vec<(&str, &str)> = authorization
        .map(|value| ("authorization", value))
        .into_iter()
        .collect();
    instance
        .api()
        .json("PUT", "/accounts/ann", &headers, &json!({"balance": 5}))
}

#[test]
fn a_change_needs_the_token_and_an_order_or_a_look_does_not() {
    let world = World::with("guard", &[("ADMIN_TOKEN", TOKEN)]);
    let [order, payment, stock] = world.start_all();
    let right = format!("Bearer {TOKEN}");
    let refused = put(&payment, None);
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, Some("Bearer"))
    );
    assert_eq!(
        refused.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(
        payment.api().get("/accounts/ann").status,
        404,
        "nothing was changed"
    );
    assert_eq!(put(&payment, Some("Bearer wrong")).status, 401);
    assert_eq!(put(&payment, Some(&right)).status, 201);
    assert_eq!(
        stock
            .api()
            .put("/items/pen", &json!({"quantity": 3}))
            .status,
        401
    );
    for instance in [&order, &payment, &stock] {
        let replay = instance
            .api()
            .call("POST", "/dead-letters/1/replay", &[], Some(b""))
            .unwrap();
        assert_eq!(replay.status, 401);
        for path in ["/dead-letters", "/healthz", "/metrics", "/overview"] {
            assert_eq!(instance.api().get(path).status, 200, "{path}");
        }
    }
    let placed = order.api().place("ann", "pen", 1, 1);
    assert_eq!(order.api().settled(placed)["orderStatus"], "FAILED");
    for instance in [&order, &payment, &stock] {
        assert!(!instance.log().contains(TOKEN));
    }
}

#[test]
fn wrong_tokens_are_logged_and_lock_nobody_out() {
    let world = World::with("guard_wrong", &[("ADMIN_TOKEN", TOKEN)]);
    let payment = world.start(Service::Payment);
    for attempt in 1..=20 {
        assert_eq!(
            put(&payment, Some(&format!("Bearer {attempt}"))).status,
            401
        );
    }
    assert_eq!(
        payment.api().get("/accounts/ann").status,
        404,
        "nothing was changed"
    );
    assert_eq!(put(&payment, Some(&format!("Bearer {TOKEN}"))).status, 201);
    payment.wait_for_log("a wrong operator's token from 127.0.0.1");
}

#[test]
fn an_address_that_others_reach_is_not_bound_without_a_token() {
    let world = World::new("guard_bind");
    let open = world.launch(Service::Payment, &[("BIND", "0.0.0.0")]);
    assert_eq!(open.process().exit().code(), Some(2));
    assert!(
        open.log()
            .contains("BIND=0.0.0.0: others can reach this address, so ADMIN_TOKEN must be set")
    );
    let guarded = world.start_with(
        Service::Payment,
        &[("BIND", "0.0.0.0"), ("ADMIN_TOKEN", TOKEN)],
    );
    assert_eq!(guarded.api().get("/healthz").status, 200);
}

#[test]
fn only_pages_of_the_configured_origins_may_use_a_service() {
    let world = World::with("guard_cors", &[("CORS_ORIGINS", PAGE)]);
    let payment = world.start(Service::Payment);
    let api = payment.api();
    let asks = |origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "PUT")];
        api.call("OPTIONS", "/accounts/ann", &headers, None)
            .unwrap()
    };
    let allowed = asks(PAGE);
    assert_eq!(
        (
            allowed.status,
            allowed.header("access-control-allow-origin")
        ),
        (204, Some(PAGE))
    );
    assert_eq!(
        allowed.header("access-control-allow-methods"),
        Some("GET, PUT, POST")
    );
    assert_eq!(
        allowed.header("access-control-allow-headers"),
        Some("authorization, content-type, idempotency-key, x-actor")
    );
    let foreign = asks("http://evil.example");
    assert_eq!(
        (
            foreign.status,
            foreign.header("access-control-allow-origin")
        ),
        (405, None)
    );
    let read = |origin: &str| {
        api.call("GET", "/accounts/ann", &[("origin", origin)], None)
            .unwrap()
    };
    // errors are readable too
    let known = read(PAGE);
    assert_eq!(
        (
            known.status,
            known.header("access-control-allow-origin"),
            known.header("vary")
        ),
        (404, Some(PAGE), Some("Origin"))
    );
    assert_eq!(
        read("http://evil.example").header("access-control-allow-origin"),
        None
    );
    assert_eq!(read(PAGE).header("x-content-type-options"), Some("nosniff"));
}

#[test]
fn a_page_of_another_origin_changes_nothing_even_by_a_request_that_browsers_send_unasked() {
    let world = World::new("guard_origin");
    let payment = world.start(Service::Payment);
    let own = format!("http://127.0.0.1:{}", payment.port());
    let status = |origin: &str, host: &str| {
        let headers = [("origin", origin), ("host", host)];
        payment
            .api()
            .call("POST", "/dead-letters/1/replay", &headers, Some(b""))
            .unwrap()
            .status
    };
    let here = own.trim_start_matches("http://");
    assert_eq!(status("http://evil.example", here), 403);
    assert_eq!(status("null", here), 403);
    // a name that was made to lead here
    assert_eq!(status("http://evil.example:8082", "evil.example:8082"), 403);
    assert_eq!(status(&own, here), 404);
    assert_eq!(
        status("http://127.0.0.1:8080", here),
        404,
        "the order service's page"
    );
}
