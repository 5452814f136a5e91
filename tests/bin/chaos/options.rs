//! What is to be done: the arguments.

use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str = "chaos [--orders N] [--faults M] [--seed S] [--instances K] [--brokers 3] [--minutes T] [--spare-broker]
chaos --prove FOLDER [--only MECHANISM] [--times N]
  --orders N     requests in all; default 1000
  --faults M     faults in all; default 12
  --seed S       what the requests and faults are drawn from; default: another one each time, printed
  --instances K  of every service; default 2
  --brokers 3    a Kafka of three brokers instead of one: one of them is killed, frozen, or made another topic's leader
  --minutes T    for load and faults; more is a violation; default 15
  --spare-broker no kill -9 of the broker: a lone one that is killed between a transaction's decision and its markers may
                 skip markers when it starts again, and then a part of that transaction stays pending for ever
  --prove FOLDER six scenarios, each by the binaries as they are and by those of FOLDER, built with --cfg sabotage, without
                 the mechanism that the scenario is about: it must be noticed
  --only M       natural-key, offset-cas, pair, fencing, position or append-lock alone
  --times N      how often each; default 1";

/// What is asked for.
pub enum Task {
    /// The usage, which is printed.
    Help,
    /// Load and faults.
    Hurt(Options),
    /// The scenarios.
    Prove {
        /// The folder of the binaries built with `--cfg sabotage`.
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
}

/// As the call that does the same again.
impl std::fmt::Display for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Options { orders, faults, seed, instances, brokers, .. } = self;
        let spare = if self.spare_broker { " --spare-broker" } else { "" };
        write!(
            f,
            "chaos --orders {orders} --faults {faults} --seed {seed} --instances {instances} --brokers {brokers}{spare}"
        )
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
    let limit = Duration::from_secs(60 * minutes);
    Ok(match sabotaged {
        Some(sabotaged) => Task::Prove { sabotaged, only, times: times as usize },
        None => Task::Hurt(Options { orders, faults, seed, instances, limit, spare_broker, brokers: brokers as usize }),
    })
}

fn text(parser: &mut lexopt::Parser) -> Result<String, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    value.into_string().map_err(|value| format!("{value:?} is not UTF-8"))
}

fn number(parser: &mut lexopt::Parser, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| range.contains(number));
    number.ok_or(format!("{value:?}: must be a whole number from {} to {}", range.start(), range.end()))
}
