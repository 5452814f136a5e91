//! Partitions read forwards, from one offset to another.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kafka_protocol::messages::FetchRequest;

use crate::config::Config;
use crate::consumer::{Consumer, FetchConfig, Polled};
use crate::error::{Error, ErrorCode, Result};
use crate::interrupt::Interrupt;
use crate::record::{Isolation, Record, TopicPartition};

/// Before a broker that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// A run of offsets of one partition: from `from` to before `until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which partition.
    pub partition: TopicPartition,
    /// The first offset.
    pub from: i64,
    /// The offset behind the last.
    pub until: i64,
}

/// Hands the committed records of these spans to `take`, each span's in offset order. Spans of one partition are read
/// one after another, in the order given. Where it breaks, nothing more is read.
///
/// A batch that can't be read is logged and passed over; so is what Kafka has removed.
///
/// # Errors
/// `Timeout` when not all is read within `limit`; `Refused` with UNKNOWN_TOPIC_OR_PARTITION when a topic is gone; those
/// of [`Consumer::poll`] that do not pass.
pub fn read_spans(
    config: &Config,
    interrupt: &Interrupt,
    spans: Vec<Span>,
    limit: Duration,
    mut take: impl FnMut(&TopicPartition, Record) -> ControlFlow<()>,
) -> Result<()> {
    let (begun, mut reader) = (Instant::now(), SpanReader::new(config, interrupt));
    reader.assign(spans);
    while let Some((partition, _)) = reader.first() {
        let after = begun.elapsed();
        if after >= limit {
            return Err(Error::Timeout {
                api: "Fetch",
                broker: partition.to_string(),
                after,
            });
        }
        if let Err(error) = reader.poll(&mut take)
            && !error.passes()
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Reads spans, poll by poll.
pub(crate) struct SpanReader {
    consumer: Consumer,
    interrupt: Interrupt,
    /// The span that is read now comes first.
    waiting: HashMap<TopicPartition, VecDeque<Span>>,
}

impl SpanReader {
    pub(crate) fn new(config: &Config, interrupt: &Interrupt) -> SpanReader {
        let fetch = FetchConfig {
            isolation: Isolation::ReadCommitted,
            ..FetchConfig::default()
        };
        let consumer = Consumer::new(config.clone(), interrupt.clone(), fetch);
        SpanReader {
            consumer,
            interrupt: interrupt.clone(),
            waiting: HashMap::new(),
        }
    }

    /// From now on these.
    pub(crate) fn assign(&mut self, spans: Vec<Span>) {
        self.waiting.clear();
        for span in spans {
            self.waiting
                .entry(span.partition.clone())
                .or_default()
                .push_back(span);
        }
        let firsts = self.waiting.values().filter_map(|spans| spans.front());
        let places: Vec<_> = firsts
            .map(|span| (span.partition.clone(), span.from))
            .collect();
        self.consumer.assign(&places);
        places
            .iter()
            .for_each(|(partition, _)| self.leave_finished(partition));
    }

    /// A partition that is not read to its end, and how far it is; none when all are.
    pub(crate) fn first(&self) -> Option<(&TopicPartition, i64)> {
        let partition = self.waiting.keys().next()?;
        Some((partition, self.consumer.position(partition).unwrap_or(0)))
    }

    /// One poll; true if anything was found.
    ///
    /// # Errors
    /// Those of [`Consumer::poll`], those that pass after a pause: a broker is away for a moment, and what was read
    /// before is kept.
    pub(crate) fn poll(
        &mut self,
        take: &mut impl FnMut(&TopicPartition, Record) -> ControlFlow<()>,
    ) -> Result<bool> {
        let polled = match self.consumer.poll() {
            Err(error) if error.passes() => {
                self.interrupt.sleep(PAUSE)?;
                return Err(error);
            }
            polled => polled?,
        };
        let found = !polled.is_empty();
        for polled in polled {
            self.handle(polled, take)?;
        }
        Ok(found)
    }

    fn handle(
        &mut self,
        polled: Polled,
        take: &mut impl FnMut(&TopicPartition, Record) -> ControlFlow<()>,
    ) -> Result<()> {
        let (partition, beyond) = match polled {
            Polled::Records {
                partition, records, ..
            } => {
                self.hand_over(&partition, records, take);
                (partition, None)
            }
            Polled::Corrupt {
                partition,
                last_offset,
                cause,
                ..
            } => {
                log::error!(
                    "{partition}: what ends at offset {last_offset} can't be read and is passed over: {cause}"
                );
                let position = self.consumer.position(&partition).unwrap_or(0);
                (partition, Some(last_offset.max(position).saturating_add(1)))
            }
            // cut at its beginning: what is left follows
            Polled::OutOfRange {
                partition,
                offset,
                log_start,
                ..
            } if offset < log_start => (partition, Some(log_start)),
            // cut at its end, or what was behind it has been taken back: nothing follows
            Polled::OutOfRange { partition, .. } | Polled::Truncated { partition, .. } => {
                (partition, Some(i64::MAX))
            }
            Polled::Refused { error, .. } => return Err(error),
            // without a group
            Polled::Assigned { .. } => return Ok(()),
            Polled::UnknownTopic { partition } => return Err(unknown(&partition.to_string())),
        };
        if let Some(offset) = beyond {
            self.consumer.seek(&partition, offset);
        }
        self.leave_finished(&partition);
        Ok(())
    }

    /// Records up to the end of the partition's span.
    fn hand_over(
        &mut self,
        partition: &TopicPartition,
        records: Vec<Record>,
        take: &mut impl FnMut(&TopicPartition, Record) -> ControlFlow<()>,
    ) {
        let Some(span) = self
            .waiting
            .get_mut(partition)
            .and_then(|spans| spans.front_mut())
        else {
            return;
        };
        for record in records
            .into_iter()
            .take_while(|record| record.offset < span.until)
        {
            if take(partition, record).is_break() {
                return self.waiting.clear();
            }
        }
    }

    /// Goes on to the partition's next span that is not read to its end; pauses a partition that has none.
    fn leave_finished(&mut self, partition: &TopicPartition) {
        let position = self.consumer.position(partition).unwrap_or(i64::MAX);
        let Some(spans) = self.waiting.get_mut(partition) else {
            return;
        };
        if spans.front().is_some_and(|span| position < span.until) {
            return;
        }
        spans.pop_front();
        match spans.front() {
            Some(next) => {
                self.consumer.seek(partition, next.from);
                self.leave_finished(partition);
            }
            None => {
                self.waiting.remove(partition);
                self.consumer.pause(partition);
            }
        }
    }
}

/// There is no such topic, or none such any more.
pub(crate) fn unknown(what: &str) -> Error {
    Error::refused::<FetchRequest>(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, "any broker", what)
}
