//! The relay: a full outbox drained, and the way of a lone row.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::Service;
use kafka::{OffsetSpec, Record};
use uuid::Uuid;

use crate::backlog::{self, Batch, LIMIT};
use crate::figures::{PERCENTILES, Times, rate};
use crate::load::NAMES;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;
use crate::topic::Reader;
use crate::usage::Meter;

const SECTION: &str = "relay";
/// Between two lone rows: many times what one takes.
const APART: Duration = Duration::from_millis(50);

/// Measures the section.
///
/// # Errors
/// What PostgreSQL and Kafka say.
pub fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let mut stage = Stage::start(SECTION, 1, NAMES)?;
    stage.stop_all();
    drain(&mut stage, options.rows, report)?;
    cold_row(&mut stage, options.time, report)
}

/// From the first publishing, which the records' timestamps tell, to the outbox empty. Order alone runs, and its relay
/// has nothing else to do. The records are read afterwards.
fn drain(stage: &mut Stage, rows: usize, report: &mut Report) -> Result<(), String> {
    backlog::fill(stage, rows)?;
    stage.launch(Service::Order);
    let mut meter = Meter::new()?;
    let before = meter.read(stage)?;
    backlog::wait_until_published(stage, Service::Order)?;
    let empty = SystemTime::now();
    let memory = meter.memory(stage);
    let costs = meter.costs(stage, &before, rows)?;
    let took = empty
        .duration_since(first_published(stage, rows, report)?)
        .unwrap_or_default();
    let mut figures = report.run(SECTION, "drain");
    figures.add("rows", "", rows as f64);
    figures.add("first record to empty outbox", "s", took.as_secs_f64());
    figures.add("rows/s", "", rate(rows, took));
    figures.add_all(costs.into_iter().chain(memory));
    Ok(())
}

/// Reads the payment requests; all must be there, once and in stored order, which is that of their keys.
fn first_published(stage: &Stage, rows: usize, report: &mut Report) -> Result<SystemTime, String> {
    let mut reader = Reader::new(&stage.world, "payment", OffsetSpec::Earliest)?;
    let (mut first, mut last_keys, mut seen) = (i64::MAX, HashMap::new(), 0);
    let end = Instant::now() + LIMIT;
    while seen < rows {
        for (partition, records) in reader.poll()? {
            seen += records.len();
            first = records
                .iter()
                .map(|record| record.timestamp)
                .fold(first, i64::min);
            for record in records {
                let key = key(&record)?;
                if last_keys
                    .insert(partition, key)
                    .is_some_and(|last| last >= key)
                {
                    report.problem(format!(
                        "{SECTION}, drain: order {key} is published out of stored order"
                    ));
                }
            }
        }
        if Instant::now() > end {
            return Err(format!(
                "{seen} of {rows} payment requests are on the topic after {LIMIT:?}"
            ));
        }
    }
    Ok(UNIX_EPOCH + Duration::from_millis(first.max(0) as u64))
}

fn key(record: &Record) -> Result<Uuid, String> {
    let key = record
        .key
        .as_deref()
        .and_then(|key| Uuid::try_parse_ascii(key).ok());
    key.ok_or(format!("a record without an order's id: {record:?}"))
}

/// From the return of a row's commit to its record at a read-committed reader. The relay is woken by NOTIFY, as it is of
/// commits on other instances.
fn cold_row(stage: &mut Stage, time: Duration, report: &mut Report) -> Result<(), String> {
    let rows = (time.as_millis() / APART.as_millis()) as usize;
    let reader = Reader::new(&stage.world, "payment", OffsetSpec::Latest)?;
    let (committed, arrived) = std::thread::scope(|scope| {
        let arrivals = scope.spawn(move || arrivals(reader, rows, time + LIMIT));
        let committed = commit_each(stage, rows);
        (committed, arrivals.join().expect("no thread panics"))
    });
    let arrived = arrived?;
    let way = |(order_id, at): (Uuid, Instant)| {
        Some(arrived.get(&order_id)?.saturating_duration_since(at))
    };
    let times = Times::new(committed?.into_iter().filter_map(way));
    let mut figures = report.run(SECTION, "cold row");
    figures.add("rows", "", rows as f64);
    PERCENTILES.iter().for_each(|(name, at)| {
        figures.add(&format!("commit to visible, {name}"), "ms", times.at(*at))
    });
    Ok(())
}

/// One row after the other; when each was committed.
fn commit_each(stage: &Stage, rows: usize) -> Result<Vec<(Uuid, Instant)>, String> {
    let mut session = backlog::session(&stage.world.database_url(Service::Order))?;
    let begun = Instant::now();
    let mut commit = |number: usize| {
        std::thread::sleep(
            (begun + APART * number as u32).saturating_duration_since(Instant::now()),
        );
        let batch = Batch::new(stage.names, number..number + 1);
        batch.store(&mut session)?;
        let committed = Instant::now();
        session
            .batch_execute("notify order_outbox")
            .map_err(|error| error.to_string())?;
        Ok((batch.orders[0].order_id, committed))
    };
    (0..rows).map(&mut commit).collect()
}

/// When each order's record arrived; ends when all have, or it has waited long enough.
fn arrivals(
    mut reader: Reader,
    rows: usize,
    limit: Duration,
) -> Result<HashMap<Uuid, Instant>, String> {
    let (mut arrived, begun) = (HashMap::new(), Instant::now());
    while arrived.len() < rows {
        let records = reader.poll()?;
        let now = Instant::now();
        for record in records.iter().flat_map(|(_, records)| records) {
            arrived.insert(key(record)?, now);
        }
        if begun.elapsed() > limit {
            return Err(format!(
                "{} of {rows} lone rows are on the topic after {limit:?}",
                arrived.len()
            ));
        }
    }
    Ok(arrived)
}
