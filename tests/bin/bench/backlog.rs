//! Orders as the order service stores them, without HTTP before it.

use order::store::NewOrder;
use order::{store, writer};
use shared::db::{Connector, Limits, Session};
use shared::envelope;
use uuid::Uuid;

use crate::load::{Asked, Names};

/// Orders in one call of `place_orders`, as the order service's writer has.
pub const BATCH: usize = 300;

/// A batch to be stored: the orders, and the outbox row of each.
pub struct Batch {
    /// In the order of their ids.
    pub orders: Vec<NewOrder>,
    /// Two messages each.
    pub messages: Vec<String>,
}

impl Batch {
    /// Orders of these numbers, with ids of their own. None of them must fail.
    pub fn new(names: Names, numbers: std::ops::Range<usize>) -> Batch {
        let orders: Vec<NewOrder> = numbers.map(|number| new_order(names, number)).collect();
        let messages = orders.iter().map(|order| envelope::to_stored(&writer::requests(order))).collect();
        Batch { orders, messages }
    }

    /// Stores it in one transaction.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn store(&self, session: &mut Session) -> Result<(), String> {
        let orders: Vec<&NewOrder> = self.orders.iter().collect();
        store::place(session, &orders, &self.messages).map(drop).map_err(|error| error.to_string())
    }
}

/// A session with the order service's own settings.
///
/// # Errors
/// When PostgreSQL is away.
pub fn session(database_url: &str) -> Result<Session, String> {
    let connector = Connector::new(database_url, "bench", Limits::WORK).map_err(|error| error.to_string())?;
    connector.connect().map_err(|error| error.to_string())
}

fn new_order(names: Names, number: usize) -> NewOrder {
    let Asked { user, item, price, quantity, .. } = names.order(number);
    NewOrder {
        order_id: Uuid::now_v7(),
        user_name: user,
        item_name: item,
        price,
        quantity,
        key: None,
        traceparent: envelope::new_traceparent(),
    }
}
