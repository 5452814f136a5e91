//! The one answer to a request, given from any thread.

use super::message::Response;
use super::problem::Problem;
use crossbeam_channel::{Receiver, Sender, bounded};

/// Answers one request, once, from any thread and at any later time (within a minute).
///
/// Sending never blocks: the connection's own thread writes to the client. Dropped without an answer, by a panic for instance, it
/// sends a 500 problem.
#[derive(Debug)]
pub struct Responder {
    answer: Option<Sender<Response>>,
}

impl Responder {
    /// A responder and where its answer arrives. Tests of handlers use it as well.
    pub fn pair() -> (Self, Receiver<Response>) {
        // One place: there is one answer, so that sending it never waits.
        let (sender, receiver) = bounded(1);
        (Responder { answer: Some(sender) }, receiver)
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
