//! Orders as the order service stores them, without HTTP before it.

use std::time::{Duration, Instant};

use harness::Service;
use indicatif::{ProgressBar, ProgressStyle};
use order::order::NewOrder;
use order::{store, writer};
use shared::db::{Connector, Limits, Session};
use shared::event::{envelope, trace};
use uuid::Uuid;

use crate::books::said;
use crate::load::{Asked, Names};
use crate::stage::Stage;

/// Orders in one call of `place_new_orders`, as the order service's writer has.
pub const BATCH: usize = 300;

/// For hundreds of thousands of rows on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Often enough for a measurement of seconds, seldom enough to cost nothing.
pub const POLL: Duration = Duration::from_millis(10);

/// A batch to be stored: the orders, and the outbox row of each.
pub struct Batch {
    /// In the order of their ids.
    pub orders: Vec<NewOrder>,
    /// Two messages each.
    pub messages: Vec<String>,
}

impl Batch {
    /// Orders of these numbers, with ids of their own; none is to fail.
    pub fn new(names: Names, numbers: std::ops::Range<usize>) -> Batch {
        let orders: Vec<NewOrder> = numbers.map(|number| new_order(names, number)).collect();
        let messages = orders
            .iter()
            .map(|order| envelope::to_stored(&writer::requests(order)))
            .collect();
        Batch { orders, messages }
    }

    /// Stores it in one transaction.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn store(&self, session: &mut Session) -> Result<(), String> {
        let orders: Vec<&NewOrder> = self.orders.iter().collect();
        store::place(session, &orders, &self.messages)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

/// Stores so many orders; they wait in the outbox.
///
/// # Errors
/// What PostgreSQL says.
pub fn fill(stage: &Stage, orders: usize) -> Result<(), String> {
    let mut session = session(&stage.world.database_url(Service::Order))?;
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} orders stored")
        .expect("a valid template");
    let bar = ProgressBar::new(orders as u64).with_style(style);
    for first in (0..orders).step_by(BATCH) {
        Batch::new(stage.names, first..orders.min(first + BATCH)).store(&mut session)?;
        bar.set_position(first as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Waits until a service's outbox is empty. Asks for the last row: the index's other end is where the relay deletes.
///
/// # Errors
/// What PostgreSQL says; a row that is still there after [`LIMIT`].
pub fn wait_until_published(stage: &mut Stage, service: Service) -> Result<(), String> {
    let sql = format!(
        "select /*bench*/ id from {}_outbox order by id desc limit 1",
        service.name()
    );
    let begun = Instant::now();
    while stage
        .books
        .of(service)
        .query_opt(&sql, &[])
        .map_err(said)?
        .is_some()
    {
        if begun.elapsed() > LIMIT {
            return Err(format!(
                "{}'s outbox is not empty after {LIMIT:?}",
                service.name()
            ));
        }
        stage.require_alive()?;
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// A session with the order service's own settings.
///
/// # Errors
/// When PostgreSQL is away.
pub fn session(database_url: &str) -> Result<Session, String> {
    let connector =
        Connector::new(database_url, "bench", Limits::WORK).map_err(|error| error.to_string())?;
    connector.connect().map_err(|error| error.to_string())
}

fn new_order(names: Names, number: usize) -> NewOrder {
    let Asked {
        user,
        item,
        price,
        quantity,
        ..
    } = names.sound_order(number);
    NewOrder {
        order_id: Uuid::now_v7(),
        user_name: user,
        item_name: item,
        price,
        quantity,
        key: None,
        traceparent: trace::new_traceparent(),
    }
}
