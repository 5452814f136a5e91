//! Requests and their answers.

use super::*;

// ---- routes -----------------------------------------------------------------------------------------------------------------------

#[test]
fn an_unknown_path_is_not_found() {
    let service = start();
    let mut client = Client::of(&service);
    let expected =
        json!({"title": "Not Found", "status": 404, "detail": "there is nothing at this path"});
    for path in [
        "/",
        "/nothing",
        "/orders/",
        "/orders/1/2",
        "/accounts/",
        "//orders",
    ] {
        client.get(path).is_problem(expected.clone());
    }
}

#[test]
fn a_wrong_method_is_answered_with_the_right_ones() {
    let service = start();
    let mut client = Client::of(&service);
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = client
            .send(format!("{method} /orders HTTP/1.1\r\nHost: test\r\n\r\n"))
            .answer();
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST"));
        answer.is_problem(
            json!({"title": "Method Not Allowed", "status": 405, "detail": "this path knows GET, HEAD, POST"}),
        );
    }
}

#[test]
fn a_head_request_gets_no_body() {
    let service = start();
    let mut client = Client::of(&service);
    assert_eq!(
        client
            .send("HEAD /accounts/alice HTTP/1.1\r\nHost: test\r\n\r\n")
            .head()
            .status,
        200
    );
    assert_eq!(
        client
            .send("HEAD /nowhere HTTP/1.1\r\nHost: test\r\n\r\n")
            .head()
            .status,
        404
    );
    client.get("/accounts/alice").is(200, json!("alice"));
}

// ---- the body ---------------------------------------------------------------------------------------------------------------------

#[test]
fn an_order_is_taken() {
    let service = start();
    let answer = Client::of(&service).post(ORDER);
    answer.is(202, json!(["alice", "book", 1000, 2, null]));
    assert_eq!(answer.header("location"), Some("/orders/1"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(
        answer.header("date").map(str::len),
        Some("Sun, 06 Nov 1994 08:49:37 GMT".len())
    );
}

#[test]
fn a_body_that_is_not_declared_as_json_is_refused() {
    let service = start();
    let mut client = Client::of(&service);
    let expected = json!({"title": "Unsupported Media Type", "status": 415,
        "detail": "the body must be sent as Content-Type: application/json, in UTF-8, without Content-Encoding"});
    for headers in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/jsonp\r\n",
        "Content-Type: application/json; charset=latin1\r\n",
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
    ] {
        client
            .send(post(headers, ORDER))
            .answer()
            .is_problem(expected.clone());
    }
    for headers in [
        "content-type: Application/JSON; charset=\"UTF-8\"\r\n",
        "Content-Type: application/json;charset=utf-8; x=y\r\n",
        "Content-Type: application/json; charset=utf8\r\n",
        "Content-Type: application/json; charset=US-ASCII\r\n",
        "Content-Type: application/vnd.api+json\r\n",
        "Content-Type: Application/Problem+JSON; charset=utf-8\r\n",
    ] {
        assert_eq!(client.send(post(headers, ORDER)).answer().status, 202);
    }
}

#[test]
fn a_body_of_exactly_the_limit_is_read() {
    let service = start();
    let mut client = Client::of(&service);
    let body = order_of_length(BODY_LIMIT);
    assert_eq!(client.post(&body).status, 202);
    assert_eq!(
        client
            .send(chunked(&format!("10000\r\n{body}\r\n0\r\n\r\n")))
            .answer()
            .status,
        202
    );
}

#[test]
fn a_chunked_body_is_read_like_any_other() {
    order_is_read_from_chunks("", "");
}

#[test]
fn a_client_that_asks_first_may_go_on() {
    let service = start();
    let mut client = Client::of(&service);
    let request = post(
        "Content-Type: application/json\r\nExpect: 100-continue\r\n",
        ORDER,
    );
    let (head, body) = request.split_at(request.len() - ORDER.len());
    assert_eq!(client.send(head).head().status, 100);
    assert_eq!(client.send(body).answer().status, 202);
}

#[test]
fn a_request_that_is_not_let_in_is_refused_whatever_its_body_says_and_the_next_one_is_answered() {
    let service = start();
    let mut client = Client::of(&service);
    for target in ["/full/a", "/full/%61?b=c", "http://test/full/a"] {
        let body = "{ this is not JSON";
        let length = body.len();
        let answer = client
            .send(format!(
                "POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
            .answer();
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (503, Some("7")),
            "{target}"
        );
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(
            answer.json(),
            json!({"title": "Service Unavailable", "status": 503, "detail": "full"})
        );
    }
    assert_eq!(client.post(ORDER).status, 202);
}

#[test]
fn json_that_cannot_be_parsed_is_refused_with_its_place() {
    let service = start();
    let mut client = Client::of(&service);
    client
        .post("{\n  \"price\": 1,,\n}")
        .is_problem(json!({"title": "Bad Request", "status": 400,
        "detail": "the body is not JSON: key must be a string at line 2 column 14"}));
    let refused = |client: &mut Client, body: &[u8]| client.post(body).summary();
    for (body, detail) in [
        (
            "",
            "the body is not JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            "{\"price\":",
            "the body is not JSON: EOF while parsing a value at line 1 column 9",
        ),
        (
            "[1,",
            "the body is not JSON: EOF while parsing a value at line 1 column 3",
        ),
        (
            "{} {}",
            "the body is not JSON: trailing characters at line 1 column 4",
        ),
    ] {
        assert_eq!(refused(&mut client, body.as_bytes()), (400, detail.into()));
    }
    assert_eq!(
        refused(&mut client, b"{\n\"a\xff"),
        (400, "the body is not UTF-8 at line 2 column 3".into())
    );
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    let service = start();
    let mut client = Client::of(&service);
    for body in ["[]", "[1, {}]", "null", "true", "1", "-1", "1.5", "\"a\""] {
        client.post(body).is_problem(
            json!({"title": "Unprocessable Content", "status": 422, "detail": "the body must be a JSON object"}),
        );
    }
}

// ---- the fields -------------------------------------------------------------------------------------------------------------------

#[test]
fn all_bad_fields_are_named_at_once() {
    let service = start();
    let answer = Client::of(&service)
        .post(r#"{"userName": 7, "price": 0, "quantity": 1.5, "colour": "red"}"#);
    answer.is_problem(json!({
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "`userName` must be a string; `itemName` is missing; `price` must be from 1 to 1000000000000000; \
                   `quantity` must be a whole number, without fraction or exponent; `colour` is unknown",
        "errors": [
            {"field": "userName", "detail": "must be a string"},
            {"field": "itemName", "detail": "is missing"},
            {"field": "price", "detail": "must be from 1 to 1000000000000000"},
            {"field": "quantity", "detail": "must be a whole number, without fraction or exponent"},
            {"field": "colour", "detail": "is unknown"},
        ],
    }));
}

#[test]
fn only_whole_numbers_within_the_range_are_taken() {
    let service = start();
    let mut client = Client::of(&service);
    let mut post = |price: &str| client.post(ORDER.replace("1000", price));
    for price in ["1", "1000000000000000"] {
        assert_eq!(post(price).status, 202, "{price}");
    }
    for price in [
        "0",
        "-0",
        "-1",
        "1000000000000001",
        "9223372036854775808",
        "1000000000000000000000000000000",
    ] {
        assert_eq!(
            post(price).summary(),
            (422, "`price` must be from 1 to 1000000000000000".into()),
            "{price}"
        );
    }
    for price in [
        "1.0", "1e3", "1E3", "1.5", "1e400", "\"5\"", "true", "null", "[1]", "{}",
    ] {
        let detail = "`price` must be a whole number, without fraction or exponent";
        assert_eq!(post(price).summary(), (422, detail.into()), "{price}");
    }
}

#[test]
fn a_field_given_twice_is_refused() {
    let service = start();
    let body = r#"{"userName": "a", "price": 1, "userName": "b", "\u0070rice": 2}"#;
    Client::of(&service).post(body).is_problem(
        json!({"title": "Unprocessable Content", "status": 422,
        "detail": "`userName` is given more than once; `price` is given more than once", "errors": [
            {"field": "userName", "detail": "is given more than once"},
            {"field": "price", "detail": "is given more than once"},
        ]}),
    );
}

#[test]
fn names_in_bodies_have_1_to_200_characters_without_control_characters() {
    let service = start();
    let mut client = Client::of(&service);
    let mut post = |name: &str| client.post(ORDER.replace("alice", name));
    post(r"  \t zoë 😀 ").is(202, json!(["zoë 😀", "book", 1000, 2, null]));
    assert_eq!(post(&"ß".repeat(200)).status, 202);
    for name in ["", "   ", &"ß".repeat(201)] {
        assert_eq!(
            post(name).summary(),
            (422, "`userName` must have 1 to 200 characters".into())
        );
    }
    for name in [r"a\u0000b", r"a\nb", r"a\u0085b"] {
        assert_eq!(
            post(name).summary(),
            (422, "`userName` must not contain control characters".into())
        );
    }
    assert_eq!(
        post(r"\ud800").summary(),
        (422, "`userName` must be a string".into())
    );
}

// ---- path, query, headers ---------------------------------------------------------------------------------------------------------

#[test]
fn names_in_paths_are_percent_decoded_and_keep_the_same_rules() {
    let service = start();
    let mut client = Client::of(&service);
    client
        .get("/accounts/zo%C3%AB%20%2f")
        .is(200, json!("zoë /"));
    client.get("/accounts/a+b").is(200, json!("a+b"));
    client
        .get("http://test/accounts/alice")
        .is(200, json!("alice"));
    client
        .get("/accounts/%20")
        .is_problem(json!({"title": "Unprocessable Content", "status": 422,
        "detail": "`userName` must have 1 to 200 characters",
        "errors": [{"field": "userName", "detail": "must have 1 to 200 characters"}]}));
    assert_eq!(
        client.get("/accounts/a%00b").summary(),
        (422, "`userName` must not contain control characters".into())
    );
}

#[test]
fn a_target_that_cannot_be_decoded_is_refused() {
    let service = start();
    let mut client = Client::of(&service);
    for (target, detail) in [
        ("/accounts/%", "the path has a broken percent escape"),
        ("/accounts/%4", "the path has a broken percent escape"),
        ("/accounts/%+1", "the path has a broken percent escape"),
        ("/accounts/%ff", "the path is not UTF-8"),
        ("/orders?limit=%zz", "the query has a broken percent escape"),
        ("/orders?limit=%ff", "the query is not UTF-8"),
        ("orders", "the request target is not a path"),
        ("*", "the request target is not a path"),
    ] {
        client
            .get(target)
            .is_problem(json!({"title": "Bad Request", "status": 400, "detail": detail}));
    }
}

#[test]
fn an_order_id_that_is_no_uuid_is_refused() {
    let service = start();
    let mut client = Client::of(&service);
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    client
        .get(&format!("/orders/{id}"))
        .is(200, json!([id, null]));
    for other in [
        "1",
        "0190163d8694739baea5966c26f8ad91",
        "{0190163d-8694-739b-aea5-966c26f8ad91}",
    ] {
        let answer = client.get(&format!("/orders/{other}"));
        answer
            .is_problem(json!({"title": "Unprocessable Content", "status": 422, "detail": "`orderId` must be a UUID",
            "errors": [{"field": "orderId", "detail": "must be a UUID"}]}));
    }
}

#[test]
fn a_wait_is_a_number_and_a_unit_up_to_the_limit() {
    let service = start();
    let mut client = Client::of(&service);
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    let mut wait = |text: &str| client.get(&format!("/orders/{id}?wait={text}"));
    for (text, millis) in [("10s", 10_000), ("500ms", 500), ("0s", 0), ("30s", 30_000)] {
        wait(text).is(200, json!([id, millis]));
    }
    for text in [
        "",
        "10",
        "s",
        "-1s",
        "1.5s",
        "10 s",
        "10h",
        "99999999999999999999s",
        "9223372036854775807m",
    ] {
        assert_eq!(
            wait(&text.replace(' ', "%20")).summary(),
            (422, "`wait` must be a time such as 500ms, 10s or 1m".into())
        );
    }
    for text in ["31s", "1m", "30001ms"] {
        assert_eq!(
            wait(text).summary(),
            (422, "`wait` must be at most 30s".into())
        );
    }
}

#[test]
fn query_parameters_are_checked() {
    let service = start();
    let mut client = Client::of(&service);
    let id = "0190163d-8694-739b-aea5-966c26f8ad91";
    client
        .get(&format!("/orders?limit=50&after={id}"))
        .is(200, json!([50, id]));
    client.get("/orders?").is(200, json!([null, null]));
    for (query, detail) in [
        ("limit=0", "`limit` must be from 1 to 200"),
        (
            "limit=x",
            "`limit` must be a whole number, without fraction or exponent",
        ),
        ("after=x", "`after` must be a UUID"),
        (
            "limit=1&limit=2&page=3",
            "`limit` is given more than once; `page` is unknown",
        ),
    ] {
        assert_eq!(
            client.get(&format!("/orders?{query}")).summary(),
            (422, detail.into())
        );
    }
    let many = client.get(&format!("/orders?{}", "x&".repeat(1_000)));
    assert_eq!(
        (many.status, many.json()["errors"].as_array().map(Vec::len)),
        (422, Some(20)),
        "the first of them are named"
    );
}

#[test]
fn an_idempotency_key_is_visible_ascii() {
    let service = start();
    let mut client = Client::of(&service);
    let mut send = |header: &str| {
        client
            .send(post(
                &format!("Content-Type: application/json\r\n{header}\r\n"),
                ORDER,
            ))
            .answer()
    };
    send("idempotency-key: a~!\"1").is(202, json!(["alice", "book", 1000, 2, "a~!\"1"]));
    assert_eq!(
        send(&format!("Idempotency-Key: {}", "k".repeat(255))).status,
        202
    );
    let long = format!("Idempotency-Key: {}", "k".repeat(256));
    for header in [
        "Idempotency-Key:",
        &long,
        "Idempotency-Key: a b",
        "Idempotency-Key: a\r\nIdempotency-Key: a",
    ] {
        send(header).is_problem(json!({"title": "Bad Request", "status": 400,
            "detail": "Idempotency-Key must be one value of 1 to 255 visible ASCII characters"}));
    }
}

#[test]
fn a_header_value_cannot_smuggle_in_another_header() {
    let service = start();
    let answer = Client::of(&service).get("/header");
    assert_eq!(answer.header("x-name"), Some("aX-Injected: b"));
    assert_eq!(answer.header("x-injected"), None);
}

// ---- connections ------------------------------------------------------------------------------------------------------------------

#[test]
fn a_connection_goes_on_after_an_error() {
    let service = start();
    let mut client = Client::of(&service);
    for _ in 0..3 {
        assert_eq!(client.get("/nothing").status, 404);
        assert_eq!(client.post("{").status, 400);
        assert_eq!(client.post("{}").status, 422);
        assert_eq!(client.post(ORDER).status, 202);
    }
}

#[test]
fn a_client_that_sends_no_more_still_gets_its_answer() {
    let service = start();
    let mut client = Client::of(&service);
    client.send(get("/accounts/alice"));
    client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    client.answer().is(200, json!("alice"));
    assert_eq!(client.rest(), "");
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_read() {
    let service = start();
    let mut client = Client::of(&service);
    client.reader.get_ref().set_nodelay(true).unwrap();
    for byte in post("Content-Type: application/json\r\n", ORDER) {
        client.send([byte]);
    }
    assert_eq!(client.answer().status, 202);
}

#[test]
fn an_answer_larger_than_all_buffers_arrives_whole() {
    let service = start();
    let mut client = Client::of(&service);
    for _ in 0..2 {
        client.get("/large").is(200, json!("x".repeat(300_000)));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let service = start();
    let mut client = Client::of(&service);
    client.send(format!(
        "{}{}{}",
        get("/parked"),
        get("/accounts/second"),
        get("/nothing")
    ));
    let (_, responder) = service.parked.recv_timeout(LIMIT).unwrap();
    responder.send(Response::json(200, &"first"));
    client.answer().is(200, json!("first"));
    client.answer().is(200, json!("second"));
    assert_eq!(client.answer().status, 404);
}

#[test]
fn a_panic_is_answered_and_the_connection_goes_on() {
    let service = start();
    let mut client = Client::of(&service);
    // More often than there are workers: a panic gives its turn back.
    for _ in 0..6 {
        client
            .get("/panic")
            .is_problem(json!({"title": "Internal Server Error", "status": 500,
            "detail": "the request was dropped without an answer; its outcome is unknown"}));
    }
    client.get("/accounts/alice").is(200, json!("alice"));
}

#[test]
fn a_request_that_nobody_answers_is_answered_with_500() {
    let service = start();
    let mut client = Client::of(&service);
    assert_eq!(client.get("/dropped").status, 500);
    client.get("/accounts/alice").is(200, json!("alice"));
}

// ---- what is no request -----------------------------------------------------------------------------------------------------------

#[test]
fn half_a_request_is_not_handled() {
    let service = start();
    let request = get("/parked");
    for length in [1, 10, request.len() - 1] {
        let mut client = Client::of(&service);
        client.send(&request[..length]);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.rest(), "");
    }
    assert_eq!(service.server.stop(LIMIT), 0);
    assert!(service.parked.try_recv().is_err());
}

#[test]
fn a_client_that_sends_a_large_body_to_its_end_still_reads_the_refusal() {
    let service = start();
    let mut client = Client::of(&service);
    // More than the sockets hold: the client can't finish unless the server goes on taking it in, for as long as it lingers.
    client.send(post(
        "Content-Type: application/json\r\n",
        vec![b' '; 160 * BODY_LIMIT],
    ));
    client.answer().is_problem(too_large());
}

#[test]
fn a_request_without_an_answer_in_time_is_answered_and_its_late_answer_dropped() {
    let service = start_with(ServerLimits {
        answer: Duration::from_millis(20),
        ..ServerLimits::default()
    });
    let mut client = Client::of(&service);
    let responder = park(&service, &mut client);
    let answer = client.answer();
    answer.is_problem(json!({
        "title": "Service Unavailable",
        "status": 503,
        "detail": "no answer was found in time; the request's outcome is unknown"
    }));
    responder.send(Response::json(200, &"too late"));
    // the next answer is the next request's
    client.get("/accounts/alice").is(200, json!("alice"));
}

#[test]
fn stopping_answers_what_is_in_flight() {
    let Service { server, parked } = start();
    let mut busy = Client::to(server.local_addr());
    busy.send(get("/parked"));
    let (_, responder) = parked.recv_timeout(LIMIT).unwrap();
    let stopping = std::thread::spawn(move || server.stop(LIMIT));
    responder.send(Response::json(200, &"in flight"));
    busy.answer().is(200, json!("in flight"));
    assert_eq!(stopping.join().unwrap(), 0);
}

#[test]
fn parked_requests_are_answered_from_another_thread() {
    let service = start();
    let mut clients = [Client::of(&service), Client::of(&service)];
    let parked = clients.each_mut().map(|client| park(&service, client));
    for (responder, answer) in parked.into_iter().rev().zip(["first", "second"]) {
        std::thread::spawn(move || responder.send(Response::json(200, &answer)));
    }
    for (client, answer) in clients.iter_mut().rev().zip(["first", "second"]) {
        client.answer().is(200, json!(answer));
    }
}
