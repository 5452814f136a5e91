//! Which pages of other origins a browser lets use a service (Fetch standard, "CORS protocol"): those of
//! `CORS_ORIGINS`.
//!
//! A call that changes something is refused from any other page, except the service's own. That holds also where a
//! browser would send the call unasked, or where a foreign name leads here. A page under such a foreign name may still
//! read what GET answers. Where that matters, put a proxy in front that knows its own names.

use std::net::{IpAddr, SocketAddr};

use super::message::{Method, Request, Response};

/// What such a page may ask for and send.
const METHODS: &str = "GET, PUT, POST";
const HEADERS: &str = "authorization, content-type, idempotency-key, x-actor";
/// Seconds that a browser may remember it.
const MAX_AGE: &str = "600";

/// The origins whose pages may use the service.
#[derive(Clone, Debug, Default)]
pub struct Cors(Vec<String>);

impl Cors {
    /// These origins, as browsers write them: `http://127.0.0.1:8080`.
    pub fn new(origins: Vec<String>) -> Cors {
        Cors(origins)
    }

    /// The request's origin if it is one of them.
    pub(super) fn origin(&self, request: &Request) -> Option<String> {
        let origin = request.headers.get("Origin")?;
        self.0.iter().find(|allowed| *allowed == origin).cloned()
    }

    /// Whether the request may change things as far as pages are concerned: it comes from none, from one of these origins, or
    /// from one of the service's own, at an address or `localhost`.
    pub(super) fn admits(&self, request: &Request) -> bool {
        let Some(origin) = request.headers.get("Origin") else {
            return true;
        };
        let host = request.headers.get("Host").unwrap_or_default();
        let own = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"))
            == Some(host);
        own && is_address(host) || self.origin(request).is_some()
    }

    /// The answer to a browser that asks before it sends the request itself.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let asks = request.method == Method::Options
            && request
                .headers
                .get("Access-Control-Request-Method")
                .is_some();
        (asks && self.origin(request).is_some()).then(|| {
            Response::new(204, "text/plain", vec![])
                .with_header("Access-Control-Allow-Methods", METHODS)
                .with_header("Access-Control-Allow-Headers", HEADERS)
                .with_header("Access-Control-Max-Age", MAX_AGE)
        })
    }
}

/// A host and port that no name server was asked for.
fn is_address(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() || name == "localhost"
}

/// The answer as the page of `origin` may read it. `Vary`: a cache must not give it to another.
pub(super) fn readable_by(response: Response, origin: Option<String>) -> Response {
    let Some(origin) = origin else {
        return response;
    };
    response
        .with_header("Access-Control-Allow-Origin", origin)
        .with_header("Access-Control-Expose-Headers", "location, retry-after")
        .with_header("Vary", "Origin")
}
