//! Waking the relay: at once from the committing thread where this instance leads, else by NOTIFY, sent after the
//! commit in a transaction of its own (inside one it would serialise the commits of the whole server). A leader that stops wakes
//! the followers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use postgres::Notification;
use postgres::fallible_iterator::FallibleIterator;

use crate::backoff;
use crate::db::pool::Connection;
use crate::db::{Connector, Session};
use crate::error::Result;
use crate::event::Service;
use crate::heartbeat;
use crate::outbox::leader::UNLED;
use crate::shutdown::Shutdown;

/// How long a notification wait lasts before the stop is looked at.
const SLICE: Duration = Duration::from_millis(250);

/// Called after a commit that appended.
#[derive(Clone)]
pub struct Waker {
    relay: Sender<()>,
    notify: Sender<()>,
    leads: Arc<AtomicBool>,
}

/// The ends that the relay and the two threads of this module hold.
pub struct Wakeups {
    /// Fed by every kind of wake-up; one waiting signal stands for all.
    pub relay: Receiver<()>,
    /// Set by the relay while it leads.
    pub leads: Arc<AtomicBool>,
    notify: Receiver<()>,
    feed: Sender<()>,
}

/// A waker and what it wakes.
pub fn channel() -> (Waker, Wakeups) {
    let (relay_sender, relay) = bounded(1);
    let (notify_sender, notify) = bounded(1);
    let leads = Arc::new(AtomicBool::new(false));
    let waker = Waker {
        relay: relay_sender.clone(),
        notify: notify_sender,
        leads: leads.clone(),
    };
    (
        waker,
        Wakeups {
            relay,
            leads,
            notify,
            feed: relay_sender,
        },
    )
}

impl Waker {
    /// Wakes the leader's relay, wherever it runs. Never blocks; a lost wake-up is made good by the relay's slow poll.
    pub fn wake(&self) {
        let target = if self.leads.load(Ordering::Relaxed) {
            &self.relay
        } else {
            &self.notify
        };
        let _ = target.try_send(());
    }
}

impl Wakeups {
    /// The loop of the thread that notifies the leader of commits on this instance.
    pub fn run_notifier(&self, service: Service, connector: Connector, shutdown: &Shutdown) {
        let mut connection = Connection::new(connector);
        let sql = format!("notify {}", service.outbox());
        loop {
            heartbeat::beat();
            select! {
                recv(self.notify) -> _ => {}
                recv(shutdown.receiver()) -> _ => return,
                default(heartbeat::IDLE) => continue,
            }
            if let Err(error) = connection.with(|session| session.batch_execute(&sql)) {
                log::debug!(
                    "the leader was not notified of a commit, its slow poll will see it: {error}"
                );
            }
        }
    }

    /// The loop of the thread that hears of commits on other instances.
    pub fn run_listener(&self, service: Service, connector: &Connector, shutdown: &Shutdown) {
        let mut attempt = 0;
        while !shutdown.is_set() {
            heartbeat::beat();
            attempt += 1;
            let listened = connector
                .connect()
                .and_then(|session| self.listen(service, session, shutdown, &mut attempt));
            if let Err(error) = listened {
                log::debug!("not listening for commits of other instances: {error}");
                shutdown.wait(backoff::delay(attempt));
            }
        }
    }

    fn listen(
        &self,
        service: Service,
        mut session: Session,
        shutdown: &Shutdown,
        attempt: &mut u32,
    ) -> Result<()> {
        session.batch_execute(&format!("listen {}", service.outbox()))?;
        *attempt = 0;
        while !shutdown.is_set() {
            heartbeat::beat();
            let heard = session
                .client()
                .notifications()
                .timeout_iter(SLICE)
                .next()?;
            // a follower has nothing to do for a commit
            let wanted = |heard: Notification| {
                heard.payload() == UNLED || self.leads.load(Ordering::Relaxed)
            };
            if heard.is_some_and(wanted) {
                let _ = self.feed.try_send(());
            }
        }
        Ok(())
    }
}
