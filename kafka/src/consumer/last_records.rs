//! Partitions read backwards: the last record of a certain kind in each.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::admin::{Admin, OffsetSpec};
use crate::config::Config;
use crate::consumer::spans::{Span, SpanReader, unknown};
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
    let mut admin = Admin::new(config.clone(), interrupt.clone());
    let (mut windows, mut width) = (first_windows(&mut admin, topics, ends)?, FIRST_WINDOW);
    let mut reader = SpanReader::new(config, interrupt);
    let mut found = HashMap::new();
    while !windows.is_empty() {
        reader.assign(windows.iter().map(|(window, _)| window.clone()).collect());
        let mut moved = Instant::now();
        while let Some((partition, offset)) = reader.first() {
            let (partition, after) = (partition.to_string(), moved.elapsed());
            let late = after >= config.api_timeout;
            match reader.poll(&mut |partition, record| {
                if is_wanted(&record) {
                    found.insert(partition.clone(), record);
                }
                ControlFlow::Continue(())
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
        width = width.saturating_mul(WIDER);
        windows.retain(|(window, log_start)| {
            window.from > *log_start && !found.contains_key(&window.partition)
        });
        for (window, log_start) in &mut windows {
            window.until = window.from;
            window.from = window.until.saturating_sub(width).max(*log_start);
        }
    }
    Ok(found.into_iter().collect())
}

/// What is looked at first of each partition that holds anything, and where its log starts.
fn first_windows(
    admin: &mut Admin,
    topics: &[String],
    isolation: Isolation,
) -> Result<Vec<(Span, i64)>> {
    let described = admin.describe_topics(topics)?;
    if let Some(missing) = topics
        .iter()
        .find(|name| described.iter().all(|topic| topic.name != **name))
    {
        return Err(unknown(missing));
    }
    let mut partitions = Vec::new();
    for topic in described {
        let (name, topic_id): (Arc<str>, _) = (topic.name.into(), topic.id);
        partitions.extend((0..topic.partitions).map(|partition| TopicPartition {
            topic: name.clone(),
            topic_id,
            partition,
        }));
    }
    let places: Vec<_> = partitions.iter().map(TopicPartition::named).collect();
    let mut listed = |spec| -> Result<HashMap<_, _>> {
        let listed = admin.list_offsets(&places, spec, isolation)?.into_iter();
        Ok(listed
            .map(|found| ((found.topic, found.partition), found.offset))
            .collect())
    };
    let (starts, ends) = (listed(OffsetSpec::Earliest)?, listed(OffsetSpec::Latest)?);
    let mut windows = Vec::new();
    for partition in partitions {
        let at = partition.named();
        let (Some(start), Some(end)) = (starts.get(&at), ends.get(&at)) else {
            return Err(unknown(&partition.to_string()));
        };
        if start < end {
            let from = end.saturating_sub(FIRST_WINDOW).max(*start);
            windows.push((
                Span {
                    partition,
                    from,
                    until: *end,
                },
                *start,
            ));
        }
    }
    Ok(windows)
}
