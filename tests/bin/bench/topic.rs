//! A topic as its readers see it.

use harness::World;
use kafka::{
    Admin, Consumer, FetchConfig, Interrupt, Isolation, OffsetSpec, Polled, Record, TopicPartition,
};

/// A read-committed reader of all partitions of a topic.
pub struct Reader(Consumer);

impl Reader {
    /// Of a topic, its name without prefix, from its beginning or its present end.
    ///
    /// # Errors
    /// Kafka's.
    pub fn new(world: &World, topic: &str, from: OffsetSpec) -> Result<Reader, String> {
        let (name, id, offsets) = offsets(world, topic, from)?;
        let place = |(partition, offset)| {
            (
                TopicPartition {
                    topic: name.as_str().into(),
                    topic_id: id,
                    partition,
                },
                offset,
            )
        };
        let mut consumer = Consumer::new(world.kafka(), Interrupt::new(), FetchConfig::default());
        consumer.assign(&offsets.into_iter().map(place).collect::<Vec<_>>());
        Ok(Reader(consumer))
    }

    /// What has come, by partition; empty if nothing does for half a second.
    ///
    /// # Errors
    /// Kafka's, and records that can't be read.
    pub fn poll(&mut self) -> Result<Vec<(i32, Vec<Record>)>, String> {
        let records = |polled| match polled {
            Polled::Records {
                partition, records, ..
            } => Ok((partition.partition, records)),
            other => Err(format!("records were expected, not {other:?}")),
        };
        self.0
            .poll()
            .map_err(said)?
            .into_iter()
            .map(records)
            .collect()
    }
}

/// The sum of the offsets behind the last records of a topic's partitions.
///
/// # Errors
/// Kafka's.
pub fn end(world: &World, topic: &str) -> Result<i64, String> {
    let (_, _, offsets) = offsets(world, topic, OffsetSpec::Latest)?;
    Ok(offsets.iter().map(|(_, offset)| offset).sum())
}

type Offsets = Vec<(i32, i64)>;

fn offsets(
    world: &World,
    topic: &str,
    spec: OffsetSpec,
) -> Result<(String, uuid::Uuid, Offsets), String> {
    let name = format!("{}{topic}", world.prefix());
    let mut admin = Admin::new(world.kafka(), Interrupt::new());
    let described = admin
        .describe_topics(std::slice::from_ref(&name))
        .map_err(said)?;
    let topic = described
        .first()
        .ok_or(format!("there is no topic {name}"))?;
    let places: Vec<(String, i32)> = (0..topic.partitions)
        .map(|partition| (name.clone(), partition))
        .collect();
    let listed = admin
        .list_offsets(&places, spec, Isolation::ReadCommitted)
        .map_err(said)?;
    Ok((
        name,
        topic.id,
        listed
            .iter()
            .map(|listed| (listed.partition, listed.offset))
            .collect(),
    ))
}

fn said(error: kafka::Error) -> String {
    format!("Kafka: {error}")
}
