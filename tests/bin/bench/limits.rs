//! What the same machine can do without us: PostgreSQL, Kafka and HTTP at their best, one after the other.

mod http;
mod kafka;
mod postgres;

use crate::load::NAMES;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

const SECTION: &str = "limits";

/// A limit, by what reaches it.
fn add(report: &mut Report, what: &str, unit: &'static str, value: f64) {
    report.run(SECTION, "best").add(what, unit, value);
}

/// Measures the section.
///
/// # Errors
/// What connections, servers and tools say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(SECTION, 1, NAMES)?;
    http::constant(&stage, options, report)?;
    stage.stop_all();
    http::tiny_http(options, report)?;
    postgres::place_orders(&stage, options, report)?;
    postgres::transactions(&mut stage, options, report)?;
    kafka::own_transactions(&stage, options, report)?;
    kafka::own_tools(&stage, report)
}
