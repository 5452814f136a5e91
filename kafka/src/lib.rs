//! A blocking Kafka client in pure Rust: no async runtime, no C library.
//!
//! It speaks the protocol of Kafka 3.5 to 4.x through the codec crate `kafka-protocol`. Every call has a time limit,
//! every frame a size limit; every object reconnects by itself and can be stopped from another thread by an
//! [`Interrupt`]. Errors tell by their [`ErrorKind`] what to do about them.
//!
//! | wanted | use |
//! | --- | --- |
//! | create, describe, delete topics; read offsets | [`Admin`] |
//! | write records, all or none | [`Producer::transactional`], [`Transaction`] |
//! | write records, each once | [`Producer::idempotent`] |
//! | read partitions, read-committed or not | [`Consumer`] |
//! | find the last records of partitions | [`last_records`] |
//! | read partitions from one offset to another | [`read_spans`] |
//! | share partitions with other members | [`Group`], then [`Consumer::assign`] |
//!
//! The files, from the outside in: `admin`, `producer` and `transaction` (over `produce`, which sends the batches),
//! `consumer` (over `fetched`, which reads one partition's answer), `tail` (over `consumer`, backwards), `spans` (over `consumer`, from one offset to another), `group` (over `heartbeat` and `assignor`); `cluster`
//! (leaders, coordinators, reconnecting), `connection` (frames, versions, deadlines), `stream` (the socket, plain or within TLS), `tls` and `sasl` (whom we trust, who we are);
//! `protocol` (versions spoken and why), `shape` (no answer makes the codec reserve more than it holds), `batch` and
//! `compression` (records v2), `wire` (primitive types), `partitioner`, `retry`, `interrupt`, `error` (over `codes`, Kafka's own), `config`, `record`.

mod admin;
mod assignor;
mod batch;
mod cluster;
mod codes;
mod compression;
mod config;
mod connection;
mod consumer;
mod error;
mod fetched;
mod group;
mod heartbeat;
mod interrupt;
mod partitioner;
mod produce;
mod producer;
mod protocol;
mod record;
mod retry;
mod sasl;
mod shape;
mod spans;
mod stream;
mod tail;
mod tls;
mod transaction;
mod wire;

pub use admin::{
    Admin, BrokerDescription, CommittedOffset, Created, GroupMember, ListedOffset, NewTopic, OffsetSpec, Operations,
    TopicDescription,
};
pub use bytes::Bytes;
pub use config::{Config, Security};
pub use consumer::{Consumer, FetchConfig, Isolation, Polled};
pub use error::{Error, ErrorCode, ErrorKind, Result};
pub use group::{Assignment, Group, GroupConfig};
pub use interrupt::Interrupt;
pub use kafka_protocol::protocol::StrBytes;
pub use partitioner::partition_for_key;
pub use producer::{Producer, ProducerIdentity};
pub use record::{Header, ProducerRecord, Record, TopicPartition};
pub use sasl::{Mechanism, Sasl};
pub use spans::{Reading, Span, read_spans};
pub use tail::last_records;
pub use tls::{Tls, roots};
pub use transaction::{GroupOffset, Transaction};
