//! Partitions that wait because handling fails: for how long, and for what. Values of the process, for `/readyz`, `/overview` and
//! `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kafka::TopicPartition;
use serde::Serialize;

use crate::metrics;

/// A partition that has waited for longer is a reason not to be ready.
const LIMIT: Duration = Duration::from_secs(60);

struct Wait {
    since: Instant,
    why: String,
}

static WAITS: Mutex<BTreeMap<String, Wait>> = Mutex::new(BTreeMap::new());

fn waits() -> MutexGuard<'static, BTreeMap<String, Wait>> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The partition is put off once more, for this.
pub fn put_off(partition: &TopicPartition, why: String) {
    let mut waits = waits();
    let since = waits.get(&partition.to_string()).map_or_else(Instant::now, |wait| wait.since);
    waits.insert(partition.to_string(), Wait { since, why });
}

/// The partition goes on, or is somebody else's.
pub fn goes_on(partition: &TopicPartition) {
    let name = partition.to_string();
    waits().remove(&name);
    metrics::WAITING.with_label_values(&[&name]).set(0.0);
}

/// A partition that waits.
#[derive(Serialize)]
pub struct Waiting {
    partition: String,
    seconds: u64,
    #[serde(rename = "for")]
    why: String,
}

/// All that wait, by their names; shown as metrics, too.
pub fn all() -> Vec<Waiting> {
    let waiting = |(partition, wait): (&String, &Wait)| {
        let waited = wait.since.elapsed();
        metrics::WAITING.with_label_values(&[partition]).set(waited.as_secs_f64());
        Waiting { partition: partition.clone(), seconds: waited.as_secs(), why: wait.why.clone() }
    };
    waits().iter().map(waiting).collect()
}

/// Those that have waited for too long, each in a sentence.
pub fn reasons() -> Vec<String> {
    let long = all().into_iter().filter(|waiting| waiting.seconds >= LIMIT.as_secs());
    long.map(|Waiting { partition, seconds, why }| format!("{partition} has been waiting for {seconds} s: {why}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_waits_from_its_first_failure_until_it_goes_on() {
        let partition = TopicPartition { topic: "waits-test".into(), topic_id: uuid::Uuid::nil(), partition: 3 };
        put_off(&partition, "the first".into());
        waits().get_mut("waits-test-3").unwrap().since = Instant::now() - LIMIT;
        put_off(&partition, "the second".into());
        assert_eq!(reasons(), ["waits-test-3 has been waiting for 60 s: the second"]);
        goes_on(&partition);
        assert_eq!(reasons(), Vec::<String>::new());
    }
}
