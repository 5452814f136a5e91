//! Looks in Kafka for the requests of orders that order's database has lost. No transaction is open meanwhile.
//!
//! An answer says where its request lay (header `answers`): that record is read. The other side's request was published in the
//! same transaction under the same timestamp: its topic is read from that timestamp on. What is not found so (an answer that
//! names no request, a clock that was set back) is looked for by time: near the other one, or from the order's id to the answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::{Admin, Interrupt, Isolation, OffsetSpec, Record, Span, TopicPartition, read_spans};
use uuid::Uuid;

use crate::config::Config;
use crate::error::Result;
use crate::event::delivery;
use crate::event::envelope;
use crate::event::{Body, Channel, Event, Side, Topic};
use crate::heartbeat;

/// All reading of one call must end within this: shorter than a group waits for a member (45 s).
const LIMIT: Duration = Duration::from_secs(40);
/// Clocks of services, and those of a service before and after a restart, differ by less.
const SKEW_MILLIS: i64 = 10_000;
/// So many records of a side are looked through by time at most: minutes of orders, read within seconds.
const MOST: usize = 1_000_000;
/// Offsets that lie further apart are read as spans of their own: a fetch brings about so many records.
const GAP_OFFSETS: i64 = 2_000;
/// Times that lie further apart are looked up by themselves: what lies between costs less to read than a request does.
const GAP_MILLIS: i64 = 50;

/// What Kafka still holds of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundRequests {
    /// The request to payment.
    pub payment: Option<Event>,
    /// The request to stock.
    pub stock: Option<Event>,
    /// Whether a record about the order lies there that is no request.
    pub unreadable: bool,
}

impl FoundRequests {
    fn request(&self, side: Side) -> Option<&Event> {
        match side {
            Side::Payment => self.payment.as_ref(),
            Side::Stock => self.stock.as_ref(),
        }
    }

    fn is_whole(&self) -> bool {
        self.payment.is_some() && self.stock.is_some()
    }

    /// When its requests were published, if one is known.
    fn published_millis(&self) -> Option<i64> {
        published_millis(self.payment.as_ref().or(self.stock.as_ref())?)
    }

    fn take(&mut self, request: Event) {
        let place = if request.side == Side::Payment {
            &mut self.payment
        } else {
            &mut self.stock
        };
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
        Recovery {
            kafka: config.kafka("order-recovery"),
            interrupt,
            prefix: config.topic_prefix.clone(),
        }
    }

    /// Looks up what Kafka holds of the orders that these answers are about, and adds it to `found`: what was found before an
    /// error need not be found again.
    ///
    /// # Errors
    /// Kafka's; a topic that is not there, or reading that takes too long, is one of them.
    pub fn find(&self, answers: &[Event], found: &mut HashMap<Uuid, FoundRequests>) -> Result<()> {
        heartbeat::beat_before(2 * LIMIT);
        let mut missing = BTreeSet::new();
        for answer in answers {
            if !found.entry(answer.order_id).or_default().is_whole() {
                missing.insert(answer.order_id);
            }
        }
        let logs = Logs::describe(
            Admin::new(self.kafka.clone(), self.interrupt.clone()),
            &self.prefix,
        )?;
        let mut search = Search {
            recovery: self,
            logs,
            found,
            missing,
            until: Instant::now() + LIMIT,
        };
        search.read_answered(answers)?;
        search.read_near(0, GAP_MILLIS, usize::MAX)?;
        search.read_near(SKEW_MILLIS, SKEW_MILLIS, MOST)?;
        search.read_between(answers)
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
        for side in Side::ALL {
            let name = format!("{prefix}{}", Topic(side, Channel::Request).name());
            let described = admin.describe_topics(std::slice::from_ref(&name))?;
            // not gone for certain: brokers learn of topics one after another, and the services make those that are missing
            let topic = described
                .first()
                .ok_or_else(|| kafka::Error::Invalid(format!("topic {name} is not there")))?;
            let (name, topic_id): (Arc<str>, _) = (topic.name.as_str().into(), topic.id);
            partitions.extend((0..topic.partitions).map(|partition| Log {
                side,
                partition: TopicPartition {
                    topic: name.clone(),
                    topic_id,
                    partition,
                },
                start: 0,
                end: 0,
            }));
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
    fn list(
        &mut self,
        which: impl Fn(&Log) -> bool,
        spec: OffsetSpec,
    ) -> Result<Vec<(usize, i64)>> {
        let wanted: Vec<usize> = (0..self.partitions.len())
            .filter(|place| which(&self.partitions[*place]))
            .collect();
        let names: Vec<(String, i32)> = wanted
            .iter()
            .map(|place| {
                let partition = &self.partitions[*place].partition;
                (partition.topic.to_string(), partition.partition)
            })
            .collect();
        // to the end of all that was written: what is not decided yet is waited for, and not taken for absent
        let listed = self
            .admin
            .list_offsets(&names, spec, Isolation::ReadUncommitted)?;
        let mut offsets = Vec::with_capacity(wanted.len());
        for (place, (topic, partition)) in wanted.into_iter().zip(names) {
            let its = listed
                .iter()
                .find(|offset| offset.topic == topic && offset.partition == partition);
            let its = its.ok_or_else(|| {
                kafka::Error::Invalid(format!("{topic}-{partition} is not there"))
            })?;
            offsets.push((place, its.offset));
        }
        Ok(offsets)
    }

    /// The records of a side within each of these times, both ends included, in each of its logs.
    fn within(&mut self, side: Side, times: &[(i64, i64)]) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for (first, last) in times {
            let from = self.list(
                |log| log.side == side,
                OffsetSpec::Timestamp(*first.max(&0)),
            )?;
            let until = self.list(
                |log| log.side == side,
                OffsetSpec::Timestamp(last.saturating_add(1).max(0)),
            )?;
            for ((place, from), (_, until)) in from.into_iter().zip(until) {
                let Log { partition, end, .. } = &self.partitions[place];
                let until = if until < 0 { *end } else { until.min(*end) };
                // -1: nothing so late
                if (0..until).contains(&from) {
                    spans.push(Span {
                        partition: partition.clone(),
                        from,
                        until,
                    });
                }
            }
        }
        Ok(spans)
    }
}

struct Search<'a> {
    recovery: &'a Recovery,
    logs: Logs,
    /// By order.
    found: &'a mut HashMap<Uuid, FoundRequests>,
    /// The orders of which not both requests are found.
    missing: BTreeSet<Uuid>,
    until: Instant,
}

impl Search<'_> {
    /// The records that the answers name.
    fn read_answered(&mut self, answers: &[Event]) -> Result<()> {
        let mut offsets: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
        let missing = answers
            .iter()
            .filter(|answer| self.missing.contains(&answer.order_id));
        for (side, place, offset) in missing.filter_map(asked) {
            let log = self.logs.partitions.iter().position(|log| {
                (log.side, log.partition.partition) == (side, place)
                    && (log.start..log.end).contains(&offset)
            });
            log.into_iter()
                .for_each(|log| _ = offsets.entry(log).or_default().insert(offset));
        }
        let mut spans = Vec::new();
        for (log, offsets) in offsets {
            let partition = &self.logs.partitions[log].partition;
            for (from, last) in runs(
                offsets.into_iter().map(|offset| (offset, offset)).collect(),
                GAP_OFFSETS,
            ) {
                spans.push(Span {
                    partition: partition.clone(),
                    from,
                    until: last + 1,
                });
            }
        }
        self.read(spans, usize::MAX)
    }

    /// The other side's requests, where one side's was found: those published within `skew` of it.
    fn read_near(&mut self, skew: i64, gap: i64, most: usize) -> Result<()> {
        for side in Side::ALL {
            let halves = self.missing.iter().map(|order_id| &self.found[order_id]);
            let halves = halves
                .filter(|found| found.request(side).is_none())
                .filter_map(FoundRequests::published_millis);
            let times = halves
                .map(|millis| (millis - skew, millis + skew))
                .collect();
            let spans = self.logs.within(side, &runs(times, gap))?;
            self.read(spans, most)?;
        }
        Ok(())
    }

    /// Where neither is found: what was published between the order's id and the answer. Of an id that is not ours nothing is
    /// known.
    fn read_between(&mut self, answers: &[Event]) -> Result<()> {
        let times: Vec<(i64, i64)> = answers
            .iter()
            .filter(|answer| {
                self.missing.contains(&answer.order_id)
                    && self.found[&answer.order_id].published_millis().is_none()
            })
            .filter_map(|answer| {
                let (first, last) = (id_millis(answer.order_id)?, answered_millis(answer)?);
                Some((
                    first.saturating_sub(SKEW_MILLIS),
                    last.saturating_add(SKEW_MILLIS),
                ))
            })
            .collect();
        for side in Side::ALL {
            let spans = self.logs.within(side, &runs(times.clone(), GAP_MILLIS))?;
            self.read(spans, MOST)?;
        }
        Ok(())
    }

    /// Reads these spans until nothing is missing, or so many records were seen.
    fn read(&mut self, spans: Vec<Span>, most: usize) -> Result<()> {
        if spans.is_empty() || self.missing.is_empty() {
            return Ok(());
        }
        let Recovery {
            kafka,
            interrupt,
            prefix,
        } = self.recovery;
        let left = self.until.saturating_duration_since(Instant::now());
        let (found, missing, mut seen) = (&mut *self.found, &mut self.missing, 0);
        Ok(read_spans(
            kafka,
            interrupt,
            spans,
            left,
            |partition, record| {
                seen += 1;
                if let Some(order_id) =
                    order_of(&record).filter(|order_id| missing.contains(order_id))
                {
                    let order = found.entry(order_id).or_default();
                    match request(&record, partition, prefix) {
                        Some(request) => order.take(request),
                        None => order.unreadable = true,
                    }
                    if order.is_whole() {
                        missing.remove(&order_id);
                    }
                }
                if missing.is_empty() || seen >= most {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        )?)
    }
}

/// Where the request of an answer lay, if it says so. (A confirmation answers a compensation request.)
fn asked(answer: &Event) -> Option<(Side, i32, i64)> {
    let asked = answer
        .answers
        .filter(|_| matches!(answer.body, Body::Completed | Body::Failed { .. }))?;
    Some((answer.side, asked.partition, asked.offset))
}

/// Stretches that overlap, or lie no further apart than `gap`, become one.
fn runs(mut stretches: Vec<(i64, i64)>, gap: i64) -> Vec<(i64, i64)> {
    stretches.sort_unstable();
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for (first, last) in stretches {
        match runs.last_mut() {
            Some((_, end)) if first.saturating_sub(*end) <= gap => *end = last.max(*end),
            _ => runs.push((first, last)),
        }
    }
    runs
}

fn order_of(record: &Record) -> Option<Uuid> {
    record
        .key
        .as_deref()
        .and_then(|key| Uuid::try_parse_ascii(key).ok())
}

/// The request that a record is, with how it was delivered to us; none if it is not one.
fn request(record: &Record, partition: &TopicPartition, prefix: &str) -> Option<Event> {
    let topic = Topic::from_name(&partition.topic, prefix)?;
    let event = envelope::decode(topic, record).ok()?;
    let delivery = envelope::delivery(record, partition.partition, delivery::now(), 1);
    Some(Event {
        delivery: Some(delivery),
        ..event
    })
}

fn published_millis(event: &Event) -> Option<i64> {
    Some(event.delivery?.published? / 1_000)
}

/// When an order was asked for: our ids are of version 7.
pub fn id_millis(order_id: Uuid) -> Option<i64> {
    let (seconds, nanos) = order_id
        .get_timestamp()
        .filter(|_| order_id.get_version_num() == 7)?
        .to_unix();
    i64::try_from(seconds)
        .ok()?
        .checked_mul(1_000)?
        .checked_add(i64::from(nanos) / 1_000_000)
}

/// When an answer was published, or now: of one that was parked it is not known, and what is older than its order has no time
/// that could be trusted.
fn answered_millis(answer: &Event) -> Option<i64> {
    let asked = id_millis(answer.order_id)?;
    Some(
        published_millis(answer)
            .filter(|answered| *answered >= asked)
            .unwrap_or_else(|| delivery::now() / 1_000),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_near_each_other_are_one_run() {
        assert_eq!(runs(vec![], 5), []);
        assert_eq!(runs(vec![(5, 5)], 5), [(5, 5)]);
        assert_eq!(
            runs(vec![(20, 20), (5, 5), (10, 10), (16, 16)], 5),
            [(5, 10), (16, 20)]
        );
        assert_eq!(
            runs(vec![(0, 100), (10, 20), (100, 110), (200, 200)], 0),
            [(0, 110), (200, 200)]
        );
        assert_eq!(
            runs(vec![(i64::MIN, 0), (i64::MAX, i64::MAX)], 1),
            [(i64::MIN, 0), (i64::MAX, i64::MAX)]
        );
    }

    #[test]
    fn an_id_shows_when_its_order_was_asked_for() {
        let id = Uuid::parse_str("01a207b0-6c61-7300-bac7-ad7255aed1b3").unwrap();
        assert_eq!(id_millis(id), Some(0x01a2_07b0_6c61));
        assert_eq!(id_millis(Uuid::from_u128(1)), None, "not one of ours");
    }
}
