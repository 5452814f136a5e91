//! `./run.sh bench`: what the system does, how fast, for what, and how near to the limits of the machine it runs on. It
//! fails if an accepted order is unsettled at the end, ends otherwise than it must, or money or stock is not conserved.
//!
//! | file | idea |
//! | --- | --- |
//! | this one | the course of a run, the verdict |
//! | `options` | what is to be measured |
//! | `levels` | section: latency and cost at fixed rates and at saturation |
//! | `limits` | section: the same machine's PostgreSQL, Kafka and HTTP without us |
//! | `relay` | section: an outbox drained, a lone row's way |
//! | `consumers` | section: waiting records handled, service by service |
//! | `recovery` | section: a participant away under load |
//! | `overload` | section: more orders than can be settled |
//! | `growth` | section: more instances, history, users; fewer users |
//! | `stage` | an installation of one section: databases, topics, processes |
//! | `load`, `http` | orders placed by threads on keep-alive connections, closed and open loop |
//! | `level` | one stretch of load, from its first POST to its figures |
//! | `backlog`, `history` | orders stored by SQL: waiting in the outbox, settled long ago |
//! | `topic` | a topic as its readers see it |
//! | `books` | what the databases say: settled when, conserved or not |
//! | `usage`, `procfs` | processor time, memory, statements, bytes of each process |
//! | `report`, `machine` | tables, JSON, CSV; what was measured on |
//! | `figures`, `plot` of the harness | percentiles; pictures as SVG |
//! | `targets` | what the figures are compared with |
//!
//! When is an order settled? Asking during the run (`GET ?wait`, or SQL every few milliseconds over thousands of rows)
//! would load what is measured. So the table is read after the run: `orders.updated_at` is the database's clock in the
//! statement that settled the order, microseconds fine; the clocks' offset is measured. The commit comes after that
//! statement, so others see the order settled one commit later; what a commit takes is measured and printed.

mod backlog;
mod books;
mod consumers;
mod growth;
mod history;
mod http;
mod level;
mod levels;
mod limits;
mod load;
mod machine;
mod options;
mod overload;
mod procfs;
mod recovery;
mod relay;
mod report;
mod restarts;
mod stage;
mod targets;
mod topic;
mod usage;

use std::path::Path;
use std::process::ExitCode;

// as the other sections' modules: `crate::figures`, `crate::plot`
use harness::{figures, plot};
use options::Options;
use report::Report;

/// Measures its part and adds what came of it.
type Section = fn(&Options, &mut Report) -> Result<(), String>;

/// In the order of a whole run.
const SECTIONS: [(&str, Section); 8] = [
    ("levels", levels::run),
    ("limits", limits::run),
    ("relay", relay::run),
    ("consumers", consumers::run),
    ("recovery", recovery::run),
    ("restarts", restarts::run),
    ("overload", overload::run),
    ("growth", growth::run),
];

fn main() -> ExitCode {
    match options::read(&SECTIONS.map(|(name, _)| name))
        .and_then(|asked| asked.map_or(Ok(true), |asked| run(&asked)))
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// False: something is wrong that the bench must not pass over; it is printed.
fn run(options: &Options) -> Result<bool, String> {
    let binaries = std::env::var("TEST_BIN_DIR")
        .map_err(|_| "TEST_BIN_DIR is not set: start this as ./run.sh bench")?;
    let mut report = Report::create(
        &Path::new(&binaries).with_file_name("bench"),
        machine::describe()?,
    )?;
    for (name, section) in SECTIONS.iter().filter(|(name, _)| options.wants(name)) {
        println!("\n{name}");
        section(options, &mut report)?;
        report.print(name);
        report.save()?;
    }
    println!();
    targets::compare(&report)
        .iter()
        .for_each(|comparison| println!("{comparison}"));
    Ok(report.verdict())
}
