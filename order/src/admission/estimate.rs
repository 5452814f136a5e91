//! From how many orders of each second are settled, to how long a new one would wait. No I/O, no clock.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// The orders whose ids were drawn within one second, counted over all instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second {
    /// Seconds since 1970.
    pub second: i64,
    /// How many were stored.
    pub placed: i64,
    /// How many of them are settled.
    pub settled: i64,
}

impl Second {
    fn unsettled(&self) -> i64 {
        (self.placed - self.settled).max(0)
    }
}

/// Orders a second that are taken for possible until more were seen, or a busy system has shown that it can do less: with
/// the default deadline an outage of a minute under 500 orders a second is no reason to refuse any.
const ASSUMED_CAPACITY: f64 = 500.0;
/// The rate is that of so many seconds: long enough to even out batches, short enough to follow a return.
const RATE_SPAN: f64 = 2.0;
/// A capacity that turns out higher is believed within half a second ...
const RISE: f64 = 0.5;
/// ... and a lower one within ten, so that the seconds in which an outage begins and ends count for little, or sooner where
/// orders may not wait that long.
const FALL: f64 = 10.0;
/// Orders of so many seconds' work may be under way before accepting waits for settling: enough for full batches everywhere
/// (half of it costs a tenth of what is settled), and a small part of what a saturated system accepts within seconds.
const WINDOW: f64 = 0.5;
/// The fewest orders in the window: a participant's whole batch, so that one that is slow does not become slower by it.
const SMALLEST_WINDOW: f64 = 500.0;
/// The fewest orders that may wait, however little time they are given.
const SMALLEST_LIMIT: f64 = 100.0;
/// Nothing settled for so many seconds, although orders wait: a part of the system is away, unless ...
const STALLED: f64 = 2.0;
/// ... it settles in batches that take long: then so many times what the last ones took.
const BATCHES: f64 = 3.0;
/// What is older by so many seconds than an order that is settled does not wait for its turn. Of so many seconds before, the
/// share of such orders is expected of younger ones.
const OVERTAKEN: i64 = 2;
const SHARE_SPAN: i64 = 10;
/// Of the orders that an outage has kept waiting for half of their deadline, as many may wait as are settled within so
/// many seconds: at its end the system is soon through with those that are too late by then.
const OUTAGE_SECONDS: f64 = 2.0;

/// What follows from the seconds.
#[derive(Debug)]
pub struct Estimate {
    /// How long what waits may take to settle, in seconds.
    limit_seconds: f64,
    deadline: f64,
    settled_before: Option<HashMap<i64, i64>>,
    looked_at: f64,
    /// Length of a stretch and how many orders were settled in it, the latest last.
    stretches: VecDeque<(f64, i64)>,
    settled_at: f64,
    /// Seconds between the last times that orders were settled while some waited; long ones count as a stall's.
    gap: f64,
    /// What an order takes when the system is not busy, in seconds.
    base: f64,
    /// Orders a second that the system settles when it is busy.
    pub capacity: f64,
    /// Orders that are settled a second, lately.
    pub rate: f64,
    /// Orders stored and not settled, as far as they still wait for something.
    pub in_flight: i64,
    /// Those of them that wait for their turn. Others, by the share of those that younger ones have overtaken, wait for a row that
    /// somebody holds, or for one partition.
    pub queued: i64,
    /// When the oldest of those was placed that nothing younger has overtaken.
    pub waiting_since: Option<i64>,
}

impl Estimate {
    /// Nothing was seen yet.
    pub fn new(limit: Duration, deadline: Duration) -> Estimate {
        Estimate {
            limit_seconds: limit.as_secs_f64(),
            deadline: deadline.as_secs_f64(),
            settled_before: None,
            looked_at: 0.0,
            stretches: VecDeque::new(),
            settled_at: 0.0,
            gap: 0.0,
            base: 0.0,
            capacity: ASSUMED_CAPACITY,
            rate: 0.0,
            in_flight: 0,
            queued: 0,
            waiting_since: None,
        }
    }

    /// The seconds before this one need not be looked at: their orders are settled, or wait for nothing that would move.
    pub fn horizon(&self, now: f64) -> i64 {
        let waiting = self.waiting_since.map_or(f64::MAX, |second| second as f64);
        (now - self.deadline).min(waiting) as i64
    }

    /// Takes in the seconds from [`Estimate::horizon`] on, as they stand `now`, in seconds since 1970.
    ///
    /// Orders count for as long as their deadline lasts. Older ones count only while nothing younger is settled: then
    /// they wait in a queue. Once younger ones are, they wait for a person (a parked compensation), not for their turn.
    pub fn look(&mut self, now: f64, flow: &[Second]) {
        let head = flow
            .iter()
            .filter(|second| second.settled * 2 > second.placed)
            .map(|second| second.second)
            .max()
            .unwrap_or(i64::MIN);
        let counted = flow
            .iter()
            .filter(|second| second.second > head || second.second as f64 > now - self.deadline);
        self.in_flight = counted.clone().map(Second::unsettled).sum();
        self.queued = queued(counted);
        let behind = flow
            .iter()
            .filter(|second| second.second > head && second.unsettled() > 0);
        self.waiting_since = behind.map(|second| second.second).min();
        self.measure(now, flow);
    }

    fn measure(&mut self, now: f64, flow: &[Second]) {
        let length = now - self.looked_at;
        let settled = flow
            .iter()
            .map(|second| (second.second, second.settled))
            .collect();
        let before = self.settled_before.replace(settled);
        self.looked_at = now;
        // the first look has nothing to compare with, and a clock that was set back measures nothing
        let Some(before) = before.filter(|_| length > 0.0) else {
            self.settled_at = now;
            return;
        };
        let settled: i64 = flow
            .iter()
            .map(|second| (second.settled - before.get(&second.second).unwrap_or(&0)).max(0))
            .sum();
        if settled > 0 {
            self.gap = (now - self.settled_at).min(STALLED).max(self.gap / 2.0);
        }
        if settled > 0 || self.in_flight == 0 {
            self.settled_at = now;
        }
        self.stretches.push_back((length, settled));
        while self.stretches.len() > 1
            && self
                .stretches
                .iter()
                .skip(1)
                .map(|(length, _)| length)
                .sum::<f64>()
                >= RATE_SPAN
        {
            self.stretches.pop_front();
        }
        let (span, count) = self
            .stretches
            .iter()
            .fold((0.0, 0), |(span, count), (length, settled)| {
                (span + length, count + settled)
            });
        self.rate = count as f64 / span;
        if self.rate > 0.0 {
            self.learn(length);
        }
    }

    /// A busy system shows its capacity, one that is not busy what a single order takes (Little's law).
    fn learn(&mut self, length: f64) {
        let takes = self.queued as f64 / self.rate;
        if self.rate > self.capacity {
            self.capacity = toward(self.capacity, self.rate, length / RISE);
        } else if self.queued as f64 >= self.window() * 0.5 {
            self.capacity = toward(
                self.capacity,
                self.rate,
                length / FALL.min(self.limit_seconds),
            );
        } else {
            self.base = toward(
                self.base,
                takes.min(self.limit_seconds / 2.0),
                length / FALL,
            );
        }
    }

    /// Orders that may be under way before accepting waits for settling.
    pub fn window(&self) -> f64 {
        (self.capacity * WINDOW.max(2.0 * self.base))
            .max(SMALLEST_WINDOW)
            .min(self.limit())
    }

    /// Orders that can be settled in the time that what waits may take.
    pub fn limit(&self) -> f64 {
        (self.capacity * self.limit_seconds).max(SMALLEST_LIMIT)
    }

    /// Whether orders wait and none is settled: a part of the system is away, and what it will do when it is back is not
    /// shown by what it does now.
    pub fn is_stalled(&self, now: f64) -> bool {
        now - self.settled_at >= STALLED.max(BATCHES * self.gap)
    }

    /// Whether an outage lasts so long, and so much waits, that what is placed now would add to what comes too late.
    pub fn is_outage(&self, now: f64) -> bool {
        let waited = self.waiting_since.map_or(0.0, |second| now - second as f64);
        waited > self.deadline / 2.0 && self.in_flight as f64 > self.capacity * OUTAGE_SECONDS
    }
}

/// `value`, moved by this share of the way to `aim`.
fn toward(value: f64, aim: f64, share: f64) -> f64 {
    value + (aim - value) * share.min(1.0)
}

/// Orders that wait for their turn, of these seconds. Were all of them to wait for theirs, younger ones would not be settled before.
fn queued<'a>(flow: impl Iterator<Item = &'a Second> + Clone) -> i64 {
    let settled = flow
        .clone()
        .filter(|second| second.settled > 0)
        .map(|second| second.second)
        .max();
    let front = settled.map_or(i64::MIN, |second| second - OVERTAKEN);
    let (mut placed, mut stuck) = (0, 0);
    for second in flow
        .clone()
        .filter(|second| (front.saturating_sub(SHARE_SPAN)..=front).contains(&second.second))
    {
        placed += second.placed;
        stuck += (second.placed - second.settled).max(0);
    }
    let share = if placed > 0 {
        stuck as f64 / placed as f64
    } else {
        0.0
    };
    flow.filter(|second| second.second > front)
        .map(|second| {
            (second.placed - second.settled - (second.placed as f64 * share) as i64).max(0)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn estimate() -> Estimate {
        Estimate::new(Duration::from_secs(75), Duration::from_secs(300))
    }

    fn second(second: i64, placed: i64, settled: i64) -> Second {
        Second {
            second: NOW + second,
            placed,
            settled,
        }
    }

    fn look(estimate: &mut Estimate, now: f64, flow: &[Second]) {
        estimate.look(NOW as f64 + now, flow);
    }

    /// `per_second` orders are settled in each of so many seconds, and `waiting` more wait.
    fn run(estimate: &mut Estimate, from: i64, seconds: i64, per_second: i64, waiting: i64) {
        for now in from..from + seconds {
            look(
                estimate,
                now as f64,
                &[
                    second(now - 1, per_second, per_second),
                    second(now, waiting, 0),
                ],
            );
        }
    }

    #[test]
    fn what_is_placed_and_not_settled_is_in_flight() {
        let mut estimate = estimate();
        look(
            &mut estimate,
            0.0,
            &[
                second(-3, 10, 10),
                second(-2, 10, 6),
                second(-1, 10, 2),
                second(0, 5, 0),
            ],
        );
        assert_eq!(estimate.in_flight, 4 + 8 + 5);
        assert_eq!(estimate.waiting_since, Some(NOW - 1));
    }

    #[test]
    fn older_orders_than_the_deadline_count_only_until_younger_ones_are_settled() {
        let mut estimate = estimate();
        look(
            &mut estimate,
            0.0,
            &[second(-400, 7, 0), second(-350, 10, 3)],
        );
        assert_eq!(estimate.in_flight, 14, "an outage: they wait in a queue");
        look(
            &mut estimate,
            1.0,
            &[second(-400, 7, 0), second(-350, 10, 3), second(0, 2, 2)],
        );
        assert_eq!(estimate.in_flight, 0, "overtaken: they wait for a person");
        look(
            &mut estimate,
            2.0,
            &[second(-400, 7, 0), second(-200, 10, 9), second(0, 2, 2)],
        );
        assert_eq!(estimate.in_flight, 1, "within their deadline they count");
    }

    #[test]
    fn orders_that_were_overtaken_wait_for_something_else_than_their_turn() {
        let mut estimate = estimate();
        // four of five wait for a row that somebody holds
        look(
            &mut estimate,
            0.0,
            &[
                second(-9, 100, 20),
                second(-2, 100, 20),
                second(-1, 100, 10),
                second(0, 60, 0),
            ],
        );
        assert_eq!(
            (estimate.in_flight, estimate.queued),
            (80 + 80 + 90 + 60, 10 + 12)
        );
        look(
            &mut estimate,
            1.0,
            &[second(-9, 100, 0), second(-2, 100, 0), second(-1, 100, 0)],
        );
        assert_eq!(estimate.queued, 300, "an outage: nobody is overtaken");
    }

    #[test]
    fn orders_settled_more_often_than_placed_make_up_for_no_others() {
        let mut estimate = estimate();
        // placed before anybody counted
        look(&mut estimate, 0.0, &[second(-1, 0, 50), second(0, 20, 0)]);
        assert_eq!(estimate.in_flight, 20);
    }

    #[test]
    fn a_part_that_settles_in_long_batches_is_not_away_between_them() {
        let mut estimate = estimate();
        let settled = |at: i64, count: i64| [second(0, 1_000, count), second(at, 200, 0)];
        for (at, count) in [(1, 0), (2, 500), (3, 500), (4, 1_000), (5, 1_000)] {
            look(&mut estimate, at as f64, &settled(at, count));
        }
        assert!(!estimate.is_stalled(NOW as f64 + 9.0) && estimate.is_stalled(NOW as f64 + 10.0));
    }

    #[test]
    fn a_busy_system_shows_its_capacity_and_an_idle_one_does_not() {
        let mut estimate = estimate();
        run(&mut estimate, 0, 60, 50, 2);
        assert_eq!(
            estimate.capacity, ASSUMED_CAPACITY,
            "fifty a second came, and no more could be seen"
        );
        run(&mut estimate, 60, 10, 6_000, 2_000);
        assert!(
            (5_900.0..=6_000.0).contains(&estimate.capacity),
            "{}",
            estimate.capacity
        );
        run(&mut estimate, 70, 60, 3_000, 2_000);
        assert!(
            (3_000.0..3_100.0).contains(&estimate.capacity),
            "{}",
            estimate.capacity
        );
        assert_eq!(estimate.limit(), estimate.capacity * 75.0);
    }

    #[test]
    fn an_outage_says_nothing_about_the_capacity() {
        let mut estimate = estimate();
        run(&mut estimate, 0, 20, 4_000, 1_500);
        let before = estimate.capacity;
        for now in 20..80 {
            let waiting: Vec<Second> = (20..=now).map(|placed| second(placed, 500, 0)).collect();
            look(&mut estimate, now as f64, &waiting);
        }
        assert!(
            estimate.capacity > before * 0.7,
            "{before} before, {} after",
            estimate.capacity
        );
        assert_eq!(estimate.in_flight, 60 * 500);
        assert!(estimate.is_stalled(NOW as f64 + 79.0) && !estimate.is_outage(NOW as f64 + 79.0));
        assert!(
            (estimate.in_flight as f64) < estimate.limit(),
            "a minute's outage is no reason to refuse"
        );
    }

    #[test]
    fn orders_kept_waiting_for_half_of_their_deadline_are_an_outage_if_they_are_many() {
        let mut estimate = estimate();
        look(&mut estimate, 0.0, &[second(-151, 900, 0)]);
        assert!(
            !estimate.is_outage(NOW as f64),
            "few: they are settled at once when it ends"
        );
        look(&mut estimate, 1.0, &[second(-151, 1_100, 0)]);
        assert!(estimate.is_outage(NOW as f64) && !estimate.is_outage(NOW as f64 - 2.0));
    }

    #[test]
    fn a_system_whose_orders_take_long_by_themselves_gets_a_window_to_match() {
        let mut estimate = estimate();
        assert_eq!(estimate.window(), 500.0);
        // fifty a second, each of which takes a second
        run(&mut estimate, 0, 60, 50, 50);
        assert!(
            (950.0..=1_000.0).contains(&estimate.window()),
            "{}",
            estimate.window()
        );
    }

    #[test]
    fn the_first_look_measures_nothing_and_neither_does_a_clock_set_back() {
        let mut estimate = estimate();
        look(&mut estimate, 0.0, &[second(-1, 90_000, 90_000)]);
        assert_eq!((estimate.rate, estimate.capacity), (0.0, ASSUMED_CAPACITY));
        look(&mut estimate, -5.0, &[second(-1, 99_000, 99_000)]);
        assert_eq!((estimate.rate, estimate.capacity), (0.0, ASSUMED_CAPACITY));
    }
}
