//! How a record came to its handler: where it lay, when it was stored, published and taken up, and which attempt this
//! was. An answer carries this back to order in the header `answers` ([`HEADER`]). So order can show a timeline without
//! asking the other services.
//!
//! ```json
//! {"id":"01a2…","partition":2,"offset":17,"stored":1767323045678901,"published":1767323045680000,"takenUp":1767323045682003,"attempt":1}
//! ```
//!
//! Times are microseconds since 1970. A header that is missing, broken, impossible or longer than 256 bytes is ignored:
//! the timeline then lacks its steps.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::Uuid;

/// The header of an answer that holds the delivery of what it answers, as JSON.
pub const HEADER: &str = "answers";
/// What we write takes 206 bytes at most; what is longer than this is not ours.
const LONGEST: usize = 256;
/// The end of the year 9999, the last that RFC 3339 can write, in microseconds since 1970.
const LAST_TIME: i64 = 253_402_300_799_999_999;

/// A record's way to its handler. Times are in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    /// `ce_id`; none if the record has no usable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where it was read.
    pub partition: i32,
    /// Where it was read.
    pub offset: i64,
    /// When it was stored in its writer's outbox (`ce_time`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<i64>,
    /// When it was published: the record's timestamp, so no finer than milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<i64>,
    /// When its handler took it up, for this attempt.
    pub taken_up: i64,
    /// Which attempt this is, from 1. Attempts that fail by the world's fault count for all that waits in the partition.
    pub attempt: i32,
}

impl Delivery {
    /// Reads the header's value; none if it is broken, or can't be ours.
    pub fn parse(text: &[u8]) -> Option<Delivery> {
        let short = Some(text).filter(|text| text.len() <= LONGEST)?;
        serde_json::from_slice(short)
            .ok()
            .filter(Delivery::is_possible)
    }

    /// Tables and clocks can hold what it says.
    fn is_possible(&self) -> bool {
        let times = [self.stored, self.published, Some(self.taken_up)];
        let in_time = times
            .into_iter()
            .flatten()
            .all(|time| (0..=LAST_TIME).contains(&time));
        in_time && self.partition >= 0 && self.offset >= 0 && self.attempt >= 1
    }
}

/// The present time, in microseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_micros() as i64)
}

/// A record's timestamp as a time in microseconds; none if it has none that a calendar holds.
pub fn from_millis(timestamp: i64) -> Option<i64> {
    timestamp
        .checked_mul(1_000)
        .filter(|time| (1..=LAST_TIME).contains(time))
}

/// A time written as `ce_time` is: RFC 3339, UTC, six digits. None if it is written otherwise.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    const AS_WRITTEN: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let time = PrimitiveDateTime::parse(text, AS_WRITTEN)
        .ok()?
        .assume_utc();
    i64::try_from(time.unix_timestamp_nanos() / 1_000)
        .ok()
        .filter(|micros| (0..=LAST_TIME).contains(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: Delivery = Delivery {
        id: Some(Uuid::from_u128(0x01a207b0_6c85_711f_941c_898f27171165)),
        partition: 2,
        offset: 17,
        stored: Some(1_767_323_045_678_901),
        published: Some(1_767_323_045_680_000),
        taken_up: 1_767_323_045_682_003,
        attempt: 1,
    };

    fn json(delivery: &Delivery) -> String {
        serde_json::to_string(delivery).unwrap()
    }

    #[test]
    fn a_delivery_is_read_as_it_was_written() {
        let text = json(&DELIVERY);
        assert_eq!(
            text,
            r#"{"id":"01a207b0-6c85-711f-941c-898f27171165","partition":2,"offset":17,"stored":1767323045678901,"published":1767323045680000,"takenUp":1767323045682003,"attempt":1}"#
        );
        assert_eq!(Delivery::parse(text.as_bytes()), Some(DELIVERY));
        let bare = Delivery {
            id: None,
            stored: None,
            published: None,
            ..DELIVERY
        };
        assert_eq!(
            json(&bare),
            r#"{"partition":2,"offset":17,"takenUp":1767323045682003,"attempt":1}"#
        );
        assert_eq!(Delivery::parse(json(&bare).as_bytes()), Some(bare));
    }

    #[test]
    fn the_longest_delivery_of_ours_is_read() {
        let longest = Delivery {
            partition: i32::MAX,
            offset: i64::MAX,
            stored: Some(LAST_TIME),
            published: Some(LAST_TIME),
            taken_up: LAST_TIME,
            attempt: i32::MAX,
            ..DELIVERY
        };
        assert_eq!(json(&longest).len(), 206);
        assert_eq!(Delivery::parse(json(&longest).as_bytes()), Some(longest));
    }

    #[test]
    fn what_is_no_delivery_is_let_pass() {
        let json = json(&DELIVERY);
        let spoilt = |old: &str, new: &str| json.replace(old, new);
        for text in [
            String::new(),
            "{".into(),
            "[]".into(),
            "{}".into(),
            spoilt(r#""attempt":1"#, r#""attempt":0"#),
            spoilt(r#""attempt":1"#, r#""attempt":2147483648"#),
            spoilt(r#""offset":17"#, r#""offset":-1"#),
            spoilt("1767323045678901", "-1"),
            spoilt("1767323045678901", "9223372036854775807"),
            spoilt("01a207b0-6c85", "none"),
            format!("{json}{}", " ".repeat(256)),
        ] {
            assert_eq!(Delivery::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_stored_time_is_read_to_the_microsecond() {
        for (text, time) in [
            ("1970-01-01T00:00:00.000000Z", 0),
            ("1999-12-31T23:59:59.999999Z", 946_684_799_999_999),
            ("2000-02-29T12:00:00.000001Z", 951_825_600_000_001),
            ("2026-01-02T03:04:05.678901Z", 1_767_323_045_678_901),
            ("2026-11-25T10:20:30.000000Z", 1_795_602_030_000_000),
            ("2100-03-01T00:00:00.000000Z", 4_107_542_400_000_000),
        ] {
            assert_eq!(from_rfc3339(text), Some(time), "{text}");
        }
        for text in [
            "",
            "2026-01-02T03:04:05Z",
            "2026-01-02 03:04:05.678901Z",
            "2026-13-02T03:04:05.678901Z",
            "2026-01-02T24:04:05.678901Z",
            "1969-12-31T23:59:59.999999Z",
            "2026-01-02T03:04:05.67890+Z",
            "2026-01-02T03:04:05.67890é",
        ] {
            assert_eq!(from_rfc3339(text), None, "{text}");
        }
        assert_eq!(
            (from_millis(-1), from_millis(0), from_millis(i64::MAX)),
            (None, None, None)
        );
        assert_eq!(from_millis(1_767_323_045_678), Some(1_767_323_045_678_000));
    }
}
