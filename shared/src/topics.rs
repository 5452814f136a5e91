//! The installation's topics in Kafka.

use kafka::{Admin, Created, NewTopic};

use crate::config::Config;
use crate::error::Result;
use crate::event::Topic;

/// Makes sure of the installation's eight topics, as they are missing.
///
/// # Errors
/// Kafka's; [`Error::Fatal`] when a topic can't be used.
pub fn create(admin: &mut Admin, config: &Config) -> Result<()> {
    let topics: Vec<NewTopic> = Topic::ALL
        .iter()
        .map(|topic| NewTopic {
            name: format!("{}{}", config.topic_prefix, topic.name()),
            partitions: config.topic_partitions,
            replication: config.topic_replication,
            configs: vec![],
        })
        .collect();
    let created = admin.create_topics(&topics)?;
    for (name, _) in created.iter().filter(|(_, created)| *created == Created::Created) {
        log::info!("created topic {name} with {} partitions", config.topic_partitions);
    }
    check(admin, config)
}

fn check(admin: &mut Admin, config: &Config) -> Result<()> {
    let names: Vec<String> =
        Topic::ALL.iter().map(|topic| format!("{}{}", config.topic_prefix, topic.name())).collect();
    for topic in admin.describe_topics(&names)? {
        if topic.partitions != config.topic_partitions {
            log::warn!(
                "topic {} has {} partitions; TOPIC_PARTITIONS={} counts for new topics only",
                topic.name,
                topic.partitions,
                config.topic_partitions
            );
        }
    }
    Ok(())
}
