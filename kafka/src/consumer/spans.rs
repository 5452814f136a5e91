//! Partitions read forwards, from one offset to another.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

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

/// What is to happen after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The next one.
    On,
    /// Nothing more of this span.
    NextSpan,
    /// Nothing more at all.
    Enough,
}

/// Hands the committed records of these spans to `take`, each span's in offset order. Spans of one partition are read
/// one after another, in the order given.
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
    take: impl FnMut(&TopicPartition, Record) -> Reading,
) -> Result<()> {
    let fetch = FetchConfig { isolation: Isolation::ReadCommitted, ..FetchConfig::default() };
    let consumer = Consumer::new(config.clone(), interrupt.clone(), fetch);
    let mut waiting: HashMap<TopicPartition, VecDeque<Span>> = HashMap::new();
    for span in spans {
        waiting.entry(span.partition.clone()).or_default().push_back(span);
    }
    let mut reader = Reader { consumer, waiting, take };
    reader.start();
    reader.read(interrupt, limit)
}

struct Reader<T> {
    consumer: Consumer,
    /// The span that is read now comes first.
    waiting: HashMap<TopicPartition, VecDeque<Span>>,
    take: T,
}

impl<T: FnMut(&TopicPartition, Record) -> Reading> Reader<T> {
    fn start(&mut self) {
        let first =
            |(partition, spans): (&TopicPartition, &VecDeque<Span>)| Some((partition.clone(), spans.front()?.from));
        let places: Vec<_> = self.waiting.iter().filter_map(first).collect();
        self.consumer.assign(&places);
        places.iter().for_each(|(partition, _)| self.leave_finished(partition));
    }

    fn read(&mut self, interrupt: &Interrupt, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while let Some(partition) = self.waiting.keys().next() {
            let (after, broker) = (begun.elapsed(), partition.to_string());
            if after >= limit {
                return Err(Error::Timeout { api: "Fetch", broker, after });
            }
            match self.consumer.poll() {
                Ok(polled) => {
                    for polled in polled {
                        if self.handle(polled)?.is_break() {
                            return Ok(());
                        }
                    }
                }
                // a broker that is away for a moment; what was read before is kept
                Err(error) if error.passes() => interrupt.sleep(PAUSE)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn handle(&mut self, polled: Polled) -> Result<ControlFlow<()>> {
        match polled {
            Polled::Records { partition, records, .. } => {
                if self.hand_over(&partition, records) == Reading::Enough {
                    return Ok(ControlFlow::Break(()));
                }
                self.leave_finished(&partition);
            }
            Polled::Corrupt { partition, last_offset, cause, .. } => {
                log::error!("{partition}: what ends at offset {last_offset} can't be read and is passed over: {cause}");
                let position = self.consumer.position(&partition).unwrap_or(0);
                self.consumer.seek(&partition, last_offset.max(position).saturating_add(1));
                self.leave_finished(&partition);
            }
            Polled::OutOfRange { partition, offset, log_start, .. } => {
                // cut at its beginning: what is left follows; cut at its end: nothing does
                self.consumer.seek(&partition, if offset < log_start { log_start } else { i64::MAX });
                self.leave_finished(&partition);
            }
            // what stands there now is read, too
            Polled::Truncated { partition, end, .. } => self.consumer.seek(&partition, end),
            Polled::Refused { error, .. } => return Err(error),
            // without a group
            Polled::Assigned { .. } => {}
            Polled::UnknownTopic { partition } => {
                let (code, detail) = (ErrorCode::UNKNOWN_TOPIC_OR_PARTITION, partition.to_string());
                return Err(Error::Refused { code, api: "Fetch", broker: "any broker".into(), detail });
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Records up to the end of the partition's span.
    fn hand_over(&mut self, partition: &TopicPartition, records: Vec<Record>) -> Reading {
        let Some(until) = self.span(partition).map(|span| span.until) else { return Reading::On };
        for record in records.into_iter().take_while(|record| record.offset < until) {
            match (self.take)(partition, record) {
                Reading::On => {}
                Reading::NextSpan => {
                    // nothing of it is left to be read
                    self.waiting.get_mut(partition).and_then(|spans| spans.front_mut()).into_iter().for_each(|span| {
                        span.until = span.from;
                    });
                    return Reading::NextSpan;
                }
                Reading::Enough => return Reading::Enough,
            }
        }
        Reading::On
    }

    fn span(&self, partition: &TopicPartition) -> Option<&Span> {
        self.waiting.get(partition)?.front()
    }

    /// Goes on to the partition's next span that is not read to its end; pauses a partition that has none.
    fn leave_finished(&mut self, partition: &TopicPartition) {
        loop {
            let position = self.consumer.position(partition).unwrap_or(i64::MAX);
            let Some(spans) = self.waiting.get_mut(partition) else { return };
            if spans.front().is_some_and(|span| position < span.until) {
                return;
            }
            spans.pop_front();
            match spans.front() {
                Some(next) => self.consumer.seek(partition, next.from),
                None => {
                    self.waiting.remove(partition);
                    self.consumer.pause(partition);
                    return;
                }
            }
        }
    }
}
