//! The topics, as a read-committed reader sees them: the notices "this part has failed for good", and every record held against
//! `asyncapi.yaml`.

use std::collections::HashMap;
use std::time::Duration;

use harness::{TOPICS, messages, topics};
use kafka::{
    Admin, Consumer, FetchConfig, Interrupt, Isolation, OffsetSpec, Polled, TopicPartition,
};

use crate::stage::Stage;

/// Payment's topic of failures, and stock's.
const NOTICES: [&str; 2] = ["payment.dlt", "stock.dlt"];

/// A reader of all topics.
pub struct Notices {
    consumer: Consumer,
    prefix: String,
    /// How many records were read.
    records: usize,
    /// The reason's code, by topic and order.
    seen: HashMap<(&'static str, String), String>,
}

impl Notices {
    /// Reads what is written from now on.
    ///
    /// # Errors
    /// Kafka's.
    pub fn from_now_on(stage: &Stage) -> Result<Notices, String> {
        let config = stage.config.kafka("demo");
        let prefix = stage.config.topic_prefix.clone();
        let names = TOPICS.map(|topic| format!("{prefix}{topic}"));
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
            prefix,
            records: 0,
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
            Ok(NOTICES.map(|topic| self.seen.get(&(topic, order_id.to_string())).cloned()))
        };
        let codes = stage.look_until(look, |codes| codes.iter().all(Option::is_some))?;
        Ok(codes.map(|code| code.unwrap_or("-".into())))
    }

    /// Reads on until there is nothing more; returns how many records were read in all.
    ///
    /// # Errors
    /// Kafka's; a record that is not as `asyncapi.yaml` says.
    pub fn read_on(&mut self) -> Result<usize, String> {
        loop {
            let before = self.records;
            self.poll()?;
            if self.records == before {
                return Ok(before);
            }
        }
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
                let topic = partition.topic.strip_prefix(&self.prefix);
                let topic = topic.unwrap_or(&partition.topic);
                for record in &records {
                    let seen = topics::seen(topic, partition.partition, record);
                    messages::check(&seen)?;
                    self.records += 1;
                    let notice = NOTICES.into_iter().find(|notice| *notice == topic);
                    if let (Some(notice), Some(key)) = (notice, seen.key) {
                        let code = seen.data["reason"]["code"].as_str().unwrap_or("?");
                        self.seen.insert((notice, key), code.to_string());
                    }
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
