//! Who a client is: PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677) as Kafka takes them. A broker may limit how long a
//! session lasts (KIP-368); the client makes such a connection anew in time.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// How a client proves who it is (Kafka's `sasl.mechanism`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mechanism {
    /// The password itself: over TLS only, unless nobody listens.
    Plain,
    /// A proof of the password, SCRAM-SHA-256.
    ScramSha256,
    /// A proof of the password, SCRAM-SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Mechanism; 3] = [
        Mechanism::Plain,
        Mechanism::ScramSha256,
        Mechanism::ScramSha512,
    ];

    /// As Kafka calls it.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// A user of the brokers.
#[derive(Clone)]
pub struct Sasl {
    /// How it is proven.
    pub mechanism: Mechanism,
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} as {}", self.mechanism.name(), self.username)
    }
}

impl Sasl {
    /// The only message of PLAIN.
    pub(crate) fn plain(&self) -> Vec<u8> {
        format!("\0{}\0{}", self.username, self.password).into_bytes()
    }

    /// A conversation under a fresh nonce; none for PLAIN.
    pub(crate) fn scram(&self) -> Option<Scram<'_>> {
        let mut nonce = [0; 24];
        SystemRandom::new()
            .fill(&mut nonce)
            .expect("the system has randomness");
        Scram::new(self, BASE64_STANDARD.encode(nonce))
    }
}

/// Below it a stolen proof is too cheap to search (RFC 7677), and Kafka stores no fewer.
const FEWEST_ITERATIONS: u32 = 4_096;
/// Above it a hostile server would only keep us busy.
const MOST_ITERATIONS: u32 = 1_000_000;

/// One conversation: a first message, an answer to the server's first, a check of the server's last.
pub(crate) struct Scram<'a> {
    password: &'a str,
    hash: &'static digest::Algorithm,
    mac: hmac::Algorithm,
    derive: pbkdf2::Algorithm,
    nonce: String,
    first: String,
    server_signature: Vec<u8>,
}

impl<'a> Scram<'a> {
    fn new(sasl: &'a Sasl, nonce: String) -> Option<Scram<'a>> {
        let (hash, mac, derive) = match sasl.mechanism {
            Mechanism::Plain => return None,
            Mechanism::ScramSha256 => (
                &digest::SHA256,
                hmac::HMAC_SHA256,
                pbkdf2::PBKDF2_HMAC_SHA256,
            ),
            Mechanism::ScramSha512 => (
                &digest::SHA512,
                hmac::HMAC_SHA512,
                pbkdf2::PBKDF2_HMAC_SHA512,
            ),
        };
        let user = sasl.username.replace('=', "=3D").replace(',', "=2C");
        let first = format!("n={user},r={nonce}");
        Some(Scram {
            password: &sasl.password,
            hash,
            mac,
            derive,
            nonce,
            first,
            server_signature: vec![],
        })
    }

    /// `n` and two commas: no channel binding, no other identity.
    pub(crate) fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first).into_bytes()
    }

    /// The proof.
    ///
    /// # Errors
    /// What is wrong with the server's message.
    pub(crate) fn prove(&mut self, server_first: &[u8]) -> Result<Vec<u8>, &'static str> {
        let server_first = std::str::from_utf8(server_first)
            .map_err(|_| "the server's first message is no text")?;
        let (nonce, salt, iterations) =
            parse_first(server_first).ok_or("the server's first message is malformed")?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err("the server's nonce does not begin with ours");
        }
        if !(FEWEST_ITERATIONS..=MOST_ITERATIONS).contains(&iterations) {
            return Err("the server asks for fewer than 4096 or more than a million iterations");
        }
        let iterations = iterations.try_into().expect("more than none");
        let mut salted = vec![0; self.hash.output_len()];
        pbkdf2::derive(
            self.derive,
            iterations,
            &salt,
            self.password.as_bytes(),
            &mut salted,
        );
        let without_proof = format!("c=biws,r={nonce}");
        let conversation = format!("{},{server_first},{without_proof}", self.first);
        let client_key = self.sign(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash, &client_key);
        let signature = self.sign(stored_key.as_ref(), conversation.as_bytes());
        self.server_signature =
            self.sign(&self.sign(&salted, b"Server Key"), conversation.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(signature)
            .map(|(key, signature)| key ^ signature)
            .collect();
        Ok(format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)).into_bytes())
    }

    /// Whether the server knows the password too.
    ///
    /// # Errors
    /// That it does not.
    pub(crate) fn verify(&self, server_final: &[u8]) -> Result<(), &'static str> {
        let signature = server_final
            .strip_prefix(b"v=")
            .and_then(|text| BASE64_STANDARD.decode(text).ok());
        match signature {
            Some(signature) if signature == self.server_signature => Ok(()),
            _ => Err("the server does not prove that it knows the password"),
        }
    }

    fn sign(&self, key: &[u8], message: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(self.mac, key), message)
            .as_ref()
            .to_vec()
    }
}

/// Nonce, salt, iterations.
fn parse_first(message: &str) -> Option<(&str, Vec<u8>, u32)> {
    let mut parts = message.split(',');
    let nonce = parts.next()?.strip_prefix("r=")?;
    let salt = BASE64_STANDARD
        .decode(parts.next()?.strip_prefix("s=")?)
        .ok()?;
    Some((nonce, salt, parts.next()?.strip_prefix("i=")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sasl(username: &str) -> Sasl {
        Sasl {
            mechanism: Mechanism::ScramSha256,
            username: username.into(),
            password: "pencil".into(),
        }
    }

    /// The example of RFC 7677, section 3.
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    #[test]
    fn the_example_of_rfc_7677_is_reproduced() {
        let sasl = sasl("user");
        let mut scram = Scram::new(&sasl, "rOprNGfwEbeRWgbNEkqO".into()).unwrap();
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let proof = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(
            scram.prove(SERVER_FIRST.as_bytes()).unwrap(),
            proof.as_bytes()
        );
        assert_eq!(
            scram.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="),
            Ok(())
        );
        assert!(
            scram
                .verify(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
                .is_err()
        );
        assert!(scram.verify(b"e=other-error").is_err());
    }

    #[test]
    fn a_server_that_cheats_is_refused() {
        let sasl = sasl("user");
        let prove = |message: &str| {
            Scram::new(&sasl, "rOprNGfwEbeRWgbNEkqO".into())
                .unwrap()
                .prove(message.as_bytes())
        };
        assert!(
            prove("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
                .unwrap_err()
                .contains("nonce")
        );
        assert!(
            prove("r=another,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096")
                .unwrap_err()
                .contains("nonce")
        );
        for iterations in ["1", "4095", "1000001"] {
            let message = SERVER_FIRST.replace("i=4096", &format!("i={iterations}"));
            assert!(
                prove(&message).unwrap_err().contains("iterations"),
                "{iterations}"
            );
        }
        for bad in [
            "",
            "r=rOprNGfwEbeRWgbNEkqO1",
            "r=rOprNGfwEbeRWgbNEkqO1,s=?,i=4096",
            "e=unknown-user",
        ] {
            assert!(prove(bad).unwrap_err().contains("malformed"), "{bad}");
        }
    }

    #[test]
    fn a_name_with_signs_of_the_syntax_is_escaped_and_no_password_is_shown() {
        let sasl = sasl("a=b,c");
        assert_eq!(
            Scram::new(&sasl, "x".into()).unwrap().first(),
            b"n,,n=a=3Db=2Cc,r=x"
        );
        assert_eq!(format!("{sasl:?}"), "SCRAM-SHA-256 as a=b,c");
    }
}
