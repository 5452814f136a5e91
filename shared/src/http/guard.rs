//! Who may change things: whoever knows the operator's token, if there is one (RFC 6750).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::SystemRandom;

use super::message::Request;
use super::problem::Problem;

/// A client's wrong tokens in a [`WINDOW`]: a person mistypes one a few times, a program gets nowhere.
const FAILURES: u32 = 10;
/// After the first of them so much time must pass.
const WINDOW: Duration = Duration::from_secs(60);
/// Clients that are remembered. When there are more, all wrong tokens share one count.
const CLIENTS: usize = 1_024;

/// The operator's token. It is not shown in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(String);

impl AdminToken {
    /// None unless it is 16 to 256 visible ASCII characters.
    pub fn new(text: &str) -> Option<AdminToken> {
        let fits = (16..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| AdminToken(text.to_string()))
    }

    /// What whoever knows it sends as `Authorization`.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

/// Lets requests through that bring the token; all of them if there is none.
#[derive(Default)]
pub struct Guard {
    lock: Option<Lock>,
    failed: Mutex<HashMap<Client, Failed>>,
}

struct Lock {
    key: hmac::Key,
    tag: hmac::Tag,
}

/// Whose wrong tokens are counted together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    /// Those at an address.
    At(IpAddr),
    /// Those whose connection was gone before it was looked at.
    Gone,
    /// Those for whom there is no room.
    Others,
}

struct Failed {
    since: Instant,
    count: u32,
}

impl Guard {
    /// A guard that asks for this token.
    ///
    /// # Panics
    /// If the operating system has no random numbers.
    pub fn new(token: Option<&AdminToken>) -> Guard {
        let lock = token.map(|AdminToken(token)| {
            let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("random numbers");
            Lock { tag: hmac::sign(&key, token.as_bytes()), key }
        });
        Guard { lock, failed: Mutex::default() }
    }

    /// Whether the request may change things.
    ///
    /// # Errors
    /// 401 without the token or with a wrong one; 429 after too many wrong ones, also with the right one.
    pub fn check(&self, request: &Request) -> Result<(), Problem> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let given = request.headers.one("Authorization").ok().flatten().and_then(bearer).ok_or_else(|| {
            unauthorized("this call changes things: send the operator's token, as one Authorization: Bearer <token>")
        })?;
        self.require_patience(request.peer)?;
        // takes the same time whatever the tokens have in common, their lengths too
        hmac::verify(&lock.key, given.as_bytes(), lock.tag.as_ref()).map_err(|_| {
            self.count(request.peer);
            log::warn!("a wrong operator's token from {}", request.peer.map_or("nowhere".into(), |ip| ip.to_string()));
            unauthorized("this is not the operator's token")
        })
    }

    fn require_patience(&self, peer: Option<IpAddr>) -> Result<(), Problem> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, failed| failed.since.elapsed() < WINDOW);
        match failed.get(&counted_as(&failed, peer)) {
            Some(Failed { since, count }) if *count >= FAILURES => {
                let rest = WINDOW.saturating_sub(since.elapsed()).as_secs() + 1;
                Err(Problem::new(429, format!("too many wrong tokens; try again in {rest} s"))
                    .with_header("Retry-After", rest.to_string()))
            }
            _ => Ok(()),
        }
    }

    fn count(&self, peer: Option<IpAddr>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let client = counted_as(&failed, peer);
        failed.entry(client).or_insert_with(|| Failed { since: Instant::now(), count: 0 }).count += 1;
    }
}

fn counted_as(failed: &HashMap<Client, Failed>, peer: Option<IpAddr>) -> Client {
    let client = client(peer);
    if failed.len() < CLIENTS || failed.contains_key(&client) { client } else { Client::Others }
}

/// One host of IPv6 has a whole /64 to choose its addresses from.
fn client(peer: Option<IpAddr>) -> Client {
    match peer.map(|peer| peer.to_canonical()) {
        Some(IpAddr::V6(v6)) => Client::At(IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into())),
        Some(v4) => Client::At(v4),
        None => Client::Gone,
    }
}

/// The scheme's name is not case-sensitive (RFC 9110, 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_start_matches(' '))
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(401, detail).with_header("WWW-Authenticate", "Bearer")
}

#[cfg(test)]
mod tests {
    use super::super::message::{Headers, Method};
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn status(guard: &Guard, authorization: &str, peer: [u8; 4]) -> u16 {
        let mut headers = Headers::default();
        headers.push("authorization", authorization);
        let request = Request::new(Method::Put, "/", headers, vec![]).unwrap();
        let answer = guard.check(&Request { peer: Some(peer.into()), ..request });
        answer.map_or_else(|problem| problem.status(), |()| 200)
    }

    #[test]
    fn only_the_token_opens_and_ten_wrong_ones_close_the_door_to_that_client() {
        let guard = Guard::new(AdminToken::new(TOKEN).as_ref());
        assert_eq!(status(&guard, &format!("bearer  {TOKEN}"), [10, 0, 0, 1]), 200);
        for _ in 0..10 {
            assert_eq!(status(&guard, &format!("Bearer {TOKEN}0"), [10, 0, 0, 1]), 401);
        }
        assert_eq!(status(&guard, &format!("Bearer {TOKEN}"), [10, 0, 0, 1]), 429);
        assert_eq!(status(&guard, &format!("Basic {TOKEN}"), [10, 0, 0, 1]), 401);
        assert_eq!(status(&guard, &format!("Bearer {TOKEN}"), [10, 0, 0, 2]), 200);
    }

    #[test]
    fn two_tokens_are_none() {
        let mut headers = Headers::default();
        [TOKEN, "another"].iter().for_each(|token| headers.push("Authorization", format!("Bearer {token}")));
        let request = Request::new(Method::Put, "/", headers, vec![]).unwrap();
        let refused = Guard::new(AdminToken::new(TOKEN).as_ref()).check(&request);
        assert_eq!(refused.map_err(|problem| problem.status()), Err(401));
    }

    #[test]
    fn more_clients_than_are_remembered_share_one_count() {
        let guard = Guard::new(AdminToken::new(TOKEN).as_ref());
        for client in 0..1_034_u16 {
            let [high, low] = client.to_be_bytes();
            assert_eq!(status(&guard, "Bearer x", [10, 0, high, low]), 401, "{client}");
        }
        assert_eq!(status(&guard, "Bearer x", [10, 1, 0, 0]), 429);
        assert_eq!(status(&guard, "Bearer x", [10, 0, 0, 0]), 401);
    }

    #[test]
    fn without_a_token_everybody_may() {
        assert_eq!(status(&Guard::default(), "Bearer x", [10, 0, 0, 1]), 200);
    }

    #[test]
    fn a_token_is_long_enough_visible_and_not_shown() {
        assert!(AdminToken::new("short").is_none() && AdminToken::new("0123456789 abcdef").is_none());
        assert_eq!(format!("{:?}", AdminToken::new(TOKEN).unwrap()), "AdminToken(…)");
    }
}
