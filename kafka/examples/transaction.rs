//! Writes to two topics, all or nothing: `cargo run -p kafka --example transaction -- localhost:9092 TOPIC TOPIC`.

use std::time::Duration;

use kafka::{Config, Interrupt, Producer, ProducerRecord, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let broker = arguments
        .next()
        .unwrap_or_else(|| "localhost:9092".to_owned());
    let topics: Vec<String> = arguments.collect();
    let config = Config::new(vec![broker], "example");
    // whoever uses this id next fences this producer, and aborts what it has left open
    let mut producer = Producer::transactional(
        config,
        Interrupt::new(),
        "example-transaction",
        Duration::from_secs(60),
    );
    producer.initialise()?;
    let mut transaction = producer.begin()?;
    transaction.send(
        topics
            .iter()
            .map(|topic| ProducerRecord::new(topic.as_str(), "both or none"))
            .collect::<Vec<_>>(),
    )?;
    transaction.commit()
}
