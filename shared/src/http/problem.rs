//! Every error as `application/problem+json`.

use super::message::{Response, reason};
use crate::error::{Blame, Error};
use serde::Serialize;
use uuid::Uuid;

/// An error answer (RFC 9457). `title` is the status's reason phrase.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(skip_serializing_if = "Option::is_none", rename = "orderId")]
    order_id: Option<Uuid>,
    #[serde(skip)]
    headers: Vec<(&'static str, String)>,
}

/// The answer when a request could not be served for the database's sake: the client may repeat it.
impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        log::warn!("a request failed: {error}");
        if error.blame() == Blame::Poison {
            return Problem::new(500, "the request could not be stored; nothing was changed");
        }
        let detail = format!("{}; repeat the request", error.for_clients());
        Problem::unavailable(detail, Problem::RETRY_AFTER)
    }
}

/// One bad field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// The field's name as the client wrote it.
    pub field: String,
    /// What is wrong with it, to be read after its name: "is missing".
    pub detail: String,
}

impl Problem {
    /// Seconds after which a client may repeat what failed for want of the database.
    pub const RETRY_AFTER: u32 = 2;

    /// A problem with an HTTP `status` and a sentence for the client's developer.
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        let (errors, headers) = (Vec::new(), Vec::new());
        Problem {
            title: reason(status),
            status,
            detail: detail.into(),
            errors,
            order_id: None,
            headers,
        }
    }

    /// A 422 that blames one field.
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Problem::fields(vec![FieldError {
            field: field.into(),
            detail: detail.into(),
        }])
    }

    /// A 422 that blames all of `errors`; the detail repeats them in one sentence.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let sentences: Vec<_> = errors
            .iter()
            .map(|error| format!("`{}` {}", error.field, error.detail))
            .collect();
        Problem {
            errors,
            ..Problem::new(422, sentences.join("; "))
        }
    }

    /// The same problem, about this order (a member `orderId`).
    pub fn with_order(self, order_id: Uuid) -> Self {
        Problem {
            order_id: Some(order_id),
            ..self
        }
    }

    /// The same problem with one more response header, as `Allow` or `Retry-After`.
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// 503: the service can't take the request now; the client may repeat it after so many seconds.
    pub fn unavailable(detail: impl Into<String>, retry_after_seconds: u32) -> Self {
        Problem::new(503, detail).with_header("Retry-After", retry_after_seconds.to_string())
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }
}

/// Two checks of one request, so that the bad fields of both are named.
///
/// # Errors
/// What is wrong beyond a bad field, if there is such; else a 422 with the fields of both.
pub fn merge<A, B>(
    first: Result<A, Problem>,
    second: Result<B, Problem>,
) -> Result<(A, B), Problem> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(first), Err(second)) if !first.errors.is_empty() && !second.errors.is_empty() => {
            Err(Problem::fields([first.errors, second.errors].concat()))
        }
        (Err(fields), Err(other)) if !fields.errors.is_empty() => Err(other),
        (Err(problem), _) | (_, Err(problem)) => Err(problem),
    }
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Self {
        // A struct of strings and numbers always serializes.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let response = Response::new(problem.status, "application/problem+json", body);
        problem
            .headers
            .into_iter()
            .fold(response, |response, (name, value)| {
                response.with_header(name, value)
            })
    }
}
