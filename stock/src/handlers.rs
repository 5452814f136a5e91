//! What order's requests do to reservations and quantities.

use std::collections::BTreeSet;

use shared::consumer::at_once::AtOnce;
use shared::consumer::set_aside;
use shared::db::Tx;
use shared::error::Result;
use shared::event::{Body, Event};
use shared::handler::{GivenUp, Handled, Handler};
use uuid::Uuid;

use crate::reservation::{Batch, Reservation};
use crate::store;

/// Handles `stock` and `stock.compensation`.
pub struct Requests;

impl Handler for Requests {
    fn handle(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Handled> {
        let order_ids: BTreeSet<Uuid> = events.iter().map(|event| event.order_id).collect();
        let mut batch = lock(tx, &order_ids.into_iter().collect::<Vec<_>>(), events)?;
        let outcomes = events.iter().map(|event| batch.decide(event)).collect();
        store::write(tx, &batch)?;
        Ok(Handled {
            outcomes,
            events: batch.outgoing,
        })
    }

    /// Requests about orders that are new here; all else is handled under locks.
    fn handle_at_once(&mut self, at_once: &mut AtOnce<'_>, events: &[Event]) -> Result<bool> {
        let order_ids: BTreeSet<Uuid> = events.iter().map(|event| event.order_id).collect();
        let asked: Vec<&str> = events.iter().filter_map(item_of).collect();
        if order_ids.len() < events.len() || asked.len() < events.len() {
            return Ok(false);
        }
        let names: BTreeSet<&str> = asked.into_iter().collect();
        let read =
            store::find_quantities(at_once.session(), &names.into_iter().collect::<Vec<_>>())?;
        let placed = order_ids
            .into_iter()
            .map(|order_id| (order_id, Reservation::new()));
        let mut batch = Batch::new(placed.collect(), read.clone());
        for event in events {
            batch.decide(event);
        }
        store::write_at_once(at_once, &batch, &read)
    }

    fn waits_for(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Vec<Option<String>>> {
        set_aside::find_held_at_participant(
            tx,
            events,
            "reservation",
            ("item", "item_name"),
            item_of,
        )
    }

    fn give_up(&mut self, tx: &mut Tx<'_>, request: &GivenUp) -> Result<Vec<Event>> {
        let mut batch = lock(tx, &[request.order_id], &[])?;
        batch.give_up(request);
        store::write(tx, &batch)?;
        Ok(batch.outgoing)
    }
}

/// Locks all that the decisions will read: the reservations, then the items that requests name or completed reservations were
/// taken from.
fn lock(tx: &mut Tx<'_>, order_ids: &[Uuid], events: &[Event]) -> Result<Batch> {
    let reservations = store::place_and_lock(tx, order_ids)?;
    let asked = events.iter().filter_map(item_of);
    let known = reservations.values().filter_map(|reservation| {
        reservation
            .terms
            .as_ref()
            .map(|(item_name, _)| item_name.as_str())
    });
    let item_names: BTreeSet<&str> = asked.chain(known).collect();
    let quantities = store::lock_quantities(tx, &item_names.into_iter().collect::<Vec<_>>())?;
    Ok(Batch::new(reservations, quantities))
}

/// The item that a request names.
fn item_of(event: &Event) -> Option<&str> {
    match &event.body {
        Body::StockRequested { item_name, .. } => Some(item_name),
        _ => None,
    }
}
