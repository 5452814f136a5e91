//! Times and retentions as settings.

use std::time::Duration;

use super::reader::Reader;

const A_DAY: Duration = Duration::from_secs(24 * 3_600);
/// Ten years: longer is for ever.
const LONGEST_RETENTION: Duration = Duration::from_secs(3_650 * 24 * 3_600);

/// How long rows about records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// As long as the topics keep the records.
    AsTopics,
    /// So long.
    For(Duration),
    /// They are not removed.
    Forever,
}

impl Retention {
    /// The time, if the topics keep records for `topics` (none: for ever); none: for ever.
    pub fn time(self, topics: Option<Duration>) -> Option<Duration> {
        match self {
            Retention::AsTopics => topics,
            Retention::For(time) => Some(time),
            Retention::Forever => None,
        }
    }
}

impl Reader<'_> {
    pub(super) fn duration(
        &mut self,
        name: &str,
        default: &str,
        meaning: &'static str,
    ) -> Duration {
        const TIME: &str = "a time such as 500ms, 30s, 5m or 1h, from 1ms to 24h";
        self.time(name, default, (TIME, meaning), |value| {
            parse_duration(value).filter(|time| !time.is_zero())
        })
    }

    /// As [`Reader::duration`] where nothing to wait for is a value too.
    pub(super) fn delay(&mut self, name: &str, default: &str, meaning: &'static str) -> Duration {
        const TIME: &str = "a time such as 500ms, 30s or 5m, from 0s to 24h";
        self.time(name, default, (TIME, meaning), parse_duration)
    }

    pub(super) fn days(&mut self, name: &str, default: &str, meaning: &'static str) -> Duration {
        const TIME: &str = "a time such as 24h or 30d, from 1ms to 3650d";
        self.time(name, default, (TIME, meaning), parse_days)
    }

    fn time(
        &mut self,
        name: &str,
        default: &str,
        (takes, meaning): (&'static str, &'static str),
        parse: impl Fn(&str) -> Option<Duration>,
    ) -> Duration {
        let value = self.value(name, default, takes, meaning);
        parse(&value).unwrap_or_else(|| {
            self.refuse(name, &value, takes);
            parse(default).expect("the default is valid")
        })
    }

    pub(super) fn retention(&mut self, name: &str, meaning: &'static str) -> Retention {
        let takes = "topics (as long as the topics keep records), a time such as 30d, or forever";
        let value = self.value(name, "topics", takes, meaning);
        match (value.as_str(), parse_days(&value)) {
            ("topics", _) => Retention::AsTopics,
            ("forever", _) => Retention::Forever,
            (_, Some(time)) => Retention::For(time),
            (_, None) => {
                self.refuse(name, &value, takes);
                Retention::AsTopics
            }
        }
    }
}

/// Reads a time such as `500ms`, `30s`, `5m` or `1h`; none if it is no such thing or longer than a day.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    parse_time(text).filter(|time| *time <= A_DAY)
}

/// The same in days too, up to ten years.
fn parse_days(text: &str) -> Option<Duration> {
    parse_time(text).filter(|time| !time.is_zero() && *time <= LONGEST_RETENTION)
}

fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(millis)
        .map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    #[test]
    fn a_retention_is_the_topics_a_time_in_days_too_or_for_ever() {
        let kept = |text: &str| {
            config(&[("DEAD_LETTER_RETENTION", text)]).map(|config| config.dead_letter_retention)
        };
        assert_eq!(kept("").unwrap(), Retention::AsTopics);
        assert_eq!(
            kept("8d").unwrap(),
            Retention::For(Duration::from_secs(8 * 86_400))
        );
        assert_eq!(kept("forever").unwrap(), Retention::Forever);
        for bad in ["0d", "3651d", "8", "ever"] {
            assert!(
                kept(bad)
                    .unwrap_err()
                    .to_string()
                    .contains("DEAD_LETTER_RETENTION="),
                "{bad}"
            );
        }
    }

    #[test]
    fn durations_need_a_unit_and_end_at_a_day() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("24h"), Some(Duration::from_secs(86_400)));
        for bad in ["", "5", "s", "-1s", "1.5s", "25h", "99999999999999999999s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
