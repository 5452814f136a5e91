//! `--ready`: whether the instance that runs with these settings is ready, asked of its `/readyz`: for health checks where there
//! is no curl.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::config::Config;
use crate::service::cli;

/// `/readyz` waits for nothing.
const LIMIT: Duration = Duration::from_secs(3);
const REQUEST: &[u8] = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Writes what the instance answers to standard output; returns whether it is ready.
pub fn run(config: &Config) -> bool {
    let answer = ask(config)
        .unwrap_or_else(|error| format!("no answer on {}:{}: {error}\n", config.bind, config.port));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or(("", &answer));
    cli::print(&format!("{}\n", body.trim_end()));
    head.starts_with("HTTP/1.1 200 ")
}

fn ask(config: &Config) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&config.local_address(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
