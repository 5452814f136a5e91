//! The one answer to a request, given from any thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::limits::ServerLimits;
use super::message::Response;
use super::problem::Problem;

/// Answers one request, once, from any thread and at any later time within its limit ([`ServerLimits::answer`]).
///
/// Sending never blocks: the connection's own thread writes to the client. Dropped without an answer, by a panic for instance, it
/// sends a 500 problem.
#[derive(Debug)]
pub struct Responder(Option<Arc<Slot>>);

/// Where a request's answer arrives.
#[derive(Debug)]
pub struct Awaited(Arc<Slot>);

/// A lock and a condition rather than a channel, whose receiver spins before it sleeps: answers take milliseconds.
#[derive(Debug)]
struct Slot {
    content: Mutex<Content>,
    filled: Condvar,
}

struct Content {
    answer: Option<Response>,
    /// When the waiting ends, and what is answered then.
    limit: Duration,
    late: Option<Response>,
    finish: Option<Finish>,
}

/// What is done to an answer, whichever it is, before it is sent.
type Finish = Box<dyn FnOnce(Response) -> Response + Send>;

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("answer", &self.answer)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Slot {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Responder {
    /// A responder and where its answer arrives. Tests of handlers use it as well.
    pub fn pair() -> (Self, Awaited) {
        Responder::pair_within(ServerLimits::default().answer)
    }

    /// The same with the longest time to wait for the answer.
    pub(super) fn pair_within(limit: Duration) -> (Self, Awaited) {
        let content = Mutex::new(Content {
            answer: None,
            limit,
            late: None,
            finish: None,
        });
        let slot = Arc::new(Slot {
            content,
            filled: Condvar::new(),
        });
        (Responder(Some(slot.clone())), Awaited(slot))
    }

    /// Has `response` sent if there is no other after `limit`. To be called before the handler returns.
    pub fn or_after(&self, limit: Duration, response: impl Into<Response>) {
        if let Some(slot) = &self.0 {
            let mut content = slot.content();
            content.limit = limit;
            content.late = Some(response.into());
        }
    }

    /// Has `finish` called on the connection's thread with the answer, or with what stands in for it, before it is sent. The one that
    /// is given last is called first. To be called before the handler returns.
    pub fn before_sending(&self, finish: impl FnOnce(Response) -> Response + Send + 'static) {
        if let Some(slot) = &self.0 {
            let mut content = slot.content();
            let next = content.finish.take();
            content.finish = Some(Box::new(move |response| {
                let response = finish(response);
                match next {
                    Some(next) => next(response),
                    None => response,
                }
            }));
        }
    }

    /// Answers the request. If nobody waits any more (the answer came too late), it is dropped.
    pub fn send(mut self, response: impl Into<Response>) {
        self.deliver(response);
    }

    fn deliver(&mut self, response: impl Into<Response>) {
        if let Some(slot) = self.0.take() {
            slot.content().answer = Some(response.into());
            slot.filled.notify_one();
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.deliver(Problem::new(
                500,
                "the request was dropped without an answer; its outcome is unknown",
            ));
        }
    }
}

impl Awaited {
    /// Waits for the answer, or for the end of the request's limit.
    pub fn wait(self) -> Response {
        let content = self.0.content();
        let limit = content.limit;
        let waited = self
            .0
            .filled
            .wait_timeout_while(content, limit, |content| content.answer.is_none());
        let mut content = waited.unwrap_or_else(PoisonError::into_inner).0;
        let answer = content
            .answer
            .take()
            .or_else(|| content.late.take())
            .unwrap_or_else(|| {
                Problem::unavailable(
                    "no answer was found in time; the request's outcome is unknown",
                    1,
                )
                .into()
            });
        let finish = content.finish.take();
        drop(content);
        match finish {
            Some(finish) => finish(answer),
            None => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_come_is_replaced_by_the_one_for_late() {
        let (responder, awaited) = Responder::pair();
        responder.or_after(Duration::from_millis(1), Problem::unavailable("late", 1));
        assert_eq!(awaited.wait().status, 503);
        drop(responder);
        let (responder, awaited) = Responder::pair();
        responder.or_after(Duration::from_secs(60), Problem::unavailable("late", 1));
        responder.send(Response::json(200, &1));
        assert_eq!(awaited.wait().status, 200);
    }

    #[test]
    fn what_is_done_before_sending_sees_the_answer_that_is_sent() {
        let (responder, awaited) = Responder::pair();
        responder.before_sending(|response| {
            let status = response.status.to_string();
            response.with_header("Then", status)
        });
        responder.before_sending(|response| response.with_header("First", "yes"));
        responder.or_after(Duration::from_millis(1), Problem::new(503, "late"));
        let response = awaited.wait();
        responder.send(Response::json(202, &1));
        assert_eq!(response.status, 503);
        let added = [("First", "yes"), ("Then", "503")];
        assert_eq!(
            response.headers,
            added.map(|(name, value)| (name, value.to_string()))
        );
    }
}
