//! The two answers of an order come a moment apart, and in one batch they cost what one costs. So a first one waits a moment
//! for the second, which decides.

use std::collections::HashMap;

use shared::event::{Body, Event, Side};
use uuid::Uuid;

/// Of how many orders a first answer is remembered: of all that are under way while batches are small. Where it is forgotten the
/// second one waits, too.
const KEPT: usize = 4096;

/// Which side has answered first, of the orders that wait for the other one; some that do not, because batches of many are not
/// shown. It is about time alone: what it says changes no outcome.
#[derive(Default)]
pub struct Pairs(HashMap<Uuid, Side>);

impl Pairs {
    /// Whether each of these, which were just polled, is the first answer of an order that the other side's will decide.
    pub fn are_all_first<'a>(&mut self, events: impl Iterator<Item = &'a Event>) -> bool {
        let mut all_first = true;
        for event in events {
            let first = self.0.get(&event.order_id);
            let decides = first.is_some_and(|first| *first != event.side);
            all_first &= !decides && matches!(event.body, Body::Completed);
            if decides {
                self.0.remove(&event.order_id);
            } else if !matches!(event.body, Body::Compensated { .. }) {
                if self.0.len() == KEPT {
                    self.0.clear();
                }
                self.0.insert(event.order_id, event.side);
            }
        }
        all_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::event::{Reason, Service};

    fn answer(side: Side, order: u128, body: Body) -> Event {
        Event::new(side, Uuid::from_u128(order), body, None)
    }

    fn paid(order: u128) -> Event {
        answer(Side::Payment, order, Body::Completed)
    }

    fn reserved(order: u128) -> Event {
        answer(Side::Stock, order, Body::Completed)
    }

    #[test]
    fn only_first_answers_that_do_not_decide_wait() {
        let failed = Body::Failed {
            reason: Reason::new("UNKNOWN_ITEM", Service::Stock),
            attempts: 1,
        };
        let mut pairs = Pairs::default();
        let mut wait = |events: &[Event]| pairs.are_all_first(events.iter());
        assert!(wait(&[paid(1), reserved(2)]));
        assert!(wait(&[paid(1)]), "read once more");
        assert!(!wait(&[reserved(1)]), "the second one");
        assert!(!wait(&[paid(2), paid(4)]), "one of them is");
        assert!(!wait(&[paid(5), reserved(5)]), "both at once");
        assert!(!wait(&[answer(Side::Stock, 6, failed)]), "it decides");
        assert!(!wait(&[paid(6)]), "it is decided");
        let undone = Body::Compensated { undone: true };
        assert!(!wait(&[answer(Side::Payment, 6, undone)]));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut pairs = Pairs::default();
        for order in 0..3 * KEPT as u128 {
            assert!(pairs.are_all_first([paid(order)].iter()));
        }
        assert!(pairs.0.len() <= KEPT);
    }
}
