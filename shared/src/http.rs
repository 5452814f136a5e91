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
//! | `responder` | the one answer to a request, given from any thread |
//! | `endpoint` | what becomes of a request once it is read |
//! | `limits` | how much a server takes on, and how long it waits |
//! | `server/head` | a request's head, and where its body ends |
//! | `server/wire` | bytes to requests, answers to bytes, within limits of size and time |
//! | `server/connection` | a connection's life: waiting, busy, ended |
//! | `server` | accepting, admitting, stopping |
//! | `tiny_http` | the same by the crate of that name, in place of `server` with the feature `tiny_http` |
//!
//! `server` stands on `std::net` because `tiny_http` 0.12 can't be made to hold: ARCHITECTURE.md has the measurements.

mod cors;
mod endpoint;
mod fields;
mod guard;
mod limits;
mod message;
mod params;
mod problem;
mod responder;
mod routes;
#[cfg(not(feature = "tiny_http"))]
mod server;
#[cfg(feature = "tiny_http")]
mod tiny_http;

pub use cors::Cors;
pub use endpoint::Endpoint;
pub use fields::{Fields, Object, json_object};
pub use guard::{AdminToken, Guard};
pub use limits::{BODY_LIMIT, HEAD_LIMIT, ServerLimits};
pub use message::{Headers, Method, QueryString, Request, Response};
pub use params::{duration, idempotency_key};
pub use problem::{FieldError, Problem, merge};
pub use responder::{Awaited, Responder};
pub use routes::Routes;
#[cfg(not(feature = "tiny_http"))]
pub use server::Server;
#[cfg(feature = "tiny_http")]
pub use tiny_http::Server;
