//! The process's descriptors: HTTP gets half of them at most, so no number of clients keeps the service from reaching
//! its servers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::http::ServerLimits;

/// The HTTP server's limits. The soft limit of descriptors is raised as far as needed and the hard one allows. Where half of
/// it is less than the usual number of connections, that is logged.
pub fn http_limits(config: &Config) -> ServerLimits {
    let available = raise(2 * ServerLimits::MAX_CONNECTIONS);
    let connections = (available / 2).min(ServerLimits::MAX_CONNECTIONS);
    if connections < ServerLimits::MAX_CONNECTIONS {
        log::warn!(
            "{available} descriptors, half of them for the service itself: {connections} HTTP connections at once instead of {}; \
             raise the limit (ulimit -n)",
            ServerLimits::MAX_CONNECTIONS
        );
    }
    ServerLimits {
        workers: config.http_workers,
        connections,
        ..ServerLimits::default()
    }
}

/// The number of descriptors that this process may have, after raising it towards `wanted`.
fn raise(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // none: without limit
    let soft = limit.current.unwrap_or(u64::MAX);
    let reachable = limit.maximum.unwrap_or(u64::MAX).min(wanted as u64);
    let raised = Rlimit {
        current: Some(reachable),
        maximum: limit.maximum,
    };
    if soft < reachable
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::warn!("the limit of {soft} descriptors can't be raised to {reachable}: {error}");
        return soft as usize;
    }
    usize::try_from(soft.max(reachable)).unwrap_or(usize::MAX)
}
