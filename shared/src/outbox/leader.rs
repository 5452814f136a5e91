//! One relay per database may publish (I6): the one whose session holds an advisory lock.
//!
//! | the leader | how another instance gets the lock | orders are published again after |
//! | --- | --- | --- |
//! | stops in order | it gives the lock back, and notifies the instances that wait for it | at once |
//! | is killed | the server sees the closed connection | 0.3 s |
//! | is frozen, and its kernel keeps answering | the pings stop, and `idle_session_timeout` (3 s) ends the session | 2.5 s |
//! | hangs: the relay's thread makes no progress | the pings stop with the relay's heartbeat; then as above | |
//!
//! The leader's connection pings every second. `tests/saga/instances.rs` prints the times.
//!
//! **Must not be changed**: the relay reads and deletes on the connection that holds the lock, so a relay that lost the
//! lock can't touch the outbox. What it still publishes, of rows that were read or [handed over](super::memory) before, the broker
//! refuses, because its successor has a newer epoch; until there is a successor it is as good as before.

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::db::{Connector, Query, Session};
use crate::error::{Error, Result};
use crate::event::Service;
use crate::shutdown::{self, Stop};
use crate::{heartbeat, metrics};

/// A third of the session's `idle_session_timeout`: two pings may be late before the server ends the session.
const PING: Duration = Duration::from_secs(1);

/// The notification of a leader that stops.
pub const UNLED: &str = "unled";

/// Tries to acquire the lead; keeps its session between tries.
pub struct LeaderElection {
    connector: Connector,
    session: Option<Session>,
}

impl LeaderElection {
    /// `connector` must carry [`crate::db::Limits::LEADER`].
    pub fn new(connector: Connector) -> LeaderElection {
        LeaderElection {
            connector,
            session: None,
        }
    }

    /// One try; none if another session leads. Call it again within `idle_session_timeout`.
    ///
    /// # Errors
    /// When the database is away; the next call connects anew.
    pub fn try_acquire(&mut self, ping_thread: &str) -> Result<Option<Leadership>> {
        let mut session = match self.session.take() {
            Some(session) if !session.is_closed() => session,
            _ => self.connector.connect()?,
        };
        if session.query("select pg_try_advisory_lock(lock_class(), 2)", &[])?[0].get(0) {
            return Ok(Some(Leadership::begin(session, ping_thread)?));
        }
        self.session = Some(session);
        Ok(None)
    }
}

/// The held lock. Dropped, the connection closes and the lock is free.
pub struct Leadership {
    session: Arc<Mutex<Option<Session>>>,
    ping: Option<JoinHandle<()>>,
    stop: Stop,
}

impl Leadership {
    fn begin(session: Session, ping_thread: &str) -> Result<Leadership> {
        let session = Arc::new(Mutex::new(Some(session)));
        let (stop, shutdown) = shutdown::channel();
        let pinged = session.clone();
        // a relay that turns no more must not hold the lock: without pings the server ends its session
        let relay = heartbeat::own_heartbeat();
        let ping = std::thread::Builder::new()
            .name(ping_thread.to_string())
            .spawn(move || {
                while !shutdown.wait(PING) {
                    let is_alive = relay.as_ref().is_none_or(|relay| relay.is_alive());
                    if !keep(&pinged, is_alive) {
                        break;
                    }
                }
            })?;
        Ok(Leadership {
            session,
            ping: Some(ping),
            stop,
        })
    }

    /// Runs `work` on the leader's connection.
    ///
    /// # Errors
    /// Those of `work`; [`Error::LostRace`] once the session was found ended.
    pub fn with<T>(&self, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        match &mut *lock(&self.session) {
            Some(session) => work(session),
            None => Err(lost()),
        }
    }

    /// Releases the lead, and notifies the followers.
    ///
    /// # Errors
    /// As [`Leadership::with`]: the followers find out by themselves.
    pub fn resign(self, service: Service) -> Result<()> {
        let sql = format!(
            "select pg_advisory_unlock(lock_class(), 2); notify {}, '{UNLED}'",
            service.outbox()
        );
        self.with(|session| session.batch_execute(&sql))
    }

    /// Whether the session lives, and so the lock is held: asked of the server.
    ///
    /// # Errors
    /// As [`Leadership::with`].
    pub fn check(&self) -> Result<()> {
        self.with(|session| session.query("select 1", &[]).map(drop))
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(ping) = self.ping.take() {
            let _ = ping.join();
        }
    }
}

/// Whether to go on. Without pings the lead is lost, which a relay that hangs can't show itself: it is shown from here.
fn keep(session: &Mutex<Option<Session>>, is_alive: bool) -> bool {
    let alive = !is_alive || ping(session);
    if !(is_alive && alive) {
        metrics::LEADER.set(0);
    }
    alive
}

/// Keeps the session alive, also while the relay waits for Kafka. A held mutex means that the relay itself is using it.
fn ping(session: &Mutex<Option<Session>>) -> bool {
    let Ok(mut guard) = session.try_lock() else {
        return true;
    };
    let alive = guard
        .as_mut()
        .is_some_and(|session| session.query("select 1", &[]).is_ok());
    if !alive {
        log::warn!("the leader's session was ended: leadership is lost");
        *guard = None;
    }
    alive
}

fn lock(session: &Mutex<Option<Session>>) -> MutexGuard<'_, Option<Session>> {
    session
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn lost() -> Error {
    Error::LostRace("the leader's session was ended".into())
}
