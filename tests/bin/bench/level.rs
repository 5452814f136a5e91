//! One stretch of load: orders placed, waited for until they are settled, and what they took and cost.

use std::time::{Duration, Instant};

use crate::books::{Books, Settled};
use crate::figures::{PERCENTILES, Times, rate};
use crate::load::{Done, Load, Pace, Placed};
use crate::report::{Report, Run};
use crate::stage::Stage;
use crate::usage::Meter;

/// After the last answer, for the last order to settle: well beyond the backlog that a run can leave.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
/// The last orders placed, which are asked for until they are settled: few, to cost the system at work little.
const LAST: usize = 50;
const POLL: Duration = Duration::from_millis(100);
/// Before anything is measured: connections, caches and code that is compiled as it is used.
const WARM_UP: Duration = Duration::from_secs(3);

/// A settled order's moments, counted from the beginning of the load.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Its POST was sent, or was meant to be.
    pub start: Duration,
    /// Its 202 was read.
    pub answered: Duration,
    /// It was settled.
    pub settled: Duration,
    /// Its deadline has failed it.
    pub by_deadline: bool,
}

impl Sample {
    /// From POST to settled.
    pub fn settling(&self) -> Duration {
        self.settled.saturating_sub(self.start)
    }
}

/// Orders that count for nothing.
///
/// # Errors
/// As [`run`].
pub fn warm_up(stage: &mut Stage, load: &Load) -> Result<(), String> {
    warm_up_at(stage, load, (Pace::AsAnswered, WARM_UP))
}

/// The same at a pace and for a time of one's own.
///
/// # Errors
/// As [`run`].
pub fn warm_up_at(
    stage: &mut Stage,
    load: &Load,
    (pace, time): (Pace, Duration),
) -> Result<(), String> {
    let done = load.run("warming up", pace, time)?;
    settle(stage, &done.placed).map(drop)
}

/// Places orders for so long, and adds what came of them.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(
    (section, name): (&'static str, &str),
    stage: &mut Stage,
    load: &Load,
    (pace, time): (Pace, Duration),
    report: &mut Report,
) -> Result<Vec<Sample>, String> {
    let mut meter = Meter::new()?;
    let before = meter.read(stage)?;
    let done = load.run(&format!("{section}: {name}"), pace, time)?;
    let memory = meter.memory(stage);
    let samples = settle_all((section, name), stage, &done, report)?;
    let costs = meter.costs(stage, &before, done.placed.len())?;
    let mut figures = report.run(section, name);
    add_figures(&mut figures, time, &done, &samples);
    figures.add_all(costs.into_iter().chain(memory));
    Ok(samples)
}

/// Waits until all accepted orders are settled; adds their moments, and what is wrong with them.
///
/// # Errors
/// What PostgreSQL says.
pub fn settle_all(
    (section, name): (&'static str, &str),
    stage: &mut Stage,
    done: &Done,
    report: &mut Report,
) -> Result<Vec<Sample>, String> {
    let settled = settle(stage, &done.placed)?;
    let samples = samples(&mut stage.books, done, &settled)?;
    report.samples(section, name, &samples);
    let problems = wrong_ends(&done.placed, &settled)
        .into_iter()
        .chain(stage.books.unconserved()?);
    problems.for_each(|problem| report.problem(format!("{section}, {name}: {problem}")));
    Ok(samples)
}

/// Waits until all are settled or the time is over.
fn settle(stage: &mut Stage, placed: &[Placed]) -> Result<Vec<Settled>, String> {
    let end = Instant::now() + SETTLE_LIMIT;
    settle_until(end, stage, &placed[placed.len().saturating_sub(LAST)..])?;
    settle_until(end, stage, placed)
}

fn settle_until(
    end: Instant,
    stage: &mut Stage,
    placed: &[Placed],
) -> Result<Vec<Settled>, String> {
    loop {
        let settled = stage.books.settled(placed)?;
        if settled.len() == placed.len() || Instant::now() > end {
            return Ok(settled);
        }
        stage.require_alive()?;
        std::thread::sleep(POLL);
    }
}

fn samples(books: &mut Books, done: &Done, settled: &[Settled]) -> Result<Vec<Sample>, String> {
    let clock = books.clock()?;
    let sample = |settled: &Settled| {
        let Placed {
            start, answered, ..
        } = done.placed[settled.place];
        Sample {
            start: start - done.began,
            answered: answered - done.began,
            settled: clock.since(settled.at_micros, done.began),
            by_deadline: settled.by_deadline,
        }
    };
    let mut samples: Vec<Sample> = settled.iter().map(sample).collect();
    samples.sort_by_key(|sample| sample.start);
    Ok(samples)
}

/// Adds how many orders were accepted and settled, at which rates, and how long that took.
pub fn add_figures(run: &mut Run<'_>, time: Duration, done: &Done, samples: &[Sample]) {
    let last =
        |moment: fn(&Sample) -> Duration| samples.iter().map(moment).fold(time, Duration::max);
    let under_load = samples
        .iter()
        .filter(|sample| sample.settled <= time)
        .count();
    run.add("accepted", "orders", done.placed.len() as f64);
    run.add("not accepted", "orders", done.refused as f64);
    run.add(
        "accepted/s",
        "",
        rate(done.placed.len(), last(|s| s.answered)),
    );
    run.add("settled/s", "", rate(samples.len(), last(|s| s.settled)));
    run.add("settled/s while orders come", "", rate(under_load, time));
    let answered = Times::new(samples.iter().map(|sample| sample.answered - sample.start));
    let settled = Times::new(samples.iter().map(Sample::settling));
    for (what, times) in [("POST to 202", answered), ("POST to settled", settled)] {
        PERCENTILES.iter().for_each(|(name, percent)| {
            run.add(&format!("{what}, {name}"), "ms", times.at(*percent))
        });
    }
}

/// Accepted orders that are unsettled, or that ended otherwise than their user and item say.
fn wrong_ends(placed: &[Placed], settled: &[Settled]) -> Vec<String> {
    let mut ends: Vec<Option<&str>> = vec![None; placed.len()];
    settled.iter().for_each(|s| ends[s.place] = Some(&s.status));
    let wrong = placed
        .iter()
        .zip(ends)
        .filter_map(|(order, end)| match (end, order.must_fail) {
            (None, _) => Some(format!("order {} is not settled", order.order_id)),
            (Some("FAILED"), true) | (Some("COMPLETED"), false) => None,
            (Some(end), _) => Some(format!("order {} is {end}", order.order_id)),
        });
    let mut wrong: Vec<String> = wrong.collect();
    if placed.is_empty() {
        wrong.push("no order was accepted".into());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_order_unsettled_or_ended_otherwise_than_it_must_is_reported() {
        let now = Instant::now();
        let placed = |must_fail| Placed {
            order_id: Uuid::now_v7(),
            start: now,
            answered: now,
            must_fail,
        };
        let placed = [
            placed(false),
            placed(true),
            placed(false),
            placed(true),
            placed(false),
        ];
        let settled = [
            (0, "COMPLETED"),
            (1, "FAILED"),
            (2, "FAILED"),
            (3, "COMPLETED"),
        ];
        let settled = settled.map(|(place, status)| Settled {
            place,
            status: status.into(),
            by_deadline: false,
            at_micros: 0,
        });
        let wrong = wrong_ends(&placed, &settled);
        let wanted = [(2, "is FAILED"), (3, "is COMPLETED"), (4, "is not settled")];
        assert_eq!(
            wrong,
            wanted.map(|(place, end)| format!("order {} {end}", placed[place].order_id))
        );
        assert_eq!(wrong_ends(&[], &[]), ["no order was accepted"]);
    }
}
