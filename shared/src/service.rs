//! The life of a service process: its command line and settings, then a start, threads, and the stop.
//!
//! | module | idea |
//! | --- | --- |
//! | [`cli`], [`check`], [`ready`], [`take_over`] | what a process can be asked for: help from the settings themselves; whether it could start, and nothing changed; whether it is ready; a copy of a database that goes on |
//! | [`startup`], [`topics`], [`brokers`] | servers waited for, and what is asked of Kafka before a service works with it |
//! | [`instance`] | a service put together: relay, consumers, monitor, housekeeping, HTTP |
//! | [`threads`] | the named threads: started, watched, stopped and joined |
//! | [`monitor`], [`status_http`], [`logging`] | what is seen from outside, shown over HTTP; log lines |
//! | [`exporter`] | spans, sent to a collector |
//! | [`file_limit`] | descriptors: what the service itself needs comes first, clients get the rest |

use std::process::ExitCode;
use std::time::Duration;

use refinery::Runner;

use crate::config::Config;
use crate::db::watchdog;
use crate::error::{Error, Result};
use crate::event::Service;
use crate::shutdown::{self, Shutdown, Stop};
use cli::Command;

pub use instance::{Instance, MakeHandler};

pub mod brokers;
pub mod check;
pub mod cli;
pub mod exporter;
pub mod file_limit;
pub mod instance;
pub mod logging;
pub mod monitor;
pub mod ready;
pub mod startup;
pub mod status_http;
pub mod take_over;
pub mod threads;
pub mod topics;

/// A stop ends within ten seconds; what is not done by then is safe to cut off (I8).
const STOP_LIMIT: Duration = Duration::from_millis(9_000);
/// What `main` does: arguments, settings, then `run` or what else is asked for ([`cli`]). Exit code 2: bad arguments or
/// settings; 1: stopped by an error.
///
/// `about`: what the service is, for `--help`; `migrations`: its own, for `--check`.
pub fn main(
    service: Service,
    about: &str,
    migrations: fn() -> Runner,
    run: impl FnOnce(Config, Stop, Shutdown) -> Result<()>,
) -> ExitCode {
    let settings = || Config::from_env(service).map_err(|error| error.to_string());
    let outcome = cli::parse(std::env::args_os().skip(1)).and_then(|action| {
        match action {
            Command::Help => cli::print(&cli::help(service, about)),
            Command::Version => cli::print(&cli::version(service)),
            Command::Check if !check::run(&settings()?, migrations()) => {
                return Ok(ExitCode::FAILURE);
            }
            Command::Ready if !ready::run(&settings()?) => return Ok(ExitCode::FAILURE),
            Command::TakeOver if !take_over::run(&settings()?, migrations()) => {
                return Ok(ExitCode::FAILURE);
            }
            Command::Check | Command::Ready | Command::TakeOver => {}
            Command::Run => return Ok(run_logged(settings()?, run)),
        }
        Ok(ExitCode::SUCCESS)
    });
    outcome.unwrap_or_else(|why| {
        eprintln!("{}: {why}", service.name());
        ExitCode::from(2)
    })
}

fn run_logged(config: Config, run: impl FnOnce(Config, Stop, Shutdown) -> Result<()>) -> ExitCode {
    logging::init(config.log_level);
    config
        .remarks()
        .iter()
        .for_each(|remark| log::warn!("{remark}"));
    let (stop, shutdown) = shutdown::channel();
    let watched = shutdown.clone();
    let watchdog = std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || watchdog::watch(&watched, STOP_LIMIT));
    let ready = watchdog.and_then(|_| stop.on_signals(config.shutdown_delay));
    let outcome = ready
        .map_err(Error::from)
        .and_then(|()| run(config, stop, shutdown));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Stopped(what)) => {
            log::info!("{what}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error!("stopped: {error}");
            ExitCode::FAILURE
        }
    }
}
