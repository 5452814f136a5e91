//! Copies a topic to another, each record once, whatever is killed:
//! `cargo run -p kafka --example read_process_write -- localhost:9092 FROM TO`.
//!
//! How far it has read is committed in the transaction with what it has written, as a group's offset (KIP-98). One process for a
//! transactional id: a second one takes over, and the first ends as fenced.

use std::time::Duration;

use kafka::{
    Admin, Config, Consumer, Error, FetchConfig, GroupOffset, Interrupt, Producer, ProducerRecord, Result,
    TopicPartition,
};

const GROUP: &str = "example-copy";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let broker = arguments.next().unwrap_or_else(|| "localhost:9092".to_owned());
    let from = arguments.next().unwrap_or_else(|| "orders".to_owned());
    let to = arguments.next().unwrap_or_else(|| "copies".to_owned());
    let config = Config::new(vec![broker], "example");
    let mut admin = Admin::new(config.clone(), Interrupt::new());
    let Some(topic) = admin.describe_topics(std::slice::from_ref(&from))?.pop() else {
        return Err(Error::Invalid(format!("there is no topic {from}")));
    };
    let mut producer = Producer::transactional(config.clone(), Interrupt::new(), GROUP, Duration::from_secs(60));
    // first the door, behind which no predecessor can move the offsets, then the offsets
    producer.initialise()?;
    let places: Vec<(String, i32)> = (0..topic.partitions).map(|partition| (from.clone(), partition)).collect();
    let committed = admin.committed_offsets(GROUP, &places, true)?;
    let mut consumer = Consumer::new(config, Interrupt::new(), FetchConfig::default());
    let start = |found: kafka::CommittedOffset| {
        let place = TopicPartition { topic: from.as_str().into(), topic_id: topic.id, partition: found.partition };
        (place, found.offset.max(0))
    };
    consumer.assign(&committed.into_iter().map(start).collect::<Vec<_>>());
    loop {
        for polled in consumer.poll()? {
            let kafka::Polled::Records { partition, records, next_offset, .. } = polled else { continue };
            let copy = |record: kafka::Record| ProducerRecord {
                key: record.key,
                ..ProducerRecord::new(to.as_str(), record.value.unwrap_or_default())
            };
            let offset = GroupOffset {
                group: GROUP,
                topic: &partition.topic,
                partition: partition.partition,
                offset: next_offset,
                metadata: "",
            };
            let mut transaction = producer.begin()?;
            transaction.send(records.into_iter().map(copy).collect::<Vec<_>>())?;
            transaction.commit_offset(&offset)?;
            transaction.commit()?;
        }
    }
}
