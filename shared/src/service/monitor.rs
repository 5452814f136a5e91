//! Looks at the service from outside, once a second, on a thread, a session and broker connections of its own.
//! `/readyz`, `/metrics` and `/overview` show its snapshot. So they never wait for a server, show a dead relay's outbox
//! getting older, and answer when all of `HTTP_WORKERS` hang.
//!
//! The age of what waits in a partition is how long ago the log's end was where the service is now.
//!
//! **Must not be changed**: neither slow counts nor a rebalance take all instances out of service at once. Counting the
//! database's rows comes last; counts that take too long leave gaps and an old timestamp, which an alert sees. A
//! rebalance gives the members a minute to come back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kafka::{Admin, Interrupt, Isolation, OffsetSpec};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::config::Config;
use crate::consumer::{offsets, set_aside};
use crate::db::migrations;
use crate::db::pool::Connection;
use crate::db::{Connector, Limits, Session};
use crate::error::{Error, Result};
use crate::event::{Service, full_names};
use crate::shutdown::{self, Shutdown};
use crate::worker::Worker;
use crate::{dead_letter, heartbeat, metrics, outbox, waits};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// A broker that does not answer within this is away.
const BROKER_LIMIT: Duration = Duration::from_secs(3);
/// A snapshot older than this is reported as stale. The value exceeds the time that one poll takes when both servers are
/// unreachable.
const STALE: Duration = Duration::from_secs(15);
/// Counting is done for a hundredth of the time, so that a large backlog is not made larger by it ...
const COUNTING_SHARE: u32 = 100;
/// ... but at least so often.
const COUNT_AGAIN: Duration = Duration::from_secs(15);
/// Where something has waited for so long, it is looked who else is in the consumer group, and for open transactions.
const STRANGERS_AFTER: f64 = 10.0;
/// Another instance takes a lost lead within a few seconds.
const UNLED_LIMIT: f64 = 15.0;
/// By so many seconds a stored time may be ahead of the clock (`stamp_outbox`).
const CLOCK_BOUND: f64 = 60.0;
/// A session that gave up its wait for a lock waits for it again within this.
const BLOCKED_FOR: Duration = Duration::from_secs(30);
/// Ends of a partition's log that are remembered, for the age of what waits there.
const SAMPLES: usize = 600;

/// What a service adds to a snapshot, as fields of `/overview`.
pub type Extra = Box<dyn Fn(&mut Session) -> Result<Map<String, Value>> + Send>;

/// What was seen last.
#[derive(Clone)]
pub struct StatusBoard(Arc<Mutex<Snapshot>>);

/// What one poll saw.
#[derive(Clone)]
struct Snapshot {
    at: Instant,
    /// What keeps the service from working, each in a sentence.
    reasons: Vec<String>,
    consumers: Vec<Lag>,
    database: DatabaseStats,
}

/// What the database holds, counted by itself after the poll: it may take long, which is no reason to call a service not ready.
#[derive(Clone, Default)]
struct DatabaseStats {
    /// Why it can't be counted, if that is not because it takes too long.
    reason: Option<String>,
    /// As far as it could be counted.
    stored: Option<StoredStats>,
    extra: Map<String, Value>,
}

/// What the database holds.
#[derive(Clone)]
struct StoredStats {
    waiting: i64,
    oldest_seconds: f64,
    /// Whether a relay holds the lead, of whichever instance.
    led: bool,
    clock_ahead: f64,
    oldest_snapshot: f64,
    dead_letters: i64,
    /// Records set aside, for how many seconds the oldest, and what it waits for.
    aside: (i64, f64, Option<String>),
}

/// Where the service is in a partition that it reads.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lag {
    topic: &'static str,
    partition: i32,
    offset: Option<i64>,
    end: i64,
    lag: Option<i64>,
    lag_seconds: Option<f64>,
}

/// The thread's state.
pub struct Monitor {
    service: Service,
    prefix: String,
    connection: Connection,
    admin: Admin,
    /// By topic id: a topic made anew begins anew.
    histories: HashMap<(Uuid, i32), LagHistory>,
    group: String,
    /// Who or what keeps records from being read, each in a sentence.
    causes: Vec<String>,
    extra: Extra,
    /// Why counting failed last time, if it did.
    uncounted: Option<String>,
    /// The outbox's oldest row, and since when it is that: what clocks say may be wrong.
    oldest: Option<(i64, Instant)>,
    /// Since when each snapshot is open, as far as it was seen here: of other users' sessions the database does not say.
    snapshots: HashMap<String, Instant>,
    /// When it is counted next.
    count_at: Instant,
    board: StatusBoard,
}

impl Worker for Monitor {
    fn turn(&mut self, shutdown: &Shutdown) -> Result<Duration> {
        if shutdown.wait(INTERVAL) {
            return Ok(Duration::ZERO);
        }
        if !self.poll() {
            self.board.lock().database = DatabaseStats::default();
        } else if Instant::now() >= self.count_at {
            let begun = Instant::now();
            let database = self.count();
            self.board.lock().database = database;
            self.count_at = Instant::now() + (begun.elapsed() * COUNTING_SHARE).min(COUNT_AGAIN);
        }
        Ok(Duration::ZERO)
    }
}

impl Monitor {
    /// Connects to nothing yet. `interrupt` ends its calls of Kafka.
    ///
    /// # Errors
    /// When the database URL can't be parsed.
    pub fn new(
        config: &Config,
        interrupt: Interrupt,
        extra: Extra,
    ) -> Result<(Monitor, StatusBoard)> {
        let name = format!("{}-monitor", config.service.name());
        let mut kafka = config.kafka(&name);
        (kafka.connect_timeout, kafka.api_timeout) = (BROKER_LIMIT, BROKER_LIMIT);
        let nothing = Snapshot {
            at: Instant::now(),
            reasons: vec!["nothing was looked at yet".into()],
            consumers: vec![],
            database: DatabaseStats::default(),
        };
        let board = StatusBoard(Arc::new(Mutex::new(nothing)));
        let monitor = Monitor {
            service: config.service,
            prefix: config.topic_prefix.clone(),
            connection: Connection::new(Connector::new(
                &config.database_url,
                &name,
                Limits::MONITOR,
            )?),
            admin: Admin::new(kafka, interrupt),
            histories: HashMap::new(),
            group: config.group(),
            causes: vec![],
            extra,
            uncounted: None,
            oldest: None,
            snapshots: HashMap::new(),
            count_at: Instant::now(),
            board: board.clone(),
        };
        Ok((monitor, board))
    }

    /// Whether the database is there and fits.
    fn poll(&mut self) -> bool {
        let mut reasons = Vec::new();
        let (service, known) = (self.service, offsets::known());
        let offsets = self.connection.with(|session| {
            migrations::require_compatible(session)?;
            migrations::require_writable(session)?;
            for (what, why) in outbox::find_blocked(session, service)? {
                waits::seen(&what, why, BLOCKED_FOR);
            }
            offsets::read_all(session)
        });
        let offsets = noted(offsets, "the database", &mut reasons);
        offsets
            .iter()
            .for_each(|rows| offsets::compare(&known, rows));
        let lags = noted(self.lags(offsets.as_deref()), "Kafka", &mut reasons);
        reasons.append(&mut self.causes);
        if offsets.is_some() && lags.is_some() {
            metrics::polled("kafka");
        }
        let consumers = lags.unwrap_or_default();
        consumers.iter().for_each(Lag::show);
        let mut snapshot = self.board.lock();
        (snapshot.at, snapshot.reasons, snapshot.consumers) = (Instant::now(), reasons, consumers);
        offsets.is_some()
    }

    fn count(&mut self) -> DatabaseStats {
        let (service, extra) = (self.service, &self.extra);
        let (oldest, snapshots) = (&mut self.oldest, &mut self.snapshots);
        let counted = self.connection.with(|session| {
            Ok((
                stored(session, service, oldest, snapshots)?,
                extra(session)?,
            ))
        });
        let why = counted
            .as_ref()
            .err()
            .map(|error| format!("what the database holds can't be counted: {error}"));
        // once, as long as it fails in the same way
        if let Some(new) = why.as_ref().filter(|_| why != self.uncounted) {
            log::warn!("{new}");
        }
        self.uncounted.clone_from(&why);
        match counted {
            Ok((stored, extra)) => {
                stored.show();
                metrics::polled("database");
                DatabaseStats {
                    reason: stored.unled(),
                    stored: Some(stored),
                    extra,
                }
            }
            Err(error) => DatabaseStats {
                reason: why.filter(|_| !error.is_time_limit()),
                ..DatabaseStats::default()
            },
        }
    }

    /// `offsets`: the next ones of the service, if they are known.
    fn lags(&mut self, offsets: Option<&[(Uuid, i32, i64)]>) -> Result<Vec<Lag>> {
        let topics = self.service.reads();
        let names = full_names(&self.prefix, &topics);
        let described = self.admin.describe_topics(&names)?;
        if described.len() < names.len() {
            let mut missing = names;
            missing.retain(|name| !described.iter().any(|topic| topic.name == *name));
            let missing = missing.join(", ");
            return Err(Error::Fatal(format!(
                "there is no topic {missing}: create it, or have a restart create it"
            )));
        }
        let places: Vec<_> = described
            .iter()
            .flat_map(|t| (0..t.partitions).map(|p| (t.name.clone(), p)))
            .collect();
        // also what an open transaction still hides: it may be there for long
        let ends =
            self.admin
                .list_offsets(&places, OffsetSpec::Latest, Isolation::ReadUncommitted)?;
        self.histories
            .retain(|(id, _), _| described.iter().any(|topic| topic.id == *id));
        let mut lags = Vec::with_capacity(ends.len());
        for (topic, described) in topics.iter().zip(&described) {
            for end in ends.iter().filter(|end| end.topic == described.name) {
                // none there: nothing was read yet
                let offset = offsets.map(|offsets| {
                    offsets
                        .iter()
                        .find(|(id, partition, _)| {
                            (*id, *partition) == (described.id, end.partition)
                        })
                        .map_or(0, |(_, _, next)| *next)
                });
                let history = self
                    .histories
                    .entry((described.id, end.partition))
                    .or_default();
                lags.push(history.lag(topic.name(), end.partition, offset, end.offset));
            }
        }
        lags.sort_by_key(|lag| (lag.topic, lag.partition));
        let slow = lags.iter().any(|lag| {
            lag.lag_seconds
                .is_some_and(|seconds| seconds > STRANGERS_AFTER)
        });
        self.causes = if slow {
            [self.strangers()?, self.hidden(&places, &lags)?].concat()
        } else {
            vec![]
        };
        Ok(lags)
    }

    /// Partitions in which a transaction that is open for long keeps records from readers.
    fn hidden(&mut self, places: &[(String, i32)], lags: &[Lag]) -> Result<Vec<String>> {
        let readable =
            self.admin
                .list_offsets(places, OffsetSpec::Latest, Isolation::ReadCommitted)?;
        let prefix = &self.prefix;
        let hidden = readable.iter().filter_map(|end| {
            let lag = lags.iter().find(|lag| {
                end.topic == format!("{prefix}{}", lag.topic) && end.partition == lag.partition
            })?;
            let seconds = lag.lag_seconds.filter(|seconds| *seconds > STRANGERS_AFTER)?;
            (lag.offset == Some(end.offset) && lag.end > end.offset).then(|| {
                format!(
                    "{}-{}: a transaction that is open has kept the records from offset {} on from readers for {seconds:.0} s: \
                     `kafka-transactions.sh find-hanging` names it, and aborts it",
                    end.topic, end.partition, end.offset
                )
            })
        });
        Ok(hidden.collect())
    }

    /// Members of the group that are no instances of this service: what they were given to read, nobody handles.
    fn strangers(&mut self) -> Result<Vec<String>> {
        let ours = format!("{}-consumer-", self.service.name());
        let members = self.admin.group_members(&self.group)?;
        let strangers = members
            .iter()
            .filter(|member| !member.client_id.starts_with(&ours) && !member.partitions.is_empty());
        let reasons = strangers.map(|member| {
            let partitions: Vec<String> = member
                .partitions
                .iter()
                .map(|(topic, number)| format!("{topic}-{number}"))
                .collect();
            format!(
                "{} (at {}) is in the consumer group {} and keeps {} from being handled: end it",
                member.client_id,
                member.host,
                self.group,
                partitions.join(", ")
            )
        });
        Ok(reasons.collect())
    }
}

fn stored(
    session: &mut Session,
    service: Service,
    oldest: &mut Option<(i64, Instant)>,
    snapshots: &mut HashMap<String, Instant>,
) -> Result<StoredStats> {
    let outbox = outbox::count_waiting(session, service)?;
    let since = oldest
        .filter(|(id, _)| outbox.oldest == Some(*id))
        .map_or_else(Instant::now, |(_, since)| since);
    *oldest = outbox.oldest.map(|id| (id, since));
    Ok(StoredStats {
        waiting: outbox.rows,
        oldest_seconds: outbox.oldest_seconds.max(since.elapsed().as_secs_f64()),
        led: outbox.led,
        clock_ahead: outbox.clock_ahead,
        oldest_snapshot: oldest_snapshot(&outbox::find_snapshots(session)?, snapshots),
        dead_letters: dead_letter::count_open(session)?,
        aside: set_aside::count(session)?,
    })
}

/// In seconds: as the database says, else as long as it was seen.
fn oldest_snapshot(open: &[(String, Option<f64>)], seen: &mut HashMap<String, Instant>) -> f64 {
    seen.retain(|name, _| open.iter().any(|(open, _)| open == name));
    open.iter()
        .map(|(name, seconds)| {
            seconds.unwrap_or_else(|| {
                let since = seen.entry(name.clone()).or_insert_with(Instant::now);
                since.elapsed().as_secs_f64()
            })
        })
        .fold(0.0, f64::max)
}

fn noted<T>(outcome: Result<T>, what: &str, reasons: &mut Vec<String>) -> Option<T> {
    outcome
        .map_err(|error| reasons.push(format!("{what}: {error}")))
        .ok()
}

impl StoredStats {
    /// What waits is published by nobody.
    fn unled(&self) -> Option<String> {
        (!self.led && self.oldest_seconds > UNLED_LIMIT).then(|| {
            format!(
                "no relay leads, and the oldest of {} outbox rows has been waiting for {:.0} s",
                self.waiting, self.oldest_seconds
            )
        })
    }

    fn show(&self) {
        if self.clock_ahead > CLOCK_BOUND && metrics::CLOCK_AHEAD.get() <= CLOCK_BOUND {
            log::warn!(
                "the database's clock has run ahead: the latest stored time is {:.0} s later than it is now; stored times have \
                 gone back to the clock",
                self.clock_ahead
            );
        }
        metrics::CLOCK_AHEAD.set(self.clock_ahead);
        metrics::OLDEST_SNAPSHOT.set(self.oldest_snapshot);
        metrics::OUTBOX_ROWS.set(self.waiting);
        metrics::OUTBOX_OLDEST.set(self.oldest_seconds);
        metrics::DEAD_LETTERS.set(self.dead_letters);
        metrics::ASIDE.set(self.aside.0);
        metrics::ASIDE_SECONDS.set(self.aside.1);
    }
}

impl Lag {
    /// Where the service is may not be known: then the last that was known stays.
    fn show(&self) {
        let place = [self.topic, &self.partition.to_string()];
        self.lag
            .into_iter()
            .for_each(|lag| metrics::LAG.with_label_values(&place).set(lag));
        self.lag_seconds
            .into_iter()
            .for_each(|lag| metrics::LAG_SECONDS.with_label_values(&place).set(lag));
    }
}

/// When a partition's log ended where.
#[derive(Default)]
struct LagHistory(VecDeque<(Instant, i64)>);

impl LagHistory {
    fn lag(&mut self, topic: &'static str, partition: i32, offset: Option<i64>, end: i64) -> Lag {
        let behind = offset.map(|offset| (end - offset).max(0));
        let seconds = offset.map(|offset| self.waiting_for(offset, end).as_secs_f64());
        Lag {
            topic,
            partition,
            offset,
            end,
            lag: behind,
            lag_seconds: seconds,
        }
    }

    /// How long ago the log first ended beyond `offset`; at least that, where it was before the first poll.
    fn waiting_for(&mut self, offset: i64, end: i64) -> Duration {
        while self.0.front().is_some_and(|(_, end)| *end <= offset) {
            self.0.pop_front();
        }
        if end > offset {
            self.0.push_back((Instant::now(), end));
        }
        if self.0.len() > SAMPLES {
            self.thin_out();
        }
        self.0
            .front()
            .map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Every other one goes, but not the first: the longer something waits, the coarser it is known.
    fn thin_out(&mut self) {
        let mut keep = false;
        self.0.retain(|_| {
            keep = !keep;
            keep
        });
    }
}

impl StatusBoard {
    fn lock(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps the service from working, each in a sentence; none: it is ready.
    pub fn reasons(&self) -> Vec<String> {
        let snapshot = self.lock().clone();
        let mut reasons = heartbeat::stalled();
        reasons.extend(shutdown::is_stopping().then(|| "stopping".into()));
        reasons.extend(heartbeat::outsiders());
        if snapshot.at.elapsed() > STALE {
            reasons.push(format!(
                "database and Kafka were not looked at for {} s",
                snapshot.at.elapsed().as_secs()
            ));
        }
        reasons.extend(snapshot.reasons.into_iter().chain(snapshot.database.reason));
        reasons.extend(waits::reasons());
        reasons
    }

    /// All that was seen, as JSON.
    pub fn overview(&self, service: Service) -> Value {
        let (reasons, snapshot) = (self.reasons(), self.lock().clone());
        let stored = snapshot.database.stored.as_ref();
        let mut overview = serde_json::json!({
            "service": service.name(),
            "version": env!("CARGO_PKG_VERSION"),
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "leader": metrics::LEADER.get() == 1,
            "epoch": metrics::EPOCH.get(),
            "outbox": {
                "waiting": stored.map(|stored| stored.waiting),
                "oldestSeconds": stored.map(|stored| stored.oldest_seconds),
            },
            "deadLetters": stored.map(|stored| stored.dead_letters),
            "consumers": snapshot.consumers,
            "waiting": waits::all(),
            "setAside": stored.map(|StoredStats { aside: (records, seconds, waits_for), .. }| {
                serde_json::json!({"records": records, "oldestSeconds": seconds, "for": waits_for})
            }),
        });
        overview
            .as_object_mut()
            .into_iter()
            .for_each(|fields| fields.extend(snapshot.database.extra.clone()));
        overview
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_no_longer_waits() {
        let mut history = LagHistory::default();
        assert_eq!(history.waiting_for(7, 7), Duration::ZERO);
        history.waiting_for(7, 9);
        // after the first of them was seen and before the second was
        let between = Instant::now();
        let at_least = between.elapsed();
        assert!(
            history.waiting_for(7, 12) >= at_least,
            "since the first of them was seen"
        );
        assert!(
            history.waiting_for(9, 12) <= between.elapsed(),
            "those before 9 are read"
        );
        assert_eq!(history.waiting_for(12, 12), Duration::ZERO);
    }

    #[test]
    fn a_snapshot_is_as_old_as_the_database_says_else_as_long_as_it_was_seen() {
        let mut seen = HashMap::new();
        let (said, hidden) = (("7/1".to_string(), Some(0.1)), ("8/1".to_string(), None));
        for _ in 0..2 {
            assert_eq!(oldest_snapshot(std::slice::from_ref(&said), &mut seen), 0.1);
        }
        oldest_snapshot(std::slice::from_ref(&hidden), &mut seen);
        let since = Instant::now();
        let at_least = since.elapsed().as_secs_f64();
        assert!(oldest_snapshot(std::slice::from_ref(&hidden), &mut seen) >= at_least);
        assert_eq!(oldest_snapshot(&[], &mut seen), 0.0);
        assert!(seen.is_empty());
    }

    #[test]
    fn the_age_of_what_waits_for_long_is_kept() {
        let mut history = LagHistory::default();
        history.waiting_for(0, 1);
        let since = history.0[0].0;
        for end in 2..5_000 {
            history.waiting_for(0, end);
        }
        assert!(history.0.len() <= SAMPLES);
        assert_eq!(history.0[0].0, since);
    }
}
