//! The APIs this client speaks, their versions, and the outline of their answers.
//!
//! For each API the narrowest range that Kafka 3.5 to 4.x share: what is never sent can't be wrong. The highest version of the
//! range that the broker offers is used. "The highest common version" of everything would be wrong: from Produce 12, EndTxn 5
//! and TxnOffsetCommit 5 on a client speaks transaction version 2 (KIP-890), where partitions join a transaction
//! implicitly and each end raises the epoch. This client speaks version 1, which every broker has, so the three are capped together.

use kafka_protocol::messages::{self as m, ApiKey};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};

use crate::error::ErrorCode;
use crate::wire::layout::Shape::{self, Array, Compact, Fixed, OldArray, OldString, Tags};

/// A request this client can send, with what belongs to it. (The codec's own trait needs its broker half as well.)
pub(crate) trait Request: Encodable + HeaderVersion {
    /// The answer.
    type Response: Decodable + HeaderVersion;
    /// Its number on the wire.
    const KEY: ApiKey;
    /// Its name, for errors.
    const API: &'static str;
    /// The lowest and the highest version spoken.
    const VERSIONS: (i16, i16);
    /// The layout of the answer, the same in all versions spoken.
    const SHAPE: &'static [Shape];

    /// How long the broker will read nothing from this connection, in milliseconds (KIP-219).
    fn throttle_millis(answer: &Self::Response) -> i32;
}

/// A request that a coordinator answers.
pub(crate) trait CoordinatorRequest: Request {
    /// The error in an answer, if there is one.
    fn refusal(answer: &Self::Response) -> Refusal;
}

/// The first error code in an answer, and what of the request it is about, where the answer says so.
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) about: Option<String>,
}

macro_rules! refusals {
    ($($request:ident: |$answer:ident| $codes:expr;)*) => {
        $(impl CoordinatorRequest for m::$request {
            fn refusal($answer: &Self::Response) -> Refusal {
                let code = $codes.into_iter().map(ErrorCode).find(|code| *code != ErrorCode::NONE);
                Refusal { code: code.unwrap_or(ErrorCode::NONE), about: None }
            }
        })*
    };
}

refusals! {
    HeartbeatRequest: |answer| [answer.error_code];
    SyncGroupRequest: |answer| [answer.error_code];
    InitProducerIdRequest: |answer| [answer.error_code];
    EndTxnRequest: |answer| [answer.error_code];
    AddOffsetsToTxnRequest: |answer| [answer.error_code];
    // MEMBER_ID_REQUIRED brings something along, and is looked at by who has asked.
    JoinGroupRequest: |answer| Some(answer.error_code).filter(|code| *code != ErrorCode::MEMBER_ID_REQUIRED.0);
    LeaveGroupRequest: |answer| [answer.error_code].into_iter().chain(answer.members.iter().map(|member| member.error_code));
    OffsetCommitRequest: |answer| answer.topics.iter().flat_map(|topic| &topic.partitions).map(|at| at.error_code);
    TxnOffsetCommitRequest: |answer| answer.topics.iter().flat_map(|topic| &topic.partitions).map(|at| at.error_code);
    DescribeGroupsRequest: |answer| answer.groups.iter().map(|group| group.error_code);
    ConsumerGroupDescribeRequest: |answer| answer.groups.iter().map(|group| group.error_code);
    OffsetFetchRequest: |answer| answer.groups.iter().flat_map(|group| {
        let partitions = group.topics.iter().flat_map(|topic| &topic.partitions);
        [group.error_code].into_iter().chain(partitions.map(|at| at.error_code))
    });
}

macro_rules! throttle {
    ($answer:ident) => {
        $answer.throttle_time_ms
    };
    ($answer:ident never) => {{
        let _ = $answer;
        0
    }};
}

macro_rules! requests {
    ($($api:ident: $request:ident -> $response:ident, $low:literal..=$high:literal, $shape:expr $(, $never:ident)?;)*) => {
        $(impl Request for m::$request {
            type Response = m::$response;
            const KEY: ApiKey = ApiKey::$api;
            const API: &'static str = stringify!($api);
            const VERSIONS: (i16, i16) = ($low, $high);
            const SHAPE: &'static [Shape] = &$shape;

            fn throttle_millis(answer: &Self::Response) -> i32 {
                throttle!(answer $($never)?)
            }
        })*
    };
}

const END: Shape = Tags(&[]);
/// A partition's number and its error code, in many answers.
const PARTITION_ERROR: Shape = Array(&[Fixed(4 + 2), END]);
/// A throttle time and topics, each with its partitions' error codes.
const TOPIC_ERRORS: [Shape; 3] = [Fixed(4), Array(&[Compact, PARTITION_ERROR, END]), END];

requests! {
    // The first request on a connection: version 2 is not flexible yet and understood by every broker.
    ApiVersions: ApiVersionsRequest -> ApiVersionsResponse, 2..=2,
        [Fixed(2), OldArray(&[Fixed(6)]), Fixed(4)];
    // From 1 on the mechanism's messages travel in SaslAuthenticate (KIP-152).
    SaslHandshake: SaslHandshakeRequest -> SaslHandshakeResponse, 1..=1, [Fixed(2), OldArray(&[OldString])], never;
    // A session's lifetime since 1 (KIP-368).
    SaslAuthenticate: SaslAuthenticateRequest -> SaslAuthenticateResponse, 2..=2,
        [Fixed(2), Compact, Compact, Fixed(8), END], never;
    // Topic ids in the answer since 10, in the request since 12 (KIP-516).
    Metadata: MetadataRequest -> MetadataResponse, 12..=12,
        [Fixed(4), Array(&[Fixed(4), Compact, Fixed(4), Compact, END]), Compact, Fixed(4),
         Array(&[Fixed(2), Compact, Fixed(16 + 1), Array(METADATA_PARTITION), Fixed(4), END]), END];
    // Several keys in one request since 4 (KIP-699).
    FindCoordinator: FindCoordinatorRequest -> FindCoordinatorResponse, 4..=6,
        [Fixed(4), Array(&[Compact, Fixed(4), Compact, Fixed(4 + 2), Compact, END]), END];
    // Topic ids in the answer since 7.
    CreateTopics: CreateTopicsRequest -> CreateTopicsResponse, 7..=7,
        [Fixed(4), Array(&[Compact, Fixed(16 + 2), Compact, Fixed(4 + 2),
         Array(&[Compact, Compact, Fixed(3), END]), END]), END];
    DeleteTopics: DeleteTopicsRequest -> DeleteTopicsResponse, 6..=6,
        [Fixed(4), Array(&[Compact, Fixed(16 + 2), Compact, END]), END];
    DescribeConfigs: DescribeConfigsRequest -> DescribeConfigsResponse, 4..=4,
        [Fixed(4), Array(&[Fixed(2), Compact, Fixed(1), Compact, Array(CONFIG), END]), END];
    DescribeGroups: DescribeGroupsRequest -> DescribeGroupsResponse, 5..=5,
        [Fixed(4), Array(&[Fixed(2), Compact, Compact, Compact, Compact,
         Array(&[Compact, Compact, Compact, Compact, Compact, Compact, END]), Fixed(4), END]), END];
    // Members of the newer protocol (KIP-848), since Kafka 3.7; a broker need not know it. 1 tells how each has joined.
    ConsumerGroupDescribe: ConsumerGroupDescribeRequest -> ConsumerGroupDescribeResponse, 0..=0,
        [Fixed(4), Array(&[Fixed(2), Compact, Compact, Compact, Fixed(4 + 4), Compact,
         Array(CONSUMER_MEMBER), Fixed(4), END]), END];
    ListOffsets: ListOffsetsRequest -> ListOffsetsResponse, 7..=7,
        [Fixed(4), Array(&[Compact, Array(&[Fixed(4 + 2 + 8 + 8 + 4), END]), END]), END];
    // From 4 on a fenced producer is told PRODUCER_FENCED (KIP-588).
    InitProducerId: InitProducerIdRequest -> InitProducerIdResponse, 4..=4,
        [Fixed(4 + 2 + 8 + 2), END];
    // 4 and 5 are offered by brokers but are for brokers only (KIP-890).
    AddPartitionsToTxn: AddPartitionsToTxnRequest -> AddPartitionsToTxnResponse, 3..=3, TOPIC_ERRORS;
    AddOffsetsToTxn: AddOffsetsToTxnRequest -> AddOffsetsToTxnResponse, 3..=3, [Fixed(4 + 2), END];
    // Capped for transaction version 1, see above.
    TxnOffsetCommit: TxnOffsetCommitRequest -> TxnOffsetCommitResponse, 3..=4, TOPIC_ERRORS;
    EndTxn: EndTxnRequest -> EndTxnResponse, 3..=4, [Fixed(4 + 2), END];
    Produce: ProduceRequest -> ProduceResponse, 9..=11,
        [Array(&[Compact, Array(PRODUCED), END]), Fixed(4),
         Tags(&[(0, &[Array(&[Fixed(4), Compact, Fixed(4), Compact, END])])])];
    // 13 names topics by their id, so a topic that was deleted and made anew is not taken for the old one (KIP-516).
    Fetch: FetchRequest -> FetchResponse, 13..=13,
        [Fixed(4 + 2 + 4), Array(&[Fixed(16), Array(FETCHED), END]), END];
    OffsetCommit: OffsetCommitRequest -> OffsetCommitResponse, 8..=8, TOPIC_ERRORS;
    // Several groups in one request since 8, require_stable since 7 (KIP-447).
    OffsetFetch: OffsetFetchRequest -> OffsetFetchResponse, 8..=8,
        [Fixed(4), Array(&[Compact, Array(&[Compact, Array(OFFSET), END]), Fixed(2), END]), END];
    JoinGroup: JoinGroupRequest -> JoinGroupResponse, 9..=9,
        [Fixed(4 + 2 + 4), Compact, Compact, Compact, Fixed(1), Compact,
         Array(&[Compact, Compact, Compact, END]), END];
    SyncGroup: SyncGroupRequest -> SyncGroupResponse, 5..=5,
        [Fixed(4 + 2), Compact, Compact, Compact, END];
    Heartbeat: HeartbeatRequest -> HeartbeatResponse, 4..=4, [Fixed(4 + 2), END];
    LeaveGroup: LeaveGroupRequest -> LeaveGroupResponse, 5..=5,
        [Fixed(4 + 2), Array(&[Compact, Compact, Fixed(2), END]), END];
}

/// One structure a line, as the protocol's message files have them.
macro_rules! shapes {
    ($($(#[$doc:meta])* $name:ident = $shape:expr;)*) => {
        $($(#[$doc])* const $name: &[Shape] = &$shape;)*
    };
}

shapes! {
    /// Name, value; read-only, source, sensitive; synonyms; type; documentation.
    CONFIG = [Compact, Compact, Fixed(3), Array(&[Compact, Compact, Fixed(1), END]), Fixed(1), Compact, END];
    /// Ids of member, instance and rack; epoch; client's id and host; topics, their pattern; what it has, what it will have.
    CONSUMER_MEMBER = [Compact, Compact, Compact, Fixed(4), Compact, Compact, Array(&[Compact]), Compact,
        Array(ASSIGNED), END, Array(ASSIGNED), END, END];
    /// Topic's id, name; partitions.
    ASSIGNED = [Fixed(16), Compact, Array(&[Fixed(4)]), END];
    /// Error, number, leader, leader's epoch; replicas, those in sync, those offline.
    METADATA_PARTITION = [Fixed(2 + 4 + 4 + 4), Array(&[Fixed(4)]), Array(&[Fixed(4)]), Array(&[Fixed(4)]), END];
    /// Number, error, base offset, append time, log start; refused records; the broker's words.
    PRODUCED = [Fixed(4 + 2 + 8 + 8 + 8), Array(&[Fixed(4), Compact, END]), Compact, END];
    /// Number, error, high watermark, last stable offset, log start; aborted transactions; preferred replica; records.
    FETCHED = [Fixed(4 + 2 + 8 + 8 + 8), Array(&[Fixed(8 + 8), END]), Fixed(4), Compact, END];
    /// Partition, offset, leader epoch; metadata; error.
    OFFSET = [Fixed(4 + 8 + 4), Compact, Fixed(2), END];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout;
    use bytes::Bytes;
    use proptest::prelude::*;

    /// What a connection does with an answer's body.
    fn decode<R: Request>(body: &Bytes) -> bool {
        (R::VERSIONS.0..=R::VERSIONS.1).all(|version| {
            layout::check(body, R::SHAPE).is_ok()
                && R::Response::decode(&mut body.clone(), version).is_ok()
        })
    }

    fn decode_as_all(body: &Bytes) {
        decode::<m::ApiVersionsRequest>(body);
        decode::<m::SaslHandshakeRequest>(body);
        decode::<m::SaslAuthenticateRequest>(body);
        decode::<m::MetadataRequest>(body);
        decode::<m::FindCoordinatorRequest>(body);
        decode::<m::CreateTopicsRequest>(body);
        decode::<m::DeleteTopicsRequest>(body);
        decode::<m::DescribeConfigsRequest>(body);
        decode::<m::ConsumerGroupDescribeRequest>(body);
        decode::<m::ListOffsetsRequest>(body);
        decode::<m::InitProducerIdRequest>(body);
        decode::<m::AddPartitionsToTxnRequest>(body);
        decode::<m::AddOffsetsToTxnRequest>(body);
        decode::<m::TxnOffsetCommitRequest>(body);
        decode::<m::EndTxnRequest>(body);
        decode::<m::ProduceRequest>(body);
        decode::<m::FetchRequest>(body);
        decode::<m::OffsetCommitRequest>(body);
        decode::<m::OffsetFetchRequest>(body);
        decode::<m::JoinGroupRequest>(body);
        decode::<m::SyncGroupRequest>(body);
        decode::<m::HeartbeatRequest>(body);
        decode::<m::LeaveGroupRequest>(body);
    }

    #[test]
    fn an_array_of_four_billion_elements_is_refused_before_anything_is_reserved() {
        let mut body = vec![0, 0, 0, 0];
        body.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(!decode::<m::MetadataRequest>(&Bytes::from(body)));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_in_any_answer(body in prop::collection::vec(any::<u8>(), 0..200)) {
            decode_as_all(&Bytes::from(body));
        }

        /// Mostly zeros and small numbers, so that the walk gets deep.
        #[test]
        fn plausible_bytes_never_panic_in_any_answer(
            body in prop::collection::vec(prop_oneof![4 => Just(0u8), 2 => 0u8..4, 1 => any::<u8>()], 0..300)
        ) {
            decode_as_all(&Bytes::from(body));
        }
    }
}
