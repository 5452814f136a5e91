//! PostgreSQL sessions: every limit set by the session itself, statements prepared once per connection, a watchdog over
//! every call.
//!
//! * Each session sets READ COMMITTED, `synchronous_commit = on` and all time limits ([`Limits`]) itself.
//! * Its first call checks whether the server can be written, and refuses it otherwise. An error that shows that a
//!   session is of no more use (read-only, prepared statements gone) drops it, so the next one may lead elsewhere.
//! * At the start two sessions check whether each sees its own settings only: behind a pooler of transactions they do
//!   not.
//!
//! **Plans**: every statement finds its rows by keys, through an index, however few or many rows a table has today. So
//! each session plans it once, for the indexes. By itself PostgreSQL would plan these statements anew at every call,
//! because the length of an array is part of the estimate. That costs a lone order more than the statement. A plan made
//! while a table was empty would scan it when it is full.
//!
//! **HOT updates**: rows that change in place have `fillfactor` 50 and no index on what changes. That is why there is
//! no index on an order's status; `GET /orders?status=` looks at 10,000 orders for one page at most and gives a `next`.
//!
//! What queries returns the errors of PostgreSQL and of the connection, here and in all modules: `# Errors` names
//! others only.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use postgres::types::ToSql;
use postgres::{Client, Row, SimpleQueryMessage, Statement, Transaction};

use crate::error::{Error, NEEDS_SESSIONS, Result};
use tls::Target;
use watchdog::Busy;

pub mod cleanup;
pub mod migrations;
pub mod pool;
pub mod tls;
pub mod watchdog;

/// Parameters of a statement, in the `postgres` crate's form.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A server that does not answer within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Sent data unacknowledged for so long ends the connection (TCP_USER_TIMEOUT).
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// The same with what comes before the first statement: a server that accepts and is silent is away too.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// A call beyond this ends the process ([`watchdog`]).
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// The time limits that a session sets for itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `statement_timeout`.
    pub statement: Duration,
    /// `lock_timeout`.
    pub lock: Duration,
    /// `idle_in_transaction_session_timeout`: cuts off a writer frozen between append and COMMIT.
    pub idle_in_transaction: Duration,
    /// `idle_session_timeout`; zero: none.
    pub idle: Duration,
}

impl Limits {
    /// For sessions that handle requests and records.
    pub const WORK: Limits = Limits {
        statement: Duration::from_secs(30),
        lock: Duration::from_secs(5),
        idle_in_transaction: Duration::from_secs(5),
        idle: Duration::ZERO,
    };
    /// For sessions that serve HTTP calls: a call that waits for a row keeps one of the few that run at once.
    pub const CALL: Limits = Limits {
        lock: Duration::from_secs(1),
        ..Limits::WORK
    };
    /// For sessions that only look on.
    pub const MONITOR: Limits = Limits {
        statement: Duration::from_secs(5),
        lock: Duration::from_secs(1),
        idle_in_transaction: Duration::from_secs(5),
        idle: Duration::ZERO,
    };
    /// For the relay's leader: a frozen process's kernel keeps answering, so only the server's own limits let a
    /// successor be elected.
    pub const LEADER: Limits = Limits {
        statement: Duration::from_secs(10),
        lock: Duration::from_secs(3),
        idle_in_transaction: Duration::from_secs(3),
        idle: Duration::from_secs(3),
    };

    /// Rows that a policy would hide are missed by nobody: with `row_security` off PostgreSQL refuses the statement instead.
    /// The plans are the module's. (The cost that PostgreSQL adds to what is turned off would set off its compiler, hence `jit`.)
    fn as_sql(&self) -> String {
        format!(
            "set session characteristics as transaction isolation level read committed; set synchronous_commit = on;
             set plan_cache_mode = force_generic_plan; set jit = off;
             set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off;
             set row_security = off; set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {};
             set idle_session_timeout = {}",
            self.statement.as_millis(),
            self.lock.as_millis(),
            self.idle_in_transaction.as_millis(),
            self.idle.as_millis()
        )
    }
}

/// How to open sessions to one database.
#[derive(Clone)]
pub struct Connector {
    target: Target,
    limits: Limits,
}

impl Connector {
    /// `url` as libpq takes it; `name` shows in `pg_stat_activity`.
    ///
    /// # Errors
    /// When the URL can't be parsed.
    pub fn new(url: &str, name: &str, limits: Limits) -> Result<Connector> {
        let mut target = Target::parse(url).map_err(Error::Fatal)?;
        let config = &mut target.config;
        config
            .application_name(name)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(TCP_USER_TIMEOUT);
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        Ok(Connector { target, limits })
    }

    /// The same, with other limits.
    pub fn with_limits(&self, limits: Limits) -> Connector {
        Connector {
            limits,
            ..self.clone()
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// When the server is away, refuses, or does not know a limit (older than 14); [`Error::Unusable`] when nothing can be
    /// written there; [`Error::Fatal`] when the database can't hold every text.
    pub fn connect(&self) -> Result<Session> {
        let busy = watchdog::register();
        let opening = Busy::new(&busy, OPEN_LIMIT);
        let mut client = self.target.connect()?;
        let answers = client.simple_query(&format!("{}; {STATE}", self.limits.as_sql()))?;
        drop(opening);
        answers.iter().try_for_each(require_usable)?;
        Ok(Session {
            client,
            statements: HashMap::new(),
            busy,
        })
    }

    /// Whether sessions last: what one has set is there at its next statement, and not in another one.
    ///
    /// # Errors
    /// [`Error::Fatal`] if they do not; as [`Connector::connect`].
    pub fn require_sessions(&self) -> Result<()> {
        let (mut first, mut second) = (self.connect()?, self.connect()?);
        first.batch_execute("set saga.session = 'first'")?;
        // a statement that was prepared and is gone says the same
        let in_both = session_setting(&mut second)
            .and_then(|second| Ok([session_setting(&mut first)?, second]));
        match in_both {
            Ok([Some(first), second])
                if first == "first" && second.as_deref().unwrap_or_default().is_empty() =>
            {
                Ok(())
            }
            Ok(_) => Err(Error::Fatal(NEEDS_SESSIONS.into())),
            Err(error) if error.is_about_sessions() => Err(Error::Fatal(NEEDS_SESSIONS.into())),
            Err(error) => Err(error),
        }
    }
}

fn session_setting(session: &mut Session) -> Result<Option<String>> {
    Ok(session.query("select current_setting('saga.session', true)", &[])?[0].get(0))
}

/// What must be right about a server before anything is done there, in the answer to the session's first statements.
const STATE: &str = "select pg_is_in_recovery() as standby, current_setting('transaction_read_only') as read_only,
                            current_setting('server_encoding') as encoding, current_database() as name";

fn require_usable(answer: &SimpleQueryMessage) -> Result<()> {
    let SimpleQueryMessage::Row(row) = answer else {
        return Ok(());
    };
    let name = row.get("name").unwrap_or_default();
    if row.get("standby") == Some("t") {
        return Err(Error::Unusable(format!(
            "the server of database {name} is a standby, where nothing can be written: promote it, or give the primary's address"
        )));
    }
    if row.get("read_only") == Some("on") {
        return Err(Error::Unusable(format!(
            "database {name} is read-only (default_transaction_read_only is on): set it to off, for the server, the database and \
             the role, once the reason is mended (a full disk, a switchover)"
        )));
    }
    match row.get("encoding") {
        Some("UTF8") | None => Ok(()),
        Some(encoding) => Err(Error::Fatal(format!(
            "database {name} has the encoding {encoding}, which can't hold every name and message: make it anew with \
             `create database … encoding 'UTF8' template template0`"
        ))),
    }
}

/// The parameters of a statement that takes rows by `unnest`: of each row a value for each column, in the order of their `$n`;
/// then whatever else the statement takes. They live as long as the call that they stand in.
///
/// ```
/// # fn raise(session: &mut shared::db::Session) -> shared::error::Result<()> {
/// # use shared::db::Query;
/// let prices = [("lamp", 3_i64), ("book", 5)];
/// session.execute(
///     "update item i set price = p.price + $3 from unnest($1::text[], $2::bigint[]) as p (name, price) where i.name = p.name",
///     &shared::columns!(prices, |price| [price.0, price.1], 1_i64),
/// )?;
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! columns {
    ($rows:expr, |$row:pat_param| [$($column:expr),+ $(,)?] $(, $other:expr)* $(,)?) => {
        [
            $(&$rows.iter().map(|row| {
                #[allow(unused_variables)]
                let $row = row;
                $column
            }).collect::<Vec<_>>() as &(dyn $crate::db::ToSql + Sync),)+
            $(&$other as &(dyn $crate::db::ToSql + Sync),)*
        ]
    };
}

/// What both a session and a transaction can do.
pub trait Query {
    /// Runs a statement, prepared at its first use on this connection.
    fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>>;

    /// The same for a statement that returns no rows; returns how many it touched.
    ///
    /// # Errors
    /// As [`Query::query`].
    fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64>;
}

/// A connection with its prepared statements. Each call is a transaction of its own.
pub struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
    busy: Arc<AtomicU64>,
}

impl Session {
    /// Opens a transaction; dropped without [`Tx::commit`], it is rolled back.
    pub fn transaction(&mut self) -> Result<Tx<'_>> {
        let busy = Busy::new(&self.busy, CALL_LIMIT);
        let inner = self.client.transaction()?;
        Ok(Tx {
            inner,
            statements: &mut self.statements,
            busy,
            after_commit: Vec::new(),
            failed: false,
        })
    }

    /// Runs statements without parameters, as one text.
    pub fn batch_execute(&mut self, sql: &str) -> Result<()> {
        let _busy = Busy::new(&self.busy, CALL_LIMIT);
        Ok(self.client.batch_execute(sql)?)
    }

    /// Whether the connection is known to be broken.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The underlying client, for what only it can do: notifications, migrations.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Query for Session {
    fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        let _busy = Busy::new(&self.busy, CALL_LIMIT);
        let client = &mut self.client;
        let statement = cached(&mut self.statements, sql, |sql| client.prepare(sql))?;
        Ok(self.client.query(&statement, params)?)
    }

    fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64> {
        let _busy = Busy::new(&self.busy, CALL_LIMIT);
        let client = &mut self.client;
        let statement = cached(&mut self.statements, sql, |sql| client.prepare(sql))?;
        Ok(self.client.execute(&statement, params)?)
    }
}

/// An open transaction.
pub struct Tx<'a> {
    inner: Transaction<'a>,
    statements: &'a mut HashMap<String, Statement>,
    busy: Busy,
    after_commit: Vec<Box<dyn FnOnce()>>,
    /// Whether a statement has failed that was not gone back behind.
    failed: bool,
}

/// A place in a transaction that can be gone back to.
pub struct Savepoint {
    actions: usize,
}

impl Tx<'_> {
    /// Runs `action` once this transaction is committed, after the actions before it; never, where it is not.
    pub fn after_commit(&mut self, action: impl FnOnce() + 'static) {
        self.after_commit.push(Box::new(action));
    }

    /// Marks this place.
    ///
    /// # Errors
    /// What PostgreSQL or the connection says.
    pub fn savepoint(&mut self) -> Result<Savepoint> {
        self.execute("savepoint here", &[])?;
        Ok(Savepoint {
            actions: self.after_commit.len(),
        })
    }

    /// Undoes what was done since, and runs no action that was registered since. The locks stay.
    ///
    /// # Errors
    /// What PostgreSQL or the connection says.
    pub fn rollback_to(&mut self, savepoint: &Savepoint) -> Result<()> {
        self.execute("rollback to savepoint here", &[])?;
        self.failed = false;
        self.after_commit.truncate(savepoint.actions);
        Ok(())
    }

    fn run<T>(
        &mut self,
        sql: &str,
        call: impl FnOnce(&mut Transaction<'_>, &Statement) -> std::result::Result<T, postgres::Error>,
    ) -> Result<T> {
        self.busy.renew(CALL_LIMIT);
        let prepared = cached(self.statements, sql, |sql| self.inner.prepare(sql));
        let done = prepared.and_then(|statement| Ok(call(&mut self.inner, &statement)?));
        self.failed |= done.is_err();
        done
    }

    /// Commits, then runs what is to be done after it.
    ///
    /// # Errors
    /// What PostgreSQL or the connection says; after a lost connection the outcome is unknown. [`Error::Fatal`] after a statement that
    /// has failed: the server would roll back, and the `postgres` crate return Ok.
    pub fn commit(self) -> Result<()> {
        if self.failed {
            return Err(Error::Fatal(
                "a transaction was to be committed in which a statement had failed".into(),
            ));
        }
        self.inner.commit()?;
        for action in self.after_commit {
            action();
        }
        Ok(())
    }
}

impl Query for Tx<'_> {
    fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.run(sql, |inner, statement| inner.query(statement, params))
    }

    fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64> {
        self.run(sql, |inner, statement| inner.execute(statement, params))
    }
}

/// The cache is bounded by the number of statements in the code.
fn cached(
    statements: &mut HashMap<String, Statement>,
    sql: &str,
    prepare: impl FnOnce(&str) -> std::result::Result<Statement, postgres::Error>,
) -> Result<Statement> {
    if let Some(statement) = statements.get(sql) {
        return Ok(statement.clone());
    }
    let statement = prepare(sql)?;
    statements.insert(sql.to_string(), statement.clone());
    Ok(statement)
}
