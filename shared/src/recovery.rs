//! Looks in Kafka for the requests of orders that order's database has lost. No transaction is open meanwhile.
//!
//! An answer says where its request lay (header `answers`): that record is read. The other side's request was published in the
//! same transaction under the same timestamp: its topic is read from that timestamp on. What is not found so (an answer that
//! names no request, a clock that was set back, a topic made anew) is looked for by time: from the order's id to the answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::{Admin, Interrupt, Isolation, OffsetSpec, Reading, Record, Span, TopicPartition, read_spans};
use uuid::Uuid;

use crate::config::Config;
use crate::delivery;
use crate::envelope;
use crate::error::{Error, Result};
use crate::event::{Body, Channel, Event, Side, Topic};
use crate::health;

/// All reading of one call must end within this: shorter than a group waits for a member (45 s).
const LIMIT: Duration = Duration::from_secs(40);
/// Clocks of services, and those of a service before and after a restart, differ by less.
const SKEW_MILLIS: i64 = 10_000;
/// So many records of a side are looked through by time at most: a minute and more of orders at saturation, read within seconds.
const MOST: usize = 1_000_000;
/// Offsets that lie further apart are read as spans of their own: a fetch brings about so many records.
const GAP: i64 = 2_000;
const SIDES: [Side; 2] = [Side::Payment, Side::Stock];

/// What Kafka still holds of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The request to payment.
    pub payment: Option<Event>,
    /// The request to stock.
    pub stock: Option<Event>,
    /// Whether a record about the order lies there that is no request.
    pub unreadable: bool,
}

impl Found {
    fn request(&self, side: Side) -> Option<&Event> {
        match side {
            Side::Payment => self.payment.as_ref(),
            Side::Stock => self.stock.as_ref(),
        }
    }

    fn is_whole(&self) -> bool {
        self.payment.is_some() && self.stock.is_some()
    }

    fn take(&mut self, request: Event) {
        let place = if request.side == Side::Payment { &mut self.payment } else { &mut self.stock };
        place.get_or_insert(request);
    }
}

/// Reads requests.
#[derive(Clone)]
pub struct Recovery {
    kafka: kafka::Config,
    interrupt: Interrupt,
    prefix: String,
}

impl Recovery {
    /// Connects to nothing yet. `interrupt` ends its Kafka calls.
    pub fn new(config: &Config, interrupt: Interrupt) -> Recovery {
        Recovery { kafka: config.kafka("order-recovery"), interrupt, prefix: config.topic_prefix.clone() }
    }

    /// What Kafka holds of the orders that these answers are about.
    ///
    /// # Errors
    /// Kafka's; a topic that is not there, or reading that takes too long, is one of them.
    pub fn find(&self, answers: &[Event]) -> Result<HashMap<Uuid, Found>> {
        health::beat_before(2 * LIMIT);
        let found = answers.iter().map(|answer| (answer.order_id, Found::default())).collect();
        let logs = Logs::describe(Admin::new(self.kafka.clone(), self.interrupt.clone()), &self.prefix)?;
        let mut search = Search { recovery: self, logs, found, until: Instant::now() + LIMIT };
        search.read_answered(answers)?;
        search.read_siblings()?;
        search.read_by_time(answers)?;
        Ok(search.found)
    }
}

/// The partitions of both request topics.
struct Logs {
    admin: Admin,
    partitions: Vec<Log>,
}

struct Log {
    side: Side,
    partition: TopicPartition,
    start: i64,
    end: i64,
}

impl Logs {
    fn describe(mut admin: Admin, prefix: &str) -> Result<Logs> {
        let mut partitions = Vec::new();
        for side in SIDES {
            let name = format!("{prefix}{}", Topic(side, Channel::Request).name());
            let described = admin.describe_topics(std::slice::from_ref(&name))?;
            // not gone for certain: brokers learn of topics one after another, and the services make those that are missing
            let topic = described.first().ok_or_else(|| kafka::Error::Invalid(format!("topic {name} is not there")))?;
            let (name, topic_id): (Arc<str>, _) = (topic.name.as_str().into(), topic.id);
            let of = |partition| TopicPartition { topic: name.clone(), topic_id, partition };
            let log = |partition| Log { side, partition: of(partition), start: 0, end: 0 };
            partitions.extend((0..topic.partitions).map(log));
        }
        let mut logs = Logs { admin, partitions };
        for (log, start) in logs.list(|_| true, OffsetSpec::Earliest)? {
            logs.partitions[log].start = start;
        }
        for (log, end) in logs.list(|_| true, OffsetSpec::Latest)? {
            logs.partitions[log].end = end;
        }
        Ok(logs)
    }

    /// The offset of each of these logs, by its place; -1: none.
    fn list(&mut self, which: impl Fn(&Log) -> bool, spec: OffsetSpec) -> Result<Vec<(usize, i64)>> {
        let wanted: Vec<usize> = (0..self.partitions.len()).filter(|place| which(&self.partitions[*place])).collect();
        let name = |place: &usize| {
            let partition = &self.partitions[*place].partition;
            (partition.topic.to_string(), partition.partition)
        };
        let names: Vec<(String, i32)> = wanted.iter().map(name).collect();
        let listed = self.admin.list_offsets(&names, spec, Isolation::ReadCommitted)?;
        let mut offsets = Vec::with_capacity(wanted.len());
        for (place, (topic, partition)) in wanted.into_iter().zip(names) {
            let its = listed.iter().find(|offset| offset.topic == topic && offset.partition == partition);
            let its = its.ok_or_else(|| kafka::Error::Invalid(format!("{topic}-{partition} is not there")))?;
            offsets.push((place, its.offset));
        }
        Ok(offsets)
    }

    /// From the first record of this time or later to the end, in each log of a side.
    fn since(&mut self, side: Side, millis: i64) -> Result<Vec<Span>> {
        let from = self.list(|log| log.side == side, OffsetSpec::Timestamp(millis.max(0)))?;
        let span = |(place, from): &(usize, i64)| {
            let log = &self.partitions[*place];
            Span { partition: log.partition.clone(), from: *from, until: log.end }
        };
        Ok(from.iter().filter(|(_, from)| *from >= 0).map(span).collect())
    }
}

struct Search<'a> {
    recovery: &'a Recovery,
    logs: Logs,
    /// By order.
    found: HashMap<Uuid, Found>,
    until: Instant,
}

impl Search<'_> {
    /// The records that the answers name.
    fn read_answered(&mut self, answers: &[Event]) -> Result<()> {
        let mut offsets: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
        for (side, place, offset) in answers.iter().filter_map(asked) {
            let its = |log: &Log| log.side == side && log.partition.partition == place;
            let log = self.logs.partitions.iter().position(|log| its(log) && (log.start..log.end).contains(&offset));
            log.into_iter().for_each(|log| _ = offsets.entry(log).or_default().insert(offset));
        }
        let mut spans = Vec::new();
        for (log, offsets) in offsets {
            let partition = &self.logs.partitions[log].partition;
            for (from, until) in runs(offsets) {
                spans.push(Span { partition: partition.clone(), from, until });
            }
        }
        self.read(spans, usize::MAX, |_| false)
    }

    /// The other side's requests, where one side's was found.
    fn read_siblings(&mut self) -> Result<()> {
        for side in SIDES {
            let halves = self.found.values().filter(|found| found.request(side).is_none());
            let times = halves.filter_map(|found| published_millis(found.payment.as_ref().or(found.stock.as_ref())?));
            let times: BTreeSet<i64> = times.collect();
            if let (Some(first), Some(last)) = (times.first().copied(), times.last().copied()) {
                let spans = self.logs.since(side, first)?;
                self.read(spans, usize::MAX, |millis| millis > last)?;
            }
        }
        Ok(())
    }

    /// What is still missing: near the other side's request, or else between the order's id and the answer.
    fn read_by_time(&mut self, answers: &[Event]) -> Result<()> {
        for side in SIDES {
            let times = answers.iter().filter_map(|answer| self.times(answer, side));
            let times: Vec<(i64, i64)> = times.collect();
            let (first, last) =
                (times.iter().map(|(first, _)| *first).min(), times.iter().map(|(_, last)| *last).max());
            if let (Some(first), Some(last)) = (first, last) {
                let spans = self.logs.since(side, first - SKEW_MILLIS)?;
                self.read(spans, MOST, |millis| millis > last.saturating_add(SKEW_MILLIS))?;
            }
        }
        Ok(())
    }

    /// Between which times a side's request was published, if it is missing. Of an id that is not ours nothing is known.
    fn times(&self, answer: &Event, side: Side) -> Option<(i64, i64)> {
        let found = &self.found[&answer.order_id];
        if found.request(side).is_some() {
            return None;
        }
        match found.payment.as_ref().or(found.stock.as_ref()).and_then(published_millis) {
            Some(millis) => Some((millis, millis)),
            None => Some((id_millis(answer.order_id)?, answered_millis(answer)?)),
        }
    }

    /// Reads these spans, each up to a record that is `behind` by its timestamp, until all orders are whole, or so many records
    /// were seen.
    fn read(&mut self, spans: Vec<Span>, most: usize, behind: impl Fn(i64) -> bool) -> Result<()> {
        let Recovery { kafka, interrupt, prefix } = self.recovery;
        let left = self.until.saturating_duration_since(Instant::now());
        let found = &mut self.found;
        let mut seen = 0;
        let mut halves = found.values().filter(|found| !found.is_whole()).count();
        if halves == 0 {
            return Ok(());
        }
        let take = |partition: &TopicPartition, record: Record| {
            seen += 1;
            if behind(record.timestamp) {
                return Reading::NextSpan;
            }
            if let Some(found) = order_of(&record).and_then(|order_id| found.get_mut(&order_id)) {
                let was_whole = found.is_whole();
                match request(&record, partition, prefix) {
                    Some(request) => found.take(request),
                    None => found.unreadable = true,
                }
                halves -= usize::from(!was_whole && found.is_whole());
            }
            if halves == 0 || seen >= most { Reading::Enough } else { Reading::On }
        };
        read_spans(kafka, interrupt, spans, left, take).map_err(Error::from)
    }
}

/// Where the request of an answer lay, if it says so. (A confirmation answers a compensation request.)
fn asked(answer: &Event) -> Option<(Side, i32, i64)> {
    let asked = answer.answers.filter(|_| matches!(answer.body, Body::Completed | Body::Failed { .. }))?;
    Some((answer.side, asked.partition, asked.offset))
}

/// Offsets that lie near each other, as runs: the first, and the one behind the last.
fn runs(offsets: BTreeSet<i64>) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for offset in offsets {
        match runs.last_mut() {
            Some((_, until)) if offset - *until <= GAP => *until = offset + 1,
            _ => runs.push((offset, offset + 1)),
        }
    }
    runs
}

fn order_of(record: &Record) -> Option<Uuid> {
    record.key.as_deref().and_then(|key| Uuid::try_parse_ascii(key).ok())
}

/// The request that a record is, with how it was delivered to us; none if it is not one.
fn request(record: &Record, partition: &TopicPartition, prefix: &str) -> Option<Event> {
    let topic = Topic::from_name(&partition.topic, prefix)?;
    let event = envelope::decode(topic, record).ok()?;
    let delivery = envelope::delivery(record, partition.partition, delivery::now(), 1);
    Some(Event { delivery: Some(delivery), ..event })
}

fn published_millis(event: &Event) -> Option<i64> {
    Some(event.delivery?.published? / 1_000)
}

/// When an order was asked for: our ids are of version 7.
pub fn id_millis(order_id: Uuid) -> Option<i64> {
    let (seconds, nanos) = order_id.get_timestamp().filter(|_| order_id.get_version_num() == 7)?.to_unix();
    i64::try_from(seconds).ok()?.checked_mul(1_000)?.checked_add(i64::from(nanos) / 1_000_000)
}

/// When an answer was published, or now: of one that was parked it is not known, and what is older than its order has no time
/// that could be trusted.
fn answered_millis(answer: &Event) -> Option<i64> {
    let asked = id_millis(answer.order_id)?;
    Some(published_millis(answer).filter(|answered| *answered >= asked).unwrap_or_else(|| delivery::now() / 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_near_each_other_are_one_run() {
        assert_eq!(runs(BTreeSet::new()), []);
        assert_eq!(runs([5].into()), [(5, 6)]);
        assert_eq!(runs([5, 6, 100, 2_101, 4_102, 4_103].into()), [(5, 2_102), (4_102, 4_104)]);
        assert_eq!(runs([0, 2_001, 4_003].into()), [(0, 2_002), (4_003, 4_004)]);
    }

    #[test]
    fn an_id_tells_when_its_order_was_asked_for() {
        let id = Uuid::parse_str("01a207b0-6c61-7300-bac7-ad7255aed1b3").unwrap();
        assert_eq!(id_millis(id), Some(0x01a2_07b0_6c61));
        assert_eq!(id_millis(Uuid::from_u128(1)), None, "not one of ours");
    }
}
