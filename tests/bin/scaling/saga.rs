//! The saga as serial loops: order's writers, a relay for each outbox, consumers. Each takes what waits, up to its limit,
//! as one batch; while it works the next one gathers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use harness::figures::Times;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::costs::{self, Cost};
use crate::engine::{Engine, Id, Nanos, Step, nanos};

/// By their numbers.
pub const SERVICES: [&str; 3] = ["order", "payment", "stock"];
pub const ORDER: usize = 0;
pub const PAYMENT: usize = 1;
const STOCK: usize = 2;
/// The number of its machines.
const KAFKA: Id = 0;
const ALL: [usize; 3] = [ORDER, PAYMENT, STOCK];
/// Published rows are deleted so long after the first of them (`DELETE_AFTER` of `relay.rs`).
const DELETE_AFTER: Nanos = 50_000_000;
/// One order in so many fails on a side, as in the bench.
const FAILING: usize = 10;

/// What the saga runs on.
#[derive(Clone, Debug)]
pub struct Size {
    /// Everything on one machine, the load too; else there is one for each broker, database host and instance.
    pub together: bool,
    /// Processors of a machine.
    pub cores: usize,
    /// Of each service.
    pub instances: [usize; 3],
    /// Threads of each of its instances; 0: the service does not run.
    pub consumers: [usize; 3],
    /// Of each topic.
    pub partitions: usize,
    /// Of each database, by order id: each has an append lock and a leader.
    pub outboxes: usize,
    /// Hosts of the three databases.
    pub databases: usize,
    /// Kafka's.
    pub brokers: usize,
    /// Of each partition.
    pub replicas: usize,
    /// Milliseconds that a commit waits for the disk, or for a synchronous standby.
    pub commit: f64,
    /// Milliseconds of a round trip between two machines.
    pub round_trip: f64,
}

/// How orders come.
#[derive(Clone, Copy)]
pub enum Load {
    /// So many a second at equal distances, as the bench sends them.
    Paced(f64),
    /// So many a second at random.
    Random(f64),
    /// So many are under way at any time: saturation.
    UnderWay(usize),
}

/// What came of a run. Its first quarter only warms up, and counts for nothing.
#[derive(Default)]
pub struct Outcome {
    /// Settled orders a second, while orders come.
    pub rate: f64,
    /// Milliseconds of processor time an order.
    pub processor: f64,
    /// How full each part is: the share of time in which machines' processors work, the share of a loop's batches that reach
    /// their limit. Of several loops of a kind, the fullest.
    parts: BTreeMap<String, f64>,
    /// From POST to settled.
    times: Vec<Nanos>,
}

impl Outcome {
    /// The time that so many percent do not exceed, in milliseconds.
    pub fn at(&self, percent: f64) -> f64 {
        Times::new(self.times.iter().copied().map(Duration::from_nanos)).at(percent)
    }

    /// The fullest part.
    pub fn fullest(&self) -> &str {
        let fullest = self.parts.iter().max_by(|a, b| a.1.total_cmp(b.1));
        fullest.map_or("nothing", |(part, _)| part)
    }
}

impl Size {
    /// What the machines are for, and their processors; then the append locks, which are like machines with one processor.
    fn pools(&self) -> Vec<(String, usize)> {
        let mut pools = vec![("Kafka".to_string(), self.brokers * self.cores)];
        pools.resize(1 + self.databases, ("a database host".into(), self.cores));
        for (name, instances) in SERVICES.iter().zip(self.instances) {
            pools.push((format!("{name}'s host"), instances * self.cores));
        }
        for name in SERVICES {
            let lock = (format!("{name}'s lock"), 1);
            pools.resize(pools.len() + self.outboxes, lock);
        }
        pools
    }

    /// Consumers of each service.
    pub fn threads(&self) -> [usize; 3] {
        ALL.map(|service| self.instances[service] * self.consumers[service])
    }

    /// Together everything is on the first machine, which is Kafka's.
    fn on(&self, machine: Id) -> Id {
        if self.together { 0 } else { machine }
    }

    fn database(&self, service: usize) -> Id {
        self.on(1 + service % self.databases)
    }

    fn host(&self, service: usize) -> Id {
        self.on(1 + self.databases + service)
    }

    fn lock(&self, service: usize, outbox: usize) -> Id {
        1 + self.databases + SERVICES.len() + service * self.outboxes + outbox
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// An order's row, with the requests to both sides.
    Requests,
    /// To this service.
    Undo(usize),
    /// Of this service, also that it has undone its side.
    Answer(usize),
    Settled,
}

/// An order, and what is said about it.
type Message = (usize, Kind);
type Steps = Vec<Step<Told>>;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Role {
    #[default]
    Writer,
    Relay,
    Consumer,
}

#[derive(Default)]
struct Loop {
    role: Role,
    service: usize,
    queue: VecDeque<Message>,
    /// What is under way: what it took, or what it will store.
    batch: Vec<Message>,
    busy: bool,
    turns: usize,
    full: usize,
    /// Rows that are published and not deleted, and since when.
    undeleted: (usize, Nanos),
    prefetched: bool,
}

struct Order {
    placed: Nanos,
    partition: usize,
    /// The service whose side fails.
    fails: Option<usize>,
    answers: usize,
}

enum Told {
    Arrival,
    Accepted(usize),
    TurnOver(Id),
    DeleteDue(Id),
    WarmedUp,
    LoadOver,
}

/// All that runs.
pub struct Saga {
    size: Size,
    engine: Engine<Told>,
    random: StdRng,
    load: Option<Load>,
    orders: Vec<Order>,
    loops: Vec<Loop>,
    /// Their numbers among the loops: by instance and outbox, by outbox, by thread.
    writers: Vec<Id>,
    relays: [Vec<Id>; 3],
    consumers: [Vec<Id>; 3],
    unsettled: usize,
    began: Nanos,
    outcome: Outcome,
}

impl Saga {
    /// An idle installation.
    pub fn new(size: Size, seed: u64) -> Saga {
        let mut loops = vec![];
        let mut add = |role, service, count: usize| {
            let first = loops.len();
            loops.resize_with(first + count, || Loop {
                role,
                service,
                ..Loop::default()
            });
            (first..first + count).collect()
        };
        let writers = size.instances[ORDER] * size.outboxes;
        let threads = size.threads();
        Saga {
            writers: add(Role::Writer, ORDER, writers),
            relays: ALL.map(|service| add(Role::Relay, service, size.outboxes)),
            consumers: ALL.map(|service| add(Role::Consumer, service, threads[service])),
            engine: Engine::new(size.pools().into_iter().map(|(_, count)| count)),
            random: StdRng::seed_from_u64(seed),
            load: None,
            orders: vec![],
            loops,
            unsettled: 0,
            began: 0,
            outcome: Outcome::default(),
            size,
        }
    }

    /// Lets orders come for so many seconds, and then all of them settle.
    ///
    /// # Panics
    /// When one does not.
    pub fn run(mut self, load: Load, seconds: f64) -> Outcome {
        self.load = Some(load);
        self.after(nanos(seconds * 1e3 / 4.0), Told::WarmedUp);
        self.after(nanos(seconds * 1e3), Told::LoadOver);
        let first = if let Load::UnderWay(count) = load {
            count
        } else {
            1
        };
        (0..first).for_each(|_| self.after(0, Told::Arrival));
        self.go();
        assert_eq!(self.unsettled, 0, "orders that never settle");
        self.outcome
    }

    /// Lets the requests of orders wait in order's outbox, or for the consumer of a participant, until all are handled;
    /// returns how many a second.
    pub fn drain(mut self, service: usize, count: usize) -> f64 {
        for _ in 0..count {
            let message = (self.place(), Kind::Requests);
            match service {
                ORDER => self.store(service, message),
                _ => self.deliver(service, message),
            }
        }
        (0..self.loops.len()).for_each(|id| self.take_turn(id));
        self.go();
        count as f64 * 1e9 / self.engine.now() as f64
    }

    fn go(&mut self) {
        while let Some(told) = self.engine.advance() {
            match told {
                Told::Arrival => self.arrive(),
                Told::Accepted(order) => {
                    let instance = order % self.size.instances[ORDER];
                    let writer = self.writers[instance * self.size.outboxes + self.outbox(order)];
                    self.loops[writer].queue.push_back((order, Kind::Requests));
                    self.take_turn(writer);
                }
                Told::TurnOver(id) => self.turn_over(id),
                Told::DeleteDue(id) => self.take_turn(id),
                Told::WarmedUp => self.begin(),
                Told::LoadOver => self.measure(),
            }
        }
    }

    fn after(&mut self, time: Nanos, told: Told) {
        self.engine.start(vec![Step::Wait(time), Step::Tell(told)]);
    }

    /// An order comes, and the next one will at its moment.
    fn arrive(&mut self) {
        let gap = match self.load {
            None => return,
            Some(Load::UnderWay(_)) => None,
            Some(Load::Paced(rate)) => Some(1.0 / rate),
            Some(Load::Random(rate)) => Some(-(1.0 - self.random.random::<f64>()).ln() / rate),
        };
        if let Some(seconds) = gap {
            self.after(nanos(seconds * 1e3), Told::Arrival);
        }
        let order = self.place();
        let mut steps = vec![];
        if self.size.together {
            self.work(&mut steps, self.size.host(ORDER), &costs::LOAD, 1);
        }
        self.work(&mut steps, self.size.host(ORDER), &costs::HTTP, 1);
        steps.push(Step::Tell(Told::Accepted(order)));
        self.engine.start(steps);
    }

    fn place(&mut self) -> usize {
        let number = self.orders.len();
        let failing = [PAYMENT, STOCK][number / FAILING % 2];
        self.orders.push(Order {
            placed: self.engine.now(),
            partition: self.random.random_range(0..self.size.partitions),
            fails: (number % FAILING == FAILING - 1).then_some(failing),
            answers: 0,
        });
        self.unsettled += 1;
        number
    }

    /// It follows from the partition, so that consumers' batches touch few.
    fn outbox(&self, order: usize) -> usize {
        self.orders[order].partition % self.size.outboxes
    }

    /// A committed row waits for its relay.
    fn store(&mut self, service: usize, message: Message) {
        let relay = self.relays[service][self.outbox(message.0)];
        self.loops[relay].queue.push_back(message);
    }

    /// A published record waits for the consumer of its partition.
    fn deliver(&mut self, service: usize, message: Message) {
        let threads = &self.consumers[service];
        if !threads.is_empty() {
            let consumer = threads[self.orders[message.0].partition % threads.len()];
            self.loops[consumer].queue.push_back(message);
        }
    }

    /// The loop takes its next batch, if it is idle and there is one, or rows to delete.
    fn take_turn(&mut self, id: Id) {
        let (now, it) = (self.engine.now(), &mut self.loops[id]);
        let count = it.queue.len().min(it.limit());
        if it.busy || count == 0 && !it.must_delete(now) {
            return;
        }
        it.busy = true;
        it.turns += usize::from(count > 0);
        it.full += usize::from(count == it.limit());
        it.batch = it.queue.drain(..count).collect();
        let mut steps = vec![];
        match it.role {
            Role::Writer => self.write(id, &mut steps),
            Role::Relay => self.relay(id, &mut steps),
            Role::Consumer => self.consume(id, &mut steps),
        }
        steps.push(Step::Tell(Told::TurnOver(id)));
        self.engine.start(steps);
    }

    fn write(&mut self, id: Id, steps: &mut Steps) {
        let count = self.loops[id].batch.len();
        self.work(steps, self.size.host(ORDER), &costs::WRITE, count);
        self.work(steps, self.size.database(ORDER), &costs::PLACE, count);
        self.commit(id, steps);
    }

    /// One Kafka transaction; beside its writes PostgreSQL deletes what was published before and reads ahead.
    fn relay(&mut self, id: Id, steps: &mut Steps) {
        let (now, it) = (self.engine.now(), &mut self.loops[id]);
        let (host, database) = (self.size.host(it.service), self.size.database(it.service));
        let (count, is_full) = (it.batch.len(), it.batch.len() == it.limit());
        let mut beside = 0;
        if it.must_delete(now) {
            beside += costs::DELETE.time(std::mem::take(&mut it.undeleted.0));
        }
        if is_full {
            beside += costs::READ.time(it.queue.len().min(count));
        }
        let was_prefetched = std::mem::replace(&mut it.prefetched, is_full);
        if count == 0 {
            return steps.push(Step::Work(vec![(database, beside)]));
        }
        if !was_prefetched {
            self.work(steps, database, &costs::READ, count);
        }
        self.work(steps, host, &costs::BUILD, count);
        steps.push(Step::Work(self.replicated(costs::COORDINATE.time(1))));
        steps.push(Step::Beside(KAFKA, costs::COORDINATE.beside()));
        let mut writes = self.writes(id);
        writes.extend([(database, beside), (host, costs::SEND.time(count))]);
        let wait = nanos(costs::MARKERS) + self.network(&costs::COORDINATE);
        steps.extend([Step::Work(writes), Step::Wait(wait)]);
    }

    /// What the brokers do for the records of a relay's batch, each its share.
    fn writes(&self, id: Id) -> Vec<(Id, Nanos)> {
        let (mut time, mut joined) = (0, BTreeSet::new());
        for (order, kind) in &self.loops[id].batch {
            for topic in kind.topics() {
                time += costs::STORE.time(1);
                joined.insert((topic, self.orders[*order].partition));
            }
        }
        time += costs::JOIN.time(1) * joined.len() as Nanos;
        let shares = self.size.brokers as Nanos;
        (0..shares)
            .flat_map(|_| self.replicated(time / shares))
            .collect()
    }

    /// A leader's work, and that of the other replicas.
    fn replicated(&self, time: Nanos) -> Vec<(Id, Nanos)> {
        let replica = (time as f64 * costs::REPLICA) as Nanos;
        let mut work = vec![(KAFKA, replica); self.size.replicas];
        work[0].1 = time;
        work
    }

    fn consume(&mut self, id: Id, steps: &mut Steps) {
        let (service, batch) = (
            self.loops[id].service,
            std::mem::take(&mut self.loops[id].batch),
        );
        let fetches = self.size.brokers.min(batch.len());
        let fetch = (KAFKA, costs::FETCH.time(batch.len() / fetches));
        let effects = if service == ORDER {
            &costs::DECIDE
        } else {
            &costs::TAKE
        };
        steps.push(Step::Work(vec![fetch; fetches]));
        steps.push(Step::Wait(self.network(&costs::FETCH)));
        self.work(steps, self.size.host(service), &costs::HANDLE, batch.len());
        self.work(steps, self.size.database(service), effects, batch.len());
        let outgoing = batch
            .iter()
            .filter_map(|(order, _)| self.handle(service, *order));
        self.loops[id].batch = outgoing.collect();
        self.commit(id, steps);
    }

    /// What a record makes of its order.
    fn handle(&mut self, service: usize, order: usize) -> Option<Message> {
        let state = &mut self.orders[order];
        if service != ORDER {
            return Some((order, Kind::Answer(service)));
        }
        state.answers += 1;
        match (state.answers, state.fails) {
            (1, _) => None,
            (2, Some(PAYMENT)) => Some((order, Kind::Undo(STOCK))),
            (2, Some(_)) => Some((order, Kind::Undo(PAYMENT))),
            _ => Some((order, Kind::Settled)),
        }
    }

    /// Rows are appended under the locks of their outboxes, which are held up to the commit.
    fn commit(&self, id: Id, steps: &mut Steps) {
        let it = &self.loops[id];
        let rows = it.batch.iter();
        let rows = rows.filter(|(_, kind)| *kind != Kind::Settled);
        let outboxes = rows.clone().map(|(order, _)| self.outbox(*order));
        let outboxes: BTreeSet<usize> = outboxes.collect();
        let append = costs::APPEND.time(rows.count());
        let mut wait = nanos(self.size.commit);
        // the writer appends and commits by one statement
        if it.role == Role::Consumer {
            wait += self.network(&costs::APPEND);
        }
        if outboxes.is_empty() {
            return steps.push(Step::Wait(wait));
        }
        let locks = outboxes
            .iter()
            .map(|outbox| self.size.lock(it.service, *outbox));
        let mut work: Vec<_> = locks.map(|lock| (lock, append + wait)).collect();
        work.push((self.size.database(it.service), append));
        steps.push(Step::Work(work));
    }

    fn turn_over(&mut self, id: Id) {
        let (now, it) = (self.engine.now(), &mut self.loops[id]);
        it.busy = false;
        let (role, service, batch) = (it.role, it.service, std::mem::take(&mut it.batch));
        if role == Role::Relay && !batch.is_empty() {
            it.undeleted.0 += batch.len();
            if it.undeleted.0 == batch.len() {
                it.undeleted.1 = now;
                self.after(DELETE_AFTER, Told::DeleteDue(id));
            }
        }
        for message in batch {
            match (role, message.1) {
                (_, Kind::Settled) => self.settle(message.0),
                (Role::Relay, Kind::Requests) => {
                    self.deliver(PAYMENT, message);
                    self.deliver(STOCK, message);
                }
                (Role::Relay, Kind::Undo(side)) => self.deliver(side, message),
                (Role::Relay, Kind::Answer(_)) => self.deliver(ORDER, message),
                _ => self.store(service, message),
            }
        }
        (0..self.loops.len()).for_each(|id| self.take_turn(id));
    }

    fn settle(&mut self, order: usize) {
        let (now, placed) = (self.engine.now(), self.orders[order].placed);
        self.unsettled -= 1;
        if placed >= self.began {
            self.outcome.times.push(now - placed);
        }
        if self.load.is_some() {
            self.outcome.rate += 1.0;
        }
        if let Some(Load::UnderWay(_)) = self.load {
            self.after(0, Told::Arrival);
        }
    }

    /// It is warmed up.
    fn begin(&mut self) {
        self.engine.take_busy();
        let fresh = |it: &mut Loop| (it.turns, it.full) = (0, 0);
        self.loops.iter_mut().for_each(fresh);
        (self.began, self.outcome.rate) = (self.engine.now(), 0.0);
        self.outcome.times.clear();
    }

    /// No more orders come, and what counts by the second is counted.
    fn measure(&mut self) {
        self.load = None;
        let seconds = (self.engine.now() - self.began) as f64 / 1e9;
        let outcome = &mut self.outcome;
        outcome.rate /= seconds;
        let mut add = |part: String, share: f64| {
            let fullest = outcome.parts.entry(part).or_insert(0.0);
            *fullest = share.max(*fullest);
        };
        let machines = self.size.lock(ORDER, 0);
        let pools = self.size.pools().into_iter().zip(self.engine.take_busy());
        for (number, ((name, count), busy)) in pools.enumerate() {
            let at_work = busy as f64 / 1e9 / seconds;
            add(name, at_work / count as f64);
            if number < machines {
                outcome.processor += at_work * 1e3 / outcome.rate;
            }
        }
        for it in &self.loops {
            let name = format!("{}'s {:?}", SERVICES[it.service], it.role).to_lowercase();
            add(name, it.full as f64 / it.turns.max(1) as f64);
        }
    }

    fn work(&self, steps: &mut Steps, machine: Id, cost: &Cost, count: usize) {
        steps.push(Step::Work(vec![(machine, cost.time(count))]));
        steps.push(Step::Beside(machine, cost.beside()));
        steps.push(Step::Wait(self.network(cost)));
    }

    fn network(&self, cost: &Cost) -> Nanos {
        nanos(cost.trips * self.size.round_trip)
    }
}

impl Loop {
    /// Orders, rows and records in a batch: `BATCH` of `writer.rs` and of `batch.rs`, and `RELAY_BATCH`.
    fn limit(&self) -> usize {
        match self.role {
            Role::Writer => 300,
            Role::Relay => 2_000,
            Role::Consumer => 500,
        }
    }

    fn must_delete(&self, now: Nanos) -> bool {
        let (rows, since) = self.undeleted;
        rows >= self.limit() || rows > 0 && now - since >= DELETE_AFTER
    }
}

impl Kind {
    /// The topics of a row's records, as numbers.
    fn topics(self) -> &'static [usize] {
        match self {
            Kind::Requests => &[0, 1],
            Kind::Undo(PAYMENT) => &[2],
            Kind::Undo(_) => &[3],
            Kind::Answer(PAYMENT) => &[4],
            Kind::Answer(_) => &[5],
            Kind::Settled => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SMALLEST;

    const TWO_PROCESSORS: Size = Size {
        together: true,
        cores: 2,
        brokers: 1,
        replicas: 1,
        round_trip: 0.0,
        ..SMALLEST
    };

    #[test]
    fn every_order_settles_also_those_that_are_compensated_and_a_seed_gives_the_same_run() {
        // a run ends with all settled or panics
        for (load, seconds) in [(Load::Random(300.0), 2.0), (Load::UnderWay(400), 1.0)] {
            let size = Size {
                partitions: 5,
                outboxes: 2,
                consumers: [3, 2, 2],
                ..SMALLEST
            };
            let [first, again] =
                [7, 7].map(|seed| Saga::new(size.clone(), seed).run(load, seconds));
            assert!(first.times.len() > 350, "{}", first.times.len());
            assert_eq!(again.times, first.times);
        }
    }

    #[test]
    fn a_lone_order_takes_the_sum_of_its_steps() {
        // milliseconds on its way: fixed costs at 0.77, then what is paid for each, the disk, Kafka's markers
        let stored = (0.25 + 0.30 + 0.15) / 1.3 + 0.04 + 0.05 + 0.008 + 0.026 + 0.006 + 0.3;
        let asked =
            (0.13 + 0.35 + 0.75) / 1.3 + 0.002 + 0.003 + 2.0 * (0.004 + 0.10 / 1.3) + 0.003 + 0.7;
        let answered = (0.15 + 0.35 + 0.60 + 0.15) / 1.3 + 0.002 + 0.005 + 0.014 + 0.006 + 0.3;
        let published =
            (0.13 + 0.35 + 0.75) / 1.3 + 0.002 + 0.003 + 0.004 + 0.10 / 1.3 + 0.003 + 0.7;
        let decided = (0.15 + 0.35 + 0.50) / 1.3 + 0.002 + 0.005 + 0.014 + 0.3;
        let expected = stored + asked + answered + published + decided;
        let plenty = Size {
            cores: 64,
            ..TWO_PROCESSORS
        };
        let found = Saga::new(plenty, 1).run(Load::Paced(1.0), 8.0).at(10.0);
        // the second answer comes while the first one is decided on, or with it
        assert!(
            (expected..1.25 * expected).contains(&found),
            "{found}, {expected} at least"
        );
    }

    #[test]
    fn a_relays_rate_is_that_of_its_longest_way() {
        // a full turn: records made, the transaction begun, rows deleted and read ahead, markers and network
        let turn =
            (0.35 + 0.75 + 0.20 + 0.13) / 1.3 + 2_000.0 * (0.003 + 0.009 + 0.002) + 0.7 + 0.8;
        let alone = Size {
            consumers: [0; 3],
            cores: 16,
            ..SMALLEST
        };
        let found = Saga::new(alone, 1).drain(ORDER, 100_000);
        assert!(
            (found / (2_000_000.0 / turn) - 1.0).abs() < 0.05,
            "{found} rows/s, {turn} ms a turn"
        );
    }

    #[test]
    fn the_bench_machine_settles_about_as_many_as_the_bench_has_measured() {
        let found = Saga::new(TWO_PROCESSORS, 1)
            .run(Load::UnderWay(2_800), 3.0)
            .rate;
        assert!((found / 5_585.0 - 1.0).abs() < 0.25, "{found}");
    }
}
