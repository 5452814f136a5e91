//! One batch's transaction: offsets, effects, what is parked, what is sent, in this order, for correctness and against
//! deadlocks.

use kafka::{Record, TopicPartition};

use crate::db::Tx;
use crate::dead_letter::{self, Notice, Parked};
use crate::delivery::Delivery;
use crate::envelope::Undecodable;
use crate::error::{Error, Result};
use crate::event::{Channel, Event, Topic};
use crate::handler::{self, Cause, GivenUp, Handler, Outcome};
use crate::health;
use crate::metrics;
use crate::offsets::{self, Move};
use crate::outbox;
use crate::pool::Connection;
use crate::slice::{Input, Slice};
use crate::wake::Waker;

/// Turns slices into effects, on one connection.
pub struct Effects {
    /// The topics' prefix.
    pub prefix: String,
    /// Opened when needed.
    pub connection: Connection,
    /// What the service does with an event.
    pub handler: Box<dyn Handler>,
    /// Called after a commit that appended.
    pub waker: Waker,
}

impl Effects {
    /// Where each partition's offset is.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn read_offsets(&mut self, partitions: &[TopicPartition]) -> Result<Vec<(TopicPartition, i64)>> {
        offsets::read(self.connection.session()?, partitions)
    }

    /// Handles the slices in one transaction. A handler that lacks something fetches it between two attempts, so that no
    /// transaction is open meanwhile.
    ///
    /// # Errors
    /// Nothing was changed; [`Error::blame`] says whose fault it was.
    pub fn commit(&mut self, slices: &[Slice]) -> Result<()> {
        match self.try_commit(slices) {
            Err(Error::Unprepared) => {
                self.handler.prepare()?;
                self.try_commit(slices)
            }
            done => done,
        }
    }

    fn try_commit(&mut self, slices: &[Slice]) -> Result<()> {
        health::beat();
        metrics::ATTEMPTS.inc();
        let steps: Vec<Move> = slices.iter().map(Slice::step).collect();
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &steps)?;
        let (sent, parked) = handle(&mut tx, &self.prefix, &mut *self.handler, slices)?;
        outbox::append(&mut tx, &sent)?;
        tx.commit()?;
        dead_letter::tell(&parked);
        self.handler.committed();
        self.wake(&sent);
        Ok(())
    }

    /// Gives a lone record up for good: a request is recorded FAILED where it was undecided and its answer sent; the
    /// record is parked; the partition moves on.
    ///
    /// # Errors
    /// What PostgreSQL says; nothing was changed.
    pub fn give_up(&mut self, slice: &Slice, attempts: u32, why: &str) -> Result<()> {
        let Input { record, delivery, event } = &slice.inputs[0];
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &[slice.step()])?;
        let sent = match event {
            Ok(event) if event.topic().1 == Channel::Request => {
                let delivery = Delivery { attempt: attempts as i32, ..*delivery };
                let traceparent = event.traceparent.clone();
                self.handler.give_up(&mut tx, &GivenUp { order_id: event.order_id, traceparent, delivery })?
            }
            _ => vec![],
        };
        let story = Parked::new(Cause::GivenUp, why.to_string(), &slice.partition, record);
        let parked = dead_letter::park(&mut tx, &Parked { attempts: attempts as i32, ..story })?;
        outbox::append(&mut tx, &sent)?;
        tx.commit()?;
        dead_letter::tell(parked.as_slice());
        self.wake(&sent);
        Ok(())
    }

    /// Moves offsets past what holds no records: control batches, aborted transactions.
    ///
    /// # Errors
    /// What PostgreSQL says; nothing was changed.
    pub fn pass_over(&mut self, steps: &[Move]) -> Result<()> {
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, steps)?;
        tx.commit()
    }

    /// Parks what is no record that could be handled, and moves the offset.
    ///
    /// # Errors
    /// What PostgreSQL says; nothing was changed.
    pub fn park(&mut self, step: Move, cause: Cause, detail: String, record: &Record) -> Result<()> {
        let partition = step.partition.clone();
        let to_offset = (cause == Cause::LogGap).then_some(step.to);
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &[step])?;
        let story = Parked::new(cause, detail, &partition, record);
        let parked = dead_letter::park(&mut tx, &Parked { to_offset, ..story })?;
        tx.commit()?;
        dead_letter::tell(parked.as_slice());
        Ok(())
    }

    /// After a lock timeout: ends the session that holds the append lock for too long, if there is one.
    pub fn end_hanging_writer(&mut self, error: &Error) {
        outbox::end_hanging_writer(&mut self.connection, error);
    }

    fn wake(&self, sent: &[Event]) {
        if !sent.is_empty() {
            self.waker.wake();
        }
    }
}

/// Hands the events to the handler and parks what it refuses; answers what is to be sent, and told.
fn handle(
    tx: &mut Tx<'_>,
    prefix: &str,
    handler: &mut dyn Handler,
    slices: &[Slice],
) -> Result<(Vec<Event>, Vec<Notice>)> {
    let inputs = || slices.iter().flat_map(|slice| slice.inputs.iter().map(|input| (&slice.partition, input)));
    let events: Vec<Event> = inputs().filter_map(|(_, input)| input.event.as_ref().ok().cloned()).collect();
    let handled = handler::handle(handler, tx, &events)?;
    let (mut sent, mut parked) = (handled.events, Vec::new());
    let mut outcomes = handled.outcomes.into_iter();
    for (partition, Input { record, delivery, event }) in inputs() {
        let refusal = match event {
            Ok(event) => refused(event, outcomes.next()),
            Err(undecodable) => {
                sent.extend(answer(tx, handler, prefix, partition, (undecodable, *delivery))?);
                Some((Cause::Undecodable, undecodable.why.clone()))
            }
        };
        if let Some((cause, why)) = refusal {
            parked.extend(dead_letter::park(tx, &Parked::new(cause, why, partition, record))?);
        }
    }
    Ok((sent, parked))
}

fn refused(event: &Event, outcome: Option<Outcome>) -> Option<(Cause, String)> {
    let why = match outcome? {
        Outcome::Changed => return None,
        Outcome::Refused(cause, why) => return Some((cause, why)),
        Outcome::Unchanged(why) => why,
        Outcome::GivenUp => "it was given up for good",
    };
    log::debug!("order {}: {} changed nothing: {why}", event.order_id, event.type_name());
    None
}

/// Decoding can't end otherwise a second time, so it has one attempt. A request whose key is usable still gets its
/// answer.
fn answer(
    tx: &mut Tx<'_>,
    handler: &mut dyn Handler,
    prefix: &str,
    partition: &TopicPartition,
    (undecodable, delivery): (&Undecodable, Delivery),
) -> Result<Vec<Event>> {
    let is_request = Topic::from_name(&partition.topic, prefix).is_some_and(|topic| topic.1 == Channel::Request);
    let Some(order_id) = undecodable.order_id.filter(|_| is_request) else { return Ok(vec![]) };
    let traceparent = undecodable.traceparent.clone();
    handler.give_up(tx, &GivenUp { order_id, traceparent, delivery: Delivery { attempt: 1, ..delivery } })
}
