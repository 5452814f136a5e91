//! Percentiles; what was measured on.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::books::Books;

/// A progress bar; invisible where the output is no terminal.
pub fn bar(what: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:8} {wide_bar} {pos}/{len} {per_sec}").expect("a valid template");
    ProgressBar::new(length as u64).with_style(style).with_message(what)
}

/// A line of the table: p50, p95, p99 and the maximum of these times, in milliseconds, by nearest rank.
pub fn line(label: &str, mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    };
    format!("{label:<18} {:>10.1} {:>10.1} {:>10.1} {:>10.1}", at(50), at(95), at(99), at(100))
}

/// Machine, servers and settings.
///
/// # Errors
/// What PostgreSQL says.
pub fn machine(books: &mut Books) -> Result<String, String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let settings = ["CONSUMERS", "TOPIC_PARTITIONS", "RELAY_BATCH", "HTTP_WORKERS", "INSTANCES"];
    let settings = settings.map(|name| format!("{name} {}", std::env::var(name).unwrap_or("default".into())));
    Ok(format!(
        "{cores} cores, {}, kernel {}, load {}; PostgreSQL {}, Kafka {} (unless it is your own); {}",
        memory(),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        books.version()?,
        kafka_version(),
        settings.join(", ")
    ))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or("unknown".into(), |text| text.trim().to_string())
}

fn memory() -> String {
    let info = read("/proc/meminfo");
    let kib =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or("memory unknown".into(), |kib| format!("{:.1} GiB memory", kib as f64 / (1 << 20) as f64))
}

/// That of the private Kafka, by its jars: the protocol does not tell a broker's version.
fn kafka_version() -> String {
    let libs = std::env::var("KAFKA_LIBS").unwrap_or_default();
    let names = std::fs::read_dir(libs)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let version = |name: String| Some(name.strip_prefix("kafka-clients-")?.strip_suffix(".jar")?.to_string());
    names.filter_map(version).next().unwrap_or("of unknown version".into())
}
