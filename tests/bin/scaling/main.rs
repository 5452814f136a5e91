//! How far the saga can grow: a simulation of its serial loops on more machines than there are to measure on.
//!
//! `cargo run --release --locked -p saga-tests --bin scaling -- [--seed S] [--plot FILE.svg]` needs no servers. It ends with
//! 1 if the simulation of the machine that the bench ran on differs from what the bench has measured by more than the
//! factors below. docs/scaling.md says what follows from it.
//!
//! | file | idea |
//! | --- | --- |
//! | this one | the check against the bench, tables, the plot |
//! | `costs` | what each step costs, and where that was measured |
//! | `engine` | time, tasks, processors |
//! | `saga` | order's way as serial loops |
//! | `plan` | what one of each part can do, and how much of it a rate needs |

mod costs;
mod engine;
mod plan;
mod saga;

use std::path::PathBuf;
use std::process::ExitCode;

use harness::plot::{self, Line};

use plan::Plan;
use saga::{Load, ORDER, PAYMENT, Saga, Size};

/// The bench's machine.
const BENCH: Size = Size {
    together: true,
    cores: 2,
    databases: 1,
    brokers: 1,
    replicas: 1,
    round_trip: 0.0,
    ..plan::SMALLEST
};
/// A level of the bench; how orders come; settled a second and FIGURES, as measured (docs/performance.md, the whole run of
/// 2026-11-25; the latencies at saturation by `overload`). Half a second's work is under way, as admission lets be.
type Level = (&'static str, Load, f64, [f64; 3]);
const LEVELS: [Level; 3] = [
    ("100/s", Load::Paced(100.0), 100.0, [10.8, 7.9, 26.0]),
    ("half", Load::Paced(2_788.0), 2_788.0, [0.685, 88.0, 294.0]),
    (
        "saturation",
        Load::UnderWay(2_800),
        5_585.0,
        [0.332, 400.0, 1_000.0],
    ),
];
/// By which factor rates and processor time may differ.
const CLOSE: f64 = 1.25;
/// What is compared, and by which factor it may differ. The p99 by more: nothing in the simulation ever pauses, neither a
/// collector nor a checkpoint nor a neighbour on the machine.
const FIGURES: [(&str, f64); 3] = [
    ("processor time, ms", CLOSE),
    ("p50, ms", 2.0),
    ("p99, ms", 3.5),
];
/// What works alone on what waits; whose consumers run; how many a second were measured (`relay`, `consumers`).
type Alone = (&'static str, usize, [usize; 3], f64);
const ALONE: [Alone; 2] = [
    ("order's relay alone, rows/s", ORDER, [0, 0, 0], 60_487.0),
    ("payment alone, requests/s", PAYMENT, [0, 1, 0], 34_397.0),
];
/// Orders a second.
const RATES: [f64; 6] = [1e3, 3e3, 1e4, 3e4, 5e4, 1e5];
/// What is planned for, from which size on, and how many outboxes a database may have. Today it has one.
type Scenario = (&'static str, Size, usize);
const SCENARIOS: [Scenario; 4] = [
    ("as it is", plan::SMALLEST, 1),
    ("outboxes by order id", plan::SMALLEST, 16),
    ("standby in another zone", FAR, 1),
    ("the same, outboxes by order id", FAR, 16),
];
/// Each commit waits for a synchronous standby in another zone, and so do Kafka's replicas for one another.
const FAR: Size = Size {
    commit: 2.0,
    round_trip: 1.0,
    ..plan::SMALLEST
};
const COLUMNS: [&str; 11] = [
    "brokers",
    "databases",
    "order",
    "payment",
    "threads",
    "partitions",
    "outboxes",
    "settled/s",
    "p50, ms",
    "p99, ms",
    "busy cores",
];
const USAGE: &str = "scaling [--seed S] [--plot FILE.svg]";

fn main() -> ExitCode {
    match options().and_then(|options| options.map_or(Ok(true), run)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The seed, and where to plot.
type Options = (u64, Option<PathBuf>);

/// None: the usage was asked for, and printed.
fn options() -> Result<Option<Options>, String> {
    use lexopt::prelude::*;
    let (mut seed, mut file) = (1, None);
    let mut parser = lexopt::Parser::from_env();
    let said = |error: lexopt::Error| format!("{error}\n{USAGE}");
    while let Some(argument) = parser.next().map_err(said)? {
        match argument {
            Long("seed") => seed = parser.value().and_then(|seed| seed.parse()).map_err(said)?,
            Long("plot") => file = Some(parser.value().map_err(said)?.into()),
            Short('h') | Long("help") => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => return Err(said(other.unexpected())),
        }
    }
    Ok(Some((seed, file)))
}

/// False: the simulation differs too much from what was measured.
fn run((seed, file): Options) -> Result<bool, String> {
    let (holds, latencies) = check(seed);
    print_row("one, and more than enough of the rest", &["orders/s"]);
    for (name, rate) in plan::limits(seed) {
        print_row(name, &[&format!("{rate:.0}")]);
    }
    let mut settled = vec![];
    for (name, mut size, outboxes) in SCENARIOS {
        print_row(name, &COLUMNS);
        let mut line = vec![];
        for rate in RATES {
            let plan = plan::grow(size, rate, outboxes, seed);
            print_plan(rate, &plan);
            line.push((rate, plan.outcome.rate));
            size = plan.size;
        }
        settled.push((name.to_string(), line));
    }
    let Some(file) = file else { return Ok(holds) };
    let two = "Two processors: POST to settled";
    let many = "As many machines as help: settled orders, by what comes";
    let charts = [
        plot::by_powers(two, "orders/s", "ms", latencies),
        plot::by_powers(many, "orders/s", "settled/s", settled),
    ];
    plot::save(&file, &charts).map(|()| holds)
}

/// The bench's machine, simulated, beside what was measured. Returns whether they agree, and the latencies as lines.
fn check(seed: u64) -> (bool, Vec<Line>) {
    let mut holds = true;
    print_row(
        "two processors",
        &["measured", "simulated", "ratio", "within"],
    );
    let mut compare = |name: &str, measured: f64, simulated: f64, factor: f64| {
        let ratio = simulated / measured;
        let agrees = (1.0 / factor..=factor).contains(&ratio);
        holds &= agrees;
        let figures = [measured, simulated, ratio, factor].map(|figure| format!("{figure:.3}"));
        print_row(name, &figures.each_ref().map(String::as_str));
        if !agrees {
            println!("DIFFERS: {name}");
        }
    };
    let lines = [
        "p50, simulated",
        "p99, simulated",
        "p50, measured",
        "p99, measured",
    ];
    let mut lines = lines.map(|name| (name.to_string(), vec![]));
    for (level, load, rate, measured) in LEVELS {
        let outcome = Saga::new(BENCH, seed).run(load, 10.0);
        compare(&format!("{level}: settled/s"), rate, outcome.rate, CLOSE);
        let simulated = [outcome.processor, outcome.at(50.0), outcome.at(99.0)];
        for (number, (figure, factor)) in FIGURES.iter().enumerate() {
            let name = format!("{level}: {figure}");
            compare(&name, measured[number], simulated[number], *factor);
        }
        let points = [simulated[1], simulated[2], measured[1], measured[2]];
        lines
            .iter_mut()
            .zip(points)
            .for_each(|(line, ms)| line.1.push((rate, ms)));
    }
    for (name, service, consumers, measured) in ALONE {
        let size = Size { consumers, ..BENCH };
        compare(
            name,
            measured,
            Saga::new(size, seed).drain(service, 100_000),
            CLOSE,
        );
    }
    (holds, lines.into())
}

fn print_row(first: &str, others: &[&str]) {
    let others: String = others.iter().map(|cell| format!("{cell:>12}")).collect();
    println!("{first:<44}{others}");
}

fn print_plan(
    rate: f64,
    Plan {
        size,
        outcome,
        limit,
    }: &Plan,
) {
    let [order, payment, _] = size.instances;
    let threads = size.threads().iter().sum();
    let parts = [
        size.brokers,
        size.databases,
        order,
        payment,
        threads,
        size.partitions,
        size.outboxes,
    ];
    let figures = [
        outcome.rate,
        outcome.at(50.0),
        outcome.at(99.0),
        outcome.processor * outcome.rate / 1e3,
    ];
    let mut cells: Vec<String> = parts.iter().map(usize::to_string).collect();
    cells.extend(figures.map(|figure| format!("{figure:.0}")));
    cells.extend(limit.iter().map(|part| format!("  {part} is full")));
    let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
    print_row(&format!("{rate}"), &cells);
}
