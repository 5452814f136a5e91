//! HTTP with an answer that costs nothing: by our server, and by tiny_http.

use std::io;
use std::time::{Duration, Instant};

use tiny_http::{Response, Server};

use crate::figures::rate;
use crate::http::Connection;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

/// Threads of tiny_http that answer.
const WORKERS: usize = 8;
/// Connections to tiny_http: of many more that are opened at once it serves some only.
const FEW: usize = 16;

/// Requests a second for a path that the order service does not know.
///
/// # Errors
/// A connection that breaks.
pub fn constant(stage: &Stage, options: &Options, report: &mut Report) -> Result<(), String> {
    let port = stage.load(1).ports[0];
    measure(
        "HTTP, a constant",
        port,
        options.connections,
        options.time / 2,
        report,
    )?;
    measure(
        "HTTP, a constant, few connections",
        port,
        FEW,
        options.time / 2,
        report,
    )
}

/// The same of tiny_http, which runs within this process.
///
/// # Errors
/// As [`constant`].
pub fn tiny_http(options: &Options, report: &mut Report) -> Result<(), String> {
    let server = Server::http("127.0.0.1:0").map_err(|error| format!("tiny_http: {error}"))?;
    let port = server
        .server_addr()
        .to_ip()
        .map_or(0, |address| address.port());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Ok(request) = server.recv() {
                    // a client that has gone shows at its own end
                    let _ = request.respond(Response::empty(404));
                }
            });
        }
        let measured = measure(
            "HTTP, a constant, by tiny_http",
            port,
            FEW,
            options.time / 2,
            report,
        );
        (0..WORKERS).for_each(|_| server.unblock());
        measured
    })
}

fn measure(
    what: &str,
    port: u16,
    connections: usize,
    time: Duration,
    report: &mut Report,
) -> Result<(), String> {
    let end = Instant::now() + time;
    let counted: io::Result<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|_| scope.spawn(move || ask_until(port, end)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .sum()
    });
    let requests = counted.map_err(|error| format!("{what}: {error}"))?;
    super::add(report, what, "requests/s", rate(requests, time));
    Ok(())
}

fn ask_until(port: u16, end: Instant) -> io::Result<usize> {
    let mut connection = Connection::open(port)?;
    let mut requests = 0;
    while Instant::now() < end {
        let answer = connection.get("/nothing/here")?;
        if answer.status != 404 {
            return Err(io::Error::other(format!("{answer:?}")));
        }
        requests += 1;
    }
    Ok(requests)
}
