//! The brokers, as a start and `--check` look at them: whether each is where it says it is, and whether its limits leave
//! room for what a relay and consumers ask for.

use std::time::Duration;

use kafka::{Admin, BrokerDescription, ErrorCode};

use crate::consumer::SESSION_TIMEOUT;
use crate::error::{Error, Result};
use crate::outbox::relay::TRANSACTION_TIMEOUT;

/// A setting of brokers that bounds what clients may ask for, in milliseconds, and what this service asks for.
struct Limit {
    setting: &'static str,
    bound: Bound,
    asked: Duration,
}

enum Bound {
    Least,
    Most,
}

const LIMITS: [Limit; 3] = [
    Limit {
        setting: "group.min.session.timeout.ms",
        bound: Bound::Least,
        asked: SESSION_TIMEOUT,
    },
    Limit {
        setting: "group.max.session.timeout.ms",
        bound: Bound::Most,
        asked: SESSION_TIMEOUT,
    },
    Limit {
        setting: "transaction.max.timeout.ms",
        bound: Bound::Most,
        asked: TRANSACTION_TIMEOUT,
    },
];

/// Goes to these brokers, each at the address that the cluster names, and looks at their limits. Returns what to know.
///
/// # Errors
/// Kafka's, of the first that can't be reached; [`Error::Unusable`] when a limit leaves too little room.
pub fn find_problems(admin: &mut Admin, brokers: &[BrokerDescription]) -> Result<Vec<String>> {
    let (mut remarks, mut wrong) = (vec![], vec![]);
    for broker in brokers {
        match admin.broker_config(broker, &LIMITS.map(|limit| limit.setting)) {
            Ok(values) => wrong.extend(
                LIMITS
                    .iter()
                    .filter_map(|limit| limit.exceeded(&values, broker)),
            ),
            // it takes a right of its own, and is a precaution only
            Err(error) if error.code() == Some(ErrorCode::CLUSTER_AUTHORIZATION_FAILED) => {
                remarks.push(format!(
                    "the limits of broker {} can't be checked: {error}",
                    broker.id
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    match wrong.is_empty() {
        true => Ok(remarks),
        false => Err(Error::Unusable(format!(
            "Kafka's limits leave too little room: {}",
            wrong.join("; ")
        ))),
    }
}

/// Looks at the limits of one broker only, which costs one request: mostly all have the same. Where it can't be asked, a
/// start goes on: others may answer.
///
/// # Errors
/// [`Error::Unusable`] when a limit leaves too little room; Kafka's where no broker answers.
pub fn require_room(admin: &mut Admin) -> Result<()> {
    let Some(broker) = admin.brokers()?.into_iter().next() else {
        return Ok(());
    };
    match find_problems(admin, std::slice::from_ref(&broker)) {
        Ok(remarks) => remarks.iter().for_each(|remark| log::info!("{remark}")),
        Err(Error::Kafka(error)) => log::info!(
            "the limits of broker {} can't be checked: {error}",
            broker.id
        ),
        Err(error) => return Err(error),
    }
    Ok(())
}

impl Limit {
    /// What to set, where the values leave too little room.
    fn exceeded(&self, values: &[(String, String)], broker: &BrokerDescription) -> Option<String> {
        let (_, value) = values.iter().find(|(name, _)| name == self.setting)?;
        let (limit, asked) = (value.parse::<u128>().ok()?, self.asked.as_millis());
        let (fits, bound) = match self.bound {
            Bound::Least => (asked >= limit, "at most"),
            Bound::Most => (asked <= limit, "at least"),
        };
        let BrokerDescription { id, address } = broker;
        (!fits).then(|| {
            format!(
                "set {} to {asked} {bound}, broker {id} at {address} has {limit}",
                self.setting
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_leaves_too_little_room_is_named_with_its_value_and_what_is_needed() {
        let broker = BrokerDescription {
            id: 1,
            address: "a:9092".into(),
        };
        let errors = |setting: &str, value: &str| -> Vec<String> {
            let values = [(setting.to_string(), value.to_string())];
            LIMITS
                .iter()
                .filter_map(|limit| limit.exceeded(&values, &broker))
                .collect()
        };
        let set = |setting: &str, bound: &str, value: &str| {
            vec![format!(
                "set {setting} to 10000 {bound}, broker 1 at a:9092 has {value}"
            )]
        };
        let [least, most, transaction] = LIMITS.map(|limit| limit.setting);
        assert_eq!(errors(least, "10001"), set(least, "at most", "10001"));
        assert_eq!(errors(most, "9999"), set(most, "at least", "9999"));
        assert_eq!(
            errors(transaction, "5000"),
            set(transaction, "at least", "5000")
        );
        for fits in [
            (least, "6000"),
            (least, "10000"),
            (most, "10000"),
            (transaction, "900000"),
            ("other", "1"),
        ] {
            assert_eq!(errors(fits.0, fits.1), [""; 0], "{fits:?}");
        }
    }
}
