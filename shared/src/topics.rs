//! The installation's topics in Kafka.

use kafka::{Admin, Created, NewTopic};

use crate::config::Config;
use crate::error::{Error, Result};
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

/// A topic that was there before may not be fit for the saga.
fn check(admin: &mut Admin, config: &Config) -> Result<()> {
    let names: Vec<String> =
        Topic::ALL.iter().map(|topic| format!("{}{}", config.topic_prefix, topic.name())).collect();
    for topic in admin.describe_topics(&names)?.iter().filter(|topic| topic.partitions != config.topic_partitions) {
        let (name, count) = (&topic.name, topic.partitions);
        log::warn!(
            "topic {name} has {count} partitions; TOPIC_PARTITIONS={} counts for new topics only",
            config.topic_partitions
        );
    }
    let policies = admin.topic_config(&names, "cleanup.policy").unwrap_or_else(|error| {
        // it takes a right of its own, and is a precaution only
        log::warn!("the topics' settings can't be checked: {error}");
        vec![]
    });
    for (name, policy) in names.iter().zip(policies) {
        if policy.contains("compact") {
            return Err(Error::Fatal(format!(
                "topic {name} has cleanup.policy={policy}: compaction removes records that were not read yet; \
                 set it to delete, or set TOPIC_PREFIX to use other topics"
            )));
        }
    }
    Ok(())
}
