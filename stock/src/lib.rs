//! The stock service: takes an order's quantity from its item's stock, and gives it back when asked.
//!
//! One request's path here: the consumer → [`handlers`] → [`reservation`] (the decision) → [`store`] → the outbox → the relay.

pub mod handlers;
pub mod http;
pub mod reservation;
pub mod store;

use std::sync::Arc;

use shared::config::Config;
use shared::error::Result;
use shared::outbox::Removal;
use shared::service::Instance;
use shared::shutdown::{Shutdown, Stop};

mod migrations {
    refinery::embed_migrations!("../sql/stock");
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
    let instance = Instance::start(config, migrations(), Removal::Rows, stop, shutdown)?;
    let routes = http::routes(instance.routes(), instance.pool.clone());
    instance.run(Arc::new(|| Box::new(handlers::Requests)), routes)
}
