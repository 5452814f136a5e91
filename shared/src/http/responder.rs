//! The one answer to a request, given from any thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::limits::Limits;
use super::message::Response;
use super::problem::Problem;
use crossbeam_channel::{Receiver, Sender, bounded};

/// Answers one request, once, from any thread and at any later time within its limit ([`Limits::answer`]).
///
/// Sending never blocks: the connection's own thread writes to the client. Dropped without an answer, by a panic for instance, it
/// sends a 500 problem.
#[derive(Debug)]
pub struct Responder {
    answer: Option<Sender<Response>>,
    late: Late,
}

/// Where a request's answer arrives.
#[derive(Debug)]
pub struct Awaited {
    answer: Receiver<Response>,
    late: Late,
}

/// When the waiting ends, and what is answered then.
type Late = Arc<Mutex<(Duration, Option<Response>)>>;

impl Responder {
    /// A responder and where its answer arrives. Tests of handlers use it as well.
    pub fn pair() -> (Self, Awaited) {
        Responder::pair_within(Limits::default().answer)
    }

    /// The same with the longest time to wait for the answer.
    pub(super) fn pair_within(limit: Duration) -> (Self, Awaited) {
        // One place: there is one answer, so that sending it never waits.
        let (sender, receiver) = bounded(1);
        let late = Late::new(Mutex::new((limit, None)));
        (Responder { answer: Some(sender), late: late.clone() }, Awaited { answer: receiver, late })
    }

    /// Has `response` sent if there is no other after `limit`. To be called before the handler returns.
    pub fn or_after(&self, limit: Duration, response: impl Into<Response>) {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = (limit, Some(response.into()));
    }

    /// Answers the request. If nobody waits any more (the answer came too late), it is dropped.
    pub fn send(mut self, response: impl Into<Response>) {
        self.deliver(response.into());
    }

    fn deliver(&mut self, response: Response) {
        if let Some(answer) = self.answer.take() {
            let _ = answer.try_send(response);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.deliver(Problem::new(500, "the request was dropped without an answer; its outcome is unknown").into());
        }
    }
}

impl Awaited {
    /// Waits for the answer, or for the end of the request's limit.
    pub fn wait(self) -> Response {
        let (limit, late) = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        self.answer.recv_timeout(limit).unwrap_or_else(|_| {
            late.unwrap_or_else(|| {
                Problem::unavailable("no answer was found in time; the request's outcome is unknown", 1).into()
            })
        })
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
}
