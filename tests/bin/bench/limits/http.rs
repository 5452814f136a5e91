//! Our HTTP server with an answer that costs nothing.

use std::io;
use std::time::Instant;

use crate::figures::rate;
use crate::http::Connection;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

/// Requests a second for a path that the order service does not know.
///
/// # Errors
/// A connection that breaks.
pub fn constant(stage: &Stage, options: &Options, report: &mut Report) -> Result<(), String> {
    let port = stage.load(1).ports[0];
    let end = Instant::now() + options.time / 2;
    let counted: io::Result<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.connections).map(|_| scope.spawn(move || ask_until(port, end))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum()
    });
    let requests = counted.map_err(|error| format!("GET of a constant: {error}"))?;
    super::add(report, "HTTP, a constant", "requests/s", rate(requests, options.time / 2));
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
