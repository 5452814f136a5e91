//! `./run.sh demo`: plays the eight rows of the table of outcomes against the running system, by stopping and starting
//! participants and by accounts and items that must refuse. What is expected is typed in below.
//!
//! | file | idea |
//! | --- | --- |
//! | this one | the rows, and the four scenes they are played in |
//! | `stage` | the running system: calls, stopping, starting, waiting |
//! | `notices` | what lies on the topics |
//! | `report` | a row on the screen |

mod client;
mod notices;
mod report;
mod stage;

use std::process::ExitCode;
use std::time::Instant;

use notices::Notices;
use report::Report;
use stage::{Order, Stage};

/// Every order's price and quantity.
const PRICE: i64 = 30;
const QUANTITY: i64 = 3;
/// Enough, and too little of it.
const RICH: i64 = 100;
const POOR: i64 = 20;
const FULL: i64 = 10;
const SHORT: i64 = 2;

/// One row of the table, and what must be seen.
struct Row {
    number: usize,
    order: &'static str,
    payment: &'static str,
    stock: &'static str,
    compensated: &'static str,
    balance: i64,
    in_stock: i64,
    meanwhile: Meanwhile,
    end: End,
}

/// What is seen while a participant is stopped.
struct Meanwhile {
    order: &'static str,
    payment_side: &'static str,
    stock_side: &'static str,
    /// The record of the participant that runs, and what is left there.
    record: &'static str,
    left: i64,
}

/// What is seen when the order is settled. Balance and stock must be what they were, unless the order is COMPLETED.
struct End {
    order: &'static str,
    payment_side: &'static str,
    stock_side: &'static str,
    reason: &'static str,
    payment: &'static str,
    reservation: &'static str,
    balance: i64,
    in_stock: i64,
}

#[rustfmt::skip]
const ROWS: [Row; 8] = [
    Row { number: 1, order: "FAILED", payment: "FAILED", stock: "COMPLETED", compensated: "stock, at order's request",
          balance: POOR, in_stock: FULL,
          meanwhile: Meanwhile { order: "IN_PROGRESS", payment_side: "IN_PROGRESS", stock_side: "COMPLETED", record: "COMPLETED", left: 7 },
          end: End { order: "FAILED", payment_side: "FAILED", stock_side: "COMPENSATED", reason: "INSUFFICIENT_BALANCE",
                     payment: "FAILED", reservation: "COMPENSATED", balance: 20, in_stock: 10 } },
    Row { number: 2, order: "FAILED", payment: "FAILED", stock: "IN_PROGRESS, then COMPLETED",
          compensated: "stock, when its success arrives late", balance: POOR, in_stock: FULL,
          meanwhile: Meanwhile { order: "FAILED", payment_side: "FAILED", stock_side: "IN_PROGRESS", record: "FAILED", left: 20 },
          end: End { order: "FAILED", payment_side: "FAILED", stock_side: "COMPENSATED", reason: "INSUFFICIENT_BALANCE",
                     payment: "FAILED", reservation: "COMPENSATED", balance: 20, in_stock: 10 } },
    Row { number: 3, order: "FAILED", payment: "FAILED", stock: "IN_PROGRESS, then FAILED", compensated: "nothing",
          balance: POOR, in_stock: SHORT,
          meanwhile: Meanwhile { order: "FAILED", payment_side: "FAILED", stock_side: "IN_PROGRESS", record: "FAILED", left: 20 },
          end: End { order: "FAILED", payment_side: "FAILED", stock_side: "FAILED", reason: "INSUFFICIENT_BALANCE",
                     payment: "FAILED", reservation: "FAILED", balance: 20, in_stock: 2 } },
    Row { number: 4, order: "FAILED", payment: "COMPLETED", stock: "FAILED", compensated: "payment, at order's request",
          balance: RICH, in_stock: SHORT,
          meanwhile: Meanwhile { order: "IN_PROGRESS", payment_side: "COMPLETED", stock_side: "IN_PROGRESS", record: "COMPLETED", left: 70 },
          end: End { order: "FAILED", payment_side: "COMPENSATED", stock_side: "FAILED", reason: "INSUFFICIENT_STOCK",
                     payment: "COMPENSATED", reservation: "FAILED", balance: 100, in_stock: 2 } },
    Row { number: 5, order: "FAILED", payment: "IN_PROGRESS, then FAILED", stock: "FAILED", compensated: "nothing",
          balance: POOR, in_stock: SHORT,
          meanwhile: Meanwhile { order: "FAILED", payment_side: "IN_PROGRESS", stock_side: "FAILED", record: "FAILED", left: 2 },
          end: End { order: "FAILED", payment_side: "FAILED", stock_side: "FAILED", reason: "INSUFFICIENT_STOCK",
                     payment: "FAILED", reservation: "FAILED", balance: 20, in_stock: 2 } },
    Row { number: 6, order: "FAILED", payment: "IN_PROGRESS, then COMPLETED", stock: "FAILED",
          compensated: "payment, when its success arrives late", balance: RICH, in_stock: SHORT,
          meanwhile: Meanwhile { order: "FAILED", payment_side: "IN_PROGRESS", stock_side: "FAILED", record: "FAILED", left: 2 },
          end: End { order: "FAILED", payment_side: "COMPENSATED", stock_side: "FAILED", reason: "INSUFFICIENT_STOCK",
                     payment: "COMPENSATED", reservation: "FAILED", balance: 100, in_stock: 2 } },
    // nobody says in which order two notices on two topics are read: either may be the first reason
    Row { number: 7, order: "FAILED", payment: "FAILED", stock: "FAILED", compensated: "nothing",
          balance: POOR, in_stock: SHORT,
          meanwhile: Meanwhile { order: "IN_PROGRESS", payment_side: "IN_PROGRESS", stock_side: "IN_PROGRESS", record: "FAILED", left: 20 },
          end: End { order: "FAILED", payment_side: "FAILED", stock_side: "FAILED", reason: "INSUFFICIENT_BALANCE or INSUFFICIENT_STOCK",
                     payment: "FAILED", reservation: "FAILED", balance: 20, in_stock: 2 } },
    Row { number: 8, order: "COMPLETED", payment: "COMPLETED", stock: "COMPLETED", compensated: "nothing",
          balance: RICH, in_stock: FULL,
          meanwhile: Meanwhile { order: "COMPLETED", payment_side: "COMPLETED", stock_side: "COMPLETED", record: "COMPLETED", left: 70 },
          end: End { order: "COMPLETED", payment_side: "COMPLETED", stock_side: "COMPLETED", reason: "-",
                     payment: "COMPLETED", reservation: "COMPLETED", balance: 70, in_stock: 7 } },
];

fn main() -> ExitCode {
    let began = Instant::now();
    let mut stage = match Stage::new() {
        Ok(stage) => stage,
        Err(error) => return fail(&error),
    };
    let played = play(&mut stage);
    let restarted = stage.start_what_was_stopped();
    match (played, restarted) {
        (Ok(0), Ok(())) => println!(
            "All eight rows as expected, in {} s.",
            began.elapsed().as_secs()
        ),
        (Ok(0), Err(error)) | (Err(error), Ok(())) => return fail(&error),
        (Ok(differences), Ok(())) => {
            return fail(&format!(
                "{differences} differences: the lines marked <-- above"
            ));
        }
        (Ok(differences), Err(error)) => {
            return fail(&format!("{differences} differences\n{error}"));
        }
        (Err(error), Err(stopped)) => return fail(&format!("{error}\n{stopped}")),
    }
    ExitCode::SUCCESS
}

fn fail(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Plays all scenes; answers the number of differences.
fn play(stage: &mut Stage) -> Result<usize, String> {
    println!(
        "The eight outcomes of an order. Each has a user and an item of its own; the price is {PRICE}, the quantity {QUANTITY}."
    );
    for row in &ROWS {
        stage.put_in(row.number, row.balance, row.in_stock)?;
    }
    let mut notices = Notices::from_now_on(stage)?;
    let mut reports = one_is_down(stage, "stock", [2, 3, 4])?;
    reports.extend(one_is_down(stage, "payment", [1, 5, 6])?);
    reports.push(both_notices_on_the_topics(stage, row(7), &mut notices)?);
    reports.push(all_run(stage, row(8))?);
    let records = notices.read_on()?;
    reports.sort_by_key(|report| report.number);
    println!("\nAll {records} records on the topics are as asyncapi.yaml says.");
    println!("\n{:-<118}\n", "");
    for (report, row) in reports.iter().zip(&ROWS) {
        println!("{}", summary(row, report.differences));
    }
    println!();
    Ok(reports.iter().map(|report| report.differences).sum())
}

fn row(number: usize) -> &'static Row {
    &ROWS[number - 1]
}

fn summary(row: &Row, differences: usize) -> String {
    let verdict = if differences == 0 {
        "as expected".to_string()
    } else {
        format!("{differences} DIFFERENCES")
    };
    let Row {
        number,
        order,
        payment,
        stock,
        compensated,
        ..
    } = row;
    format!("{number}  {order:<9} | {payment:<27} | {stock:<27} | {compensated:<38}  {verdict}")
}

fn title(row: &Row, order: &Order) -> Report {
    let report = Report::new(row.number);
    report.title(&format!(
        "Row {}   order {} | payment {} | stock {}   compensated: {}",
        row.number, row.order, row.payment, row.stock, row.compensated
    ));
    report.note(&format!(
        "order {}: {} has {}, {} of {} in stock",
        order.id, order.user, row.balance, row.in_stock, order.item
    ));
    report
}

// ---- the scenes

/// Rows 1 to 6: one participant is stopped, the other one decides, then the stopped one comes back.
fn one_is_down(
    stage: &mut Stage,
    down: &'static str,
    numbers: [usize; 3],
) -> Result<Vec<Report>, String> {
    println!(
        "\n== {down} is stopped (rows {}, {}, {})",
        numbers[0], numbers[1], numbers[2]
    );
    stage.stop(down)?;
    let mut plays = vec![];
    for row in numbers.map(row) {
        let order = stage.place(row.number, PRICE, QUANTITY)?;
        let mut report = title(row, &order);
        see_meanwhile(stage, row, &order, down, &mut report)?;
        plays.push((row, order, report));
    }
    println!("\n== {down} runs again");
    stage.start(down)?;
    for (row, order, report) in &mut plays {
        see_end(stage, row, order, report)?;
    }
    Ok(plays.into_iter().map(|(_, _, report)| report).collect())
}

/// Row 7: order is stopped while payment and stock refuse, so that it finds both notices when it comes back.
fn both_notices_on_the_topics(
    stage: &mut Stage,
    row: &Row,
    notices: &mut Notices,
) -> Result<Report, String> {
    println!(
        "\n== payment and stock are stopped, then order, then payment and stock run again (row 7)"
    );
    stage.stop("payment")?;
    stage.stop("stock")?;
    let order = stage.place(row.number, PRICE, QUANTITY)?;
    let mut report = title(row, &order);
    let seen = stage.wait_for(
        &order,
        [
            row.meanwhile.order,
            row.meanwhile.payment_side,
            row.meanwhile.stock_side,
        ],
    )?;
    report.heading("all but order are stopped");
    compare_order(
        &mut report,
        &seen,
        [
            row.meanwhile.order,
            row.meanwhile.payment_side,
            row.meanwhile.stock_side,
        ],
    );
    stage.stop("order")?;
    stage.start("payment")?;
    stage.start("stock")?;
    report.heading("order is stopped, the others run");
    let [payment, stock] = notices.wait_for(stage, &order.id)?;
    report.compare("notice on payment.dlt", "INSUFFICIENT_BALANCE", &payment);
    report.compare("notice on stock.dlt", "INSUFFICIENT_STOCK", &stock);
    report.compare("payment's record", "FAILED", &stage.payment(&order)?);
    report.compare("stock's record", "FAILED", &stage.reservation(&order)?);
    println!("\n== order runs again");
    stage.start("order")?;
    see_end(stage, row, &order, &mut report)?;
    Ok(report)
}

/// Row 8.
fn all_run(stage: &mut Stage, row: &Row) -> Result<Report, String> {
    println!("\n== all run (row 8)");
    let order = stage.place(row.number, PRICE, QUANTITY)?;
    let mut report = title(row, &order);
    see_end(stage, row, &order, &mut report)?;
    Ok(report)
}

// ---- what is compared

fn see_meanwhile(
    stage: &Stage,
    row: &Row,
    order: &Order,
    down: &str,
    report: &mut Report,
) -> Result<(), String> {
    let meanwhile = &row.meanwhile;
    let expected = [
        meanwhile.order,
        meanwhile.payment_side,
        meanwhile.stock_side,
    ];
    let seen = stage.wait_for(order, expected)?;
    report.heading(&format!("while {down} is stopped"));
    compare_order(report, &seen, expected);
    if down == "stock" {
        report.compare("payment's record", meanwhile.record, &stage.payment(order)?);
        report.compare(
            "balance",
            &meanwhile.left.to_string(),
            &stage.balance(&order.user)?.to_string(),
        );
    } else {
        report.compare(
            "stock's record",
            meanwhile.record,
            &stage.reservation(order)?,
        );
        report.compare(
            "in stock",
            &meanwhile.left.to_string(),
            &stage.in_stock(&order.item)?.to_string(),
        );
    }
    report.note(&format!("GET /orders/{}", order.id));
    report.note(&seen.to_string());
    Ok(())
}

fn see_end(stage: &Stage, row: &Row, order: &Order, report: &mut Report) -> Result<(), String> {
    let end = &row.end;
    let seen = stage.wait_until_settled(order)?;
    report.heading(&format!("row {}, at the end", row.number));
    compare_order(report, &seen, [end.order, end.payment_side, end.stock_side]);
    report.compare(
        "reason",
        end.reason,
        seen["reason"]["code"].as_str().unwrap_or("-"),
    );
    report.compare("settled", "true", &seen["settled"].to_string());
    report.compare("payment's record", end.payment, &stage.payment(order)?);
    report.compare(
        "stock's record",
        end.reservation,
        &stage.reservation(order)?,
    );
    let change = |before: i64, after: i64| format!("{before} -> {after}");
    report.compare(
        "balance",
        &change(row.balance, end.balance),
        &change(order.balance, stage.balance(&order.user)?),
    );
    report.compare(
        "in stock",
        &change(row.in_stock, end.in_stock),
        &change(order.in_stock, stage.in_stock(&order.item)?),
    );
    Ok(())
}

fn compare_order(report: &mut Report, seen: &serde_json::Value, expected: [&str; 3]) {
    let fields = [
        ("order", "orderStatus"),
        ("its payment side", "paymentStatus"),
        ("its stock side", "stockStatus"),
    ];
    for ((label, field), expected) in fields.into_iter().zip(expected) {
        report.compare(label, expected, seen[field].as_str().unwrap_or("?"));
    }
}
