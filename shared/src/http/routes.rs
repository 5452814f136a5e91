//! Method and pattern to handler; 404 and 405; who may call.

use std::sync::Arc;
use std::time::Instant;

use super::cors::{self, Cors};
use super::endpoint::Endpoint;
use super::guard::Guard;
use super::message::{Headers, Method, Request, Response};
use super::problem::Problem;
use super::responder::Responder;
use crate::metrics;

type Deferred = Box<dyn Fn(Request, Responder) + Send + Sync>;
type Gate = Box<dyn Fn() -> Result<(), Problem> + Send + Sync>;

/// A service's calls.
#[derive(Default)]
pub struct Routes {
    routes: Vec<Route>,
    guard: Guard,
    cors: Cors,
}

struct Route {
    method: Method,
    /// As it was written: the name in metrics.
    text: &'static str,
    pattern: Vec<&'static str>,
    /// Whether it may be called without the operator's token.
    without_token: bool,
    /// Whether it is answered also while too many others run.
    always: bool,
    /// Whether a request is let in at all, asked before its body is read.
    gate: Option<Gate>,
    handler: Deferred,
}

impl Routes {
    /// No calls yet: everything is 404. Nothing is guarded, and no page of another origin is let in.
    pub fn new() -> Self {
        Routes::default()
    }

    /// The same calls with this access: pages of the origins in `cors` may use them; those that change things, all but GET
    /// unless they are marked as [`without_token`](Routes::without_token), take what `guard` asks for.
    pub fn with_access(self, guard: Guard, cors: Cors) -> Self {
        Routes {
            guard,
            cors,
            ..self
        }
    }

    /// A call that is answered before `handler` returns. In the pattern, `{name}` stands for one segment that isn't empty.
    pub fn route<F>(self, method: Method, pattern: &'static str, handler: F) -> Self
    where
        F: Fn(&Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        self.route_deferred(method, pattern, move |request, responder| {
            responder.send(handler(&request).unwrap_or_else(Response::from));
        })
    }

    /// The same for a handler that takes what several calls share.
    pub fn route_on<T: Send + Sync + 'static>(
        self,
        shared: &Arc<T>,
        method: Method,
        pattern: &'static str,
        handler: fn(&T, &Request) -> Result<Response, Problem>,
    ) -> Self {
        let shared = shared.clone();
        self.route(method, pattern, move |request| handler(&shared, request))
    }

    /// A call that may be answered later, through the [`Responder`].
    pub fn route_deferred<F>(mut self, method: Method, text: &'static str, handler: F) -> Self
    where
        F: Fn(Request, Responder) + Send + Sync + 'static,
    {
        let pattern = text.trim_start_matches('/').split('/').collect();
        let without_token = method == Method::Get;
        self.routes.push(Route {
            method,
            text,
            pattern,
            without_token,
            always: false,
            gate: None,
            handler: Box::new(handler),
        });
        self
    }

    /// The call added last may be made without the operator's token.
    pub fn without_token(mut self) -> Self {
        self.routes
            .iter_mut()
            .last()
            .into_iter()
            .for_each(|route| route.without_token = true);
        self
    }

    /// The call added last is answered also while too many others run: it must be quick and wait for nothing.
    pub fn always(mut self) -> Self {
        self.routes
            .iter_mut()
            .last()
            .into_iter()
            .for_each(|route| route.always = true);
        self
    }

    /// The call added last is asked for by `gate` before a request's body is read: a refused one costs next to nothing. It must
    /// be quick and wait for nothing. Its answer comes after a pause ([`ServerLimits::refusal`](super::ServerLimits::refusal)).
    pub fn gated(mut self, gate: impl Fn() -> Result<(), Problem> + Send + Sync + 'static) -> Self {
        if let Some(route) = self.routes.last_mut() {
            route.gate = Some(Box::new(gate));
        }
        self
    }

    fn find(&self, request: &Request) -> Option<&Route> {
        self.routes
            .iter()
            .find(|route| route.method == request.method && route.fits(&request.path))
    }

    /// 405 with the methods that this path knows, or 404 if it knows none.
    fn refusal(&self, request: &Request) -> Problem {
        let mut allowed: Vec<_> = self
            .routes
            .iter()
            .filter(|route| route.fits(&request.path))
            .map(|route| route.method)
            .collect();
        if allowed.is_empty() {
            return Problem::new(404, "there is nothing at this path");
        }
        allowed.sort();
        let allowed = allowed
            .into_iter()
            .map(|method| {
                if method == Method::Get {
                    "GET, HEAD"
                } else {
                    method.name()
                }
            })
            .collect::<Vec<_>>()
            .join(", ");
        Problem::new(405, format!("this path knows {allowed}")).with_header("Allow", allowed)
    }
}

impl Endpoint for Routes {
    fn handle(&self, mut request: Request, responder: Responder) {
        let found = self.find(&request);
        let (begun, method, route) = (
            Instant::now(),
            request.method.name(),
            found.map_or("none", |route| route.text),
        );
        let origin = self.cors.origin(&request);
        responder.before_sending(move |response| {
            metrics::answered(method, route, response.status, begun.elapsed());
            cors::readable_by(response, origin)
        });
        if let Some(preflight) = self.cors.preflight(&request) {
            return responder.send(preflight);
        }
        let Some(route) = found else {
            return responder.send(self.refusal(&request));
        };
        if request.method != Method::Get && !self.cors.admits(&request) {
            let why =
                "pages of this origin may change nothing here: CORS_ORIGINS names those that may";
            return responder.send(Problem::new(403, why));
        }
        let refused = request.refused.take().map_or(Ok(()), Err);
        match refused.and_then(|()| {
            if route.without_token {
                Ok(())
            } else {
                self.guard.check(&request)
            }
        }) {
            Err(problem) => responder.send(problem),
            Ok(()) => {
                request.params = route.params(&request.path);
                (route.handler)(request, responder);
            }
        }
    }

    fn needs_permit(&self, request: &Request) -> bool {
        request.refused.is_none() && !self.find(request).is_some_and(|route| route.always)
    }

    fn refuses(&self, method: &str, target: &str) -> Option<Problem> {
        let request = Request::new(
            Method::parse(method),
            target,
            Headers::default(),
            Vec::new(),
        )
        .ok()?;
        self.find(&request)?.gate.as_ref()?().err()
    }
}

impl Route {
    fn fits(&self, path: &[String]) -> bool {
        self.pattern.len() == path.len()
            && self
                .pattern
                .iter()
                .zip(path)
                .all(|(part, segment)| part_fits(part, segment))
    }

    fn params(&self, path: &[String]) -> Vec<(&'static str, String)> {
        let pairs = self.pattern.iter().zip(path);
        pairs
            .filter_map(|(part, segment)| Some((param_name(part)?, segment.clone())))
            .collect()
    }
}

fn part_fits(part: &'static str, segment: &str) -> bool {
    if param_name(part).is_some() {
        !segment.is_empty()
    } else {
        part == segment
    }
}

/// `orderId` of `{orderId}`.
fn param_name(part: &'static str) -> Option<&'static str> {
    part.strip_prefix('{')?.strip_suffix('}')
}
