//! Restarts: two instances of every service under load, stopped and started one after another, as at a release.

use crate::level;
use crate::load::{Load, NAMES, Pace};
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

const SECTION: &str = "restarts";
/// Orders a second.
const RATE: f64 = 200.0;
/// Few keep-alive connections suffice for them.
const CONNECTIONS: usize = 32;
/// Six restarts, each with a stretch of its own to start in and one to be quiet in, of a fifth of a measured stretch.
const STRETCH: u32 = 5;

/// Measures the section.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(SECTION, 2, NAMES)?;
    let load = Load {
        repeats: true,
        ..stage.load(CONNECTIONS)
    };
    let pace = Pace::Rate(RATE);
    level::warm_up_at(&mut stage, &load, (pace, options.time))?;
    level::run(
        (SECTION, "calm"),
        &mut stage,
        &load,
        (pace, options.time),
        report,
    )?;
    let pause = options.time / STRETCH;
    let all = options.time * 3;
    let done = std::thread::scope(|scope| {
        let loading = scope.spawn(|| load.run("restarts: one after another", pace, all));
        std::thread::sleep(pause);
        stage.restart_each(pause);
        loading.join().expect("no thread panics")
    })?;
    let samples = level::settle_all((SECTION, "one after another"), &mut stage, &done, report)?;
    level::add_figures(
        &mut report.run(SECTION, "one after another"),
        all,
        &done,
        &samples,
    );
    Ok(())
}
