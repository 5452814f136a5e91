//! What was measured on.

use harness::env;
use postgres::{Client, NoTls};
use serde_json::{Value, json};

use crate::books::said;
use crate::procfs;

/// Machine, servers and when.
///
/// # Errors
/// What PostgreSQL says.
pub fn describe() -> Result<Value, String> {
    let mut postgres = Client::connect(&env::setting("TEST_POSTGRES_URL"), NoTls).map_err(said)?;
    let mut ask = |sql| Ok::<String, String>(postgres.query_one(sql, &[]).map_err(said)?.get(0));
    Ok(json!({
        "at": ask("select to_char(now() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")?,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory MiB": procfs::machine_memory().round(),
        "processor": processor(),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "load before": read("/proc/loadavg").split(' ').next(),
        "PostgreSQL": ask("show server_version")?,
        "Kafka": kafka(),
    }))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or("unknown".into(), |text| text.trim().to_string())
}

fn processor() -> String {
    let info = read("/proc/cpuinfo");
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("unknown".into(), |(_, name)| name.to_string())
}

/// That of the private Kafka, by its jars: the protocol does not tell a broker's version.
fn kafka() -> Option<String> {
    let jars = std::fs::read_dir(env::setting("KAFKA_LIBS_4")).ok()?;
    let names = jars
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let version = |name: String| {
        Some(
            name.strip_prefix("kafka-clients-")?
                .strip_suffix(".jar")?
                .to_string(),
        )
    };
    names.filter_map(version).next()
}
