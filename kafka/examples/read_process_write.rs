//! Copies a topic to another, each record once, whatever is killed, by one process or by several that share the partitions:
//! `cargo run -p kafka --example read_process_write -- localhost:9092 FROM TO NAME`, with a NAME of its own for each.
//!
//! How far it has read is committed in the transaction with what it has written, as the group's offsets (KIP-98), and by a
//! member of the group alone (KIP-447). A second process under the same name takes over, and the first ends as fenced.

use std::time::Duration;

use kafka::{
    Config, ErrorCode, FetchConfig, GroupConfig, GroupConsumer, Interrupt, Polled, Positions,
    Producer, ProducerRecord, Record, Result, TopicPartition,
};

const GROUP: &str = "example-copy";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |otherwise: &str| arguments.next().unwrap_or_else(|| otherwise.to_owned());
    let config = Config::new(vec![argument("localhost:9092")], "example");
    let (from, to, name) = (
        argument("orders"),
        argument("copies"),
        argument("example-copy"),
    );
    let group = GroupConfig::new(GROUP, vec![from]);
    let positions = Positions::CommittedOrEarliest;
    let mut consumer = GroupConsumer::new(
        config.clone(),
        Interrupt::new(),
        group,
        FetchConfig::default(),
        positions,
    )?;
    let mut producer =
        Producer::transactional(config, Interrupt::new(), name, Duration::from_secs(60));
    loop {
        if producer.identity().is_none() {
            producer.initialise()?;
        }
        let (mut copies, mut offsets) = (Vec::new(), Vec::new());
        for polled in consumer.poll(Duration::from_secs(1))? {
            if let Polled::Records {
                partition,
                records,
                next_offset,
                ..
            } = polled
            {
                copies.extend(records.into_iter().map(|record| copy(&to, record)));
                offsets.push((partition, next_offset, String::new()));
            }
        }
        match write(&mut producer, &consumer, &copies, &offsets) {
            // the partitions are somebody else's by now, who reads on from what was committed last
            Err(error)
                if matches!(
                    error.code(),
                    Some(ErrorCode::ILLEGAL_GENERATION | ErrorCode::UNKNOWN_MEMBER_ID)
                ) => {}
            written => written?,
        }
    }
}

fn copy(
    to: &str,
    Record {
        key,
        value,
        headers,
        timestamp,
        ..
    }: Record,
) -> ProducerRecord {
    ProducerRecord {
        topic: to.into(),
        key,
        value,
        headers,
        timestamp: Some(timestamp),
        partition: None,
    }
}

/// A transaction that is dropped without an end is aborted by the next `initialise`.
fn write(
    producer: &mut Producer,
    consumer: &GroupConsumer,
    copies: &[ProducerRecord],
    offsets: &[(TopicPartition, i64, String)],
) -> Result<()> {
    if offsets.is_empty() {
        return Ok(());
    }
    let mut transaction = producer.begin()?;
    transaction.send(copies)?;
    transaction.commit_offsets(GROUP, consumer.assignment(), offsets)?;
    transaction.commit()
}
