//! `./run.sh bench`: a first, honest measurement of the running system; it fails if an accepted order is unsettled at the
//! end, ends otherwise than it must, or money or stock is not conserved.
//!
//! | file | idea |
//! | --- | --- |
//! | this one | options, the course of a run, the verdict |
//! | `load` | orders placed by threads, as fast as they are answered or at a fixed rate |
//! | `books` | what the databases say: settled when, conserved or not |
//! | `figures` | percentiles; machine and versions |
//!
//! When is an order settled? Asking during the run (`GET ?wait`, or SQL every few milliseconds over thousands of rows)
//! would load what is measured. So the table is read after the run: `orders.updated_at` is the database's clock in the
//! statement that settled the order, microseconds fine; the clocks' offset is measured. The commit comes after that
//! statement, so others see the order settled one commit later; what a commit takes is measured and printed.

#[path = "bench/books.rs"]
mod books;
mod client;
#[path = "bench/figures.rs"]
mod figures;
#[path = "bench/load.rs"]
mod load;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use books::Books;
use figures::{line, machine};
use load::{Load, Pace, Placed};

const USAGE: &str = "bench [--orders N] [--connections C] [--failing PERCENT]
bench --rate R --seconds S [--connections C] [--failing PERCENT]
  --orders N         orders in all, placed as fast as they are answered; default 5000
  --connections C    keep-alive connections, a thread each; default 32
  --failing PERCENT  orders that must fail on a side (unknown user, or item without stock, in turn); default 10
  --rate R --seconds S
                     R orders a second for S seconds, whether or not answers come; times count from the intended start";

/// After the last answer, for the last order to settle: well beyond the backlog that a run can leave.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match options().and_then(|load| load.map_or(Ok(true), |load| run(&load))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// None: the usage was asked for, and printed.
fn options() -> Result<Option<Load>, String> {
    use lexopt::prelude::*;
    let (mut orders, mut connections, mut failing, mut rate, mut seconds) = (None, 32, 10, None, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("orders") => orders = Some(number(&mut parser, 1..=10_000_000)?),
            Long("connections") => connections = number(&mut parser, 1..=1_000)?,
            Long("failing") => failing = number(&mut parser, 0..=100)?,
            Long("rate") => rate = Some(number(&mut parser, 1..=100_000)?),
            Long("seconds") => seconds = Some(number(&mut parser, 1..=86_400)?),
            Short('h') | Long("help") => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => return Err(format!("{}\n{USAGE}", other.unexpected())),
        }
    }
    let (orders, pace) = match (orders, rate, seconds) {
        (orders, None, None) => (orders.unwrap_or(5_000), Pace::AsAnswered),
        (None, Some(rate), Some(seconds)) => (rate * seconds, Pace::Rate(rate)),
        _ => return Err(format!("--rate and --seconds go together, without --orders\n{USAGE}")),
    };
    Ok(Some(Load { orders, connections, failing, pace }))
}

fn number(parser: &mut lexopt::Parser, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| range.contains(number));
    number.ok_or(format!("{value:?}: must be a whole number from {} to {}", range.start(), range.end()))
}

/// False: something is wrong that the bench must not pass over; it is printed.
fn run(load: &Load) -> Result<bool, String> {
    let mut books = Books::open()?;
    println!("{}", machine(&mut books)?);
    println!("{load}");
    let names = load.put_in()?;
    let began = Instant::now();
    let (placed, refused) = load.run(&names)?;
    let settled = settle(&mut books, &placed)?;
    println!("\n{} accepted, {} not accepted, {} settled", placed.len(), refused.len(), settled.len());
    refused.iter().take(1).for_each(|why| println!("  not accepted, the first: {why}"));
    print_figures(&mut books, began, &placed, &settled)?;
    let mut problems = wrong_ends(&placed, &settled);
    problems.extend(books.unconserved(&names)?);
    problems.iter().for_each(|problem| println!("WRONG: {problem}"));
    if problems.is_empty() {
        println!("Every accepted order settled as it must; money and stock are conserved.");
    }
    Ok(problems.is_empty() && !placed.is_empty())
}

/// Waits until all are settled or the time is over.
fn settle(books: &mut Books, placed: &[Placed]) -> Result<Vec<books::Settled>, String> {
    let bar = figures::bar("settled", placed.len());
    let end = Instant::now() + SETTLE_LIMIT;
    loop {
        let settled = books.settled(placed)?;
        bar.set_position(settled.len() as u64);
        if settled.len() == placed.len() || Instant::now() > end {
            bar.finish_and_clear();
            return Ok(settled);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn print_figures(
    books: &mut Books,
    began: Instant,
    placed: &[Placed],
    settled: &[books::Settled],
) -> Result<(), String> {
    let (Some(first), Some(last)) = (placed.iter().map(|p| p.start).min(), placed.iter().map(|p| p.answered).max())
    else {
        return Ok(());
    };
    let clock = books.clock(began)?;
    let commit = books.commit_time()?;
    let moments: Vec<Duration> = settled.iter().map(|s| clock.since(s.at_micros, placed[s.place].start)).collect();
    let last_settled = settled.iter().map(|s| clock.since(s.at_micros, first)).max().unwrap_or_default();
    let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
    println!(
        "accepted/s  {:8.0}   first POST to last 202, {:.2} s",
        rate(placed.len(), last - first),
        (last - first).as_secs_f64()
    );
    println!(
        "settled/s   {:8.0}   first POST to last settled, {:.2} s",
        rate(settled.len(), last_settled),
        last_settled.as_secs_f64()
    );
    println!("{:<18} {:>10} {:>10} {:>10} {:>10}", "milliseconds", "p50", "p95", "p99", "max");
    println!("{}", line("POST to 202", placed.iter().map(|p| p.answered - p.start).collect()));
    println!("{}", line("POST to settled", moments));
    println!(
        "  settled by the database's clock (offset known to ±{:.2} ms), before the commit, which takes {:.1} ms here",
        clock.uncertainty.as_secs_f64() * 1e3,
        commit.as_secs_f64() * 1e3
    );
    Ok(())
}

/// Accepted orders that are unsettled, or that ended otherwise than their user and item say.
fn wrong_ends(placed: &[Placed], settled: &[books::Settled]) -> Vec<String> {
    let mut ends: Vec<Option<&str>> = vec![None; placed.len()];
    settled.iter().for_each(|s| ends[s.place] = Some(&s.status));
    let wrong = placed.iter().zip(ends).filter_map(|(order, end)| match (end, order.must_fail) {
        (None, _) => Some(format!("order {} is not settled", order.order_id)),
        (Some("FAILED"), true) | (Some("COMPLETED"), false) => None,
        (Some(end), _) => Some(format!("order {} is {end}", order.order_id)),
    });
    let wrong: Vec<String> = wrong.collect();
    let more = wrong.len().saturating_sub(5);
    let rest = (more > 0).then(|| format!("and {more} orders more"));
    wrong.into_iter().take(5).chain(rest).collect()
}
