#!/usr/bin/env bash
# Builds, starts, stops, shows and tests the whole system; `./run.sh help` says how. Its parts are in scripts/.
set -euo pipefail

usage() {
  cat <<'HELP'
./run.sh                          the same as ./run.sh up
./run.sh up [--detach] [--instances K] [--brokers 3]
                                  builds and starts everything, then shows the services' logs until Ctrl-C, which stops
                                  everything; --detach: returns as soon as everything runs; --instances: K instances of
                                  every service, each one's port 10 above that of the one before; --brokers 3: a Kafka of
                                  three brokers, every topic on all of them, which stays so until down --wipe
./run.sh down [--wipe]            stops everything; --wipe: removes the data and the logs too
./run.sh status                   what runs: process ids, addresses, ready or not (ends with 1 if something is not ready)
./run.sh logs [NAME]              follows the log of one, or of all three services
./run.sh stop|start|restart NAME  NAME: order, stock, payment (all instances), order-2 (that one), kafka (all
                                  brokers), kafka-2 (that one) or postgres
./run.sh topics [OPTION...]       describes the topics with Kafka's own tool; options go to the tool
./run.sh psql SERVICE [ARG...]    psql on the database of order, stock or payment
./run.sh demo                     plays every outcome of an order against the running system, which is started if need be
./run.sh bench [SECTION...] [--seconds S] [--connections C] [--rows N] [--brokers 3]
                                  measures release binaries on servers of its own, and the machine's limits beside them:
                                  levels, limits, relay, consumers, recovery, restarts, overload, growth, or all, about
                                  20 minutes;
                                  results, raw samples and plots go to bench/ in cargo's target folder
./run.sh chaos [--orders N] [--faults M] [--seed S] [--instances K] [--brokers 3] [--minutes T] [--spare-broker]
               [--lost-tail[=SERVICE]] [--failover] [--overload] [--nothing-else]
                                  places orders on servers and instances of its own while they are killed, frozen and cut
                                  off; checks that nothing was lost and nothing happened twice. Three more kinds of faults make
                                  the run longer: --lost-tail: a service's database is lost, and a standby that has lagged takes
                                  over; --failover: the primary of all databases is killed, and its synchronous standby takes
                                  over; --overload: more orders come than can be settled; --nothing-else: no other faults.
                                  `--overload --nothing-else` also claims that no order fails by its deadline
./run.sh sabotage [--only MECHANISM] [--times N]
                                  shows that the checks of chaos can fail: builds the services once more with mechanisms
                                  that can be turned off, and plays for each the scenario in which it is missed
./run.sh check                    format, shellcheck, lints, documentation, unit and property tests: no servers, a few minutes
./run.sh test [-- ARG...]         all of check, all tests but the longest, and chaos for a minute or two, on servers of their own;
                                  what follows -- goes to the tests, which are all of them then, and there is no chaos
./run.sh test NAME [-- ARG...]    the tests whose names contain NAME (`deploy::` is a module), with fresh binaries, on servers
                                  that stay up in .run/test until `./run.sh servers down`
./run.sh servers up|down [--dir FOLDER] [--wipe]
                                  PostgreSQL and Kafka for tests, in .run/test or FOLDER; after `. FOLDER/env` cargo test
                                  finds them, and the binaries that `cargo build` has made; down --wipe: removes their data too
./run.sh proof [--seed S]         what takes longer, 40 to 90 minutes: the longest tests; the attacks on HTTP on our server and on
                                  tiny_http; the page in a browser (Chromium and chromedriver); the Kafka client beside Java's; a
                                  PgBouncer; the images, compose.yaml and the systemd unit in containers (podman, as root); PostgreSQL 14,
                                  16, 17 and 18; an upgrade under load from an earlier version, which is built for it; chaos with
                                  10,000 orders and 50 faults on three brokers, with lost tails and overload, with failovers; sabotage;
                                  systemd checks the unit, promtool the alert rules, Kubernetes' schemas the manifests
./run.sh help                     this text

Settings are environment variables, given in front: ORDER_PORT=9080 ./run.sh
  ORDER_PORT 8080, STOCK_PORT 8081, PAYMENT_PORT 8082, BIND 127.0.0.1, ORDER_DEADLINE 300s, CONSUMERS 1, TOPIC_PREFIX,
  TOPIC_PARTITIONS 3, TOPIC_REPLICATION (the private Kafka's brokers); every further setting of the services is handed on.
  KAFKA_BROKERS                                             your own Kafka in place of a private one
  ORDER_DATABASE_URL STOCK_DATABASE_URL PAYMENT_DATABASE_URL  your own PostgreSQL in place of a private one
  POSTGRES_BIN                                              the folder of another PostgreSQL server's programs, for the private one
  CARGO_TARGET_DIR                                          where cargo builds
  FEATURES                                                  tiny_http: HTTP by that crate instead of our own server

All that is started keeps its files in .run/: env (the settings in use; after `. .run/env` psql and Kafka's tools reach the
same servers), log/, pid/, the servers' data. The data outlives `down`; `down --wipe` removes it.
HELP
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# shellcheck source=scripts/lib.sh
. "$ROOT/scripts/lib.sh"
# shellcheck source=scripts/install.sh
. "$ROOT/scripts/install.sh"
# shellcheck source=scripts/process.sh
. "$ROOT/scripts/process.sh"
# shellcheck source=scripts/settings.sh
. "$ROOT/scripts/settings.sh"
# shellcheck source=scripts/postgres.sh
. "$ROOT/scripts/postgres.sh"
# shellcheck source=scripts/kafka.sh
. "$ROOT/scripts/kafka.sh"
# shellcheck source=scripts/services.sh
. "$ROOT/scripts/services.sh"
# shellcheck source=scripts/containers.sh
. "$ROOT/scripts/containers.sh"
# shellcheck source=scripts/check.sh
. "$ROOT/scripts/check.sh"

main() {
  local command=${1:-up}
  [ $# = 0 ] || shift
  case $command in
    up) up "$@" ;;
    down) down "$@" ;;
    status) status ;;
    logs) logs "$@" ;;
    stop | start | restart) one "$command" "$@" ;;
    topics) topics "$@" ;;
    psql) service_psql "$@" ;;
    demo) demo "$@" ;;
    bench) bench "$@" ;;
    chaos) chaos "$@" ;;
    sabotage) sabotage "$@" ;;
    proof) proof "$@" ;;
    check) check "$@" ;;
    test) run_tests "$@" ;;
    help | -h | --help) usage ;;
    libs) fetch_kafka "${1:-$KAFKA_VERSION}"; kafka_libs "${1:-$KAFKA_VERSION}" ;;
    servers) servers "$@" ;;
    -*) up "$command" "$@" ;;
    *) misuse "unknown command: $command" ;;
  esac
}
use_folder "$ROOT/.run"
main "$@"
