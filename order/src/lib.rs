//! The order service: takes orders, asks payment and stock for their parts, decides what their answers make of an order.
//!
//! One order's path here: [`http`] → [`admission`] → [`writer`] → [`store`] and the outbox → the relay; then the participants' answers →
//! [`handlers`] → [`order`] (the decision) → [`store`]. [`deadline`] ends what is not heard of; [`long_poll`] answers
//! requests that wait for the end. [`repair`] says what is made of an order that the database lost, and lists it. [`timeline`] shows an
//! order's steps; [`page`] shows all of it.

pub mod admission;
pub mod deadline;
pub mod handlers;
pub mod http;
pub mod long_poll;
pub mod metrics;
pub mod order;
pub mod page;
pub mod repair;
pub mod store;
pub mod timeline;
pub mod writer;

use std::sync::Arc;

use shared::config::Config;
use shared::consumer::recovery::Recovery;
use shared::db::pool::Pool;
use shared::dead_letter;
use shared::error::Result;
use shared::handler::Handler;
use shared::http::{Routes, Server};
use shared::outbox::{self, wake::Waker};
use shared::service::file_limit;
use shared::service::status_http;
use shared::service::{self, Threads};
use shared::shutdown::{Shutdown, Stop};

use admission::Admission;
use long_poll::LongPolls;

mod migrations {
    refinery::embed_migrations!("../sql/order");
}

/// The schema's migrations of this service's own.
pub fn migrations() -> refinery::Runner {
    migrations::migrations::runner()
}

/// Runs one instance until it is stopped.
///
/// # Errors
/// When it can't start, or a thread failed.
pub fn run(config: Config, stop: Stop, shutdown: Shutdown) -> Result<()> {
    let listener = service::listen(&config)?;
    let ready = service::prepare(&config, migrations(), &shutdown)?;
    let mut threads = Threads::new(&config, stop, shutdown);
    let waker = threads.spawn_relay(
        &config,
        &ready,
        outbox::Removal::MarkedRows(config.order_deadline),
    )?;

    let (long_polls, mut poller) = long_poll::new(ready.connector.clone());
    threads.spawn("order-long-polls".into(), move |shutdown| {
        poller.run(shutdown);
        Ok(())
    })?;
    let admission = Admission::new(config.admission_limit, config.order_deadline, writer::QUEUE);
    let (queue, mut writer) = writer::new(&config, waker.clone(), admission.clone())?;
    threads.spawn("order-writer".into(), move |_| {
        writer.run();
        Ok(())
    })?;
    let mut scan = deadline::DeadlineScan::new(
        &config,
        waker.clone(),
        long_polls.clone(),
        admission.clone(),
    )?;
    threads.spawn("order-deadline".into(), move |shutdown| scan.run(shutdown))?;
    let recovery = threads.recovery(&config);
    threads.spawn_consumers(&config, &waker, || {
        answers(&config, &recovery, &long_polls, &admission)
    })?;

    metrics::start();
    let (shown, deadline) = (admission.clone(), config.order_deadline);
    let board = threads.spawn_monitor(
        &config,
        Box::new(move |session| metrics::poll(session, &shown, deadline)),
    )?;

    let pool = Pool::new(&ready.connector, config.http_workers);
    let steps_kept = config.timeline_retention.time(ready.topics_keep);
    let cleanups = vec![
        store::clean_up_keys(config.idempotency_key_retention),
        timeline::store::clean_up(steps_kept),
        repair::store::clean_up(steps_kept),
    ];
    threads.spawn_housekeeping(&config, &ready, pool.clone(), cleanups)?;
    let routes = status_http::routes(service::routes(&config), config.service, board);
    let routes = http::routes(routes, pool.clone(), queue, long_polls.clone(), &config);
    let routes = page::routes(routes, &config);
    let routes = dead_letters(
        routes,
        pool,
        &config,
        waker,
        recovery,
        (long_polls, admission),
    );
    let server = Server::start("order", listener, file_limit::http_limits(&config), routes)?;
    log::info!("order listens on {}", server.local_addr());
    threads.run_until_stopped(server)
}

fn answers(
    config: &Config,
    recovery: &Recovery,
    long_polls: &LongPolls,
    admission: &Admission,
) -> Box<dyn Handler> {
    Box::new(handlers::AnswerHandler::new(
        config,
        recovery.clone(),
        long_polls.clone(),
        admission.clone(),
    ))
}

fn dead_letters(
    routes: Routes,
    pool: Pool,
    config: &Config,
    waker: Waker,
    recovery: Recovery,
    (long_polls, admission): (LongPolls, Admission),
) -> Routes {
    let (prefix, config) = (config.topic_prefix.clone(), config.clone());
    dead_letter::http::routes(
        routes,
        pool,
        prefix,
        waker,
        Arc::new(move || answers(&config, &recovery, &long_polls, &admission)),
    )
}
