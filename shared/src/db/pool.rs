//! Connections that are opened when needed and dropped when broken: one thread's own, or a few shared ones.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::db::{Connector, Limits, Query, Session};
use crate::error::{Error, Result};
use crate::metrics;

/// One thread's connection: opened when needed, dropped when broken.
pub struct Connection {
    connector: Connector,
    session: Option<Session>,
}

impl Connection {
    /// Opens nothing yet.
    pub fn new(connector: Connector) -> Connection {
        Connection {
            connector,
            session: None,
        }
    }

    /// The live session.
    ///
    /// # Errors
    /// When it must be opened and can't.
    pub fn session(&mut self) -> Result<&mut Session> {
        if self.session.as_ref().is_some_and(Session::is_closed) {
            self.session = None;
        }
        match &mut self.session {
            Some(session) => Ok(session),
            none => Ok(none.insert(self.connector.connect()?)),
        }
    }

    /// Runs `work` once, on a session that was alive a moment ago: for work that must not be done twice.
    ///
    /// # Errors
    /// Those of `work`, and of opening the session.
    pub fn once<T>(&mut self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        self.with(|session| session.query("select 1", &[]))?;
        self.attempt(work)
    }

    /// Runs `work` on the live session, once more on a fresh one if the connection turns out to be broken: for work
    /// that may be done twice.
    ///
    /// # Errors
    /// Those of `work`, and of opening the session.
    pub fn with<T>(&mut self, mut work: impl FnMut(&mut Session) -> Result<T>) -> Result<T> {
        let was_open = self.session.is_some();
        match self.attempt(&mut work) {
            Err(error) if was_open && error.is_lost_session() => self.attempt(work),
            result => result,
        }
    }

    fn attempt<T>(&mut self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let result = self.session().and_then(work);
        if result.as_ref().is_err_and(Error::is_lost_session) {
            self.session = None;
        }
        result
    }
}

/// A few connections shared by the threads that answer requests.
#[derive(Clone)]
pub struct Pool {
    idle: Receiver<Connection>,
    back: Sender<Connection>,
}

impl Pool {
    /// `size` connections, opened at their first use, with the limits of [`Limits::CALL`].
    pub fn new(connector: &Connector, size: usize) -> Pool {
        let connector = connector.with_limits(Limits::CALL);
        let (back, idle) = bounded(size);
        for _ in 0..size {
            back.try_send(Connection::new(connector.clone()))
                .expect("the channel holds `size`");
        }
        let at_rest = idle.clone();
        metrics::watch("database connections of HTTP", size, move || {
            size.saturating_sub(at_rest.len())
        });
        Pool { idle, back }
    }

    /// Waits for a free connection and runs `work` as [`Connection::with`] does.
    ///
    /// # Errors
    /// As [`Connection::with`].
    pub fn with<T>(&self, work: impl FnMut(&mut Session) -> Result<T>) -> Result<T> {
        self.lend(|connection| connection.with(work))
    }

    /// The same as [`Connection::once`] does.
    ///
    /// # Errors
    /// As [`Connection::once`].
    pub fn once<T>(&self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        self.lend(|connection| connection.once(work))
    }

    fn lend<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        // bounded by the statement limits of those who hold the connections, and by the watchdog
        let connection = self.idle.recv().expect("the pool keeps a sender");
        let mut lent = Lent {
            connection: Some(connection),
            back: &self.back,
        };
        work(lent.connection.as_mut().expect("lent until dropped"))
    }
}

/// Gives the connection back also when the work panics.
struct Lent<'a> {
    connection: Option<Connection>,
    back: &'a Sender<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = self.back.try_send(connection);
        }
    }
}
