//! What waits because it fails again and again: partitions, the relay, what is to be stored. For how long, and for what. Values of
//! the process, for `/readyz`, `/overview` and `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::metrics;

/// What has waited for longer is a reason not to be ready.
const LIMIT: Duration = Duration::from_secs(60);

struct Wait {
    since: Instant,
    /// From then on nobody knows any more.
    until: Option<Instant>,
    why: String,
}

static WAITS: Mutex<BTreeMap<String, Wait>> = Mutex::new(BTreeMap::new());

fn waits() -> MutexGuard<'static, BTreeMap<String, Wait>> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// It backs off once more, for this.
pub fn back_off(what: &impl Display, why: String) {
    note(what, why, None);
}

/// It fails, or is seen to wait, for this. Unless that is said again within `fresh` it counts as going on.
pub fn seen(what: &impl Display, why: String, fresh: Duration) {
    note(what, why, Some(Instant::now() + fresh));
}

fn note(what: &impl Display, why: String, until: Option<Instant>) {
    let mut waits = waits();
    let what = what.to_string();
    let since = waits
        .get(&what)
        .filter(|wait| wait.is_known())
        .map_or_else(Instant::now, |wait| wait.since);
    waits.insert(what, Wait { since, until, why });
}

impl Wait {
    fn is_known(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// It goes on, or is somebody else's.
pub fn goes_on(what: &impl Display) {
    let name = what.to_string();
    waits().remove(&name);
    metrics::WAITING.with_label_values(&[&name]).set(0.0);
}

/// One that waits.
#[derive(Serialize)]
pub struct Waiting {
    what: String,
    seconds: u64,
    #[serde(rename = "for")]
    why: String,
}

/// All that wait, by their names; shown as metrics, too.
pub fn all() -> Vec<Waiting> {
    let mut waits = waits();
    waits
        .extract_if(.., |_, wait| !wait.is_known())
        .for_each(|(what, _)| metrics::WAITING.with_label_values(&[what]).set(0.0));
    waits
        .iter()
        .map(|(what, wait)| {
            let waited = wait.since.elapsed();
            metrics::WAITING
                .with_label_values(&[what])
                .set(waited.as_secs_f64());
            Waiting {
                what: what.clone(),
                seconds: waited.as_secs(),
                why: wait.why.clone(),
            }
        })
        .collect()
}

/// Those that have waited for too long, each in a sentence.
pub fn reasons() -> Vec<String> {
    let long = all()
        .into_iter()
        .filter(|waiting| waiting.seconds >= LIMIT.as_secs());
    long.map(|Waiting { what, seconds, why }| {
        format!("{what} has been waiting for {seconds} s: {why}")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_from_its_first_failure_until_it_goes_on() {
        let partition = "waits-test-3";
        back_off(&partition, "the first".into());
        waits().get_mut(partition).unwrap().since = Instant::now() - LIMIT;
        back_off(&partition, "the second".into());
        let [reason] = &reasons()[..] else {
            panic!("it alone waits")
        };
        assert!(
            reason.starts_with("waits-test-3 has been waiting for 6")
                && reason.ends_with(" s: the second"),
            "{reason}"
        );
        goes_on(&partition);
        assert_eq!(reasons(), Vec::<String>::new());
        seen(&partition, "a lock".into(), Duration::ZERO);
        waits().get_mut(partition).unwrap().since = Instant::now() - LIMIT;
        assert_eq!(reasons(), Vec::<String>::new(), "nobody has seen it since");
    }
}
