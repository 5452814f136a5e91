//! What a service does with the events it reads, and how it ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use uuid::Uuid;

use crate::consumer::at_once::AtOnce;
use crate::db::Tx;
use crate::error::{Cause, Error, Result};
use crate::event::delivery::Delivery;
use crate::event::{Body, Event, Side};

/// What a handler made of one event.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had its effect.
    Changed,
    /// It changed nothing, and why: a duplicate, or too late.
    Unchanged(&'static str),
    /// It changed nothing: the request was given up before, its part has failed for good and order was answered so.
    GivenUp,
    /// It must be parked, with the reason.
    Refused(Cause, String),
}

/// What a handler made of a batch.
#[derive(Default)]
pub struct Handled {
    /// One for each event, in order.
    pub outcomes: Vec<Outcome>,
    /// What is to be sent, in order.
    pub events: Vec<Event>,
}

/// A request that is given up for good, as far as it could be read.
pub struct GivenUp {
    /// The order it is about.
    pub order_id: Uuid,
    /// Its W3C trace context.
    pub traceparent: Option<String>,
    /// How it came, with the last attempt.
    pub delivery: Delivery,
}

impl GivenUp {
    /// The answer that says so.
    pub fn answer(&self, side: Side, body: Body) -> Event {
        Event {
            answers: Some(self.delivery),
            ..Event::new(side, self.order_id, body, self.traceparent.clone())
        }
    }
}

/// What a service does with the events it reads.
pub trait Handler: Send {
    /// Handles a batch in the open transaction: place, lock, decide, update. It must not append or commit; what is to
    /// be done once it is committed is registered with [`Tx::after_commit`].
    ///
    /// # Errors
    /// The whole batch is rolled back. After [`Error::Unprepared`] it is handed over once more, when [`Handler::prepare`] has
    /// returned.
    fn handle(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Handled>;

    /// Tries to handle a batch by two statements: reads without locks, decides, and has `at_once` commit. Returns false where the
    /// batch is none that can be, or what was read has changed meanwhile: then [`Handler::handle`] gets it.
    ///
    /// # Errors
    /// What PostgreSQL says: nothing was changed, or (connection lost) it is unknown.
    fn handle_at_once(&mut self, _at_once: &mut AtOnce<'_>, _events: &[Event]) -> Result<bool> {
        Ok(false)
    }

    /// Whether events that belong to these, which were just polled, are expected within milliseconds, and all of them had better be
    /// handled together: the batch waits a moment for them. What comes in that moment is shown too, and nothing waits for more. About
    /// time alone: they may come later, or never.
    fn expects_more(&mut self, _events: &[&Event]) -> bool {
        false
    }

    /// Which of the events can't be handled because somebody else holds a row that they need: for each what it waits for, in words.
    /// The rows of all others are locked then, so that handling them waits for nobody.
    fn waits_for(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Vec<Option<String>>>;

    /// Records that a request has failed for good (only where it was undecided); returns the `….failed` to send.
    fn give_up(&mut self, tx: &mut Tx<'_>, request: &GivenUp) -> Result<Vec<Event>>;

    /// Fetches, outside of any transaction, what the last [`Handler::handle`] lacked ([`Error::Unprepared`]).
    ///
    /// # Errors
    /// The batch is tried again later.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Calls [`Handler::handle`] and turns a panic into an error; the transaction is then to be rolled back.
///
/// # Errors
/// The handler's; [`Error::Panic`].
pub fn handle(handler: &mut dyn Handler, tx: &mut Tx<'_>, events: &[Event]) -> Result<Handled> {
    catch_unwind(AssertUnwindSafe(|| handler.handle(tx, events))).map_err(panic_text)?
}

/// Calls [`Handler::handle_at_once`] and turns a panic into an error; nothing was changed then.
///
/// # Errors
/// The handler's; [`Error::Panic`].
pub fn handle_at_once(
    handler: &mut dyn Handler,
    at_once: &mut AtOnce<'_>,
    events: &[Event],
) -> Result<bool> {
    catch_unwind(AssertUnwindSafe(|| handler.handle_at_once(at_once, events)))
        .map_err(panic_text)?
}

/// Calls [`Handler::expects_more`]; a panic is no reason to wait.
pub fn expects_more(handler: &mut dyn Handler, events: &[&Event]) -> bool {
    catch_unwind(AssertUnwindSafe(|| handler.expects_more(events))).unwrap_or(false)
}

/// What a caught panic said.
pub fn panic_text(panic: Box<dyn Any + Send>) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Panic(text.unwrap_or_else(|| "no text".into()))
}
