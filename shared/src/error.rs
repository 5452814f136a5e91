//! What can go wrong under a handler. Each error blames the message, a server, or nobody ([`Blame`]);
//! [`crate::consumer`] says what follows. Not the message's fault are a clash of unique keys (those are ours) and
//! constraints of tables that hold nothing of messages.

use postgres::error::{DbError, Severity, SqlState};

/// An error below the services' business.
#[derive(Debug)]
pub enum Error {
    /// PostgreSQL refused, or its connection broke.
    Database(postgres::Error),
    /// Kafka refused, or its connection broke.
    Kafka(kafka::Error),
    /// A server that answers can't be used as it is: a standby, a read-only database, a pooler that keeps no sessions; the text
    /// says which, and what to do. Nothing was changed.
    Unusable(String),
    /// Another instance was faster: the offsets moved, or the leadership is lost. Nothing was changed.
    LostRace(String),
    /// A handler lacks something from outside of the database: [`crate::handler::Handler::prepare`] fetches it, and then the same
    /// work can be done again. Nothing was changed.
    Unprepared,
    /// A handler panicked; the text is what it said.
    Panic(String),
    /// A stop was asked for before the service had started; the text says what it waited for.
    Stopped(String),
    /// Going on would break an invariant: the service must stop and a person must look.
    Fatal(String),
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The message itself can't be handled: what it says breaks a rule of the tables that hold it (SQLSTATE classes 22 and 23),
    /// or a caught panic.
    Poison,
    /// Everything else, a server, a lock, a grant, a limit: retried without end.
    Transient,
    /// A lost race: read again and go on.
    Conflict,
}

crate::names! { Blame: Poison = "poison", Transient = "transient", Conflict = "conflict" }

/// Why a record was parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its bytes are not one of the saga's events.
    Undecodable,
    /// Handling it failed by its own fault, in all attempts.
    GivenUp,
    /// An answer about an order that does not exist here, and of which Kafka holds nothing either.
    UnknownOrder,
    /// It contradicts what was handled before, and nothing can be done about it here: a second request with other amounts; an
    /// answer that takes back what a COMPLETED order has.
    Contradiction,
    /// Records that Kafka no longer has.
    LogGap,
}

crate::names! { Cause:
    Undecodable = "UNDECODABLE", GivenUp = "GIVEN_UP", UnknownOrder = "UNKNOWN_ORDER",
    Contradiction = "CONTRADICTION", LogGap = "LOG_GAP",
}

impl Error {
    /// Whose fault the error is.
    pub fn blame(&self) -> Blame {
        match self {
            Error::Panic(_) => Blame::Poison,
            Error::Database(error) if error.as_db_error().is_some_and(is_of_message) => {
                Blame::Poison
            }
            Error::LostRace(_) => Blame::Conflict,
            Error::Database(_)
            | Error::Kafka(_)
            | Error::Unusable(_)
            | Error::Unprepared
            | Error::Stopped(_)
            | Error::Fatal(_) => Blame::Transient,
        }
    }

    /// Whether the session with PostgreSQL is over: its connection broke, or the server ended it (severity FATAL, as at
    /// a shutdown; the client itself notices that a moment later), or it is of no use any more, and the next one may lead
    /// elsewhere ([`Connector::connect`](crate::db::Connector::connect) then says why not).
    pub fn is_lost_session(&self) -> bool {
        let Error::Database(error) = self else {
            return matches!(self, Error::Unusable(_));
        };
        if self.is_about_sessions() || error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            return true;
        }
        let ended = error.as_db_error().and_then(DbError::parsed_severity);
        let broken =
            std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>());
        error.is_closed() || broken || matches!(ended, Some(Severity::Fatal | Severity::Panic))
    }

    /// Whether a statement that the session has prepared is gone, or was there before: its session is not its own.
    pub fn is_about_sessions(&self) -> bool {
        let Error::Database(error) = self else {
            return false;
        };
        error.code().is_some_and(|code| OF_SESSIONS.contains(code))
    }

    /// Whether it is certain that the failed call has changed nothing: the server answered it, or it was not made.
    pub fn changed_nothing(&self) -> bool {
        match self {
            // a session that is ended while its commit waits for a standby has committed: such an error is FATAL
            Error::Database(error) => {
                error.as_db_error().and_then(DbError::parsed_severity) == Some(Severity::Error)
            }
            Error::Unusable(_) | Error::LostRace(_) | Error::Unprepared => true,
            Error::Kafka(_) | Error::Panic(_) | Error::Stopped(_) | Error::Fatal(_) => false,
        }
    }

    /// Why a request can't be served, in words for the client.
    pub fn for_clients(&self) -> String {
        match self {
            Error::Kafka(_) => "Kafka is not there".into(),
            Error::Unusable(why) => why.clone(),
            _ if self.is_lock_timeout() => {
                "another database session holds a row or table that this call needs".into()
            }
            _ if self.is_time_limit() => "the database took too long".into(),
            Error::Database(cause) if turned_away(cause) => {
                format!("the database refuses us: {}", describe_database(cause))
            }
            Error::Database(cause) if cause.as_db_error().is_some() && !self.is_lost_session() => {
                format!("the database refuses: {self}")
            }
            _ => "the database is not there".into(),
        }
    }

    /// Whether a server does not take us for who we say we are, or we do not take it for the one that we trust: at the start
    /// that is a mistake in the settings. (SQLSTATE class 28 is an invalid authorization.)
    pub fn is_refusal(&self) -> bool {
        match self {
            Error::Kafka(kafka::Error::Security { .. }) => true,
            Error::Kafka(error @ kafka::Error::Refused { .. }) => {
                error.kind() == kafka::ErrorKind::Fatal
            }
            Error::Database(error) => {
                let source = std::error::Error::source(error)
                    .and_then(|cause| cause.downcast_ref::<std::io::Error>());
                let distrust = source
                    .and_then(|io| io.get_ref())
                    .is_some_and(|inner| inner.is::<rustls::Error>());
                distrust
                    || error
                        .code()
                        .is_some_and(|code| code.code().starts_with("28"))
            }
            _ => false,
        }
    }

    /// Whether PostgreSQL gave up because a statement or a lock took too long (SQLSTATE 57014, 55P03).
    pub fn is_time_limit(&self) -> bool {
        let canceled = matches!(self, Error::Database(error) if error.code() == Some(&SqlState::QUERY_CANCELED));
        canceled || self.is_lock_timeout()
    }

    /// Whether PostgreSQL gave up waiting for a lock (SQLSTATE 55P03).
    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, Error::Database(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }
}

/// What a pooler must keep.
pub(crate) const NEEDS_SESSIONS: &str = "a pooler between this service and its database gives each transaction another session \
    (PgBouncer with pool_mode=transaction or statement), but prepared statements, locks and notifications need one of their own: \
    set pool_mode=session for this database, or give the server's own address";

/// Why a server can't be used, and what to do.
pub(crate) fn explain(what: &str, error: Error) -> String {
    match error {
        Error::Fatal(why) | Error::Unusable(why) => why,
        error if error.is_refusal() => match error {
            Error::Kafka(error @ kafka::Error::Refused { .. }) => {
                format!(
                    "{what} refuses: {error}; its user needs the rights that docs/operations.md lists under Deploying"
                )
            }
            error => {
                format!("{what} refuses us, or is not to be trusted: {error}; check the settings")
            }
        },
        Error::Kafka(error @ kafka::Error::Unreachable { .. }) => {
            format!("{error}; have it name an address that this host can reach")
        }
        Error::Kafka(error) => {
            let protocol = "KAFKA_SECURITY_PROTOCOL is what its listener there speaks";
            format!(
                "{what} is not there: {error}; check its address and that it runs, and that {protocol}"
            )
        }
        Error::Database(cause) if turned_away(&cause) => {
            let why = describe_database(&cause);
            format!(
                "{what} refuses: {why}; check the database's URL and what the server grants its user"
            )
        }
        error => format!("{what} is not there: {error}; check its address and that it runs"),
    }
}

/// SQLSTATE classes by which a server ends a session, or opens none, although the same settings will do in a while: it stops or
/// starts (57), the connection broke (08), a time limit has passed (25), a standby must go on (40).
const OF_LOST_SESSIONS: [&str; 4] = ["57", "08", "25", "40"];

/// Whether the server is there and gives no session: no such database, no right, too many connections, no TLS.
fn turned_away(error: &postgres::Error) -> bool {
    error.as_db_error().map_or_else(
        || std::error::Error::source(error).is_some_and(|cause| cause.to_string() == NO_TLS),
        |answer| {
            answer.parsed_severity() == Some(Severity::Fatal)
                && !OF_LOST_SESSIONS.contains(&&answer.code().code()[..2])
        },
    )
}

/// What the `postgres` crate says of a server without TLS where the settings ask for it.
const NO_TLS: &str = "server does not support TLS";

const OF_SESSIONS: [SqlState; 2] = [
    SqlState::INVALID_SQL_STATEMENT_NAME,
    SqlState::DUPLICATE_PSTATEMENT,
];

/// The tables that hold what messages say. Constraints of all others are our own affair.
const OF_MESSAGES: [&str; 9] = [
    "orders",
    "timeline",
    "account",
    "payment",
    "item",
    "reservation",
    "order_outbox",
    "payment_outbox",
    "stock_outbox",
];

/// Our functions that are given what messages say.
const OF_EVENTS: [&str; 2] = ["append_outbox", "place_new_orders"];

/// Class 22 is a data exception, class 23 an integrity constraint violation (PostgreSQL, appendix A). Of the first a sequence's
/// end, a parameter's value and a length (none of our columns has one) are none of the message's; of the second, what is unique is a
/// key of ours, and what a message leaves out was noticed before. What fails in a trigger of somebody else's is his.
/// (A trigger that says no names no table.)
fn is_of_message(error: &DbError) -> bool {
    const OURS: [SqlState; 3] = [
        SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED,
        SqlState::INVALID_PARAMETER_VALUE,
        SqlState::STRING_DATA_RIGHT_TRUNCATION,
    ];
    let code = error.code();
    let of_class = match &code.code()[..2] {
        "22" => !OURS.contains(code),
        "23" => {
            ![SqlState::UNIQUE_VIOLATION, SqlState::NOT_NULL_VIOLATION].contains(code)
                && error
                    .table()
                    .is_none_or(|table| OF_MESSAGES.contains(&table))
        }
        _ => false,
    };
    of_class
        && !(code.code().starts_with("22") && error.where_().is_some_and(is_in_function_of_others))
}

/// `context` as PostgreSQL gives it: `PL/pgSQL function audit() line 3 at SQL statement`.
fn is_in_function_of_others(context: &str) -> bool {
    context
        .lines()
        .filter_map(|line| {
            line.strip_prefix("PL/pgSQL function ")
                .and_then(|rest| rest.split('(').next())
                .map(str::to_string)
        })
        .any(|name| !OF_EVENTS.contains(&name.rsplit('.').next().unwrap_or_default()))
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Database(error) if self.is_about_sessions() => {
                write!(
                    f,
                    "PostgreSQL: {}: {NEEDS_SESSIONS}",
                    describe_database(error)
                )
            }
            Error::Database(error) => write!(f, "PostgreSQL: {}", describe_database(error)),
            Error::Kafka(error) => write!(f, "Kafka: {error}"),
            Error::Unusable(why) => write!(f, "{why}"),
            Error::LostRace(what) => write!(f, "lost a race: {what}"),
            Error::Unprepared => write!(f, "what a handler lacked was not fetched"),
            Error::Panic(what) => write!(f, "panic: {what}"),
            Error::Stopped(what) | Error::Fatal(what) => write!(f, "{what}"),
        }
    }
}

/// The crate's own text says only "db error": the server's message, code and constraint say what it was.
fn describe_database(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!(
            "{} (SQLSTATE {}{})",
            db.message(),
            db.code().code(),
            db.constraint()
                .map(|name| format!(", constraint {name}"))
                .unwrap_or_default()
        ),
        None => std::error::Error::source(error)
            .map_or(error.to_string(), |cause| format!("{error}: {cause}")),
    }
}

impl std::error::Error for Error {}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Error {
        Error::Database(error)
    }
}

impl From<kafka::Error> for Error {
    fn from(error: kafka::Error) -> Error {
        Error::Kafka(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Fatal(error.to_string())
    }
}
