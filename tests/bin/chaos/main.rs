//! `./run.sh chaos`: places orders on several instances of every service while processes and servers are killed, frozen
//! and cut off; then checks everything that must be true. Ends with 1 on any violation.
//!
//! | file | idea |
//! | --- | --- |
//! | this one | the course of a run, the verdict |
//! | `options` | what is to be done |
//! | `stage` | the installation: servers, instances through all their lives, logs |
//! | `flood` | more requests than can be settled |
//! | `load` | the requests, drawn from the seed; their clients, and what they heard |
//! | `provoked` | records that nobody can handle, balances set anew |
//! | `faults`, `leaders`, `operators` | what is done to the system, drawn from the seed; what it was doing then |
//! | `evidence` | a history kept by triggers of our own, the tables, the topics |
//! | `table` | the table of outcomes, typed in |
//! | `checker` | the verdict: pure functions over the evidence |
//! | `excuses` | what a database that came back older excuses, and what it does not |
//! | `spoilt` | tests: each check can fail |
//! | `report` | what is printed |
//! | `scenario`, `prove` | situations stepped to, by binaries with a mechanism turned off: the same checker sees it |
//!
//! The load is dealt out in shares, one a fault: some of a share goes out before the fault strikes, the rest while it
//! lasts. So every fault strikes a system at work, however quick the machine is.

mod checker;
mod evidence;
mod excuses;
mod faults;
mod flood;
mod leaders;
mod load;
mod operators;
mod options;
mod prove;
mod provoked;
mod report;
mod scenario;
mod stage;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use checker::Check;
use faults::{Busy, Fault};
use harness::{Api, Service};
use load::{Asked, Heard, Load, PutIn};
use options::{Options, Task};
use provoked::{Poison, Put};
use rand::SeedableRng;
use rand::rngs::StdRng;
use stage::Stage;

/// After the last fault: for restarts, backlogs, and what a session that nobody ends any more may hold.
const SETTLE_LIMIT: Duration = Duration::from_secs(180);
/// Poisoned records a fault.
const POISONS: usize = 2;
/// How often a moment without an open transaction is looked for; each look takes some milliseconds.
const LOOKS: usize = 20;
const POLL: Duration = Duration::from_millis(5);

/// All that came of load and faults.
struct Hurt {
    heard: Vec<Heard>,
    done: Vec<Done>,
    poisons: Vec<Poison>,
    puts: Vec<Put>,
    checks: Vec<Check>,
}

/// A fault that is over.
struct Done {
    what: String,
    busy: Busy,
    /// When it was over, in seconds since 1970.
    healed: f64,
}

fn main() -> ExitCode {
    let outcome = options::read().and_then(|task| match task {
        Task::Help => Ok(true),
        Task::Hurt(options) => run(&options),
        Task::Prove {
            sabotaged,
            only,
            times,
        } => prove::run(&sabotaged, only.as_deref(), times),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// False: something is wrong; it is printed.
fn run(options: &Options) -> Result<bool, String> {
    let folder =
        std::env::var_os("RUN_DIR").ok_or("RUN_DIR is not set: start this as ./run.sh chaos")?;
    println!("{options}");
    let stage = Stage::start(&PathBuf::from(folder), options);
    let verdict = catch_unwind(AssertUnwindSafe(|| judge(options, &stage)));
    let verdict =
        verdict.unwrap_or_else(|panic| Err(shared::handler::panic_text(panic).to_string()));
    if verdict != Ok(true) {
        println!(
            "all logs: {}; again: {options}",
            stage.keep_logs().display()
        );
    }
    verdict
}

/// The course of a run, to its verdict.
fn judge(options: &Options, stage: &Stage) -> Result<bool, String> {
    let (began, mut asked) = (Instant::now(), load::draw(options.seed, options.orders));
    let put_in = PutIn::of(options.orders);
    evidence::begin_history(&stage.world).map_err(said)?;
    if options.overload {
        flood::limit_capacity(&stage.world).map_err(said)?;
    }
    put(stage, &put_in);
    let load = Load::new(
        stage
            .members_of(Service::Order)
            .map(|member| member.port)
            .collect(),
    );
    let Hurt {
        mut heard,
        done,
        poisons,
        puts,
        mut checks,
    } = hurt(options, stage, &load, &asked, &put_in);
    for (number, again) in load.again.into_inner().expect("no client panicked") {
        heard[number].add(again);
    }
    for (besides, its) in load.besides.into_inner().expect("no client panicked") {
        asked.push(besides);
        heard.push(its);
    }
    let back = stage.answers_within(SETTLE_LIMIT);
    checks.push(Check {
        claim: "all instances answer in the end",
        counted: stage.members.len(),
        violations: missing(back),
    });
    repeat_given_up(stage, &asked, &mut heard)?;
    settle(stage)?;
    if repeat_lost(stage, &asked, &mut heard)? > 0 {
        settle(stage)?;
    }
    look(
        stage,
        checks
            .iter_mut()
            .find(|check| check.claim == checker::PAIRS)
            .expect("it is among them"),
    );
    let mut found = evidence::read(&stage.world).map_err(said)?;
    found.lost = stage.lost();
    found
        .records
        .retain(|record| !poisons.iter().any(|poison| poison.ce_id == record.ce_id));
    let added: Vec<(&str, i64)> = found
        .puts
        .iter()
        .map(|(service, _, was, becomes)| (*service, becomes - was))
        .collect();
    checks.extend(checker::check(&asked, &heard, &put_in.and(&added), &found));
    checks.extend([
        checker::dead_letters(&poisons, &found),
        checker::puts(&puts, &found),
    ]);
    if options.is_load_alone() {
        checks.push(checker::deadlines(&found));
    }
    if let Some(failovers) = stage.failovers() {
        checks.push(checker::failovers(failovers, &stage.logs()));
    }
    report::orders(&heard, &found);
    checks.push(report_faults(stage, &done)?);
    let violations = report::checks(&checks);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "\n{} faults, {} orders, {violations} violations, {seconds:.0} s",
        done.len(),
        found.orders.len()
    );
    Ok(violations == 0)
}

fn said(error: postgres::Error) -> String {
    format!("PostgreSQL: {error}")
}

fn missing(back: bool) -> Vec<String> {
    if back {
        vec![]
    } else {
        vec![format!("not within {SETTLE_LIMIT:?}")]
    }
}

fn put(stage: &Stage, put_in: &PutIn) {
    let api = |service| Api::new(stage.members_of(service).next().expect("at least one").port);
    let (payment, stock) = (api(Service::Payment), api(Service::Stock));
    put_in
        .accounts
        .iter()
        .for_each(|(user, balance)| payment.put_balance(user, *balance));
    put_in
        .items
        .iter()
        .for_each(|(item, quantity)| stock.put_quantity(item, *quantity));
}

/// Load and faults, to the end of both.
fn hurt(options: &Options, stage: &Stage, load: &Load, asked: &[Asked], put_in: &PutIn) -> Hurt {
    let began = Instant::now();
    let mut random = StdRng::seed_from_u64(options.seed.rotate_left(31));
    let (mut done, mut poisons, mut puts) = (vec![], vec![], vec![]);
    let mut snapshots = Check::empty("money and stock are conserved amid the faults (I2)");
    let mut pairs = Check::empty(checker::PAIRS);
    let heard = thread::scope(|scope| {
        let clients = scope.spawn(|| load.run(asked, options.seed));
        // a panic here would wait for them for ever
        let _stop = StopAtTheEnd(load);
        let faults = faults::draw(options);
        let share = asked.len() as f64 / (faults.len() + 1) as f64;
        for (number, fault) in faults.iter().enumerate() {
            let (from, to) = (
                (number as f64 * share) as usize,
                ((number + 1) as f64 * share) as usize,
            );
            poisons.extend((0..POISONS).map(|_| provoked::poison(&stage.world, &mut random)));
            puts.push(provoked::put(stage, number, &mut random));
            done.push(one_fault(
                number + 1,
                fault,
                stage,
                load,
                asked,
                from..to,
                began,
            ));
            snapshot(stage, put_in, &mut snapshots);
            look(stage, &mut pairs);
            if began.elapsed() > options.limit {
                break;
            }
        }
        load.release(asked.len());
        wait_until(options.limit.saturating_sub(began.elapsed()), || {
            report_revived(stage);
            clients.is_finished()
        });
        load.stop();
        clients.join().expect("no client panics")
    });
    let over = if began.elapsed() > options.limit {
        vec![format!("not within {:?}", options.limit)]
    } else {
        vec![]
    };
    let unheard = asked.len() - load.done.load(Ordering::SeqCst);
    let in_time = Check {
        claim: "all requests are sent and all faults done in time",
        counted: asked.len() + options.faults,
        violations: over,
    };
    assert!(
        unheard == 0 || !in_time.violations.is_empty(),
        "{unheard} requests were not sent"
    );
    Hurt {
        heard,
        done,
        poisons,
        puts,
        checks: vec![in_time, snapshots, pairs],
    }
}

struct StopAtTheEnd<'a>(&'a Load);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Deals out the first half of a share, strikes in its midst, deals out the rest, heals.
fn one_fault(
    number: usize,
    fault: &Fault,
    stage: &Stage,
    load: &Load,
    asked: &[Asked],
    share: std::ops::Range<usize>,
    began: Instant,
) -> Done {
    report_revived(stage);
    let target = fault.aim(stage);
    let half = share.len() / 2;
    let moment = share.start + (half as f64 * fault.moment) as usize;
    load.release(share.start + half);
    wait_until(Duration::from_secs(30), || {
        load.done.load(Ordering::SeqCst) >= moment
    });
    let busy = Busy::now(stage, load);
    // nobody can be struck who has ended meanwhile, as one that was frozen may
    report_revived(stage);
    let wound = fault.strike(stage, target, load);
    let what = wound.what.clone();
    report::fault(number, began.elapsed(), &what, &busy);
    load.release(share.end);
    wound.heal(stage, load, asked);
    Done {
        what,
        busy,
        healed: now(),
    }
}

fn wait_until(limit: Duration, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() && begun.elapsed() < limit {
        thread::sleep(POLL);
    }
}

/// An instance that ends by itself is started again, as its keeper would, and reported.
fn report_revived(stage: &Stage) {
    stage
        .revive()
        .iter()
        .for_each(|name| println!("     {name} had ended by itself and is started again"));
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Each database by one statement, hence one moment; while it is away there is nothing to see.
fn snapshot(stage: &Stage, put_in: &PutIn, into: &mut Check) {
    let accounts = stage
        .db(Service::Payment)
        .and_then(|mut db| evidence::accounts(&mut db));
    let items = stage
        .db(Service::Stock)
        .and_then(|mut db| evidence::items(&mut db));
    for (put_in, holdings) in [(&put_in.accounts, accounts), (&put_in.items, items)] {
        // what was put in anew by this moment is known in the end
        let of_old = |name: &str| name != load::TOPPED;
        if let Ok(mut holdings) = holdings {
            holdings.retain(|holding| of_old(&holding.name));
            let put_in: Vec<_> = put_in
                .iter()
                .filter(|(name, _)| of_old(name))
                .cloned()
                .collect();
            into.counted += holdings.len();
            into.violations
                .extend(checker::conserved("", &put_in, &holdings).violations);
        }
    }
}

/// Both messages of each order or neither, if there is a moment without an open transaction among a few.
fn look(stage: &Stage, into: &mut Check) {
    let seen = (0..LOOKS).find_map(|_| stage.world.records_at_rest(&["payment", "stock"]));
    into.counted += seen.as_ref().map_or(0, Vec::len);
    into.violations
        .extend(seen.iter().flat_map(|seen| checker::torn(seen)));
}

/// What a client gave up after an error is repeated with its key; what the key stood for before is noted.
fn repeat_given_up(stage: &Stage, asked: &[Asked], heard: &mut [Heard]) -> Result<(), String> {
    let mut db = stage.db(Service::Order).map_err(said)?;
    let apis: Vec<Api> = stage
        .members_of(Service::Order)
        .map(|member| Api::new(member.port))
        .collect();
    for (number, (asked, heard)) in asked.iter().zip(heard).enumerate() {
        if heard.given_up.is_none() {
            continue;
        }
        heard.given_up = Some(evidence::standing(&mut db, &asked.key).map_err(said)?);
        heard.was_refused = heard.is_refused();
        load::ask_until_accepted(&apis[number % apis.len()], asked, heard);
    }
    Ok(())
}

/// An order that was accepted and is gone is asked for again with its key; answers how many there were.
fn repeat_lost(stage: &Stage, asked: &[Asked], heard: &mut [Heard]) -> Result<usize, String> {
    if !stage
        .lost()
        .iter()
        .any(|lost| lost.service == Service::Order.name())
    {
        return Ok(0);
    }
    let orders = evidence::order_ids(&mut stage.db(Service::Order).map_err(said)?).map_err(said)?;
    let apis: Vec<Api> = stage
        .members_of(Service::Order)
        .map(|member| Api::new(member.port))
        .collect();
    let mut count = 0;
    for (number, (asked, heard)) in asked.iter().zip(heard).enumerate() {
        if !heard.accepted.is_empty()
            && !heard
                .accepted
                .iter()
                .any(|order_id| orders.contains(order_id))
        {
            count += 1;
            load::ask_until_accepted(&apis[number % apis.len()], asked, heard);
        }
    }
    println!(
        "{count} orders had been accepted, were lost with the database's tail and are asked for again"
    );
    Ok(count)
}

/// Waits until nothing is left to happen, or the limit has passed; what is not settled then, the checks will name.
fn settle(stage: &Stage) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < SETTLE_LIMIT {
        let (orders, rows) = evidence::unfinished(&stage.world).map_err(said)?;
        if (orders, rows) == (0, 0) && stage.world.is_quiet() {
            println!(
                "\nsettled {:.1} s after the last request",
                begun.elapsed().as_secs_f64()
            );
            return Ok(());
        }
        report_revived(stage);
        thread::sleep(Duration::from_millis(200));
    }
    println!("\nNOT settled within {SETTLE_LIMIT:?}");
    Ok(())
}

/// How long orders took to settle after each fault; at least half of the faults must have struck a busy system.
fn report_faults(stage: &Stage, done: &[Done]) -> Result<Check, String> {
    let mut db = stage.db(Service::Order).map_err(said)?;
    let mut longest = (0.0, String::from("none was open"));
    for fault in done {
        let (_, seconds) = evidence::settled_after(&mut db, fault.healed).map_err(said)?;
        if seconds > longest.0 {
            longest = (seconds, fault.what.clone());
        }
    }
    let busy = done.iter().filter(|fault| fault.busy.is_busy()).count();
    println!(
        "\n{} faults, {busy} of them struck a busy system",
        done.len()
    );
    println!(
        "longest time from a fault's end until the last order open then was settled, whatever struck meanwhile: {:.1} s ({})",
        longest.0, longest.1
    );
    let idle = if 2 * busy < done.len() {
        vec![format!("only {busy} of {}", done.len())]
    } else {
        vec![]
    };
    Ok(Check {
        claim: "at least half of the faults struck a busy system",
        counted: done.len(),
        violations: idle,
    })
}
