//! The order service: takes orders, asks payment and stock for their parts, decides what their answers make of an order.
//!
//! One order's path here: [`http`] → [`admission`] → [`writer`] → [`store`] and the outbox → the relay; then the participants' answers →
//! [`handlers`] → [`order`] (the decision) → [`store`]. [`pairs`] has the two answers of an order handled together. [`deadline`]
//! ends what is not heard of; [`long_poll`] answers requests that wait for the end. [`repair`] says what is made of an order that
//! the database lost, and lists it. [`timeline`] shows an order's steps; [`page`] shows all of it.

pub mod admission;
pub mod deadline;
pub mod handlers;
pub mod http;
pub mod long_poll;
pub mod metrics;
pub mod order;
pub mod page;
pub mod pairs;
pub mod repair;
pub mod store;
pub mod timeline;
pub mod writer;

use std::sync::Arc;
use std::time::Duration;

use shared::config::Config;
use shared::db::cleanup::Cleanup;
use shared::error::Result;
use shared::outbox::Removal;
use shared::service::Instance;
use shared::shutdown::{Shutdown, Stop};

use admission::Admission;
use deadline::DeadlineScan;
use handlers::AnswerHandler;

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
    let removal = Removal::MarkedRows(config.order_deadline);
    let mut service = Instance::start(config, migrations(), removal, stop, shutdown)?;
    let (config, pool) = (service.config.clone(), service.pool.clone());
    let (long_polls, poller) = long_poll::new(service.connector());
    let admission = Admission::new(config.admission_limit, config.order_deadline, writer::QUEUE);
    let (queue, writer) = writer::new(&config, service.waker.clone(), admission.clone())?;
    let watchers = (long_polls.clone(), admission.clone());
    let scan = DeadlineScan::new(&config, service.waker.clone(), watchers.clone())?;
    service.spawn("order-long-polls", poller)?;
    service.spawn("order-writer", writer)?;
    service.spawn("order-deadline", scan)?;
    service.show(metrics::start(admission, config.order_deadline));
    service.clean_up(cleanups(&config, service.timeline_retention()));
    let routes = http::routes(service.routes(), pool, queue, long_polls, &config);
    let routes = page::routes(routes, &config);
    let recovery = service.recovery();
    let handler = move || Box::new(AnswerHandler::new(&config, &recovery, &watchers)) as _;
    service.run(Arc::new(handler), routes)
}

/// What is removed once it is too old; `kept` is how long the steps of settled orders stay, none: for ever.
fn cleanups(config: &Config, kept: Option<Duration>) -> Vec<Cleanup> {
    vec![
        store::clean_up_keys(config.idempotency_key_retention),
        timeline::store::clean_up(kept),
        repair::store::clean_up(kept),
    ]
}
