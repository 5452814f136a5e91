//! `chaos --prove FOLDER`: the checks can fail. Each scenario is played by the binaries as they are and by those of FOLDER,
//! built with tests/sabotage.patch, without its mechanism; one checker judges both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use harness::{Broker, Service};

use crate::checker::{self, Check};
use crate::evidence;
use crate::scenario::{self, Scenario};

/// Plays all scenarios, `times` times; whether every one was green as it is and red, for its reason, without its mechanism.
///
/// # Errors
/// When there are no binaries, or no such mechanism.
pub fn run(sabotaged: &Path, only: Option<&str>, times: usize) -> Result<bool, String> {
    let is_wanted = |scenario: &&Scenario| only.is_none_or(|only| only == scenario.mechanism);
    let chosen: Vec<&Scenario> = scenario::ALL.iter().filter(is_wanted).collect();
    if chosen.is_empty() {
        return Err(format!(
            "--only: there is no mechanism {}",
            only.unwrap_or_default()
        ));
    }
    let clean = PathBuf::from(
        std::env::var_os("TEST_BIN_DIR").ok_or("TEST_BIN_DIR is not set: ./run.sh sabotage")?,
    );
    for (folder, can_be_turned_off) in [(clean.as_path(), false), (sabotaged, true)] {
        require(folder, can_be_turned_off)?;
    }
    let broker = Broker::start();
    let mut good = true;
    for scenario in chosen {
        for _ in 0..times {
            let as_it_is = broken(scenario, &broker, &clean, false);
            good &= report(
                scenario,
                "as it is",
                &as_it_is,
                as_it_is.as_ref().is_ok_and(Vec::is_empty),
            );
            let without = broken(scenario, &broker, sabotaged, true);
            let red = without
                .as_ref()
                .is_ok_and(|checks| checks.iter().any(|it| it.claim.contains(scenario.breaks)));
            good &= report(scenario, "turned off", &without, red);
        }
    }
    println!(
        "\n{}",
        if good {
            "every check that must break breaks, and none else"
        } else {
            "NOT as it must be"
        }
    );
    Ok(good)
}

/// The services' binaries are there, and hold the sabotage or nothing of it.
fn require(folder: &Path, can_be_turned_off: bool) -> Result<(), String> {
    for service in Service::ALL {
        let file = folder.join(service.name());
        let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let word = b"SABOTAGE";
        if bytes.windows(word.len()).any(|window| window == word) != can_be_turned_off {
            let with = if can_be_turned_off { "with" } else { "without" };
            return Err(format!(
                "{} must be built {with} tests/sabotage.patch",
                file.display()
            ));
        }
    }
    Ok(())
}

/// The checks whose claims do not hold afterwards. Err: the scenario did not come to its end.
fn broken(
    scenario: &Scenario,
    broker: &Broker,
    binaries: &Path,
    off: bool,
) -> Result<Vec<Check>, String> {
    let judged = catch_unwind(AssertUnwindSafe(|| judge(scenario, broker, binaries, off)));
    broker.proxy.resume();
    judged.unwrap_or_else(|panic| Err(shared::handler::panic_text(panic).to_string()))
}

fn judge(
    scenario: &Scenario,
    broker: &Broker,
    binaries: &Path,
    off: bool,
) -> Result<Vec<Check>, String> {
    let play = scenario.play(broker, binaries, off);
    let mut found = evidence::read(&play.world).map_err(|error| error.to_string())?;
    found.lost.clone_from(&play.lost);
    let mut checks = checker::check(&play.asked, &play.heard, &scenario::put_in(), &found);
    checks.push(checker::dead_letters(&[], &found));
    let torn: Vec<String> = play
        .looks
        .iter()
        .flat_map(|seen| checker::torn(seen))
        .collect();
    if scenario.is_load_alone {
        checks.push(checker::deadlines(&found));
    }
    checks.push(Check {
        claim: checker::PAIRS,
        counted: play.looks.len(),
        violations: torn,
    });
    checks.retain(|check| !check.violations.is_empty());
    Ok(checks)
}

fn report(
    scenario: &Scenario,
    how: &str,
    broken: &Result<Vec<Check>, String>,
    as_it_must: bool,
) -> bool {
    let verdict = if as_it_must {
        ""
    } else {
        "   <-- NOT as it must be"
    };
    let said = match broken {
        Ok(checks) if checks.is_empty() => "every claim holds".to_string(),
        Ok(checks) => format!(
            "broken: {}",
            checks
                .iter()
                .map(|check| check.claim)
                .collect::<Vec<_>>()
                .join("; ")
        ),
        Err(why) => format!("did not come to its end: {why}"),
    };
    println!("{:<12} {how:<10} {said}{verdict}", scenario.mechanism);
    // what to look for in the servers' logs
    for violation in broken
        .iter()
        .flatten()
        .flat_map(|check| &check.violations)
        .filter(|_| !as_it_must)
    {
        println!("    {violation}");
    }
    as_it_must
}
