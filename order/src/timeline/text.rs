//! An order's timeline as a table for people.

use crate::timeline::{Timeline, TimelineStep};

/// A line about the order, the columns' heads, a line for each step; the columns are aligned.
pub fn table(timeline: &Timeline, prefix: &str) -> String {
    let heads = [
        "TIME",
        "STEP",
        "SERVICE",
        "MESSAGE",
        "TOPIC-PARTITION-OFFSET",
        "ATTEMPT",
        "REASON",
    ]
    .map(String::from);
    let mut rows = vec![heads];
    rows.extend(timeline.steps(prefix).iter().map(cells));
    let widths = [0, 1, 2, 3, 4, 5, 6].map(|column| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    let lines: Vec<String> = rows.iter().map(|row| line(row, &widths)).collect();
    format!("{}\n\n{}\n", head(timeline), lines.join("\n"))
}

fn head(timeline: &Timeline) -> String {
    let settled = if timeline.saga.is_settled() {
        "settled"
    } else {
        "not settled"
    };
    let (order_id, status, trace) = (
        timeline.order_id,
        timeline.saga.status().name(),
        clean(timeline.trace_id()),
    );
    format!("order {order_id}  {status}, {settled}  trace {trace}")
}

/// What is not known is `-`; so is a record's place, with its topic in front. The reason's column is empty where there is none.
fn cells(step: &TimelineStep) -> [String; 7] {
    let unknown = "-".to_string();
    let place = match (step.partition, step.offset) {
        (Some(partition), Some(offset)) => format!("{}-{partition}-{offset}", step.topic),
        _ => format!("{}-", step.topic),
    };
    [
        step.at.clone(),
        step.step.name().to_string(),
        step.service.to_string(),
        step.message_id.map_or(unknown.clone(), |id| id.to_string()),
        place,
        step.attempt.map_or(unknown, |attempt| attempt.to_string()),
        step.reason
            .as_ref()
            .map(|reason| clean(&reason.code))
            .unwrap_or_default(),
    ]
}

fn line(row: &[String; 7], widths: &[usize; 7]) -> String {
    let cells: Vec<String> = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    cells.join("  ").trim_end().to_string()
}

/// A reason's code comes from outside: no control character of it reaches a terminal.
fn clean(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use shared::event::{Channel, Side, Topic};
    use uuid::Uuid;

    use super::*;
    use crate::order::{Saga, SideStatus};
    use crate::timeline::{Entry, Message};

    #[test]
    fn the_columns_are_aligned_and_control_characters_replaced() {
        let request = Message {
            id: Some(Uuid::from_u128(2)),
            place: Some((0, 7)),
            stored_at: Some("2026-01-02T03:04:01.000300Z".into()),
            published_at: Some("2026-01-02T03:04:01.002Z".into()),
        };
        let answer = Message {
            id: Some(Uuid::from_u128(3)),
            place: Some((2, 1_234)),
            stored_at: Some("2026-01-02T03:04:01.005000Z".into()),
            published_at: None,
        };
        let entry = Entry {
            topic: Topic(Side::Payment, Channel::Dlt),
            type_name: "payment.failed".into(),
            message: answer,
            noted_at: "2026-01-02T03:04:01.008000Z".into(),
            attempt: Some(1),
            reason_code: Some("\u{1b}[31mNO\n".into()),
            answered: request,
            taken_up_at: Some("2026-01-02T03:04:01.004000Z".into()),
            answered_attempt: Some(12),
        };
        let reason = Some(("NO".to_string(), "payment".to_string()));
        let timeline = Timeline {
            order_id: Uuid::from_u128(1),
            saga: Saga {
                payment: SideStatus::Failed,
                stock: SideStatus::InProgress,
                reason,
            },
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
            created_at: "2026-01-02T03:04:01.000000Z".into(),
            stored_at: None,
            published_at: None,
            requests: [None, None],
            entries: vec![entry],
        };
        let expected = "\
order 00000000-0000-0000-0000-000000000001  FAILED, not settled  trace 0af7651916cd43dd8448eb211c80319c

TIME                         STEP       SERVICE  MESSAGE                               TOPIC-PARTITION-OFFSET  ATTEMPT  REASON
2026-01-02T03:04:01.000300Z  STORED     order    00000000-0000-0000-0000-000000000002  x.payment-0-7           -
2026-01-02T03:04:01.000300Z  STORED     order    -                                     x.stock-                -
2026-01-02T03:04:01.002Z     PUBLISHED  order    00000000-0000-0000-0000-000000000002  x.payment-0-7           -
2026-01-02T03:04:01.002Z     PUBLISHED  order    -                                     x.stock-                -
2026-01-02T03:04:01.004000Z  ASKED      payment  00000000-0000-0000-0000-000000000002  x.payment-0-7           12
2026-01-02T03:04:01.005000Z  FAILED     payment  00000000-0000-0000-0000-000000000003  x.payment.dlt-2-1234    12       \u{fffd}[31mNO\u{fffd}
2026-01-02T03:04:01.008000Z  LEARNED    order    00000000-0000-0000-0000-000000000003  x.payment.dlt-2-1234    1
";
        assert_eq!(table(&timeline, "x."), expected);
    }
}
