//! The relay: outbox rows into Kafka, in stored order, each seen once by a read-committed reader.
//!
//! A turn is one Kafka transaction with the records and a [`Position`], which names all published rows that may still
//! be in the outbox. The relay deletes them a little later, those of several turns in one database transaction. It does
//! so beside a turn's writes, but before that turn's EndTxn ([`crate::outbox::overlap`]), or when there is nothing to
//! publish. It deletes rows only after a plain success of EndTxn or on finding their position.
//!
//! `records` makes a turn's records of its rows, and the position beside them; `publish` sends both.
//!
//! # Recovery
//!
//! After any other end of a turn it is open what was published. Then the relay does what a new leader does:
//!
//! ```text
//! Follower ── gets the lock, and a producer of its own ──► Recovering ── steps 1 to 5 ──► Publishing
//!    ▲                                                       │  ▲  │                        │  │
//!    │                                                       │  └──┴─── Kafka's error ──────┘  │
//!    └──── any other error, or fenced: gives up the lock ────┴─────────────────────────────────┘
//! ```
//!
//! | step | `recover` calls | for this |
//! | --- | --- | --- |
//! | 1 | `Leadership::check`, `Producer::initialise`, `Leadership::check` | The broker answers InitProducerId only when all markers of the transaction before are written. The lock must be held before it, or it would fence a successor, and after it, or the epoch would be another's. |
//! | 2 | `read` of one row, [`position::find`] | What was published. With an empty outbox no position can name a row, and open transactions are not waited for. |
//! | 3 | [`origin::read`], [`position::judge`]; after a lost tail [`outbox::advance_clock`] | [Which copy](origin) wrote last: another one that has stops this one. |
//! | 4 | [`origin::note_leader`] | The database knows of a leadership before it publishes. |
//! | 5 | for each position, the latest first: [`outbox::find_last_message`], `Position::is_held`, `delete` | The rows that it names are published, and go. |
//!
//! Only then does `publish_next` read rows, or take what was [handed over](crate::outbox::memory) by this process.
//!
//! Each leadership has a producer of its own. Its first InitProducerId takes the transactional id over. A later one
//! shows the identity it had (KIP-360), so a relay in doubt can't take the id back from its successor.
//!
//! **Must not be changed**: the order of the steps, and that the relay forgets all that it knew when a turn fails. A
//! row that is read before step 5 is done may be one that was published.
//!
//! # Timestamps
//!
//! A record's timestamp is the time of publishing; `ce_time` is the stored time. Kafka refuses records from its future,
//! and stored times lie there for a while after the database's clock has jumped. Kafka also removes records by age.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::select;
use kafka::{ErrorKind, Interrupt, Isolation, Producer, ProducerRecord};
use uuid::Uuid;

use crate::backoff;
use crate::config::Config;
use crate::db::{Connector, Limits};
use crate::error::{Error, Result};
use crate::event::envelope::{self, StoredMessage};
use crate::event::trace::{self, Span};
use crate::event::{Service, full_names};
use crate::heartbeat;
use crate::metrics;
use crate::outbox::leader::{LeaderElection, Leadership};
use crate::outbox::memory::Memory;
use crate::outbox::origin::{self, Leader, Origin};
use crate::outbox::overlap::Overlap;
use crate::outbox::position::{self, Position};
use crate::outbox::wake::Wakeups;
use crate::outbox::{self, Removal, Row};
use crate::shutdown::Shutdown;
use crate::waits;
use crate::worker::Worker;

/// The safety net under lost wake-ups.
const SLOW_POLL: Duration = Duration::from_secs(1);
/// How often a follower tries to acquire the lead: a dead leader's place is taken within it, and `idle_session_timeout` is 3 s.
const ACQUIRE_AGAIN: Duration = Duration::from_millis(500);
/// Published rows are deleted so long after the first of them. Most orders are settled by then: nothing is left to be
/// marked of them, and a delete stands for several turns.
const DELETE_AFTER: Duration = Duration::from_millis(50);
/// What somebody has put in among older rows by hand is looked for so often, while no other rows wait.
const READ_ALL: Duration = Duration::from_secs(60);
/// The broker aborts what a dead relay left open after this, so that readers wait no longer.
pub(crate) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Its name among what waits.
const WAITS_AS: &str = "relay";

/// What one turn did.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Another instance leads.
    Standby,
    /// There was nothing to publish; published rows that were due are deleted.
    Empty,
    /// So many rows were published; more may wait.
    Published(usize),
    /// So many rows were published, and there were no more when they were read, or taken from memory.
    Drained(usize),
}

/// The relay of one service instance.
pub struct Relay {
    settings: Settings,
    election: LeaderElection,
    role: Role,
    /// Rows in the next transaction.
    batch: usize,
    /// Whether the last turn failed.
    waits: bool,
    wakeups: Arc<Wakeups>,
}

struct Settings {
    service: Service,
    prefix: String,
    install_id: Uuid,
    batch_limit: usize,
    transactional_id: String,
    kafka: kafka::Config,
    interrupt: Interrupt,
    removal: Removal,
}

/// What this relay is to its database.
enum Role {
    /// Another one may lead.
    Follower,
    /// This one does.
    Leader(Box<Leading>),
}

/// A leadership. Dropped, it frees the lock, and nothing that was known in it stays.
struct Leading {
    leadership: Leadership,
    /// The first `initialise` of a producer fences its predecessors, the later ones only go on.
    producer: Producer,
    /// None until it has recovered, and again after every error.
    known: Option<Known>,
}

/// What holds while the fate of all earlier transactions is known.
struct Known {
    /// What its positions carry of the database and of this leadership.
    origin: Origin,
    leader: Leader,
    undeleted: Option<Undeleted>,
    /// Read during the last turn, to be published next.
    prefetched: Vec<Row>,
    /// All rows up to this id were published in this leadership, and none comes later: ids are drawn in the order of commits.
    /// Dead rows before it, which an old snapshot keeps, need not be walked over.
    floor: i64,
    /// The last row that was published. Above the floor after a row that somebody has put in among older ones: then the relay reads.
    last: i64,
    /// When rows were read from the beginning the last time.
    read_all: Instant,
}

/// Rows that are published for certain and not deleted yet.
struct Undeleted {
    position: Position,
    since: Instant,
}

impl Worker for Relay {
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        let turn = self.relay_once();
        let leads = matches!(self.role, Role::Leader(_));
        let led = self.wakeups.leads.swap(leads, Ordering::Relaxed);
        metrics::LEADER.set(i64::from(leads));
        let rest = match turn? {
            Turn::Published(_) => Duration::ZERO,
            // commits during the first turn of a leadership have woken nobody here
            Turn::Empty | Turn::Drained(_) if !led => Duration::ZERO,
            // a later commit wakes us
            Turn::Empty | Turn::Drained(_) => self.undeleted().map_or(SLOW_POLL, Undeleted::rest),
            Turn::Standby => ACQUIRE_AGAIN / 2 + backoff::jitter(ACQUIRE_AGAIN / 2),
        };
        self.wait_no_longer();
        if !rest.is_zero() {
            select! {
                recv(self.wakeups.relay) -> _ => {}
                recv(shutdown.receiver()) -> _ => {}
                // the safety net reads
                default(rest) => self.wakeups.memory.must_read(),
            }
        }
        Ok(Duration::ZERO)
    }

    fn report(&mut self, error: &Error, attempt: u32, pause: Duration) {
        if let Error::LostRace(what) = error {
            self.wait_no_longer();
            return log::debug!("{what}");
        }
        // one that fails for long is a reason not to be ready, also where nothing waits to be published
        waits::back_off(&WAITS_AS, error.to_string());
        self.waits = true;
        match error {
            Error::Kafka(error @ kafka::Error::Undecided { .. }) => log::error!(
                "the fate of an earlier transaction is not decided yet (attempt {attempt}, next in {pause:?}): {error}. \
                 If this lasts longer than a minute the broker has lost the transaction's markers, or holds its clients back \
                 by a quota: `kafka-transactions.sh find-hanging` names the former"
            ),
            Error::Kafka(error) if is_unended(error) => log::warn!(
                "a relay turn failed (attempt {attempt}, next in {pause:?}): {error}. If this lasts longer than a minute Kafka can't \
                 end the transaction of this id: see the broker's log, and `kafka-transactions.sh describe`"
            ),
            error => {
                log::warn!("a relay turn failed (attempt {attempt}, next in {pause:?}): {error}")
            }
        }
    }

    fn end(&mut self) {
        // the next leader would delete them, by the position
        if let (Some(undeleted), Role::Leader(leading)) = (self.undeleted(), &self.role)
            && let Err(error) = leading.delete(&self.settings, &undeleted.position)
        {
            log::debug!("published rows are left to the next leader: {error}");
        }
        if let Role::Leader(leading) = std::mem::replace(&mut self.role, Role::Follower)
            && let Err(error) = leading.leadership.resign(self.settings.service)
        {
            log::debug!("the next leader was not notified: {error}");
        }
    }
}

impl Relay {
    /// Connects to nothing yet. `interrupt` ends its Kafka calls. `removal` says what else is done when
    /// published rows are deleted.
    ///
    /// # Errors
    /// When the database URL can't be parsed.
    pub fn new(
        config: &Config,
        install_id: Uuid,
        interrupt: Interrupt,
        removal: Removal,
        wakeups: Arc<Wakeups>,
    ) -> Result<Relay> {
        let name = format!("{}-relay", config.service.name());
        let connector = Connector::new(&config.database_url, &name, Limits::LEADER)?;
        let settings = Settings {
            service: config.service,
            prefix: config.topic_prefix.clone(),
            install_id,
            batch_limit: config.relay_batch,
            transactional_id: config.transactional_id(),
            kafka: config.kafka(&name),
            interrupt,
            removal,
        };
        Ok(Relay {
            batch: settings.batch_limit,
            settings,
            election: LeaderElection::new(connector),
            role: Role::Follower,
            waits: false,
            wakeups,
        })
    }

    fn undeleted(&self) -> Option<&Undeleted> {
        match &self.role {
            Role::Leader(leading) => leading.known.as_ref()?.undeleted.as_ref(),
            Role::Follower => None,
        }
    }

    fn wait_no_longer(&mut self) {
        if std::mem::take(&mut self.waits) {
            waits::goes_on(&WAITS_AS);
        }
    }

    /// One turn: acquire the lead if need be, recover if need be, publish the next rows.
    ///
    /// # Errors
    /// After any error the next turn recovers first. [`Error::Fatal`]: the position contradicts the outbox, or another
    /// database has written last.
    pub fn relay_once(&mut self) -> Result<Turn> {
        let turn = self.try_turn();
        // a fenced or broken leader closes its connection: the lock is free for one that is alive
        if let Err(error) = &turn
            && !matches!(error, Error::Kafka(cause) if cause.kind() != ErrorKind::Fenced)
        {
            self.role = Role::Follower;
        }
        turn
    }

    fn try_turn(&mut self) -> Result<Turn> {
        let settings = &self.settings;
        if let Role::Follower = self.role {
            let ping_thread = format!("{}-leader-ping", settings.service.name());
            let Some(leadership) = self.election.try_acquire(&ping_thread)? else {
                return Ok(Turn::Standby);
            };
            let producer = Producer::transactional(
                settings.kafka.clone(),
                settings.interrupt.clone(),
                &settings.transactional_id,
                TRANSACTION_TIMEOUT,
            );
            self.role = Role::Leader(Box::new(Leading {
                leadership,
                producer,
                known: None,
            }));
        }
        let Role::Leader(leading) = &mut self.role else {
            return Ok(Turn::Standby);
        };
        // what was known is put back where nothing fails
        let memory = &self.wakeups.memory;
        let mut known = match leading.known.take() {
            Some(known) => known,
            None => leading.recover(settings, memory)?,
        };
        let turn = leading.publish_next(settings, &mut known, memory, &mut self.batch)?;
        leading.known = Some(known);
        Ok(turn)
    }
}

impl Leading {
    fn publish_next(
        &mut self,
        settings: &Settings,
        known: &mut Known,
        memory: &Memory,
        batch: &mut usize,
    ) -> Result<Turn> {
        let mut rows = std::mem::take(&mut known.prefetched);
        // whether rows were in memory, and there are no more
        let mut drained = None;
        if rows.is_empty() {
            if known.undeleted.is_none() && known.read_all.elapsed() >= READ_ALL {
                known.read_all = Instant::now();
                rows = read(&self.leadership, settings.service, 0, *batch)?;
            } else if known.floor == known.last
                && let Some((handed_over, all)) = memory.take(known.last, *batch)
            {
                (rows, drained) = (handed_over, Some(all));
            } else {
                rows = read(&self.leadership, settings.service, known.floor, *batch)?;
            }
        }
        if rows.is_empty() {
            if let Some(due) = known.take_due(settings.batch_limit) {
                self.delete(settings, &due.position)?;
            }
            return Ok(Turn::Empty);
        }
        // fewer at the next attempt: the rows before a refused one get out, and a slow broker ends in time
        let wanted = std::mem::replace(batch, (rows.len() / 2).max(1));
        let (count, next_batch) = (rows.len(), (wanted * 2).min(settings.batch_limit));
        let more = (drained.is_none() && count == wanted).then_some(next_batch);
        let begun = Instant::now();
        self.publish(settings, known, &rows, more)?;
        if begun.elapsed() >= SLOW_POLL {
            memory.forget();
        }
        *batch = next_batch;
        Ok(if drained.unwrap_or(count < wanted) {
            Turn::Drained(count)
        } else {
            Turn::Published(count)
        })
    }

    /// The door of a new leader: under the lock, end whatever any predecessor left open, then learn from the position
    /// what it had committed but not deleted, and whether it was this database that wrote it.
    fn recover(&mut self, settings: &Settings, memory: &Memory) -> Result<Known> {
        // before: an ex-leader must not fence its successor; after: the epoch drawn must be the lock holder's
        self.leadership.check()?;
        let identity = self.producer.initialise()?;
        self.leadership.check()?;
        // finding the positions may take as long as the rest of the turn
        heartbeat::beat();
        // with an empty outbox no position can name a row, and they only show who wrote last: then nothing is waited for
        let is_empty = read(&self.leadership, settings.service, 0, 1)?.is_empty();
        let found = position::find(
            &full_names(&settings.prefix, &settings.service.writes()),
            &settings.kafka,
            &settings.interrupt,
            settings.service,
            settings.install_id,
            if is_empty {
                Isolation::ReadCommitted
            } else {
                Isolation::ReadUncommitted
            },
        )?;
        // another database that has written last stops this one; after a promotion that lost the tail it goes on, behind what
        // Kafka has
        let state = self.leadership.with(origin::read)?;
        if let Some(lost) = position::judge(&found, &state, settings.service)? {
            self.leadership
                .with(|session| outbox::advance_clock(session, &lost.stored))?;
            metrics::LOST_TAILS.inc();
            log::warn!("{}", lost.what);
        }
        let leader = (identity.id, identity.epoch.into());
        self.leadership
            .with(|session| origin::note_leader(session, leader))?;
        let mut published = 0;
        for position in position::latest_first(found) {
            published = published.max(position.last);
            let last = self.leadership.with(|session| {
                outbox::find_last_message(session, settings.service, position.last)
            })?;
            if position.is_held(last) {
                self.delete(settings, &position)?;
            }
        }
        // before rows are read: what is handed over from now on is behind them, among them, or was published before
        let server = self.leadership.with(outbox::read_server)?;
        memory.begin(server, published);
        metrics::EPOCH.set(i64::from(identity.epoch));
        log::info!("leading: producer {} epoch {}", identity.id, identity.epoch);
        Ok(Known {
            origin: state.origin,
            leader,
            undeleted: None,
            prefetched: Vec::new(),
            floor: 0,
            last: 0,
            read_all: Instant::now(),
        })
    }

    /// One Kafka transaction with the rows' records and their position. A record that Kafka refuses is never skipped:
    /// the batch is halved until the rows before it are out, and then it is tried again without end (I4). Published rows
    /// that are due are deleted meanwhile; those that are not are named by the new position too. Where more rows are
    /// likely to wait, so many are then prefetched.
    fn publish(
        &mut self,
        settings: &Settings,
        known: &mut Known,
        rows: &[Row],
        more: Option<usize>,
    ) -> Result<()> {
        heartbeat::beat();
        let (records, spans, position) = records(settings, known, rows)?;
        let due = known.take_due(settings.batch_limit);
        let next = Undeleted::joined(known.undeleted.take(), position);
        let (service, last, removal) = (settings.service, next.position.last, settings.removal);
        let leadership = &self.leadership;
        let overlap = Overlap {
            delete: due.map(|due| move || delete(leadership, removal, &due.position)),
            read: more.map(|limit| move || read(leadership, service, last, limit)),
        };
        let mark = next.position.to_header();
        let mut transaction = self.producer.begin()?;
        let ended = overlap.run(format!("{}-relay-overlap", service.name()), |deleted| {
            if let Err(error) = transaction.send_marked(&records, &mark) {
                // an answer, not a lost one: the transaction may be ended plainly
                if matches!(error, kafka::Error::Refused { .. }) && error.kind() == ErrorKind::Fatal
                {
                    let Row { id, order_id, .. } = &rows[0];
                    log::error!(
                        "Kafka refuses outbox rows {id} to {last} (first order {order_id}): {error}"
                    );
                    transaction.abort()?;
                }
                return Err(error.into());
            }
            // else the new position would hide the rows that the last one names
            deleted()?;
            Ok(transaction.commit()?)
        });
        known.prefetched = ended.inspect_err(metrics::transaction_failed)?;
        (known.floor, known.last) = (last, known.last.max(last));
        known.undeleted = Some(next);
        metrics::published(rows.len());
        trace::end("send batch", spans);
        Ok(())
    }

    fn delete(&self, settings: &Settings, position: &Position) -> Result<()> {
        delete(&self.leadership, settings.removal, position)
    }
}

impl Known {
    fn take_due(&mut self, limit: usize) -> Option<Undeleted> {
        self.undeleted.take_if(|undeleted| undeleted.is_due(limit))
    }
}

impl Undeleted {
    /// What was published before and is still there, with what is published now.
    fn joined(before: Option<Undeleted>, now: Position) -> Undeleted {
        match before {
            None => Undeleted {
                position: now,
                since: Instant::now(),
            },
            Some(Undeleted { position, since }) => Undeleted {
                position: now.behind(&position),
                since,
            },
        }
    }

    /// Time to delete them: they are old enough, or as many as one transaction takes.
    fn is_due(&self, limit: usize) -> bool {
        self.position.count >= limit || self.rest().is_zero()
    }

    fn rest(&self) -> Duration {
        DELETE_AFTER.saturating_sub(self.since.elapsed())
    }
}

fn records(
    settings: &Settings,
    known: &Known,
    rows: &[Row],
) -> Result<(Vec<ProducerRecord>, Vec<Span>, Position)> {
    let mut records = Vec::with_capacity(rows.len() * 2);
    let mut spans = Vec::new();
    let (mut message, now) = (Uuid::nil(), unix_millis());
    for row in rows {
        let unreadable = |why: &dyn Display| {
            Error::Unusable(format!(
                "outbox row {} (order {}) can't be read, was it written by hand? Nothing behind it is published: \
                 correct or delete it ({why})",
                row.id, row.order_id
            ))
        };
        let stored: Vec<StoredMessage<'_>> =
            serde_json::from_str(&row.messages).map_err(|error| unreadable(&error))?;
        message = stored.last().ok_or_else(|| unreadable(&"no message"))?.id;
        let sent = stored.iter();
        spans.extend(sent.filter_map(|it| Span::sending(it, row.order_id, &row.stored_at)));
        records.extend(stored.iter().map(|stored| {
            envelope::to_record(
                stored,
                row.order_id,
                settings.service,
                &settings.prefix,
                &row.stored_at,
                now,
            )
        }));
    }
    let (first, last) = (rows[0].id, rows[rows.len() - 1].id);
    let count = rows.len();
    Ok((
        records,
        spans,
        Position {
            install: settings.install_id,
            first,
            last,
            count,
            message,
            origin: Some(known.origin),
            leader: Some(known.leader),
        },
    ))
}

fn read(leadership: &Leadership, service: Service, after: i64, limit: usize) -> Result<Vec<Row>> {
    leadership.with(|session| outbox::read_batch(session, service, after, limit))
}

fn delete(leadership: &Leadership, removal: Removal, position: &Position) -> Result<()> {
    let Position {
        first, last, count, ..
    } = *position;
    leadership.with(|session| outbox::remove_published(session, removal, first, last, count as i64))
}

/// The coordinator still ends an earlier transaction, long after that should have been done.
fn is_unended(error: &kafka::Error) -> bool {
    matches!(
        error,
        kafka::Error::Refused {
            code: kafka::ErrorCode::CONCURRENT_TRANSACTIONS,
            ..
        }
    )
}

/// The records' timestamp: the time of publishing, for the module's reasons.
fn unix_millis() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_millis() as i64)
}
