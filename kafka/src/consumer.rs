//! Reading assigned partitions by long polls. Groups are a matter of [`Group`](crate::Group); this knows only positions.

pub(crate) mod fetch_response;
pub(crate) mod last_records;
pub(crate) mod spans;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{FetchRequest, FetchResponse};
use uuid::Uuid;

use crate::admin::{OffsetSpec, try_list_offsets};
use crate::config::{Config, after, millis, setters};
use crate::consumer::fetch_response::read_fetched;
use crate::error::codes::Refresh;
use crate::error::{Error, ErrorCode, Result};
use crate::group::Assignment;
use crate::group::wake::Wake;
use crate::interrupt::Interrupt;
use crate::net::cluster::Cluster;
use crate::net::connection::Sent;
use crate::record::{Isolation, Record, TopicPartition};
use crate::wire::batch::Corrupt;

/// For so long a topic must be missing before it counts as gone: brokers learn of new topics one after the other.
const GONE_AFTER: Duration = Duration::from_secs(2);
/// The pause of a poll that asked in vain, or had nothing to ask for, so that a loop of polls does not spin.
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// What is fetched may be compressed: a poll gives at most so many times `max_bytes`, or a lone batch.
const EXPANSION: usize = 4;
/// For so long at least a broker that can't be reached is not tried again, while there are others to read from.
const AWAY_PAUSE: Duration = Duration::from_millis(100);

/// How much a poll waits for and takes.
#[derive(Clone, Copy, Debug)]
pub struct FetchConfig {
    /// How long a broker waits for `min_bytes` to gather.
    pub max_wait: Duration,
    /// The least an answer should hold, in bytes; 1 answers as soon as there is anything.
    pub min_bytes: i32,
    /// The most one broker's answer should hold, in bytes. The first batch comes whole however large it is.
    pub max_bytes: i32,
    /// The most one partition should have of it, in bytes.
    pub max_partition_bytes: i32,
    /// Which records are seen.
    pub isolation: Isolation,
}

setters! { FetchConfig:
    with_max_wait(max_wait: Duration),
    with_min_bytes(min_bytes: i32),
    with_max_bytes(max_bytes: i32),
    with_max_partition_bytes(max_partition_bytes: i32),
    with_isolation(isolation: Isolation),
}

impl Default for FetchConfig {
    /// Half a second, 1 byte, 16 MiB, 1 MiB, read-committed.
    fn default() -> FetchConfig {
        FetchConfig {
            max_wait: Duration::from_millis(500),
            min_bytes: 1,
            max_bytes: 16 << 20,
            max_partition_bytes: 1 << 20,
            isolation: Isolation::ReadCommitted,
        }
    }
}

/// What a poll found in one partition. Each of these is for the reader to decide on, so a new one is to be a compiler's error.
#[derive(Debug)]
pub enum Polled {
    /// Records, possibly none: then only the position has moved, past control batches or aborted transactions.
    Records {
        /// Where.
        partition: TopicPartition,
        /// In offset order.
        records: Vec<Record>,
        /// The consumer's position now, where the next poll goes on.
        next_offset: i64,
        /// The end of the log, as far as it is replicated.
        high_watermark: i64,
        /// The first offset still kept.
        log_start: i64,
    },
    /// The position lies outside of the log, which has been cut at its beginning or at its end. The position stays; [`Consumer::seek`].
    OutOfRange {
        /// Where.
        partition: TopicPartition,
        /// The position.
        offset: i64,
        /// The first offset still kept.
        log_start: i64,
        /// The end of the log.
        high_watermark: i64,
    },
    /// The position lies behind the end that another history of the log had: records that were read, or their place, have been taken back
    /// by the election of a leader that did not have them (KIP-320; `unclean.leader.election.enable`, or all copies lost). The position stays, and
    /// this is returned again, until a [`Consumer::seek`]: to `end` to read what stands there now.
    Truncated {
        /// Where.
        partition: TopicPartition,
        /// The position.
        offset: i64,
        /// Up to here the log is as it was read.
        end: i64,
    },
    /// A member was given these partitions by its group; only [`GroupConsumer::poll`](crate::GroupConsumer::poll) gives this.
    Assigned {
        /// What it was given.
        assignment: Assignment,
    },
    /// The topic of this id is gone: deleted, and maybe made anew under another id. Told by every poll until another assignment.
    UnknownTopic {
        /// Where.
        partition: TopicPartition,
    },
    /// The broker refuses this partition for good, mostly for a right that is missing; others are read on. Told by every answer: pause it
    /// ([`Consumer::pause`]), or each poll returns at once.
    Refused {
        /// Where.
        partition: TopicPartition,
        /// [`Error::Refused`].
        error: Error,
    },
    /// The batch at the position can't be read. The position stays: seek behind `last_offset` to go on.
    Corrupt {
        /// Where.
        partition: TopicPartition,
        /// The batch's first offset.
        base_offset: i64,
        /// The batch's last offset, as far as its header can be trusted.
        last_offset: i64,
        /// The whole batch as it was fetched.
        bytes: Bytes,
        /// What is wrong with it.
        cause: String,
    },
}

impl Polled {
    /// The records, where it holds any.
    pub fn records(&self) -> &[Record] {
        match self {
            Polled::Records { records, .. } => records,
            _ => &[],
        }
    }
}

/// Reads assigned partitions, each from a position of its own.
///
/// Leaders, topic ids and connections are looked after inside: a partition whose leader moved or whose broker is away yields nothing for a while.
///
/// Fetches have connections of their own, one a broker, on which nothing else is asked. One that is not answered yet goes on when
/// another broker's answer ends the poll, so that a broker without news, or one that hangs, delays no other's records.
pub struct Consumer {
    /// For everything but fetches.
    cluster: Cluster,
    fetches: Cluster,
    /// The fetches that are not answered yet, by their broker's address.
    asked: HashMap<String, Asked>,
    interrupt: Interrupt,
    pub(crate) config: FetchConfig,
    /// In the order they are asked for: those that had records go to the end, so that a full answer starves nobody.
    assigned: Vec<Assigned>,
    /// Leaders or topic ids have to be looked up before the next fetch.
    stale: bool,
    /// Brokers that could not be reached, by address, and until when they are left alone.
    away: HashMap<String, Instant>,
    /// What was logged last of a broker that others make up for.
    told: Option<String>,
    /// An answer of the current poll refused some partition; to ask again at once would be in vain.
    refused: bool,
    /// Whose range has to be asked for, once all answers are read.
    out_of_range: Vec<TopicPartition>,
    /// When the last poll ended.
    left_at: Instant,
    /// What records may still take in the current poll, in bytes.
    budget: usize,
    /// Ends a poll early.
    pub(crate) wake: Option<Arc<Wake>>,
}

struct Assigned {
    partition: TopicPartition,
    position: i64,
    /// The epoch of the leader that wrote what lies before the position, if that was read here.
    leader_epoch: Option<i32>,
    paused: bool,
    missing_since: Option<Instant>,
}

/// One broker's part of a poll.
struct Asked {
    sent: Sent<FetchRequest>,
    /// From where each partition was asked for.
    from: HashMap<(Uuid, i32), i64>,
}

impl Consumer {
    /// Without partitions and without any I/O yet.
    pub fn new(config: Config, interrupt: Interrupt, fetch: FetchConfig) -> Consumer {
        Consumer {
            cluster: Cluster::new(config.clone(), interrupt.clone()),
            fetches: Cluster::new(config, interrupt.clone()),
            asked: HashMap::new(),
            interrupt,
            config: fetch,
            assigned: Vec::new(),
            stale: true,
            away: HashMap::new(),
            told: None,
            refused: false,
            out_of_range: Vec::new(),
            left_at: Instant::now(),
            budget: 0,
            wake: None,
        }
    }

    /// Replaces the assignment: exactly these partitions, each from the offset given, none of them paused.
    pub fn assign(&mut self, partitions: &[(TopicPartition, i64)]) {
        self.assigned.clear();
        for (partition, position) in partitions {
            self.assigned.push(Assigned {
                partition: partition.clone(),
                position: *position,
                leader_epoch: None,
                paused: false,
                missing_since: None,
            });
        }
        self.stale = true;
        self.give_up(|_| true);
    }

    /// The next poll reads this partition from `offset` on. Nothing happens if it isn't assigned.
    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) {
        let Some(assigned) = self.find(partition) else {
            return;
        };
        // who wrote what lies before it is not known
        (assigned.position, assigned.leader_epoch) = (offset, None);
        let key = key(partition);
        self.give_up(|asked| asked.from.get(&key).is_some_and(|from| *from != offset));
    }

    /// As [`seek`](Consumer::seek), to a place that was reached before, under the [`leader_epoch`](Consumer::leader_epoch) of then: if
    /// another history of the log stands there now, the next poll tells it ([`Polled::Truncated`], KIP-320).
    pub fn seek_in_epoch(&mut self, partition: &TopicPartition, offset: i64, leader_epoch: i32) {
        self.seek(partition, offset);
        if let Some(assigned) = self.find(partition) {
            assigned.leader_epoch = Some(leader_epoch).filter(|epoch| *epoch >= 0);
        }
    }

    /// Which of the partition's leaders has written what lies before the position, as far as it was read here.
    pub fn leader_epoch(&self, partition: &TopicPartition) -> Option<i32> {
        self.assigned(partition)?.leader_epoch
    }

    /// Waits no longer for the answers of these fetches, which would keep their brokers from being asked anew.
    fn give_up(&mut self, which: impl Fn(&Asked) -> bool) {
        for (leader, _) in self.asked.extract_if(|_, asked| which(asked)) {
            self.fetches.drop_connection(&leader);
        }
    }

    /// Polls leave this partition out until [`resume`](Consumer::resume).
    pub fn pause(&mut self, partition: &TopicPartition) {
        if let Some(assigned) = self.find(partition) {
            assigned.paused = true;
        }
    }

    /// Polls read this partition again.
    pub fn resume(&mut self, partition: &TopicPartition) {
        if let Some(assigned) = self.find(partition) {
            assigned.paused = false;
        }
    }

    /// The offset the next poll reads from; `None` if the partition isn't assigned.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        Some(self.assigned(partition)?.position)
    }

    fn assigned(&self, partition: &TopicPartition) -> Option<&Assigned> {
        let mut all = self.assigned.iter();
        all.find(|assigned| assigned.partition == *partition)
    }

    fn find(&mut self, partition: &TopicPartition) -> Option<&mut Assigned> {
        self.assigned
            .iter_mut()
            .find(|assigned| assigned.partition == *partition)
    }

    /// A long poll at every broker that leads an unpaused partition, until one of them answers.
    ///
    /// Returns what was found, possibly nothing. Positions have moved past all the records returned. Without anything
    /// to ask for, or when a broker refuses, it returns after a short pause. A broker that is away is logged and left
    /// out while another one gives answers.
    ///
    /// # Errors
    /// `Io`, `Timeout`, `NoBroker` of a broker that is away (poll again), `Refused` for the rights of a look at the
    /// topics, `Frame` and `Decode` for what isn't Kafka, `Interrupted`. An error loses no records: it is returned only
    /// when no broker has given any.
    pub fn poll(&mut self) -> Result<Vec<Polled>> {
        self.poll_until(None)
    }

    /// As [`poll`](Consumer::poll), for what comes within `limit`: what was asked for by then is left to the next poll, and so is a look
    /// at what a partition has where its offset is out of range. A broker that must be connected to first may take longer.
    pub(crate) fn poll_within(&mut self, limit: Duration) -> Result<Vec<Polled>> {
        if self.stale {
            return Ok(Vec::new());
        }
        self.poll_until(Some(after(limit)))
    }

    fn poll_until(&mut self, end: Option<Instant>) -> Result<Vec<Polled>> {
        // while nobody waited, no answer was late
        let away = self.left_at.elapsed();
        self.asked
            .values_mut()
            .for_each(|asked| asked.sent.deadline += away);
        let polled = self.poll_once(end);
        self.left_at = Instant::now();
        polled
    }

    fn poll_once(&mut self, end: Option<Instant>) -> Result<Vec<Polled>> {
        self.interrupt.check()?;
        self.refused = false;
        self.budget = EXPANSION * usize::try_from(self.config.max_bytes).unwrap_or(0).max(1);
        let looked_up = self.look_up();
        if looked_up.is_err() {
            self.pause_in_vain()?;
        }
        let mut polled = looked_up?;
        let mut failure = self.ask();
        let idle = self.asked.is_empty() && failure.is_none();
        let answered = self.answered(end)?;
        let mut others = !self.asked.is_empty();
        for (leader, Asked { sent, from }) in answered {
            let answer = self.fetches.receive(&leader, sent);
            let read = answer.and_then(|answer| self.read(&leader, answer, &from, &mut polled));
            others |= read.is_ok();
            failure = read.err().or(failure);
        }
        if end.is_none() {
            failure = self.find_ranges(&mut polled).err().or(failure);
        }
        // to ask again at once would bring the same
        let found = polled
            .iter()
            .any(|polled| matches!(polled, Polled::Records { .. }));
        let in_vain = idle || self.refused || failure.is_some() || !polled.is_empty();
        if end.is_none() && in_vain && !found && !(failure.is_some() && others) {
            self.pause_in_vain()?;
        }
        let Some(error) = failure else {
            if self.away.is_empty() {
                self.told = None;
            }
            return Ok(polled);
        };
        self.stale = true;
        // What one broker did not give is no error while others are there to read from: who waited after it would keep them waiting.
        if polled.is_empty() && !(others && error.passes()) {
            return Err(error);
        }
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            log::warn!("fetch: {text}; reading goes on at the others");
            self.told = Some(text);
        }
        Ok(polled)
    }

    fn pause_in_vain(&self) -> Result<()> {
        self.interrupt.sleep(self.config.max_wait.min(IDLE_PAUSE))
    }

    /// Waits until a fetch is answered or at its end, and gives all that are; none when it is woken. A lone one is not waited for,
    /// unless somebody may wake: reading it will. None after `end`, too.
    fn answered(&mut self, end: Option<Instant>) -> Result<Vec<(String, Asked)>> {
        while self.asked.len() > usize::from(self.wake.is_none()) {
            let (fetches, now) = (&mut self.fetches, Instant::now());
            let answered = self.asked.extract_if(|leader, asked| {
                fetches.has_input(leader) || asked.sent.deadline <= now
            });
            let answered: Vec<_> = answered.collect();
            if !answered.is_empty() {
                return Ok(answered);
            }
            if end.is_some_and(|end| end <= now) {
                return Ok(Vec::new());
            }
            let ends = self.asked.values().map(|asked| asked.sent.deadline);
            let first_end = ends.chain(end).min().unwrap_or(now);
            let wake = self.wake.as_ref().map(|wake| wake.socket());
            self.fetches
                .wait_for_input(self.asked.keys(), wake, first_end)?;
            if self.wake.as_ref().is_some_and(|wake| wake.take()) {
                return Ok(Vec::new());
            }
        }
        Ok(std::mem::take(&mut self.asked).into_iter().collect())
    }

    // ---- leaders and topic ids

    /// Asks for the metadata of all assigned topics where something has moved; says which topics are gone.
    fn look_up(&mut self) -> Result<Vec<Polled>> {
        if self.stale && !self.assigned.is_empty() {
            let deadline = self.cluster.backoff().attempt();
            let topics = self
                .assigned
                .iter()
                .map(|assigned| assigned.partition.topic.clone());
            self.cluster
                .refresh(&topics.collect::<Vec<_>>(), deadline)?;
            self.stale = false;
        }
        let mut gone = Vec::new();
        for assigned in self.assigned.iter_mut().filter(|assigned| !assigned.paused) {
            let partition = &assigned.partition;
            let seen = self.cluster.seen_topic(&partition.topic);
            if seen.is_some_and(|topic| topic.id == partition.topic_id) {
                assigned.missing_since = None;
                continue;
            }
            self.stale = true;
            let since = assigned.missing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= GONE_AFTER {
                gone.push(Polled::UnknownTopic {
                    partition: partition.clone(),
                });
            }
        }
        Ok(gone)
    }

    // ---- asking

    /// Sends one request to each leader that owes no answer. A broker that can't be reached is returned as the failure; the others are
    /// asked all the same.
    fn ask(&mut self) -> Option<Error> {
        let now = Instant::now();
        self.away.retain(|_, until| *until > now);
        let mut due = self.by_leader();
        due.retain(|(leader, _)| !self.asked.contains_key(leader));
        due.sort_by_key(|(leader, _)| self.away.contains_key(leader));
        let mut failure = None;
        for (leader, partitions) in due {
            let is_away = self.away.contains_key(&leader);
            self.stale |= is_away;
            if !is_away || self.asked.is_empty() {
                failure = self.ask_one(leader, &partitions).err().or(failure);
            }
        }
        failure
    }

    fn ask_one(&mut self, leader: String, partitions: &[usize]) -> Result<()> {
        let began = Instant::now();
        let deadline = after(
            self.config
                .max_wait
                .saturating_add(self.cluster.config().request_timeout),
        );
        let request = self.request(partitions);
        let wanted = partitions.iter().map(|index| &self.assigned[*index]);
        let from = wanted
            .map(|assigned| (key(&assigned.partition), assigned.position))
            .collect();
        match self.fetches.send(&leader, &request, deadline) {
            Ok(sent) => {
                self.asked.insert(leader, Asked { sent, from });
                Ok(())
            }
            Err(error) => {
                // One that takes long to fail takes that time from the others.
                let pause = (2 * began.elapsed()).max(AWAY_PAUSE);
                self.away.insert(leader, Instant::now() + pause);
                Err(error)
            }
        }
    }

    /// The unpaused partitions whose topic is the one assigned, by their leader's address.
    fn by_leader(&mut self) -> Vec<(String, Vec<usize>)> {
        let mut by_leader: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, assigned) in self.assigned.iter().enumerate() {
            if assigned.paused || assigned.missing_since.is_some() {
                continue;
            }
            let TopicPartition {
                topic, partition, ..
            } = &assigned.partition;
            match self.cluster.leader(topic, *partition) {
                Ok(leader) => by_leader.entry(leader).or_default().push(index),
                Err(_) => self.stale = true,
            }
        }
        by_leader.into_iter().collect()
    }

    fn request(&self, partitions: &[usize]) -> FetchRequest {
        // The order of the topics is that of their first partition, see `assigned`.
        let mut topics: Vec<FetchTopic> = Vec::new();
        for assigned in partitions.iter().map(|index| &self.assigned[*index]) {
            let wanted = FetchPartition::default()
                .with_partition(assigned.partition.partition)
                .with_current_leader_epoch(-1)
                .with_fetch_offset(assigned.position)
                .with_last_fetched_epoch(assigned.leader_epoch.unwrap_or(-1))
                .with_partition_max_bytes(self.config.max_partition_bytes);
            let id = assigned.partition.topic_id;
            match topics.iter_mut().find(|topic| topic.topic_id == id) {
                Some(topic) => topic.partitions.push(wanted),
                None => topics.push(
                    FetchTopic::default()
                        .with_topic_id(id)
                        .with_partitions(vec![wanted]),
                ),
            }
        }
        FetchRequest::default()
            .with_max_wait_ms(millis(self.config.max_wait))
            .with_min_bytes(self.config.min_bytes)
            .with_max_bytes(self.config.max_bytes)
            .with_isolation_level(self.config.isolation as i8)
            .with_session_id(0)
            // No fetch session (KIP-227): every request names all its partitions.
            .with_session_epoch(-1)
            .with_topics(topics)
    }

    // ---- reading

    /// What the answer holds, except of partitions that are paused or have another position by now.
    fn read(
        &mut self,
        leader: &str,
        answer: FetchResponse,
        from: &HashMap<(Uuid, i32), i64>,
        polled: &mut Vec<Polled>,
    ) -> Result<()> {
        Error::check::<FetchRequest>(answer.error_code, leader, "")?;
        let mut answers: HashMap<(Uuid, i32), PartitionData> = HashMap::new();
        for topic in answer.responses {
            for data in topic.partitions {
                answers.insert((topic.topic_id, data.partition_index), data);
            }
        }
        let (mut served, mut waiting) = (Vec::new(), Vec::new());
        for mut assigned in std::mem::take(&mut self.assigned) {
            let key = key(&assigned.partition);
            let wanted = !assigned.paused && from.get(&key) == Some(&assigned.position);
            let data = answers.remove(&key).filter(|_| wanted);
            let found = data.and_then(|data| self.read_partition(leader, &mut assigned, data));
            let moved = matches!(found, Some(Polled::Records { .. }));
            polled.extend(found);
            if moved {
                served.push(assigned)
            } else {
                waiting.push(assigned)
            }
        }
        waiting.append(&mut served);
        self.assigned = waiting;
        Ok(())
    }

    fn read_partition(
        &mut self,
        leader: &str,
        assigned: &mut Assigned,
        data: PartitionData,
    ) -> Option<Polled> {
        match ErrorCode(data.error_code) {
            ErrorCode::NONE
                if (0..assigned.position).contains(&data.diverging_epoch.end_offset) =>
            {
                let (partition, end) =
                    (assigned.partition.clone(), data.diverging_epoch.end_offset);
                Some(Polled::Truncated {
                    partition,
                    offset: assigned.position,
                    end,
                })
            }
            // The leader does not know the epoch, but its log of the one before reaches as far: as for the Java client, that will do.
            ErrorCode::NONE if data.diverging_epoch.end_offset >= 0 => {
                assigned.leader_epoch = None;
                None
            }
            ErrorCode::NONE => self.read_batches(assigned, data),
            ErrorCode::OFFSET_OUT_OF_RANGE => {
                self.out_of_range.push(assigned.partition.clone());
                None
            }
            code if code.passes() => {
                log::debug!("fetch of {} at {leader}: {code}", assigned.partition);
                self.stale |= code.refresh() == Refresh::Metadata;
                self.refused = true;
                None
            }
            code => {
                let partition = assigned.partition.clone();
                let error = Error::refused::<FetchRequest>(code, leader, partition.to_string());
                Some(Polled::Refused { partition, error })
            }
        }
    }

    fn read_batches(&mut self, assigned: &mut Assigned, data: PartitionData) -> Option<Polled> {
        let bytes = data.records.filter(|bytes| !bytes.is_empty())?;
        let longest = self.cluster.config().max_frame_bytes;
        let fetched = read_fetched(
            bytes,
            assigned.position,
            data.aborted_transactions,
            longest,
            &mut self.budget,
        );
        let partition = assigned.partition.clone();
        if fetched.next_offset > assigned.position {
            assigned.position = fetched.next_offset;
            assigned.leader_epoch = fetched.leader_epoch.or(assigned.leader_epoch);
            return Some(Polled::Records {
                partition,
                records: fetched.records,
                next_offset: fetched.next_offset,
                high_watermark: data.high_watermark,
                log_start: data.log_start_offset,
            });
        }
        let Corrupt {
            base_offset,
            last_offset,
            bytes,
            cause,
        } = fetched.corrupt?;
        Some(Polled::Corrupt {
            partition,
            base_offset,
            last_offset,
            bytes,
            cause,
        })
    }

    /// The answer to a fetch out of range does not tell the range, so it is asked for.
    fn find_ranges(&mut self, polled: &mut Vec<Polled>) -> Result<()> {
        for partition in std::mem::take(&mut self.out_of_range) {
            let backoff = self.cluster.backoff();
            let place = [partition.named()];
            let mut offset = |spec| {
                let isolation = Isolation::ReadUncommitted;
                let listed =
                    try_list_offsets(&mut self.cluster, &place, spec, isolation, &backoff)?;
                Ok(listed.first().map_or(-1, |found| found.offset))
            };
            let log_start = offset(OffsetSpec::Earliest)?;
            let high_watermark = offset(OffsetSpec::Latest)?;
            let offset = self.position(&partition).unwrap_or(log_start);
            if (log_start..=high_watermark).contains(&offset) {
                // A new leader that was still catching up, or one that no longer knows who wrote what was read: the next fetch will do.
                self.stale = true;
                if let Some(assigned) = self.find(&partition) {
                    assigned.leader_epoch = None;
                }
            } else {
                polled.push(Polled::OutOfRange {
                    partition,
                    offset,
                    log_start,
                    high_watermark,
                });
            }
        }
        Ok(())
    }
}

fn key(partition: &TopicPartition) -> (Uuid, i32) {
    (partition.topic_id, partition.partition)
}
