//! Writes a record, once: `cargo run -p kafka --example produce -- localhost:9092 TOPIC`.

use kafka::{Config, Interrupt, Producer, ProducerRecord, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let broker = arguments
        .next()
        .unwrap_or_else(|| "localhost:9092".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "orders".to_owned());
    let mut producer = Producer::idempotent(Config::new(vec![broker], "example"), Interrupt::new());
    let written = producer.send([ProducerRecord::new(topic, "two teas").with_key("order 7")])?;
    println!("{written:?}");
    Ok(())
}
