//! The installation's topics in Kafka.

use kafka::{Admin, Created, NewTopic};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::event::Topic;

/// Their names with the prefix, in the order given.
pub fn names(prefix: &str, topics: &[Topic]) -> Vec<String> {
    topics.iter().map(|topic| format!("{prefix}{}", topic.name())).collect()
}

/// Makes sure of the installation's eight topics, as they are missing.
///
/// # Errors
/// Kafka's; [`Error::Fatal`] when a topic can't be used.
pub fn create(admin: &mut Admin, config: &Config) -> Result<()> {
    let new = |name| NewTopic {
        name,
        partitions: config.topic_partitions,
        replication: config.topic_replication,
        configs: vec![],
    };
    let topics: Vec<NewTopic> = names(&config.topic_prefix, &Topic::ALL).into_iter().map(new).collect();
    let created = admin.create_topics(&topics)?;
    for (name, _) in created.iter().filter(|(_, created)| *created == Created::Created) {
        log::info!("created topic {name} with {} partitions", config.topic_partitions);
    }
    // a topic that was there before may not be fit for the saga
    let found = find(admin, config)?;
    found.remarks().iter().for_each(|remark| log::warn!("{remark}"));
    found.fit()
}

/// The installation's topics as Kafka has them.
pub struct Found {
    /// The names of those that exist.
    pub there: Vec<String>,
    missing: Vec<String>,
    remarks: Vec<String>,
    /// Each with its cleanup policy, as far as that may be seen.
    policies: Vec<(String, String)>,
}

/// Looks at the topics, and changes nothing.
///
/// # Errors
/// Kafka's.
pub fn find(admin: &mut Admin, config: &Config) -> Result<Found> {
    let described = admin.describe_topics(&names(&config.topic_prefix, &Topic::ALL))?;
    let is_there = |name: &String| described.iter().any(|topic| topic.name == *name);
    let (there, missing) = names(&config.topic_prefix, &Topic::ALL).into_iter().partition(is_there);
    let other = described.iter().filter(|topic| topic.partitions != config.topic_partitions);
    let remarks = other.map(|topic| {
        let (name, count, wanted) = (&topic.name, topic.partitions, config.topic_partitions);
        format!("topic {name} has {count} partitions; TOPIC_PARTITIONS={wanted} counts for new topics only")
    });
    let mut found = Found { there, missing, remarks: remarks.collect(), policies: vec![] };
    found.read_policies(admin);
    Ok(found)
}

impl Found {
    /// It takes a right of its own, and is a precaution only.
    fn read_policies(&mut self, admin: &mut Admin) {
        if self.there.is_empty() {
            return;
        }
        match admin.topic_config(&self.there, "cleanup.policy") {
            Ok(policies) => self.policies = self.there.iter().cloned().zip(policies).collect(),
            Err(error) => self.remarks.push(format!("the topics' settings can't be checked: {error}")),
        }
    }

    /// What to know about them, with what a start would create.
    pub fn remarks(&self) -> Vec<String> {
        let missing = match &self.missing[..] {
            [] => None,
            [name] => Some(format!("topic {name} is missing, it will be created")),
            names => Some(format!("topics {} are missing, they will be created", names.join(", "))),
        };
        missing.into_iter().chain(self.remarks.iter().cloned()).collect()
    }

    /// Whether the saga can use those that exist.
    ///
    /// # Errors
    /// [`Error::Fatal`], naming the first that it can't and what to do.
    pub fn fit(&self) -> Result<()> {
        let Some((name, policy)) = self.policies.iter().find(|(_, policy)| policy.contains("compact")) else {
            return Ok(());
        };
        Err(Error::Fatal(format!(
            "topic {name} has cleanup.policy={policy}: compaction removes records that were not read yet; \
             set it to delete, or set TOPIC_PREFIX to use other topics"
        )))
    }
}
