//! What order's requests do to payments and balances.

use std::collections::BTreeSet;

use shared::consumer::set_aside;
use shared::db::Tx;
use shared::error::Result;
use shared::event::{Body, Event};
use shared::handler::{GivenUp, Handled, Handler};
use uuid::Uuid;

use crate::payment::Batch;
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

    fn waits_for(&mut self, tx: &mut Tx<'_>, events: &[Event]) -> Result<Vec<Option<String>>> {
        set_aside::find_held_at_participant(
            tx,
            events,
            "payment",
            ("account", "user_name"),
            |event| match &event.body {
                Body::PaymentRequested { user_name, .. } => Some(user_name),
                _ => None,
            },
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
    let asked = events.iter().filter_map(|event| match &event.body {
        Body::PaymentRequested { user_name, .. } => Some(user_name.as_str()),
        _ => None,
    });
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
