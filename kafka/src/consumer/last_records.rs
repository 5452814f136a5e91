//! Partitions read backwards: the last record of a certain kind in each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admin::{Admin, ListedOffset, OffsetSpec};
use crate::config::Config;
use crate::consumer::{Consumer, FetchConfig, Polled};
use crate::error::{Error, ErrorCode, Result};
use crate::interrupt::Interrupt;
use crate::record::{Isolation, Record, TopicPartition};

/// So many offsets before the end are looked at first: mostly the last batch of a transaction and its marker are there.
const FIRST_WINDOW: i64 = 32;
/// Each further window is so many times as wide: far back is reached soon, and not much is read in vain.
const WIDER: i64 = 8;
/// Before a broker that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Finds in every partition of `topics` the last record that `is_wanted` among those that are committed or outside of
/// any transaction. A partition without one is left out.
///
/// `ends` says where partitions end. [`Isolation::ReadUncommitted`]: behind all that was written before this call;
/// where a transaction is open there, its end is waited for. [`Isolation::ReadCommitted`]: before the first open
/// transaction.
///
/// Partitions are read in windows from their ends, until a record is found or the log's start is reached: where none is
/// wanted, all of it. A batch that can't be read is logged and passed over.
///
/// # Errors
/// `Undecided` when nothing moved for [`Config::api_timeout`], because a transaction is open; `Refused` with
/// UNKNOWN_TOPIC_OR_PARTITION when a topic isn't there; those of [`Admin::list_offsets`] and [`Consumer::poll`].
pub fn last_records(
    config: &Config,
    interrupt: &Interrupt,
    topics: &[String],
    ends: Isolation,
    is_wanted: impl Fn(&Record) -> bool,
) -> Result<Vec<(TopicPartition, Record)>> {
    let mut searches = begin(&mut Admin::new(config.clone(), interrupt.clone()), topics, ends)?;
    let fetch = FetchConfig { isolation: Isolation::ReadCommitted, ..FetchConfig::default() };
    let mut tail =
        Tail { consumer: Consumer::new(config.clone(), interrupt.clone(), fetch), config, interrupt, is_wanted };
    let mut found = Vec::new();
    while !searches.is_empty() {
        tail.read_windows(&mut searches)?;
        let (done, open): (Vec<_>, Vec<_>) = searches.into_iter().partition(Search::is_over);
        found.extend(done.into_iter().filter_map(|search| Some((search.partition, search.found?))));
        searches = open.into_iter().map(Search::further_back).collect();
    }
    Ok(found)
}

/// One partition: offsets from `from` to before `until` are looked at now, those behind were in vain.
struct Search {
    partition: TopicPartition,
    log_start: i64,
    from: i64,
    until: i64,
    width: i64,
    found: Option<Record>,
}

impl Search {
    fn new(partition: TopicPartition, log_start: i64, end: i64) -> Search {
        let from = end.saturating_sub(FIRST_WINDOW).max(log_start);
        Search { partition, log_start, from, until: end, width: FIRST_WINDOW, found: None }
    }

    fn is_over(&self) -> bool {
        self.found.is_some() || self.from <= self.log_start
    }

    fn further_back(self) -> Search {
        let width = self.width.saturating_mul(WIDER);
        let until = self.from.min(self.until);
        Search { until, from: until.saturating_sub(width).max(self.log_start), width, ..self }
    }
}

/// The partitions of the topics that hold anything.
fn begin(admin: &mut Admin, topics: &[String], isolation: Isolation) -> Result<Vec<Search>> {
    let described = admin.describe_topics(topics)?;
    if let Some(missing) = topics.iter().find(|name| described.iter().all(|topic| topic.name != **name)) {
        return Err(unknown(missing));
    }
    let partitions: Vec<TopicPartition> = described
        .iter()
        .flat_map(|topic| {
            let (name, topic_id): (Arc<str>, _) = (topic.name.as_str().into(), topic.id);
            (0..topic.partitions).map(move |partition| TopicPartition { topic: name.clone(), topic_id, partition })
        })
        .collect();
    let places: Vec<_> = partitions.iter().map(|place| (place.topic.to_string(), place.partition)).collect();
    let starts = admin.list_offsets(&places, OffsetSpec::Earliest, isolation)?;
    let ends = admin.list_offsets(&places, OffsetSpec::Latest, isolation)?;
    let mut searches = Vec::new();
    for partition in partitions {
        let (start, end) = (offset_of(&starts, &partition)?, offset_of(&ends, &partition)?);
        if start < end {
            searches.push(Search::new(partition, start, end));
        }
    }
    Ok(searches)
}

fn offset_of(listed: &[ListedOffset], partition: &TopicPartition) -> Result<i64> {
    let is_its = |found: &&ListedOffset| found.topic == *partition.topic && found.partition == partition.partition;
    listed.iter().find(is_its).map(|found| found.offset).ok_or_else(|| unknown(&partition.to_string()))
}

fn unknown(what: &str) -> Error {
    let code = ErrorCode::UNKNOWN_TOPIC_OR_PARTITION;
    Error::Refused { code, api: "Metadata", broker: "any broker".to_owned(), detail: what.to_owned() }
}

struct Tail<'a, W> {
    consumer: Consumer,
    config: &'a Config,
    interrupt: &'a Interrupt,
    is_wanted: W,
}

impl<W: Fn(&Record) -> bool> Tail<'_, W> {
    /// Looks through the window of each search.
    fn read_windows(&mut self, searches: &mut [Search]) -> Result<()> {
        let windows: Vec<_> = searches.iter().map(|search| (search.partition.clone(), search.from)).collect();
        self.consumer.assign(&windows);
        let mut moved = Instant::now();
        while let Some((partition, offset)) = self.first_unfinished(searches) {
            let failure = match self.consumer.poll() {
                Ok(polled) => {
                    if !polled.is_empty() {
                        moved = Instant::now();
                    }
                    polled.into_iter().try_for_each(|polled| self.take(polled, searches))?;
                    None
                }
                // a broker that is away for a moment; what was read before is kept
                Err(error) if error.passes() => {
                    self.interrupt.sleep(PAUSE)?;
                    Some(error)
                }
                Err(error) => return Err(error),
            };
            let (after, partition) = (moved.elapsed(), partition.to_string());
            if after >= self.config.api_timeout {
                return Err(failure.unwrap_or(Error::Undecided { partition, offset, after }));
            }
        }
        Ok(())
    }

    /// Pauses what is read to the end of its window; a place that is not, and how far it is.
    fn first_unfinished(&mut self, searches: &[Search]) -> Option<(TopicPartition, i64)> {
        let mut first = None;
        for search in searches {
            match self.consumer.position(&search.partition) {
                Some(offset) if offset < search.until => first = first.or(Some((search.partition.clone(), offset))),
                _ => self.consumer.pause(&search.partition),
            }
        }
        first
    }

    fn take(&mut self, polled: Polled, searches: &mut [Search]) -> Result<()> {
        match polled {
            Polled::Records { partition, records, .. } => {
                let Some(search) = find(searches, &partition) else { return Ok(()) };
                let seen = |record: &Record| record.offset < search.until && (self.is_wanted)(record);
                if let Some(record) = records.into_iter().rfind(seen) {
                    search.found = Some(record);
                }
            }
            Polled::Corrupt { partition, last_offset, cause, .. } => {
                log::error!("{partition}: what ends at offset {last_offset} can't be read and is passed over: {cause}");
                let position = self.consumer.position(&partition).unwrap_or(0);
                self.consumer.seek(&partition, last_offset.max(position).saturating_add(1));
            }
            // the log was cut meanwhile, at its beginning or its end
            Polled::OutOfRange { partition, offset, log_start, high_watermark } => {
                self.consumer.seek(&partition, offset.clamp(log_start, high_watermark.max(log_start)));
                if let Some(search) = find(searches, &partition) {
                    search.log_start = log_start;
                    search.until = search.until.min(high_watermark);
                }
            }
            Polled::Truncated { partition, end, .. } => {
                self.consumer.seek(&partition, end);
                if let Some(search) = find(searches, &partition) {
                    search.until = search.until.min(end);
                }
            }
            Polled::Refused { error, .. } => return Err(error),
            // without a group
            Polled::Assigned { .. } => {}
            Polled::UnknownTopic { partition } => return Err(unknown(&partition.to_string())),
        }
        Ok(())
    }
}

fn find<'s>(searches: &'s mut [Search], partition: &TopicPartition) -> Option<&'s mut Search> {
    searches.iter_mut().find(|search| search.partition == *partition)
}
