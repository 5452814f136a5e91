//! Reads topics, shared with other members: `cargo run -p kafka --example group -- localhost:9092 GROUP TOPIC...`.

use std::time::Duration;

use kafka::{Config, FetchConfig, GroupConfig, GroupConsumer, Interrupt, Positions, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let broker = arguments
        .next()
        .unwrap_or_else(|| "localhost:9092".to_owned());
    let group = arguments.next().unwrap_or_else(|| "example".to_owned());
    let (config, group) = (
        Config::new(vec![broker], "example"),
        GroupConfig::new(group, arguments.collect()),
    );
    let positions = Positions::CommittedOrEarliest;
    let mut consumer = GroupConsumer::new(
        config,
        Interrupt::new(),
        group,
        FetchConfig::default(),
        positions,
    )?;
    loop {
        for polled in consumer.poll(Duration::from_secs(1))? {
            for record in polled.records() {
                println!("{record:?}");
            }
        }
        consumer.commit()?;
    }
}
