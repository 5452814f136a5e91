//! Free ports for services and brokers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which outgoing connections take theirs (32768 on Linux), and below the one from which `run.sh`
/// does (20000), so that none is taken between this answer and its use.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// A port on which nobody listens, and that this process has not given out lately.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next =
        NEXT.get_or_init(|| AtomicU16::new(RandomState::new().build_hasher().finish() as u16));
    loop {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
