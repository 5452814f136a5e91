//! PostgreSQL: a monolith's transactions, pgbench's own, and our rows in batches.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::Service;

use crate::backlog::{self, BATCH, Batch};
use crate::books::said;
use crate::figures::rate;
use crate::load::NAMES;
use crate::options::Options;
use crate::report::Report;
use crate::stage::Stage;

/// The order's three writes in one transaction, on the services' own tables in one database.
const MONOLITH: &str = include_str!("monolith.sql");
const TABLES: [&str; 3] = [
    include_str!("../../../../sql/order/V1__order.sql"),
    include_str!("../../../../sql/payment/V1__payment.sql"),
    include_str!("../../../../sql/stock/V1__stock.sql"),
];
/// Clients that are tried; the best counts.
const CLIENTS: [usize; 4] = [8, 16, 32, 64];

/// Rows a second by `place_new_orders`, a batch after the other on one connection as the order service's writer does.
///
/// # Errors
/// What PostgreSQL says.
pub fn place_orders(stage: &Stage, options: &Options, report: &mut Report) -> Result<(), String> {
    let mut session = backlog::session(&stage.world.database_url(Service::Order))?;
    let (mut rows, mut took) = (0, Duration::ZERO);
    while took < options.time / 3 {
        let batch = Batch::new(NAMES, rows..rows + BATCH);
        let begun = Instant::now();
        batch.store(&mut session)?;
        took += begun.elapsed();
        rows += BATCH;
    }
    super::add(
        report,
        "place_orders in batches",
        "rows/s",
        rate(rows, took),
    );
    Ok(())
}

/// Transactions a second by pgbench, each kind at its best number of clients.
///
/// # Errors
/// What PostgreSQL and pgbench say.
pub fn transactions(
    stage: &mut Stage,
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    let program = PathBuf::from(std::env::var("PG_BIN").unwrap_or_default()).join("pgbench");
    if !program.exists() {
        report.note("pgbench is not installed: no transactions/s to compare with".into());
        return Ok(());
    }
    let script = report.file("monolith.sql");
    std::fs::write(&script, MONOLITH).map_err(|error| error.to_string())?;
    // databases whose services have not written anything into them
    let (plain, monolith) = (Service::Payment, Service::Stock);
    let url = stage.world.database_url(plain);
    run(&program, &["--initialize", "--scale=10", "--quiet", &url])?;
    best(
        &program,
        "pgbench -N",
        &["--skip-some-updates", &url],
        options,
        report,
    )?;
    let script = format!("--file={}", script.display());
    prepare_monolith(stage, monolith)?;
    let url = stage.world.database_url(monolith);
    best(
        &program,
        "pgbench, monolith",
        &["--no-vacuum", &script, &url],
        options,
        report,
    )
}

fn prepare_monolith(stage: &mut Stage, place: Service) -> Result<(), String> {
    let mut client = stage.world.db(place);
    client
        .batch_execute("drop table item, reservation, stock_outbox")
        .map_err(said)?;
    // functions that each service has, in a schema of its own, are replaced by the next one's: none is called
    for tables in TABLES {
        let tables = tables.replace("create function", "create or replace function");
        client.batch_execute(&tables).map_err(said)?;
    }
    let rows = "insert into account select 'user-' || n, 1000000000000, 1000000000000 from generate_series(0, 99) n;
                insert into item select 'item-' || n, 1000000000000, 1000000000000 from generate_series(0, 99) n";
    client.batch_execute(rows).map_err(said)
}

fn best(
    program: &Path,
    name: &str,
    args: &[&str],
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    let time = format!("--time={}", (options.time.as_secs() / 4).max(2));
    let mut all = vec![];
    for clients in CLIENTS {
        let clients_arg = format!("--client={clients}");
        let said = run(
            program,
            &[
                &["--protocol=prepared", "--jobs=2", &time, &clients_arg],
                args,
            ]
            .concat(),
        )?;
        let tps = said.lines().find_map(|line| {
            line.strip_prefix("tps = ")?
                .split(' ')
                .next()?
                .parse::<f64>()
                .ok()
        });
        all.push((tps.ok_or(format!("pgbench says no tps: {said}"))?, clients));
    }
    let (tps, clients) = all
        .into_iter()
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .expect("some were tried");
    super::add(report, name, "transactions/s", tps);
    super::add(report, &format!("{name}, at"), "clients", clients as f64);
    Ok(())
}

fn run(program: &Path, args: &[&str]) -> Result<String, String> {
    let done = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("pgbench: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() {
        Ok(text(&done.stdout))
    } else {
        Err(format!("pgbench: {}", text(&done.stderr)))
    }
}
