//! What can go wrong, under Kafka's own names, and who has to act on it.

use std::fmt;
use std::io;
use std::time::Duration;

pub(crate) mod codes;

use kafka_protocol::messages::InitProducerIdRequest;

use crate::error::codes::Refresh;
use crate::wire::protocol::Request;

/// The result of every call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// May pass: the same work can be done again later. A producer that is no longer initialised has to be
    /// initialised first, a group member whose place was lost has to join again.
    Retriable,
    /// Another producer with the same transactional id has taken over, as [`Producer::initialise`](crate::Producer::initialise) tells;
    /// nothing of this one's open transaction will ever be visible.
    Fenced,
    /// Does not pass by itself: the request, the settings or the rights are wrong, or this client was stopped.
    Fatal,
}

/// A broker's error code. Displayed under Kafka's own name, as in `NOT_LEADER_OR_FOLLOWER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub i16);

impl ErrorCode {
    /// No error.
    pub const NONE: ErrorCode = ErrorCode(0);
    /// The offset lies outside of the log.
    pub const OFFSET_OUT_OF_RANGE: ErrorCode = ErrorCode(1);
    /// There is no such topic or partition, or the broker has not heard of it yet.
    pub const UNKNOWN_TOPIC_OR_PARTITION: ErrorCode = ErrorCode(3);
    /// An election is under way.
    pub const LEADER_NOT_AVAILABLE: ErrorCode = ErrorCode(5);
    /// The broker would not take so large a batch (`max.message.bytes`).
    pub const MESSAGE_TOO_LARGE: ErrorCode = ErrorCode(10);
    /// There is no coordinator at the moment, or its topic can't be made.
    pub const COORDINATOR_NOT_AVAILABLE: ErrorCode = ErrorCode(15);
    /// The group has been divided anew since this member joined.
    pub const ILLEGAL_GENERATION: ErrorCode = ErrorCode(22);
    /// The group no longer has this member.
    pub const UNKNOWN_MEMBER_ID: ErrorCode = ErrorCode(25);
    /// The group is being divided anew: its members join again.
    pub const REBALANCE_IN_PROGRESS: ErrorCode = ErrorCode(27);
    /// The user lacks a right on the topic.
    pub const TOPIC_AUTHORIZATION_FAILED: ErrorCode = ErrorCode(29);
    /// The user lacks a right on the cluster.
    pub const CLUSTER_AUTHORIZATION_FAILED: ErrorCode = ErrorCode(31);
    /// There is a topic of this name.
    pub const TOPIC_ALREADY_EXISTS: ErrorCode = ErrorCode(36);
    /// There are fewer brokers than copies are asked for.
    pub const INVALID_REPLICATION_FACTOR: ErrorCode = ErrorCode(38);
    /// The batch does not follow the last one that the partition holds of its producer.
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: ErrorCode = ErrorCode(45);
    /// The batch was written before, more than five batches ago.
    pub const DUPLICATE_SEQUENCE_NUMBER: ErrorCode = ErrorCode(46);
    /// The coordinator has no transaction open, or is ending it otherwise.
    pub const INVALID_TXN_STATE: ErrorCode = ErrorCode(48);
    /// The coordinator no longer knows the transactional id.
    pub const INVALID_PRODUCER_ID_MAPPING: ErrorCode = ErrorCode(49);
    /// The coordinator has not ended the transaction before this one yet.
    pub const CONCURRENT_TRANSACTIONS: ErrorCode = ErrorCode(51);
    /// Another part of the same request was refused.
    pub const OPERATION_NOT_ATTEMPTED: ErrorCode = ErrorCode(55);
    /// The partition holds nothing of the batch's producer, which has written to it before.
    pub const UNKNOWN_PRODUCER_ID: ErrorCode = ErrorCode(59);
    /// There is no such group.
    pub const GROUP_ID_NOT_FOUND: ErrorCode = ErrorCode(69);
    /// A new member comes again with the id that it is given here (KIP-394).
    pub const MEMBER_ID_REQUIRED: ErrorCode = ErrorCode(79);
    /// Another producer has taken over the transactional id, or the transaction ran out of time.
    pub const PRODUCER_FENCED: ErrorCode = ErrorCode(90);

    /// Whether the very same request may succeed a moment later, here or at a new leader or coordinator.
    pub(crate) fn passes(self) -> bool {
        self.kind() == ErrorKind::Retriable && !self.ends_epoch() && !self.ends_membership()
    }

    /// Whether the producer can go on only with a new epoch, that is after InitProducerId.
    pub(crate) fn ends_epoch(self) -> bool {
        self.refresh() == Refresh::Epoch
    }

    /// Whether the partition has lost what this producer wrote before, as by an unclean election.
    pub(crate) fn loses_sequence(self) -> bool {
        matches!(
            self,
            ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER | ErrorCode::UNKNOWN_PRODUCER_ID
        )
    }

    /// Whether the member has to join its group again.
    pub(crate) fn ends_membership(self) -> bool {
        self.refresh() == Refresh::Membership
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(&name),
            None if *self == ErrorCode::NONE => f.write_str("NONE"),
            None => write!(f, "error code {}", self.0),
        }
    }
}

/// Everything a call of this crate can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker answered with an error code.
    #[error("{code} from {api} at {broker}{}", in_brackets(detail))]
    Refused {
        /// Kafka's code.
        code: ErrorCode,
        /// The API that was called, as in `Produce`.
        api: &'static str,
        /// The broker that answered, `host:port`.
        broker: String,
        /// What it is about (a topic-partition, a group) or the broker's own words; may be empty.
        detail: String,
    },
    /// The connection could not be made or was lost.
    #[error("{api} at {broker}: {source}")]
    Io {
        /// The API that was called, or `connect`.
        api: &'static str,
        /// The broker's address.
        broker: String,
        /// The cause.
        source: io::Error,
    },
    /// No connection could be made to an address that is not this client's setting but what a broker told it.
    #[error(
        "the broker at {named_by} tells its clients to go to {broker} (advertised.listeners), which can't be reached \
         from here: {cause}"
    )]
    Unreachable {
        /// The address, `host:port`.
        broker: String,
        /// The broker that told it.
        named_by: String,
        /// Why not.
        cause: String,
    },
    /// The broker is not the one that is trusted, or it does not accept who this client is. It holds no password.
    #[error("{broker}: {cause}")]
    Security {
        /// The broker's address.
        broker: String,
        /// What was refused, by whom.
        cause: String,
    },
    /// No answer within the time limit. The connection was dropped; whether the broker acted is unknown.
    #[error("{api} at {broker}: no answer within {after:?}")]
    Timeout {
        /// The API that was called, or `connect`.
        api: &'static str,
        /// The broker's address.
        broker: String,
        /// How long was waited.
        after: Duration,
    },
    /// The peer announced a frame that is negative, absurdly short or above the limit: most likely it isn't Kafka.
    #[error(
        "{broker} announced a frame of {length} bytes (limit {limit}): is it a Kafka broker? One that expects TLS answers so, too"
    )]
    Frame {
        /// The broker's address.
        broker: String,
        /// The announced length.
        length: i32,
        /// The limit in force.
        limit: usize,
    },
    /// An answer that can't be understood. The connection was dropped.
    #[error("the answer of {api} from {broker} can't be decoded: {cause}")]
    Decode {
        /// The API that was called.
        api: &'static str,
        /// The broker's address.
        broker: String,
        /// What was wrong with it.
        cause: String,
    },
    /// The broker speaks no version of this API that this client speaks.
    #[error("{broker} speaks {api} {offered:?}, this client {spoken:?}")]
    UnsupportedVersion {
        /// The API.
        api: &'static str,
        /// The broker's address.
        broker: String,
        /// The lowest and highest version this client speaks.
        spoken: (i16, i16),
        /// The broker's, or `None` where it does not know the API.
        offered: Option<(i16, i16)>,
    },
    /// Not one of the known addresses could be used. Each is named with its cause.
    #[error("no broker usable: {}", causes.join("; "))]
    NoBroker {
        /// One line an address.
        causes: Vec<String>,
    },
    /// The partition has no leader at the moment, or the topic no such partition.
    #[error("no leader for {topic}-{partition}")]
    NoLeader {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// A transaction is still open in this partition.
    #[error("the transaction at offset {offset} of {partition} was not decided within {after:?}")]
    Undecided {
        /// The partition, `topic-number`.
        partition: String,
        /// The first offset that waits for it.
        offset: i64,
        /// How long was waited.
        after: Duration,
    },
    /// [`Interrupt::interrupt`](crate::Interrupt::interrupt) was called. The object can't be used any more.
    #[error("interrupted")]
    Interrupted,
    /// The producer must be initialised first: it never was, or its last call left open what the broker has done.
    #[error("the producer is not initialised")]
    NotInitialised,
    /// Commit was asked for although a send or commit_offset of this transaction had failed. Nothing was committed.
    #[error("a part of the transaction failed: it can only be aborted")]
    TransactionFailed,
    /// The arguments make no sense; nothing was sent.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Who has to act on it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            // which of the two it is, a successor or a time that ran out, InitProducerId alone tells (KIP-588)
            Error::Refused { code, api, .. }
                if code.kind() == ErrorKind::Fenced && *api != InitProducerIdRequest::API =>
            {
                ErrorKind::Retriable
            }
            Error::Refused { code, .. } => code.kind(),
            Error::Frame { .. } | Error::Decode { .. } | Error::UnsupportedVersion { .. } => {
                ErrorKind::Fatal
            }
            Error::Security { .. } | Error::Interrupted | Error::Invalid(_) => ErrorKind::Fatal,
            _ => ErrorKind::Retriable,
        }
    }

    pub(crate) fn refused<R: Request>(
        code: ErrorCode,
        broker: &str,
        detail: impl Into<String>,
    ) -> Error {
        Error::Refused {
            code,
            api: R::API,
            broker: broker.to_owned(),
            detail: detail.into(),
        }
    }

    pub(crate) fn malformed<R: Request>(broker: &str, cause: impl Into<String>) -> Error {
        Error::Decode {
            api: R::API,
            broker: broker.to_owned(),
            cause: cause.into(),
        }
    }

    /// `Refused`, unless the code is NONE.
    pub(crate) fn check<R: Request>(
        code: i16,
        broker: &str,
        detail: impl fmt::Display,
    ) -> Result<()> {
        match ErrorCode(code) {
            ErrorCode::NONE => Ok(()),
            code => Err(Error::refused::<R>(code, broker, detail.to_string())),
        }
    }

    /// The broker's code, where a broker's answer is the cause.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the coordinator that gave this error, or gave no answer, has to be looked up again.
    pub(crate) fn loses_coordinator(&self) -> bool {
        self.code()
            .is_none_or(|code| code.refresh() == Refresh::Coordinator)
    }

    /// Whether leaders have to be looked up again: nobody was there, or the wrong one.
    pub(crate) fn loses_leader(&self) -> bool {
        self.code()
            .is_none_or(|code| code.refresh() == Refresh::Metadata)
    }

    /// Whether asking again a moment later may succeed, on a new connection, at a new leader or coordinator.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Error::Refused { code, .. } => code.passes(),
            Error::NotInitialised | Error::TransactionFailed => false,
            other => other.kind() == ErrorKind::Retriable,
        }
    }
}

fn in_brackets(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_shown_under_kafkas_names() {
        assert_eq!(ErrorCode(6).to_string(), "NOT_LEADER_OR_FOLLOWER");
        assert_eq!(ErrorCode(10).to_string(), "MESSAGE_TOO_LARGE");
        assert_eq!(ErrorCode(-1).to_string(), "UNKNOWN_SERVER_ERROR");
        assert_eq!(ErrorCode(49).to_string(), "INVALID_PRODUCER_ID_MAPPING");
        assert_eq!(ErrorCode(12345).to_string(), "error code 12345");
    }

    #[test]
    fn both_fencing_codes_are_fenced_and_51_is_retriable() {
        assert_eq!(ErrorCode(47).kind(), ErrorKind::Fenced);
        assert_eq!(ErrorCode(90).kind(), ErrorKind::Fenced);
        assert_eq!(ErrorCode(51).kind(), ErrorKind::Retriable);
        assert_eq!(ErrorCode(10).kind(), ErrorKind::Fatal);
        assert_eq!(ErrorCode(25).kind(), ErrorKind::Retriable);
    }
}
