//! Method and pattern to handler; 404 and 405.

use super::message::{Method, Request, Response};
use super::problem::Problem;
use super::responder::Responder;
use super::server::Handler;

type Action = Box<dyn Fn(Request, Responder) + Send + Sync>;

/// A service's calls.
#[derive(Default)]
pub struct Routes {
    routes: Vec<Route>,
}

struct Route {
    method: Method,
    pattern: Vec<&'static str>,
    action: Action,
}

impl Routes {
    /// No calls yet: everything is 404.
    pub fn new() -> Self {
        Routes::default()
    }

    /// A call that is answered before `answer` returns. In the pattern, `{name}` stands for one segment that isn't empty.
    pub fn answer<F>(self, method: Method, pattern: &'static str, answer: F) -> Self
    where
        F: Fn(&Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        self.hand_over(method, pattern, move |request, responder| {
            responder.send(answer(&request).unwrap_or_else(Response::from));
        })
    }

    /// A call that may be answered later, through the [`Responder`].
    pub fn hand_over<F>(mut self, method: Method, pattern: &'static str, action: F) -> Self
    where
        F: Fn(Request, Responder) + Send + Sync + 'static,
    {
        let pattern = pattern.trim_start_matches('/').split('/').collect();
        self.routes.push(Route { method, pattern, action: Box::new(action) });
        self
    }

    /// 405 with the methods that this path knows, or 404 if it knows none.
    fn refusal(&self, request: &Request) -> Problem {
        let mut allowed: Vec<_> =
            self.routes.iter().filter(|route| route.fits(&request.path)).map(|route| route.method).collect();
        if allowed.is_empty() {
            return Problem::new(404, "there is nothing at this path");
        }
        allowed.sort();
        let allowed = allowed.into_iter().map(Method::name).collect::<Vec<_>>().join(", ");
        Problem::new(405, format!("this path knows {allowed}")).with_header("Allow", allowed)
    }
}

impl Handler for Routes {
    fn handle(&self, mut request: Request, responder: Responder) {
        let found = self.routes.iter().find(|route| route.method == request.method && route.fits(&request.path));
        let Some(route) = found else { return responder.send(self.refusal(&request)) };
        request.params = route.params(&request.path);
        (route.action)(request, responder);
    }
}

impl Route {
    fn fits(&self, path: &[String]) -> bool {
        self.pattern.len() == path.len()
            && self.pattern.iter().zip(path).all(|(part, segment)| part_fits(part, segment))
    }

    fn params(&self, path: &[String]) -> Vec<(&'static str, String)> {
        let pairs = self.pattern.iter().zip(path);
        pairs.filter_map(|(part, segment)| Some((param_name(part)?, segment.clone()))).collect()
    }
}

fn part_fits(part: &'static str, segment: &str) -> bool {
    if param_name(part).is_some() { !segment.is_empty() } else { part == segment }
}

/// `orderId` of `{orderId}`.
fn param_name(part: &'static str) -> Option<&'static str> {
    part.strip_prefix('{')?.strip_suffix('}')
}
