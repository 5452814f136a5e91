//! Records and the places they live in.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

/// A partition of one topic, told apart from a topic of the same name that is made later by the topic's id (KIP-516).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The topic's id.
    pub topic_id: Uuid,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// The topic's name and the partition's number, by which offsets are asked for.
    pub(crate) fn named(&self) -> (String, i32) {
        (self.topic.to_string(), self.partition)
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A header's key and its value, which may be null.
pub type Header = (StrBytes, Option<Bytes>);

/// A record as it was read. Key, value and header values are slices of the fetched batch, not copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// Milliseconds since 1970 (UTC): when it was created, or appended where the topic says so.
    pub timestamp: i64,
    /// The key, or null.
    pub key: Option<Bytes>,
    /// The value, or null.
    pub value: Option<Bytes>,
    /// The headers in their order; a key may occur twice.
    pub headers: Vec<Header>,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerRecord {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The key, or null.
    pub key: Option<Bytes>,
    /// The value, or null.
    pub value: Option<Bytes>,
    /// The headers, kept in this order.
    pub headers: Vec<Header>,
    /// When it was created, in milliseconds since 1970 (UTC); `None`: when it is sent. Kafka removes records by their age.
    pub timestamp: Option<i64>,
    /// The partition, or `None` for the key's own (murmur2); records without a key then go to one partition a call,
    /// another one each call.
    pub partition: Option<i32>,
}

impl ProducerRecord {
    /// A record without a key, for any partition, created when it is sent.
    ///
    /// ```
    /// use kafka::ProducerRecord;
    /// let record = ProducerRecord::new("orders", "two teas").with_key("order 7").with_header("source", "shop");
    /// ```
    pub fn new(topic: impl Into<Arc<str>>, value: impl Into<Bytes>) -> ProducerRecord {
        ProducerRecord {
            topic: topic.into(),
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp: None,
            partition: None,
        }
    }

    /// With this key, which also says the partition.
    pub fn with_key(self, key: impl Into<Bytes>) -> ProducerRecord {
        ProducerRecord {
            key: Some(key.into()),
            ..self
        }
    }

    /// For this partition, whatever the key.
    pub fn with_partition(self, partition: i32) -> ProducerRecord {
        ProducerRecord {
            partition: Some(partition),
            ..self
        }
    }

    /// With one header more.
    pub fn with_header(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
    ) -> ProducerRecord {
        self.headers
            .push((StrBytes::from_string(key.into()), Some(value.into())));
        self
    }
}

/// Which records a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// All, also those of open and aborted transactions.
    ReadUncommitted = 0,
    /// Those of committed transactions and those outside of any, up to the first transaction that is still open.
    ReadCommitted = 1,
}
