//! Log lines: time in UTC, level, thread name, message; to standard error.

use log::LevelFilter;
use simplelog::{ConfigBuilder, LevelPadding, SimpleLogger, ThreadLogMode, ThreadPadding};

/// Sets up the process's logger. A second call (several services in one test process) changes nothing.
pub fn init(level: LevelFilter) {
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_level_padding(LevelPadding::Right)
        .set_thread_level(LevelFilter::Error)
        .set_thread_mode(ThreadLogMode::Names)
        .set_thread_padding(ThreadPadding::Right(18))
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        // their lines say nothing that ours don't
        .add_filter_ignore_str("refinery_core")
        .add_filter_ignore_str("tokio_postgres")
        .add_filter_ignore_str("postgres")
        .build();
    let _ = SimpleLogger::init(level, config);
}
