//! Producers: idempotent, and transactional with an identity that fences its predecessors.

pub(crate) mod partitioner;
pub(crate) mod sender;
pub(crate) mod transaction;

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use kafka_protocol::messages::{
    EndTxnRequest, InitProducerIdRequest, InitProducerIdResponse, ProducerId, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use crate::config::{Config, millis};
use crate::error::{Error, ErrorCode, ErrorKind, Result};
use crate::interrupt::Interrupt;
use crate::net::backoff::Backoff;
use crate::net::cluster::{Cluster, CoordinatorKey, Retry};
use crate::producer::sender::{Delivery, Queues, Sequences, Written, split};
use crate::producer::transaction::Transaction;
use crate::record::ProducerRecord;
use crate::wire::batch::Writer;

/// Writes records, acknowledged by all in-sync replicas (acks=all), each once.
///
/// A producer has an identity (an id and an epoch) from [`initialise`](Producer::initialise) on, until a call leaves open
/// what the broker has done. Then it is *not initialised*, and only `initialise` helps: the broker ends what the old epoch left
/// open and lets nothing of it in afterwards. To go on under the old epoch would be wrong: a batch that arrives late
/// would be taken into the next transaction, and that transaction's own batch dropped as its duplicate.
pub struct Producer {
    pub(crate) cluster: Cluster,
    transactional: Option<Transactional>,
    pub(crate) state: Option<State>,
    /// Its last identity, also after it was given up.
    last_identity: Option<ProducerIdentity>,
    /// What the coordinator has open under it.
    pub(crate) open: Open,
    /// A batch sent under it may still arrive.
    is_astray: bool,
    /// Goes up with every send, so that records without a key are spread.
    sends: u32,
}

struct Transactional {
    id: String,
    timeout: Duration,
}

/// Whether a transaction is open under an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// None was begun, or its end was confirmed.
    No,
    /// One was begun for certain, and its end was certainly not executed.
    Yes,
    /// An answer that would tell is lost.
    Maybe,
}

/// What an initialised producer knows about itself.
pub(crate) struct State {
    pub(crate) identity: ProducerIdentity,
    pub(crate) sequences: Sequences,
}

/// The number the brokers know a producer by, and which of its lives this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// The producer id. For a transactional id it stays, until its epochs are used up.
    pub id: i64,
    /// The epoch. Each `initialise` of a transactional id raises it, which fences the ones before.
    pub epoch: i16,
}

/// Takes over, or where there are no transactions, asks for a new one.
const NO_IDENTITY: ProducerIdentity = ProducerIdentity { id: -1, epoch: -1 };

impl Producer {
    /// A transactional producer, without any I/O yet: call [`initialise`](Producer::initialise) first.
    ///
    /// `transaction_timeout` is how long the broker lets a transaction stay open before it aborts it (`transaction.timeout.ms`; the
    /// broker refuses more than its `transaction.max.timeout.ms`, 15 minutes by default).
    pub fn transactional(
        config: Config,
        interrupt: Interrupt,
        transactional_id: impl Into<String>,
        transaction_timeout: Duration,
    ) -> Producer {
        let transactional = Transactional {
            id: transactional_id.into(),
            timeout: transaction_timeout,
        };
        Producer::with(config, interrupt, Some(transactional))
    }

    /// A producer without transactions, without any I/O yet. It initialises itself at the first send.
    pub fn idempotent(config: Config, interrupt: Interrupt) -> Producer {
        Producer::with(config, interrupt, None)
    }

    fn with(
        config: Config,
        interrupt: Interrupt,
        transactional: Option<Transactional>,
    ) -> Producer {
        Producer {
            cluster: Cluster::new(config, interrupt),
            transactional,
            state: None,
            last_identity: None,
            open: Open::No,
            is_astray: false,
            sends: 0,
        }
    }

    /// Gets an identity (InitProducerId, KIP-98). The first time, a transactional id is taken over: what a predecessor
    /// with the same id left open is aborted, which is waited for, and the predecessor is fenced. Later the producer
    /// shows the identity it had (KIP-360): what it left open itself is aborted, and one that another has taken over
    /// from meanwhile gets an error of kind `Fenced`, now and for good.
    ///
    /// # Errors
    /// `Refused` (PRODUCER_FENCED; INVALID_TRANSACTION_TIMEOUT, TRANSACTIONAL_ID_AUTHORIZATION_FAILED, …;
    /// CONCURRENT_TRANSACTIONS and coordinator errors only when they last for [`Config::api_timeout`]), those of the
    /// connection, likewise retried.
    pub fn initialise(&mut self) -> Result<ProducerIdentity> {
        self.state = None;
        // after a failure topics may be others than they were, with fewer partitions
        self.cluster.forget_topics();
        let mut backoff = self.cluster.backoff();
        let answer = match self.last_identity.filter(|_| self.transactional.is_some()) {
            Some(known) => self.init_again(known, &mut backoff)?,
            None => self.init_as(NO_IDENTITY, &mut backoff)?,
        };
        let identity = ProducerIdentity {
            id: answer.producer_id.0,
            epoch: answer.producer_epoch,
        };
        self.state = Some(State {
            identity,
            sequences: Sequences::default(),
        });
        self.last_identity = Some(identity);
        (self.open, self.is_astray) = (Open::No, false);
        Ok(identity)
    }

    fn init_again(
        &mut self,
        known: ProducerIdentity,
        backoff: &mut Backoff,
    ) -> Result<InitProducerIdResponse> {
        let mut fenced = None;
        if self.is_astray {
            // what may still arrive must meet a later epoch in its partition: an abort by InitProducerId writes one, EndTxn does not
            match self.init_as(known, backoff) {
                Err(error) if error.kind() == ErrorKind::Fenced => fenced = Some(error),
                answered => return answered,
            }
        } else if self.open == Open::No || self.abort_as(known, backoff)? {
            return self.init_as(known, backoff);
        }
        // Kafka 3 ends an open transaction, for InitProducerId or for its age, under the next epoch, and then no longer knows the
        // one before. Whoever took over from an open transaction has got one that is higher still.
        let next = ProducerIdentity {
            epoch: known.epoch.saturating_add(1),
            ..known
        };
        if self.open == Open::Yes && self.abort_as(next, backoff)? {
            return self.init_as(next, backoff);
        }
        Err(fenced.unwrap_or_else(|| {
            let (code, why) = (ErrorCode::PRODUCER_FENCED, "another has taken over");
            let coordinator = self.coordinator().map(|key| key.to_string());
            Error::refused::<InitProducerIdRequest>(code, &coordinator.unwrap_or_default(), why)
        }))
    }

    fn init_as(
        &mut self,
        ProducerIdentity { id, epoch }: ProducerIdentity,
        backoff: &mut Backoff,
    ) -> Result<InitProducerIdResponse> {
        let timeout = self
            .transactional
            .as_ref()
            .map_or(Duration::ZERO, |settings| settings.timeout);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_transaction_timeout_ms(millis(timeout))
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch);
        if let Some(coordinator) = self.coordinator() {
            // Doing it twice is the same as once where the own identity is shown; else it raises the epoch twice, which harms nobody.
            return self.cluster.call_coordinator(
                &coordinator,
                &request,
                Retry::Idempotent,
                backoff,
            );
        }
        backoff.retry(|backoff| {
            let (broker, answer) = self.cluster.call_any(&request, backoff.attempt())?;
            Error::check::<InitProducerIdRequest>(answer.error_code, &broker, "")?;
            Ok(answer)
        })
    }

    /// Aborts what is open under this identity; false: the coordinator has another one by now. Unlike InitProducerId this compares the
    /// epoch before it does anything, so it can't disturb a successor.
    fn abort_as(&mut self, identity: ProducerIdentity, backoff: &mut Backoff) -> Result<bool> {
        let request = self.end_request(identity, false);
        let coordinator = self.coordinator().ok_or(Error::NotInitialised)?;
        let ended =
            self.cluster
                .call_coordinator(&coordinator, &request, Retry::Idempotent, backoff);
        ended.map(|_| true).or_else(|error| match error.code() {
            // nothing is open: it was never begun, or has been committed; what became of the id is for InitProducerId to say
            Some(ErrorCode::INVALID_TXN_STATE | ErrorCode::INVALID_PRODUCER_ID_MAPPING) => Ok(true),
            Some(code) if code.kind() == ErrorKind::Fenced => Ok(false),
            _ => Err(error),
        })
    }

    pub(crate) fn end_request(&self, identity: ProducerIdentity, committed: bool) -> EndTxnRequest {
        EndTxnRequest::default()
            .with_transactional_id(self.transactional_id().unwrap_or_default())
            .with_producer_id(ProducerId(identity.id))
            .with_producer_epoch(identity.epoch)
            .with_committed(committed)
    }

    /// Its identity, or `None` while it is not initialised.
    pub fn identity(&self) -> Option<ProducerIdentity> {
        self.state.as_ref().map(|state| state.identity)
    }

    /// Begins a transaction. Nothing is sent until the first record or offset.
    ///
    /// # Errors
    /// `NotInitialised`, also after every call that left open what the broker has done; `Invalid` for an idempotent
    /// producer.
    pub fn begin(&mut self) -> Result<Transaction<'_>> {
        if self.transactional.is_none() {
            return Err(Error::Invalid(
                "this producer has no transactional id".to_owned(),
            ));
        }
        self.identity().ok_or(Error::NotInitialised)?;
        Ok(Transaction::new(self))
    }

    /// Writes records outside of transactions, each once, as long as this call succeeds: a lost answer is cured by
    /// sending the same batch again, which the broker knows by its sequence number. Returns where each of them is, in
    /// their order.
    ///
    /// Where a partition has lost what an earlier call wrote, as by an unclean election, it refuses what follows. The
    /// producer then goes on under its next epoch (KIP-360). What was lost is not written again, and a warning in the log
    /// is all that says so. Where a part of this call was lost, the call fails.
    ///
    /// After an error some of the records may be written; sending them again may write those twice.
    ///
    /// # Errors
    /// `Refused` (MESSAGE_TOO_LARGE, …), `Invalid` for a partition that does not exist or a transactional producer,
    /// what can't be retried or lasted for [`Config::delivery_timeout`].
    pub fn send(&mut self, records: impl AsRef<[ProducerRecord]>) -> Result<Vec<Written>> {
        let records = records.as_ref();
        if self.transactional.is_some() {
            return Err(Error::Invalid(
                "a transactional producer sends in a transaction".to_owned(),
            ));
        }
        if self.state.is_none() {
            self.initialise()?;
        }
        let queues = self.split(records)?;
        self.deliver(queues, records.len())
    }

    /// Sorts records by partition. Nothing is sent but metadata requests.
    pub(crate) fn split<'r>(&mut self, records: &'r [ProducerRecord]) -> Result<Queues<'r>> {
        self.sends = self.sends.wrapping_add(1);
        split(&mut self.cluster, records, self.sends)
    }

    /// Writes sorted records under the current identity. When it is left open what became of them, or the epoch is at
    /// its end, the producer is not initialised afterwards.
    pub(crate) fn deliver(&mut self, queues: Queues<'_>, count: usize) -> Result<Vec<Written>> {
        let transactional_id = self.transactional_id();
        let whole = self.cluster.config().delivery_timeout;
        let limit = self
            .transactional
            .as_ref()
            .map_or(whole, |settings| whole.min(settings.timeout));
        let state = self.state.as_mut().ok_or(Error::NotInitialised)?;
        let writer = Writer {
            producer_id: state.identity.id,
            epoch: state.identity.epoch,
            base_sequence: 0,
            transactional: transactional_id.is_some(),
            compression: self.cluster.config().compression,
        };
        let mut delivery = Delivery {
            cluster: &mut self.cluster,
            sequences: &mut state.sequences,
            writer,
            transactional_id,
            queues,
            written: vec![
                Written {
                    partition: -1,
                    offset: None
                };
                count
            ],
            now: SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_millis() as i64),
            acknowledged: HashSet::new(),
            is_astray: false,
        };
        let done = delivery.run(limit);
        let Delivery {
            written,
            is_astray,
            writer,
            ..
        } = delivery;
        state.identity.epoch = writer.epoch;
        if is_astray {
            (self.state, self.is_astray) = (None, true);
        }
        done.map(|()| written)
    }

    /// Gives up the identity after an error of a coordinator's request, where the error leaves no other way.
    pub(crate) fn forget_identity_unless_refused(&mut self, error: Error) -> Error {
        if error.code().is_none_or(ErrorCode::ends_epoch) {
            self.state = None;
        }
        error
    }

    pub(crate) fn transactional_id(&self) -> Option<TransactionalId> {
        let id = &self.transactional.as_ref()?.id;
        Some(TransactionalId(StrBytes::from_string(id.clone())))
    }

    pub(crate) fn coordinator(&self) -> Option<CoordinatorKey> {
        let id = &self.transactional.as_ref()?.id;
        Some(CoordinatorKey::Transaction(id.clone()))
    }
}
