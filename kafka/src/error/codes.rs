//! Kafka's error codes: for each its name, who has to act on it, and what has to be found out or made anew first.
//!
//! The names, and which codes pass by themselves, are the codec's, which has them from Kafka's `Errors` (4.3). What is said here is
//! what a client has to do: metadata is looked up again after an `InvalidMetadataException`, the coordinator after those that
//! say it is elsewhere. What ends an epoch or a membership is retriable too, by the steps that [`Refresh`] names. Any other
//! code is fatal.
//!
//! Where this knows better than the class of Kafka's exception, a comment says so.

use kafka_protocol::ResponseError;

use crate::error::ErrorCode;
use crate::error::ErrorKind::{self, Fatal, Fenced, Retriable};

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

impl ErrorCode {
    /// As Kafka writes it; `None` for NONE and for codes of a later Kafka.
    pub(crate) fn name(self) -> Option<String> {
        let known = ResponseError::try_from_code(self.0)?;
        let mut name = String::new();
        for letter in known.to_string().chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        (!matches!(known, ResponseError::Unknown(_))).then_some(name)
    }

    /// Who has to act on this code. INVALID_PRODUCER_EPOCH (47) and PRODUCER_FENCED (90) are the same news from
    /// different APIs; which one a fenced producer gets depends on the request it sends next. Both also follow a transaction that took longer
    /// than its time: [`Error::kind`](crate::Error::kind) is `Fenced` only where `initialise` was answered so.
    pub fn kind(self) -> ErrorKind {
        use ResponseError::*;
        match ResponseError::try_from_code(self.0) {
            Some(InvalidProducerEpoch | ProducerFenced) => Fenced,
            // It only says that the last transaction's markers are still being written.
            Some(ConcurrentTransactions) => Retriable,
            Some(known) if known.is_retriable() || self.refresh() != Refresh::Nothing => Retriable,
            _ => Fatal,
        }
    }

    /// What has to happen before another try.
    pub(crate) fn refresh(self) -> Refresh {
        use ResponseError::*;
        let Some(known) = ResponseError::try_from_code(self.0) else {
            return Refresh::Nothing;
        };
        match known {
            // Brokers hand what is the controller's on to it; one that does not knows an old one.
            NotController => Refresh::Metadata,
            UnknownTopicOrPartition
            | LeaderNotAvailable
            | NotLeaderOrFollower
            | ReplicaNotAvailable => Refresh::Metadata,
            NetworkException | KafkaStorageError | ListenerNotFound | FencedLeaderEpoch => {
                Refresh::Metadata
            }
            PreferredLeaderNotAvailable | EligibleLeadersNotAvailable | ElectionNotNeeded => {
                Refresh::Metadata
            }
            UnknownTopicId | InconsistentTopicId => Refresh::Metadata,
            // The brokers known are of no use: the bootstrap addresses are asked.
            RebootstrapRequired => Refresh::Metadata,
            // The Java client, too, takes a coordinator that answers REQUEST_TIMED_OUT for one that is gone.
            RequestTimedOut | CoordinatorNotAvailable | NotCoordinator => Refresh::Coordinator,
            // As for the Java client since KIP-360, a new epoch ends each of these; none of them can be got over under the old one.
            OutOfOrderSequenceNumber | DuplicateSequenceNumber | UnknownProducerId => {
                Refresh::Epoch
            }
            InvalidProducerEpoch | ProducerFenced | InvalidTxnState | InvalidProducerIdMapping => {
                Refresh::Epoch
            }
            // An abort would do; a new epoch aborts, and is right also where the answer to that was lost.
            TransactionAbortable => Refresh::Epoch,
            // The member joins again; where its place is lost, under a new id.
            IllegalGeneration | UnknownMemberId | RebalanceInProgress | MemberIdRequired => {
                Refresh::Membership
            }
            // For members of the newer group protocol; a member of ours that met them would be one no longer.
            FencedMemberEpoch | StaleMemberEpoch => Refresh::Membership,
            _ => Refresh::Nothing,
        }
    }

    /// Whether a broker gives this code to a batch only before it writes anything.
    pub(crate) fn refuses_before_writing(self) -> bool {
        use ResponseError::*;
        matches!(
            ResponseError::try_from_code(self.0),
            Some(
                CorruptMessage
                    | UnknownTopicOrPartition
                    | MessageTooLarge
                    | InvalidTopicException
                    | RecordListTooLarge
                    | NotEnoughReplicas
                    | TopicAuthorizationFailed
                    | ClusterAuthorizationFailed
                    | InvalidTimestamp
                    | UnsupportedForMessageFormat
                    | PolicyViolation
                    | ConcurrentTransactions
                    | TransactionalIdAuthorizationFailed
                    | UnsupportedCompressionType
                    | InvalidRecord
            )
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Refresh::{Coordinator, Epoch, Membership, Metadata, Nothing};
    use super::*;

    /// Listed once more, by what a caller has to do. What is in none of these is fatal.
    const WAIT: &str = "CORRUPT_MESSAGE COORDINATOR_LOAD_IN_PROGRESS NOT_ENOUGH_REPLICAS NOT_ENOUGH_REPLICAS_AFTER_APPEND \
        CONCURRENT_TRANSACTIONS FETCH_SESSION_ID_NOT_FOUND INVALID_FETCH_SESSION_EPOCH FETCH_SESSION_TOPIC_ID_ERROR \
        UNKNOWN_LEADER_EPOCH OFFSET_NOT_AVAILABLE UNSTABLE_OFFSET_COMMIT THROTTLING_QUOTA_EXCEEDED \
        SHARE_SESSION_NOT_FOUND INVALID_SHARE_SESSION_EPOCH SHARE_SESSION_LIMIT_REACHED";
    const FIND_THE_LEADER: &str = "UNKNOWN_TOPIC_OR_PARTITION LEADER_NOT_AVAILABLE NOT_LEADER_OR_FOLLOWER NETWORK_EXCEPTION \
        REPLICA_NOT_AVAILABLE KAFKA_STORAGE_ERROR NOT_CONTROLLER LISTENER_NOT_FOUND FENCED_LEADER_EPOCH UNKNOWN_TOPIC_ID \
        INCONSISTENT_TOPIC_ID PREFERRED_LEADER_NOT_AVAILABLE ELIGIBLE_LEADERS_NOT_AVAILABLE ELECTION_NOT_NEEDED \
        REBOOTSTRAP_REQUIRED";
    const FIND_THE_COORDINATOR: &str =
        "COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR REQUEST_TIMED_OUT";
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
    fn every_code_is_shown_under_kafkas_name() {
        let shown: Vec<String> = (1..=133).map(|code| ErrorCode(code).to_string()).collect();
        assert_eq!(shown, NAMES.split_whitespace().collect::<Vec<_>>());
        assert_eq!(ErrorCode(-1).to_string(), "UNKNOWN_SERVER_ERROR");
        assert_eq!(ErrorCode(0).to_string(), "NONE");
        for unlisted in [i16::MIN, -2, 134, i16::MAX] {
            assert_eq!(
                ErrorCode(unlisted).to_string(),
                format!("error code {unlisted}")
            );
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
        let listed: usize = classes
            .iter()
            .map(|(list, ..)| list.split_whitespace().count())
            .sum();
        assert_eq!(all().filter(|code| code.kind() != Fatal).count(), listed);
        for code in all() {
            let class = classes.iter().find(|(list, ..)| is_in(list, code));
            let (kind, refresh) =
                class.map_or((Fatal, Nothing), |(_, kind, refresh)| (*kind, *refresh));
            assert_eq!((code.kind(), code.refresh()), (kind, refresh), "{code}");
        }
    }

    /// The codec crate has a list of retriable codes of its own.
    #[test]
    fn what_passes_is_what_the_codec_calls_retriable_but_for_two() {
        for code in all() {
            let retriable =
                ResponseError::try_from_code(code.0).is_some_and(|error| error.is_retriable());
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
            assert_eq!(
                code.refuses_before_writing(),
                is_in(refusals, code),
                "{code}"
            );
        }
    }
}
