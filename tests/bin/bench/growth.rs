//! Growth: saturation with more instances, a longer history, more users, and fewer. Each differs from the first in one thing.

use crate::history;
use crate::level;
use crate::load::{NAMES, Names, Pace};
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

const SECTION: &str = "growth";

struct Case {
    name: &'static str,
    /// Of every service.
    instances: usize,
    /// Settled orders in the tables.
    history: usize,
    users: usize,
}

const BASE: Case = Case {
    name: "base",
    instances: 1,
    history: 1_000,
    users: NAMES.users,
};
const CASES: [Case; 7] = [
    BASE,
    Case {
        name: "2 instances",
        instances: 2,
        ..BASE
    },
    Case {
        name: "3 instances",
        instances: 3,
        ..BASE
    },
    Case {
        name: "10^6 orders",
        history: 1_000_000,
        ..BASE
    },
    Case {
        name: "10^5 users",
        users: 100_000,
        ..BASE
    },
    Case {
        name: "10 users",
        users: 10,
        ..BASE
    },
    Case {
        name: "1 user",
        users: 1,
        ..BASE
    },
];

/// Measures the section.
///
/// # Errors
/// What the connections and PostgreSQL say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    CASES
        .iter()
        .try_for_each(|case| measure(case, options, report))
}

/// On an installation of its own.
fn measure(case: &Case, options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(
        SECTION,
        case.instances,
        Names {
            users: case.users,
            ..NAMES
        },
    )?;
    history::put_in(&mut stage, case.history)?;
    let load = stage.load(options.connections);
    level::warm_up(&mut stage, &load)?;
    level::run(
        (SECTION, case.name),
        &mut stage,
        &load,
        (Pace::AsAnswered, options.time),
        report,
    )
    .map(drop)
}
