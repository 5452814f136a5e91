//! What lies on the topics: a read-committed scan, and records written by hand.

use std::time::{Duration, Instant};

use kafka::{
    Admin, Bytes, Config, Consumer, FetchConfig, Interrupt, Isolation, ListedOffset, OffsetSpec,
    Polled, Producer, ProducerRecord, Record, StrBytes, TopicPartition,
};
use serde_json::Value;
use uuid::Uuid;

use crate::messages;
use crate::wait::LIMIT;
use crate::world::{TOPICS, World};

/// A record as a reader sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The topic, without the installation's prefix.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The timestamp, in milliseconds since 1970.
    pub timestamp: i64,
    /// The key as text; none if null.
    pub key: Option<String>,
    /// Header `ce_type`; empty if missing.
    pub ce_type: String,
    /// Header `ce_id`; empty if missing.
    pub ce_id: String,
    /// Header `ce_time`; empty if missing.
    pub ce_time: String,
    /// All headers, as text.
    pub headers: Vec<(String, String)>,
    /// The value, null if it is no JSON.
    pub data: Value,
}

/// A record to write by hand. [`Message::event`] fills it as the services do; every part may then be spoilt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The topic, without the installation's prefix.
    pub topic: String,
    /// The key, or null.
    pub key: Option<Vec<u8>>,
    /// The headers in their order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The value, or null.
    pub value: Option<Vec<u8>>,
}

impl Message {
    /// One of the saga's events under a message id of its own: `ce_type` and `data` as the contract has them.
    pub fn event(topic: &str, order_id: Uuid, ce_type: &str, data: &Value) -> Message {
        let source = if topic.contains(".compensation") || !topic.contains('.') {
            "order"
        } else {
            side_of(topic)
        };
        let headers = [
            ("ce_specversion", "1.0".to_string()),
            ("ce_id", Uuid::now_v7().to_string()),
            ("ce_type", ce_type.to_string()),
            ("ce_source", format!("/{source}")),
            ("ce_time", "2026-01-02T03:04:05.678901Z".to_string()),
            ("content-type", "application/json".to_string()),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_string(),
            ),
        ];
        Message {
            topic: topic.to_string(),
            key: Some(order_id.to_string().into_bytes()),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.to_string(), value.into_bytes()))
                .collect(),
            value: Some(data.to_string().into_bytes()),
        }
    }

    /// What such a record was made of.
    fn of(topic: &str, record: &Record) -> Message {
        let header = |(name, value): &(StrBytes, Option<Bytes>)| {
            (
                name.to_string(),
                value.as_deref().unwrap_or_default().to_vec(),
            )
        };
        Message {
            topic: topic.to_string(),
            key: record.key.as_deref().map(<[u8]>::to_vec),
            headers: record.headers.iter().map(header).collect(),
            value: record.value.as_deref().map(<[u8]>::to_vec),
        }
    }

    fn to_record(&self, prefix: &str) -> ProducerRecord {
        let header = |(name, value): &(String, Vec<u8>)| {
            (
                StrBytes::from_string(name.clone()),
                Some(Bytes::from(value.clone())),
            )
        };
        ProducerRecord {
            topic: format!("{prefix}{}", self.topic).into(),
            key: self.key.clone().map(Bytes::from),
            value: self.value.clone().map(Bytes::from),
            headers: self.headers.iter().map(header).collect(),
            // a past one would have the broker remove the record, whenever it looks for old ones
            timestamp: None,
            partition: None,
        }
    }
}

fn side_of(topic: &str) -> &str {
    topic.split('.').next().unwrap_or(topic)
}

impl World {
    /// What a read-committed reader sees on a topic (its name without prefix) now, partition after partition.
    ///
    /// # Panics
    /// When the topic does not exist.
    pub fn records(&self, topic: &str) -> Vec<Seen> {
        self.scan(&[topic], Isolation::ReadCommitted)
    }

    /// The same of a reader that does not mind open and aborted transactions.
    ///
    /// # Panics
    /// When the topic does not exist.
    pub fn uncommitted_records(&self, topic: &str) -> Vec<Seen> {
        self.scan(&[topic], Isolation::ReadUncommitted)
    }

    /// What a read-committed reader sees on all eight topics, in the order of [`TOPICS`].
    ///
    /// # Panics
    /// When one does not exist.
    pub fn all_records(&self) -> Vec<Seen> {
        self.scan(&TOPICS, Isolation::ReadCommitted)
    }

    /// What a reader sees on these topics at a moment when no transaction is open on any of their partitions; none if now
    /// is not such a moment, or the broker is away.
    pub fn records_at_rest(&self, topics: &[&str]) -> Option<Vec<Seen>> {
        self.read(
            topics,
            &self.ends_at_rest(topics)?,
            Isolation::ReadCommitted,
        )
        .ok()
    }

    /// Where the partitions of these topics end at such a moment.
    pub(crate) fn ends_at_rest(&self, topics: &[&str]) -> Option<Vec<(TopicPartition, i64)>> {
        // in this order: what is committed up to its end afterwards was at rest in between
        let committed = self.ends(topics, Isolation::ReadCommitted).ok()?;
        let written = self.ends(topics, Isolation::ReadUncommitted).ok()?;
        (committed == written).then_some(committed)
    }

    /// The types of the records about one order, topic after topic in the order of [`TOPICS`].
    ///
    /// # Panics
    /// When a topic does not exist.
    pub fn types_about(&self, order_id: Uuid) -> Vec<String> {
        let key = Some(order_id.to_string());
        self.all_records()
            .into_iter()
            .filter(|seen| seen.key == key)
            .map(|seen| seen.ce_type)
            .collect()
    }

    /// Writes a record, outside of any transaction.
    ///
    /// # Panics
    /// When the broker refuses it.
    pub fn produce(&self, message: &Message) {
        self.try_produce(message)
            .unwrap_or_else(|error| panic!("produce to {}: {error}", message.topic));
    }

    /// The same where the broker may be away.
    ///
    /// # Errors
    /// After one it may be written or not.
    pub fn try_produce(&self, message: &Message) -> Result<(), kafka::Error> {
        let mut producer = Producer::idempotent(self.kafka(), Interrupt::new());
        self.by_hand().insert(message.clone());
        producer.send([message.to_record(self.prefix())]).map(drop)
    }

    /// Writes one of the saga's events, under a message id of its own.
    ///
    /// # Panics
    /// When the broker refuses it.
    pub fn produce_event(&self, topic: &str, order_id: Uuid, ce_type: &str, data: &Value) {
        self.produce(&Message::event(topic, order_id, ce_type, data));
    }

    /// How tests reach the installation's Kafka.
    pub fn kafka(&self) -> Config {
        let config = Config::new(self.bootstrap(), "saga-tests");
        // faults of brokers meanwhile do not wait for them
        let limit = Duration::from_secs(15);
        Config {
            api_timeout: limit,
            delivery_timeout: limit,
            ..config
        }
    }

    /// Holds what is on the topics against `asyncapi.yaml`, as far as it can be read now: brokers that a test has killed, and topics
    /// that it has deleted, are let pass.
    ///
    /// # Panics
    /// When a record that a service wrote is not as it says.
    pub(crate) fn hold_all_records(&self) {
        if let Ok(ends) = self.ends(&TOPICS, Isolation::ReadCommitted) {
            let _ = self.read(&TOPICS, &ends, Isolation::ReadCommitted);
        }
    }

    fn scan(&self, topics: &[&str], isolation: Isolation) -> Vec<Seen> {
        let seen = self
            .ends(topics, isolation)
            .and_then(|ends| self.read(topics, &ends, isolation));
        seen.unwrap_or_else(|error| panic!("reading {}: {error}", topics.join(", ")))
    }

    /// All records before these ends.
    fn read(
        &self,
        topics: &[&str],
        ends: &[(TopicPartition, i64)],
        isolation: Isolation,
    ) -> Result<Vec<Seen>, kafka::Error> {
        let fetch = FetchConfig {
            isolation,
            max_wait: Duration::from_millis(20),
            ..FetchConfig::default()
        };
        let mut consumer = Consumer::new(self.kafka(), Interrupt::new(), fetch);
        let filled: Vec<_> = ends
            .iter()
            .filter(|(_, end)| *end > 0)
            .map(|(place, _)| (place.clone(), 0))
            .collect();
        consumer.assign(&filled);
        let mut seen = Vec::new();
        let is_behind = |consumer: &Consumer| {
            ends.iter().any(|(place, end)| {
                consumer
                    .position(place)
                    .is_some_and(|position| position < *end)
            })
        };
        let begun = Instant::now();
        while is_behind(&consumer) {
            consumer
                .poll()?
                .into_iter()
                .for_each(|polled| self.collect(polled, &mut seen));
            if begun.elapsed() >= LIMIT {
                let what = format!("the ends of {} are not reached", topics.join(", "));
                return Err(kafka::Error::Invalid(what));
            }
        }
        // what was committed while we read is not part of this moment
        seen.retain(|seen| seen.offset < self.end_of(ends, seen));
        let place = |seen: &Seen| {
            (
                topics.iter().position(|topic| *topic == seen.topic),
                seen.partition,
                seen.offset,
            )
        };
        seen.sort_by_key(place);
        Ok(seen)
    }

    /// Where each partition ends.
    fn ends(
        &self,
        topics: &[&str],
        isolation: Isolation,
    ) -> Result<Vec<(TopicPartition, i64)>, kafka::Error> {
        let names: Vec<String> = topics
            .iter()
            .map(|topic| format!("{}{topic}", self.prefix()))
            .collect();
        let mut admin = Admin::new(self.kafka(), Interrupt::new());
        let described = admin.describe_topics(&names)?;
        if described.len() < names.len() {
            return Err(kafka::Error::Invalid(format!(
                "of the topics {names:?} only these are there: {described:?}"
            )));
        }
        let places: Vec<(String, i32)> = described
            .iter()
            .flat_map(|topic| {
                (0..topic.partitions).map(|partition| (topic.name.clone(), partition))
            })
            .collect();
        let listed = admin.list_offsets(&places, OffsetSpec::Latest, isolation)?;
        let id = |name: &str| {
            described
                .iter()
                .find(|topic| topic.name == name)
                .expect("described")
                .id
        };
        let end = |end: &ListedOffset| {
            let (topic, topic_id) = (end.topic.as_str().into(), id(&end.topic));
            (
                TopicPartition {
                    topic,
                    topic_id,
                    partition: end.partition,
                },
                end.offset,
            )
        };
        Ok(listed.iter().map(end).collect())
    }

    fn end_of(&self, ends: &[(TopicPartition, i64)], seen: &Seen) -> i64 {
        let is_its = |place: &TopicPartition| {
            place.partition == seen.partition && self.bare(&place.topic) == seen.topic
        };
        ends.iter()
            .find(|(place, _)| is_its(place))
            .map_or(0, |(_, end)| *end)
    }

    fn bare<'a>(&self, topic: &'a str) -> &'a str {
        topic.strip_prefix(self.prefix()).unwrap_or(topic)
    }

    fn collect(&self, polled: Polled, into: &mut Vec<Seen>) {
        match polled {
            Polled::Records {
                partition, records, ..
            } => {
                let topic = self.bare(&partition.topic);
                for record in &records {
                    let seen = seen(topic, partition.partition, record);
                    if self.is_a_service_s(&Message::of(topic, record)) {
                        messages::check(&seen).unwrap_or_else(|fault| panic!("{fault}"));
                    }
                    into.push(seen);
                }
            }
            other => panic!("records expected, not {other:?}"),
        }
    }
}

/// How a record of a topic (its name without prefix) looks.
pub fn seen(topic: &str, partition: i32, record: &Record) -> Seen {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let headers: Vec<(String, String)> = record
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                value.as_ref().map(text).unwrap_or_default(),
            )
        })
        .collect();
    let header = |name: &str| {
        headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.clone())
            .unwrap_or_default()
    };
    Seen {
        topic: topic.to_string(),
        partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.as_ref().map(text),
        ce_type: header("ce_type"),
        ce_id: header("ce_id"),
        ce_time: header("ce_time"),
        data: record
            .value
            .as_ref()
            .and_then(|value| serde_json::from_slice(value).ok())
            .unwrap_or_default(),
        headers,
    }
}
