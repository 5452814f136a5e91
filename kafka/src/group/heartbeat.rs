//! The heartbeat thread of a group member, with a connection of its own: it keeps the membership alive while the
//! member's thread is busy, and is the first to hear that the group is changing.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::{HeartbeatRequest, LeaveGroupRequest};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::group::GroupConfig;
use crate::interrupt::Interrupt;
use crate::net::backoff::Backoff;
use crate::net::cluster::{Cluster, CoordinatorKey, Retry, group_id};

/// How often the group's topics are looked up: one that was made anew, or has more partitions, must be divided again.
const TOPICS_INTERVAL: Duration = Duration::from_secs(10);

/// Each topic's id and number of partitions, as far as it exists.
pub(crate) type Topics = Vec<Option<(Uuid, usize)>>;

/// What the member's thread and the heartbeat thread share.
pub(crate) struct Shared {
    state: Mutex<State>,
    on_rebalance: Option<Arc<dyn Fn() + Send + Sync>>,
}

struct State {
    /// The last generation joined; `None`: never joined, or left.
    membership: Option<Membership>,
    /// Heartbeats keep this membership.
    kept: bool,
    /// The topics as they were before that join.
    topics: Topics,
    rejoin_needed: bool,
    /// When the member's thread called last; `None`: a call is under way.
    called_at: Option<Instant>,
}

impl State {
    fn outside() -> State {
        State {
            membership: None,
            kept: false,
            topics: Topics::new(),
            rejoin_needed: true,
            called_at: Some(Instant::now()),
        }
    }
}

/// A member's membership in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) generation: i32,
    pub(crate) member_id: StrBytes,
}

impl Shared {
    pub(crate) fn new(on_rebalance: Option<Arc<dyn Fn() + Send + Sync>>) -> Arc<Shared> {
        Arc::new(Shared {
            state: Mutex::new(State::outside()),
            on_rebalance,
        })
    }

    pub(crate) fn membership(&self) -> Option<Membership> {
        self.lock().membership.clone()
    }

    /// The membership heartbeats are to be sent for.
    fn kept_membership(&self) -> Option<Membership> {
        let state = self.lock();
        state.membership.clone().filter(|_| state.kept)
    }

    /// From now on a member of this generation, joined when the topics were like this.
    pub(crate) fn joined(&self, membership: Membership, topics: Topics) {
        *self.lock() = State {
            membership: Some(membership),
            kept: true,
            topics,
            rejoin_needed: false,
            called_at: None,
        };
    }

    /// From now on no member.
    pub(crate) fn left(&self) {
        *self.lock() = State::outside();
    }

    /// The member's thread lives.
    pub(crate) fn called(&self) {
        self.lock().called_at = Some(Instant::now());
    }

    /// Does it; meanwhile the member's thread lives, however long it takes.
    pub(crate) fn in_call<T>(&self, call: impl FnOnce() -> T) -> T {
        self.lock().called_at = None;
        let done = call();
        self.called();
        done
    }

    /// For how long it has not called.
    fn silent_for(&self) -> Duration {
        self.lock()
            .called_at
            .map_or(Duration::ZERO, |at| at.elapsed())
    }

    pub(crate) fn rejoin_needed(&self) -> bool {
        self.lock().rejoin_needed
    }

    /// Marks that the holder of this membership has to join again, unless it has done so meanwhile; calls the hook the
    /// first time. A membership that is `lost` gets no more heartbeats.
    pub(crate) fn need_rejoin(&self, membership: &Membership, lost: bool) {
        let mut state = self.lock();
        if state.membership.as_ref() != Some(membership) {
            return;
        }
        state.kept &= !lost;
        let needed = std::mem::replace(&mut state.rejoin_needed, true);
        drop(state);
        if let (false, Some(hook)) = (needed, &self.on_rebalance) {
            hook();
        }
    }

    /// The state is valid after every statement, so a panic elsewhere under the lock does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running thread.
pub(crate) struct Heartbeat {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts the thread. The member's own interrupt does not end it: a member that is being stopped stays one until
    /// it has finished what it holds and leaves.
    pub(crate) fn start(
        mut config: Config,
        group: GroupConfig,
        shared: Arc<Shared>,
    ) -> io::Result<Heartbeat> {
        let stop = Interrupt::new();
        // a heartbeat that is not answered within the session is worth nothing
        config.api_timeout = config.api_timeout.min(group.session_timeout);
        config.connect_timeout = config.connect_timeout.min(group.session_timeout);
        let cluster = Cluster::new(config, stop.clone());
        let (name, now) = (group.thread_name.clone(), Instant::now());
        let beat = Beat {
            cluster,
            group,
            shared,
            stop: stop.clone(),
            answered: now,
            looked: now,
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || beat.run())?;
        Ok(Heartbeat {
            stop,
            thread: Some(thread),
        })
    }

    /// Whether the thread is there; a panic ends it.
    pub(crate) fn runs(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }
}

/// Stops the thread and waits for its end, which is a matter of milliseconds, at most of the connect timeout.
impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop.interrupt();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::error!("the heartbeat thread panicked");
        }
    }
}

struct Beat {
    cluster: Cluster,
    group: GroupConfig,
    shared: Arc<Shared>,
    stop: Interrupt,
    answered: Instant,
    /// When the topics were looked up last.
    looked: Instant,
}

impl Beat {
    fn run(mut self) {
        while self.stop.sleep(self.group.heartbeat_interval).is_ok() {
            match self.shared.kept_membership() {
                Some(membership) if self.shared.silent_for() >= self.group.max_poll_interval => {
                    // it hangs; should it ever come back, it has to join again
                    let (group, limit) = (&self.group.group_id, self.group.max_poll_interval);
                    log::warn!(
                        "group {group}: left, for its member has called nothing for {limit:?} (max_poll_interval)"
                    );
                    self.shared.need_rejoin(&membership, true);
                    if let Err(error) = leave(&mut self.cluster, group, membership.member_id) {
                        log::debug!("group {group}: leaving: {error}");
                    }
                }
                Some(membership) => {
                    self.beat(&membership);
                    self.look_at_topics(&membership);
                }
                None => self.answered = Instant::now(),
            }
        }
    }

    /// One heartbeat. A rebalance is reported and the heartbeats go on, which keeps the membership until the rejoin; a lost
    /// membership is reported and given up. A session in which no heartbeat was answered counts as lost.
    fn beat(&mut self, membership: &Membership) {
        let request = HeartbeatRequest::default()
            .with_group_id(group_id(&self.group.group_id))
            .with_generation_id(membership.generation)
            .with_member_id(membership.member_id.clone());
        let limit = self.limit();
        let mut backoff = Backoff::new(&self.stop, limit, limit);
        let coordinator = CoordinatorKey::Group(self.group.group_id.clone());
        match self
            .cluster
            .call_coordinator(&coordinator, &request, Retry::Idempotent, &mut backoff)
        {
            Ok(_) => self.answered = Instant::now(),
            Err(Error::Interrupted) => {}
            Err(error) if error.code() == Some(ErrorCode::REBALANCE_IN_PROGRESS) => {
                self.answered = Instant::now();
                log::debug!("group {}: {error}", self.group.group_id);
                self.shared.need_rejoin(membership, false);
            }
            Err(error)
                if error.passes() && self.answered.elapsed() < self.group.session_timeout =>
            {
                log::warn!("group {}: heartbeat: {error}", self.group.group_id);
            }
            Err(error) => {
                log::warn!("group {}: membership lost: {error}", self.group.group_id);
                self.shared.need_rejoin(membership, true);
            }
        }
    }

    /// Any member may see the change; the rejoin of the group's leader makes the others join again. Whatever goes wrong
    /// here is tried again at the next time.
    fn look_at_topics(&mut self, membership: &Membership) {
        if self.looked.elapsed() < TOPICS_INTERVAL {
            return;
        }
        self.looked = Instant::now();
        let deadline = self.looked + self.limit();
        match look_up(&mut self.cluster, &self.group.subscribed(), deadline) {
            Ok(topics) if self.shared.lock().topics != topics => {
                log::info!("group {}: its topics have changed", self.group.group_id);
                self.shared.need_rejoin(membership, false);
            }
            Ok(_) => {}
            Err(error) => log::debug!("group {}: metadata: {error}", self.group.group_id),
        }
    }

    /// What one call may take: several must fit into a session.
    fn limit(&self) -> Duration {
        self.group.session_timeout / 4
    }
}

/// Takes the member out of the group.
pub(crate) fn leave(cluster: &mut Cluster, group: &str, member_id: StrBytes) -> Result<()> {
    let member = MemberIdentity::default().with_member_id(member_id);
    let request = LeaveGroupRequest::default()
        .with_group_id(group_id(group))
        .with_members(vec![member]);
    let (coordinator, mut backoff) = (CoordinatorKey::Group(group.to_owned()), cluster.backoff());
    cluster
        .call_coordinator(&coordinator, &request, Retry::Idempotent, &mut backoff)
        .map(drop)
}

/// The topics as they are now.
pub(crate) fn look_up(
    cluster: &mut Cluster,
    topics: &[Arc<str>],
    deadline: Instant,
) -> Result<Topics> {
    cluster.refresh(topics, deadline)?;
    Ok(seen(cluster, topics))
}

/// The topics as they were seen last.
pub(crate) fn seen(cluster: &Cluster, topics: &[Arc<str>]) -> Topics {
    let seen = topics.iter().map(|topic| cluster.seen_topic(topic));
    seen.map(|seen| seen.map(|topic| (topic.id, topic.partitions.len())))
        .collect()
}
