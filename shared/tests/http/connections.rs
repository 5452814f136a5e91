//! What only our own server does: bytes that are no request, limits, connections ended.

use super::*;
use shared::http::HEAD_LIMIT;
use std::process::{Command, Stdio};

// ---- what goes beyond the plain form of a request -----------------------------------------------------------------------------

#[test]
fn extensions_of_chunks_and_trailers_are_read_over() {
    order_is_read_from_chunks(";name=value", "X-Trailer: 1\r\n");
}

#[test]
fn a_client_that_asks_first_is_refused_a_body_that_is_too_large() {
    let service = start();
    let mut client = Client::of(&service);
    client.send("POST /orders HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 70000\r\n\r\n");
    client.answer().is_problem(too_large());
}

#[test]
fn bytes_beyond_ascii_are_taken_in_a_target_and_refused_in_a_key() {
    let service = start();
    let mut client = Client::of(&service);
    client.get("/accounts/zoë").is(200, json!("zoë"));
    let headers = "Content-Type: application/json\r\nIdempotency-Key: ä\r\n";
    client
        .send(post(headers, ORDER))
        .answer()
        .is_problem(json!({"title": "Bad Request", "status": 400,
            "detail": "Idempotency-Key must be one value of 1 to 255 visible ASCII characters"}));
}

#[test]
fn an_answer_says_that_the_connection_goes_on() {
    let service = start();
    let answer = Client::of(&service).get("/nothing");
    assert_eq!(answer.header("connection"), Some("keep-alive"));
}

// ---- the body ---------------------------------------------------------------------------------------------------------------------

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

// ---- connections ------------------------------------------------------------------------------------------------------------------

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
            "ulimit -n 64; exec \"$0\" --ignored --exact connections::served_in_a_child_process --nocapture",
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
