//! Reading topics as a member of a group: membership, positions and fetches in one.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::{OffsetSpec, committed_offsets, list_offsets};
use crate::config::Config;
use crate::consumer::{Consumer, FetchConfig, Polled};
use crate::error::{Error, Result};
use crate::group::wake::Wake;
use crate::group::{Assignment, Group, GroupConfig};
use crate::interrupt::Interrupt;
use crate::record::TopicPartition;

/// From where a member reads a partition that it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Positions {
    /// From the offset that the group has committed, or, where there is none or the log no longer holds it, from the first that is kept
    /// (`auto.offset.reset=earliest`).
    CommittedOrEarliest,
    /// The same, or from the log's end (`latest`).
    CommittedOrLatest,
    /// The caller keeps them: after each [`Polled::Assigned`] it says where to begin, by [`GroupConsumer::assign`], and what lies outside of
    /// the log is its to decide.
    Own,
}

/// Reads topics as a member of a group, and shares their partitions with the other members.
///
/// ```no_run
/// use std::time::Duration;
/// use kafka::{Config, FetchConfig, GroupConfig, GroupConsumer, Interrupt, Positions};
///
/// # fn main() -> kafka::Result<()> {
/// let config = Config::new(vec!["localhost:9092".into()], "reader");
/// let group = GroupConfig::new("readers", vec!["orders".into()]);
/// let positions = Positions::CommittedOrEarliest;
/// let mut consumer = GroupConsumer::new(config, Interrupt::new(), group, FetchConfig::default(), positions)?;
/// loop {
///     for polled in consumer.poll(Duration::from_secs(1))? {
///         for record in polled.records() {
///             println!("{record:?}");
///         }
///     }
///     consumer.commit()?;
/// }
/// # }
/// ```
pub struct GroupConsumer {
    group: Group,
    consumer: Consumer,
    positions: Positions,
    assignment: Option<Assignment>,
    /// What it was given, while it is not known from where to read it.
    joined: Option<Assignment>,
}

impl GroupConsumer {
    /// Not a member yet, and without any connection.
    ///
    /// # Errors
    /// `Invalid` when the system has no descriptors left.
    pub fn new(
        config: Config,
        interrupt: Interrupt,
        mut group: GroupConfig,
        fetch: FetchConfig,
        positions: Positions,
    ) -> Result<GroupConsumer> {
        let no_wake =
            |cause: io::Error| Error::Invalid(format!("no sockets to be woken by: {cause}"));
        let wake = Arc::new(Wake::new().map_err(no_wake)?);
        let (waker, hook) = (wake.clone(), group.on_rebalance.take());
        group.on_rebalance = Some(Arc::new(move || {
            waker.wake();
            hook.iter().for_each(|hook| hook());
        }));
        let group = Group::new(config.clone(), interrupt.clone(), group);
        let mut consumer = Consumer::new(config, interrupt, fetch);
        consumer.wake = Some(wake);
        Ok(GroupConsumer {
            group,
            consumer,
            positions,
            assignment: None,
            joined: None,
        })
    }

    /// Joins the group where that is needed and then gives [`Polled::Assigned`] alone: what was given before and is not
    /// committed will be read again, by the member that has it now. Else waits for records, `timeout` at most, and ends early
    /// when the group changes.
    ///
    /// Where a position lies outside of the log, or behind what an election took back, reading goes on as [`Positions`]
    /// say, and a line is logged; with [`Positions::Own`] it is returned instead.
    ///
    /// # Errors
    /// Those of [`Group::join`], of [`Admin::committed_offsets`](crate::Admin::committed_offsets) and of
    /// [`Consumer::poll`]; poll again where they are retriable.
    pub fn poll(&mut self, timeout: Duration) -> Result<Vec<Polled>> {
        if self.rejoin_needed() {
            return self
                .join()
                .map(|assignment| vec![Polled::Assigned { assignment }]);
        }
        self.consumer.config.max_wait = timeout;
        let polled = self.group.shared.in_call(|| self.consumer.poll())?;
        Ok(self.look_through(polled))
    }

    /// As [`poll`](GroupConsumer::poll), for what comes within `limit`, beside what a poll has just given. It never joins. A fetch
    /// that is not answered by then stays open, and the next poll gets its answer.
    ///
    /// # Errors
    /// Those of [`Consumer::poll`].
    pub fn poll_within(&mut self, limit: Duration) -> Result<Vec<Polled>> {
        if self.rejoin_needed() {
            return Ok(Vec::new());
        }
        let polled = self
            .group
            .shared
            .in_call(|| self.consumer.poll_within(limit))?;
        Ok(self.look_through(polled))
    }

    fn look_through(&mut self, polled: Vec<Polled>) -> Vec<Polled> {
        if polled
            .iter()
            .any(|polled| matches!(polled, Polled::UnknownTopic { .. }))
        {
            self.assignment = None;
        }
        if self.positions == Positions::Own {
            return polled;
        }
        polled
            .into_iter()
            .filter_map(|polled| self.go_on(polled))
            .collect()
    }

    fn go_on(&mut self, polled: Polled) -> Option<Polled> {
        match &polled {
            Polled::OutOfRange {
                partition,
                offset,
                log_start,
                high_watermark,
            } => {
                let latest = self.positions == Positions::CommittedOrLatest;
                let reset = if latest { *high_watermark } else { *log_start };
                log::warn!(
                    "{partition}: offset {offset} is not in the log ({log_start} to {high_watermark}): on from {reset}"
                );
                self.consumer.seek(partition, reset);
            }
            Polled::Truncated {
                partition,
                offset,
                end,
            } => {
                log::warn!(
                    "{partition}: {end} to {offset} were taken back by an election: on from {end}"
                );
                self.consumer.seek(partition, *end);
            }
            Polled::UnknownTopic { partition } => {
                log::warn!("{partition} is gone or was made anew: joining the group again");
            }
            Polled::Corrupt {
                partition,
                base_offset,
                last_offset,
                cause,
                ..
            } => {
                log::error!(
                    "{partition}: the batch from {base_offset} to {last_offset} can't be read: {cause}"
                );
                return Some(polled);
            }
            _ => return Some(polled),
        }
        None
    }

    fn join(&mut self) -> Result<Assignment> {
        self.assignment = None;
        // what was given stays given while offsets can't be found
        let assignment = match self.joined.take().filter(|_| !self.group.rejoin_needed()) {
            Some(joined) => joined,
            None => self.group.join()?,
        };
        self.joined = Some(assignment.clone());
        match self.positions {
            Positions::Own => self.consumer.assign(&[]),
            _ => self.assign_committed(&assignment.partitions)?,
        }
        (self.joined, self.assignment) = (None, Some(assignment.clone()));
        Ok(assignment)
    }

    /// Each from its committed offset, in the epoch it was read in, or from the end of the log that [`Positions`] name.
    fn assign_committed(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut places: Vec<_> = partitions.iter().map(TopicPartition::named).collect();
        let mut offsets = HashMap::new();
        let Group {
            cluster, config, ..
        } = &mut self.group;
        let committed = committed_offsets(cluster, &config.group_id, &places, true)?;
        for found in committed.into_iter().filter(|found| found.offset >= 0) {
            offsets.insert(
                (found.topic, found.partition),
                (found.offset, found.leader_epoch),
            );
        }
        places.retain(|place| !offsets.contains_key(place));
        if !places.is_empty() {
            let latest = self.positions == Positions::CommittedOrLatest;
            let end = if latest {
                OffsetSpec::Latest
            } else {
                OffsetSpec::Earliest
            };
            for found in list_offsets(cluster, &places, end, self.consumer.config.isolation)? {
                offsets.insert((found.topic, found.partition), (found.offset, -1));
            }
        }
        let unplaced: Vec<_> = partitions.iter().map(|place| (place.clone(), 0)).collect();
        self.consumer.assign(&unplaced);
        for place in partitions {
            let (offset, leader_epoch) = offsets.get(&place.named()).copied().unwrap_or((0, -1));
            self.consumer.seek_in_epoch(place, offset, leader_epoch);
        }
        Ok(())
    }

    /// Whether the next [`poll`](GroupConsumer::poll) joins the group (again) instead of reading. Whoever keeps offsets elsewhere can commit what
    /// is done before it.
    pub fn rejoin_needed(&self) -> bool {
        self.group.rejoin_needed() || self.assignment.is_none()
    }

    /// What it was given last; `None` before the first time, and when it has to join again.
    pub fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref()
    }

    /// Reads these partitions of the assignment, each from its offset, with [`Positions::Own`].
    pub fn assign(&mut self, offsets: &[(TopicPartition, i64)]) {
        self.consumer.assign(offsets);
    }

    /// As [`Consumer::seek`].
    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) {
        self.consumer.seek(partition, offset);
    }

    /// As [`Consumer::seek_in_epoch`].
    pub fn seek_in_epoch(&mut self, partition: &TopicPartition, offset: i64, leader_epoch: i32) {
        self.consumer.seek_in_epoch(partition, offset, leader_epoch);
    }

    /// As [`Consumer::leader_epoch`].
    pub fn leader_epoch(&self, partition: &TopicPartition) -> Option<i32> {
        self.consumer.leader_epoch(partition)
    }

    /// As [`Consumer::pause`].
    pub fn pause(&mut self, partition: &TopicPartition) {
        self.consumer.pause(partition);
    }

    /// As [`Consumer::resume`].
    pub fn resume(&mut self, partition: &TopicPartition) {
        self.consumer.resume(partition);
    }

    /// As [`Consumer::position`].
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.consumer.position(partition)
    }

    /// Commits the positions of all its partitions: behind everything that polls have given.
    ///
    /// # Errors
    /// As [`Group::commit_offsets`]. When the group has changed meanwhile, what was not committed is read again by
    /// others.
    pub fn commit(&mut self) -> Result<()> {
        let (consumer, mut offsets) = (&self.consumer, Vec::new());
        for partition in self
            .assignment
            .iter()
            .flat_map(|assignment| &assignment.partitions)
        {
            if let Some(offset) = consumer.position(partition) {
                offsets.push((partition.clone(), offset, String::new()));
            }
        }
        if offsets.is_empty() {
            return Ok(());
        }
        self.group.commit_positions(&offsets, |partition| {
            consumer.leader_epoch(partition).unwrap_or(-1)
        })
    }

    /// As [`Group::commit_offsets`].
    pub fn commit_offsets(&mut self, offsets: &[(TopicPartition, i64, String)]) -> Result<()> {
        self.group.commit_offsets(offsets)
    }

    /// As [`Group::leave`].
    pub fn leave(&mut self) -> Result<()> {
        (self.assignment, self.joined) = (None, None);
        self.group.leave()
    }
}
