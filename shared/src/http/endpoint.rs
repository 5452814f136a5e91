//! What becomes of a request once a server has read it: let in or not, handled by one of few at a time, answered in any case.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::limits::ServerLimits;
use super::message::{Request, Response};
use super::problem::Problem;
use super::responder::Responder;

/// Of many requests that are not let in, one is answered each two milliseconds: that costs a few percent of two processors, and
/// what was let in keeps the rest.
const REFUSAL: Duration = Duration::from_millis(2);

/// What answers requests: [`Routes`](super::Routes), or any closure of this form.
pub trait Endpoint: Send + Sync + 'static {
    /// Answers `request` through `responder`, now or later. Called by many threads at once. A panic is answered with a 500 problem.
    fn handle(&self, request: Request, responder: Responder);

    /// Whether the request counts as one of those that run at the same time ([`ServerLimits::workers`]). What an operator asks
    /// should not: it must be answered also while all others hang.
    fn needs_permit(&self, _request: &Request) -> bool {
        true
    }

    /// Why a request of this method for this target is not let in, if it is not: asked before its body is read, which is then
    /// thrown away. The request is handled all the same, as one that was [refused](Request::refused).
    fn refuses(&self, _method: &str, _target: &str) -> Option<Problem> {
        None
    }
}

impl<F: Fn(Request, Responder) + Send + Sync + 'static> Endpoint for F {
    fn handle(&self, request: Request, responder: Responder) {
        self(request, responder);
    }
}

/// An endpoint and the bounds within which a server asks it.
pub(super) struct Dispatcher {
    endpoint: Box<dyn Endpoint>,
    pub limits: ServerLimits,
    permits: Semaphore,
    /// Requests that wait for the answer that they are not let in.
    refused: AtomicUsize,
}

impl Dispatcher {
    pub fn new(limits: ServerLimits, endpoint: impl Endpoint) -> Self {
        Dispatcher {
            endpoint: Box::new(endpoint),
            permits: Semaphore::new(limits.workers.max(1)),
            limits,
            refused: AtomicUsize::new(0),
        }
    }

    /// As [`Endpoint::refuses`].
    pub fn refuses(&self, method: &str, target: &str) -> Option<Problem> {
        self.endpoint.refuses(method, target)
    }

    /// Waits before a request is answered that is not let in: the longer, the more of them wait already.
    pub fn pause_before_refusal(&self) {
        let waiting = self.refused.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(self.limits.refusal.max(REFUSAL * waiting as u32));
        self.refused.fetch_sub(1, Ordering::SeqCst);
    }

    /// The endpoint's answer, or one in its place if it panics, can't begin, or takes too long.
    pub fn answer(&self, request: Request) -> Response {
        let needs_permit = self.endpoint.needs_permit(&request);
        let permit = needs_permit.then(|| self.permits.acquire(self.limits.permit));
        if matches!(permit, Some(None)) {
            return Problem::unavailable("too many requests are being handled", 1).into();
        }
        let (responder, awaited) = Responder::pair_within(self.limits.answer);
        let handled = catch_unwind(AssertUnwindSafe(|| {
            self.endpoint.handle(request, responder)
        }));
        if handled.is_err() {
            log::error!("a handler panicked; its request is answered with 500");
        }
        // A request that is answered later does not count as running.
        drop(permit);
        awaited.wait()
    }
}

/// How many handlers may still begin.
struct Semaphore {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Semaphore {
    fn new(count: usize) -> Self {
        Semaphore {
            free: Mutex::new(count),
            freed: Condvar::new(),
        }
    }

    /// A permit, as soon as there is one; None if there is none within `limit`.
    fn acquire(&self, limit: Duration) -> Option<Permit<'_>> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .freed
            .wait_timeout_while(free, limit, |free| *free == 0);
        let mut free = waited.unwrap_or_else(PoisonError::into_inner).0;
        *free = free.checked_sub(1)?;
        Some(Permit(self))
    }
}

/// The right to run a handler, given back when it is dropped.
struct Permit<'a>(&'a Semaphore);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_permits_than_workers_and_each_is_given_back() {
        let permits = Semaphore::new(2);
        let taken = (
            permits.acquire(Duration::ZERO),
            permits.acquire(Duration::ZERO),
        );
        assert!(taken.0.is_some() && taken.1.is_some());
        assert!(permits.acquire(Duration::ZERO).is_none());
        drop(taken.0);
        assert!(permits.acquire(Duration::ZERO).is_some());
    }
}
