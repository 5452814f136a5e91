//! Makes a topic, describes it and deletes it: `cargo run -p kafka --example topics -- localhost:9092 TOPIC`.

use kafka::{Admin, Config, Interrupt, NewTopic, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let broker = arguments
        .next()
        .unwrap_or_else(|| "localhost:9092".to_owned());
    let name = arguments.next().unwrap_or_else(|| "example".to_owned());
    let mut admin = Admin::new(Config::new(vec![broker], "example"), Interrupt::new());
    admin.create_topics(&[NewTopic::new(&name, 3).with_config("retention.ms", "86400000")])?;
    println!("{:?}", admin.describe_topics(std::slice::from_ref(&name))?);
    admin.delete_topics(&[name])
}
