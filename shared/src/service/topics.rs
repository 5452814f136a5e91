//! The service's topics in Kafka: those that it reads or writes. Of the others it needs nothing, and may see nothing.

use std::collections::HashMap;
use std::time::Duration;

use kafka::{Admin, Created, ErrorCode, NewTopic};

use crate::config::{Config, Retention};
use crate::error::{Error, Result};
use crate::event::full_names;

/// What a batch of one record takes at most: names of 200 characters, an idempotency key of 255, the headers and the position.
const LARGEST_RECORD: u32 = 3_000;

/// Creates those of the service's topics that are missing. Returns how long they keep records; none: for ever.
///
/// # Errors
/// Kafka's; [`Error::Fatal`] when a topic can't be used or may not be created, [`Error::Unusable`] when there are too few
/// brokers for its copies.
pub fn create(admin: &mut Admin, config: &Config) -> Result<Option<Duration>> {
    let mut found = find(admin, config)?;
    // where all are there, made by somebody else, the right to create them is not needed
    if !found.missing.is_empty() {
        let created = admin
            .create_topics(&found.new_topics(config))
            .map_err(|error| found.not_created(error))?;
        for (name, _) in created
            .iter()
            .filter(|(_, created)| *created == Created::Created)
        {
            log::info!(
                "created topic {name} with {} partitions",
                config.topic_partitions
            );
        }
        // one that somebody else has just made may not be fit for the saga
        found = find(admin, config)?;
    }
    found
        .remarks()
        .iter()
        .for_each(|remark| log::warn!("{remark}"));
    found.fit(config)?;
    Ok(found.keep())
}

/// The service's topics as Kafka has them.
pub struct FoundTopics {
    /// The names of those that exist.
    pub there: Vec<String>,
    missing: Vec<String>,
    remarks: Vec<String>,
    /// Each with its `cleanup.policy`, as far as that may be seen.
    policies: Vec<(String, String)>,
    /// Each with its `retention.ms`, likewise.
    retentions: Vec<(String, Option<Duration>)>,
}

/// Looks at the topics, and changes nothing.
pub fn find(admin: &mut Admin, config: &Config) -> Result<FoundTopics> {
    let wanted = full_names(&config.topic_prefix, &config.service.topics());
    let described = admin.describe_topics(&wanted)?;
    let (there, missing) = wanted
        .into_iter()
        .partition(|name| described.iter().any(|topic| topic.name == *name));
    let other = described
        .iter()
        .filter(|topic| topic.partitions != config.topic_partitions);
    let remarks = other.map(|topic| {
        let (name, count, wanted) = (&topic.name, topic.partitions, config.topic_partitions);
        format!("topic {name} has {count} partitions; TOPIC_PARTITIONS={wanted} counts for new topics only")
    });
    let mut found = FoundTopics {
        there,
        missing,
        remarks: remarks.collect(),
        policies: vec![],
        retentions: vec![],
    };
    found.policies = found.read(admin, "cleanup.policy");
    let retentions = found.read(admin, "retention.ms");
    found.retentions = retentions
        .into_iter()
        .map(|(name, millis)| (name, retention(&millis)))
        .collect();
    found.remark_short_retentions(config.order_deadline);
    let sizes = found.read(admin, "max.message.bytes");
    found.remarks.extend(
        sizes
            .iter()
            .filter_map(|(name, bytes)| too_small(name, bytes)),
    );
    Ok(found)
}

/// Whether the service's user may do in Kafka what a relay and consumers do, as far as topics are there.
///
/// # Errors
/// [`Error::Fatal`] when a right is missing, [`Error::Unusable`] when Kafka can't make a topic of its own; Kafka's.
pub fn require_use(admin: &mut Admin, config: &Config) -> Result<()> {
    let (group, transactional_id) = (config.group(), config.transactional_id());
    admin.find_coordinators(&group, &transactional_id).map_err(|error| match error {
        kafka::Error::Refused { code: ErrorCode::COORDINATOR_NOT_AVAILABLE, detail, .. } => Error::Unusable(format!(
            "Kafka has no coordinator for {detail}: with fewer brokers than offsets.topic.replication.factor and \
             transaction.state.log.replication.factor (3 by default) it can't make the topics __consumer_offsets and \
             __transaction_state; set both to the number of brokers at most"
        )),
        error => error.into(),
    })?;
    let (read, written) = (
        full_names(&config.topic_prefix, &config.service.reads()),
        full_names(&config.topic_prefix, &config.service.writes()),
    );
    let operations = admin.topic_operations(&[read.clone(), written.clone()].concat())?;
    let allowed: HashMap<_, _> = operations.into_iter().collect();
    // a new leader reads the positions in what it writes
    let unread = read
        .iter()
        .chain(&written)
        .filter(|name| allowed.get(*name).is_some_and(|may| !may.read()));
    let unwritten = written
        .iter()
        .filter(|name| allowed.get(*name).is_some_and(|may| !may.write()));
    let missing: Vec<String> = unread
        .map(|name| format!("READ on {name}"))
        .chain(unwritten.map(|name| format!("WRITE on {name}")))
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::Fatal(format!(
            "Kafka's user lacks rights: grant it {}",
            missing.join(", ")
        ))),
    }
}

impl FoundTopics {
    /// A setting of each. It takes a right of its own to see it, and is a precaution only.
    fn read(&mut self, admin: &mut Admin, key: &str) -> Vec<(String, String)> {
        if self.there.is_empty() {
            return vec![];
        }
        let values = admin
            .topic_config(&self.there, key)
            .unwrap_or_else(|error| {
                self.remarks
                    .push(format!("the topics' {key} can't be checked: {error}"));
                vec![]
            });
        self.there.iter().cloned().zip(values).collect()
    }

    /// What is not read within it is gone, and orders wait for it until their deadline.
    fn remark_short_retentions(&mut self, deadline: Duration) {
        for (name, kept) in self
            .retentions
            .iter()
            .filter_map(|(name, kept)| Some((name, (*kept)?)))
        {
            if kept < deadline {
                self.remarks.push(format!(
                    "topic {name} keeps records for {} s (retention.ms), less than ORDER_DEADLINE ({} s): what a service that is \
                     away for longer has not read is lost",
                    kept.as_secs(),
                    deadline.as_secs()
                ));
            }
        }
    }

    /// How long they keep records; none: for ever, or not known.
    fn keep(&self) -> Option<Duration> {
        self.retentions
            .iter()
            .map(|(_, kept)| *kept)
            .max_by_key(|kept| kept.unwrap_or(Duration::MAX))
            .flatten()
    }

    /// What to know about them, with what a start would create.
    pub fn remarks(&self) -> Vec<String> {
        let missing = match &self.missing[..] {
            [] => None,
            [name] => Some(format!("topic {name} is missing, it will be created")),
            names => Some(format!(
                "topics {} are missing, they will be created",
                names.join(", ")
            )),
        };
        missing
            .into_iter()
            .chain(self.remarks.iter().cloned())
            .collect()
    }

    /// Whether a start could create those that are missing. Nothing is created.
    ///
    /// # Errors
    /// As [`create`].
    pub fn require_creatable(&self, admin: &mut Admin, config: &Config) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        admin
            .validate_topics(&self.new_topics(config))
            .map(drop)
            .map_err(|error| self.not_created(error))
    }

    fn new_topics(&self, config: &Config) -> Vec<NewTopic> {
        self.missing
            .iter()
            .map(|name| NewTopic {
                name: name.clone(),
                partitions: config.topic_partitions,
                replication: config.topic_replication,
                configs: vec![],
            })
            .collect()
    }

    /// Kafka's refusal to create the missing topics, with what to do.
    fn not_created(&self, error: kafka::Error) -> Error {
        let names = self.missing.join(", ");
        match error.code() {
            Some(
                ErrorCode::TOPIC_AUTHORIZATION_FAILED | ErrorCode::CLUSTER_AUTHORIZATION_FAILED,
            ) => Error::Fatal(format!(
                "Kafka's user may not create what is missing: grant it CREATE on {names}, or on the cluster, or have them \
                     created by somebody else ({error})"
            )),
            // the other brokers may be about to come
            Some(ErrorCode::INVALID_REPLICATION_FACTOR) => Error::Unusable(format!(
                "Kafka has fewer brokers than copies are asked for of {names} ({error}): start the others, or set \
                 TOPIC_REPLICATION (without it the brokers' default.replication.factor counts) to their number at most"
            )),
            _ => error.into(),
        }
    }

    /// Whether the saga can use those that exist, with these settings.
    ///
    /// # Errors
    /// [`Error::Fatal`], naming the first that it can't and what to do.
    pub fn fit(&self, config: &Config) -> Result<()> {
        if let Some((name, policy)) = self
            .policies
            .iter()
            .find(|(_, policy)| policy.contains("compact"))
        {
            return Err(Error::Fatal(format!(
                "topic {name} has cleanup.policy={policy}: compaction removes records that were not read yet; \
                 set it to delete, or set TOPIC_PREFIX to use other topics"
            )));
        }
        for (name, kept) in &self.retentions {
            fits(
                "DEAD_LETTER_RETENTION",
                config.dead_letter_retention,
                name,
                *kept,
            )?;
            fits("TIMELINE_RETENTION", config.timeline_retention, name, *kept)?;
        }
        Ok(())
    }
}

/// A topic's `retention.ms`; -1, or Kafka's largest number: for ever.
fn retention(millis: &str) -> Option<Duration> {
    millis
        .parse()
        .ok()
        .filter(|millis| *millis < i64::MAX as u64)
        .map(Duration::from_millis)
}

/// Kafka would refuse some of the service's records.
fn too_small(topic: &str, bytes: &str) -> Option<String> {
    let bytes = bytes
        .parse::<u32>()
        .ok()
        .filter(|bytes| *bytes < LARGEST_RECORD)?;
    Some(format!(
        "topic {topic} takes batches of {bytes} bytes at most (max.message.bytes), and a single record of ours may need \
         {LARGEST_RECORD}: set it to more, or one that does not fit holds up all behind it"
    ))
}

/// What is kept about a record must not be removed before the record: it could be read again, from the topic's beginning.
fn fits(variable: &str, ours: Retention, topic: &str, topics: Option<Duration>) -> Result<()> {
    let Some(ours) = ours
        .time(topics)
        .filter(|ours| topics.is_none_or(|topics| *ours < topics))
    else {
        return Ok(());
    };
    let kept = topics.map_or("for ever".into(), |kept| {
        format!("for {} s", kept.as_secs())
    });
    Err(Error::Fatal(format!(
        "{variable} is {} s, and topic {topic} keeps records {kept} (retention.ms): leave {variable} at topics, \
         or set the topic's retention.ms to less",
        ours.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_keep_records_for_a_time_or_for_ever() {
        assert_eq!(
            retention("604800000"),
            Some(Duration::from_secs(7 * 86_400))
        );
        assert_eq!(retention("-1"), None);
        assert_eq!(retention("9223372036854775807"), None);
    }

    #[test]
    fn a_topic_that_does_not_take_the_largest_record_is_remarked() {
        assert_eq!(too_small("stock", "3000"), None);
        let error = too_small("stock", "2999").unwrap();
        assert!(
            error
                .starts_with("topic stock takes batches of 2999 bytes at most (max.message.bytes)"),
            "{error}"
        );
    }
}
