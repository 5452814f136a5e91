//! Membership of a consumer group by the classic protocol (JoinGroup, SyncGroup, Heartbeat, LeaveGroup), which Kafka 3 and
//! 4 both speak and their tools show.

pub(crate) mod assignor;
pub(crate) mod consumer;
pub(crate) mod heartbeat;
pub(crate) mod wake;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::join_group_response::JoinGroupResponse;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{JoinGroupRequest, OffsetCommitRequest, SyncGroupRequest};
use kafka_protocol::protocol::StrBytes;

use crate::config::{Config, millis, setters};
use crate::error::{Error, ErrorCode, Result};
use crate::group::assignor::{
    CONSUMER, Partitions, RANGE, assign_range, decode_assignment, decode_subscription,
    encode_assignment, encode_subscription,
};
use crate::group::heartbeat::{Heartbeat, Membership, Shared, leave, look_up, seen};
use crate::interrupt::Interrupt;
use crate::net::backoff::Backoff;
use crate::net::cluster::{Cluster, CoordinatorKey, Retry, by_topic, group_id};
use crate::record::TopicPartition;
use crate::wire::protocol::CoordinatorRequest;

/// How long leaving may take. It belongs to a shutdown; a member that can't leave is dropped by the broker after its session.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the broker may take longer than a rebalance to answer a join, as for the Java client.
const LATE: Duration = Duration::from_secs(5);

/// What a member of a group is.
#[derive(Clone)]
pub struct GroupConfig {
    /// The group's id.
    pub group_id: String,
    /// The topics it reads. Those that do not exist are left out of the assignment. A topic that appears, is made anew or gets
    /// more partitions makes a rejoin necessary; it is noticed within ten seconds or so.
    pub topics: Vec<String>,
    /// Without a heartbeat for so long the broker gives the member's partitions to others. The broker has bounds for it
    /// (`group.min.session.timeout.ms`, 6 s by default).
    pub session_timeout: Duration,
    /// So long the broker waits in a rebalance for the members to join again.
    pub rebalance_timeout: Duration,
    /// The pause between heartbeats; a third of the session timeout at most.
    pub heartbeat_interval: Duration,
    /// A member whose thread has called nothing of its [`Group`] for so long hangs: it leaves, so that others get its partitions
    /// (`max.poll.interval.ms`, KIP-62).
    pub max_poll_interval: Duration,
    /// The name of the heartbeat thread.
    pub thread_name: String,
    /// Called by the heartbeat thread, once each time a rejoin becomes necessary. It must not block.
    pub on_rebalance: Option<Arc<dyn Fn() + Send + Sync>>,
}

setters! { GroupConfig:
    with_session_timeout(session_timeout: Duration),
    with_rebalance_timeout(rebalance_timeout: Duration),
    with_heartbeat_interval(heartbeat_interval: Duration),
    with_max_poll_interval(max_poll_interval: Duration),
}

impl GroupConfig {
    /// A member that reads these topics: sessions of 45 s, a heartbeat every 3 s, rebalances that wait for a minute, a call every 5
    /// minutes.
    pub fn new(group_id: impl Into<String>, topics: Vec<String>) -> GroupConfig {
        GroupConfig {
            group_id: group_id.into(),
            topics,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(3),
            max_poll_interval: Duration::from_secs(300),
            thread_name: "kafka-heartbeat".to_owned(),
            on_rebalance: None,
        }
    }

    /// What can't work is refused before anything is sent.
    fn check(&self) -> Result<()> {
        let waits = [
            self.session_timeout,
            self.rebalance_timeout,
            self.max_poll_interval,
        ];
        let wrong = if self.heartbeat_interval.is_zero() {
            "GroupConfig::heartbeat_interval is zero: heartbeats need a pause between them"
        } else if waits.iter().any(Duration::is_zero) {
            "GroupConfig: session_timeout, rebalance_timeout and max_poll_interval must be more than zero"
        } else if self.topics.is_empty() {
            "GroupConfig::topics is empty: there is nothing to share"
        } else {
            return Ok(());
        };
        Err(Error::Invalid(wrong.to_owned()))
    }

    fn subscribed(&self) -> Vec<Arc<str>> {
        self.topics
            .iter()
            .map(|topic| topic.as_str().into())
            .collect()
    }
}

/// What a member was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assignment {
    /// Which division of the partitions this is: it rises with each rebalance.
    pub generation: i32,
    /// The member's id, given by the broker.
    pub member_id: String,
    /// The partitions, sorted.
    pub partitions: Vec<TopicPartition>,
}

/// A member of a consumer group. It shares the partitions of its topics with the other members, by the assignor "range".
///
/// Dropped without [`leave`](Group::leave), its heartbeats end and its partitions go to the others after the session timeout.
pub struct Group {
    cluster: Cluster,
    config: GroupConfig,
    shared: Arc<Shared>,
    member_id: StrBytes,
    heartbeat: Option<Heartbeat>,
}

impl Group {
    /// Not a member yet, and without any I/O.
    pub fn new(config: Config, interrupt: Interrupt, group: GroupConfig) -> Group {
        let shared = Shared::new(group.on_rebalance.clone());
        let cluster = Cluster::new(config, interrupt);
        Group {
            cluster,
            config: group,
            shared,
            member_id: StrBytes::default(),
            heartbeat: None,
        }
    }

    /// Joins the group, or joins it again, and waits for the share of the partitions. Until it returns, nothing of the
    /// former share may be worked on. Starts the heartbeat thread at the first time.
    ///
    /// Takes up to the rebalance timeout of the slowest member.
    ///
    /// # Errors
    /// `Refused` (INCONSISTENT_GROUP_PROTOCOL, INVALID_SESSION_TIMEOUT, GROUP_AUTHORIZATION_FAILED, …), those of the
    /// connection, retried for rebalance timeout and [`Config::api_timeout`] together; `Interrupted`.
    pub fn join(&mut self) -> Result<Assignment> {
        self.config.check()?;
        let shared = self.shared.clone();
        let (whole, each) = (
            self.config.rebalance_timeout,
            self.cluster.config().api_timeout,
        );
        let mut backoff = self.cluster.backoff_for(whole.saturating_add(each));
        shared.in_call(|| {
            loop {
                let error = match self.try_join(&mut backoff) {
                    Ok(assignment) => return Ok(assignment),
                    Err(error) => error,
                };
                // What the group has decided meanwhile makes a new attempt necessary; some answers name what must change for it.
                match error.code() {
                    Some(ErrorCode::REBALANCE_IN_PROGRESS) => {}
                    Some(ErrorCode::UNKNOWN_MEMBER_ID | ErrorCode::ILLEGAL_GENERATION) => {
                        self.member_id = StrBytes::default();
                    }
                    _ if error.passes() => {}
                    _ => return Err(error),
                }
                backoff.pause_for(error)?;
            }
        })
    }

    fn try_join(&mut self, backoff: &mut Backoff) -> Result<Assignment> {
        // before the join: whatever changes from here on is noticed by the heartbeat thread
        let mut topics = look_up(
            &mut self.cluster,
            &self.config.subscribed(),
            backoff.attempt(),
        )?;
        // these two are answered when all members have joined, and when the group's leader has divided
        let mut patient =
            backoff.with_attempts_of(self.config.rebalance_timeout.saturating_add(LATE));
        let joined = self.send_join(&mut patient)?;
        self.member_id = joined.member_id.clone();
        let mut assignments = Vec::new();
        if joined.leader == joined.member_id {
            assignments = self.divide(&joined, backoff)?;
            // another broker may have answered, with an older view: what was divided by it has to be divided again
            topics = seen(&self.cluster, &self.config.subscribed());
        }
        let share = self.send_sync(joined.generation_id, assignments, &mut patient)?;
        let given: usize = share.values().map(Vec::len).sum();
        let partitions = self.with_topic_ids(share, backoff)?;
        if partitions.len() < given {
            // the broker that was asked does not know all of it yet: to be divided again
            topics = seen(&self.cluster, &self.config.subscribed());
        }
        let membership = Membership {
            generation: joined.generation_id,
            member_id: joined.member_id,
        };
        self.shared.joined(membership, topics);
        self.start_heartbeat()?;
        let member_id = self.member_id.to_string();
        Ok(Assignment {
            generation: joined.generation_id,
            member_id,
            partitions,
        })
    }

    /// JoinGroup; a new member is first given an id and told to come again with it (KIP-394).
    fn send_join(&mut self, backoff: &mut Backoff) -> Result<JoinGroupResponse> {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(RANGE))
            .with_metadata(encode_subscription(&self.config.topics));
        let mut request = JoinGroupRequest::default()
            .with_group_id(group_id(&self.config.group_id))
            .with_session_timeout_ms(millis(self.config.session_timeout))
            .with_rebalance_timeout_ms(millis(self.config.rebalance_timeout))
            .with_member_id(self.member_id.clone())
            .with_protocol_type(StrBytes::from_static_str(CONSUMER))
            .with_protocols(vec![protocol]);
        loop {
            let answer = self.call(&request, backoff)?;
            if answer.error_code == 0 {
                return Ok(answer);
            }
            self.member_id = answer.member_id.clone();
            request.member_id = answer.member_id;
        }
    }

    /// The leader's part: divides the partitions of all the topics that any member subscribes to.
    fn divide(
        &mut self,
        joined: &JoinGroupResponse,
        backoff: &mut Backoff,
    ) -> Result<Vec<SyncGroupRequestAssignment>> {
        let mut members = BTreeMap::new();
        for member in &joined.members {
            let topics =
                decode_subscription(&member.metadata).map_err(|cause| self.malformed(cause))?;
            members.insert(member.member_id.to_string(), topics);
        }
        let subscribed = members.values().flatten();
        let topics: Vec<Arc<str>> = subscribed.map(|topic| topic.as_str().into()).collect();
        self.cluster.refresh(&topics, backoff.attempt())?;
        let counted = topics.iter().filter_map(|topic| {
            let seen = self.cluster.seen_topic(topic)?;
            Some((topic.to_string(), seen.partitions.len() as i32))
        });
        let divided = assign_range(&members, &counted.collect()).into_iter();
        let assignments = divided.map(|(member, share)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(StrBytes::from_string(member))
                .with_assignment(encode_assignment(&share))
        });
        Ok(assignments.collect())
    }

    fn send_sync(
        &mut self,
        generation: i32,
        assignments: Vec<SyncGroupRequestAssignment>,
        backoff: &mut Backoff,
    ) -> Result<Partitions> {
        let request = SyncGroupRequest::default()
            .with_group_id(group_id(&self.config.group_id))
            .with_generation_id(generation)
            .with_member_id(self.member_id.clone())
            .with_protocol_type(Some(StrBytes::from_static_str(CONSUMER)))
            .with_protocol_name(Some(StrBytes::from_static_str(RANGE)))
            .with_assignments(assignments);
        let answer = self.call(&request, backoff)?;
        decode_assignment(&answer.assignment).map_err(|cause| self.malformed(cause))
    }

    /// The assignment names topics; what counts for the reader is their ids.
    fn with_topic_ids(
        &mut self,
        share: Partitions,
        backoff: &mut Backoff,
    ) -> Result<Vec<TopicPartition>> {
        let topics: Vec<Arc<str>> = share.keys().map(|topic| topic.as_str().into()).collect();
        if !topics.is_empty() {
            self.cluster.refresh(&topics, backoff.attempt())?;
        }
        let mut partitions = Vec::new();
        for (topic, numbers) in topics.iter().zip(share.into_values()) {
            // A topic that is gone again is left out; its next maker's partitions come with another rebalance.
            if let Some(topic_id) = self.cluster.seen_topic(topic).map(|seen| seen.id) {
                partitions.extend(numbers.into_iter().map(|partition| TopicPartition {
                    topic: topic.clone(),
                    topic_id,
                    partition,
                }));
            }
        }
        partitions.sort();
        Ok(partitions)
    }

    fn start_heartbeat(&mut self) -> Result<()> {
        if self.heartbeat.as_ref().is_some_and(Heartbeat::runs) {
            return Ok(());
        }
        let started = Heartbeat::start(
            self.cluster.config().clone(),
            self.config.clone(),
            self.shared.clone(),
        );
        let thread = started
            .map_err(|cause| Error::Invalid(format!("no thread for heartbeats: {cause}")))?;
        self.heartbeat = Some(thread);
        Ok(())
    }

    /// Whether [`join`](Group::join) has to be called (again): the group changes, or the membership was lost. To ask costs nothing, and is
    /// what a thread does that lives, see [`GroupConfig::max_poll_interval`].
    pub fn rejoin_needed(&self) -> bool {
        self.shared.called();
        self.shared.rejoin_needed()
    }

    /// Commits the next offsets to be read, each with a text that is kept beside it.
    ///
    /// # Errors
    /// `Refused` with UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION or REBALANCE_IN_PROGRESS when the membership is over or
    /// about to change: then [`rejoin_needed`](Group::rejoin_needed) is set; other refusals; those of the connection,
    /// retried for [`Config::api_timeout`].
    pub fn commit_offsets(&mut self, offsets: &[(TopicPartition, i64, String)]) -> Result<()> {
        self.commit_positions(offsets, |_| -1)
    }

    /// The same, with the epoch of the leader that wrote what lies before each.
    pub(crate) fn commit_positions(
        &mut self,
        offsets: &[(TopicPartition, i64, String)],
        leader_epoch: impl Fn(&TopicPartition) -> i32,
    ) -> Result<()> {
        self.shared.called();
        let Some(membership) = self.shared.membership() else {
            return Err(Error::Invalid("not a member of the group".to_owned()));
        };
        let topics = by_topic(offsets.iter().map(|(place, offset, metadata)| {
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(place.partition)
                .with_committed_offset(*offset)
                .with_committed_leader_epoch(leader_epoch(place))
                .with_committed_metadata(Some(StrBytes::from_string(metadata.clone())));
            (&*place.topic, partition)
        }));
        let topics = topics.map(|(name, partitions)| {
            OffsetCommitRequestTopic::default()
                .with_name(name)
                .with_partitions(partitions)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(group_id(&self.config.group_id))
            .with_generation_id_or_member_epoch(membership.generation)
            .with_member_id(membership.member_id.clone())
            .with_topics(topics.collect());
        let done = self.call(&request, &mut self.cluster.backoff());
        let refused = done.as_ref().err().and_then(Error::code);
        if let Some(code) = refused.filter(|code| code.ends_membership()) {
            let lost = code != ErrorCode::REBALANCE_IN_PROGRESS;
            self.shared.need_rejoin(&membership, lost);
        }
        done.map(drop)
    }

    /// Stops the heartbeat thread, waits for its end, and leaves the group, so that the others get the partitions at
    /// once.
    ///
    /// Works after an interrupt too: it has a connection of its own, and takes a few seconds at most. Not to be a
    /// member is no error.
    ///
    /// # Errors
    /// Those of the connection; the broker then drops the member after its session timeout.
    pub fn leave(&mut self) -> Result<()> {
        drop(self.heartbeat.take());
        self.shared.left();
        let member_id = std::mem::take(&mut self.member_id);
        if member_id.is_empty() {
            return Ok(());
        }
        let mut config = self.cluster.config().clone();
        config.api_timeout = config.api_timeout.min(LEAVE_TIMEOUT);
        config.connect_timeout = config.connect_timeout.min(LEAVE_TIMEOUT);
        let mut cluster = Cluster::new(config, Interrupt::new());
        match leave(&mut cluster, &self.config.group_id, member_id) {
            Err(error) if error.code() == Some(ErrorCode::UNKNOWN_MEMBER_ID) => Ok(()),
            left => left,
        }
    }

    /// Asks the group's coordinator.
    fn call<R: CoordinatorRequest>(
        &mut self,
        request: &R,
        backoff: &mut Backoff,
    ) -> Result<R::Response> {
        let coordinator = CoordinatorKey::Group(self.config.group_id.clone());
        self.cluster
            .call_coordinator(&coordinator, request, Retry::Idempotent, backoff)
    }

    fn malformed(&self, cause: &str) -> Error {
        let broker = format!("group {}", self.config.group_id);
        Error::malformed::<SyncGroupRequest>(
            &broker,
            format!("the consumer protocol's data: {cause}"),
        )
    }
}
