//! Which pages of other origins a browser lets use a service (Fetch standard, "CORS protocol").

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

    /// The answer to a browser that asks before it sends the request itself.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let asks = request.method == Method::Options && request.headers.get("Access-Control-Request-Method").is_some();
        (asks && self.origin(request).is_some()).then(|| {
            Response::new(204, "text/plain", vec![])
                .with_header("Access-Control-Allow-Methods", METHODS)
                .with_header("Access-Control-Allow-Headers", HEADERS)
                .with_header("Access-Control-Max-Age", MAX_AGE)
        })
    }
}

/// The answer as the page of `origin` may read it. `Vary`: a cache must not give it to another.
pub(super) fn readable_by(response: Response, origin: Option<String>) -> Response {
    let Some(origin) = origin else { return response };
    response
        .with_header("Access-Control-Allow-Origin", origin)
        .with_header("Access-Control-Expose-Headers", "location, retry-after")
        .with_header("Vary", "Origin")
}
