//! One batch's transaction: offsets, effects, what is parked, what is outgoing, in this order, for correctness and against
//! deadlocks. A few records that are simple are handled by two statements instead ([`at_once`](crate::consumer::at_once)).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use kafka::{Record, TopicPartition};

use crate::consumer::POISON_ATTEMPTS;
use crate::consumer::at_once::{AtOnce, Contention};
use crate::consumer::batch::{Input, PartitionBatch};
use crate::consumer::offsets::{self, Move, Start};
use crate::consumer::set_aside::{self, Around, Aside};
use crate::db::Tx;
use crate::db::pool::Connection;
use crate::dead_letter::{self, Parked};
use crate::error::Cause;
use crate::error::{Blame, Error, Result};
use crate::event::delivery::{self, Delivery};
use crate::event::envelope::Undecodable;
use crate::event::trace;
use crate::event::{Channel, Event, Topic};
use crate::handler::{self, GivenUp, Handler, Outcome};
use crate::heartbeat;
use crate::metrics;
use crate::outbox;
use crate::outbox::wake::Waker;

/// Turns batches into effects, on one connection.
pub struct BatchProcessor {
    /// The topics' prefix.
    pub prefix: String,
    connection: Connection,
    handler: Box<dyn Handler>,
    waker: Waker,
    /// Then batches are handled under locks.
    contention: Contention,
    /// Then records that need a row which is held are set aside, and the others do not wait with them.
    around: Around,
    /// Something may be set aside, and what comes later about the same orders must wait behind it.
    look_behind: bool,
    /// When those set aside were tried last, or some were set aside.
    tried_aside_at: Option<Instant>,
    /// When it was logged the last time that records are set aside.
    logged_at: Option<Instant>,
}

/// Batches of so many records are handled at once at most. In larger ones there is nearly always an order that fails, which must
/// be handled under locks, and the round trips cost each record next to nothing.
const FEW: usize = 32;
/// It is logged so often at most.
const LOG_AGAIN: Duration = Duration::from_secs(10);
/// Records set aside are tried again so often ...
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// ... as long as some have had their effect, so many batches in a row; what comes from Kafka must not wait for all of them ...
const ROUNDS: u32 = 20;
/// ... and it is looked so often whether there are any, of an instance that is gone.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

impl BatchProcessor {
    /// Connects to nothing yet. `prefix`: the topics'; `handler`: what the service does with an event; `waker` is called after a
    /// commit that appended.
    pub fn new(
        prefix: String,
        connection: Connection,
        handler: Box<dyn Handler>,
        waker: Waker,
    ) -> BatchProcessor {
        let (around, logged_at) = (Around::default(), None);
        BatchProcessor {
            prefix,
            connection,
            handler,
            waker,
            contention: Contention::default(),
            around,
            look_behind: false,
            tried_aside_at: None,
            logged_at,
        }
    }

    /// Where each partition's offset is. What comes later about an order waits behind what another consumer has set aside of it.
    pub fn read_offsets(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Start>> {
        let session = self.connection.session()?;
        let starts = offsets::read(session, partitions)?;
        // read after the offsets: what was set aside below them is there
        self.look_behind = set_aside::are_any(session)?;
        Ok(starts)
    }

    /// Handles the batches of several partitions in one transaction. A handler that lacks something fetches it between two attempts, so that no
    /// transaction is open meanwhile.
    ///
    /// # Errors
    /// Nothing was changed; [`Error::blame`] says whose fault it was.
    pub fn commit(&mut self, parts: &[PartitionBatch]) -> Result<()> {
        let set_aside = self.around.is_due() || self.look_behind;
        match self.prepared(|processor| processor.try_commit(parts, set_aside)) {
            Err(error) if error.is_lock_timeout() && !set_aside => {
                self.end_hanging_writer(&error);
                self.around.held();
                self.prepared(|processor| processor.try_commit(parts, true))
            }
            done => done,
        }
    }

    fn prepared<T>(&mut self, attempt: impl Fn(&mut BatchProcessor) -> Result<T>) -> Result<T> {
        match attempt(self) {
            Err(Error::Unprepared) => {
                self.handler.prepare()?;
                attempt(self)
            }
            done => done,
        }
    }

    fn try_commit(&mut self, parts: &[PartitionBatch], set_aside: bool) -> Result<()> {
        heartbeat::beat();
        metrics::BATCHES_TRIED.inc();
        let steps: Vec<Move> = parts.iter().map(PartitionBatch::step).collect();
        if !set_aside && self.contention.is_over() && self.commit_at_once(parts, &steps)? {
            handled(parts.iter().flat_map(|part| &part.inputs), &[]);
            return Ok(());
        }
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &steps)?;
        let inputs: Vec<(&TopicPartition, &Input)> = parts
            .iter()
            .flat_map(|part| part.inputs.iter().map(|input| (&part.partition, input)))
            .collect();
        let waiting = match set_aside {
            true => find_waiting(&mut tx, &mut *self.handler, &inputs, true)?,
            false => vec![],
        };
        let outgoing = handle(&mut tx, &self.prefix, &mut *self.handler, &inputs, &waiting)?;
        let aside: Vec<_> = inputs
            .iter()
            .zip(&waiting)
            .filter_map(|((partition, input), why)| Some((*partition, &input.record, why.clone()?)))
            .collect();
        set_aside::set(&mut tx, &aside)?;
        outbox::append(&mut tx, &self.waker, &outgoing)?;
        tx.commit()?;
        handled(inputs.iter().map(|(_, input)| *input), &waiting);
        if let Some((partition, record, why)) = aside.first() {
            self.around.held();
            self.look_behind = true;
            self.tried_aside_at = Some(Instant::now());
            let (count, offset) = (aside.len(), record.offset);
            let is_due = self
                .logged_at
                .is_none_or(|logged_at| logged_at.elapsed() >= LOG_AGAIN);
            self.logged_at = if is_due {
                Some(Instant::now())
            } else {
                self.logged_at
            };
            let level = if is_due {
                log::Level::Warn
            } else {
                log::Level::Debug
            };
            log::log!(
                level,
                "{count} records are set aside and tried again, the first {partition}@{offset}: it waits for {why}"
            );
        }
        Ok(())
    }

    /// [`Handler::expects_more`], of what these hold, where it is little.
    pub fn expects_more(&mut self, parts: &[PartitionBatch]) -> bool {
        let count = parts.iter().map(|part| part.inputs.len()).sum();
        if !(1..FEW).contains(&count) {
            return false;
        }
        let inputs = parts.iter().flat_map(|part| &part.inputs);
        let events: Vec<&Event> = inputs
            .filter_map(|input| input.event.as_ref().ok())
            .collect();
        events.len() == count && handler::expects_more(&mut *self.handler, &events)
    }

    /// Whether the batch was handled and committed by two statements.
    fn commit_at_once(&mut self, parts: &[PartitionBatch], moves: &[Move]) -> Result<bool> {
        let inputs: Vec<&Input> = parts.iter().flat_map(|part| &part.inputs).collect();
        let events: Vec<Event> = inputs
            .iter()
            .take(FEW)
            .filter_map(|input| input.event.as_ref().ok().cloned())
            .collect();
        if events.is_empty() || events.len() < inputs.len() {
            return Ok(false);
        }
        let session = self.connection.session()?;
        let mut at_once = AtOnce::new(session, moves, &self.waker, &mut self.contention);
        handler::handle_at_once(&mut *self.handler, &mut at_once, &events)
    }

    /// Tries those again that were set aside, if it is time to. Some may wait on; those that fail by their own fault too often are
    /// given up. Returns how many have had their effect.
    ///
    /// # Errors
    /// What PostgreSQL and the handler say; nothing was changed.
    pub fn try_aside(&mut self) -> Result<usize> {
        let pause = if self.look_behind {
            TRY_AGAIN
        } else {
            LOOK_AGAIN
        };
        if self
            .tried_aside_at
            .is_some_and(|tried_at| tried_at.elapsed() < pause)
        {
            return Ok(0);
        }
        self.tried_aside_at = Some(Instant::now());
        let mut all = 0;
        for _ in 0..ROUNDS {
            let done = match self.prepared(|processor| processor.try_those_aside(None)) {
                Err(error) if error.blame() == Blame::Poison || error.is_lock_timeout() => {
                    self.prepared(BatchProcessor::try_each_aside)
                }
                done => done,
            }?;
            all += done;
            // others wait behind those that had their effect
            if done == 0 {
                break;
            }
        }
        Ok(all)
    }

    /// `only`: the one with this number, of those that are taken.
    fn try_those_aside(&mut self, only: Option<i64>) -> Result<usize> {
        heartbeat::beat();
        let mut tx = self.connection.session()?.transaction()?;
        let mut taken = set_aside::take(&mut tx)?;
        self.look_behind = !taken.is_empty() || set_aside::are_any(&mut tx)?;
        if taken.is_empty() {
            return Ok(0);
        }
        self.tried_aside_at = Some(Instant::now());
        self.around.held();
        taken.retain(|aside| only.is_none_or(|only| aside.id == only));
        let (prefix, now) = (self.prefix.as_str(), delivery::now());
        let (mut ids, mut inputs, mut still_waiting) = (Vec::new(), Vec::new(), Vec::new());
        for aside in taken {
            let Some(topic) = Topic::from_name(&aside.partition.topic, prefix) else {
                still_waiting.push(aside.id);
                continue;
            };
            let number = aside.partition.partition;
            let input = Input::new(topic, number, aside.record, now, aside.attempts);
            ids.push(aside.id);
            inputs.push((aside.partition, input));
        }
        let borrowed: Vec<(&TopicPartition, &Input)> = inputs
            .iter()
            .map(|(partition, input)| (partition, input))
            .collect();
        let waiting = find_waiting(&mut tx, &mut *self.handler, &borrowed, false)?;
        let outgoing = handle(&mut tx, prefix, &mut *self.handler, &borrowed, &waiting)?;
        let mut done = Vec::new();
        for (id, why) in ids.into_iter().zip(&waiting) {
            match why {
                None => done.push(id),
                Some(_) => still_waiting.push(id),
            }
        }
        set_aside::remove(&mut tx, &done)?;
        set_aside::wait_on(&mut tx, &still_waiting)?;
        outbox::append(&mut tx, &self.waker, &outgoing)?;
        tx.commit()?;
        handled(inputs.iter().map(|(_, input)| input), &waiting);
        if !done.is_empty() {
            log::info!(
                "{} records that were set aside have had their effect",
                done.len()
            );
        }
        Ok(done.len())
    }

    /// One by one, after all of them together have failed by the fault of one, or because one waits for a lock that nobody could
    /// foresee: that one goes behind the others.
    fn try_each_aside(&mut self) -> Result<usize> {
        let taken = set_aside::take(&mut self.connection.session()?.transaction()?)?;
        let mut done = 0;
        for aside in taken {
            match self.try_those_aside(Some(aside.id)) {
                Err(error)
                    if error.blame() == Blame::Poison
                        && aside.attempts >= POISON_ATTEMPTS as i32 =>
                {
                    self.give_up_aside(&aside, &error.to_string())?;
                }
                Err(error) if error.blame() == Blame::Poison => {
                    set_aside::record_failure(self.connection.session()?, aside.id)?
                }
                Err(error) if error.is_lock_timeout() => {
                    self.end_hanging_writer(&error);
                    log::warn!(
                        "{}@{}, which was set aside, waits on: {error}",
                        aside.partition,
                        aside.record.offset
                    );
                    set_aside::wait_on(self.connection.session()?, &[aside.id])?;
                    break;
                }
                outcome => done += outcome?,
            }
        }
        Ok(done)
    }

    fn give_up_aside(&mut self, aside: &Aside, why: &str) -> Result<()> {
        let Some(topic) = Topic::from_name(&aside.partition.topic, &self.prefix) else {
            return Ok(());
        };
        let input = Input::new(
            topic,
            aside.partition.partition,
            aside.record.clone(),
            delivery::now(),
            aside.attempts,
        );
        let mut tx = self.connection.session()?.transaction()?;
        // first, so that no other instance handles it meanwhile; one that already has leaves nothing to give up
        if set_aside::remove(&mut tx, &[aside.id])? == 0 {
            return Ok(());
        }
        let outgoing = given_up(
            &mut tx,
            &mut *self.handler,
            &aside.partition,
            &input,
            aside.attempts as u32,
            why,
        )?;
        outbox::append(&mut tx, &self.waker, &outgoing)?;
        tx.commit()
    }

    /// Gives a lone record up for good: a request is recorded FAILED where it was undecided and its answer sent; the
    /// record is parked; the partition moves on.
    ///
    /// # Errors
    /// What PostgreSQL says; nothing was changed.
    pub fn give_up(&mut self, part: &PartitionBatch, attempts: u32, why: &str) -> Result<()> {
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &[part.step()])?;
        let outgoing = given_up(
            &mut tx,
            &mut *self.handler,
            &part.partition,
            &part.inputs[0],
            attempts,
            why,
        )?;
        outbox::append(&mut tx, &self.waker, &outgoing)?;
        tx.commit()
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
    pub fn park(
        &mut self,
        step: Move,
        cause: Cause,
        detail: String,
        record: &Record,
    ) -> Result<()> {
        let partition = step.partition.clone();
        let to_offset = (cause == Cause::LogGap).then_some(step.to);
        let mut tx = self.connection.session()?.transaction()?;
        offsets::advance(&mut tx, &[step])?;
        let parked_record = Parked::new(cause, detail, &partition, record);
        dead_letter::park(
            &mut tx,
            &[Parked {
                to_offset,
                ..parked_record
            }],
        )?;
        tx.commit()
    }

    /// After a lock timeout: ends the session that holds the append lock for too long, if there is one.
    pub fn end_hanging_writer(&mut self, error: &Error) {
        outbox::end_hanging_writer(&mut self.connection, error);
    }
}

/// Ends the spans of what was committed now; what waits is not handled yet.
fn handled<'a>(inputs: impl Iterator<Item = &'a Input>, waiting: &[Option<String>]) {
    let done = inputs
        .enumerate()
        .filter(|(place, _)| waiting.get(*place).is_none_or(Option::is_none));
    let spans = done.filter_map(|(_, input)| input.span());
    trace::end("process batch", spans.collect());
}

fn given_up(
    tx: &mut Tx<'_>,
    handler: &mut dyn Handler,
    partition: &TopicPartition,
    Input {
        record,
        delivery,
        event,
    }: &Input,
    attempts: u32,
    why: &str,
) -> Result<Vec<Event>> {
    let outgoing = match event {
        Ok(event) if event.topic().1 == Channel::Request => {
            let delivery = Delivery {
                attempt: attempts as i32,
                ..*delivery
            };
            let attempt = Event {
                delivery: Some(delivery),
                ..event.clone()
            };
            let traceparent = trace::caused_by(&attempt);
            handler.give_up(
                tx,
                &GivenUp {
                    order_id: event.order_id,
                    traceparent,
                    delivery,
                },
            )?
        }
        _ => vec![],
    };
    let parked_record = Parked::new(Cause::GivenUp, why.to_string(), partition, record);
    let attempts = attempts as i32;
    dead_letter::park(
        tx,
        &[Parked {
            attempts,
            ..parked_record
        }],
    )?;
    Ok(outgoing)
}

/// What each record waits for; the rows of those that wait for nothing are locked. Where some are set aside already
/// (`look_behind`), what comes later about the same orders waits behind them.
fn find_waiting(
    tx: &mut Tx<'_>,
    handler: &mut dyn Handler,
    inputs: &[(&TopicPartition, &Input)],
    look_behind: bool,
) -> Result<Vec<Option<String>>> {
    let events: Vec<Event> = inputs
        .iter()
        .filter_map(|(_, input)| input.event.as_ref().ok().cloned())
        .collect();
    let mut waiting = handler.waits_for(tx, &events)?.into_iter();
    let mut before = match look_behind {
        true => {
            let keys: Vec<&[u8]> = inputs
                .iter()
                .filter_map(|(_, input)| input.record.key.as_deref())
                .collect();
            set_aside::find_waiting_keys(tx, &keys)?
        }
        false => HashSet::new(),
    };
    let mut reasons = Vec::with_capacity(inputs.len());
    for (_, input) in inputs {
        let held = match input.event {
            Ok(_) => waiting.next().flatten(),
            Err(_) => None,
        };
        let Some(key) = input.record.key.as_deref() else {
            reasons.push(held);
            continue;
        };
        let behind = || "what was set aside before about the same order".to_string();
        let why = held.or_else(|| before.contains(key).then(behind));
        if why.is_some() {
            before.insert(key.to_vec());
        }
        reasons.push(why);
    }
    Ok(reasons)
}

/// Hands the events that do not wait to the handler and parks what it refuses; returns what is to be sent.
fn handle(
    tx: &mut Tx<'_>,
    prefix: &str,
    handler: &mut dyn Handler,
    inputs: &[(&TopicPartition, &Input)],
    waiting: &[Option<String>],
) -> Result<Vec<Event>> {
    let free: Vec<_> = inputs
        .iter()
        .enumerate()
        .filter(|(place, _)| waiting.get(*place).is_none_or(Option::is_none))
        .map(|(_, input)| *input)
        .collect();
    let events: Vec<Event> = free
        .iter()
        .filter_map(|(_, input)| input.event.as_ref().ok().cloned())
        .collect();
    let handled = handler::handle(handler, tx, &events)?;
    let (mut outgoing, mut parked) = (handled.events, Vec::new());
    let mut outcomes = handled.outcomes.into_iter();
    for (
        partition,
        Input {
            record,
            delivery,
            event,
        },
    ) in free
    {
        let refusal = match event {
            Ok(event) => refused(event, outcomes.next()),
            Err(undecodable) => {
                outgoing.extend(answer(
                    tx,
                    handler,
                    prefix,
                    partition,
                    (undecodable, *delivery),
                )?);
                Some((Cause::Undecodable, undecodable.why.clone()))
            }
        };
        if let Some((cause, why)) = refusal {
            parked.push(Parked::new(cause, why, partition, record));
        }
    }
    dead_letter::park(tx, &parked)?;
    Ok(outgoing)
}

fn refused(event: &Event, outcome: Option<Outcome>) -> Option<(Cause, String)> {
    let why = match outcome? {
        Outcome::Changed => return None,
        Outcome::Refused(cause, why) => return Some((cause, why)),
        Outcome::Unchanged(why) => why,
        Outcome::GivenUp => "it was given up for good",
    };
    log::debug!(
        "order {}: {} changed nothing: {why}",
        event.order_id,
        event.type_name()
    );
    None
}

/// The answer to an undecodable request whose key is usable.
fn answer(
    tx: &mut Tx<'_>,
    handler: &mut dyn Handler,
    prefix: &str,
    partition: &TopicPartition,
    (undecodable, delivery): (&Undecodable, Delivery),
) -> Result<Vec<Event>> {
    let is_request =
        Topic::from_name(&partition.topic, prefix).is_some_and(|topic| topic.1 == Channel::Request);
    let Some(order_id) = undecodable.order_id.filter(|_| is_request) else {
        return Ok(vec![]);
    };
    let traceparent = undecodable.traceparent.clone();
    handler.give_up(
        tx,
        &GivenUp {
            order_id,
            traceparent,
            delivery: Delivery {
                attempt: 1,
                ..delivery
            },
        },
    )
}
