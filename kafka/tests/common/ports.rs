//! Free ports for services and brokers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};

/// Below the range from which outgoing connections take theirs (32768 on Linux), and below the one from which `run.sh`
/// does (20000), so that none is taken between this answer and its use.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// A port on which nobody listens, and which no test process that still runs was given: the UDP port of the same number says so,
/// as a broker listens only once its JVM is up.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    static GIVEN: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let next =
        NEXT.get_or_init(|| AtomicU16::new(RandomState::new().build_hasher().finish() as u16));
    loop {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        let Ok(given) = UdpSocket::bind(("127.0.0.1", port)) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            GIVEN.lock().unwrap().push(given);
            return port;
        }
    }
}
