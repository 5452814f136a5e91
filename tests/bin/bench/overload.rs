//! Overload: as many orders as can be settled, twice and four times as many, at their moments whatever becomes of those
//! before; then payment away, for longer than what waits could be settled in time. What is accepted settles in time (I10),
//! and as much is settled as without the rest.

use std::time::Duration;

use harness::flood::{Flood, Flooded};
use harness::{is_refusal, wire};

use crate::figures::{Times, milliseconds, rate};
use crate::level::{self, Sample};
use crate::load::{self, Asked, Done, NAMES, Pace, Placed};
use crate::options::Options;
use crate::plot;
use crate::procfs;
use crate::recovery;
use crate::report::{Report, Run};
use crate::stage::Stage;
use crate::usage::Meter;

const SECTION: &str = "overload";
/// Of its orders: short, so that a few of them pass while the load lasts.
const DEADLINE: Duration = Duration::from_secs(8);
/// How many of them each load lasts at least: what is accepted beyond what can be settled fails in the second.
const DEADLINES: u32 = 3;
/// Before anything is measured: the service learns what it can settle, the broker compiles.
const WARM_UP: (Pace, Duration) = (Pace::AsAnswered, Duration::from_secs(25));
/// Nearly all that an instance takes (2,500). Above capacity each of them is busy: the order waits for its turn to be
/// stored, or the service pauses before it refuses it. With fewer than wait for the writer at most (2,048) none would be
/// refused. A request that finds no free connection is reported as not sent.
const CONNECTIONS: usize = 2_400;
/// Of the closed loop's settled orders a second.
const TIMES: [(&str, f64); 3] = [("1 times", 1.0), ("2 times", 2.0), ("4 times", 4.0)];
/// How finely the course is looked at, in steps a second.
const STEPS: f64 = 2.0;
/// Orders repeat after so many, so that all requests are made before the load begins.
const CYCLE: usize = 900;
/// Deadline, absence and load of the second part, in measured stretches: what waits at the return is too much for the
/// fourth part of the deadline, and can still be settled before the whole has passed.
const AWAY: Away = Away {
    deadline: 4,
    before: 1,
    away: 2,
    after: 3,
};

struct Away {
    deadline: u32,
    before: u32,
    away: u32,
    after: u32,
}

/// Measures the section.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = start(DEADLINE)?;
    let saturation_load = stage.load(options.connections);
    level::warm_up_at(&mut stage, &saturation_load, WARM_UP)?;
    let time = options.time.max(DEADLINE * DEADLINES);
    let saturated = level::run(
        (SECTION, "saturation"),
        &mut stage,
        &saturation_load,
        (Pace::AsAnswered, time),
        report,
    )?;
    add_goodput(&mut report.run(SECTION, "saturation"), &saturated, time);
    let end = saturated
        .iter()
        .map(|sample| sample.settled)
        .max()
        .unwrap_or_default();
    let saturation = rate(saturated.len(), end);
    let mut drawn = vec![];
    for (name, times) in TIMES {
        let load = Open::new(&stage, saturation * times, time);
        let (done, flooded, samples) = measure(&mut stage, name, &load, report)?;
        drawn.push(course(name, &load, &done, &flooded, &samples));
    }
    drop(stage);
    drawn.push(without_payment(options, saturation, report)?);
    plot::over_time(&report.file("overload.svg"), drawn)
}

fn start(deadline: Duration) -> Result<Stage, String> {
    Stage::start_with(
        SECTION,
        1,
        NAMES,
        &[("ORDER_DEADLINE", &format!("{}s", deadline.as_secs()))],
    )
}

/// An open loop of orders.
struct Open {
    flood: Flood,
    orders: Vec<Asked>,
    requests: Vec<Vec<u8>>,
}

impl Open {
    fn new(stage: &Stage, rate: f64, time: Duration) -> Open {
        let orders: Vec<Asked> = (0..CYCLE).map(|number| stage.names.order(number)).collect();
        let flood = Flood {
            ports: stage.order_ports(),
            connections: CONNECTIONS,
            rate,
            time,
        };
        Open {
            flood,
            requests: orders.iter().map(request).collect(),
            orders,
        }
    }

    fn run(&self, title: &str) -> Result<(Done, Flooded), String> {
        let begun = std::time::Instant::now();
        let flooded = std::thread::scope(|scope| {
            let loading = scope.spawn(|| self.flood.run(&self.requests));
            let offered =
                || (begun.elapsed().min(self.flood.time).as_secs_f64() * self.flood.rate) as usize;
            load::show_progress(title, (begun, self.flood.time), offered, || {
                loading.is_finished()
            });
            loading
                .join()
                .expect("no thread panics")
                .map_err(load::broken)
        })?;
        let accepted = flooded
            .answered
            .iter()
            .filter(|answered| answered.status == 202);
        let placed = accepted.filter_map(|answered| {
            let must_fail = self.orders[answered.number % CYCLE].must_fail;
            Some(Placed {
                order_id: answered.order_id?,
                start: answered.start,
                answered: answered.answered,
                must_fail,
            })
        });
        let placed: Vec<Placed> = placed.collect();
        let refused = flooded.answered.len() - placed.len();
        Ok((
            Done {
                began: flooded.began,
                placed,
                refused,
            },
            flooded,
        ))
    }
}

fn request(order: &Asked) -> Vec<u8> {
    let mut request = vec![];
    wire::write_post(&mut request, "/orders", &[], &order.json()).expect("a Vec takes everything");
    request
}

/// Offers orders, waits until what was accepted is settled, and adds what came of it.
fn measure(
    stage: &mut Stage,
    name: &str,
    load: &Open,
    report: &mut Report,
) -> Result<(Done, Flooded, Vec<Sample>), String> {
    let mut meter = Meter::new()?;
    let before = meter.read(stage)?;
    let tool = procfs::cpu(std::process::id());
    let (done, flooded) = load.run(&format!("{SECTION}: {name}"))?;
    let tool = procfs::cpu(std::process::id()) - tool;
    let memory = meter.memory(stage);
    let samples = level::settle_all((SECTION, name), stage, &done, report)?;
    let costs = meter.costs(stage, &before, done.placed.len())?;
    let time = load.flood.time;
    add_offered(&mut report.run(SECTION, name), load, &flooded, tool);
    let mut figures = report.run(SECTION, name);
    level::add_figures(&mut figures, time, &done, &samples);
    add_goodput(&mut figures, &samples, time);
    figures.add_all(costs.into_iter().chain(memory));
    add_oddities(name, &flooded, report);
    Ok((done, flooded, samples))
}

/// What was offered, and what became of it before anything was stored.
fn add_offered(figures: &mut Run<'_>, load: &Open, flooded: &Flooded, tool: f64) {
    let Flood {
        rate: offered,
        time,
        ..
    } = load.flood;
    let refused = || {
        flooded
            .answered
            .iter()
            .filter(|answered| is_refusal(answered.status))
    };
    figures.add("offered/s", "", offered);
    figures.add(
        "sent/s",
        "",
        rate(flooded.answered.len() + flooded.lost.len(), time),
    );
    figures.add("refused/s", "", rate(refused().count(), time));
    figures.add(
        "not sent/s, no connection free",
        "",
        rate(flooded.not_sent.len(), time),
    );
    figures.add(
        "sent late, p99",
        "ms",
        Times::new(flooded.answered.iter().map(|a| a.sent - a.start)).at(99.0),
    );
    figures.add(
        "POST to 503, p50",
        "ms",
        Times::new(refused().map(|a| a.answered - a.start)).at(50.0),
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    figures.add(
        "load tool, of all processors",
        "%",
        100.0 * tool / time.as_secs_f64() / cores,
    );
}

/// Orders completed, or failed by payment's or stock's decision, a second while orders come; and what deadlines failed.
fn add_goodput(figures: &mut Run<'_>, samples: &[Sample], time: Duration) {
    let good = samples
        .iter()
        .filter(|sample| !sample.by_deadline && sample.settled <= time)
        .count();
    figures.add("goodput/s", "", rate(good, time));
    figures.add(
        "FAILED by DEADLINE",
        "orders",
        samples.iter().filter(|sample| sample.by_deadline).count() as f64,
    );
}

/// Answers that are neither an order nor a refusal, and requests without any.
fn add_oddities(name: &str, flooded: &Flooded, report: &mut Report) {
    let odd: Vec<usize> = flooded
        .answered
        .iter()
        .filter(|answered| answered.status != 202 && !is_refusal(answered.status))
        .map(|answered| answered.number)
        .collect();
    if !odd.is_empty() {
        let text = flooded
            .refusals
            .iter()
            .find_map(|(number, text)| Some(text).filter(|_| odd.contains(number)));
        report.problem(format!(
            "{SECTION}, {name}: {} answers are neither orders nor refusals: {text:?}",
            odd.len()
        ));
    }
    if !flooded.lost.is_empty() {
        report.note(format!(
            "{name}: {} requests were sent and not answered",
            flooded.lost.len()
        ));
    }
}

/// Payment is away while as many orders come as can be settled, for so long that they can't all be accepted.
fn without_payment(
    options: &Options,
    saturation: f64,
    report: &mut Report,
) -> Result<plot::Course, String> {
    const NAME: &str = "payment away";
    let [deadline, before, away, after] = [AWAY.deadline, AWAY.before, AWAY.away, AWAY.after]
        .map(|stretches| options.time * stretches);
    let mut stage = start(deadline)?;
    let warm_up = stage.load(options.connections);
    level::warm_up_at(&mut stage, &warm_up, WARM_UP)?;
    let load = Open::new(&stage, saturation, before + away + after);
    let place = || load.run(&format!("{SECTION}: {NAME}"));
    let ((done, flooded), [stopped, back]) =
        recovery::without_payment(&mut stage, (before, away), place)?;
    let samples = level::settle_all((SECTION, NAME), &mut stage, &done, report)?;
    let good = |from: Duration, to: Duration| {
        let its = samples
            .iter()
            .filter(|sample| !sample.by_deadline && sample.settled > from && sample.settled <= to);
        rate(its.count(), to - from)
    };
    let usual = good(Duration::ZERO, stopped);
    let goodput_back = recovery::until_goodput_is_back(&samples, back, usual);
    let mut figures = report.run(SECTION, NAME);
    figures.add("offered/s", "", saturation);
    figures.add("refused", "orders", done.refused as f64);
    figures.add("not sent", "orders", flooded.not_sent.len() as f64);
    figures.add("away", "s", (back - stopped).as_secs_f64());
    figures.add("goodput/s, before", "", usual);
    figures.add(
        "until goodput is back",
        "s",
        goodput_back.map_or(f64::NAN, |time| time.as_secs_f64()),
    );
    figures.add(
        "goodput/s, after its return",
        "",
        good(back, load.flood.time),
    );
    figures.add("deadline", "ms", milliseconds(deadline));
    level::add_figures(&mut figures, load.flood.time, &done, &samples);
    add_goodput(&mut figures, &samples, load.flood.time);
    add_oddities(NAME, &flooded, report);
    Ok(course(NAME, &load, &done, &flooded, &samples))
}

/// As it is drawn: rates and p99 by steps.
fn course(
    name: &str,
    load: &Open,
    done: &Done,
    flooded: &Flooded,
    samples: &[Sample],
) -> plot::Course {
    let line = |name: &str, moments: Vec<Duration>| (name.to_string(), each_step(&moments));
    let refused = flooded
        .answered
        .iter()
        .filter(|answered| is_refusal(answered.status));
    let offered = load.flood.time.as_secs_f64();
    let good = samples.iter().filter(|sample| !sample.by_deadline);
    let rates = vec![
        (
            "offered".to_string(),
            vec![(0.0, load.flood.rate), (offered, load.flood.rate)],
        ),
        line(
            "accepted",
            done.placed
                .iter()
                .map(|placed| placed.answered - done.began)
                .collect(),
        ),
        line(
            "refused",
            refused
                .map(|refused| refused.answered - done.began)
                .collect(),
        ),
        line(
            "settled, but by deadlines",
            good.map(|sample| sample.settled).collect(),
        ),
    ];
    plot::Course {
        title: format!("{name}: {:.0} orders/s", load.flood.rate),
        rates,
        p99: p99_each_step(samples),
    }
}

/// How often a second, in each step.
fn each_step(moments: &[Duration]) -> Vec<(f64, f64)> {
    let mut counts = vec![0; moments.iter().max().map_or(0, |last| step(*last) + 1)];
    moments.iter().for_each(|moment| counts[step(*moment)] += 1);
    counts
        .iter()
        .enumerate()
        .map(|(step, count)| (middle(step), f64::from(*count) * STEPS))
        .collect()
}

/// The p99 from POST to settled of the orders placed in each step.
fn p99_each_step(samples: &[Sample]) -> Vec<(f64, f64)> {
    let mut steps: Vec<Vec<Duration>> = vec![];
    for sample in samples {
        let step = step(sample.start);
        steps.resize_with(steps.len().max(step + 1), Vec::new);
        steps[step].push(sample.settling());
    }
    steps
        .into_iter()
        .enumerate()
        .map(|(step, times)| (middle(step), Times::new(times).at(99.0)))
        .collect()
}

fn step(moment: Duration) -> usize {
    (moment.as_secs_f64() * STEPS) as usize
}

fn middle(step: usize) -> f64 {
    (step as f64 + 0.5) / STEPS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Names;

    #[test]
    fn orders_repeat_after_a_cycle() {
        let text = |names: Names, number| names.order(number).json();
        assert!((0..CYCLE).all(|number| text(NAMES, number) == text(NAMES, number + CYCLE)));
    }

    #[test]
    fn what_happens_is_counted_by_half_seconds() {
        let moments = [0, 499, 500, 1_700].map(Duration::from_millis);
        assert_eq!(
            each_step(&moments),
            [(0.25, 4.0), (0.75, 2.0), (1.25, 0.0), (1.75, 2.0)]
        );
        let sample = |start: u64, took: u64| {
            let start = Duration::from_millis(start);
            Sample {
                start,
                answered: start,
                settled: start + Duration::from_millis(took),
                by_deadline: false,
            }
        };
        let p99 = p99_each_step(&[sample(0, 10), sample(400, 30), sample(600, 20)]);
        assert_eq!(p99, [(0.25, 30.0), (0.75, 20.0)]);
    }
}
