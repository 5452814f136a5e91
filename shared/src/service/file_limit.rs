//! The process's descriptors, shared out: what the service itself needs comes first, clients get the rest.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::event::Service;
use crate::http::ServerLimits;

/// Standard streams, listener, signals; a connection that is accepted before another makes room.
const OWN: usize = 8;
/// A database session: its socket, and what the `postgres` crate's event loop takes.
const A_SESSION: usize = 4;
/// Besides those of workers and consumers: relay, listener, notifier, writer, deadline, long polls, monitor.
const SESSIONS: usize = 7;
/// A connection to a broker: its socket, and the clone that a stop shuts down.
const A_BROKER_CONNECTION: usize = 2;
/// To the partitions' leader, to the coordinator of transactions, and to read positions.
const BROKER_CONNECTIONS_OF_RELAY: usize = 3;
/// To the partitions' leader, to the group's coordinator, and for heartbeats.
const BROKER_CONNECTIONS_OF_CONSUMER: usize = 3;
/// What ends a consumer's waiting for records: a pair of sockets.
const WAKE_OF_CONSUMER: usize = 2;
/// To the partitions' leader, for metadata, and to the partitions' leader for records: a consumer of order's while it looks for
/// orders that the database has lost.
const BROKER_CONNECTIONS_OF_RECOVERY: usize = 3;
/// To the partitions' leader.
const BROKER_CONNECTIONS_OF_MONITOR: usize = 1;

/// With fewer nobody would be served: one connection is answered while another arrives.
const MIN_CONNECTIONS: usize = 2;

/// The HTTP server's limits: as many connections as the process's descriptor limit leaves room for beside its database
/// sessions and broker connections, so that clients can never keep the service from reconnecting. Raises the soft limit
/// as far as needed and the hard one allows.
pub fn http_limits(config: &Config) -> ServerLimits {
    let reserve = reserve(config);
    let available = raise(reserve + ServerLimits::MAX_CONNECTIONS);
    let connections = connections(available, reserve);
    if connections < ServerLimits::MAX_CONNECTIONS {
        log::warn!(
            "{available} descriptors, {reserve} of them reserved: {connections} HTTP connections at once instead of {}; \
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

fn reserve(config: &Config) -> usize {
    let sessions = SESSIONS + config.http_workers + config.consumers;
    let of_recovery = if config.service == Service::Order {
        BROKER_CONNECTIONS_OF_RECOVERY
    } else {
        0
    };
    let of_consumer = BROKER_CONNECTIONS_OF_CONSUMER + of_recovery;
    let to_each_broker = BROKER_CONNECTIONS_OF_RELAY
        + of_consumer * config.consumers
        + BROKER_CONNECTIONS_OF_MONITOR;
    OWN + WAKE_OF_CONSUMER * config.consumers
        + A_SESSION * sessions
        + A_BROKER_CONNECTION * to_each_broker * config.brokers.len()
}

fn connections(available: usize, reserve: usize) -> usize {
    available
        .saturating_sub(reserve)
        .clamp(MIN_CONNECTIONS, ServerLimits::MAX_CONNECTIONS)
}

/// The number of descriptors that this process may have, after raising it towards `wanted`.
fn raise(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // none: without limit
    let [soft, hard] = [limit.current, limit.maximum].map(|limit| {
        limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        })
    });
    let reachable = wanted.min(hard);
    if soft >= reachable {
        return soft;
    }
    let raised = Rlimit {
        current: Some(reachable as u64),
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => reachable,
        Err(error) => {
            log::warn!("the limit of {soft} descriptors can't be raised to {reachable}: {error}");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_s_own_connections_are_reserved_before_any_client_gets_one() {
        let config = Config::from_lookup(Service::Order, |_| None).unwrap();
        assert_eq!(reserve(&config), 78);
        let busier = Config {
            http_workers: 8,
            consumers: 3,
            ..config
        };
        assert_eq!(reserve(&busier), 78 + 4 * 4 + 2 * 4 + 2 * 6 * 2 + 2 * 2);
        let payment = Config::from_lookup(Service::Payment, |_| None).unwrap();
        assert_eq!(reserve(&payment), 72);
    }

    #[test]
    fn connections_never_exceed_what_is_left_nor_the_upper_bound() {
        assert_eq!(connections(72, 62), 10);
        assert_eq!(connections(1_024, 62), 962);
        assert_eq!(connections(20_000, 62), 2_500);
        assert_eq!(connections(usize::MAX, 62), 2_500);
        assert_eq!(
            connections(32, 62),
            2,
            "too few for the service itself: still somebody is served"
        );
    }
}
