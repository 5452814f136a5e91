//! What is to be done: the arguments.

use std::path::PathBuf;
use std::time::Duration;

use harness::Service;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const USAGE: &str = "chaos [--orders N] [--faults M] [--seed S] [--instances K] [--brokers 3] [--minutes T] [--spare-broker]
      [--lost-tail[=SERVICE]] [--failover] [--overload] [--nothing-else]
chaos --prove FOLDER [--only MECHANISM] [--times N]
  --orders N     requests in all; default 1000
  --faults M     faults in all; default 12
  --seed S       what the requests and faults are drawn from; default: another one each time, printed
  --instances K  of every service; default 2
  --brokers 3    a Kafka of three brokers instead of one: one of them is killed, frozen, or made another topic's leader
  --minutes T    for load and faults; more is a violation; default 15
  --spare-broker no kill -9 of the broker: a lone one that is killed between a transaction's decision and its markers may
                 skip markers when it starts again, and then a part of that transaction stays pending for ever
  --lost-tail    one more kind of fault: a service's database is lost, and its standby, a second behind, takes over. For the
                 whole run this database is a pair of our own; =order, =payment or =stock, or else drawn from the seed
  --failover     one more kind of fault: the primary of all three databases is killed, its synchronous standby takes over, and the
                 old primary comes back as its standby. Nothing is excused, so not with --lost-tail
  --overload     one more kind of fault: for some seconds many more orders are placed than can be settled
  --nothing-else no other kinds of faults than these three
  --prove FOLDER eight scenarios, each by the binaries as they are and by those of FOLDER, built with tests/sabotage.patch, without
                 the mechanism that the scenario is about: it must be noticed
  --only M       natural-key, offset-cas, pair, fencing, position, append-lock, admission or repair alone
  --times N      how often each; default 1";

/// What is asked for.
pub enum Task {
    /// The usage, which is printed.
    Help,
    /// Load and faults.
    Hurt(Options),
    /// The scenarios.
    Prove {
        /// The folder of the binaries built with tests/sabotage.patch.
        sabotaged: PathBuf,
        /// The only mechanism that is asked for.
        only: Option<String>,
        /// How often each.
        times: usize,
    },
}

/// What is to be done.
pub struct Options {
    /// Requests in all.
    pub orders: usize,
    /// Faults in all.
    pub faults: usize,
    /// What both are drawn from.
    pub seed: u64,
    /// Of every service.
    pub instances: usize,
    /// Of the private Kafka.
    pub brokers: usize,
    /// For load and faults.
    pub limit: Duration,
    /// No kill -9 of the broker.
    pub spare_broker: bool,
    /// Whose database may lose its tail.
    pub lost_tail: Option<Service>,
    /// All databases have a synchronous standby that may take over.
    pub failover: bool,
    /// More load than can be settled is a fault, too.
    pub overload: bool,
    /// These three are the only kinds of faults.
    pub nothing_else: bool,
}

impl Options {
    /// Whether nothing is done to the system but that much is asked of it.
    pub fn is_load_alone(&self) -> bool {
        let hurts = self.lost_tail.is_some() || self.failover;
        self.faults == 0 || (self.overload && self.nothing_else && !hurts)
    }
}

/// As the call that does the same again.
impl std::fmt::Display for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Options {
            orders,
            faults,
            seed,
            instances,
            brokers,
            ..
        } = self;
        write!(
            f,
            "chaos --orders {orders} --faults {faults} --seed {seed} --instances {instances} --brokers {brokers}"
        )?;
        if let Some(service) = self.lost_tail {
            write!(f, " --lost-tail={}", service.name())?;
        }
        let flags = [
            ("spare-broker", self.spare_broker),
            ("failover", self.failover),
            ("overload", self.overload),
            ("nothing-else", self.nothing_else),
        ];
        flags
            .iter()
            .filter(|(_, is_set)| *is_set)
            .try_for_each(|(name, _)| write!(f, " --{name}"))
    }
}

/// Reads the arguments; the usage, if asked for, is printed.
///
/// # Errors
/// What is wrong with them.
pub fn read() -> Result<Task, String> {
    use lexopt::prelude::*;
    let (mut orders, mut faults, mut instances, mut brokers, mut minutes) = (1_000, 12, 2, 1, 15);
    let mut seed = rand::random::<u32>().into();
    let (mut spare_broker, mut sabotaged, mut only, mut times) = (false, None, None, 1);
    let (mut lost_tail, mut failover, mut overload, mut nothing_else) = (None, false, false, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("orders") => orders = number(&mut parser, 1..=1_000_000)?,
            Long("faults") => faults = number(&mut parser, 0..=1_000)?,
            Long("seed") => seed = number(&mut parser, 0..=u64::MAX)?,
            Long("instances") => instances = number(&mut parser, 1..=5)?,
            Long("brokers") => brokers = number(&mut parser, 1..=3)?,
            Long("minutes") => minutes = number(&mut parser, 1..=1_440)?,
            Long("spare-broker") => spare_broker = true,
            Long("lost-tail") => lost_tail = Some(parser.optional_value()),
            Long("failover") => failover = true,
            Long("overload") => overload = true,
            Long("nothing-else") => nothing_else = true,
            Long("prove") => sabotaged = Some(PathBuf::from(text(&mut parser)?)),
            Long("only") => only = Some(text(&mut parser)?),
            Long("times") => times = number(&mut parser, 1..=1_000)?,
            Short('h') | Long("help") => {
                println!("{USAGE}");
                return Ok(Task::Help);
            }
            other => return Err(format!("{}\n{USAGE}", other.unexpected())),
        }
    }
    let (orders, faults, instances) = (orders as usize, faults as usize, instances as usize);
    let (limit, brokers) = (Duration::from_secs(60 * minutes), brokers as usize);
    if let Some(sabotaged) = sabotaged {
        return Ok(Task::Prove {
            sabotaged,
            only,
            times: times as usize,
        });
    }
    if nothing_else && lost_tail.is_none() && !failover && !overload {
        return Err("--nothing-else: than --lost-tail, --failover or --overload".to_string());
    }
    if failover && lost_tail.is_some() {
        return Err("--failover claims what --lost-tail excuses: one of them".to_string());
    }
    let lost_tail = lost_tail.map(|named| whose(named, seed)).transpose()?;
    Ok(Task::Hurt(Options {
        orders,
        faults,
        seed,
        instances,
        brokers,
        limit,
        spare_broker,
        lost_tail,
        failover,
        overload,
        nothing_else,
    }))
}

/// The service that is named, or else one drawn from the seed.
fn whose(named: Option<std::ffi::OsString>, seed: u64) -> Result<Service, String> {
    let Some(name) = named else {
        let mut random = StdRng::seed_from_u64(seed.rotate_left(47));
        return Ok(*Service::ALL.choose(&mut random).expect("three"));
    };
    let found = Service::ALL
        .into_iter()
        .find(|service| name.to_str() == Some(service.name()));
    found.ok_or(format!("--lost-tail: there is no service {name:?}"))
}

fn text(parser: &mut lexopt::Parser) -> Result<String, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    value
        .into_string()
        .map_err(|value| format!("{value:?} is not UTF-8"))
}

fn number(
    parser: &mut lexopt::Parser,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    let number = value
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(|number| range.contains(number));
    number.ok_or(format!(
        "{value:?}: must be a whole number from {} to {}",
        range.start(),
        range.end()
    ))
}
