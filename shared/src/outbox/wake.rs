//! Waking the relay: at once from the committing thread where this instance leads, else by NOTIFY, sent after the
//! commit in a transaction of its own (inside one it would serialise the commits of the whole server). A leader that stops wakes
//! the followers.
//!
//! Where this instance leads, the committing thread hands over what it has appended, and the relay need not read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use postgres::fallible_iterator::FallibleIterator;
use uuid::Uuid;

use crate::db::pool::Connection;
use crate::db::{Connector, Session};
use crate::error::{Error, Result};
use crate::event::Service;
use crate::heartbeat;
use crate::outbox::Appended;
use crate::outbox::leader::UNLED;
use crate::outbox::memory::Memory;
use crate::shutdown::Shutdown;
use crate::worker::Worker;

/// How long a notification wait lasts before the stop is looked at.
const SLICE: Duration = Duration::from_millis(250);

/// Called after a commit that appended.
#[derive(Clone)]
pub struct Waker {
    relay: Sender<()>,
    notify: Sender<()>,
    leads: Arc<AtomicBool>,
    memory: Arc<Memory>,
}

/// The ends that the relay and the two threads of this module hold.
pub struct Wakeups {
    /// Fed by every kind of wake-up; one waiting signal stands for all.
    pub relay: Receiver<()>,
    /// Set by the relay while it leads.
    pub leads: Arc<AtomicBool>,
    /// What was handed over.
    pub memory: Arc<Memory>,
    notify: Receiver<()>,
    feed: Sender<()>,
}

/// A waker and what it wakes.
pub fn channel() -> (Waker, Wakeups) {
    let (relay_sender, relay) = bounded(1);
    let (notify_sender, notify) = bounded(1);
    let leads = Arc::new(AtomicBool::new(false));
    let memory = Arc::new(Memory::default());
    let waker = Waker {
        relay: relay_sender.clone(),
        notify: notify_sender,
        leads: leads.clone(),
        memory: memory.clone(),
    };
    (
        waker,
        Wakeups {
            relay,
            leads,
            memory,
            notify,
            feed: relay_sender,
        },
    )
}

impl Waker {
    /// After the commit of an append: hands over its rows, each with its order and messages, and wakes the leader's relay, wherever it
    /// runs. `appended`: what the append has said. Never blocks for long; a lost wake-up is made good by the relay's slow poll.
    pub fn wake(
        &self,
        appended: Option<&Appended>,
        rows: impl IntoIterator<Item = (Uuid, String)>,
    ) {
        let target = if self.leads.load(Ordering::Relaxed) {
            self.memory.hand_over(appended, rows.into_iter().collect());
            &self.relay
        } else {
            &self.notify
        };
        let _ = target.try_send(());
    }
}

/// Notifies the leader of commits on this instance.
pub struct Notifier {
    /// What it is fed by.
    pub wakeups: Arc<Wakeups>,
    /// Whose outbox it is.
    pub service: Service,
    /// Its own.
    pub connection: Connection,
}

impl Worker for Notifier {
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        select! {
            recv(self.wakeups.notify) -> _ => {}
            recv(shutdown.receiver()) -> _ => return Ok(Duration::ZERO),
            default(heartbeat::IDLE) => return Ok(Duration::ZERO),
        }
        let sql = format!("notify {}", self.service.outbox());
        self.connection
            .with(|session| session.batch_execute(&sql))?;
        Ok(Duration::ZERO)
    }

    fn report(&mut self, error: &Error, _: u32, _: Duration) {
        log::debug!("the leader was not notified of a commit, its slow poll will see it: {error}");
    }
}

/// Hears of commits on other instances.
pub struct Listener {
    wakeups: Arc<Wakeups>,
    service: Service,
    connector: Connector,
    /// The session that listens, while there is one.
    session: Option<Session>,
}

impl Listener {
    /// Connects to nothing yet. `wakeups`: what it feeds; `service`: whose outbox it is; `connector`: opens its session.
    pub fn new(wakeups: Arc<Wakeups>, service: Service, connector: Connector) -> Listener {
        Listener {
            wakeups,
            service,
            connector,
            session: None,
        }
    }

    fn listen(&mut self) -> Result<()> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                let mut session = self.connector.connect()?;
                session.batch_execute(&format!("listen {}", self.service.outbox()))?;
                session
            }
        };
        let heard = session
            .client()
            .notifications()
            .timeout_iter(SLICE)
            .next()?;
        self.session = Some(session);
        // a follower has nothing to do for a commit
        let leads = self.wakeups.leads.load(Ordering::Relaxed);
        if heard.is_some_and(|heard| leads || heard.payload() == UNLED) {
            self.wakeups.memory.must_read();
            let _ = self.wakeups.feed.try_send(());
        }
        Ok(())
    }
}

impl Worker for Listener {
    fn turn(&mut self, _: &Shutdown) -> Result<Duration> {
        self.listen()?;
        Ok(Duration::ZERO)
    }

    fn report(&mut self, error: &Error, _: u32, _: Duration) {
        log::debug!("not listening for commits of other instances: {error}");
    }
}
