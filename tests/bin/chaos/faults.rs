//! What is done to the system, drawn from the seed; what it was doing at that moment.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Proxy, Service, Signal, TOPICS};
use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::evidence::Moment;
use crate::flood::flood;
use crate::leaders;
use crate::load::{Asked, Load};
use crate::operators;
use crate::options::Options;
use crate::provoked;
use crate::stage::{Member, Stage};

/// Longer than every session limit of the services in PostgreSQL (5 s), at times also than that of the consumer group
/// (10 s), so that a frozen one loses what it holds.
const FREEZE_MILLIS: std::ops::Range<u64> = 6_000..12_000;
/// Longer than the services wait for the answer to one request (8 s).
const BROKER_FREEZE_MILLIS: std::ops::Range<u64> = 12_000..20_000;
/// Shorter and longer than the services' limits for a database call.
const OUTAGE_MILLIS: std::ops::Range<u64> = 300..7_000;
/// So much is lost: a standby in trouble is behind by about a second.
const LAG_MILLIS: std::ops::Range<u64> = 500..1_500;
/// Long enough that what was accepted beyond what can be settled would meet its deadline.
const FLOOD_MILLIS: std::ops::Range<u64> = 8_000..12_000;
/// Clients that ask again at once for an order which may be lost: before it is rebuilt, or afterwards.
const AGAIN: usize = 8;
/// For somebody to lead, before any instance will do.
const LEADER_LIMIT: Duration = Duration::from_secs(10);

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// kill -9 of an instance.
    Kill,
    /// An instance stopped, and continued later.
    Freeze,
    /// kill -9 of the instance that leads a relay.
    KillLeader,
    /// That instance stopped, and continued later.
    FreezeLeader,
    /// `pg_terminate_backend` of a service's sessions, each with even chances.
    EndSessions,
    /// All connections of an instance to its database cut, new ones refused.
    CutDatabase,
    /// The database's answers to an instance kept back.
    DelayDatabase,
    /// All connections of an instance to the brokers cut, new ones refused.
    CutKafka,
    /// The brokers' answers to an instance kept back.
    DelayKafka,
    /// kill -9 of the postmaster.
    KillPostgres,
    /// kill -9 of a broker.
    KillBroker,
    /// A broker stopped, and continued later: one of several only.
    FreezeBroker,
    /// Other brokers lead the partitions of a topic: where there are several.
    MoveLeaders,
    /// A person's open transaction holds rows that others need.
    HoldRows,
    /// A service's database may not be written for a while.
    ReadOnly,
    /// A topic takes small batches only.
    SmallBatches,
    /// Kafka lets its clients send and read little.
    Quota,
    /// kill -9 of a service's primary database; a standby that has lagged takes over.
    LoseTail,
    /// kill -9 of the primary of all databases; its synchronous standby takes over.
    Failover,
    /// Many more orders than can be settled.
    Flood,
}

impl Kind {
    const ALL: [Kind; 20] = [
        Kind::Kill,
        Kind::Freeze,
        Kind::KillLeader,
        Kind::FreezeLeader,
        Kind::EndSessions,
        Kind::CutDatabase,
        Kind::DelayDatabase,
        Kind::CutKafka,
        Kind::DelayKafka,
        Kind::KillPostgres,
        Kind::KillBroker,
        Kind::FreezeBroker,
        Kind::MoveLeaders,
        Kind::HoldRows,
        Kind::ReadOnly,
        Kind::SmallBatches,
        Kind::Quota,
        Kind::LoseTail,
        Kind::Failover,
        Kind::Flood,
    ];

    fn can_happen(self, options: &Options) -> bool {
        match self {
            Kind::LoseTail => options.lost_tail.is_some(),
            Kind::Failover => options.failover,
            Kind::Flood => options.overload,
            _ if options.nothing_else => false,
            // no database is there
            Kind::KillPostgres => !options.failover,
            Kind::KillBroker => !options.spare_broker,
            Kind::FreezeBroker | Kind::MoveLeaders => options.brokers > 1,
            _ => true,
        }
    }

    fn millis(self) -> std::ops::Range<u64> {
        match self {
            Kind::Freeze | Kind::FreezeLeader | Kind::HoldRows => FREEZE_MILLIS,
            Kind::FreezeBroker => BROKER_FREEZE_MILLIS,
            Kind::LoseTail => LAG_MILLIS,
            Kind::Flood => FLOOD_MILLIS,
            _ => OUTAGE_MILLIS,
        }
    }
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    service: Service,
    /// Which of the service's instances, if any will do.
    member: usize,
    /// Which broker, from 1.
    broker: usize,
    /// Which topic.
    topic: &'static str,
    length: Duration,
    /// What a flood is drawn from.
    seed: u64,
    /// How far into its share of the orders it strikes, from 0 to 1.
    pub moment: f64,
}

/// All faults of a run: every kind that can happen once before one comes again.
pub fn draw(options: &Options) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(options.seed.rotate_left(17));
    let mut kinds: Vec<Kind> = Vec::new();
    while kinds.len() < options.faults {
        let mut all = Kind::ALL;
        all.shuffle(&mut random);
        kinds.extend(all.into_iter().filter(|kind| kind.can_happen(options)));
    }
    kinds
        .into_iter()
        .take(options.faults)
        .map(|kind| one(kind, options, &mut random))
        .collect()
}

fn one(kind: Kind, options: &Options, random: &mut StdRng) -> Fault {
    let length = random.random_range(kind.millis());
    let service = *Service::ALL.choose(random).expect("three");
    Fault {
        kind,
        service: options
            .lost_tail
            .filter(|_| kind == Kind::LoseTail)
            .unwrap_or(service),
        member: random.random_range(0..options.instances),
        broker: random.random_range(1..=options.brokers),
        topic: TOPICS.choose(random).expect("eight"),
        length: Duration::from_millis(length),
        seed: random.random(),
        moment: random.random_range(0.0..1.0),
    }
}

/// What the system was doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Outbox rows of all services.
    pub waiting: i64,
    /// Transactions of the services, open in PostgreSQL.
    pub open: i64,
    /// Requests sent and not yet answered.
    pub in_flight: usize,
}

impl Busy {
    /// What it is doing now.
    pub fn now(stage: &Stage, load: &Load) -> Busy {
        let mut busy = Busy {
            in_flight: load.in_flight.load(Ordering::SeqCst),
            ..Busy::default()
        };
        for service in Service::ALL {
            let sql = format!(
                "select (select count(*) from {}_outbox), (select count(*) from pg_stat_activity
                  where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null)",
                service.name()
            );
            if let Ok(row) = stage.db(service).and_then(|mut db| db.query_one(&sql, &[])) {
                busy.waiting += row.get::<_, i64>(0);
                busy.open += row.get::<_, i64>(1);
            }
        }
        busy
    }

    /// Whether there was anything to hurt.
    pub fn is_busy(&self) -> bool {
        self.waiting > 0 || self.open > 0 || self.in_flight > 0
    }
}

/// A fault that has struck and is not over.
pub struct Wound<'a> {
    /// What was struck.
    pub what: String,
    healing: Healing<'a>,
    length: Duration,
}

enum Healing<'a> {
    Restart(&'a Member),
    Continue(&'a Member),
    Resume(&'a Proxy),
    ContinueBroker(usize),
    Servers,
    LetGo(Box<Client>),
    MayWrite(Service),
    AnyBatches(&'static str),
    NoQuota,
    /// Since when the standby lags, and how many requests were accepted until then.
    TakeOver(Moment, usize),
    FailOver,
    /// What it is drawn from.
    Flood(u64),
    None,
}

impl Fault {
    /// Chooses whom to hurt; a relay's leader is waited for.
    pub fn aim<'a>(&self, stage: &'a Stage) -> &'a Member {
        let any = stage
            .members_of(self.service)
            .nth(self.member)
            .expect("so many instances");
        if !matches!(self.kind, Kind::KillLeader | Kind::FreezeLeader) {
            return any;
        }
        let begun = Instant::now();
        while begun.elapsed() < LEADER_LIMIT {
            if let Some(leader) = stage.leader(self.service) {
                return leader;
            }
            thread::sleep(Duration::from_millis(50));
        }
        any
    }

    /// Does it.
    pub fn strike<'a>(&self, stage: &'a Stage, target: &'a Member, load: &Load) -> Wound<'a> {
        let (name, length) = (target.name(), self.length);
        let wound = |what: String, healing| Wound {
            what,
            healing,
            length,
        };
        match self.kind {
            Kind::Kill | Kind::KillLeader => {
                target.signal(Signal::KILL);
                wound(
                    format!("kill -9 of {}", self.title(&name)),
                    Healing::Restart(target),
                )
            }
            Kind::Freeze | Kind::FreezeLeader => {
                target.signal(Signal::STOP);
                wound(
                    format!("{} frozen for {length:?}", self.title(&name)),
                    Healing::Continue(target),
                )
            }
            Kind::EndSessions => {
                let ended = end_sessions(stage, self.service);
                wound(
                    format!("{ended} sessions of {} ended", self.service.name()),
                    Healing::None,
                )
            }
            Kind::CutDatabase => {
                target.database.cut();
                wound(
                    format!("{name} cut off from its database for {length:?}"),
                    Healing::Resume(&target.database),
                )
            }
            Kind::DelayDatabase => {
                target.database.hold();
                let what = format!("the database's answers to {name} delayed by {length:?}");
                wound(what, Healing::Resume(&target.database))
            }
            Kind::CutKafka => {
                target.kafka.cut();
                wound(
                    format!("{name} cut off from Kafka for {length:?}"),
                    Healing::Resume(&target.kafka),
                )
            }
            Kind::DelayKafka => {
                target.kafka.hold();
                let what = format!("Kafka's answers to {name} delayed by {length:?}");
                wound(what, Healing::Resume(&target.kafka))
            }
            Kind::KillPostgres => {
                stage.servers.kill_postgres();
                wound("kill -9 of PostgreSQL".into(), Healing::Servers)
            }
            Kind::KillBroker => {
                stage.servers.signal_kafka(self.broker, "-KILL");
                wound(
                    format!("kill -9 of broker {}", self.broker),
                    Healing::Servers,
                )
            }
            Kind::FreezeBroker => {
                stage.servers.signal_kafka(self.broker, "-STOP");
                wound(
                    format!("broker {} frozen for {length:?}", self.broker),
                    Healing::ContinueBroker(self.broker),
                )
            }
            Kind::MoveLeaders => {
                leaders::move_to(stage, self.topic, self.broker);
                wound(
                    format!("broker {} leads {}", self.broker, self.topic),
                    Healing::None,
                )
            }
            Kind::HoldRows => match operators::hold_rows(stage, self.service, self.seed as usize) {
                Some((person, what)) => wound(
                    format!(
                        "somebody holds {what} of {} for {length:?}",
                        self.service.name()
                    ),
                    Healing::LetGo(Box::new(person)),
                ),
                None => wound("nobody could hold rows".into(), Healing::None),
            },
            Kind::ReadOnly => {
                operators::may_write(stage, self.service, false);
                let what = format!(
                    "the database of {} is read-only for {length:?}",
                    self.service.name()
                );
                wound(what, Healing::MayWrite(self.service))
            }
            Kind::SmallBatches => {
                operators::limit_batches(&stage.world, self.topic, true);
                wound(
                    format!("{} takes small batches for {length:?}", self.topic),
                    Healing::AnyBatches(self.topic),
                )
            }
            Kind::Quota => {
                operators::limit_clients(&stage.world, true);
                wound(
                    format!("Kafka slows its clients down for {length:?}"),
                    Healing::NoQuota,
                )
            }
            Kind::LoseTail => {
                // in this order: what is accepted afterwards may be lost, and little else
                let (since, accepted) = (stage.lag(), load.accepted());
                let undone = provoked::decided_otherwise_later(stage, self.service, self.seed);
                load.besides
                    .lock()
                    .expect("no client panics with it")
                    .extend(undone);
                let what = format!(
                    "{}'s database lost, its standby {length:?} behind",
                    self.service.name()
                );
                wound(what, Healing::TakeOver(since, accepted))
            }
            Kind::Failover => {
                stage.kill_primary();
                let what =
                    format!("the databases' primary killed, nobody takes over for {length:?}");
                wound(what, Healing::FailOver)
            }
            Kind::Flood => wound(
                format!("more orders than can be settled for {length:?}"),
                Healing::Flood(self.seed),
            ),
        }
    }

    fn title(&self, name: &str) -> String {
        match self.kind {
            Kind::KillLeader | Kind::FreezeLeader => format!("{name}, the relay's leader"),
            _ => name.to_string(),
        }
    }
}

impl Wound<'_> {
    /// Waits for the fault's length and ends it. A restarted instance may not answer yet.
    pub fn heal(self, stage: &Stage, load: &Load, asked: &[Asked]) {
        match self.healing {
            Healing::Restart(member) => stage.restart(member),
            Healing::Continue(member) => {
                thread::sleep(self.length);
                member.signal(Signal::CONT);
            }
            Healing::Resume(proxy) => {
                thread::sleep(self.length);
                proxy.resume();
            }
            Healing::ContinueBroker(number) => {
                thread::sleep(self.length);
                stage.servers.signal_kafka(number, "-CONT");
            }
            Healing::Servers => stage.servers.restart(),
            Healing::LetGo(person) => {
                thread::sleep(self.length);
                drop(person);
            }
            Healing::MayWrite(service) => {
                thread::sleep(self.length);
                operators::may_write(stage, service, true);
            }
            Healing::AnyBatches(topic) => {
                thread::sleep(self.length);
                operators::limit_batches(&stage.world, topic, false);
            }
            Healing::NoQuota => {
                thread::sleep(self.length);
                operators::limit_clients(&stage.world, false);
            }
            Healing::TakeOver(since, accepted) => {
                thread::sleep(self.length);
                let recent = load.accepted_since(accepted);
                thread::scope(|scope| {
                    recent.into_iter().take(AGAIN).for_each(|number| {
                        scope.spawn(move || load.ask_again(asked, number));
                    });
                    stage.lose_tail(since);
                });
            }
            Healing::FailOver => {
                thread::sleep(self.length);
                stage.fail_over();
            }
            Healing::Flood(seed) => {
                let flooded = flood(&format!("{seed:x}"), load.ports(), self.length, seed);
                load.besides
                    .lock()
                    .expect("no client panics with it")
                    .extend(flooded);
            }
            Healing::None => {}
        }
    }
}

fn end_sessions(stage: &Stage, service: Service) -> i64 {
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid() and application_name like $1
                  and random() < 0.5";
    let pattern = format!("{}%", service.name());
    let ended = stage
        .db(service)
        .and_then(|mut db| db.query_one(sql, &[&pattern]));
    ended.map_or(0, |row| row.get(0))
}
