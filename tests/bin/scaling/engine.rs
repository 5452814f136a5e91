//! Simulated time: tasks that go through their steps, and pools of processors that work for them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::vec::IntoIter;

/// Simulated time; whole numbers, so that a seed gives the same run on every machine.
pub type Nanos = u64;
/// A number of a pool, a task, a loop.
pub type Id = usize;
/// After so long a processor turns to the next job, as an operating system's does: a batch does not hold up a lone order.
const SLICE: Nanos = 3_000_000;

/// From milliseconds, as costs are given.
pub fn nanos(milliseconds: f64) -> Nanos {
    (milliseconds * 1e6).round() as Nanos
}

/// What a task does next.
pub enum Step<E> {
    /// Works on several pools at once, until all of it is done.
    Work(Vec<(Id, Nanos)>),
    /// Leaves work behind that nobody waits for.
    Beside(Id, Nanos),
    /// Lets time pass.
    Wait(Nanos),
    /// Tells the model.
    Tell(E),
}

struct Pool {
    free: usize,
    queue: VecDeque<Job>,
    busy: Nanos,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    /// None: nobody waits for it.
    task: Option<Id>,
    left: Nanos,
}

struct Task<E> {
    steps: IntoIter<Step<E>>,
    jobs: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    SliceOver(Id, Job),
    WaitOver(Id),
}

/// The clock and all that it moves.
pub struct Engine<E> {
    now: Nanos,
    /// By their moment, and then in the order in which they were planned.
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    planned: u64,
    pools: Vec<Pool>,
    tasks: Vec<Task<E>>,
    ended: Vec<Id>,
    ready: VecDeque<Id>,
    told: VecDeque<E>,
}

impl<E> Engine<E> {
    /// With pools of so many processors each.
    pub fn new(pools: impl IntoIterator<Item = usize>) -> Engine<E> {
        let pool = |free| Pool {
            free,
            queue: VecDeque::new(),
            busy: 0,
        };
        Engine {
            now: 0,
            events: BinaryHeap::new(),
            planned: 0,
            pools: pools.into_iter().map(pool).collect(),
            tasks: vec![],
            ended: vec![],
            ready: VecDeque::new(),
            told: VecDeque::new(),
        }
    }

    /// The present moment.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// The processor time that each pool has worked since it was asked for last.
    pub fn take_busy(&mut self) -> Vec<Nanos> {
        let pools = self.pools.iter_mut();
        pools.map(|pool| std::mem::take(&mut pool.busy)).collect()
    }

    /// Begins a task.
    pub fn start(&mut self, steps: Vec<Step<E>>) {
        let steps = steps.into_iter();
        let task = Task { steps, jobs: 0 };
        let id = self.ended.pop().unwrap_or(self.tasks.len());
        match self.tasks.get_mut(id) {
            Some(ended) => *ended = task,
            None => self.tasks.push(task),
        }
        self.ready.push_back(id);
    }

    /// What a task tells next; none when all have ended.
    pub fn advance(&mut self) -> Option<E> {
        loop {
            while let Some(id) = self.ready.pop_front() {
                self.go_on(id);
            }
            if let Some(told) = self.told.pop_front() {
                return Some(told);
            }
            let Reverse((at, _, event)) = self.events.pop()?;
            self.now = at;
            match event {
                Event::WaitOver(id) => self.ready.push_back(id),
                Event::SliceOver(pool, job) => self.slice_over(pool, job),
            }
        }
    }

    /// Takes a task's steps up to one that takes time.
    fn go_on(&mut self, id: Id) {
        loop {
            match self.tasks[id].steps.next() {
                None => return self.ended.push(id),
                Some(Step::Work(jobs)) => {
                    self.tasks[id].jobs = jobs.len();
                    let task = Some(id);
                    jobs.into_iter()
                        .for_each(|(pool, left)| self.submit(pool, Job { task, left }));
                    return;
                }
                Some(Step::Beside(pool, left)) => self.submit(pool, Job { task: None, left }),
                Some(Step::Wait(time)) => return self.plan(time, Event::WaitOver(id)),
                Some(Step::Tell(what)) => self.told.push_back(what),
            }
        }
    }

    fn plan(&mut self, after: Nanos, event: Event) {
        self.planned += 1;
        let entry = (self.now + after, self.planned, event);
        self.events.push(Reverse(entry));
    }

    fn submit(&mut self, id: Id, job: Job) {
        let pool = &mut self.pools[id];
        if pool.free == 0 {
            return pool.queue.push_back(job);
        }
        pool.free -= 1;
        self.run(id, job);
    }

    fn run(&mut self, id: Id, job: Job) {
        let slice = job.left.min(SLICE);
        self.pools[id].busy += slice;
        self.plan(slice, Event::SliceOver(id, job));
    }

    fn slice_over(&mut self, id: Id, mut job: Job) {
        job.left = job.left.saturating_sub(SLICE);
        if job.left > 0 {
            self.pools[id].queue.push_back(job);
        } else if let Some(task) = job.task {
            self.tasks[task].jobs -= 1;
            if self.tasks[task].jobs == 0 {
                self.ready.push_back(task);
            }
        }
        match self.pools[id].queue.pop_front() {
            Some(next) => self.run(id, next),
            None => self.pools[id].free += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// The mean time from arrival to end, in service times, at processors that random arrivals keep busy for this share.
    fn mean_stay(processors: usize, share: f64) -> f64 {
        const SERVICE: f64 = 0.5;
        const ARRIVALS: usize = 100_000;
        let mut random = StdRng::seed_from_u64(1);
        let mut engine = Engine::new([processors]);
        let mut at = 0.0;
        for _ in 0..ARRIVALS {
            at -= (1.0 - random.random::<f64>()).ln() * SERVICE / share / processors as f64;
            let arrival = nanos(at);
            engine.start(vec![
                Step::Wait(arrival),
                Step::Work(vec![(0, nanos(SERVICE))]),
                Step::Tell(arrival),
            ]);
        }
        let mut total = 0;
        while let Some(arrival) = engine.advance() {
            total += engine.now() - arrival;
        }
        total as f64 / ARRIVALS as f64 / nanos(SERVICE) as f64
    }

    #[test]
    fn a_queue_is_as_long_as_theory_says() {
        // M/D/1 by Pollaczek and Khinchin: 1 + share / (2 (1 - share)); M/D/2 by Cosmetatos
        for (processors, share, stay) in [(1, 0.5, 1.5), (1, 0.8, 3.0), (2, 0.5, 1.176)] {
            let found = mean_stay(processors, share);
            assert!(
                (found / stay - 1.0).abs() < 0.05,
                "{processors} at {share}: {found}, {stay} expected"
            );
        }
    }

    #[test]
    fn work_on_two_pools_takes_as_long_as_the_longer_and_slices_are_shared() {
        let mut engine = Engine::new([1, 1]);
        engine.start(vec![
            Step::Work(vec![(0, nanos(4.0)), (1, nanos(7.0))]),
            Step::Tell("both"),
        ]);
        engine.start(vec![Step::Work(vec![(1, nanos(1.0))]), Step::Tell("short")]);
        let mut told = vec![];
        while let Some(what) = engine.advance() {
            told.push((what, engine.now()));
        }
        // the short one waits for one slice of the long one, and is over before it
        assert_eq!(told, [("short", nanos(4.0)), ("both", nanos(8.0))]);
        assert_eq!(engine.take_busy(), [nanos(4.0), nanos(8.0)]);
        assert_eq!(engine.take_busy(), [0, 0]);
    }
}
