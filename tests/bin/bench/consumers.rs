//! Consumers: waiting records handled with all their effects, by one service after the other, each alone with its backlog.

use std::time::Instant;

use harness::Service;

use crate::backlog::{self, LIMIT, POLL};
use crate::books::said;
use crate::figures::rate;
use crate::load::NAMES;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;
use crate::topic;
use crate::usage::Meter;

const SECTION: &str = "consumers";

/// Measures the section.
///
/// # Errors
/// What PostgreSQL and Kafka say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(SECTION, 1, NAMES)?;
    stage.stop_all();
    let orders = 2 * options.rows;
    backlog::fill(&stage, orders)?;
    stage.launch(Service::Order);
    backlog::wait_until_published(&mut stage, Service::Order)?;
    stage.stop_all();
    // a request for each order; then order gets the answers of both
    for (service, records) in [
        (Service::Payment, orders),
        (Service::Stock, orders),
        (Service::Order, 2 * orders),
    ] {
        handle(&mut stage, service, records, report)?;
        stage.stop_all();
    }
    check(&mut stage, orders, report)
}

/// From the first step of the service's offsets to its last effect.
fn handle(
    stage: &mut Stage,
    service: Service,
    records: usize,
    report: &mut Report,
) -> Result<(), String> {
    let (begin, end) = (offsets(stage, service)?, end(stage, service)?);
    stage.launch(service);
    let mut meter = Meter::new()?;
    let before = meter.read(stage)?;
    wait_for_offsets(stage, service, begin + 1)?;
    let first = Instant::now();
    wait_for_offsets(stage, service, end)?;
    let took = stage
        .books
        .clock()?
        .since(last_effect(stage, service)?, first);
    let memory = meter.memory(stage);
    backlog::wait_until_published(stage, service)?;
    let costs = meter.costs(stage, &before, records)?;
    let mut figures = report.run(SECTION, service.name());
    figures.add("records", "", records as f64);
    figures.add("records/s", "", rate(records, took));
    figures.add_all(costs.into_iter().chain(memory));
    Ok(())
}

/// The sum of a service's offsets.
fn offsets(stage: &mut Stage, service: Service) -> Result<i64, String> {
    let sql = "select /*bench*/ coalesce(sum(next_offset), 0)::bigint from consumer_offset";
    Ok(stage
        .books
        .of(service)
        .query_one(sql, &[])
        .map_err(said)?
        .get(0))
}

/// The same when all is handled.
fn end(stage: &Stage, service: Service) -> Result<i64, String> {
    let topics = match service {
        Service::Order => [
            "payment.success",
            "payment.dlt",
            "stock.success",
            "stock.dlt",
        ]
        .as_slice(),
        Service::Payment => &["payment", "payment.compensation"],
        Service::Stock => &["stock", "stock.compensation"],
    };
    topics
        .iter()
        .map(|name| topic::end(&stage.world, name))
        .sum()
}

fn wait_for_offsets(stage: &mut Stage, service: Service, wanted: i64) -> Result<(), String> {
    let begun = Instant::now();
    while offsets(stage, service)? < wanted {
        if begun.elapsed() > LIMIT {
            return Err(format!(
                "{} has not handled its records after {LIMIT:?}",
                service.name()
            ));
        }
        stage.require_alive()?;
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// In microseconds since 1970 by the database's clock.
fn last_effect(stage: &mut Stage, service: Service) -> Result<i64, String> {
    let table = match service {
        Service::Order => "orders",
        Service::Payment => "payment",
        Service::Stock => "reservation",
    };
    let sql = format!(
        "select /*bench*/ (extract(epoch from max(updated_at)) * 1000000)::bigint from {table}"
    );
    Ok(stage
        .books
        .of(service)
        .query_one(&sql, &[])
        .map_err(said)?
        .get(0))
}

/// All orders must be completed: none was to fail.
fn check(stage: &mut Stage, orders: usize, report: &mut Report) -> Result<(), String> {
    let sql = "select /*bench*/ count(*) from orders where order_status = 'COMPLETED'";
    let completed: i64 = stage
        .books
        .of(Service::Order)
        .query_one(sql, &[])
        .map_err(said)?
        .get(0);
    if completed as usize != orders {
        report.problem(format!(
            "{SECTION}: {completed} of {orders} orders are completed"
        ));
    }
    stage
        .books
        .unconserved()?
        .into_iter()
        .for_each(|problem| report.problem(format!("{SECTION}: {problem}")));
    Ok(())
}
