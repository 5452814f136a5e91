//! Kafka: our client's transactions without a database behind them, and Kafka's own measuring tools.

use std::process::Command;
use std::time::{Duration, Instant};

use harness::env;
use kafka::{Admin, Interrupt, NewTopic, Producer, ProducerRecord};
use shared::event::Service;
use shared::event::delivery;
use shared::event::envelope::{self, StoredMessage};

use crate::backlog::Batch;
use crate::figures::rate;
use crate::load::NAMES;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

/// Outbox rows in one Kafka transaction, as the relay has.
const ROWS: usize = 2_000;
/// Transactions before any is counted: the first ones of a producer are slow.
const WARM_UP: usize = 50;
/// For Kafka's own tools: some seconds of work.
const RECORDS: usize = 500_000;
/// Longer than anything here takes.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Records a second by transactions like the relay's: the records of [`ROWS`] rows.
///
/// # Errors
/// Kafka's.
pub fn own_transactions(
    stage: &Stage,
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    let records = records(stage)?;
    let id = format!("{}bench", stage.world.prefix());
    let mut producer = Producer::transactional(
        stage.world.kafka(),
        Interrupt::new(),
        id,
        TRANSACTION_TIMEOUT,
    );
    producer.initialise().map_err(said)?;
    let mut transact = || {
        let mut transaction = producer.begin()?;
        transaction.send(&records)?;
        transaction.commit()
    };
    (0..WARM_UP).try_for_each(|_| transact()).map_err(said)?;
    let (begun, mut rows) = (Instant::now(), 0);
    while begun.elapsed() < options.time / 3 {
        transact().map_err(said)?;
        rows += ROWS;
    }
    let took = begun.elapsed();
    super::add(
        report,
        "own Kafka transactions, rows",
        "/s",
        rate(rows, took),
    );
    super::add(
        report,
        "own Kafka transactions, records",
        "/s",
        rate(2 * rows, took),
    );
    Ok(())
}

/// Records a second by Kafka's own measuring tools, with records as long as ours: `ProducerPerformance` (acknowledged by
/// all, idempotent, as by default) and `ConsumerPerformance`.
///
/// # Errors
/// Kafka's.
pub fn own_tools(stage: &Stage, report: &mut Report) -> Result<(), String> {
    let topic = format!("{}perf", stage.world.prefix());
    let mut admin = Admin::new(stage.world.kafka(), Interrupt::new());
    let new = NewTopic::new(&topic, 3).with_replication(1);
    admin.create_topics(&[new]).map_err(said)?;
    let (server, count) = (stage.world.brokers(), RECORDS.to_string());
    let common = [
        "--bootstrap-server",
        server,
        "--topic",
        &topic,
        "--num-records",
        &count,
    ];
    let size = mean_length(&records(stage)?).to_string();
    let output = tool(
        "ProducerPerformance",
        &[&common[..], &["--throughput", "-1", "--record-size", &size]].concat(),
    )?;
    super::add(
        report,
        "ProducerPerformance",
        "records/s",
        written(&output)?,
    );
    let output = tool(
        "ConsumerPerformance",
        &[&common[..], &["--hide-header", "--timeout", "30000"]].concat(),
    )?;
    super::add(report, "ConsumerPerformance", "records/s", read(&output)?);
    admin.delete_topics(&[topic]).map_err(said)
}

/// The last line that tells a rate is that of the whole.
fn written(output: &str) -> Result<f64, String> {
    let rate = |line: &str| {
        line.split_once(" records/sec")?
            .0
            .rsplit(' ')
            .next()?
            .parse()
            .ok()
    };
    output
        .lines()
        .rev()
        .find_map(rate)
        .ok_or(format!("ProducerPerformance reported no rate: {output}"))
}

/// The last column is the rate of fetching alone, without joining the group.
fn read(output: &str) -> Result<f64, String> {
    let rate = |line: &str| line.rsplit_once(", ")?.1.parse().ok();
    output
        .lines()
        .rev()
        .find_map(rate)
        .ok_or(format!("ConsumerPerformance reported no rate: {output}"))
}

/// The records of so many outbox rows.
fn records(stage: &Stage) -> Result<Vec<ProducerRecord>, String> {
    let Batch { orders, messages } = Batch::new(NAMES, 0..ROWS);
    let mut records = vec![];
    for (order, messages) in orders.iter().zip(&messages) {
        let stored: Vec<StoredMessage<'_>> =
            serde_json::from_str(messages).map_err(|error| error.to_string())?;
        let (prefix, stored_at) = (stage.world.prefix(), "2026-01-02T03:04:05.678901Z");
        // of now: the broker removes what is older than its topic keeps
        let timestamp = delivery::now() / 1_000;
        let record = |stored| {
            envelope::to_record(
                stored,
                order.order_id,
                Service::Order,
                prefix,
                stored_at,
                timestamp,
            )
        };
        records.extend(stored.iter().map(record));
    }
    Ok(records)
}

fn mean_length(records: &[ProducerRecord]) -> usize {
    records.iter().map(length).sum::<usize>() / records.len()
}

fn length(record: &ProducerRecord) -> usize {
    let bytes = |bytes: &Option<kafka::Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len());
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + bytes(value))
        .sum();
    headers + bytes(&record.key) + bytes(&record.value)
}

fn tool(class: &str, args: &[&str]) -> Result<String, String> {
    let libs = env::setting("KAFKA_LIBS_4");
    let mut command = Command::new("java");
    command.args([
        "-Xmx512m",
        "-cp",
        &format!("{libs}/*:{libs}"),
        &format!("org.apache.kafka.tools.{class}"),
    ]);
    let done = command
        .args(args)
        .output()
        .map_err(|error| format!("java: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() {
        Ok(text(&done.stdout))
    } else {
        Err(format!("{class}: {}", text(&done.stderr)))
    }
}

fn said(error: kafka::Error) -> String {
    format!("Kafka: {error}")
}
