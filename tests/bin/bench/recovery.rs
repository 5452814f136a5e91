//! Recovery: payment away under load, with the services' default deadline; how long its absence is felt after its
//! return. An outage is not overload: nothing is refused meanwhile, and nothing fails by its deadline.

use std::time::{Duration, Instant};

use harness::Service;

use crate::figures::{Times, rate};
use crate::level::{self, Sample};
use crate::load::{NAMES, Pace};
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
/// Goodput is back when it is at least such a part of the usual one, for a second.
const GOODPUT_BACK: f64 = 0.9;

/// Measures the section.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start_with(SECTION, 1, NAMES, &[])?;
    let load = stage.load(options.connections);
    level::warm_up(&mut stage, &load)?;
    let (away, all) = (options.time * STRETCHES, options.time * (1 + 2 * STRETCHES));
    let place = || load.run("payment away", Pace::Rate(RATE), all);
    let (done, [stopped, back]) = without_payment(&mut stage, (options.time, away), place)?;
    let samples = level::settle_all((SECTION, "payment away"), &mut stage, &done, report)?;
    report
        .run(SECTION, "payment away")
        .add("not accepted", "orders", done.refused as f64);
    let course = Course {
        samples,
        stopped,
        back,
    };
    course.add_figures(report);
    let rates = vec![("settled".to_string(), course.settled_each_second())];
    let drawn = plot::Course {
        title: "payment away".into(),
        rates,
        p99: course.p99_each_second(),
    };
    plot::over_time(&report.file("recovery.svg"), vec![drawn])
}

/// Runs a load; stops payment after `before`, and starts it again after `away`. When, since the load began.
///
/// # Errors
/// What the load says.
///
/// # Panics
/// When payment does not stop.
pub fn without_payment<T: Send>(
    stage: &mut Stage,
    (before, away): (Duration, Duration),
    load: impl FnOnce() -> Result<T, String> + Send,
) -> Result<(T, [Duration; 2]), String> {
    std::thread::scope(|scope| {
        let began = Instant::now();
        let loading = scope.spawn(load);
        std::thread::sleep(before);
        let stopped = began.elapsed();
        stage.stop(Service::Payment);
        std::thread::sleep((stopped + away).saturating_sub(began.elapsed()));
        let back = began.elapsed();
        stage.launch(Service::Payment);
        Ok((loading.join().expect("no thread panics")?, [stopped, back]))
    })
}

/// How long after `back` at least a part of `usual` orders a second is settled again, none of them by its deadline.
pub fn until_goodput_is_back(samples: &[Sample], back: Duration, usual: f64) -> Option<Duration> {
    let good = samples.iter().filter(|sample| !sample.by_deadline);
    let mut settled: Vec<Duration> = good.map(|sample| sample.settled).collect();
    settled.sort_unstable();
    let until = |at: Duration| settled.partition_point(|settled| *settled < at);
    let in_second = |from: Duration| until(from + Duration::from_secs(1)) - until(from);
    let last = *settled.last()?;
    let mut moments = (0..)
        .map(|step| back + STEP * step)
        .take_while(|at| *at <= last);
    moments
        .find(|at| in_second(*at) as f64 >= GOODPUT_BACK * usual)
        .map(|at| at - back)
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
        let caught_up = self
            .samples
            .iter()
            .filter(|sample| sample.settled > self.back && sample.settled <= gone)
            .count();
        let mut figures = report.run(SECTION, "payment away");
        figures.add("away", "s", (self.back - self.stopped).as_secs_f64());
        figures.add(
            "unsettled at its return",
            "orders",
            self.unsettled(self.back) as f64,
        );
        figures.add(
            "until the backlog is gone",
            "s",
            (gone - self.back).as_secs_f64(),
        );
        figures.add("settled/s meanwhile", "", rate(caught_up, gone - self.back));
        let goodput_back = until_goodput_is_back(&self.samples, self.back, RATE);
        figures.add(
            "until goodput is back",
            "s",
            goodput_back.map_or(f64::NAN, |time| time.as_secs_f64()),
        );
        let failed = self
            .samples
            .iter()
            .filter(|sample| sample.by_deadline)
            .count();
        figures.add("FAILED by DEADLINE", "orders", failed as f64);
        figures.add("POST to settled, p99, before", "ms", self.usual_p99());
        let p99_back = self
            .p99_back()
            .map_or(f64::NAN, |second| second as f64 - self.back.as_secs_f64());
        figures.add("until the p99 is back", "s", p99_back.max(0.0));
    }

    /// Orders placed and not settled at a moment.
    fn unsettled(&self, at: Duration) -> usize {
        self.samples
            .iter()
            .filter(|sample| sample.start <= at && sample.settled > at)
            .count()
    }

    /// The first moment after the return at which no more orders are unsettled than at worst before.
    fn backlog_gone(&self) -> Duration {
        let moments = |from: Duration| (0..).map(move |step| from + STEP * step);
        let before = moments(Duration::ZERO)
            .take_while(|at| *at < self.stopped)
            .map(|at| self.unsettled(at));
        let usual = before.max().unwrap_or(0);
        // at the latest when all are settled
        moments(self.back)
            .find(|at| self.unsettled(*at) <= usual)
            .expect("in the end nothing is unsettled")
    }

    fn usual_p99(&self) -> f64 {
        let before = self
            .samples
            .iter()
            .filter(|sample| sample.settled < self.stopped);
        Times::new(before.map(Sample::settling)).at(99.0)
    }

    /// The second after the return from which the p99 of the orders placed in it is near the usual one.
    fn p99_back(&self) -> Option<usize> {
        let (seconds, limit) = (self.p99_each_second(), BACK * self.usual_p99());
        let first = self.back.as_secs_f64().ceil() as usize;
        let calm = |second: &usize| {
            seconds[*second..*second + SECONDS]
                .iter()
                .all(|(_, p99)| *p99 <= limit)
        };
        (first..(seconds.len() + 1).saturating_sub(SECONDS)).find(calm)
    }

    /// The p99 from POST to settled of the orders placed in each second, in milliseconds.
    fn p99_each_second(&self) -> Vec<(f64, f64)> {
        let seconds = by_second(&self.samples, |sample| sample.start);
        let p99 = |(second, its): (usize, Vec<&Sample>)| {
            (
                second as f64,
                Times::new(its.into_iter().map(Sample::settling)).at(99.0),
            )
        };
        seconds.into_iter().enumerate().map(p99).collect()
    }

    /// How many orders were settled in each second.
    fn settled_each_second(&self) -> Vec<(f64, f64)> {
        let seconds = by_second(&self.samples, |sample| sample.settled);
        seconds
            .iter()
            .enumerate()
            .map(|(second, its)| (second as f64, its.len() as f64))
            .collect()
    }
}

fn by_second(samples: &[Sample], moment: fn(&Sample) -> Duration) -> Vec<Vec<&Sample>> {
    let last = samples
        .iter()
        .map(moment)
        .max()
        .unwrap_or_default()
        .as_secs() as usize;
    let mut seconds = vec![vec![]; last + 1];
    samples
        .iter()
        .for_each(|sample| seconds[moment(sample).as_secs() as usize].push(sample));
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
            Sample {
                start,
                answered: start,
                settled: if away { Duration::from_secs(22) } else { soon },
                by_deadline: false,
            }
        };
        let (stopped, back) = (Duration::from_secs(10), Duration::from_secs(20));
        Course {
            samples: (0..600).map(sample).collect(),
            stopped,
            back,
        }
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
        let still_late = Course {
            back: Duration::from_secs(15),
            ..course()
        };
        assert_eq!(still_late.p99_back(), Some(20));
    }

    #[test]
    fn goodput_is_back_when_a_second_s_worth_is_settled_but_not_by_deadlines() {
        let (samples, back) = (course().samples, Duration::from_secs(20));
        assert_eq!(
            until_goodput_is_back(&samples, back, 10.0),
            Some(Duration::ZERO)
        );
        // the backlog is settled in the second that begins 1,100 ms after the return
        assert_eq!(
            until_goodput_is_back(&samples, back, 100.0),
            Some(Duration::from_millis(1_100))
        );
        let failed: Vec<Sample> = samples
            .iter()
            .map(|sample| Sample {
                by_deadline: true,
                ..*sample
            })
            .collect();
        assert_eq!(until_goodput_is_back(&failed, back, 10.0), None);
    }
}
