//! The HTTP layer over real sockets. Expected answers are typed in by hand. With the feature `tiny_http` the requests are
//! played against the crate of that name; it fails what is in `connections`.

#[cfg(not(feature = "tiny_http"))]
mod connections;
mod requests;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};
use shared::http::{
    BODY_LIMIT, Fields, Method, Problem, Request, Responder, Response, Routes, Server,
    ServerLimits, idempotency_key, json_object,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
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

// ---- a client that sends exactly what it is given ----------------------------------------------------------------------------------

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

fn too_large() -> Value {
    json!({"title": "Content Too Large", "status": 413, "detail": "the body is larger than 65536 bytes"})
}

fn park(service: &Service, client: &mut Client) -> Responder {
    client.send(get("/parked"));
    service.parked.recv_timeout(LIMIT).unwrap().1
}

/// An order in two chunks, the first with this extension, and then these trailers; the connection goes on.
#[track_caller]
fn order_is_read_from_chunks(extension: &str, trailers: &str) {
    let service = start();
    let mut client = Client::of(&service);
    let (start, end) = ORDER.split_at(10);
    let chunks = format!(
        "a{extension}\r\n{start}\r\n{:X}\r\n{end}\r\n0\r\n{trailers}\r\n",
        end.len()
    );
    client
        .send(chunked(&chunks))
        .answer()
        .is(202, json!(["alice", "book", 1000, 2, null]));
    client.get("/accounts/alice").is(200, json!("alice"));
}
