//! What order's requests do to payments and balances.

use std::collections::BTreeSet;

use shared::consumer::at_once::AtOnce;
use shared::consumer::set_aside;
use shared::db::Tx;
use shared::error::Result;
use shared::event::{Body, Event};
use shared::handler::{GivenUp, Handled, Handler};
use uuid::Uuid;

use crate::payment::{Batch, Payment};
use crate::store;

/// Handles `payment` and `payment.compensation`.
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
        let asked: Vec<&str> = events.iter().filter_map(user_of).collect();
        if order_ids.len() < events.len() || asked.len() < events.len() {
            return Ok(false);
        }
        let names: BTreeSet<&str> = asked.into_iter().collect();
        let read = store::find_balances(at_once.session(), &names.into_iter().collect::<Vec<_>>())?;
        let placed = order_ids
            .into_iter()
            .map(|order_id| (order_id, Payment::new()));
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
            "payment",
            ("account", "user_name"),
            user_of,
        )
    }

    fn give_up(&mut self, tx: &mut Tx<'_>, request: &GivenUp) -> Result<Vec<Event>> {
        let mut batch = lock(tx, &[request.order_id], &[])?;
        batch.give_up(request);
        store::write(tx, &batch)?;
        Ok(batch.outgoing)
    }
}

/// Locks all that the decisions will read: the payments, then the accounts that requests name or completed payments were
/// taken from.
fn lock(tx: &mut Tx<'_>, order_ids: &[Uuid], events: &[Event]) -> Result<Batch> {
    let payments = store::place_and_lock(tx, order_ids)?;
    let asked = events.iter().filter_map(user_of);
    let known = payments.values().filter_map(|payment| {
        payment
            .terms
            .as_ref()
            .map(|(user_name, _)| user_name.as_str())
    });
    let user_names: BTreeSet<&str> = asked.chain(known).collect();
    let balances = store::lock_balances(tx, &user_names.into_iter().collect::<Vec<_>>())?;
    Ok(Batch::new(payments, balances))
}

/// The user that a request names.
fn user_of(event: &Event) -> Option<&str> {
    match &event.body {
        Body::PaymentRequested { user_name, .. } => Some(user_name),
        _ => None,
    }
}
