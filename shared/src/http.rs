//! HTTP/1.1 for the services: requests, answers, problems.
//!
//! | module | idea |
//! | --- | --- |
//! | `message` | a request as a handler sees it, and its answer |
//! | `problem` | every error as `application/problem+json` (RFC 9457) |
//! | `fields` | a JSON body's fields, checked by hand so that all bad ones are named |
//! | `params` | what stands in the path, the query and the headers |
//! | `routes` | method and pattern to handler; 404 and 405; who may call |
//! | `guard` | the operator's token |
//! | `cors` | which pages of other origins a browser lets in |
//! | `server/responder` | the one answer to a request, given from any thread |
//! | `server/head` | a request's head, and where its body ends |
//! | `server/limits` | how much a server takes on, and how long it waits |
//! | `server/wire` | bytes to requests, answers to bytes, within limits of size and time |
//! | `server/connection` | a connection's life: waiting, busy, ended |
//! | `server` | accepting, admitting, stopping |
//!
//! It stands on `std::net` because `tiny_http` 0.12 could not be made to hold; ARCHITECTURE.md has the measurements.
//! There, eight requests pipelined behind a parked one hold all eight workers, too. And a connection can't be closed from
//! outside, neither after a 413 nor at a stop.

mod cors;
mod fields;
mod guard;
mod message;
mod params;
mod problem;
mod routes;
mod server;

pub use cors::Cors;
pub use fields::{Fields, Object, json_object};
pub use guard::{AdminToken, Guard};
pub use message::{Headers, Method, QueryString, Request, Response};
pub use params::{duration, idempotency_key};
pub use problem::{FieldError, Problem, merge};
pub use routes::Routes;
pub use server::{Awaited, BODY_LIMIT, Endpoint, HEAD_LIMIT, Responder, Server, ServerLimits};
