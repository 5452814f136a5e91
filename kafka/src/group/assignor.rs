//! The consumer protocol: what members of a group tell each other through the coordinator, and the range assignor.
//!
//! The broker only passes these bytes on, but Kafka's tools read them, and Java consumers may be members of the same group: so the layout
//! is that of ConsumerProtocolSubscription and ConsumerProtocolAssignment, and "range" divides as Java's RangeAssignor does.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::primitive::{Malformed, Reader};

/// The assignor's name in JoinGroup; all members of a group must have one in common.
pub(crate) const RANGE: &str = "range";
/// The protocol type of consumer groups.
pub(crate) const CONSUMER: &str = "consumer";

/// Partitions by topic.
pub(crate) type Partitions = BTreeMap<String, Vec<i32>>;

/// A subscription to these topics, version 0.
pub(crate) fn encode_subscription(topics: &[String]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(0);
    bytes.put_i32(topics.len() as i32);
    topics
        .iter()
        .for_each(|topic| put_string(&mut bytes, topic));
    bytes.put_i32(-1); // user data: none
    bytes.freeze()
}

/// The topics of a member's subscription. All versions begin alike.
pub(crate) fn decode_subscription(bytes: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut reader = Reader::new(bytes);
    let _version = reader.i16()?;
    let count = reader.i32()?;
    (0..count)
        .map(|_| reader.string().map(str::to_owned))
        .collect()
}

/// An assignment, version 0.
pub(crate) fn encode_assignment(partitions: &Partitions) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(0);
    bytes.put_i32(partitions.len() as i32);
    for (topic, numbers) in partitions {
        put_string(&mut bytes, topic);
        bytes.put_i32(numbers.len() as i32);
        numbers.iter().for_each(|number| bytes.put_i32(*number));
    }
    bytes.put_i32(-1); // user data: none
    bytes.freeze()
}

/// What a member was assigned. No bytes at all are no partitions.
pub(crate) fn decode_assignment(bytes: &[u8]) -> Result<Partitions, Malformed> {
    let mut partitions = Partitions::new();
    if bytes.is_empty() {
        return Ok(partitions);
    }
    let mut reader = Reader::new(bytes);
    let _version = reader.i16()?;
    for _ in 0..reader.i32()? {
        let topic = reader.string()?.to_owned();
        let count = reader.i32()?;
        let numbers = (0..count).map(|_| reader.i32()).collect::<Result<_, _>>()?;
        partitions.insert(topic, numbers);
    }
    Ok(partitions)
}

fn put_string(bytes: &mut BytesMut, text: &str) {
    bytes.put_i16(text.len() as i16);
    bytes.put_slice(text.as_bytes());
}

/// Divides each topic's partitions among the members that subscribe to it, sorted by member id, in ranges; the first
/// ones get one more where it doesn't come out even.
pub(crate) fn assign_range(
    members: &BTreeMap<String, Vec<String>>,
    partition_counts: &BTreeMap<String, i32>,
) -> BTreeMap<String, Partitions> {
    let mut assignments: BTreeMap<String, Partitions> = members
        .keys()
        .map(|member| (member.clone(), Partitions::new()))
        .collect();
    for (topic, count) in partition_counts {
        let subscribed = members.iter().filter(|(_, topics)| topics.contains(topic));
        let subscribed: Vec<&String> = subscribed.map(|(member, _)| member).collect();
        for (index, range) in ranges(*count, subscribed.len()).into_iter().enumerate() {
            if let Some(assignment) = assignments
                .get_mut(subscribed[index])
                .filter(|_| !range.is_empty())
            {
                assignment.insert(topic.clone(), range.collect());
            }
        }
    }
    assignments
}

fn ranges(count: i32, members: usize) -> Vec<std::ops::Range<i32>> {
    let members = members as i32;
    let start = |index: i32| index * (count / members) + index.min(count % members);
    (0..members)
        .map(|index| start(index)..start(index + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(names: &[&str], topics: &[&str]) -> BTreeMap<String, Vec<String>> {
        let topics: Vec<String> = topics.iter().map(|topic| topic.to_string()).collect();
        names
            .iter()
            .map(|name| (name.to_string(), topics.clone()))
            .collect()
    }

    #[test]
    fn five_partitions_for_two_members_are_three_and_two() {
        let counts = BTreeMap::from([("t".to_owned(), 5)]);
        let assigned = assign_range(&members(&["a", "b"], &["t"]), &counts);
        assert_eq!(assigned["a"]["t"], [0, 1, 2]);
        assert_eq!(assigned["b"]["t"], [3, 4]);
    }

    #[test]
    fn a_member_too_many_gets_nothing_and_a_stranger_to_the_topic_neither() {
        let mut group = members(&["a", "b"], &["t"]);
        group.insert("c".to_owned(), vec!["u".to_owned()]);
        let counts = BTreeMap::from([("t".to_owned(), 1)]);
        let assigned = assign_range(&group, &counts);
        assert_eq!(assigned["a"]["t"], [0]);
        assert!(assigned["b"].is_empty());
        assert!(assigned["c"].is_empty());
    }

    #[test]
    fn the_subscription_is_what_a_java_consumer_sends() {
        let bytes = encode_subscription(&["ab".to_owned()]);
        assert_eq!(
            &bytes[..],
            [0, 0, 0, 0, 0, 1, 0, 2, b'a', b'b', 0xff, 0xff, 0xff, 0xff]
        );
        assert_eq!(decode_subscription(&bytes), Ok(vec!["ab".to_owned()]));
    }

    #[test]
    fn an_assignment_is_read_back() {
        let partitions = Partitions::from([("t".to_owned(), vec![0, 2])]);
        assert_eq!(
            decode_assignment(&encode_assignment(&partitions)),
            Ok(partitions)
        );
        assert_eq!(decode_assignment(&[]), Ok(Partitions::new()));
    }

    proptest! {
        #[test]
        fn random_and_cut_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), cut in 0usize..20) {
            let _ = decode_subscription(&bytes);
            let _ = decode_assignment(&bytes);
            let whole = encode_assignment(&Partitions::from([("topic".to_owned(), vec![1, 2])]));
            prop_assert!(decode_assignment(&whole[..cut]).is_err() || cut == 0);
        }
    }
}
