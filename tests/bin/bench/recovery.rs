//! Recovery: payment away under load; how long its absence is felt after its return.

use std::time::{Duration, Instant};

use harness::Service;

use crate::figures::{Times, rate};
use crate::level::{self, Sample};
use crate::load::{Done, Load, NAMES, Pace};
use crate::options::Options;
use crate::plot;
use crate::report::Report;
use crate::stage::Stage;

const SECTION: &str = "recovery";
/// Orders a second.
const RATE: f64 = 500.0;
/// How long payment is away, and how long the load goes on afterwards, in measured stretches: a minute by default.
const STRETCHES: u32 = 4;
/// The p99 is back when it is at most so many times the usual one, for so many seconds on end.
const BACK: f64 = 2.0;
const SECONDS: usize = 3;
/// How finely the backlog is looked at.
const STEP: Duration = Duration::from_millis(100);

/// Measures the section.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(SECTION, 1, NAMES)?;
    let load = stage.load(options.connections);
    level::warm_up(&mut stage, &load)?;
    let (done, [stopped, back]) = hurt(&mut stage, &load, options.time)?;
    let samples = level::settle_all((SECTION, "payment away"), &mut stage, &done, report)?;
    let course = Course { samples, stopped, back };
    course.add_figures(report);
    plot::over_time(&report.file("recovery.svg"), &course.settled_each_second(), &course.p99_each_second())
}

/// Places orders, stops payment and starts it again; when, since the load began.
fn hurt(stage: &mut Stage, load: &Load, time: Duration) -> Result<(Done, [Duration; 2]), String> {
    let (away, all) = (time * STRETCHES, time * (1 + 2 * STRETCHES));
    std::thread::scope(|scope| {
        let began = Instant::now();
        let loading = scope.spawn(|| load.run("payment away", Pace::Rate(RATE), all));
        std::thread::sleep(time);
        let stopped = began.elapsed();
        stage.stop(Service::Payment);
        std::thread::sleep((stopped + away).saturating_sub(began.elapsed()));
        let back = began.elapsed();
        stage.launch(Service::Payment);
        Ok((loading.join().expect("no thread panics")?, [stopped, back]))
    })
}

/// What happened, all since the load began.
struct Course {
    samples: Vec<Sample>,
    stopped: Duration,
    back: Duration,
}

impl Course {
    fn add_figures(&self, report: &mut Report) {
        let gone = self.backlog_gone();
        let caught_up =
            self.samples.iter().filter(|sample| sample.settled > self.back && sample.settled <= gone).count();
        let mut figures = report.run(SECTION, "payment away");
        figures.add("away", "s", (self.back - self.stopped).as_secs_f64());
        figures.add("unsettled at its return", "orders", self.unsettled(self.back) as f64);
        figures.add("until the backlog is gone", "s", (gone - self.back).as_secs_f64());
        figures.add("settled/s meanwhile", "", rate(caught_up, gone - self.back));
        figures.add("POST to settled, p99, before", "ms", self.usual_p99());
        let p99_back = self.p99_back().map_or(f64::NAN, |second| second as f64 - self.back.as_secs_f64());
        figures.add("until the p99 is back", "s", p99_back.max(0.0));
    }

    /// Orders placed and not settled at a moment.
    fn unsettled(&self, at: Duration) -> usize {
        self.samples.iter().filter(|sample| sample.start <= at && sample.settled > at).count()
    }

    /// The first moment after the return at which no more orders are unsettled than at worst before.
    fn backlog_gone(&self) -> Duration {
        let moments = |from: Duration| (0..).map(move |step| from + STEP * step);
        let before = moments(Duration::ZERO).take_while(|at| *at < self.stopped).map(|at| self.unsettled(at));
        let usual = before.max().unwrap_or(0);
        // at the latest when all are settled
        moments(self.back).find(|at| self.unsettled(*at) <= usual).expect("in the end nothing is unsettled")
    }

    fn usual_p99(&self) -> f64 {
        let before = self.samples.iter().filter(|sample| sample.settled < self.stopped);
        Times::new(before.map(Sample::settling)).at(99.0)
    }

    /// The second after the return from which the p99 of the orders placed in it is near the usual one.
    fn p99_back(&self) -> Option<usize> {
        let (seconds, limit) = (self.p99_each_second(), BACK * self.usual_p99());
        let first = self.back.as_secs_f64().ceil() as usize;
        let calm = |second: &usize| seconds[*second..*second + SECONDS].iter().all(|(_, p99)| *p99 <= limit);
        (first..(seconds.len() + 1).saturating_sub(SECONDS)).find(calm)
    }

    /// The p99 from POST to settled of the orders placed in each second, in milliseconds.
    fn p99_each_second(&self) -> Vec<(f64, f64)> {
        let seconds = by_second(&self.samples, |sample| sample.start);
        let p99 = |(second, its): (usize, Vec<&Sample>)| {
            (second as f64, Times::new(its.into_iter().map(Sample::settling)).at(99.0))
        };
        seconds.into_iter().enumerate().map(p99).collect()
    }

    /// How many orders were settled in each second.
    fn settled_each_second(&self) -> Vec<(f64, f64)> {
        let seconds = by_second(&self.samples, |sample| sample.settled);
        seconds.iter().enumerate().map(|(second, its)| (second as f64, its.len() as f64)).collect()
    }
}

fn by_second(samples: &[Sample], moment: fn(&Sample) -> Duration) -> Vec<Vec<&Sample>> {
    let last = samples.iter().map(moment).max().unwrap_or_default().as_secs() as usize;
    let mut seconds = vec![vec![]; last + 1];
    samples.iter().for_each(|sample| seconds[moment(sample).as_secs() as usize].push(sample));
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten orders a second for 60 s, settled after 50 ms; those placed from 10 to 20 s at 22 s, all later ones 50 ms late.
    fn course() -> Course {
        let sample = |number: u64| {
            let start = Duration::from_millis(100 * number);
            let soon = start + Duration::from_millis(50);
            let away = (10..20).contains(&start.as_secs());
            Sample { start, answered: start, settled: if away { Duration::from_secs(22) } else { soon } }
        };
        let (stopped, back) = (Duration::from_secs(10), Duration::from_secs(20));
        Course { samples: (0..600).map(sample).collect(), stopped, back }
    }

    #[test]
    fn the_backlog_is_gone_when_no_more_is_unsettled_than_before() {
        assert_eq!(course().unsettled(Duration::from_millis(19_990)), 100);
        assert_eq!(course().backlog_gone(), Duration::from_secs(22));
    }

    #[test]
    fn the_p99_is_back_in_the_second_whose_orders_and_the_next_settle_as_before() {
        assert_eq!(course().usual_p99(), 50.0);
        assert_eq!(course().p99_back(), Some(20));
        let still_late = Course { back: Duration::from_secs(15), ..course() };
        assert_eq!(still_late.p99_back(), Some(20));
    }
}
