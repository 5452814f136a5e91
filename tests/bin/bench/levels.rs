//! Latency and cost at fixed rates, at saturation and at half of it.

use std::time::Duration;

use crate::figures::{Times, rate};
use crate::level::{self, Sample};
use crate::load::{NAMES, Pace};
use crate::options::Options;
use crate::plot;
use crate::report::Report;
use crate::stage::Stage;

const SECTION: &str = "levels";
/// Orders a second.
const RATES: [usize; 4] = [1, 100, 500, 1_000];
/// A broker that was just started compiles as it goes: a transaction costs it twice as much until it has seen some ten
/// thousand, which a saturated system, with few large ones, does not bring about.
const SMALL_TRANSACTIONS: (Pace, Duration) = (Pace::Rate(200.0), Duration::from_secs(60));

/// Measures the section.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(SECTION, 1, NAMES)?;
    let load = stage.load(options.connections);
    level::warm_up(&mut stage, &load)?;
    level::warm_up_at(&mut stage, &load, SMALL_TRANSACTIONS)?;
    report
        .note("warmed up by 200 orders/s for a minute, settled before anything is measured".into());
    let mut measured = vec![];
    let mut measure = |name: String, pace| {
        let samples = level::run(
            (SECTION, &name),
            &mut stage,
            &load,
            (pace, options.time),
            report,
        )?;
        measured.push((name, Times::new(samples.iter().map(Sample::settling))));
        Ok::<_, String>(samples)
    };
    for orders in RATES {
        measure(format!("{orders}/s"), Pace::Rate(orders as f64))?;
    }
    let saturated = measure("saturation".into(), Pace::AsAnswered)?;
    let end = saturated
        .iter()
        .map(|sample| sample.settled)
        .max()
        .unwrap_or_default();
    measure(
        "half of it".into(),
        Pace::Rate((rate(saturated.len(), end) / 2.0).max(1.0)),
    )?;
    add_precision(&mut stage, report)?;
    plot::distributions(&report.file("levels.svg"), &measured)
}

/// How exact the moments of settling are.
fn add_precision(stage: &mut Stage, report: &mut Report) -> Result<(), String> {
    let clock = stage.books.clock()?;
    let commit = stage.books.commit_time()?;
    report.note(format!(
        "settled is by the database's clock (offset known to ±{:.2} ms), before the commit, which takes {:.1} ms when idle",
        clock.uncertainty.as_secs_f64() * 1e3,
        commit.as_secs_f64() * 1e3
    ));
    Ok(())
}
