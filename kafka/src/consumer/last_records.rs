//! Partitions read backwards: the last record of a certain kind in each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::admin::{Admin, ListedOffset, OffsetSpec};
use crate::config::Config;
use crate::consumer::spans::{Reading, Span, SpanReader, unknown};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::record::{Isolation, Record, TopicPartition};

/// So many offsets before the end are looked at first: mostly the last batch of a transaction and its marker are there.
const FIRST_WINDOW: i64 = 32;
/// Each further window is so many times as wide: far back is reached soon, and not much is read in vain.
const WIDER: i64 = 8;

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
/// UNKNOWN_TOPIC_OR_PARTITION when a topic isn't there; those of [`Admin::list_offsets`] and [`Consumer::poll`](crate::Consumer::poll).
pub fn last_records(
    config: &Config,
    interrupt: &Interrupt,
    topics: &[String],
    ends: Isolation,
    is_wanted: impl Fn(&Record) -> bool,
) -> Result<Vec<(TopicPartition, Record)>> {
    let mut searches = begin(
        &mut Admin::new(config.clone(), interrupt.clone()),
        topics,
        ends,
    )?;
    let mut reader = SpanReader::new(config, interrupt);
    let mut found = HashMap::new();
    while !searches.is_empty() {
        reader.assign(searches.iter().map(Search::window).collect());
        let mut moved = Instant::now();
        while let Some((partition, offset)) = reader.first() {
            let (partition, after) = (partition.to_string(), moved.elapsed());
            let late = after >= config.api_timeout;
            match reader.poll(&mut |partition, record| {
                if is_wanted(&record) {
                    found.insert(partition.clone(), record);
                }
                Reading::On
            }) {
                Ok(true) => moved = Instant::now(),
                Ok(false) if late => {
                    return Err(Error::Undecided {
                        partition,
                        offset,
                        after,
                    });
                }
                Err(error) if late || !error.passes() => return Err(error),
                _ => {}
            }
        }
        searches.retain(|search| {
            search.from > search.log_start && !found.contains_key(&search.partition)
        });
        searches.iter_mut().for_each(Search::go_further_back);
    }
    Ok(found.into_iter().collect())
}

/// One partition: offsets from `from` to before `until` are looked at now, those behind were in vain.
struct Search {
    partition: TopicPartition,
    log_start: i64,
    from: i64,
    until: i64,
    width: i64,
}

impl Search {
    fn new(partition: TopicPartition, log_start: i64, end: i64) -> Search {
        let from = end.saturating_sub(FIRST_WINDOW).max(log_start);
        Search {
            partition,
            log_start,
            from,
            until: end,
            width: FIRST_WINDOW,
        }
    }

    fn window(&self) -> Span {
        Span {
            partition: self.partition.clone(),
            from: self.from,
            until: self.until,
        }
    }

    fn go_further_back(&mut self) {
        self.width = self.width.saturating_mul(WIDER);
        self.until = self.from;
        self.from = self.until.saturating_sub(self.width).max(self.log_start);
    }
}

/// The partitions of the topics that hold anything.
fn begin(admin: &mut Admin, topics: &[String], isolation: Isolation) -> Result<Vec<Search>> {
    let described = admin.describe_topics(topics)?;
    if let Some(missing) = topics
        .iter()
        .find(|name| described.iter().all(|topic| topic.name != **name))
    {
        return Err(unknown(missing));
    }
    let partitions: Vec<TopicPartition> = described
        .iter()
        .flat_map(|topic| {
            let (name, topic_id): (Arc<str>, _) = (topic.name.as_str().into(), topic.id);
            (0..topic.partitions).map(move |partition| TopicPartition {
                topic: name.clone(),
                topic_id,
                partition,
            })
        })
        .collect();
    let places: Vec<_> = partitions
        .iter()
        .map(|place| (place.topic.to_string(), place.partition))
        .collect();
    let starts = admin.list_offsets(&places, OffsetSpec::Earliest, isolation)?;
    let ends = admin.list_offsets(&places, OffsetSpec::Latest, isolation)?;
    let mut searches = Vec::new();
    for partition in partitions {
        let (start, end) = (
            offset_of(&starts, &partition)?,
            offset_of(&ends, &partition)?,
        );
        if start < end {
            searches.push(Search::new(partition, start, end));
        }
    }
    Ok(searches)
}

fn offset_of(listed: &[ListedOffset], partition: &TopicPartition) -> Result<i64> {
    let is_its = |found: &&ListedOffset| {
        found.topic == *partition.topic && found.partition == partition.partition
    };
    listed
        .iter()
        .find(is_its)
        .map(|found| found.offset)
        .ok_or_else(|| unknown(&partition.to_string()))
}
