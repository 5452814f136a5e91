//! Topics and offsets, from outside.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    BrokerId, ConsumerGroupDescribeRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, DescribeGroupsRequest, ListOffsetsRequest, MetadataRequest,
    OffsetFetchRequest,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::config::{Config, millis};
use crate::error::{Error, ErrorCode, Result};
use crate::group::assignor::decode_assignment;
use crate::interrupt::Interrupt;
use crate::net::backoff::Backoff;
use crate::net::cluster::{
    Cluster, CoordinatorKey, Retry, by_topic, group_id, metadata_request, topic_name,
};
use crate::record::Isolation;
use crate::wire::protocol::{CoordinatorRequest, Request};

/// Asks and changes what the cluster holds: topics, their offsets, groups' committed offsets.
pub struct Admin {
    cluster: Cluster,
}

/// A topic to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: i32,
    /// Copies of each partition; `None` for the broker's default.
    pub replication: Option<i16>,
    /// Topic settings, as in `("max.message.bytes", "2000")`.
    pub configs: Vec<(String, String)>,
}

impl NewTopic {
    /// A topic of so many partitions, with the broker's defaults otherwise.
    pub fn new(name: impl Into<String>, partitions: i32) -> NewTopic {
        NewTopic {
            name: name.into(),
            partitions,
            replication: None,
            configs: Vec::new(),
        }
    }

    /// With so many copies of each partition.
    #[must_use]
    pub fn with_replication(self, copies: i16) -> NewTopic {
        NewTopic {
            replication: Some(copies),
            ..self
        }
    }

    /// With this setting, as in `("cleanup.policy", "compact")`.
    #[must_use]
    pub fn with_config(mut self, name: impl Into<String>, value: impl Into<String>) -> NewTopic {
        self.configs.push((name.into(), value.into()));
        self
    }
}

/// What became of a topic to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Created {
    /// It was created by this call.
    Created,
    /// It was there before; its partitions and settings are as they were.
    AlreadyExists,
}

/// A topic as the metadata shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Its id: another one if it is deleted and made anew.
    pub id: Uuid,
    /// How many partitions it has.
    pub partitions: i32,
    /// Copies of its first partition.
    pub replication: i16,
}

/// Which offset to ask for. (ListOffsets; its timestamps -2 and -1 stand for the first two.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first one still kept.
    Earliest,
    /// The next one to be written, or, read-committed, the first one that isn't decided yet.
    Latest,
    /// That of the first record with this timestamp or a later one, in milliseconds since 1970; -1 if there is none.
    Timestamp(i64),
}

/// A broker as the metadata names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDescription {
    /// Its node id.
    pub id: i32,
    /// Where clients reach it, `host:port` (`advertised.listeners`).
    pub address: String,
}

/// An offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset, -1 where there is none.
    pub offset: i64,
    /// The timestamp of the record found for [`OffsetSpec::Timestamp`], else -1.
    pub timestamp: i64,
}

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset, -1 where none was committed or it has expired (`offsets.retention.minutes`).
    pub offset: i64,
    /// Which of the partition's leaders has written what lies before it, -1 where that was not said (KIP-320).
    pub leader_epoch: i32,
    /// The text committed with it; empty where there was none.
    pub metadata: String,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// What the client calls itself (`client.id`).
    pub client_id: String,
    /// Its address, as the broker sees it.
    pub host: String,
    /// What it was given to read.
    pub partitions: Vec<(String, i32)>,
}

/// What this client's user may do with a topic (KIP-430).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(i32);

impl Operations {
    /// A broker that does not say (below 2.3) sets the sign alone.
    fn has(self, operation: u32) -> bool {
        self.0 == i32::MIN || self.0 >> operation & 1 == 1
    }

    /// Read its records (`AclOperation` READ).
    pub fn read(self) -> bool {
        self.has(3)
    }

    /// Write records to it (`AclOperation` WRITE).
    pub fn write(self) -> bool {
        self.has(4)
    }
}

/// The kinds of resources that have settings (KIP-133).
const TOPIC_RESOURCE: i8 = 2;
const BROKER_RESOURCE: i8 = 4;

impl Admin {
    /// Without any I/O yet.
    pub fn new(config: Config, interrupt: Interrupt) -> Admin {
        Admin {
            cluster: Cluster::new(config, interrupt),
        }
    }

    /// Creates topics and waits until the metadata shows every one of them with a leader for each partition.
    ///
    /// Returns what became of each, in the order given.
    ///
    /// # Errors
    /// `Refused` by the first topic that could be neither created nor found (INVALID_REPLICATION_FACTOR,
    /// INVALID_CONFIG, …), after the others were created; `NoLeader` when the leaders are not there within the call's
    /// limit; those of the connection.
    pub fn create_topics(&mut self, topics: &[NewTopic]) -> Result<Vec<(String, Created)>> {
        let mut backoff = self.cluster.backoff();
        let created = self.request_topics(topics, false, &mut backoff)?;
        let names: Vec<Arc<str>> = topics
            .iter()
            .map(|topic| topic.name.as_str().into())
            .collect();
        backoff.retry(|backoff| {
            self.cluster.refresh(&names, backoff.attempt())?;
            for name in &names {
                let partitions = self
                    .cluster
                    .seen_topic(name)
                    .map_or(1, |topic| topic.partitions.len());
                (0..partitions as i32)
                    .try_for_each(|partition| self.cluster.leader(name, partition).map(drop))?;
            }
            Ok(())
        })?;
        Ok(created)
    }

    /// Asks whether these topics could be created, and creates none.
    ///
    /// Returns and errors are those of [`create_topics`](Admin::create_topics) without `NoLeader`.
    pub fn validate_topics(&mut self, topics: &[NewTopic]) -> Result<Vec<(String, Created)>> {
        let mut backoff = self.cluster.backoff();
        self.request_topics(topics, true, &mut backoff)
    }

    fn request_topics(
        &mut self,
        topics: &[NewTopic],
        validate_only: bool,
        backoff: &mut Backoff,
    ) -> Result<Vec<(String, Created)>> {
        let request = CreateTopicsRequest::default()
            .with_topics(topics.iter().map(creatable).collect())
            .with_timeout_ms(millis(self.cluster.config().request_timeout))
            .with_validate_only(validate_only);
        backoff.retry(|backoff| {
            let (broker, answer) = self.cluster.call_any(&request, backoff.attempt())?;
            let mut created = Vec::with_capacity(topics.len());
            for NewTopic { name, .. } in topics {
                let result = answer.topics.iter().find(|result| result.name.0 == **name);
                let result =
                    result.ok_or_else(|| left_out::<CreateTopicsRequest>(&broker, name))?;
                let outcome = if ErrorCode(result.error_code) == ErrorCode::TOPIC_ALREADY_EXISTS {
                    Created::AlreadyExists
                } else {
                    let words = result.error_message.as_deref().unwrap_or_default();
                    let detail = format_args!("topic {name}: {words}");
                    Error::check::<CreateTopicsRequest>(result.error_code, &broker, detail)?;
                    Created::Created
                };
                created.push((name.clone(), outcome));
            }
            Ok(created)
        })
    }

    /// Describes these topics; those that do not exist are left out.
    ///
    /// # Errors
    /// Those of the connection, retried for [`Config::api_timeout`]; `Refused` for a name that is invalid or may not be
    /// seen.
    pub fn describe_topics(&mut self, names: &[String]) -> Result<Vec<TopicDescription>> {
        let wanted: Vec<Arc<str>> = names.iter().map(|name| name.as_str().into()).collect();
        self.cluster
            .backoff()
            .retry(|backoff| self.cluster.refresh(&wanted, backoff.attempt()))?;
        let mut described = Vec::new();
        for name in names {
            if let Some(topic) = self.cluster.seen_topic(name) {
                let replication = topic
                    .partitions
                    .first()
                    .map_or(0, |partition| partition.replicas)
                    as i16;
                let (name, partitions) = (name.clone(), topic.partitions.len() as i32);
                described.push(TopicDescription {
                    name,
                    id: topic.id,
                    partitions,
                    replication,
                });
            }
        }
        Ok(described)
    }

    /// The values in force of one setting (`cleanup.policy`, `max.message.bytes`, …) for each of these topics, in their
    /// order.
    ///
    /// # Errors
    /// `Refused` (UNKNOWN_TOPIC_OR_PARTITION, TOPIC_AUTHORIZATION_FAILED, …); those of the connection, retried for
    /// [`Config::api_timeout`].
    pub fn topic_config(&mut self, names: &[String], key: &str) -> Result<Vec<String>> {
        let found = self.describe_configs(TOPIC_RESOURCE, names, &[key], None)?;
        let values = names.iter().zip(found).map(|(name, values)| {
            let value = values.into_iter().next().map(|(_, value)| value);
            value.ok_or_else(|| left_out::<DescribeConfigsRequest>("a broker", name))
        });
        values.collect()
    }

    /// The values in force of these settings of a broker, each with its name, asked at its own address. Left out are
    /// those that it does not know.
    ///
    /// # Errors
    /// `Refused` (CLUSTER_AUTHORIZATION_FAILED, …); `Unreachable` and others of the connection, retried for
    /// [`Config::api_timeout`].
    pub fn broker_config(
        &mut self,
        broker: &BrokerDescription,
        keys: &[&str],
    ) -> Result<Vec<(String, String)>> {
        let ids = [broker.id.to_string()];
        let mut found =
            self.describe_configs(BROKER_RESOURCE, &ids, keys, Some(&broker.address))?;
        Ok(found.pop().unwrap_or_default())
    }

    /// The known ones of these settings for each of the resources, asked at this address or anywhere.
    fn describe_configs(
        &mut self,
        kind: i8,
        names: &[String],
        keys: &[&str],
        address: Option<&str>,
    ) -> Result<Vec<Vec<(String, String)>>> {
        let keys: Vec<StrBytes> = keys
            .iter()
            .map(|key| StrBytes::from_string((*key).to_owned()))
            .collect();
        let resources = names.iter().map(|name| {
            DescribeConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(StrBytes::from_string(name.clone()))
                .with_configuration_keys(Some(keys.clone()))
        });
        let request = DescribeConfigsRequest::default().with_resources(resources.collect());
        self.cluster.backoff().retry(|backoff| {
            let (broker, answer) = match address {
                None => self.cluster.call_any(&request, backoff.attempt())?,
                Some(address) => {
                    let answer = self.cluster.call(
                        address,
                        &request,
                        backoff.attempt(),
                        Retry::Idempotent,
                    )?;
                    (address.to_owned(), answer)
                }
            };
            let mut values = Vec::with_capacity(names.len());
            for name in names {
                let result = answer
                    .results
                    .iter()
                    .find(|result| *result.resource_name == **name);
                let result =
                    result.ok_or_else(|| left_out::<DescribeConfigsRequest>(&broker, name))?;
                let what = if kind == TOPIC_RESOURCE {
                    "topic"
                } else {
                    "broker"
                };
                let detail = format_args!("{what} {name}");
                Error::check::<DescribeConfigsRequest>(result.error_code, &broker, detail)?;
                let known = result
                    .configs
                    .iter()
                    .filter_map(|config| Some((&config.name, config.value.as_ref()?)));
                values.push(
                    known
                        .map(|(name, value)| (name.to_string(), value.to_string()))
                        .collect(),
                );
            }
            Ok(values)
        })
    }

    /// The brokers of the cluster by their ids, as last seen by this client; asked for where none was seen yet.
    ///
    /// # Errors
    /// Those of the connection, retried for [`Config::api_timeout`].
    pub fn brokers(&mut self) -> Result<Vec<BrokerDescription>> {
        if self.cluster.brokers.is_empty() {
            self.cluster
                .backoff()
                .retry(|backoff| self.cluster.refresh(&[], backoff.attempt()))?;
        }
        let brokers = self.cluster.brokers.iter();
        Ok(brokers
            .map(|(id, address)| BrokerDescription {
                id: *id,
                address: address.clone(),
            })
            .collect())
    }

    /// Deletes these topics; those that do not exist count as deleted. The broker removes their data a little later.
    ///
    /// # Errors
    /// `Refused` (TOPIC_DELETION_DISABLED, TOPIC_AUTHORIZATION_FAILED, …); those of the connection, retried for
    /// [`Config::api_timeout`].
    pub fn delete_topics(&mut self, names: &[String]) -> Result<()> {
        let topics = names
            .iter()
            .map(|name| DeleteTopicState::default().with_name(Some(topic_name(name))));
        let request = DeleteTopicsRequest::default()
            .with_topics(topics.collect())
            .with_timeout_ms(millis(self.cluster.config().request_timeout));
        self.cluster.backoff().retry(|backoff| {
            let (broker, answer) = self.cluster.call_any(&request, backoff.attempt())?;
            for topic in answer.responses {
                if ErrorCode(topic.error_code) != ErrorCode::UNKNOWN_TOPIC_OR_PARTITION {
                    let name = topic.name.unwrap_or_default();
                    Error::check::<DeleteTopicsRequest>(topic.error_code, &broker, &*name.0)?;
                }
            }
            Ok(())
        })
    }

    /// An offset of each of these partitions, in no particular order.
    ///
    /// `isolation` matters for [`OffsetSpec::Latest`] only.
    ///
    /// # Errors
    /// `Refused` (UNKNOWN_TOPIC_OR_PARTITION, …), `NoLeader` and those of the connection, retried for
    /// [`Config::api_timeout`].
    pub fn list_offsets(
        &mut self,
        partitions: &[(String, i32)],
        spec: OffsetSpec,
        isolation: Isolation,
    ) -> Result<Vec<ListedOffset>> {
        list_offsets(&mut self.cluster, partitions, spec, isolation)
    }

    /// Finds the coordinators of a group and of a transactional id, which makes Kafka create the topics that they live
    /// in.
    ///
    /// # Errors
    /// `Refused` with COORDINATOR_NOT_AVAILABLE when there is none within the call's limit, with
    /// GROUP_AUTHORIZATION_FAILED or TRANSACTIONAL_ID_AUTHORIZATION_FAILED at once; those of the connection.
    pub fn find_coordinators(&mut self, group: &str, transactional_id: &str) -> Result<()> {
        let mut backoff = self.cluster.backoff();
        for coordinator in [
            CoordinatorKey::Group(group.to_owned()),
            CoordinatorKey::Transaction(transactional_id.to_owned()),
        ] {
            backoff.retry(|backoff| self.cluster.coordinator(&coordinator, backoff.attempt()))?;
        }
        Ok(())
    }

    /// What this client's user may do with these topics; those that it may not see, or that do not exist, are left out.
    ///
    /// # Errors
    /// Those of the connection, retried for [`Config::api_timeout`].
    pub fn topic_operations(&mut self, names: &[String]) -> Result<Vec<(String, Operations)>> {
        let names: Vec<Arc<str>> = names.iter().map(|name| name.as_str().into()).collect();
        let request: MetadataRequest =
            metadata_request(&names).with_include_topic_authorized_operations(true);
        let (_, answer) = self
            .cluster
            .backoff()
            .retry(|backoff| self.cluster.call_any(&request, backoff.attempt()))?;
        let seen = answer
            .topics
            .into_iter()
            .filter(|topic| ErrorCode(topic.error_code) == ErrorCode::NONE);
        let named = seen.filter_map(|topic| Some((topic.name?, topic.topic_authorized_operations)));
        Ok(named
            .map(|(name, operations)| (name.to_string(), Operations(operations)))
            .collect())
    }

    /// The members of a group, whether its clients divide it among themselves (KIP-62) or the broker does (KIP-848);
    /// none where there is no such group.
    ///
    /// # Errors
    /// `Refused` (GROUP_AUTHORIZATION_FAILED, …); those of the connection, retried for [`Config::api_timeout`].
    pub fn group_members(&mut self, group: &str) -> Result<Vec<GroupMember>> {
        let mut members = Vec::new();
        let request = DescribeGroupsRequest::default().with_groups(vec![group_id(group)]);
        let answer = self.ask_coordinator(group, &request)?;
        for member in answer.groups.into_iter().flat_map(|group| group.members) {
            let mut partitions = Vec::new();
            for (topic, numbers) in decode_assignment(&member.member_assignment).unwrap_or_default()
            {
                partitions.extend(numbers.into_iter().map(|number| (topic.clone(), number)));
            }
            let (client_id, host) = (member.client_id.to_string(), member.client_host.to_string());
            members.push(GroupMember {
                client_id,
                host,
                partitions,
            });
        }
        if !members.is_empty() {
            return Ok(members);
        }
        let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(group)]);
        let answer = match self.ask_coordinator(group, &request) {
            Err(Error::UnsupportedVersion { .. }) => return Ok(members),
            Err(error) if error.code() == Some(ErrorCode::GROUP_ID_NOT_FOUND) => {
                return Ok(members);
            }
            answered => answered?,
        };
        for member in answer.groups.into_iter().flat_map(|group| group.members) {
            let mut partitions = Vec::new();
            for topic in member.assignment.topic_partitions {
                partitions.extend(
                    topic
                        .partitions
                        .iter()
                        .map(|number| (topic.topic_name.0.to_string(), *number)),
                );
            }
            let (client_id, host) = (member.client_id.to_string(), member.client_host.to_string());
            members.push(GroupMember {
                client_id,
                host,
                partitions,
            });
        }
        Ok(members)
    }

    fn ask_coordinator<R: CoordinatorRequest>(
        &mut self,
        group: &str,
        request: &R,
    ) -> Result<R::Response> {
        let (mut backoff, coordinator) = (
            self.cluster.backoff(),
            CoordinatorKey::Group(group.to_owned()),
        );
        self.cluster
            .call_coordinator(&coordinator, request, Retry::Idempotent, &mut backoff)
    }

    /// What `group` has committed for each of these partitions.
    ///
    /// With `require_stable` an offset that an undecided transaction may still change is waited for (KIP-447): without
    /// it, one read right after a successful commit is often the one before.
    ///
    /// # Errors
    /// `Refused` (GROUP_AUTHORIZATION_FAILED, …; UNSTABLE_OFFSET_COMMIT and coordinator errors only when they last for
    /// the whole of the call's limit), those of the connection.
    pub fn committed_offsets(
        &mut self,
        group: &str,
        partitions: &[(String, i32)],
        require_stable: bool,
    ) -> Result<Vec<CommittedOffset>> {
        committed_offsets(&mut self.cluster, group, partitions, require_stable)
    }
}

fn left_out<R: Request>(broker: &str, name: &str) -> Error {
    Error::malformed::<R>(broker, format!("it leaves out {name}"))
}

fn creatable(topic: &NewTopic) -> CreatableTopic {
    let configs = topic.configs.iter().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name(StrBytes::from_string(name.clone()))
            .with_value(Some(StrBytes::from_string(value.clone())))
    });
    CreatableTopic::default()
        .with_name(topic_name(&topic.name))
        .with_num_partitions(topic.partitions)
        .with_replication_factor(topic.replication.unwrap_or(-1))
        .with_configs(configs.collect())
}

/// As [`Admin::committed_offsets`].
pub(crate) fn committed_offsets(
    cluster: &mut Cluster,
    group: &str,
    partitions: &[(String, i32)],
    require_stable: bool,
) -> Result<Vec<CommittedOffset>> {
    let topics = by_topic(
        partitions
            .iter()
            .map(|(topic, partition)| (topic.as_str(), *partition)),
    );
    let topics = topics.map(|(name, partitions)| {
        OffsetFetchRequestTopics::default()
            .with_name(name)
            .with_partition_indexes(partitions)
    });
    let wanted = OffsetFetchRequestGroup::default()
        .with_group_id(group_id(group))
        .with_topics(Some(topics.collect()));
    let request = OffsetFetchRequest::default()
        .with_groups(vec![wanted])
        .with_require_stable(require_stable);
    let (mut backoff, coordinator) = (cluster.backoff(), CoordinatorKey::Group(group.to_owned()));
    let answer =
        cluster.call_coordinator(&coordinator, &request, Retry::Idempotent, &mut backoff)?;
    let mut offsets = Vec::new();
    for topic in answer.groups.into_iter().flat_map(|group| group.topics) {
        for found in topic.partitions {
            offsets.push(CommittedOffset {
                topic: topic.name.0.to_string(),
                partition: found.partition_index,
                offset: found.committed_offset,
                leader_epoch: found.committed_leader_epoch,
                metadata: found
                    .metadata
                    .map(|text| text.to_string())
                    .unwrap_or_default(),
            });
        }
    }
    Ok(offsets)
}

/// As [`Admin::list_offsets`].
pub(crate) fn list_offsets(
    cluster: &mut Cluster,
    partitions: &[(String, i32)],
    spec: OffsetSpec,
    isolation: Isolation,
) -> Result<Vec<ListedOffset>> {
    cluster
        .backoff()
        .retry(|backoff| try_list_offsets(cluster, partitions, spec, isolation, backoff))
}

/// Asks each leader once.
pub(crate) fn try_list_offsets(
    cluster: &mut Cluster,
    partitions: &[(String, i32)],
    spec: OffsetSpec,
    isolation: Isolation,
    backoff: &Backoff,
) -> Result<Vec<ListedOffset>> {
    let names: Vec<Arc<str>> = partitions
        .iter()
        .map(|(topic, _)| topic.as_str().into())
        .collect();
    cluster.refresh(&names, backoff.attempt())?;
    let timestamp = match spec {
        OffsetSpec::Earliest => -2,
        OffsetSpec::Latest => -1,
        OffsetSpec::Timestamp(at) => at,
    };
    let mut by_leader: BTreeMap<String, Vec<(&str, ListOffsetsPartition)>> = BTreeMap::new();
    for (topic, partition) in partitions {
        let wanted = ListOffsetsPartition::default()
            .with_partition_index(*partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(timestamp);
        let leader = cluster.leader(topic, *partition)?;
        by_leader.entry(leader).or_default().push((topic, wanted));
    }
    let mut offsets = Vec::with_capacity(partitions.len());
    for (leader, wanted) in by_leader {
        let topics = by_topic(wanted.into_iter()).map(|(name, wanted)| {
            ListOffsetsTopic::default()
                .with_name(name)
                .with_partitions(wanted)
        });
        // The codec's default replica id is 0, a broker's; -1 is a client.
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(isolation as i8)
            .with_topics(topics.collect());
        let answer = cluster.call(&leader, &request, backoff.attempt(), Retry::Idempotent)?;
        for topic in answer.topics {
            for found in topic.partitions {
                let (topic, partition) = (topic.name.0.to_string(), found.partition_index);
                let detail = format_args!("{topic}-{partition}");
                Error::check::<ListOffsetsRequest>(found.error_code, &leader, detail)?;
                let (offset, timestamp) = (found.offset, found.timestamp);
                offsets.push(ListedOffset {
                    topic,
                    partition,
                    offset,
                    timestamp,
                });
            }
        }
    }
    Ok(offsets)
}
