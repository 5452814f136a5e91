//! The brokers seen as one: who leads a partition, who coordinates a group or a transaction, and a connection to each.
//!
//! Nothing here lasts: a connection that failed is dropped and made anew at the next call, a leader or coordinator
//! that says it isn't one is looked up again, and when no known broker answers, the bootstrap addresses are tried
//! again, so a cluster that comes back under other addresses is found.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    BrokerId, FindCoordinatorRequest, GroupId, MetadataRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use crate::config::{Config, after};
use crate::error::{Error, ErrorCode, Result};
use crate::interrupt::Interrupt;
use crate::net::backoff::Backoff;
use crate::net::connection::{Connection, Sent};
use crate::wire::protocol::{CoordinatorRequest, Refusal, Request};

/// What a topic looked like when it was last asked for.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) id: Uuid,
    /// When it was asked for.
    seen_at: Instant,
    /// By partition number.
    pub(crate) partitions: Vec<Partition>,
    /// The most that a batch may hold, by what its brokers have refused since then.
    batch_limit: usize,
}

/// One partition of a [`Topic`].
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    /// The leader's node id, or `None` while there is none.
    pub(crate) leader: Option<i32>,
    pub(crate) replicas: usize,
}

/// Who to look a coordinator up for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CoordinatorKey {
    /// A consumer group, by its id.
    Group(String),
    /// A transactional producer, by its transactional id.
    Transaction(String),
}

/// Whether the broker may be sent the same request twice without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Reads, and writes that come to the same when done twice: sent again when the answer is lost.
    Idempotent,
    /// Sent again only after a plain refusal, or when it was never sent.
    Once,
}

pub(crate) struct Cluster {
    config: Config,
    interrupt: Interrupt,
    connections: HashMap<String, Connection>,
    /// Node id to `host:port`.
    pub(crate) brokers: BTreeMap<i32, String>,
    topics: HashMap<Arc<str>, Topic>,
    coordinators: HashMap<CoordinatorKey, String>,
    /// The broker that returned the last of these addresses.
    named_by: Option<String>,
    /// Which of a name's addresses is tried first, counted on from those that failed.
    turns: HashMap<String, usize>,
}

impl Cluster {
    /// Without any I/O yet.
    pub(crate) fn new(config: Config, interrupt: Interrupt) -> Cluster {
        Cluster {
            config,
            interrupt,
            connections: HashMap::new(),
            brokers: BTreeMap::new(),
            topics: HashMap::new(),
            coordinators: HashMap::new(),
            named_by: None,
            turns: HashMap::new(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The patience of one call.
    pub(crate) fn backoff(&self) -> Backoff {
        self.backoff_for(self.config.api_timeout)
    }

    /// The same for a call that may take so long.
    pub(crate) fn backoff_for(&self, limit: Duration) -> Backoff {
        Backoff::new(&self.interrupt, limit, self.config.request_timeout)
    }

    // ---- connections

    /// An open connection to this address, made now where there is none or the broker has cut it.
    pub(crate) fn connection(
        &mut self,
        address: &str,
        deadline: Instant,
    ) -> Result<&mut Connection> {
        self.interrupt.check()?;
        if self
            .connections
            .get_mut(address)
            .is_some_and(Connection::is_stale)
        {
            self.connections.remove(address);
        }
        if !self.connections.contains_key(address) {
            let turn = self.turns.entry(address.to_owned()).or_default();
            let made = Connection::open(address, turn, &self.config, &self.interrupt, deadline);
            if made.is_err() {
                // an address that takes connections and then is silent must not be the first one again
                *turn = turn.wrapping_add(1);
            }
            let is_given = self.config.brokers.iter().any(|given| given == address);
            let made = made.map_err(|error| match (&self.named_by, error) {
                // the given address may be right and lead to a broker that names a wrong one
                (Some(named_by), error @ (Error::Io { .. } | Error::Timeout { .. }))
                    if !is_given =>
                {
                    let (broker, named_by) = (address.to_owned(), named_by.clone());
                    Error::Unreachable {
                        broker,
                        named_by,
                        cause: error.to_string(),
                    }
                }
                (_, error) => error,
            })?;
            self.connections.insert(address.to_owned(), made);
        }
        self.connections.get_mut(address).ok_or(Error::Interrupted)
    }

    /// Sends one request to this address and reads its answer. A connection on which that failed is dropped.
    pub(crate) fn call<R: Request>(
        &mut self,
        address: &str,
        request: &R,
        deadline: Instant,
        retry: Retry,
    ) -> Result<R::Response> {
        let connection = self.connection(address, deadline)?;
        let reused = connection.answered;
        match connection.call(request, deadline) {
            Err(error) => {
                self.drop_connection(address);
                let cut_while_idle = reused && matches!(error, Error::Io { .. });
                if cut_while_idle && retry == Retry::Idempotent {
                    return self.call(address, request, deadline, retry);
                }
                Err(error)
            }
            answered => answered,
        }
    }

    /// Sends without waiting for the answer, which [`receive`](Cluster::receive) reads.
    pub(crate) fn send<R: Request>(
        &mut self,
        address: &str,
        request: &R,
        deadline: Instant,
    ) -> Result<Sent<R>> {
        let sent = self.connection(address, deadline)?.send(request, deadline);
        sent.inspect_err(|_| self.drop_connection(address))
    }

    pub(crate) fn receive<R: Request>(
        &mut self,
        address: &str,
        sent: Sent<R>,
    ) -> Result<R::Response> {
        let Some(connection) = self.connections.get_mut(address) else {
            let source = std::io::ErrorKind::NotConnected.into();
            return Err(Error::Io {
                api: R::API,
                broker: address.to_owned(),
                source,
            });
        };
        let answer = connection.receive(sent);
        answer.inspect_err(|_| self.drop_connection(address))
    }

    /// Whether [`receive`](Cluster::receive) would not have to wait: for an answer's beginning, or to learn that none will come.
    pub(crate) fn has_input(&mut self, address: &str) -> bool {
        self.connections
            .get_mut(address)
            .is_none_or(|connection| connection.stream.has_input())
    }

    /// Waits until one of these connections, all of which were found without input, may have some, or `wake` has: poll(2). The
    /// interrupt shuts them down, which is input, too.
    pub(crate) fn wait_for_input<'a>(
        &self,
        addresses: impl Iterator<Item = &'a String>,
        wake: Option<&UnixStream>,
        until: Instant,
    ) -> Result<()> {
        let sockets = addresses
            .filter_map(|address| self.connections.get(address))
            .map(|connection| &connection.stream.socket);
        let mut polled: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        polled.extend(wake.map(|wake| PollFd::new(wake, PollFlags::IN)));
        let left = until.saturating_duration_since(Instant::now());
        // what the system does not take as a limit is as good as none
        let limit = Timespec::try_from(left).ok();
        // a signal ends it early, as an error: the caller looks again
        let _ = poll(&mut polled, limit.as_ref());
        self.interrupt.check()
    }

    pub(crate) fn drop_connection(&mut self, address: &str) {
        self.connections.remove(address);
    }

    /// Asks whichever broker answers: those connected first, then the others known, then the bootstrap addresses.
    /// Only for requests that may be sent twice.
    pub(crate) fn call_any<R: Request>(
        &mut self,
        request: &R,
        deadline: Instant,
    ) -> Result<(String, R::Response)> {
        self.config.check()?;
        let (mut causes, mut refused) = (Vec::new(), None);
        let known = self
            .connections
            .keys()
            .chain(self.brokers.values())
            .chain(&self.config.brokers);
        let mut seen = HashSet::new();
        let addresses: Vec<String> = known
            .filter(|address| seen.insert(*address))
            .cloned()
            .collect();
        for (asked, address) in addresses.iter().enumerate() {
            // A broker that hangs must leave time to ask the others.
            let share = deadline.saturating_duration_since(Instant::now())
                / (addresses.len() - asked) as u32;
            match self.call(address, request, Instant::now() + share, Retry::Idempotent) {
                Ok(answer) => return Ok((address.clone(), answer)),
                Err(error) if error.passes() => causes.push(error.to_string()),
                // Not a broker, or one that speaks something else: worth a try elsewhere, but worth telling too.
                Err(error @ (Error::Frame { .. } | Error::Decode { .. })) => {
                    causes.push(error.to_string())
                }
                Err(error @ Error::Security { .. }) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or(Error::NoBroker { causes }))
    }

    // ---- metadata

    /// The topic as last seen, asked for where it was not seen yet, or too long ago.
    ///
    /// Errors: `Refused` with UNKNOWN_TOPIC_OR_PARTITION and the like, `NoBroker`, `Interrupted`.
    pub(crate) fn topic(&mut self, name: &Arc<str>, deadline: Instant) -> Result<&Topic> {
        let max_age = self.config.metadata_max_age;
        if self
            .topics
            .get(name)
            .is_none_or(|topic| topic.seen_at.elapsed() >= max_age)
        {
            self.refresh(std::slice::from_ref(name), deadline)?;
        }
        self.topics
            .get(name)
            .ok_or_else(|| self.unknown_topic(name, ErrorCode::UNKNOWN_TOPIC_OR_PARTITION))
    }

    /// All topics are asked for anew.
    pub(crate) fn forget_topics(&mut self) {
        self.topics.clear();
    }

    /// The topic as last seen, without asking.
    pub(crate) fn seen_topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name)
    }

    /// The most that a batch for this topic should hold: the setting, or less where that was refused. It is tried anew whenever the
    /// topic is looked up.
    pub(crate) fn batch_limit(&self, topic: &str) -> usize {
        self.seen_topic(topic)
            .map_or(usize::MAX, |topic| topic.batch_limit)
            .min(self.config.batch_size)
    }

    /// Its brokers have refused a batch twice as large.
    pub(crate) fn limit_batches(&mut self, topic: &str, limit: usize) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.batch_limit = limit;
        }
    }

    /// The address of a partition's leader, as last seen. `NoLeader` where none was seen.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Result<String> {
        let index = usize::try_from(partition).ok();
        let seen = self
            .topics
            .get(topic)
            .zip(index)
            .and_then(|(topic, at)| topic.partitions.get(at));
        let address = seen
            .and_then(|partition| partition.leader)
            .and_then(|node| self.brokers.get(&node));
        address.cloned().ok_or_else(|| Error::NoLeader {
            topic: topic.to_owned(),
            partition,
        })
    }

    /// Looks these topics up again. A topic that does not exist is forgotten; that is no error here.
    ///
    /// Errors: `NoBroker`, `Timeout`, `Interrupted`; `Refused` when a topic may not be seen (authorization) or has an invalid name.
    pub(crate) fn refresh(&mut self, topics: &[Arc<str>], deadline: Instant) -> Result<()> {
        let (named_by, answer) = self.call_any(&metadata_request(topics), deadline)?;
        self.named_by = Some(named_by);
        let addresses = answer
            .brokers
            .iter()
            .map(|broker| (broker.node_id.0, host_port(&broker.host, broker.port)));
        self.brokers = addresses.collect();
        for topic in &answer.topics {
            let Some(name) = topic.name.as_ref().map(|name| Arc::from(name.as_str())) else {
                continue;
            };
            match ErrorCode(topic.error_code) {
                ErrorCode::NONE | ErrorCode::LEADER_NOT_AVAILABLE => {
                    self.topics.insert(name, topic_of(topic));
                }
                code if code.passes() => {
                    self.topics.remove(&name);
                }
                code => return Err(self.unknown_topic(&name, code)),
            }
        }
        Ok(())
    }

    fn unknown_topic(&self, name: &str, code: ErrorCode) -> Error {
        Error::refused::<MetadataRequest>(
            code,
            &self.config.brokers.join(","),
            format!("topic {name}"),
        )
    }

    // ---- coordinators

    /// Sends a request to this coordinator until it is answered without an error that passes, or the
    /// patience is at its end.
    ///
    /// Errors: `Refused` with the first code that does not pass, or the last that would; what a lost answer gave,
    /// at once for [`Retry::Once`].
    pub(crate) fn call_coordinator<R: CoordinatorRequest>(
        &mut self,
        coordinator: &CoordinatorKey,
        request: &R,
        retry: Retry,
        backoff: &mut Backoff,
    ) -> Result<R::Response> {
        loop {
            let deadline = backoff.attempt();
            // to look it up takes no patience, however long the request may take
            let look_up = deadline.min(after(self.config.request_timeout));
            let found = self.coordinator(coordinator, look_up).and_then(|address| {
                self.connection(&address, deadline)?;
                Ok(address)
            });
            let error = match found {
                Err(error) => error,
                Ok(address) => match self.call(&address, request, deadline, retry) {
                    // the answer is lost: it may be done
                    Err(error) if retry == Retry::Once => return Err(error),
                    Err(error) => error,
                    Ok(answer) => match R::refusal(&answer) {
                        Refusal {
                            code: ErrorCode::NONE,
                            ..
                        } => return Ok(answer),
                        Refusal { code, about } => {
                            let about = about.map(|about| format!(": {about}")).unwrap_or_default();
                            Error::refused::<R>(code, &address, format!("{coordinator}{about}"))
                        }
                    },
                },
            };
            if error.loses_coordinator() {
                self.coordinators.remove(coordinator);
            }
            backoff.pause(error)?;
        }
    }

    /// The coordinator's address, looked up where it isn't known.
    pub(crate) fn coordinator(
        &mut self,
        coordinator: &CoordinatorKey,
        deadline: Instant,
    ) -> Result<String> {
        if let Some(address) = self.coordinators.get(coordinator) {
            return Ok(address.clone());
        }
        let (kind, key) = match coordinator {
            CoordinatorKey::Group(id) => (0, id),
            CoordinatorKey::Transaction(id) => (1, id),
        };
        let request = FindCoordinatorRequest::default()
            .with_key_type(kind)
            .with_coordinator_keys(vec![StrBytes::from_string(key.clone())]);
        let (broker, answer) = self.call_any(&request, deadline)?;
        let Some(found) = answer.coordinators.first() else {
            let cause = "it names no coordinator";
            return Err(Error::malformed::<FindCoordinatorRequest>(&broker, cause));
        };
        Error::check::<FindCoordinatorRequest>(found.error_code, &broker, coordinator)?;
        let address = host_port(&found.host, found.port);
        self.named_by = Some(broker);
        self.coordinators
            .insert(coordinator.clone(), address.clone());
        Ok(address)
    }
}

impl std::fmt::Display for CoordinatorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CoordinatorKey::Group(id) => write!(f, "group {id}"),
            CoordinatorKey::Transaction(id) => write!(f, "transactional id {id}"),
        }
    }
}

pub(crate) fn metadata_request(topics: &[Arc<str>]) -> MetadataRequest {
    let names: BTreeSet<&Arc<str>> = topics.iter().collect();
    let topics = names
        .into_iter()
        .map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
    MetadataRequest::default()
        .with_topics(Some(topics.collect()))
        .with_allow_auto_topic_creation(false)
}

fn topic_of(answer: &MetadataResponseTopic) -> Topic {
    let none = Partition {
        leader: None,
        replicas: 0,
    };
    let mut partitions = vec![none; answer.partitions.len()];
    for seen in &answer.partitions {
        let place = usize::try_from(seen.partition_index)
            .ok()
            .and_then(|at| partitions.get_mut(at));
        if let Some(partition) = place {
            let BrokerId(leader) = seen.leader_id;
            partition.leader = (leader >= 0).then_some(leader);
            partition.replicas = seen.replica_nodes.len();
        }
    }
    Topic {
        id: answer.topic_id,
        seen_at: Instant::now(),
        partitions,
        batch_limit: usize::MAX,
    }
}

fn host_port(host: &str, port: i32) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// What belongs to partitions, by their topics.
pub(crate) fn by_topic<'a, T>(
    parts: impl Iterator<Item = (&'a str, T)>,
) -> impl Iterator<Item = (TopicName, Vec<T>)> {
    let mut topics: BTreeMap<&str, Vec<T>> = BTreeMap::new();
    for (topic, part) in parts {
        topics.entry(topic).or_default().push(part);
    }
    topics
        .into_iter()
        .map(|(name, parts)| (topic_name(name), parts))
}

/// A group's id as the codec wants it.
pub(crate) fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
}

/// A name as the codec wants it.
pub(crate) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
