//! What one of each part can do, and how much of each a rate needs.

use crate::costs::COMMIT;
use crate::saga::{Load, Outcome, SERVICES, Saga, Size};

/// Orders settle as they come if so many of them do meanwhile, and 99 % within so many milliseconds.
const SETTLED: f64 = 0.97;
const LATE: f64 = 300.0;

/// A machine of a common size for each part; three brokers.
pub const SMALLEST: Size = Size {
    together: false,
    cores: 16,
    instances: [1; 3],
    consumers: [1; 3],
    partitions: 3,
    outboxes: 1,
    databases: 1,
    brokers: 3,
    replicas: 3,
    commit: COMMIT,
    round_trip: 0.2, // within a data centre; assumed, not measured
};
/// More of everything than 10^5 orders/s need.
const AMPLE: Size = Size {
    cores: 64,
    instances: [8; 3],
    consumers: [4; 3],
    partitions: 96,
    outboxes: 16,
    databases: 3,
    brokers: 12,
    ..SMALLEST
};

/// Which part there is little of.
type Case = (&'static str, fn(&mut Size));

const CASES: [Case; 6] = [
    ("one writer of order", |size| {
        (size.instances[0], size.consumers[0], size.outboxes) = (1, 32, 1)
    }),
    ("one consumer of order", |size| {
        (size.instances[0], size.consumers[0]) = (1, 1)
    }),
    ("one consumer of payment", |size| {
        (size.instances[1], size.consumers[1]) = (1, 1)
    }),
    ("one relay of order", |size| size.outboxes = 1),
    ("one database host of 16 processors", |size| {
        (size.cores, size.databases) = (16, 1)
    }),
    ("a host of 16 for each database", |size| size.cores = 16),
];

/// How many orders a second each case settles when more than that come.
pub fn limits(seed: u64) -> impl Iterator<Item = (&'static str, f64)> {
    CASES.into_iter().map(move |(name, lessen)| {
        let mut size = AMPLE;
        lessen(&mut size);
        let outcome = Saga::new(size, seed).run(Load::UnderWay(100_000), 3.0);
        (name, outcome.rate)
    })
}

/// A size, what came of its last run, and the part that is full and may not grow, if there is one.
pub struct Plan {
    pub size: Size,
    pub outcome: Outcome,
    pub limit: Option<String>,
}

/// What this rate needs, from this size on: the fullest part grows until orders settle as they come. `outboxes`: how many
/// a database may have.
pub fn grow(mut size: Size, rate: f64, outboxes: usize, seed: u64) -> Plan {
    loop {
        let seconds = (1e5 / rate).clamp(2.0, 6.0);
        let outcome = Saga::new(size.clone(), seed).run(Load::Random(rate), seconds);
        let settles = outcome.rate >= SETTLED * rate && outcome.at(99.0) <= LATE;
        let limit = (!settles).then(|| outcome.fullest().to_string());
        match &limit {
            Some(part) if size.grow(part, outboxes) => {}
            _ => {
                break Plan {
                    size,
                    outcome,
                    limit,
                };
            }
        }
    }
}

impl Size {
    /// One more of the part; false where there can't be.
    fn grow(&mut self, part: &str, outboxes: usize) -> bool {
        let service = SERVICES.iter().position(|name| part.starts_with(name));
        match (part.rsplit(' ').next().unwrap_or_default(), service) {
            ("Kafka", _) => self.brokers += 1,
            ("host" | "writer", Some(service)) => self.instances[service] += 1,
            ("consumer", Some(service)) => self.consumers[service] += 1,
            ("relay" | "lock", Some(_)) if self.outboxes < outboxes => self.outboxes *= 2,
            ("host", None) if self.databases < SERVICES.len() => self.databases += 1,
            _ => return false,
        }
        // a consumer's rows are to go to one outbox; each has several partitions
        for service in 0..SERVICES.len() {
            while !self.threads()[service].is_multiple_of(self.outboxes) {
                self.consumers[service] += 1;
            }
        }
        self.partitions = 3 * self.threads().into_iter().max().unwrap_or(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_full_grows_by_one_up_to_what_there_can_be() {
        let mut size = SMALLEST;
        assert!(size.grow("order's writer", 1) && size.grow("payment's consumer", 1));
        assert_eq!((size.instances, size.consumers), ([2, 1, 1], [1, 2, 1]));
        assert_eq!(size.partitions, 6, "three for each of two threads");
        assert!(!size.grow("order's relay", 1), "a database has one outbox");
        assert!(size.grow("order's relay", 2));
        assert_eq!(
            [1, 2, 3].map(|_| size.grow("a database host", 2)),
            [true, true, false]
        );
        assert_eq!((size.outboxes, size.databases, size.brokers), (2, 3, 3));
    }
}
