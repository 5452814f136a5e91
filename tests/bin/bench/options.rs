//! What is to be measured: the arguments.

use std::time::Duration;

const USAGE: &str = "bench [SECTION...] [--seconds S] [--connections C] [--rows N]
  SECTION          levels, limits, relay, consumers, recovery, restarts, overload or growth; none named: all
  --seconds S      length of each measured stretch; default 15
  --connections C  keep-alive connections of the load, a thread each; default 256
  --rows N         rows that wait in the relay's outbox, half as many as wait for a consumer; default 100000";

/// What is to be measured.
pub struct Options {
    sections: Vec<String>,
    /// The length of each measured stretch.
    pub time: Duration,
    /// Keep-alive connections of the load, a thread each.
    pub connections: usize,
    /// Rows that wait in the relay's outbox; twice as many records wait for a consumer.
    pub rows: usize,
}

impl Options {
    /// Whether a section was named, or none was.
    pub fn wants(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|wanted| wanted == section)
    }
}

/// Reads the arguments. None: the usage was asked for, and printed.
///
/// # Errors
/// What is wrong with them.
pub fn read(sections: &[&str]) -> Result<Option<Options>, String> {
    use lexopt::prelude::*;
    let mut options = Options {
        sections: vec![],
        time: Duration::from_secs(15),
        connections: 256,
        rows: 100_000,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            // a connection that waits longer for its turn would be closed as idle
            Long("seconds") => {
                options.time = Duration::from_secs(number(&mut parser, 1..=60)? as u64)
            }
            Long("connections") => options.connections = number(&mut parser, 1..=1_000)?,
            Long("rows") => options.rows = number(&mut parser, 1_000..=10_000_000)?,
            Short('h') | Long("help") => {
                println!("{USAGE}");
                return Ok(None);
            }
            Value(name) if sections.iter().any(|section| name == *section) => {
                options.sections.push(name.to_string_lossy().into_owned());
            }
            other => return Err(format!("{}\n{USAGE}", other.unexpected())),
        }
    }
    Ok(Some(options))
}

fn number(
    parser: &mut lexopt::Parser,
    range: std::ops::RangeInclusive<usize>,
) -> Result<usize, String> {
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
