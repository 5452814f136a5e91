//! The payment service: takes an order's price from its user's balance, and gives it back when asked.
//!
//! One request's path here: the consumer → [`handlers`] → [`payment`] (the decision) → [`store`] → the outbox → the relay.

pub mod handlers;
pub mod http;
pub mod payment;
pub mod store;

use std::sync::Arc;

use shared::config::Config;
use shared::db::pool::Pool;
use shared::dead_letter;
use shared::error::Result;
use shared::http::Server;
use shared::outbox;
use shared::service::file_limit;
use shared::service::status_http;
use shared::service::{self, Threads};
use shared::shutdown::{Shutdown, Stop};

mod migrations {
    refinery::embed_migrations!("../sql/payment");
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
    let waker = threads.spawn_relay(&config, &ready, outbox::Removal::Rows)?;
    threads.spawn_consumers(&config, &waker, || Box::new(handlers::Requests))?;

    let board = threads.spawn_monitor(&config, Box::new(|_| Ok(Default::default())))?;

    let pool = Pool::new(&ready.connector, config.http_workers);
    threads.spawn_housekeeping(&config, &ready, pool.clone(), vec![])?;
    let routes = status_http::routes(service::routes(&config), config.service, board);
    let routes = http::routes(routes, pool.clone());
    let handler = Arc::new(|| Box::new(handlers::Requests) as _);
    let routes =
        dead_letter::http::routes(routes, pool, config.topic_prefix.clone(), waker, handler);
    let server = Server::start(
        "payment",
        listener,
        file_limit::http_limits(&config),
        routes,
    )?;
    log::info!("payment listens on {}", server.local_addr());
    threads.run_until_stopped(server)
}
