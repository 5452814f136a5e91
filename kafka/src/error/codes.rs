//! Kafka's error codes: for each its name, who has to act on it, and what has to be found out or made anew first.
//!
//! The codes are those of Kafka 4.3 (`Errors`). Retriable is what Kafka's own clients retry: its `RetriableException`s, with
//! metadata looked up again after an `InvalidMetadataException`, the coordinator after those that say it is elsewhere. What ends an
//! epoch or a membership is retriable too, by the steps that [`Refresh`] names. A code that is not listed is fatal.
//!
//! Where this table knows better than the class of Kafka's exception, a comment says so.

use crate::error::ErrorCode;
use crate::error::ErrorKind::{self, Fatal, Fenced, Retriable};

use Refresh::{Coordinator, Epoch, Membership, Metadata, Nothing};
use Written::{Maybe, Not};

/// What has to happen before a request that got a code is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    /// A moment's wait, or for a fatal code nothing that this client can do.
    Nothing,
    /// Leaders, topic ids and brokers are looked up again.
    Metadata,
    /// The coordinator is looked up again.
    Coordinator,
    /// The producer is initialised again.
    Epoch,
    /// The member joins its group again.
    Membership,
}

/// Whether a batch may be in the log although its Produce request got a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// A broker gives this code only before it writes anything.
    Not,
    Maybe,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) code: i16,
    pub(crate) name: &'static str,
    pub(crate) kind: ErrorKind,
    pub(crate) refresh: Refresh,
    pub(crate) written: Written,
}

const fn row(code: i16, name: &'static str, kind: ErrorKind, refresh: Refresh, written: Written) -> Known {
    Known { code, name, kind, refresh, written }
}

/// The row of a code; `None` for NONE and for codes of a later Kafka.
pub(crate) fn known(code: ErrorCode) -> Option<&'static Known> {
    TABLE.binary_search_by_key(&code.0, |known| known.code).ok().map(|index| &TABLE[index])
}

/// Sorted by code.
const TABLE: [Known; 134] = [
    row(-1, "UNKNOWN_SERVER_ERROR", Fatal, Nothing, Maybe),
    row(1, "OFFSET_OUT_OF_RANGE", Fatal, Nothing, Maybe),
    row(2, "CORRUPT_MESSAGE", Retriable, Nothing, Not),
    row(3, "UNKNOWN_TOPIC_OR_PARTITION", Retriable, Metadata, Not),
    row(4, "INVALID_FETCH_SIZE", Fatal, Nothing, Maybe),
    row(5, "LEADER_NOT_AVAILABLE", Retriable, Metadata, Maybe),
    row(6, "NOT_LEADER_OR_FOLLOWER", Retriable, Metadata, Maybe),
    // The Java client, too, takes a coordinator that answers this for one that is gone.
    row(7, "REQUEST_TIMED_OUT", Retriable, Coordinator, Maybe),
    row(8, "BROKER_NOT_AVAILABLE", Fatal, Nothing, Maybe),
    row(9, "REPLICA_NOT_AVAILABLE", Retriable, Metadata, Maybe),
    row(10, "MESSAGE_TOO_LARGE", Fatal, Nothing, Not),
    row(11, "STALE_CONTROLLER_EPOCH", Fatal, Nothing, Maybe),
    row(12, "OFFSET_METADATA_TOO_LARGE", Fatal, Nothing, Maybe),
    row(13, "NETWORK_EXCEPTION", Retriable, Metadata, Maybe),
    row(14, "COORDINATOR_LOAD_IN_PROGRESS", Retriable, Nothing, Maybe),
    row(15, "COORDINATOR_NOT_AVAILABLE", Retriable, Coordinator, Maybe),
    row(16, "NOT_COORDINATOR", Retriable, Coordinator, Maybe),
    row(17, "INVALID_TOPIC_EXCEPTION", Fatal, Nothing, Not),
    row(18, "RECORD_LIST_TOO_LARGE", Fatal, Nothing, Not),
    row(19, "NOT_ENOUGH_REPLICAS", Retriable, Nothing, Not),
    row(20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND", Retriable, Nothing, Maybe),
    row(21, "INVALID_REQUIRED_ACKS", Fatal, Nothing, Maybe),
    // Its place is lost: the member joins again, under a new id.
    row(22, "ILLEGAL_GENERATION", Retriable, Membership, Maybe),
    row(23, "INCONSISTENT_GROUP_PROTOCOL", Fatal, Nothing, Maybe),
    row(24, "INVALID_GROUP_ID", Fatal, Nothing, Maybe),
    row(25, "UNKNOWN_MEMBER_ID", Retriable, Membership, Maybe),
    row(26, "INVALID_SESSION_TIMEOUT", Fatal, Nothing, Maybe),
    row(27, "REBALANCE_IN_PROGRESS", Retriable, Membership, Maybe),
    row(28, "INVALID_COMMIT_OFFSET_SIZE", Fatal, Nothing, Maybe),
    row(29, "TOPIC_AUTHORIZATION_FAILED", Fatal, Nothing, Not),
    row(30, "GROUP_AUTHORIZATION_FAILED", Fatal, Nothing, Maybe),
    row(31, "CLUSTER_AUTHORIZATION_FAILED", Fatal, Nothing, Not),
    row(32, "INVALID_TIMESTAMP", Fatal, Nothing, Not),
    row(33, "UNSUPPORTED_SASL_MECHANISM", Fatal, Nothing, Maybe),
    row(34, "ILLEGAL_SASL_STATE", Fatal, Nothing, Maybe),
    row(35, "UNSUPPORTED_VERSION", Fatal, Nothing, Maybe),
    row(36, "TOPIC_ALREADY_EXISTS", Fatal, Nothing, Maybe),
    row(37, "INVALID_PARTITIONS", Fatal, Nothing, Maybe),
    row(38, "INVALID_REPLICATION_FACTOR", Fatal, Nothing, Maybe),
    row(39, "INVALID_REPLICA_ASSIGNMENT", Fatal, Nothing, Maybe),
    row(40, "INVALID_CONFIG", Fatal, Nothing, Maybe),
    // Brokers hand such requests on to the controller; one that does not knows an old one.
    row(41, "NOT_CONTROLLER", Retriable, Metadata, Maybe),
    row(42, "INVALID_REQUEST", Fatal, Nothing, Maybe),
    row(43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", Fatal, Nothing, Not),
    row(44, "POLICY_VIOLATION", Fatal, Nothing, Not),
    // As for the Java client since KIP-360, a new epoch ends each of these; none of them can be got over under the old one.
    row(45, "OUT_OF_ORDER_SEQUENCE_NUMBER", Retriable, Epoch, Maybe),
    row(46, "DUPLICATE_SEQUENCE_NUMBER", Retriable, Epoch, Maybe),
    row(47, "INVALID_PRODUCER_EPOCH", Fenced, Epoch, Maybe),
    row(48, "INVALID_TXN_STATE", Retriable, Epoch, Maybe),
    row(49, "INVALID_PRODUCER_ID_MAPPING", Retriable, Epoch, Maybe),
    row(50, "INVALID_TRANSACTION_TIMEOUT", Fatal, Nothing, Maybe),
    row(51, "CONCURRENT_TRANSACTIONS", Retriable, Nothing, Not),
    row(52, "TRANSACTION_COORDINATOR_FENCED", Fatal, Nothing, Maybe),
    row(53, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", Fatal, Nothing, Not),
    row(54, "SECURITY_DISABLED", Fatal, Nothing, Maybe),
    row(55, "OPERATION_NOT_ATTEMPTED", Fatal, Nothing, Maybe),
    row(56, "KAFKA_STORAGE_ERROR", Retriable, Metadata, Maybe),
    row(57, "LOG_DIR_NOT_FOUND", Fatal, Nothing, Maybe),
    row(58, "SASL_AUTHENTICATION_FAILED", Fatal, Nothing, Maybe),
    row(59, "UNKNOWN_PRODUCER_ID", Retriable, Epoch, Maybe),
    row(60, "REASSIGNMENT_IN_PROGRESS", Fatal, Nothing, Maybe),
    row(61, "DELEGATION_TOKEN_AUTH_DISABLED", Fatal, Nothing, Maybe),
    row(62, "DELEGATION_TOKEN_NOT_FOUND", Fatal, Nothing, Maybe),
    row(63, "DELEGATION_TOKEN_OWNER_MISMATCH", Fatal, Nothing, Maybe),
    row(64, "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", Fatal, Nothing, Maybe),
    row(65, "DELEGATION_TOKEN_AUTHORIZATION_FAILED", Fatal, Nothing, Maybe),
    row(66, "DELEGATION_TOKEN_EXPIRED", Fatal, Nothing, Maybe),
    row(67, "INVALID_PRINCIPAL_TYPE", Fatal, Nothing, Maybe),
    row(68, "NON_EMPTY_GROUP", Fatal, Nothing, Maybe),
    row(69, "GROUP_ID_NOT_FOUND", Fatal, Nothing, Maybe),
    row(70, "FETCH_SESSION_ID_NOT_FOUND", Retriable, Nothing, Maybe),
    row(71, "INVALID_FETCH_SESSION_EPOCH", Retriable, Nothing, Maybe),
    row(72, "LISTENER_NOT_FOUND", Retriable, Metadata, Maybe),
    row(73, "TOPIC_DELETION_DISABLED", Fatal, Nothing, Maybe),
    row(74, "FENCED_LEADER_EPOCH", Retriable, Metadata, Maybe),
    row(75, "UNKNOWN_LEADER_EPOCH", Retriable, Nothing, Maybe),
    row(76, "UNSUPPORTED_COMPRESSION_TYPE", Fatal, Nothing, Not),
    row(77, "STALE_BROKER_EPOCH", Fatal, Nothing, Maybe),
    row(78, "OFFSET_NOT_AVAILABLE", Retriable, Nothing, Maybe),
    row(79, "MEMBER_ID_REQUIRED", Retriable, Membership, Maybe),
    row(80, "PREFERRED_LEADER_NOT_AVAILABLE", Retriable, Metadata, Maybe),
    row(81, "GROUP_MAX_SIZE_REACHED", Fatal, Nothing, Maybe),
    row(82, "FENCED_INSTANCE_ID", Fatal, Nothing, Maybe),
    row(83, "ELIGIBLE_LEADERS_NOT_AVAILABLE", Retriable, Metadata, Maybe),
    row(84, "ELECTION_NOT_NEEDED", Retriable, Metadata, Maybe),
    row(85, "NO_REASSIGNMENT_IN_PROGRESS", Fatal, Nothing, Maybe),
    row(86, "GROUP_SUBSCRIBED_TO_TOPIC", Fatal, Nothing, Maybe),
    row(87, "INVALID_RECORD", Fatal, Nothing, Not),
    row(88, "UNSTABLE_OFFSET_COMMIT", Retriable, Nothing, Maybe),
    row(89, "THROTTLING_QUOTA_EXCEEDED", Retriable, Nothing, Maybe),
    row(90, "PRODUCER_FENCED", Fenced, Epoch, Maybe),
    row(91, "RESOURCE_NOT_FOUND", Fatal, Nothing, Maybe),
    row(92, "DUPLICATE_RESOURCE", Fatal, Nothing, Maybe),
    row(93, "UNACCEPTABLE_CREDENTIAL", Fatal, Nothing, Maybe),
    row(94, "INCONSISTENT_VOTER_SET", Fatal, Nothing, Maybe),
    row(95, "INVALID_UPDATE_VERSION", Fatal, Nothing, Maybe),
    row(96, "FEATURE_UPDATE_FAILED", Fatal, Nothing, Maybe),
    row(97, "PRINCIPAL_DESERIALIZATION_FAILURE", Fatal, Nothing, Maybe),
    row(98, "SNAPSHOT_NOT_FOUND", Fatal, Nothing, Maybe),
    row(99, "POSITION_OUT_OF_RANGE", Fatal, Nothing, Maybe),
    row(100, "UNKNOWN_TOPIC_ID", Retriable, Metadata, Maybe),
    row(101, "DUPLICATE_BROKER_REGISTRATION", Fatal, Nothing, Maybe),
    row(102, "BROKER_ID_NOT_REGISTERED", Fatal, Nothing, Maybe),
    row(103, "INCONSISTENT_TOPIC_ID", Retriable, Metadata, Maybe),
    row(104, "INCONSISTENT_CLUSTER_ID", Fatal, Nothing, Maybe),
    row(105, "TRANSACTIONAL_ID_NOT_FOUND", Fatal, Nothing, Maybe),
    row(106, "FETCH_SESSION_TOPIC_ID_ERROR", Retriable, Nothing, Maybe),
    row(107, "INELIGIBLE_REPLICA", Fatal, Nothing, Maybe),
    row(108, "NEW_LEADER_ELECTED", Fatal, Nothing, Maybe),
    row(109, "OFFSET_MOVED_TO_TIERED_STORAGE", Fatal, Nothing, Maybe),
    // For members of the newer group protocol; a member of ours that met them would be one no longer.
    row(110, "FENCED_MEMBER_EPOCH", Retriable, Membership, Maybe),
    row(111, "UNRELEASED_INSTANCE_ID", Fatal, Nothing, Maybe),
    row(112, "UNSUPPORTED_ASSIGNOR", Fatal, Nothing, Maybe),
    row(113, "STALE_MEMBER_EPOCH", Retriable, Membership, Maybe),
    row(114, "MISMATCHED_ENDPOINT_TYPE", Fatal, Nothing, Maybe),
    row(115, "UNSUPPORTED_ENDPOINT_TYPE", Fatal, Nothing, Maybe),
    row(116, "UNKNOWN_CONTROLLER_ID", Fatal, Nothing, Maybe),
    row(117, "UNKNOWN_SUBSCRIPTION_ID", Fatal, Nothing, Maybe),
    row(118, "TELEMETRY_TOO_LARGE", Fatal, Nothing, Maybe),
    row(119, "INVALID_REGISTRATION", Fatal, Nothing, Maybe),
    // An abort would do; a new epoch aborts, and is right also where the answer to that was lost.
    row(120, "TRANSACTION_ABORTABLE", Retriable, Epoch, Maybe),
    row(121, "INVALID_RECORD_STATE", Fatal, Nothing, Maybe),
    row(122, "SHARE_SESSION_NOT_FOUND", Retriable, Nothing, Maybe),
    row(123, "INVALID_SHARE_SESSION_EPOCH", Retriable, Nothing, Maybe),
    row(124, "FENCED_STATE_EPOCH", Fatal, Nothing, Maybe),
    row(125, "INVALID_VOTER_KEY", Fatal, Nothing, Maybe),
    row(126, "DUPLICATE_VOTER", Fatal, Nothing, Maybe),
    row(127, "VOTER_NOT_FOUND", Fatal, Nothing, Maybe),
    row(128, "INVALID_REGULAR_EXPRESSION", Fatal, Nothing, Maybe),
    // The brokers known are of no use: the bootstrap addresses are asked.
    row(129, "REBOOTSTRAP_REQUIRED", Retriable, Metadata, Maybe),
    row(130, "STREAMS_INVALID_TOPOLOGY", Fatal, Nothing, Maybe),
    row(131, "STREAMS_INVALID_TOPOLOGY_EPOCH", Fatal, Nothing, Maybe),
    row(132, "STREAMS_TOPOLOGY_FENCED", Fatal, Nothing, Maybe),
    row(133, "SHARE_SESSION_LIMIT_REACHED", Retriable, Nothing, Maybe),
];

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::ResponseError;

    /// Listed once more, by what a caller has to do. What is in none of these is fatal.
    const WAIT: &str = "CORRUPT_MESSAGE COORDINATOR_LOAD_IN_PROGRESS NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND \
        CONCURRENT_TRANSACTIONS FETCH_SESSION_ID_NOT_FOUND INVALID_FETCH_SESSION_EPOCH FETCH_SESSION_TOPIC_ID_ERROR \
        UNKNOWN_LEADER_EPOCH OFFSET_NOT_AVAILABLE UNSTABLE_OFFSET_COMMIT THROTTLING_QUOTA_EXCEEDED \
        SHARE_SESSION_NOT_FOUND INVALID_SHARE_SESSION_EPOCH SHARE_SESSION_LIMIT_REACHED";
    const FIND_THE_LEADER: &str = "UNKNOWN_TOPIC_OR_PARTITION LEADER_NOT_AVAILABLE NOT_LEADER_OR_FOLLOWER NETWORK_EXCEPTION \
        REPLICA_NOT_AVAILABLE KAFKA_STORAGE_ERROR NOT_CONTROLLER LISTENER_NOT_FOUND FENCED_LEADER_EPOCH UNKNOWN_TOPIC_ID \
        INCONSISTENT_TOPIC_ID PREFERRED_LEADER_NOT_AVAILABLE ELIGIBLE_LEADERS_NOT_AVAILABLE ELECTION_NOT_NEEDED \
        REBOOTSTRAP_REQUIRED";
    const FIND_THE_COORDINATOR: &str = "COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR REQUEST_TIMED_OUT";
    const INITIALISE: &str = "OUT_OF_ORDER_SEQUENCE_NUMBER DUPLICATE_SEQUENCE_NUMBER UNKNOWN_PRODUCER_ID \
        INVALID_PRODUCER_ID_MAPPING INVALID_TXN_STATE TRANSACTION_ABORTABLE";
    const GIVE_WAY: &str = "PRODUCER_FENCED INVALID_PRODUCER_EPOCH";
    const JOIN: &str = "REBALANCE_IN_PROGRESS ILLEGAL_GENERATION UNKNOWN_MEMBER_ID MEMBER_ID_REQUIRED \
        FENCED_MEMBER_EPOCH STALE_MEMBER_EPOCH";

    /// All names, from code 1 on.
    const NAMES: &str = "OFFSET_OUT_OF_RANGE CORRUPT_MESSAGE UNKNOWN_TOPIC_OR_PARTITION INVALID_FETCH_SIZE \
        LEADER_NOT_AVAILABLE NOT_LEADER_OR_FOLLOWER REQUEST_TIMED_OUT BROKER_NOT_AVAILABLE REPLICA_NOT_AVAILABLE \
        MESSAGE_TOO_LARGE STALE_CONTROLLER_EPOCH OFFSET_METADATA_TOO_LARGE NETWORK_EXCEPTION \
        COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR INVALID_TOPIC_EXCEPTION \
        RECORD_LIST_TOO_LARGE NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND INVALID_REQUIRED_ACKS \
        ILLEGAL_GENERATION INCONSISTENT_GROUP_PROTOCOL INVALID_GROUP_ID UNKNOWN_MEMBER_ID INVALID_SESSION_TIMEOUT \
        REBALANCE_IN_PROGRESS INVALID_COMMIT_OFFSET_SIZE TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED \
        CLUSTER_AUTHORIZATION_FAILED INVALID_TIMESTAMP UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE \
        UNSUPPORTED_VERSION TOPIC_ALREADY_EXISTS INVALID_PARTITIONS INVALID_REPLICATION_FACTOR \
        INVALID_REPLICA_ASSIGNMENT INVALID_CONFIG NOT_CONTROLLER INVALID_REQUEST UNSUPPORTED_FOR_MESSAGE_FORMAT \
        POLICY_VIOLATION OUT_OF_ORDER_SEQUENCE_NUMBER DUPLICATE_SEQUENCE_NUMBER INVALID_PRODUCER_EPOCH \
        INVALID_TXN_STATE INVALID_PRODUCER_ID_MAPPING INVALID_TRANSACTION_TIMEOUT CONCURRENT_TRANSACTIONS \
        TRANSACTION_COORDINATOR_FENCED TRANSACTIONAL_ID_AUTHORIZATION_FAILED SECURITY_DISABLED \
        OPERATION_NOT_ATTEMPTED KAFKA_STORAGE_ERROR LOG_DIR_NOT_FOUND SASL_AUTHENTICATION_FAILED UNKNOWN_PRODUCER_ID \
        REASSIGNMENT_IN_PROGRESS DELEGATION_TOKEN_AUTH_DISABLED DELEGATION_TOKEN_NOT_FOUND \
        DELEGATION_TOKEN_OWNER_MISMATCH DELEGATION_TOKEN_REQUEST_NOT_ALLOWED DELEGATION_TOKEN_AUTHORIZATION_FAILED \
        DELEGATION_TOKEN_EXPIRED INVALID_PRINCIPAL_TYPE NON_EMPTY_GROUP GROUP_ID_NOT_FOUND FETCH_SESSION_ID_NOT_FOUND \
        INVALID_FETCH_SESSION_EPOCH LISTENER_NOT_FOUND TOPIC_DELETION_DISABLED FENCED_LEADER_EPOCH UNKNOWN_LEADER_EPOCH \
        UNSUPPORTED_COMPRESSION_TYPE STALE_BROKER_EPOCH OFFSET_NOT_AVAILABLE MEMBER_ID_REQUIRED \
        PREFERRED_LEADER_NOT_AVAILABLE GROUP_MAX_SIZE_REACHED FENCED_INSTANCE_ID ELIGIBLE_LEADERS_NOT_AVAILABLE \
        ELECTION_NOT_NEEDED NO_REASSIGNMENT_IN_PROGRESS GROUP_SUBSCRIBED_TO_TOPIC INVALID_RECORD UNSTABLE_OFFSET_COMMIT \
        THROTTLING_QUOTA_EXCEEDED PRODUCER_FENCED RESOURCE_NOT_FOUND DUPLICATE_RESOURCE UNACCEPTABLE_CREDENTIAL \
        INCONSISTENT_VOTER_SET INVALID_UPDATE_VERSION FEATURE_UPDATE_FAILED PRINCIPAL_DESERIALIZATION_FAILURE \
        SNAPSHOT_NOT_FOUND POSITION_OUT_OF_RANGE UNKNOWN_TOPIC_ID DUPLICATE_BROKER_REGISTRATION \
        BROKER_ID_NOT_REGISTERED INCONSISTENT_TOPIC_ID INCONSISTENT_CLUSTER_ID TRANSACTIONAL_ID_NOT_FOUND \
        FETCH_SESSION_TOPIC_ID_ERROR INELIGIBLE_REPLICA NEW_LEADER_ELECTED OFFSET_MOVED_TO_TIERED_STORAGE \
        FENCED_MEMBER_EPOCH UNRELEASED_INSTANCE_ID UNSUPPORTED_ASSIGNOR STALE_MEMBER_EPOCH MISMATCHED_ENDPOINT_TYPE \
        UNSUPPORTED_ENDPOINT_TYPE UNKNOWN_CONTROLLER_ID UNKNOWN_SUBSCRIPTION_ID TELEMETRY_TOO_LARGE \
        INVALID_REGISTRATION TRANSACTION_ABORTABLE INVALID_RECORD_STATE SHARE_SESSION_NOT_FOUND \
        INVALID_SHARE_SESSION_EPOCH FENCED_STATE_EPOCH INVALID_VOTER_KEY DUPLICATE_VOTER VOTER_NOT_FOUND \
        INVALID_REGULAR_EXPRESSION REBOOTSTRAP_REQUIRED STREAMS_INVALID_TOPOLOGY STREAMS_INVALID_TOPOLOGY_EPOCH \
        STREAMS_TOPOLOGY_FENCED SHARE_SESSION_LIMIT_REACHED";

    fn all() -> impl Iterator<Item = ErrorCode> {
        (-1..=133).filter(|code| *code != 0).map(ErrorCode)
    }

    fn is_in(list: &str, code: ErrorCode) -> bool {
        list.split_whitespace().any(|name| name == code.to_string())
    }

    #[test]
    fn every_code_is_listed_once_in_order_and_shown_under_kafkas_name() {
        assert_eq!(TABLE.map(|known| known.code).to_vec(), all().map(|code| code.0).collect::<Vec<_>>());
        let shown: Vec<String> = (1..=133).map(|code| ErrorCode(code).to_string()).collect();
        assert_eq!(shown, NAMES.split_whitespace().collect::<Vec<_>>());
        assert_eq!(ErrorCode(-1).to_string(), "UNKNOWN_SERVER_ERROR");
        assert_eq!(ErrorCode(0).to_string(), "NONE");
        for unlisted in [i16::MIN, -2, 134, i16::MAX] {
            assert_eq!(ErrorCode(unlisted).to_string(), format!("error code {unlisted}"));
            assert_eq!(ErrorCode(unlisted).kind(), Fatal);
            assert!(!ErrorCode(unlisted).refuses_before_writing());
        }
    }

    #[test]
    fn every_code_has_the_kind_and_the_refresh_that_its_name_stands_for() {
        let classes = [
            (WAIT, Retriable, Nothing),
            (FIND_THE_LEADER, Retriable, Metadata),
            (FIND_THE_COORDINATOR, Retriable, Coordinator),
            (INITIALISE, Retriable, Epoch),
            (JOIN, Retriable, Membership),
            (GIVE_WAY, Fenced, Epoch),
        ];
        let listed: usize = classes.iter().map(|(list, ..)| list.split_whitespace().count()).sum();
        assert_eq!(all().filter(|code| code.kind() != Fatal).count(), listed);
        for code in all() {
            let class = classes.iter().find(|(list, ..)| is_in(list, code));
            let (kind, refresh) = class.map_or((Fatal, Nothing), |(_, kind, refresh)| (*kind, *refresh));
            assert_eq!((code.kind(), code.refresh()), (kind, refresh), "{code}");
        }
    }

    /// The codec crate has a list of retriable codes of its own.
    #[test]
    fn what_passes_is_what_the_codec_calls_retriable_but_for_two() {
        for code in all() {
            let retriable = ResponseError::try_from_code(code.0).is_some_and(|error| error.is_retriable());
            // The first only says that the last transaction's markers are still being written, the second to ask elsewhere.
            let known_better = is_in("CONCURRENT_TRANSACTIONS REBOOTSTRAP_REQUIRED", code);
            assert_eq!(code.passes(), retriable || known_better, "{code}");
        }
    }

    #[test]
    fn only_these_refuse_a_batch_before_anything_is_written() {
        let refusals = "CORRUPT_MESSAGE UNKNOWN_TOPIC_OR_PARTITION MESSAGE_TOO_LARGE INVALID_TOPIC_EXCEPTION \
            RECORD_LIST_TOO_LARGE NOT_ENOUGH_REPLICAS TOPIC_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED \
            INVALID_TIMESTAMP UNSUPPORTED_FOR_MESSAGE_FORMAT POLICY_VIOLATION CONCURRENT_TRANSACTIONS \
            TRANSACTIONAL_ID_AUTHORIZATION_FAILED UNSUPPORTED_COMPRESSION_TYPE INVALID_RECORD";
        for code in all() {
            assert_eq!(code.refuses_before_writing(), is_in(refusals, code), "{code}");
        }
    }
}
