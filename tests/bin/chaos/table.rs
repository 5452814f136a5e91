//! The table of outcomes, typed in: what may lie on the topics about one order, and which states it may go through.

use std::collections::BTreeMap;

/// What a side has said on the topics about one order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Requests.
    pub requested: usize,
    /// Answers that it succeeded.
    pub completed: usize,
    /// Answers that it failed for good.
    pub failed: usize,
    /// How often it was asked to compensate.
    pub asked: usize,
    /// How often it confirmed that, having undone something.
    pub undone: usize,
    /// How often it confirmed that, having had nothing to undo.
    pub nothing_undone: usize,
}

/// How a side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideEnd {
    /// Succeeded, and stays so.
    Completed,
    /// Failed for good; nothing was compensated.
    Failed,
    /// Succeeded, and was undone.
    Compensated,
    /// Was asked to compensate, and had nothing to undo.
    Cancelled,
}

impl Side {
    /// Counts the messages of one side, `payment` or `stock`, by `(ce_type, undone)`.
    pub fn of(side: &str, types: &BTreeMap<(String, bool), usize>) -> Side {
        let count = |verb: &str, undone| {
            types
                .get(&(format!("{side}.{verb}"), undone))
                .copied()
                .unwrap_or(0)
        };
        Side {
            requested: count("requested", false),
            completed: count("completed", false),
            failed: count("failed", false),
            asked: count("compensation-requested", false),
            undone: count("compensated", true),
            nothing_undone: count("compensated", false),
        }
    }

    /// Its end; none if it may not have said that.
    pub fn end(&self) -> Option<SideEnd> {
        let confirmed = self.undone + self.nothing_undone;
        if self.requested != 1 || self.completed + self.failed > 1 || self.asked != confirmed {
            return None;
        }
        match (self.completed, self.failed, self.asked, self.undone) {
            (1, 0, 0, 0) => Some(SideEnd::Completed),
            (0, 1, 0, 0) => Some(SideEnd::Failed),
            // asked again, it confirms again what it had undone
            (1, 0, 1.., undone) if undone == self.asked => Some(SideEnd::Compensated),
            (0, _, 1.., 0) => Some(SideEnd::Cancelled),
            _ => None,
        }
    }
}

/// The order's status that these ends of payment and stock make; none if they may not come together. Without a deadline
/// that passed for a side nobody is asked to compensate but a side that succeeded beside one that failed.
pub fn outcome(payment: SideEnd, stock: SideEnd, deadline_passed: bool) -> Option<&'static str> {
    use SideEnd::{Cancelled, Compensated, Completed, Failed};
    match (payment, stock) {
        (Completed, Completed) => Some("COMPLETED"),
        (Failed, Failed) | (Failed, Compensated) | (Compensated, Failed) => Some("FAILED"),
        (Failed | Compensated | Cancelled, Failed | Compensated | Cancelled) if deadline_passed => {
            Some("FAILED")
        }
        _ => None,
    }
}

/// Whether a side may go from one status to another in the order's view.
pub fn may_become(from: &str, to: &str) -> bool {
    const STEPS: [(&str, &str); 9] = [
        ("READY", "IN_PROGRESS"),
        ("READY", "COMPLETED"),
        ("READY", "FAILED"),
        ("READY", "COMPENSATING"),
        ("IN_PROGRESS", "COMPLETED"),
        ("IN_PROGRESS", "FAILED"),
        ("IN_PROGRESS", "COMPENSATING"),
        ("COMPLETED", "COMPENSATING"),
        ("COMPENSATING", "COMPENSATED"),
    ];
    from == to || STEPS.contains(&(from, to))
}

/// The same of an order that has forgotten that it asked a side to compensate: success, failure of the other side, and the
/// confirmation may then be handled together.
pub fn may_become_at_once(from: &str, to: &str) -> bool {
    matches!(
        (from, to),
        ("READY" | "IN_PROGRESS" | "COMPLETED", "COMPENSATED")
    )
}

/// The statuses that a participant's own row may have beside the order's view of that side.
pub fn row_statuses(side_status: &str) -> &'static [&'static str] {
    match side_status {
        "COMPLETED" => &["COMPLETED"],
        "FAILED" => &["FAILED"],
        "COMPENSATED" => &["COMPENSATED", "CANCELLED", "FAILED"],
        _ => &[],
    }
}
