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
//! | read topics, shared with other members | [`GroupConsumer`] |
//! | be a member and nothing more | [`Group`] |
//!
//! The files, from the outside in:
//!
//! | file | idea |
//! | --- | --- |
//! | `admin` | topics, offsets, groups, settings, from outside |
//! | `producer`, `producer/transaction` | identities and transactions; `producer/sender` sends the batches, `producer/partitioner` chooses where to |
//! | `consumer` | long polls; `consumer/fetch_response` reads one partition's answer, `consumer/last_records` reads backwards, `consumer/spans` from one offset to another |
//! | `group` | membership; `group/consumer` reads as a member, `group/heartbeat` keeps it one, `group/wake` ends its waits, `group/assignor` divides |
//! | `net` | `cluster` (leaders, coordinators, reconnecting), `connection` (frames, versions, deadlines), `stream` (the socket), `tls` and `sasl` (whom we trust, who we are), `backoff` |
//! | `wire` | `protocol` (versions spoken and why), `layout` (no answer makes the codec reserve more than it holds), `batch` and `compression` (records v2), `primitive` |
//! | `error`, `error/codes` | what can go wrong, over Kafka's own codes |
//! | `config`, `record`, `interrupt` | settings, records, stopping from another thread |

mod admin;
mod config;
mod consumer;
mod error;
mod group;
mod interrupt;
mod net;
mod producer;
mod record;
mod wire;

pub use admin::{
    Admin, BrokerDescription, CommittedOffset, Created, GroupMember, ListedOffset, NewTopic,
    OffsetSpec, Operations, TopicDescription,
};
pub use bytes::Bytes;
pub use config::{Compression, Config, Security};
pub use consumer::last_records::last_records;
pub use consumer::spans::{Span, read_spans};
pub use consumer::{Consumer, FetchConfig, Polled};
pub use error::{Error, ErrorCode, ErrorKind, Result};
pub use group::consumer::{GroupConsumer, Positions};
pub use group::{Assignment, Group, GroupConfig};
pub use interrupt::Interrupt;
pub use kafka_protocol::protocol::StrBytes;
pub use net::sasl::{Mechanism, Sasl};
#[cfg(feature = "tls")]
pub use net::tls::{Tls, certificates, roots};
pub use producer::partitioner::partition_for_key;
pub use producer::sender::Written;
pub use producer::transaction::Transaction;
pub use producer::{Producer, ProducerIdentity};
pub use record::{Header, Isolation, ProducerRecord, Record, TopicPartition};
pub use uuid::Uuid;
