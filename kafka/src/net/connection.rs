//! One connection to one broker: frames, versions, and a deadline for every request.

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader,
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::config::{Config, after};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::net::sasl::Sasl;
use crate::net::stream::{Distrust, Stream};
use crate::wire::layout;
use crate::wire::protocol::Request;

/// A throttle of so long is logged as a warning.
const TOLD_THROTTLE: Duration = Duration::from_secs(1);

/// An open connection whose broker has returned the versions it speaks. After an error it must be dropped: the next
/// bytes on it may belong to an answer that nobody waits for.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    broker: String,
    client_id: StrBytes,
    interrupt: Interrupt,
    max_frame_bytes: usize,
    versions: HashMap<i16, (i16, i16)>,
    next_correlation_id: i32,
    /// Whether an answer has come; from the end of the handshake on, whether another one has.
    pub(crate) answered: bool,
    /// Requests that were sent and whose answers have not been read yet.
    awaited: usize,
    /// When the broker takes no more requests on it (KIP-368).
    ends: Option<Instant>,
    /// Until when the broker reads nothing from it, for a quota's sake (KIP-219).
    throttled_until: Option<Instant>,
}

/// A request that was sent and whose answer has not been read yet.
pub(crate) struct Sent<R> {
    correlation_id: i32,
    version: i16,
    at: Instant,
    pub(crate) deadline: Instant,
    request: PhantomData<R>,
}

impl Connection {
    /// Connects, asks for the broker's versions and shows who we are, within the connect timeout.
    ///
    /// A name may have several addresses: `turn` says with which one to begin, and is left at the one that took the connection.
    pub(crate) fn open(
        address: &str,
        turn: &mut usize,
        config: &Config,
        wakes: &Interrupt,
        deadline: Instant,
    ) -> Result<Connection> {
        let (started, deadline) = (Instant::now(), deadline.min(after(config.connect_timeout)));
        wakes.check()?;
        let security = &config.security;
        let stream = Stream::open(address, turn, security, deadline, wakes).map_err(|source| {
            connect_error(
                wakes,
                address,
                security.is_guarded(),
                source,
                started.elapsed(),
            )
        })?;
        let mut connection = Connection {
            stream,
            broker: address.to_owned(),
            client_id: StrBytes::from_string(config.client_id.clone()),
            interrupt: wakes.clone(),
            max_frame_bytes: config.max_frame_bytes,
            versions: HashMap::from([(
                ApiVersionsRequest::KEY as i16,
                ApiVersionsRequest::VERSIONS,
            )]),
            next_correlation_id: 0,
            answered: false,
            awaited: 0,
            ends: None,
            throttled_until: None,
        };
        let answer: ApiVersionsResponse =
            connection.call(&ApiVersionsRequest::default(), deadline)?;
        Error::check::<ApiVersionsRequest>(answer.error_code, address, "")?;
        let offered = answer
            .api_keys
            .iter()
            .map(|api| (api.api_key, (api.min_version, api.max_version)));
        connection.versions = offered.collect();
        if let Some(sasl) = &security.sasl {
            connection.authenticate(sasl, deadline)?;
        }
        connection.answered = false;
        Ok(connection)
    }

    /// The mechanism is agreed on, then its messages go to and fro (KIP-43, KIP-152).
    fn authenticate(&mut self, sasl: &Sasl, deadline: Instant) -> Result<()> {
        let name = sasl.mechanism.name();
        let request =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(name));
        let answer = self.call(&request, deadline)?;
        if answer.error_code != 0 {
            let offered: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
            let offered = if offered.is_empty() {
                "no users at all".into()
            } else {
                format!("only {}", offered.join(", "))
            };
            return Err(self.distrust(format!("the broker takes no {name}, {offered}")));
        }
        let lifetime = match sasl.scram() {
            None => self.say(sasl, sasl.plain(), deadline)?.session_lifetime_ms,
            Some(mut scram) => {
                let first = self.say(sasl, scram.first(), deadline)?;
                let proof = scram
                    .prove(&first.auth_bytes)
                    .map_err(|why| self.distrust(why.into()))?;
                let last = self.say(sasl, proof, deadline)?;
                scram
                    .verify(&last.auth_bytes)
                    .map_err(|why| self.distrust(why.into()))?;
                last.session_lifetime_ms
            }
        };
        let lifetime = u64::try_from(lifetime).ok().filter(|millis| *millis > 0);
        // Like the Java client, some time before the end: a request must not arrive after it.
        self.ends =
            lifetime.map(|millis| Instant::now() + Duration::from_millis(millis).mul_f64(0.85));
        Ok(())
    }

    fn say(
        &mut self,
        sasl: &Sasl,
        message: Vec<u8>,
        deadline: Instant,
    ) -> Result<SaslAuthenticateResponse> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        let answer = self.call(&request, deadline)?;
        if answer.error_code == 0 {
            return Ok(answer);
        }
        let words = answer.error_message.as_deref().unwrap_or_default();
        Err(self.distrust(format!(
            "the broker refuses user {} by {}: {words}",
            sasl.username,
            sasl.mechanism.name()
        )))
    }

    fn distrust(&self, cause: String) -> Error {
        Error::Security {
            broker: self.broker.clone(),
            cause,
        }
    }

    /// Whether the broker has cut it already, or soon will. While an answer is awaited reading it will tell.
    pub(crate) fn is_stale(&mut self) -> bool {
        self.awaited == 0
            && (self.ends.is_some_and(|ends| ends <= Instant::now()) || self.stream.has_input())
    }

    /// Sends a request and waits for its answer.
    ///
    /// Errors: `Io`, `Timeout`, `Frame`, `Decode`, `UnsupportedVersion`, `Interrupted`.
    pub(crate) fn call<R: Request>(
        &mut self,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response> {
        let sent = self.send(request, deadline)?;
        self.receive(sent)
    }

    /// Sends a request without waiting for the answer. Several may be under way; a broker answers in their order. While it throttles
    /// this connection it reads nothing: that time is added to the deadline.
    pub(crate) fn send<R: Request>(&mut self, request: &R, deadline: Instant) -> Result<Sent<R>> {
        let version = self.version::<R>()?;
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = correlation_id.wrapping_add(1);
        let frame = self.encode(request, version, correlation_id)?;
        let at = Instant::now();
        let deadline = deadline
            + self
                .throttled_until
                .map_or(Duration::ZERO, |until| until.saturating_duration_since(at));
        let written = self.stream.write_all(&frame, deadline);
        written.map_err(|source| self.io_error::<R>(source, at))?;
        self.awaited += 1;
        Ok(Sent {
            correlation_id,
            version,
            at,
            deadline,
            request: PhantomData,
        })
    }

    /// Waits for the answer of the oldest request that was sent and not yet answered.
    pub(crate) fn receive<R: Request>(&mut self, sent: Sent<R>) -> Result<R::Response> {
        let frame = self.read_frame(&sent)?;
        self.answered = true;
        self.awaited -= 1;
        let answer = self.decode(frame, &sent)?;
        self.note_throttle(R::API, R::throttle_millis(&answer));
        Ok(answer)
    }

    fn note_throttle(&mut self, api: &str, millis: i32) {
        let Some(throttle) = u64::try_from(millis)
            .ok()
            .filter(|millis| *millis > 0)
            .map(Duration::from_millis)
        else {
            return;
        };
        self.throttled_until = Some(after(throttle));
        let level = if throttle < TOLD_THROTTLE {
            log::Level::Debug
        } else {
            log::Level::Warn
        };
        log::log!(
            level,
            "{} holds this client back for {throttle:?} after {api}: a quota is exceeded",
            self.broker
        );
    }

    /// The highest version both sides speak.
    fn version<R: Request>(&self) -> Result<i16> {
        let (low, high) = R::VERSIONS;
        let offered = self.versions.get(&(R::KEY as i16)).copied();
        match offered {
            Some((least, most)) if low.max(least) <= high.min(most) => Ok(high.min(most)),
            _ => Err(Error::UnsupportedVersion {
                api: R::API,
                broker: self.broker.clone(),
                spoken: R::VERSIONS,
                offered,
            }),
        }
    }

    fn encode<R: Request>(
        &self,
        request: &R,
        version: i16,
        correlation_id: i32,
    ) -> Result<BytesMut> {
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY as i16)
            .with_request_api_version(version)
            .with_correlation_id(correlation_id)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = BytesMut::zeroed(4);
        let encoded = header
            .encode(&mut frame, R::header_version(version))
            .and_then(|()| request.encode(&mut frame, version));
        let length = encoded
            .map_err(|cause| cause.to_string())
            .and_then(|()| i32::try_from(frame.len() - 4).map_err(|_| "it is too long".to_owned()));
        let length = length.map_err(|cause| {
            Error::Invalid(format!(
                "{} version {version} can't be encoded: {cause}",
                R::API
            ))
        })?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        Ok(frame)
    }

    fn read_frame<R: Request>(&mut self, sent: &Sent<R>) -> Result<Bytes> {
        let prefix = self.read::<R>(4, sent);
        let prefix = if self.answered {
            prefix?
        } else {
            prefix.map_err(closed_at_once)?
        };
        let length = Bytes::from(prefix).get_i32();
        // The correlation id alone takes four bytes.
        match usize::try_from(length) {
            Ok(bytes) if (4..=self.max_frame_bytes).contains(&bytes) => {
                self.read::<R>(bytes, sent).map(Bytes::from)
            }
            _ => Err(Error::Frame {
                broker: self.broker.clone(),
                length,
                limit: self.max_frame_bytes,
            }),
        }
    }

    fn read<R: Request>(&mut self, length: usize, sent: &Sent<R>) -> Result<Vec<u8>> {
        let read = self.stream.read(length, sent.deadline);
        read.map_err(|source| self.io_error::<R>(source, sent.at))
    }

    fn decode<R: Request>(&self, mut frame: Bytes, sent: &Sent<R>) -> Result<R::Response> {
        let header_version = R::Response::header_version(sent.version);
        let header = ResponseHeader::decode(&mut frame, header_version)
            .map_err(|cause| self.malformed::<R>(cause.to_string()))?;
        if header.correlation_id != sent.correlation_id {
            let got = header.correlation_id;
            let cause = format!("correlation id {got} instead of {}", sent.correlation_id);
            return Err(self.malformed::<R>(cause));
        }
        layout::check(&frame, R::SHAPE).map_err(|cause| self.malformed::<R>(cause.to_owned()))?;
        R::Response::decode(&mut frame, sent.version)
            .map_err(|cause| self.malformed::<R>(cause.to_string()))
    }

    fn malformed<R: Request>(&self, cause: String) -> Error {
        Error::malformed::<R>(&self.broker, cause)
    }

    fn io_error<R: Request>(&self, source: io::Error, since: Instant) -> Error {
        io_error(
            &self.interrupt,
            R::API,
            &self.broker,
            source,
            since.elapsed(),
        )
    }
}

/// Where the handshake of TLS fails by a certificate, the broker is not to be trusted; where it is cut off, it may not be TLS
/// that the broker speaks there.
fn connect_error(
    wakes: &Interrupt,
    address: &str,
    guarded: bool,
    source: io::Error,
    after: Duration,
) -> Error {
    let distrust = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Distrust>());
    if let Some(Distrust(cause)) = distrust {
        return Error::Security {
            broker: address.to_owned(),
            cause: cause.clone(),
        };
    }
    let cut = matches!(
        source.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    );
    let source = if guarded && cut {
        hint(source, "does it speak TLS there?")
    } else {
        source
    };
    io_error(wakes, "connect", address, source, after)
}

/// A broker that expects TLS where we speak plainly closes the connection without a word, and so does one that expects a user at
/// the first request after the versions.
fn closed_at_once(error: Error) -> Error {
    match error {
        Error::Io {
            api,
            broker,
            source,
        } if source.kind() == io::ErrorKind::UnexpectedEof => Error::Io {
            api,
            broker,
            source: hint(
                source,
                "does it expect TLS or a user (another security protocol)?",
            ),
        },
        other => other,
    }
}

fn hint(source: io::Error, question: &str) -> io::Error {
    io::Error::new(
        source.kind(),
        format!("the broker closed the connection at once: {question}"),
    )
}

/// A socket that fails because it was shut down by the interrupt says so.
fn io_error(
    wakes: &Interrupt,
    api: &'static str,
    broker: &str,
    source: io::Error,
    after: Duration,
) -> Error {
    let broker = broker.to_owned();
    if wakes.is_interrupted() {
        Error::Interrupted
    } else if source.kind() == io::ErrorKind::TimedOut {
        Error::Timeout { api, broker, after }
    } else {
        Error::Io {
            api,
            broker,
            source,
        }
    }
}
