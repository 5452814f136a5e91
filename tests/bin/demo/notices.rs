//! The notices "this part has failed for good" on the topics, as a read-committed reader sees them.

use std::collections::HashMap;
use std::time::Duration;

use kafka::{
    Admin, Consumer, FetchConfig, Interrupt, Isolation, OffsetSpec, Polled, Record, TopicPartition,
};

use crate::stage::Stage;

/// Payment's topic of failures, and stock's.
const TOPICS: [&str; 2] = ["payment.dlt", "stock.dlt"];

/// A reader of both topics.
pub struct Notices {
    consumer: Consumer,
    names: [String; 2],
    /// The reason's code, by topic and order.
    seen: HashMap<(String, String), String>,
}

impl Notices {
    /// Reads what is written from now on.
    ///
    /// # Errors
    /// Kafka's.
    pub fn from_now_on(stage: &Stage) -> Result<Notices, String> {
        let config = stage.config.kafka("demo");
        let names = TOPICS.map(|topic| format!("{}{topic}", stage.config.topic_prefix));
        let interrupt = Interrupt::new();
        let mut admin = Admin::new(config.clone(), interrupt.clone());
        let fetch = FetchConfig {
            max_wait: Duration::from_millis(200),
            ..FetchConfig::default()
        };
        let mut consumer = Consumer::new(config, interrupt, fetch);
        consumer.assign(&ends(&mut admin, &names).map_err(|error| format!("topics: {error}"))?);
        Ok(Notices {
            consumer,
            names,
            seen: HashMap::new(),
        })
    }

    /// The codes of payment's and stock's notice about this order; `-` where none came in time.
    ///
    /// # Errors
    /// Kafka's, or an interruption.
    pub fn wait_for(&mut self, stage: &Stage, order_id: &str) -> Result<[String; 2], String> {
        let look = || {
            self.poll()?;
            Ok(self
                .names
                .clone()
                .map(|name| self.seen.get(&(name, order_id.to_string())).cloned()))
        };
        let codes = stage.look_until(look, |codes| codes.iter().all(Option::is_some))?;
        Ok(codes.map(|code| code.unwrap_or("-".into())))
    }

    fn poll(&mut self) -> Result<(), String> {
        for polled in self
            .consumer
            .poll()
            .map_err(|error| format!("reading topics: {error}"))?
        {
            if let Polled::Records {
                partition, records, ..
            } = polled
            {
                for record in records {
                    self.seen
                        .insert((partition.topic.to_string(), key(&record)), code(&record));
                }
            }
        }
        Ok(())
    }
}

/// All partitions of these topics, each with the end of what is committed there.
fn ends(admin: &mut Admin, names: &[String]) -> kafka::Result<Vec<(TopicPartition, i64)>> {
    let mut ends = vec![];
    for topic in admin.describe_topics(names)? {
        let places: Vec<(String, i32)> = (0..topic.partitions)
            .map(|partition| (topic.name.clone(), partition))
            .collect();
        for found in admin.list_offsets(&places, OffsetSpec::Latest, Isolation::ReadCommitted)? {
            let name = topic.name.as_str().into();
            ends.push((
                TopicPartition {
                    topic: name,
                    topic_id: topic.id,
                    partition: found.partition,
                },
                found.offset,
            ));
        }
    }
    Ok(ends)
}

fn key(record: &Record) -> String {
    record
        .key
        .as_deref()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .unwrap_or_default()
}

fn code(record: &Record) -> String {
    let data: serde_json::Value =
        serde_json::from_slice(record.value.as_deref().unwrap_or_default()).unwrap_or_default();
    data["reason"]["code"].as_str().unwrap_or("?").to_string()
}
