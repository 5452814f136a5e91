//! Percentiles.

use std::time::Duration;

/// What is shown of a distribution.
pub const PERCENTILES: [(&str, f64); 5] = [
    ("p50", 50.0),
    ("p95", 95.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("max", 100.0),
];

/// Times in order.
pub struct Times(Vec<Duration>);

impl Times {
    /// Sorts them.
    pub fn new(times: impl IntoIterator<Item = Duration>) -> Times {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort();
        Times(times)
    }

    /// The time that so many percent do not exceed, by nearest rank, in milliseconds; not a number if there are none.
    pub fn at(&self, percent: f64) -> f64 {
        let rank = (self.0.len() as f64 * percent / 100.0).ceil().max(1.0) as usize;
        self.0
            .get(rank - 1)
            .map_or(f64::NAN, |time| milliseconds(*time))
    }
}

/// As a number.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// So many in this time, a second.
pub fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_time_of_the_nearest_rank() {
        let times = Times::new((1..=1000).rev().map(Duration::from_millis));
        assert_eq!(
            PERCENTILES.map(|(_, percent)| times.at(percent)),
            [500.0, 950.0, 990.0, 999.0, 1000.0]
        );
        let two = Times::new([3, 7].map(Duration::from_millis));
        assert_eq!(
            [0.0, 50.0, 50.1].map(|percent| two.at(percent)),
            [3.0, 3.0, 7.0]
        );
        assert!(Times::new([]).at(50.0).is_nan());
    }
}
