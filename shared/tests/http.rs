//! The HTTP layer over real sockets. Expected answers are typed in by hand.

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use shared::http::{
    BODY_LIMIT, Fields, HEAD_LIMIT, Method, Problem, Request, Responder, Response, Routes, Server,
    ServerLimits, idempotency_key, json_object,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Generous: nothing here takes this long, and a test that hangs should end.
const LIMIT: Duration = Duration::from_secs(30);

const ORDER: &str = r#"{"userName":"alice","itemName":"book","price":1000,"quantity":2}"#;

// ---- the service under test -------------------------------------------------------------------------------------------------------

struct Service {
    server: Server,
    parked: Receiver<(Request, Responder)>,
}

fn start() -> Service {
    start_with(ServerLimits::default())
}

fn start_with(limits: ServerLimits) -> Service {
    let (park, parked) = unbounded();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = Server::start("test", listener, limits, routes(park)).unwrap();
    Service { server, parked }
}

fn routes(park: Sender<(Request, Responder)>) -> Routes {
    Routes::new()
        .route(Method::Post, "/orders", place)
        .route(Method::Get, "/orders", list)
        .route(Method::Get, "/orders/{orderId}", show)
        .route(Method::Get, "/accounts/{userName}", |request| {
            Ok(Response::json(200, &request.name_param("userName")?))
        })
        .route(Method::Post, "/full/{name}", |request| {
            Ok(Response::json(202, &request.param("name")))
        })
        .gated(|| Err(Problem::unavailable("full", 7)))
        .route(Method::Get, "/panic", |_| panic!("on purpose"))
        .route(Method::Get, "/large", |_| {
            Ok(Response::json(200, &"x".repeat(300_000)))
        })
        .route(Method::Get, "/header", |_| {
            Ok(Response::json(200, &1).with_header("X-Name", "a\r\nX-Injected: b"))
        })
        .route_deferred(Method::Get, "/dropped", |_, _| {})
        .route_deferred(Method::Get, "/parked", move |request, responder| {
            park.send((request, responder)).unwrap()
        })
}

fn place(request: &Request) -> Result<Response, Problem> {
    let key = idempotency_key(request)?.map(str::to_owned);
    let mut fields = Fields::new(json_object(request)?);
    let (user, item) = (fields.name("userName"), fields.name("itemName"));
    let (price, quantity) = (
        fields.integer("price", 1..=1_000_000_000_000_000),
        fields.integer("quantity", 1..=1_000_000_000),
    );
    let order = fields.finish(|| Some(json!([user?, item?, price?, quantity?, key])))?;
    Ok(Response::json(202, &order).with_header("Location", "/orders/1"))
}

fn list(request: &Request) -> Result<Response, Problem> {
    request.query.allow_only(&["limit", "after"])?;
    let (limit, after) = (
        request.query.integer("limit", 1..=200)?,
        request.query.uuid("after")?,
    );
    Ok(Response::json(200, &(limit, after)))
}

fn show(request: &Request) -> Result<Response, Problem> {
    let id = request.uuid_param("orderId")?;
    let wait = request.query.duration("wait", Duration::from_secs(30))?;
    Ok(Response::json(
        200,
        &(id, wait.map(|wait| wait.as_millis())),
    ))
}

// ---- a client that sends exactly what it is told ----------------------------------------------------------------------------------

struct Client {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Client {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Client {
            reader: BufReader::new(stream),
        }
    }

    fn of(service: &Service) -> Self {
        Client::to(service.server.local_addr())
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.reader.get_mut().write_all(bytes.as_ref()).unwrap();
        self
    }

    fn get(&mut self, target: &str) -> Answer {
        self.send(get(target)).answer()
    }

    fn post(&mut self, body: impl AsRef<[u8]>) -> Answer {
        self.send(post("Content-Type: application/json\r\n", body))
            .answer()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    /// The next answer's head; its body is left unread.
    fn head(&mut self) -> Answer {
        let first = self.line();
        let status = first
            .split(' ')
            .nth(1)
            .unwrap_or_else(|| panic!("no status line: {first:?}"))
            .parse()
            .unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_lowercase(), value.into()));
        }
        Answer {
            status,
            headers,
            body: Vec::new(),
        }
    }

    fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        answer.body = vec![0; answer.header("content-length").unwrap().parse().unwrap()];
        self.reader.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// What comes until the server closes the connection.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.reader.read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    fn is_problem(&self, expected: Value) {
        assert_eq!(self.json(), expected);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(u64::from(self.status), expected["status"]);
    }

    #[track_caller]
    fn is(&self, status: u16, body: Value) {
        assert_eq!((self.status, self.json()), (status, body));
    }

    /// Status and detail, for tables of problems.
    fn summary(&self) -> (u16, String) {
        (self.status, self.json()["detail"].as_str().unwrap().into())
    }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")
}

fn post(headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn chunked(chunks: &str) -> String {
    let head = "POST /orders HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    format!("{head}{chunks}")
}

/// An order whose JSON has exactly `length` bytes: spaces count too.
fn order_of_length(length: usize) -> String {
    format!("{ORDER}{}", " ".repeat(length - ORDER.len()))
}

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
fn a_wrong_method_is_told_the_right_ones() {
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

fn too_large() -> Value {
    json!({"title": "Content Too Large", "status": 413, "detail": "the body is larger than 65536 bytes"})
}

#[test]
fn a_body_over_the_limit_is_refused_by_its_declared_length() {
    let service = start();
    for length in ["65537", "10000000000000", "18446744073709551616"] {
        let mut client = Client::of(&service);
        client.send(format!(
            "POST /orders HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{{"
        ));
        client.answer().is_problem(too_large());
        assert_eq!(client.rest(), "");
    }
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
fn a_chunked_body_over_the_limit_is_refused() {
    let service = start();
    let in_one = format!("10001\r\n{}", " ".repeat(10));
    let in_many = format!("8000\r\n{}\r\n", " ".repeat(0x8000)).repeat(3);
    for chunks in [in_one.as_str(), &in_many, "fffffffffffffffff\r\n"] {
        let mut client = Client::of(&service);
        client
            .send(chunked(chunks))
            .answer()
            .is_problem(too_large());
        assert_eq!(client.rest(), "");
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
    let service = start();
    let mut client = Client::of(&service);
    let (start, end) = ORDER.split_at(10);
    let chunks = format!(
        "a;name=value\r\n{start}\r\n{:X}\r\n{end}\r\n0\r\nX-Trailer: 1\r\n\r\n",
        end.len()
    );
    client
        .send(chunked(&chunks))
        .answer()
        .is(202, json!(["alice", "book", 1000, 2, null]));
    client.get("/accounts/alice").is(200, json!("alice"));
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let service = start();
    let mut client = Client::of(&service);
    let request = post(
        "Content-Type: application/json\r\nExpect: 100-continue\r\n",
        ORDER,
    );
    let (head, body) = request.split_at(request.len() - ORDER.len());
    assert_eq!(client.send(head).head().status, 100);
    assert_eq!(client.send(body).answer().status, 202);
    client.send("POST /orders HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 70000\r\n\r\n");
    client.answer().is_problem(too_large());
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
fn a_client_that_asks_first_is_refused_before_it_sends_its_body() {
    let service = start();
    let mut client = Client::of(&service);
    client.send("POST /full/a HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 60000\r\n\r\n");
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (503, Some("close"))
    );
    assert_eq!(client.rest(), "");
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
    client.get("/accounts/zoë").is(200, json!("zoë"));
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
        "Idempotency-Key: ä",
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
        assert_eq!(
            client.get("/nothing").header("connection"),
            Some("keep-alive")
        );
        assert_eq!(client.post("{").status, 400);
        assert_eq!(client.post("{}").status, 422);
        assert_eq!(client.post(ORDER).status, 202);
    }
}

#[test]
fn a_connection_ends_when_the_client_says_so() {
    let service = start();
    for request in [
        "GET /accounts/a HTTP/1.1\r\nHost: test\r\nConnection: x, Close\r\n\r\n",
        "GET /accounts/a HTTP/1.0\r\n\r\n",
        "GET /accounts/a HTTP/1.0\r\nHost: test\r\n\r\n",
    ] {
        let mut client = Client::of(&service);
        let answer = client.send(request).answer();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        assert_eq!(client.rest(), "");
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
fn many_connections_are_kept_alive_and_answered_at_once() {
    let service = start();
    let mut clients: Vec<_> = (0..100).map(|_| Client::of(&service)).collect();
    for round in 0..3 {
        clients.iter_mut().for_each(|client| {
            client.send(get(&format!("/accounts/{round}")));
        });
        clients
            .iter_mut()
            .for_each(|client| client.answer().is(200, json!(round.to_string())));
    }
}

#[test]
fn a_parked_request_is_answered_from_another_thread() {
    let service = start();
    let mut clients: Vec<_> = (0..20).map(|_| Client::of(&service)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(get(&format!("/parked?number={number}")));
    }
    // All are parked before the first is answered: more than there are workers.
    let parked: Vec<_> = clients
        .iter()
        .map(|_| service.parked.recv_timeout(LIMIT).unwrap())
        .collect();
    Client::of(&service)
        .get("/accounts/alice")
        .is(200, json!("alice"));
    std::thread::spawn(move || {
        for (request, responder) in parked.into_iter().rev() {
            responder.send(Response::json(200, &request.query.get("number").unwrap()));
        }
    });
    for (number, client) in clients.iter_mut().enumerate() {
        client.answer().is(200, json!(number.to_string()));
    }
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

/// One answer with this status, then the end of the connection: nothing of what follows is taken for a request.
#[track_caller]
fn is_refused(service: &Service, status: u16, bytes: impl AsRef<[u8]>) {
    let mut client = Client::of(service);
    let answer = client.send(bytes).send(get("/accounts/smuggled")).answer();
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.rest(), "");
}

#[test]
fn a_body_whose_length_is_in_doubt_is_refused() {
    let service = start();
    for (status, headers) in [
        (400, "Content-Length: 5\r\nContent-Length: 5\r\n"),
        (400, "Content-Length: 5, 5\r\n"),
        (400, "Content-Length: +5\r\n"),
        (400, "Content-Length: -5\r\n"),
        (400, "Content-Length: 0x5\r\n"),
        (400, "Content-Length:\r\n"),
        (400, "Content-Length: \u{a0}5\r\n"),
        (501, "Transfer-Encoding: \u{a0}chunked\r\n"),
        (400, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        (
            400,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        (400, "Transfer-Encoding : chunked\r\n"),
        (501, "Transfer-Encoding: gzip, chunked\r\n"),
        (501, "Transfer-Encoding: identity\r\n"),
        (417, "Content-Length: 5\r\nExpect: 200-ok\r\n"),
    ] {
        is_refused(
            &service,
            status,
            format!("POST /orders HTTP/1.1\r\nHost: test\r\n{headers}\r\n"),
        );
    }
    is_refused(
        &service,
        400,
        "POST /orders HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
}

#[test]
fn broken_chunks_are_refused() {
    let service = start();
    for chunks in [
        "\r\n",
        "x\r\n",
        " 1\r\n",
        "1\n\r\n",
        "\u{a0}1\r\n",
        "-1\r\n",
        "+1\r\n",
        "0x1\r\n",
        "1\r\nab\r\n",
        ";a\r\n",
        &"1".repeat(2000),
    ] {
        is_refused(&service, 400, chunked(chunks));
    }
    is_refused(
        &service,
        431,
        chunked(&format!("0\r\n{}", "a: b\r\n".repeat(100))),
    );
}

#[test]
fn what_is_no_http_is_refused() {
    let service = start();
    for (status, bytes) in [
        (400, "nonsense\r\n\r\n"),
        (400, "\0\0\0\0\r\n\r\n"),
        (400, "GET /orders HTTP/1.1\r\nno colon\r\n\r\n"),
        (400, "GET /orders HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"),
        (400, "GET /orders HTTP/1.1\r\n\r\n"),
        (400, "GET /orders HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ] {
        is_refused(&service, status, bytes);
    }
}

#[test]
fn an_endless_head_is_refused() {
    let service = start();
    let endless = "a".repeat(8 * HEAD_LIMIT);
    is_refused(&service, 414, format!("GET /{endless}"));
    is_refused(
        &service,
        431,
        format!("GET / HTTP/1.1\r\nHost: test\r\nX: {endless}"),
    );
    is_refused(
        &service,
        431,
        format!("GET / HTTP/1.1\r\nHost: test\r\n{}", "a: b\r\n".repeat(65)),
    );
}

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

// ---- stopping ---------------------------------------------------------------------------------------------------------------------

#[test]
fn stopping_finishes_what_is_in_flight_and_closes_the_rest() {
    let Service { server, parked } = start();
    let address = server.local_addr();
    let (mut idle, mut half, mut busy) = (
        Client::to(address),
        Client::to(address),
        Client::to(address),
    );
    assert_eq!(idle.get("/accounts/alice").status, 200);
    half.send("GET /parked HTTP/1.1\r\n");
    busy.send(get("/parked").repeat(2));
    let (_, responder) = parked.recv_timeout(LIMIT).unwrap();
    let stopping = std::thread::spawn(move || server.stop(LIMIT));
    // Both end although the busy one is still unanswered.
    assert_eq!((idle.rest(), half.rest()), (String::new(), String::new()));
    assert!(TcpStream::connect(address).is_err());
    responder.send(Response::json(200, &"in flight"));
    let answer = busy.answer();
    answer.is(200, json!("in flight"));
    assert_eq!(answer.header("connection"), Some("close"));
    // The second request was sent before the stop, but not begun.
    assert_eq!(busy.rest(), "");
    assert_eq!(stopping.join().unwrap(), 0);
    assert!(parked.recv_timeout(LIMIT).is_err());
}

#[test]
fn stopping_does_not_wait_beyond_its_limit() {
    let Service { server, parked } = start();
    let mut client = Client::to(server.local_addr());
    client.send(get("/parked"));
    let (_, responder) = parked.recv_timeout(LIMIT).unwrap();
    assert_eq!(server.stop(Duration::from_millis(50)), 1);
    assert_eq!(client.rest(), "");
    drop(responder);
}

#[test]
fn a_dropped_server_ends_its_connections_and_its_threads() {
    let Service { server, parked } = start();
    let address = server.local_addr();
    let mut client = Client::to(address);
    assert_eq!(client.get("/accounts/alice").status, 200);
    drop(server);
    assert_eq!(client.rest(), "");
    // The threads let go of the routes, and with them of the channel's other end.
    assert!(
        parked
            .recv_timeout(LIMIT)
            .is_err_and(|error| error.is_disconnected())
    );
}

// ---- limits -----------------------------------------------------------------------------------------------------------------------

#[test]
fn beyond_the_most_connections_the_longest_idle_one_makes_room() {
    let service = start_with(ServerLimits {
        connections: 3,
        ..ServerLimits::default()
    });
    let mut clients: Vec<_> = (0..3).map(|_| Client::of(&service)).collect();
    // accepted in their order: now all three are
    assert_eq!(clients[2].get("/accounts/alice").status, 200);
    // these two have waited since their answers only, so that the second has waited longest
    assert_eq!(clients[0].get("/accounts/alice").status, 200);
    let mut fourth = Client::of(&service);
    assert_eq!(fourth.get("/accounts/alice").status, 200);
    assert_eq!(clients[1].rest(), "");
    assert_eq!(clients[0].get("/accounts/alice").status, 200);
    assert_eq!(clients[2].get("/accounts/alice").status, 200);
}

#[test]
fn busy_connections_are_not_disturbed_by_any_number_of_new_ones() {
    let service = start_with(ServerLimits {
        connections: 3,
        ..ServerLimits::default()
    });
    let mut busy: Vec<_> = (0..3).map(|_| Client::of(&service)).collect();
    let parked: Vec<_> = busy
        .iter_mut()
        .map(|client| park(&service, client))
        .collect();
    for _ in 0..20 {
        // nobody can make room
        assert_eq!(Client::of(&service).rest(), "");
    }
    parked
        .into_iter()
        .for_each(|responder| responder.send(Response::json(200, &"done")));
    for client in &mut busy {
        client.answer().is(200, json!("done"));
    }
    assert_eq!(Client::of(&service).get("/accounts/alice").status, 200);
}

fn park(service: &Service, client: &mut Client) -> Responder {
    client.send(get("/parked"));
    service.parked.recv_timeout(LIMIT).unwrap().1
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
fn a_client_that_does_not_take_in_its_answers_loses_its_connection() {
    // the answer to the next client is under it too
    let service = start_with(ServerLimits {
        write: Duration::from_secs(1),
        ..ServerLimits::default()
    });
    let mut client = Client::of(&service);
    // 30 MB of answers, more than both kernels' buffers hold
    client.send(get("/large").repeat(100));
    // the server closes with requests unread, so that the last thing to be seen may be a reset
    wait_until_lost(&mut client);
    assert_eq!(Client::of(&service).get("/accounts/alice").status, 200);
    assert_eq!(service.server.stop(LIMIT), 0);
}

/// Waits without reading an answer until the connection is lost: until a request can't be sent any more.
fn wait_until_lost(client: &mut Client) {
    for _ in 0..3000 {
        if client.reader.get_mut().write_all(b"GET").is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the connection is still open");
}

// ---- descriptors used up ----------------------------------------------------------------------------------------------------------

/// Not a test: the service that `descriptors_used_up_do_not_end_the_service` starts as a process of its own.
#[test]
#[ignore = "started by another test"]
fn served_in_a_child_process() {
    let service = start();
    println!("\nport {}", service.server.local_addr().port());
    // Until the parent closes its end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn descriptors_used_up_do_not_end_the_service() {
    let mut child = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 64; exec \"$0\" --ignored --exact served_in_a_child_process --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let port = lines
        .find_map(|line| line.strip_prefix("port ")?.parse().ok())
        .unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let idle: Vec<_> = (0..200).map(|_| Client::to(address)).collect();
    // The service has 64 at most: those that waited longest make room, again and again.
    for _ in 0..5 {
        Client::to(address)
            .get("/accounts/alice")
            .is(200, json!("alice"));
    }
    drop(idle);
    Client::to(address)
        .get("/accounts/alice")
        .is(200, json!("alice"));
    drop(child.stdin.take());
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
}
