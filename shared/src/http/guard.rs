//! Which requests may change things: those with the operator's token, if there is one (RFC 6750). Tokens are compared
//! by HMAC under a key of the process, so the time of the comparison reveals nothing.

use ring::hmac;
use ring::rand::SystemRandom;

use super::message::Request;
use super::problem::Problem;

/// The operator's token. It is not shown in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(String);

impl AdminToken {
    /// None unless it is 16 to 256 visible ASCII characters.
    pub fn new(text: &str) -> Option<AdminToken> {
        let fits =
            (16..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| AdminToken(text.to_string()))
    }

    /// The `Authorization` that a client sends who knows it.
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
}

struct Lock {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl Guard {
    /// A guard that asks for this token.
    ///
    /// # Panics
    /// If the operating system has no random numbers.
    pub fn new(token: Option<&AdminToken>) -> Guard {
        let lock = token.map(|AdminToken(token)| {
            let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .expect("random numbers");
            Lock {
                tag: hmac::sign(&key, token.as_bytes()),
                key,
            }
        });
        Guard { lock }
    }

    /// Whether the request may change things.
    ///
    /// # Errors
    /// 401 without the token or with a wrong one. However many wrong ones there were: one of 16 characters can't be guessed, and a count
    /// of them would lock out all who share a proxy.
    pub fn check(&self, request: &Request) -> Result<(), Problem> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        let given = request.headers.one("Authorization").ok().flatten().and_then(bearer).ok_or_else(|| {
            unauthorized("this call changes things: send the operator's token, as one Authorization: Bearer <token>")
        })?;
        // takes the same time whatever the tokens have in common, their lengths too
        hmac::verify(&lock.key, given.as_bytes(), lock.tag.as_ref()).map_err(|_| {
            log::warn!(
                "a wrong operator's token from {}",
                request.peer.map_or("nowhere".into(), |ip| ip.to_string())
            );
            unauthorized("this is not the operator's token")
        })
    }
}

/// The scheme's name is not case-sensitive (RFC 9110, 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("Bearer")
        .then(|| token.trim_start_matches(' '))
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(401, detail).with_header("WWW-Authenticate", "Bearer")
}

#[cfg(test)]
mod tests {
    use super::super::message::{Headers, Method};
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn status(guard: &Guard, authorization: &str) -> u16 {
        let mut headers = Headers::default();
        headers.push("authorization", authorization);
        let request = Request::new(Method::Put, "/", headers, vec![]).unwrap();
        guard
            .check(&request)
            .map_or_else(|problem| problem.status(), |()| 200)
    }

    #[test]
    fn only_the_token_opens_however_many_wrong_ones_came_before() {
        let guard = Guard::new(AdminToken::new(TOKEN).as_ref());
        for _ in 0..20 {
            assert_eq!(status(&guard, &format!("Bearer {TOKEN}0")), 401);
        }
        assert_eq!(status(&guard, &format!("Basic {TOKEN}")), 401);
        assert_eq!(status(&guard, &format!("bearer  {TOKEN}")), 200);
    }

    #[test]
    fn two_tokens_are_none() {
        let mut headers = Headers::default();
        [TOKEN, "another"]
            .iter()
            .for_each(|token| headers.push("Authorization", format!("Bearer {token}")));
        let request = Request::new(Method::Put, "/", headers, vec![]).unwrap();
        let refused = Guard::new(AdminToken::new(TOKEN).as_ref()).check(&request);
        assert_eq!(refused.map_err(|problem| problem.status()), Err(401));
    }

    #[test]
    fn without_a_token_everybody_may() {
        assert_eq!(status(&Guard::default(), "Bearer x"), 200);
    }

    #[test]
    fn a_token_is_long_enough_visible_and_not_shown() {
        assert!(
            AdminToken::new("short").is_none() && AdminToken::new("0123456789 abcdef").is_none()
        );
        assert_eq!(
            format!("{:?}", AdminToken::new(TOKEN).unwrap()),
            "AdminToken(…)"
        );
    }
}
