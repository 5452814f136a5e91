#!/usr/bin/env bash
# The one script of this project: it builds, starts, stops, shows and tests the whole system. `./run.sh help` says how.
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
./run.sh bench [SECTION...] [--seconds S] [--connections C] [--rows N]
                                  measures release binaries on servers of its own, and the machine's limits beside them:
                                  levels, limits, relay, consumers, recovery, restarts, overload, growth, or all, about
                                  20 minutes;
                                  results, raw samples and plots go to bench/ in cargo's target folder
./run.sh chaos [--orders N] [--faults M] [--seed S] [--instances K] [--brokers 3] [--minutes T] [--spare-broker]
               [--lost-tail[=SERVICE]] [--overload] [--nothing-else]
                                  places orders on servers and instances of its own while they are killed, frozen and cut
                                  off; checks that nothing was lost and nothing happened twice. Two kinds of faults more, each
                                  of which makes the run longer: --lost-tail: a service's database is lost, and a standby that
                                  has lagged takes over; --overload: more orders come than can be settled; --nothing-else:
                                  than these. `--overload --nothing-else` also claims that no order fails by its deadline
./run.sh sabotage [--only MECHANISM] [--times N]
                                  shows that the checks of chaos can fail: builds the services once more with mechanisms
                                  that can be turned off, and plays for each the scenario in which it is missed
./run.sh test [-- ARG...]         format, lints, all tests, chaos for a minute or two, and sabotage, on servers of their own; what
                                  follows -- goes to the tests, and then there is neither chaos nor sabotage
./run.sh proof [--seed S]         what takes longer, at most 60 minutes: systemd's word on the unit and promtool's on the alert
                                  rules, the attacks on HTTP, the page in a browser (Chromium and chromedriver), the Kafka client
                                  beside Java's, a PgBouncer, an upgrade from an earlier version under load (it builds that,
                                  too), chaos with 10,000 orders and 50 faults on three brokers, chaos with lost tails and
                                  overload, and sabotage
./run.sh help                     this text

Settings are environment variables, given in front: ORDER_PORT=9080 ./run.sh
  ORDER_PORT 8080, STOCK_PORT 8081, PAYMENT_PORT 8082, BIND 127.0.0.1, ORDER_DEADLINE 300s, CONSUMERS 1, TOPIC_PREFIX,
  TOPIC_PARTITIONS 3, TOPIC_REPLICATION (the private Kafka's brokers); every further setting of the services is handed on.
  KAFKA_BROKERS                                             your own Kafka in place of a private one
  ORDER_DATABASE_URL STOCK_DATABASE_URL PAYMENT_DATABASE_URL  your own PostgreSQL in place of a private one
  CARGO_TARGET_DIR                                          where cargo builds

All that is started keeps its files in .run/: env (the settings in use; after `. .run/env` psql and Kafka's tools reach the
same servers), log/, pid/, the servers' data. The data outlives `down`; `down --wipe` removes it.
HELP
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# Kafka is pinned here and nowhere else. 3.9 serves the Kafka client's own tests only.
KAFKA_VERSION=4.3.1
KAFKA_OLD_VERSION=3.9.1
LOG4J_VERSION=2.25.4
MAVEN_COPY=org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies
POSTGRES_OLDEST=14
JAVA_OLDEST=17

# Where the upgrade that `proof` plays starts from: the newest commit before this version's own with the same min_version
# (sql/common). It moves on with each version that is given out, and must when a migration raises min_version: older
# instances can't run beside newer ones then.
UPGRADE_FROM=ee4230410315644161cfc8b9efb12d21e9afe3bb

SERVICES="order stock payment"
# What the services read: where everything is, and what a restart of a service may change.
PLACES="ORDER_PORT STOCK_PORT PAYMENT_PORT BIND ORDER_DATABASE_URL STOCK_DATABASE_URL PAYMENT_DATABASE_URL
  PAYMENT_URL STOCK_URL KAFKA_BROKERS TOPIC_PREFIX TOPIC_PARTITIONS TOPIC_REPLICATION INSTANCES"
# How your own Kafka is reached; a private one has no guards.
GUARDS="KAFKA_SECURITY_PROTOCOL KAFKA_SSL_CA_LOCATION KAFKA_SSL_CERTIFICATE_LOCATION KAFKA_SSL_KEY_LOCATION
  KAFKA_SASL_MECHANISM KAFKA_SASL_USERNAME KAFKA_SASL_PASSWORD"
PLACES="$PLACES $GUARDS"
TUNABLES="ORDER_DEADLINE ADMISSION_LIMIT COMPENSATION_RETRY CONSUMERS HTTP_WORKERS RELAY_BATCH STARTUP_LIMIT LOG_LEVEL ADMIN_TOKEN CORS_ORIGINS
  IDEMPOTENCY_KEY_RETENTION DEAD_LETTER_RETENTION TIMELINE_RETENTION HOUSEKEEPING_INTERVAL HEARTBEAT_LIMIT"

# Limits, in seconds.
DOWNLOAD_LIMIT=900
BUILD_LIMIT=3600
SERVER_LIMIT=90       # PostgreSQL or Kafka ready; generous, for a slow disk or a recovery after a crash
SERVICE_LIMIT=75      # a service answers HTTP, or gives up waiting for its servers and says why
SERVICE_STOP_LIMIT=10 # what a service may take to finish what it has claimed
SERVER_STOP_LIMIT=30
BROKERS_STOP_LIMIT=8  # several brokers at once: the last ones, a minority, wait for the others; killed, they lose nothing acknowledged
LOCK_LIMIT=120
TEST_LIMIT=2400
BENCH_LIMIT=14400     # all sections with the longest --seconds
CHAOS_LIMIT=90000     # its own limits are stricter; this one is above a day of --minutes
TOOL_LIMIT=60

# Of 100, by systemd-analyze: what is left is the network itself.
EXPOSURE_LIMIT=15

# ---------------------------------------------------------------------------------------------------------------- words

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() { # cause, then lines that help
  warn "error: $1"; shift
  for line in "$@"; do warn "  $line"; done
  exit 1
}
misuse() { warn "error: $1 (./run.sh help)"; exit 2; }
upper() { printf '%s' "$1" | tr '[:lower:]' '[:upper:]'; }
quote() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }
without_password() { printf '%s\n' "$1" | sed 's|://\([^:/@]*\):[^@]*@|://\1:***@|'; }
has() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Waits until a command succeeds: `within SECONDS COMMAND...`
within() {
  local end=$((SECONDS + $1)); shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# -------------------------------------------------------------------------------------------------- what must be there

find_cargo() {
  has cargo || { [ -x "$HOME/.cargo/bin/cargo" ] && PATH=$HOME/.cargo/bin:$PATH; }
}

find_maven() { has mvn; }

find_linker() { has cc || has clang; }

find_promtool() { has promtool; }

find_pgbouncer() { has pgbouncer; }

find_chromium() { has chromedriver && { has chromium || has google-chrome; }; }

# JAVA: a Java that is new enough, from JAVA_HOME, PATH or where Linux systems put it.
find_java() {
  local java major
  for java in "${JAVA_HOME:-/none}/bin/java" "$(command -v java || true)" /usr/lib/jvm/*/bin/java /opt/homebrew/opt/openjdk*/bin/java; do
    [ -x "$java" ] || continue
    major=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1) || continue
    if [ "${major:-0}" -ge "$JAVA_OLDEST" ]; then JAVA=$java; return 0; fi
  done
  return 1
}

# PG_BIN: the programs of the PostgreSQL that wrote our data, or else of the newest one there is.
find_postgres() {
  local bin major wanted='' best=0
  [ ! -f "$PG_DATA/PG_VERSION" ] || wanted=$(cat "$PG_DATA/PG_VERSION")
  PG_BIN=
  for bin in "$(dirname "$(command -v postgres || echo /none/x)")" "$(pg_config --bindir 2>/dev/null || echo /none)" \
    /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
    if ! [ -x "$bin/postgres" ] || ! [ -x "$bin/initdb" ] || ! [ -x "$bin/psql" ]; then continue; fi
    major=$("$bin/postgres" --version | sed 's/.*) \([0-9]*\).*/\1/')
    [ "$major" -ge "$POSTGRES_OLDEST" ] || continue
    if [ "$major" = "$wanted" ]; then PG_BIN=$bin; return 0; fi
    if [ "$major" -gt "$best" ]; then PG_BIN=$bin best=$major; fi
  done
  [ -n "$PG_BIN" ] || return 1
  [ -z "$wanted" ] || die "the data under $PG_DATA was written by PostgreSQL $wanted, which is not installed" \
    "install it again, or remove the data: ./run.sh down --wipe"
}

find_psql() { find_postgres || { has psql && PG_BIN=$(dirname "$(command -v psql)"); }; }

# `need THING...` finds each of cargo, linker, postgres, psql, java, maven, chromium, promtool, pgbouncer; installs what is missing, or says what to install.
need() {
  local thing missing=''
  for thing in "$@"; do "find_$thing" || missing="$missing $thing"; done
  [ -n "$missing" ] || return 0
  case " $missing " in *" cargo "*) die "cargo is not installed" "install Rust as https://rustup.rs says, then run this again" ;; esac
  # shellcheck disable=SC2086 # words on purpose
  install_packages $missing
  for thing in $missing; do
    "find_$thing" || die "still missing: $(title "$thing")" "the system's package manager has none that is new enough; install it by hand"
  done
}

title() {
  case $1 in
    linker) echo "a C linker (cc)" ;;
    postgres) echo "PostgreSQL server, version $POSTGRES_OLDEST or newer" ;;
    psql) echo "psql, PostgreSQL's client" ;;
    java) echo "Java, version $JAVA_OLDEST or newer" ;;
    maven) echo "Maven (mvn), which downloads Kafka" ;;
    chromium) echo "Chromium and its chromedriver" ;;
    promtool) echo "promtool, which comes with Prometheus" ;;
    pgbouncer) echo "PgBouncer" ;;
  esac
}

install_packages() {
  local thing sudo=() apt=() brew=() lines=() install=1
  is_root || sudo=(sudo)
  if ! has apt-get || { ! is_root && ! sudo -n true 2>/dev/null; }; then install=0; fi
  if [ $install = 1 ]; then
    say "Installing what is missing with apt-get: $*"
    ${sudo[@]+"${sudo[@]}"} apt-get update -q -o Acquire::Retries=3 || die "apt-get update failed"
  fi
  for thing in "$@"; do
    lines+=("$(title "$thing")")
    case $thing in
      linker) apt+=(gcc libc6-dev) brew+=(gcc) ;;
      postgres | psql) apt+=(postgresql) brew+=(postgresql@17) ;;
      java) apt+=("$(newest_enough_jre)") brew+=(openjdk@21) ;;
      maven) apt+=(maven) brew+=(maven) ;;
      chromium) apt+=(chromium chromium-driver) brew+=(chromium chromedriver) ;;
      promtool) apt+=(prometheus) brew+=(prometheus) ;;
      pgbouncer) apt+=(pgbouncer) brew+=(pgbouncer) ;;
    esac
  done
  if [ $install = 0 ]; then
    die "not everything that is needed is installed. Missing:" "${lines[@]}" "" \
      "Debian, Ubuntu:  sudo apt-get install ${apt[*]}" "macOS:           brew install ${brew[*]}"
  fi
  # Debian's package would create and start a system-wide cluster on port 5432, which nobody here needs.
  case " ${apt[*]} " in *" postgresql "*)
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
      ${sudo[@]+"${sudo[@]}"} mkdir -p /etc/postgresql-common
      echo "create_main_cluster = false" | ${sudo[@]+"${sudo[@]}"} tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi ;;
  esac
  ${sudo[@]+"${sudo[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "${apt[@]}" </dev/null || die "apt-get could not install ${apt[*]}"
}

newest_enough_jre() {
  local version
  for version in 17 21 25; do
    if apt-cache show "openjdk-$version-jre-headless" >/dev/null 2>&1; then echo "openjdk-$version-jre-headless"; return; fi
  done
  echo default-jre-headless
}

# ------------------------------------------------------------------------------------------------------------ processes

# Everything is started in a session of its own, so that Ctrl-C reaches this script only and the order of stopping is ours.
own_session() {
  if has setsid; then exec setsid "$@"; else exec perl -e 'use POSIX; POSIX::setsid(); exec @ARGV or die' "$@"; fi
}

# Runs a command in a session of its own, so that all of it can be ended: `limited SECONDS COMMAND...`
limited() {
  local limit=$1 end status=0; shift
  end=$((SECONDS + limit))
  (own_session "$@") </dev/null &
  LIMITED=$!
  while kill -0 "$LIMITED" 2>/dev/null; do
    if [ "$SECONDS" -ge "$end" ]; then
      end_limited
      warn "ended after $limit s: $*"
      return 124
    fi
    sleep 0.2
  done
  wait "$LIMITED" || status=$?
  LIMITED=
  return "$status"
}

LIMITED=
end_limited() {
  [ -n "$LIMITED" ] || return 0
  kill -TERM -- "-$LIMITED" 2>/dev/null || true
  within 5 group_gone "$LIMITED" || kill -KILL -- "-$LIMITED" 2>/dev/null || true
  LIMITED=
}
group_gone() { ! kill -0 -- "-$1" 2>/dev/null; }

command_line() { # of a process id
  if [ -d /proc/self ]; then tr '\0' ' ' <"/proc/$1/cmdline"; else ps -p "$1" -o args=; fi 2>/dev/null || true
}

# Prints the process id of what we started under that name, if it runs. A recorded id counts only while its command
# line is the one we started: after a restart of the machine it may be anybody's.
pid_of() {
  local pid mark
  if [ "$1" = postgres ]; then
    [ -r "$PG_DATA/postmaster.pid" ] && read -r pid <"$PG_DATA/postmaster.pid" && mark="-D $PG_DATA"
  else
    [ -r "$DIR/pid/$1" ] && { read -r pid && read -r mark; } <"$DIR/pid/$1"
  fi || return 1
  case "$(settled_command_line "$pid")" in *"$mark"*) say "$pid" ;; *) return 1 ;; esac
}
# While a process becomes another program its command line is empty for a moment.
settled_command_line() {
  local line
  for _ in 1 2 3 4 5; do
    line=$(command_line "$1")
    if [ -n "$line" ] || ! kill -0 "$1" 2>/dev/null; then break; fi
    sleep 0.1
  done
  say "$line"
}
runs() { pid_of "$1" >/dev/null; }
gone() { ! runs "$1"; }

# `launch NAME MARK COMMAND...` starts it in the background; MARK is the part of its command line to know it by.
STARTED=
launch() {
  local name=$1 mark=$2; shift 2
  (own_session "$@") </dev/null >>"$DIR/log/$name.log" 2>&1 &
  LAUNCHED=$!
  disown "$LAUNCHED" # bash need not comment on its end
  printf '%s\n%s\n' "$LAUNCHED" "$mark" >"$DIR/pid/$name"
  # Until it has become that command, its command line is still this script's.
  within 5 began_or_died "$name" || true
  STARTED="$STARTED $name"
}

began_or_died() { runs "$1" || ! kill -0 "$LAUNCHED" 2>/dev/null; }

# Stops what runs under these names: signal to all, then one wait for each.
stop_processes() { # SIGNAL SECONDS NAME...
  local signal=$1 limit=$2 name pid; shift 2
  for name in "$@"; do
    if pid=$(pid_of "$name"); then
      say "stopping $name (process $pid)"
      kill "-$signal" "$pid" 2>/dev/null || true
      kill -CONT "$pid" 2>/dev/null || true # it may have been frozen
    fi
  done
  local end=$((SECONDS + limit))
  for name in "$@"; do
    if ! within $((end > SECONDS ? end - SECONDS : 0)) gone "$name"; then
      warn "$name has not ended within $limit s: killed; log: $DIR/log/$name.log"
      pid=$(pid_of "$name") && kill -KILL "$pid" 2>/dev/null
      within 5 gone "$name" || true
    fi
    rm -f "$DIR/pid/$name"
  done
}

# The names on record, whether they still run or not.
recorded() { (cd "$DIR/pid" 2>/dev/null && printf '%s\n' * | grep -v '\*') || true; }
service_names() { recorded | grep -v -e kafka -e postgres || true; }
recorded_brokers() { recorded | grep kafka || true; }

stop_names() { # NAME...: services, then Kafka, then PostgreSQL
  local name services=() kafka=() postgres=0
  for name in "$@"; do
    case $name in kafka | kafka-*) kafka+=("$name") ;; postgres) postgres=1 ;; *) services+=("$name") ;; esac
  done
  [ ${#services[@]} = 0 ] || stop_processes TERM "$SERVICE_STOP_LIMIT" "${services[@]}"
  case ${#kafka[@]} in
    0) ;;
    1) stop_processes TERM "$SERVER_STOP_LIMIT" "${kafka[@]}" ;;
    *) stop_processes TERM "$BROKERS_STOP_LIMIT" "${kafka[@]}" ;;
  esac
  [ $postgres = 0 ] || stop_processes INT "$SERVER_STOP_LIMIT" postgres # SIGINT is its fast shutdown
}

# shellcheck disable=SC2046 # words on purpose
stop_all() { stop_names $(service_names) $(recorded_brokers) postgres; }

# The end of this script, however it comes: what `ON_EXIT` says, once, undisturbed by further signals.
ON_EXIT=
at_exit() {
  local status=$?
  trap '' INT TERM HUP PIPE
  set +e
  end_limited
  [ -z "$ON_EXIT" ] || "$ON_EXIT" "$status"
  [ -z "${LOCKED:-}" ] || rm -rf "$DIR/lock"
  exit "$status"
}
stop_started() {
  # shellcheck disable=SC2086
  [ -z "$STARTED" ] || { warn "stopping what was started"; stop_names $STARTED; }
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
trap 'exit 141' PIPE

# The folder must be there and ours.
open_folder() {
  mkdir -p "$DIR/log" "$DIR/pid" 2>/dev/null || true
  if ! [ -w "$DIR" ] || ! [ -w "$DIR/pid" ]; then
    die "$DIR can't be written by $(id -un)" "it belongs to $(owner "$DIR"): run this as that user, or remove the folder"
  fi
}
owner() { find "$1" -maxdepth 0 -printf '%u\n' 2>/dev/null || echo "another user"; }

# Two calls must not start the same things at once. A lock whose owner is gone is taken over.
lock() {
  open_folder
  within "$LOCK_LIMIT" try_lock || die "another ./run.sh (process $(cat "$DIR/lock/pid" 2>/dev/null || echo '?')) is busy in $DIR"
  LOCKED=1
}
try_lock() {
  local pid
  if mkdir "$DIR/lock" 2>/dev/null; then echo $$ >"$DIR/lock/pid"; return 0; fi
  pid=$(cat "$DIR/lock/pid" 2>/dev/null || true)
  [ -n "$pid" ] || { sleep 1; pid=$(cat "$DIR/lock/pid" 2>/dev/null || echo 0); }
  case "$(command_line "$pid")" in *run.sh*) ;; *) rm -rf "$DIR/lock" ;; esac
  return 1
}
unlock() { rm -rf "$DIR/lock"; LOCKED=; }

# ---------------------------------------------------------------------------------------------------------------- ports

port_taken() { (exec 3<>"/dev/tcp/${2:-127.0.0.1}/$1") 2>/dev/null; } # PORT [HOST]

# Prints the wanted port if it is free, else a free one, below those that the system hands out to clients.
free_port() {
  local port=${1:-}
  while [ -z "$port" ] || port_taken "$port"; do port=$((20000 + RANDOM % 12000)); done
  say "$port"
}

http_host() { case ${BIND:-127.0.0.1} in 0.0.0.0 | '') say 127.0.0.1 ;; ::) say "[::1]" ;; *:*) say "[$BIND]" ;; *) say "$BIND" ;; esac; }
url_of() { say "http://$(http_host):$(port_of "$1")"; }
http() { curl --noproxy '*' -s -o /dev/null --connect-timeout 2 --max-time 10 "$@"; }
answers() { http "$(url_of "$1")/"; }
is_ready() { http -f "$(url_of "$1")/readyz"; }

# Services are named order, or order-1, order-2, … where there are several instances.
service_of() { say "${1%%-*}"; }
port_of() {
  local number=1 port
  port=$(upper "$(service_of "$1")")_PORT
  case $1 in *-*) number=${1#*-} ;; esac
  say $((${!port} + 10 * (number - 1)))
}
instances_of() { # SERVICE: the names of its instances by the settings
  local number
  if [ "${INSTANCES:-1}" = 1 ]; then say "$1"; return; fi
  for ((number = 1; number <= INSTANCES; number++)); do say "$1-$number"; done
}
all_instances() { local service; for service in $SERVICES; do instances_of "$service"; done; }

# -------------------------------------------------------------------------------------------------------------- servers

# The private servers' ports and password, the same for as long as the data lives, and how many brokers Kafka has. The
# ports of brokers after the first have its number in their name.
KAFKA_PORTS="KAFKA_PORT KAFKA_CONTROLLER_PORT KAFKA_PORT_2 KAFKA_CONTROLLER_PORT_2 KAFKA_PORT_3 KAFKA_CONTROLLER_PORT_3"
read_servers() {
  POSTGRES_PORT='' POSTGRES_PASSWORD='' BROKERS=''
  # shellcheck disable=SC2086
  unset $KAFKA_PORTS
  # shellcheck disable=SC1091
  [ ! -r "$DIR/servers" ] || . "$DIR/servers"
}
write_servers() {
  (
    umask 077
    for name in POSTGRES_PORT POSTGRES_PASSWORD BROKERS $KAFKA_PORTS; do say "$name=${!name:-}"; done >"$DIR/servers.new"
    mv "$DIR/servers.new" "$DIR/servers"
  )
}

# Everything that is started keeps its files in one folder, DIR: .run, or another one for `servers --dir` and `test`.
# PostgreSQL refuses to run as root, and the user it then runs as may not be allowed to look below the checkout (a home
# of mode 0700). So root's clusters live outside, in a folder of that user's own, named after the folder they belong to.
use_folder() {
  DIR=$1
  PG_HOME=$DIR/postgres
  ! is_root || PG_HOME=/var/lib/saga-postgres/$(printf '%s' "$DIR" | cksum | cut -d ' ' -f 1)
  PG_DATA=$PG_HOME/data
}
as_postgres() {
  if is_root; then (cd / && exec runuser -u postgres -- "$@"); else "$@"; fi
}
postgres_url() { say "postgres://$1:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT/$2"; } # USER DATABASE

create_cluster() {
  local password_file=$PG_HOME/password
  say "Creating a PostgreSQL cluster in $PG_HOME"
  rm -rf "$PG_HOME"
  if is_root; then
    id postgres >/dev/null 2>&1 || die "PostgreSQL can't run as root, and there is no user postgres" "create it: useradd --system postgres"
    mkdir -p /var/lib/saga-postgres
    install -d -m 0700 -o postgres "$PG_HOME"
  else
    mkdir -m 0700 "$PG_HOME"
  fi
  printf '%s\n' "$POSTGRES_PASSWORD" | as_postgres tee "$password_file" >/dev/null
  LC_ALL=C as_postgres "$PG_BIN/initdb" -D "$PG_DATA.new" --username=postgres --pwfile="$password_file" --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C --data-checksums >"$DIR/log/initdb.log" 2>&1 ||
    die "PostgreSQL's initdb failed" "$(tail -n 5 "$DIR/log/initdb.log")" "log: $DIR/log/initdb.log"
  rm -f "$password_file"
  local statements=
  if [ -e "$("$PG_BIN/pg_config" --pkglibdir 2>/dev/null || echo "$PG_BIN/../lib")/pg_stat_statements.so" ]; then
    statements="shared_preload_libraries = 'pg_stat_statements'"
  fi
  as_postgres tee -a "$PG_DATA.new/postgresql.conf" >/dev/null <<CONF

# Everything else is PostgreSQL's default, durability above all: fsync and synchronous_commit are on.
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
log_line_prefix = '%m [%p] %d %a '
timezone = 'UTC'
log_timezone = 'UTC'
$statements
CONF
  as_postgres mv "$PG_DATA.new" "$PG_DATA" # only now is it a cluster
}

start_postgres() {
  local attempt pid
  if runs postgres; then return 0; fi
  if [ ! -f "$PG_DATA/PG_VERSION" ]; then
    : "${POSTGRES_PASSWORD:=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')}"
    create_cluster
  elif [ -z "${POSTGRES_PASSWORD:-}" ]; then
    die "$PG_HOME has a PostgreSQL cluster of this folder, but its password, kept in $DIR/servers, is gone" \
      "bring that file back or, if the data may go, remove it: rm -r $PG_HOME"
  fi
  POSTGRES_PORT=$(free_port "$POSTGRES_PORT")
  write_servers
  ln -sf "$PG_HOME/postgres.log" "$DIR/log/postgres.log"
  # A lock file naming a living process that isn't this cluster's (checked by `runs` above) is left over from before a
  # restart of the machine, and would keep PostgreSQL from starting.
  if [ -r "$PG_DATA/postmaster.pid" ] && read -r pid <"$PG_DATA/postmaster.pid" && kill -0 "$pid" 2>/dev/null; then
    rm -f "$PG_DATA/postmaster.pid"
  fi
  say "starting PostgreSQL on port $POSTGRES_PORT"
  STARTED="$STARTED postgres"
  # After a kill -9 the dead server's last processes may still hold its memory for a moment: hence three attempts.
  for attempt in 1 2 3; do
    if as_postgres "$PG_BIN/pg_ctl" start -D "$PG_DATA" -l "$PG_HOME/postgres.log" -o "-p $POSTGRES_PORT" -w -t "$SERVER_LIMIT" >/dev/null 2>&1; then
      return 0
    fi
    sleep "$attempt"
  done
  die "PostgreSQL does not start" "$(tail -n 5 "$PG_HOME/postgres.log" 2>/dev/null)" "log: $DIR/log/postgres.log"
}

sql() { PGCONNECT_TIMEOUT=10 "$PG_BIN/psql" -X -w -q -t -A -v ON_ERROR_STOP=1 "$1" -c "$2" </dev/null; } # URL STATEMENT

# The services' own user of the private cluster; it may create databases, and is no superuser.
create_role() {
  sql "$(postgres_url postgres postgres)" "do \$\$ begin if not exists (select from pg_roles where rolname = 'saga') then
    create role saga login createdb password '$POSTGRES_PASSWORD'; end if; end \$\$" || die "the database user saga could not be created" "log: $DIR/log/postgres.log"
}

# Makes sure that the database of this setting can be connected to, and creates it where it is missing.
ensure_database() {
  local variable=$1 url=${!1} name maintenance message
  if message=$(sql "$url" "select 1" 2>&1); then return 0; fi
  name=${url%%\?*}; name=${name##*/}
  maintenance=$(printf '%s' "$url" | sed "s|/$name\([?].*\)\{0,1\}\$|/postgres\1|")
  if [ -n "$name" ] && [ "$(sql "$maintenance" "select count(*) from pg_database where datname = '$name'" 2>/dev/null)" = 0 ]; then
    say "creating database $name"
    if message=$(sql "$maintenance" "create database \"$name\"" 2>&1); then return 0; fi
    die "$variable: database $name does not exist and could not be created" "$message" \
      "as a user who may:  psql -c 'create database \"$name\" owner USER' $(without_password "$maintenance")"
  fi
  die "$variable: can't connect to $(without_password "$url")" "$message"
}

kafka_libs() { say "$ROOT/.run/kafka/$1/libs"; }

# Downloads Apache Kafka's jars, once; they appear under their name only when all of them are there.
fetch_kafka() {
  local version=$1 libs logging='' temp log
  libs=$(kafka_libs "$version")
  [ ! -d "$libs" ] || return 0
  need java maven
  # Kafka 3 brings a logging backend along, Kafka 4 leaves it to the one who runs it.
  case $version in
    3.*) ;;
    *) logging="<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$LOG4J_VERSION</version></dependency>" ;;
  esac
  mkdir -p "$ROOT/.run/kafka/$version" "$DIR/log"
  temp=$(mktemp -d "$ROOT/.run/kafka/.download.XXXXXX")
  log=$DIR/log/download-$version.log
  cat >"$temp/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-libs</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$version</version></dependency>
    $logging
  </dependencies>
</project>
POM
  say "Downloading Apache Kafka $version"
  limited "$DOWNLOAD_LIMIT" mvn -B -f "$temp/pom.xml" "$MAVEN_COPY" -DincludeScope=runtime -DoutputDirectory="$temp/libs" \
    > >(tee "$log" | sed -n 's|^.*Downloaded from [^:]*: .*/\([^/]*\.jar\) (\(.*\))|  \1 (\2)|p') 2>&1 ||
    { rm -rf "$temp"; die "Apache Kafka $version could not be downloaded" "$(grep -m 2 ERROR "$log")" "log: $log"; }
  # For Kafka's tools with a class path of "$libs/*:$libs": warnings only, and on standard error.
  cat >"$temp/libs/log4j2.properties" <<'CONF'
rootLogger.level = warn
rootLogger.appenderRefs = stderr
rootLogger.appenderRef.stderr.ref = stderr
appenders = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{ISO8601} %-5p %c: %m%n
CONF
  cat >"$temp/libs/log4j.properties" <<'CONF'
log4j.rootLogger = WARN, stderr
log4j.appender.stderr = org.apache.log4j.ConsoleAppender
log4j.appender.stderr.target = System.err
log4j.appender.stderr.layout = org.apache.log4j.PatternLayout
log4j.appender.stderr.layout.ConversionPattern = %d{ISO8601} %-5p %c: %m%n
CONF
  mv "$temp/libs" "$libs" 2>/dev/null || [ -d "$libs" ] # another call may have been quicker
  rm -rf "$temp"
}

kafka_tool() { limited "$TOOL_LIMIT" "$JAVA" -Xmx128m -XX:TieredStopAtLevel=1 -cp "$KAFKA_LIBS/*:$KAFKA_LIBS" "$@"; }

# Brokers are named kafka, or kafka-1, kafka-2, kafka-3 where there are three.
broker_names() {
  if [ "${BROKERS:-1}" = 1 ]; then say kafka; else printf 'kafka-%s\n' 1 2 3; fi
}
number_of() { case $1 in *-*) say "${1#*-}" ;; *) say 1 ;; esac; }
broker_port() { # NAME [KAFKA_CONTROLLER_PORT]: the variable that holds it
  local number
  number=$(number_of "$1")
  if [ "$number" = 1 ]; then say "${2:-KAFKA_PORT}"; else say "${2:-KAFKA_PORT}_$number"; fi
}
broker_folder() { if [ "$1" = kafka ]; then say "$DIR/broker"; else say "$DIR/broker/${1#*-}"; fi; }
broker_addresses() {
  local name port list=''
  for name in $(broker_names); do port=$(broker_port "$name"); list="$list,127.0.0.1:${!port:-}"; done
  say "${list#,}"
}
quorum_voters() {
  local name port list=''
  for name in $(broker_names); do
    port=$(broker_port "$name" KAFKA_CONTROLLER_PORT)
    list="$list,$(number_of "$name")@127.0.0.1:${!port}"
  done
  say "${list#,}"
}
running_brokers() { local name; for name in $(broker_names); do ! runs "$name" || say "$name"; done; }

# BROKERS: as many as the data was made for; without data, as many as are wanted.
count_brokers() {
  if [ ! -e "$DIR/broker" ]; then BROKERS=${WANTED_BROKERS:-1}; return; fi
  BROKERS=${BROKERS:-1}
  [ "${WANTED_BROKERS:-$BROKERS}" = "$BROKERS" ] ||
    die "--brokers $WANTED_BROKERS: the Kafka whose data is in $DIR/broker has $BROKERS" "remove the data first: ./run.sh down --wipe"
}

write_broker_config() { # NAME
  local folder port controller copies=1 insync=1
  folder=$(broker_folder "$1") port=$(broker_port "$1") controller=$(broker_port "$1" KAFKA_CONTROLLER_PORT)
  # One of three may be lost without a record lost or refused.
  [ "$BROKERS" = 1 ] || copies=3 insync=2
  cat >"$folder/server.properties" <<CONF
process.roles=broker,controller
node.id=$(number_of "$1")
listeners=PLAINTEXT://127.0.0.1:${!port},CONTROLLER://127.0.0.1:${!controller}
advertised.listeners=PLAINTEXT://127.0.0.1:${!port}
controller.listener.names=CONTROLLER
controller.quorum.voters=$(quorum_voters)
log.dirs=$folder/data
# Topics are created by who needs them, with the partitions they need.
auto.create.topics.enable=false
default.replication.factor=$copies
min.insync.replicas=$insync
offsets.topic.replication.factor=$copies
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=$insync
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=$insync
group.initial.rebalance.delay.ms=0
# Few partitions of the internal topics: a quick start.
offsets.topic.num.partitions=8
# A broker killed in the middle of a commit must not come back before it is known to be gone: it would take its own
# partitions for leaderless and leave the transaction without its markers, for good.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
transaction.state.log.num.partitions=8
# Beside the services on a few cores: one thread that is awake costs a request less than several that wake one another.
num.network.threads=1
num.io.threads=1
# Each write in a transaction would first be asked back of the coordinator: a sixth of the broker's work for a lone
# order. That guards against a client that goes on under the old epoch after a lost answer, which ours never does.
transaction.partition.verification.enable=false
# A pause of weeks loses neither records nor positions.
log.retention.ms=-1
offsets.retention.minutes=525600
transactional.id.expiration.ms=2147483647
CONF
  cat >"$folder/log4j2.properties" <<'CONF'
rootLogger.level = info
rootLogger.appenderRefs = out
rootLogger.appenderRef.out.ref = out
appenders = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c: %m%n
CONF
}

# Ports for the brokers that have none, or whose own are taken while no broker runs: a running one knows the others'.
choose_ports() {
  local name variable port chosen=' '
  [ -z "$(running_brokers)" ] || { keep_ports; return; }
  for name in $(broker_names); do
    for variable in $(broker_port "$name") $(broker_port "$name" KAFKA_CONTROLLER_PORT); do
      port=$(free_port "${!variable:-}")
      while case $chosen in *" $port "*) true ;; *) false ;; esac; do port=$(free_port); done
      chosen="$chosen$port "
      printf -v "$variable" %s "$port"
    done
  done
  write_servers
}

# The nodes of a cluster share its id.
format_storage() { # NAME
  local folder log=$DIR/log/kafka-format.log
  folder=$(broker_folder "$1")
  [ ! -e "$folder/data/meta.properties" ] || return 0
  [ -s "$DIR/broker/cluster-id" ] || head -c 16 /dev/urandom | base64 | tr '+/' 'AB' | tr -d '=' >"$DIR/broker/cluster-id"
  kafka_tool kafka.tools.StorageTool format --cluster-id "$(cat "$DIR/broker/cluster-id")" --config "$folder/server.properties" >"$log" 2>&1 ||
    die "Kafka's storage could not be formatted" "$(tail -n 3 "$log")" "log: $log"
}

brokers_ready() { # NAME...; one that has died is not waited for any longer
  local name port
  for name in "$@"; do
    if gone "$name"; then return 0; fi
    port=$(broker_port "$name")
    grep -q 'Kafka Server started' "$DIR/log/$name.log" && port_taken "${!port}" || return 1
  done
}

start_kafka() { # [NAME...]: all brokers, or these
  local name port folder heap="-Xms256m -Xmx512m -XX:+UseSerialGC" starting=()
  [ $# -gt 0 ] || { # shellcheck disable=SC2046
    set -- $(broker_names)
  }
  for name in "$@"; do runs "$name" || starting+=("$name"); done
  [ ${#starting[@]} -gt 0 ] || return 0
  choose_ports
  [ "$BROKERS" = 1 ] || heap="-Xms128m -Xmx384m -XX:+UseSerialGC"
  for name in "${starting[@]}"; do
    folder=$(broker_folder "$name") port=$(broker_port "$name")
    mkdir -p "$folder"
    write_broker_config "$name"
    format_storage "$name"
    fresh_log "$name"
    say "starting Kafka $KAFKA_VERSION on port ${!port}"
    # shellcheck disable=SC2086 # words on purpose
    launch "$name" "$folder/server.properties" "$JAVA" $heap -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
      -Dlog4j2.configurationFile="$folder/log4j2.properties" -cp "$KAFKA_LIBS/*" kafka.Kafka "$folder/server.properties"
  done
  if [ $(($(running_brokers | wc -l) * 2)) -le "$BROKERS" ]; then
    say "It becomes ready when most of the brokers run: ./run.sh start kafka"
    return 0
  fi
  within "$SERVER_LIMIT" brokers_ready "${starting[@]}" || true
  for name in "${starting[@]}"; do
    if gone "$name" || ! brokers_ready "$name"; then
      die "Kafka is not ready" "$(grep -E 'ERROR|FATAL|Exception' "$DIR/log/$name.log" | tail -n 5)" "log: $DIR/log/$name.log"
    fi
  done
}

# The log of the run before is kept as .1
fresh_log() { [ ! -s "$DIR/log/$1.log" ] || mv "$DIR/log/$1.log" "$DIR/log/$1.log.1"; : >"$DIR/log/$1.log"; }

# ------------------------------------------------------------------------------------------------------------- settings

# Whose servers: sets PRIVATE_KAFKA and PRIVATE_POSTGRES. The address of a private server, come back by `. .run/env`,
# is not the user's own.
whose_servers() {
  local service variable
  read_servers
  KAFKA_LIBS=$(kafka_libs "$KAFKA_VERSION")
  if [ -n "${KAFKA_PORT:-}" ] && [ "${KAFKA_BROKERS:-}" = "$(broker_addresses)" ]; then
    unset KAFKA_BROKERS
    [ "${TOPIC_REPLICATION:-}" != "${BROKERS:-1}" ] || unset TOPIC_REPLICATION # what it is by itself
  fi
  PRIVATE_KAFKA=0
  [ -n "${KAFKA_BROKERS:-}" ] || PRIVATE_KAFKA=1
  require_no_guards
  [ $PRIVATE_KAFKA = 1 ] || [ -z "${WANTED_BROKERS:-}" ] || misuse "--brokers is for a private Kafka, and KAFKA_BROKERS names yours"
  count_brokers
  PRIVATE_POSTGRES=0
  for service in $SERVICES; do
    variable=$(upper "$service")_DATABASE_URL
    if [ -n "$POSTGRES_PORT" ] && [ "${!variable:-}" = "$(postgres_url saga "${service}db")" ]; then unset "$variable"; fi
    [ -n "${!variable:-}" ] || PRIVATE_POSTGRES=1
  done
}

require_no_guards() { # of a private Kafka
  local name
  [ $PRIVATE_KAFKA = 1 ] || return 0
  for name in $GUARDS; do
    [ -z "${!name:-}" ] || misuse "$name is for your own Kafka: name it by KAFKA_BROKERS, or leave $name out"
  done
}

# Starts the private servers that are wanted, and fills in their addresses.
start_servers() {
  local service variable
  if [ $PRIVATE_POSTGRES = 1 ]; then
    start_postgres
    create_role
  else
    say "PostgreSQL is yours"
  fi
  for service in $SERVICES; do
    variable=$(upper "$service")_DATABASE_URL
    [ -n "${!variable:-}" ] || export "$variable=$(postgres_url saga "${service}db")"
    ensure_database "$variable"
  done
  if [ $PRIVATE_KAFKA = 1 ]; then
    start_kafka
    KAFKA_BROKERS=$(broker_addresses)
    export KAFKA_BROKERS TOPIC_REPLICATION=${TOPIC_REPLICATION:-$BROKERS}
  else
    say "Kafka is yours: $KAFKA_BROKERS"
  fi
}

default_settings() {
  export ORDER_PORT=${ORDER_PORT:-8080} STOCK_PORT=${STOCK_PORT:-8081} PAYMENT_PORT=${PAYMENT_PORT:-8082}
  export BIND=${BIND:-127.0.0.1} TOPIC_PREFIX=${TOPIC_PREFIX:-} TOPIC_PARTITIONS=${TOPIC_PARTITIONS:-3}
  export ORDER_DEADLINE=${ORDER_DEADLINE:-300s} CONSUMERS=${CONSUMERS:-1} INSTANCES=${INSTANCES:-1}
  export CORS_ORIGINS=${CORS_ORIGINS:-$(url_of order),http://localhost:$ORDER_PORT}
  export PAYMENT_URL=${PAYMENT_URL:-$(url_for_page PAYMENT_PORT)} STOCK_URL=${STOCK_URL:-$(url_for_page STOCK_PORT)}
}
# A page may not name an IPv6 address; this machine's own has a name.
url_for_page() { case $(http_host) in *:*) say "http://localhost:${!1}" ;; *) say "http://$(http_host):${!1}" ;; esac; } # PORT_VARIABLE

# Writes the settings in use as shell assignments; more NAME... are written too.
write_env() {
  local name
  export KAFKA_LIBS RUN_DIR=$DIR RUN_SH=$ROOT/run.sh
  (
    umask 077
    {
      echo "# The settings in use. In a shell:  . $(quote "$DIR/env")"
      for name in $PLACES $TUNABLES KAFKA_LIBS BIN_DIR RUN_DIR RUN_SH "$@"; do
        [ -z "${!name+set}" ] || say "export $name=$(quote "${!name}")"
      done
    } >"$DIR/env.new"
    mv "$DIR/env.new" "$DIR/env"
  )
}

# The settings in use win over the caller's, except for those that a restart may change.
load_env() {
  local name kept=''
  [ -r "$DIR/env" ] || die "nothing was started here yet" "start it: ./run.sh"
  for name in $TUNABLES; do [ -z "${!name:-}" ] || kept="$kept export $name=$(quote "${!name}");"; done
  # shellcheck disable=SC1091
  . "$DIR/env"
  eval "$kept"
}

check_settings() {
  local name service
  for name in ORDER_PORT STOCK_PORT PAYMENT_PORT; do
    case ${!name} in 0* | *[!0-9]* | ??????*) misuse "$name must be a port number, not '${!name}'" ;; esac
    [ "${!name}" -le 65000 ] || misuse "$name must be at most 65000: further instances take the ports above, not '${!name}'"
  done
  case $INSTANCES in [1-9] | 10) ;; *) misuse "--instances must be a number from 1 to 10, not '$INSTANCES'" ;; esac
  name=$(for name in $(all_instances); do port_of "$name"; done | sort | uniq -d | head -n 1)
  [ -z "$name" ] || misuse "two services would get port $name; choose ORDER_PORT, STOCK_PORT and PAYMENT_PORT apart"
  for service in $SERVICES; do
    for name in $(instances_of "$service"); do check_port "$name" "$(upper "$service")_PORT"; done
  done
}
check_port() { # NAME VARIABLE
  local port holder=''
  port=$(port_of "$1")
  if runs "$1" || ! port_taken "$port" "$(http_host | tr -d '[]')"; then return 0; fi
  ! has ss || holder=$(ss -Hltnp "sport = :$port" 2>/dev/null | sed -n 's/.*users:((\(.*\)))/\1/p' | head -n 1)
  die "port $port, which $1 wants, is in use${holder:+ by $holder}" \
    "stop that program, or choose another port: $2=$((${!2} + 1000)) ./run.sh"
}

# ------------------------------------------------------------------------------------------------------------- services

target_dir() { cargo metadata --no-deps --format-version 1 --manifest-path "$ROOT/Cargo.toml" | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'; }

build() { # what, as cargo's options
  say "Building: cargo build --release $*"
  limited "$BUILD_LIMIT" cargo build --release --locked --manifest-path "$ROOT/Cargo.toml" "$@" ||
    die "the build failed; the cause is above"
  BIN_DIR=$(target_dir)/release
}

start_services() { # NAME...
  local name service
  for name in "$@"; do
    if runs "$name"; then continue; fi
    service=$(service_of "$name")
    [ -x "$BIN_DIR/$service" ] || die "$BIN_DIR/$service is not there" "build it: ./run.sh"
    say "starting $name on port $(port_of "$name")"
    launch "$name" "$BIN_DIR/$service" env "$(upper "$service")_PORT=$(port_of "$name")" "$BIN_DIR/$service"
  done
  within "$SERVICE_LIMIT" all_answer_or_one_ended "$@" || true
  for name in "$@"; do # the one that ended is the one to speak of
    runs "$name" || die "$name ended instead of starting; the end of its log:" "$(tail -n 15 "$DIR/log/$name.log")" "log: $DIR/log/$name.log"
  done
  for name in "$@"; do
    answers "$name" || die "$name does not answer on $(url_of "$name") within $SERVICE_LIMIT s; the end of its log:" \
      "$(tail -n 10 "$DIR/log/$name.log")" "log: $DIR/log/$name.log"
  done
}
all_answer_or_one_ended() {
  local name
  for name in "$@"; do runs "$name" || return 0; done
  all answers "$@"
}
all() { # CHECK NAME...
  local check=$1 name; shift
  for name in "$@"; do "$check" "$name" || return 1; done
}

# Puts a user or an item in, unless it is there: what was sold and paid stays.
put_in() { # SERVICE PATH BODY
  local url status
  url=$(url_of "$(instances_of "$1" | head -n 1)")/$2
  status=$(http -w '%{http_code}' "$url") || true
  [ "$status" = 404 ] || return 0
  status=$(http -w '%{http_code}' -X PUT -H @<(operator) -H 'content-type: application/json' -d "$3" "$url") || true
  case $status in 20?) say "put in: $2 $3" ;; *) die "PUT $url was answered with $status" "log: $DIR/log/$1.log" ;; esac
}

# The operator's token as a header, in a file: arguments show in the list of processes.
operator() { [ -z "${ADMIN_TOKEN:-}" ] || printf 'authorization: Bearer %s\n' "$ADMIN_TOKEN"; }

running_services() {
  local name
  for name in $(service_names); do ! runs "$name" || say "$name"; done
}

# Builds and starts all that does not run yet.
bring_up() {
  local name
  open_folder
  [ -z "$(running_services)" ] || load_env
  default_settings
  check_settings
  whose_servers
  local things="cargo linker"
  if [ $PRIVATE_POSTGRES = 1 ]; then things="$things postgres"; else things="$things psql"; fi
  [ $PRIVATE_KAFKA = 0 ] || things="$things java maven"
  # shellcheck disable=SC2086
  need $things
  build -p order -p stock -p payment
  lock
  ON_EXIT=stop_started
  whose_servers # again, with what a call before this one may have started
  [ $PRIVATE_KAFKA = 0 ] || fetch_kafka "$KAFKA_VERSION"
  start_servers
  write_env
  for name in $(all_instances); do runs "$name" || fresh_log "$name"; done
  # shellcheck disable=SC2046
  start_services $(all_instances)
  put_in payment accounts/alice '{"balance": 100000}'
  put_in payment accounts/bob '{"balance": 500}'
  put_in stock items/book '{"quantity": 1000}'
  put_in stock items/lamp '{"quantity": 2}'
  # shellcheck disable=SC2046
  within "$SERVICE_LIMIT" all is_ready $(all_instances) || say "not everything is ready yet: ./run.sh status says what"
  unlock
  ON_EXIT='' STARTED=''
}

introduce() {
  local name order stock payment
  order=$(url_of "$(instances_of order | head -n 1)")
  stock=$(url_of "$(instances_of stock | head -n 1)")
  payment=$(url_of "$(instances_of payment | head -n 1)")
  say ""
  for name in $(all_instances); do printf '%-10s %s\n' "$name" "$(url_of "$name")"; done
  printf '%-10s %s\n' PostgreSQL "$(without_password "$ORDER_DATABASE_URL")" Kafka "$KAFKA_BROKERS" settings "$DIR/env"
  cat <<HINTS

Open $order/ in a browser, or try:
  curl -i $order/orders -H 'content-type: application/json' \\
    -d '{"userName": "alice", "itemName": "book", "price": 1200, "quantity": 2}'
  curl '$order/orders/ORDER_ID?wait=10s'
  curl $payment/accounts/alice
  curl $stock/items/book

HINTS
}

# ------------------------------------------------------------------------------------------------------------- commands

WANTED_BROKERS=
up() {
  local detach=0
  while [ $# -gt 0 ]; do
    case $1 in
      --detach) detach=1; shift ;;
      --instances) [ $# -ge 2 ] || misuse "--instances needs a number"; export INSTANCES=$2; shift 2 ;;
      --brokers) case ${2:-} in 1 | 3) WANTED_BROKERS=$2; shift 2 ;; *) misuse "--brokers must be 1 or 3" ;; esac ;;
      *) misuse "up: unknown option $1" ;;
    esac
  done
  if [ -n "$(running_services)" ]; then
    read_servers
    count_brokers
    say "Already running (./run.sh start NAME starts one, ./run.sh down stops all):"
    status # ends with 1 if something is not ready
    return
  fi
  bring_up
  introduce
  if [ $detach = 1 ]; then
    say "Running. ./run.sh status, logs, down"
  else
    follow
  fi
}

# Shows the services' logs until a signal, which then stops everything; or until all was stopped from elsewhere.
follow() {
  local name reported=' '
  say "Ctrl-C stops everything."
  ON_EXIT=stop_following
  # shellcheck disable=SC2046
  show_logs +1 $(all_instances)
  while sleep 1; do
    [ -n "$(recorded)" ] || { say "Everything was stopped by another call."; exit 0; }
    for name in $(recorded) postgres; do
      if runs "$name"; then reported=${reported/ $name / }; continue; fi
      case $reported in *" $name "*) continue ;; esac
      # what was stopped on purpose has left no file behind
      if [ -e "$DIR/pid/$name" ] || { [ "$name" = postgres ] && [ -e "$PG_DATA/postmaster.pid" ]; }; then
        warn "$name has ended by itself; log: $DIR/log/$name.log; ./run.sh start $name"
        reported="$reported$name "
      fi
    done
  done
}
stop_following() { stop_all; end_logs; }

# Follows these logs, each line with its name in front, in sessions of their own.
LOG_VIEWERS=
show_logs() { # LINES NAME...
  local count=$1 name tail="tail --pid=$$ -F" sed="sed -u"; shift
  [ "$(uname)" != Darwin ] || { tail="tail -F" sed="sed -l"; }
  for name in "$@"; do
    # shellcheck disable=SC2016
    (own_session bash -c '$1 -n "$2" "$3" 2>/dev/null | $4 "s/^/$5/"' - \
      "$tail" "$count" "$DIR/log/$name.log" "$sed" "$(printf '%-9s | ' "$name")") </dev/null &
    LOG_VIEWERS="$LOG_VIEWERS $!"
  done
}
end_logs() {
  local viewer
  sleep 0.3 # the last lines
  for viewer in $LOG_VIEWERS; do kill -TERM -- "-$viewer" 2>/dev/null; done
}

logs() { # [NAME]
  load_env
  ON_EXIT=end_logs
  read_servers
  # shellcheck disable=SC2046
  if [ $# = 0 ]; then show_logs 100 $(all_instances); else show_logs 100 $(expand "$1"); fi
  while sleep 1; do :; done
}

down() {
  local wipe=0
  case ${1:-} in '') ;; --wipe) wipe=1 ;; *) misuse "down: unknown option $1" ;; esac
  [ -d "$DIR/pid" ] || { say "Nothing was started here."; return 0; }
  lock
  if [ -z "$(running_services)" ] && [ -z "$(recorded_brokers)" ] && ! runs postgres; then say "Nothing runs."; fi
  stop_all
  if [ $wipe = 1 ]; then
    rm -rf "$PG_HOME" "$DIR/broker" "$DIR/env" "$DIR/log" "$DIR/pid"
    say "The data is removed."
  fi
  unlock
}

status() {
  local name port ready=0
  load_env
  read_servers
  printf '%-10s %-8s %-28s %s\n' NAME PROCESS ADDRESS STATE
  row postgres "127.0.0.1:$POSTGRES_PORT" port_taken "$POSTGRES_PORT" || ready=1
  if [ "$KAFKA_BROKERS" = "$(broker_addresses)" ]; then
    for name in $(broker_names); do
      port=$(broker_port "$name")
      row "$name" "127.0.0.1:${!port}" port_taken "${!port}" || ready=1
    done
  else
    row kafka "$KAFKA_BROKERS" false || ready=1
  fi
  for name in $(all_instances); do row "$name" "$(url_of "$name")" is_ready "$name" || ready=1; done
  return $ready
}
row() { # NAME ADDRESS CHECK...
  local name=$1 address=$2 pid state=ready; shift 2
  if ! pid=$(pid_of "$name"); then
    pid=- state=stopped
    if [ "$name" = postgres ] && [ ! -f "$PG_DATA/PG_VERSION" ]; then address=$(without_password "$ORDER_DATABASE_URL") state=yours; fi
    if [ "$name" = kafka ] && [ "$address" = "$KAFKA_BROKERS" ] && [ "$address" != "$(broker_addresses)" ]; then state=yours; fi
  elif ! "$@"; then
    state="not ready"
  fi
  printf '%-10s %-8s %-28s %s\n' "$name" "$pid" "$address" "$state"
  case $state in ready | yours) ;; *) return 1 ;; esac
}

all_names() { all_instances; broker_names; }
expand() { # NAME: the names of the processes that are meant
  case $1 in
    order | stock | payment) instances_of "$1" ;;
    kafka) broker_names ;;
    postgres) say "$1" ;;
    *) all_names | grep -xF -e "$1" || misuse "'$1' is none of order, stock, payment, $(all_names | grep - | sed 's/$/, /' | tr -d '\n')kafka, postgres" ;;
  esac
}

one() { # stop|start|restart NAME
  local action=$1 names
  [ $# = 2 ] || misuse "$action needs one name"
  load_env
  read_servers
  names=$(expand "$2")
  whose_servers
  case $names in
    kafka*) [ $PRIVATE_KAFKA = 1 ] || die "Kafka is yours ($KAFKA_BROKERS): this script neither starts nor stops it" ;;
    postgres) [ $PRIVATE_POSTGRES = 1 ] || die "PostgreSQL is yours: this script neither starts nor stops it" ;;
  esac
  load_env
  lock
  # shellcheck disable=SC2086
  [ "$action" = start ] || stop_names $names
  # shellcheck disable=SC2086
  case $action/$names in
    stop/*) ;;
    */kafka*) need java; keep_ports; start_kafka $names ;;
    */postgres) need postgres; port_is_ours postgres "$POSTGRES_PORT"; start_postgres ;;
    *) start_services $names; write_env ;;
  esac
  unlock
}
keep_ports() {
  local name variable
  for name in $(broker_names); do
    for variable in $(broker_port "$name") $(broker_port "$name" KAFKA_CONTROLLER_PORT); do port_is_ours "$name" "${!variable}"; done
  done
}
port_is_ours() { # the running services know this port: it can't be changed under them
  if runs "$1" || ! port_taken "$2"; then return 0; fi
  die "port $2 of $1 is in use by another program" "./run.sh down and then ./run.sh choose another"
}

topics() {
  load_env
  need java
  fetch_kafka "$KAFKA_VERSION"
  (umask 077; rm -f "$DIR/client.properties"; client_properties >"$DIR/client.properties")
  kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$KAFKA_BROKERS" \
    --command-config "$DIR/client.properties" --describe --exclude-internal "$@"
}

# Our settings in the words of Kafka's own tools.
client_properties() {
  local module=org.apache.kafka.common.security.scram.ScramLoginModule
  [ "${KAFKA_SASL_MECHANISM:-}" != PLAIN ] || module=org.apache.kafka.common.security.plain.PlainLoginModule
  say "security.protocol=${KAFKA_SECURITY_PROTOCOL:-PLAINTEXT}"
  [ -z "${KAFKA_SSL_CA_LOCATION:-}" ] || printf 'ssl.truststore.%s\n' type=PEM "location=$KAFKA_SSL_CA_LOCATION"
  if [ -n "${KAFKA_SSL_KEY_LOCATION:-}" ]; then
    cat "$KAFKA_SSL_KEY_LOCATION" "$KAFKA_SSL_CERTIFICATE_LOCATION" >"$DIR/client.pem"
    printf 'ssl.keystore.%s\n' type=PEM "location=$DIR/client.pem"
  fi
  [ -z "${KAFKA_SASL_MECHANISM:-}" ] || say "sasl.mechanism=$KAFKA_SASL_MECHANISM
sasl.jaas.config=$module required username=\"$(in_jaas "${KAFKA_SASL_USERNAME:-}")\" password=\"$(in_jaas "${KAFKA_SASL_PASSWORD:-}")\";"
}
# A backslash before what JAAS would take for its own, then every backslash twice, for the properties file.
in_jaas() { printf '%s' "$1" | sed 's/[\\"]/\\&/g; s/\\/\\\\/g'; }

service_psql() {
  local url
  case ${1:-} in order | stock | payment) ;; *) misuse "psql needs order, stock or payment" ;; esac
  load_env
  need psql
  url=$(upper "$1")_DATABASE_URL; shift
  exec "$PG_BIN/psql" "${!url}" "$@"
}

demo() { # ARG...
  local before status=0
  before=$(running_services)
  bring_up
  build -p saga-tests --bin demo
  "$BIN_DIR/demo" "$@" || status=$?
  [ -n "$before" ] || say "The system was started for this and is left running: ./run.sh down stops it."
  exit "$status"
}

# ---------------------------------------------------------------------------------------------------------------- tests

run_tests() {
  local begin=$SECONDS
  case ${1:-} in '' | --) ;; *) misuse "test: arguments for the tests come after --" ;; esac
  cd "$ROOT"
  need cargo linker postgres java maven
  cargo fmt --version >/dev/null 2>&1 || die "cargo fmt is not installed" "rustup component add rustfmt"
  cargo clippy --version >/dev/null 2>&1 || die "cargo clippy is not installed" "rustup component add clippy"
  use_folder "$(cd "$(mktemp -d "${TMPDIR:-/tmp}/saga-test.XXXXXX")" && pwd -P)"
  ON_EXIT=end_tests
  stage "format" limited "$TOOL_LIMIT" cargo fmt --all --check
  stage "lints" limited "$BUILD_LIMIT" cargo clippy --locked --workspace --all-targets
  stage "kafka without TLS" limited "$BUILD_LIMIT" cargo clippy --locked -p kafka --no-default-features --all-targets
  stage "documentation" limited "$BUILD_LIMIT" cargo doc --locked --workspace --no-deps
  stage "build" limited "$BUILD_LIMIT" cargo build --locked --workspace --bins
  stage "build tests" limited "$BUILD_LIMIT" cargo test --locked --workspace --no-run
  stage "servers" test_servers
  ON_EXIT=end_tests
  addresses_only debug
  stage "tests" limited "$TEST_LIMIT" cargo test --locked --workspace --no-fail-fast "$@"
  # About a minute and a half. With a choice of tests nobody asks for it.
  if [ $# = 0 ]; then
    stage "chaos" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --seed 3 --orders 1200 --faults 12 --spare-broker
    prove
  fi
  STAGE=
  say ""
  say "All passed, in $((SECONDS - begin)) s:$STAGES"
}

# The tests get addresses, and none of the settings of a running system.
addresses_only() { # PROFILE
  local brokers=$KAFKA_BROKERS
  # shellcheck disable=SC2086
  unset $PLACES $TUNABLES
  export KAFKA_BROKERS=$brokers TEST_LOG_DIR=$DIR/log RUN_DIR=$DIR
  TEST_BIN_DIR=$(target_dir)/$1
  export TEST_BIN_DIR
}

# The binaries, and private servers in a folder of their own that goes at the end.
own_stage() { # NAME [release CARGO_OPTION...]
  local name=$1 profile=${2:-debug} what=(--workspace --bins)
  [ "$profile" = debug ] || what=(--release "${@:3}")
  cd "$ROOT"
  need cargo linker postgres java maven
  use_folder "$(cd "$(mktemp -d "${TMPDIR:-/tmp}/saga-$name.XXXXXX")" && pwd -P)"
  ON_EXIT=end_tests
  stage "build" limited "$BUILD_LIMIT" cargo build --locked "${what[@]}"
  stage "servers" test_servers
  ON_EXIT=end_tests
  addresses_only "$profile"
}

# Before anything is started: what the program itself would refuse only afterwards.
check_chaos() { # ARG...
  while [ $# -gt 0 ]; do
    case $1 in
      --orders | --faults | --seed | --instances | --brokers | --minutes)
        case ${2:-} in '' | *[!0-9]*) misuse "chaos: $1 needs a number" ;; esac
        case $1/$2 in
          --seed/* | --brokers/1) ;;
          --brokers/3) WANTED_BROKERS=3 ;;
          --brokers/*) misuse "--brokers must be 1 or 3" ;;
          */0) misuse "chaos: $1 must be at least 1" ;;
        esac
        shift 2 ;;
      --spare-broker | --lost-tail | --lost-tail=order | --lost-tail=payment | --lost-tail=stock | --overload | --nothing-else) shift ;;
      *) misuse "chaos: unknown option $1" ;;
    esac
  done
}

# On servers of its own: they are killed too.
chaos() { # ARG...
  case " $* " in *" --help "* | *" -h "*) usage | sed -n '/sh chaos /,/by its deadline/p'; return ;; esac
  check_chaos "$@"
  own_stage chaos
  stage "chaos" limited "$CHAOS_LIMIT" "$TEST_BIN_DIR/chaos" "$@"
}

# Nobody else's servers: what is measured has them to itself.
bench() { # ARG...
  case " $* " in *" --help "* | *" -h "*) usage | sed -n '/ bench /,/target folder/p'; return ;; esac
  own_stage bench release -p order -p payment -p stock -p saga-tests --bin order --bin payment --bin stock --bin bench
  stage "bench" limited "$BENCH_LIMIT" "$TEST_BIN_DIR/bench" "$@"
}

# What takes too long for each change.
proof() { # [--seed S]
  local seed=(--seed "$((RANDOM * 32768 + RANDOM))") begin=$SECONDS
  case "${1:-}" in '') ;; --seed) [ $# = 2 ] || misuse "proof: --seed needs a number"; seed=("$@") ;; *) misuse "proof: unknown option $1" ;; esac
  require_upgrade_from
  WANTED_BROKERS=3
  need chromium promtool pgbouncer
  own_stage proof
  stage "unit" verify_unit
  stage "alerts" check_monitoring
  stage "build tests" limited "$BUILD_LIMIT" cargo test --locked -p saga-tests --no-run
  stage "attacks" limited "$TEST_LIMIT" cargo test --locked -p saga-tests --test saga attack
  stage "page" limited "$TEST_LIMIT" cargo test --locked -p saga-tests --test saga page:: -- --include-ignored
  stage "build rates" limited "$BUILD_LIMIT" cargo build --locked --release -p kafka --example rates
  stage "beside Java's client" limited "$TEST_LIMIT" env RATES_BIN="$(target_dir)/release/examples/rates" \
    cargo test --locked -p kafka --test java -- --ignored --nocapture
  stage "pooler" limited "$TEST_LIMIT" cargo test --locked -p saga-tests --test saga pgbouncer -- --include-ignored
  say "Pictures of the page: $(target_dir)/page"
  upgrade
  stage "chaos" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 10000 --faults 50 --brokers 3 --minutes 20 "${seed[@]}"
  # Apart from it, because a lost tail relaxes what the checks of that one claim, and a flood slows all others down.
  stage "chaos, older databases" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 3000 --faults 18 --brokers 3 --minutes 15 \
    --lost-tail --overload "${seed[@]}"
  stage "chaos, load alone" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 1000 --faults 2 --brokers 3 --overload --nothing-else "${seed[@]}"
  prove
  say ""
  say "Proven, in $((SECONDS - begin)) s:$STAGES"
}

require_upgrade_from() {
  git -C "$ROOT" cat-file -e "$UPGRADE_FROM^{commit}" 2>/dev/null ||
    die "the commit that the upgrade starts from is not here: $UPGRADE_FROM" "a shallow clone lacks it: git fetch --unshallow"
}

# Instances of an earlier version beside those of this one. It is built in a folder of its own, from a copy of its files.
upgrade() {
  local folder source
  folder=$(target_dir)/upgrade source=$(target_dir)/upgrade/source
  rm -rf "$source"
  mkdir -p "$source"
  git -C "$ROOT" archive "$UPGRADE_FROM" | tar -x -C "$source"
  stage "build earlier version" limited "$BUILD_LIMIT" env CARGO_TARGET_DIR="$folder" \
    cargo build --locked --manifest-path "$source/Cargo.toml" -p order -p payment -p stock
  stage "upgrade" limited "$TEST_LIMIT" env UPGRADE_FROM_BIN_DIR="$folder/debug" \
    cargo test --locked -p saga-tests --test saga -- --ignored upgrade
}

# The unit by systemd's own rules, with the binaries where they were built: one that starts what does not exist is refused.
# What is only ignored, such as a word with a slip in it, is told in a line and is an error here.
verify_unit() {
  local folder=$DIR/unit service
  has systemd-analyze || { say "not verified: there is no systemd-analyze here"; return 0; }
  mkdir -p "$folder"
  for service in $SERVICES; do
    sed "s|/usr/local/lib/saga/|$TEST_BIN_DIR/|" "$ROOT/deploy/systemd/saga@.service" >"$folder/saga@$service.service"
    if ! limited "$TOOL_LIMIT" systemd-analyze verify "$folder/saga@$service.service" >"$folder/said" 2>&1 ||
      grep -q saga@ "$folder/said"; then
      cat "$folder/said"
      return 1
    fi
    limited "$TOOL_LIMIT" systemd-analyze security --offline=true --no-pager --threshold="$EXPOSURE_LIMIT" \
      "$folder/saga@$service.service" >"$folder/security" || { cat "$folder/security"; return 1; }
    tail -n 1 "$folder/security"
  done
  rm -rf "$folder"
}

# Prometheus's own word on its configuration and the alert rules, and each rule on made-up series.
check_monitoring() {
  (cd "$ROOT/monitoring" && promtool check config prometheus.yml && promtool test rules alerts_test.yml)
}

# Whether the checks notice when a mechanism is missing.
sabotage() { # ARG...
  own_stage sabotage
  prove "$@"
}

# The sabotaged binaries have a folder of their own: other flags would build everything anew at each change of folder.
prove() { # ARG...
  local folder
  folder=$(target_dir)/sabotage
  stage "build sabotaged" limited "$BUILD_LIMIT" env RUSTFLAGS="${RUSTFLAGS:-} --cfg sabotage" CARGO_TARGET_DIR="$folder" \
    cargo build --locked -p order -p payment -p stock
  stage "sabotage" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --prove "$folder/debug" "$@"
}

STAGE='' STAGES=''
stage() { # TITLE COMMAND...
  local begin=$SECONDS
  STAGE=$1; shift
  say ""
  case $1 in limited) say "== $STAGE: ${*:3}" ;; *) say "== $STAGE" ;; esac
  "$@"
  say "== $STAGE: $((SECONDS - begin)) s"
  STAGES="$STAGES${STAGES:+,} $STAGE $((SECONDS - begin)) s"
}

end_tests() { # STATUS
  stop_all >/dev/null
  if [ "$1" != 0 ] && [ -r "$PG_HOME/postgres.log" ]; then rm -f "$DIR/log/postgres.log"; cp "$PG_HOME/postgres.log" "$DIR/log/"; fi
  rm -rf "$PG_HOME" "$DIR/broker" "$DIR/pid" "$DIR/env" "$DIR/servers"
  if [ "$1" = 0 ] || [ -z "$(ls -A "$DIR/log" 2>/dev/null)" ]; then rm -rf "$DIR"; fi
  [ "$1" != 0 ] || return 0
  warn ""
  case $1 in 129 | 130 | 143) warn "INTERRUPTED in: $STAGE" ;; *) warn "FAILED in: $STAGE" ;; esac
  [ -z "$STAGES" ] || warn "passed before:$STAGES"
  [ ! -d "$DIR" ] || warn "The servers' logs are kept in $DIR/log"
}

# Private servers for tests, whatever the caller's settings say.
test_servers() {
  # shellcheck disable=SC2086
  unset $PLACES $TUNABLES
  ON_EXIT=${ON_EXIT:-stop_started}
  lock
  whose_servers
  need postgres java maven
  fetch_kafka "$KAFKA_VERSION"
  fetch_kafka "$KAFKA_OLD_VERSION"
  default_settings
  start_servers
  KAFKA_LIBS_4=$(kafka_libs "$KAFKA_VERSION")
  KAFKA_LIBS_39=$(kafka_libs "$KAFKA_OLD_VERSION")
  TEST_POSTGRES_URL=$(postgres_url postgres postgres)
  export KAFKA_LIBS_4 KAFKA_LIBS_39 TEST_POSTGRES_URL PG_BIN # PG_BIN: for tests that start a PostgreSQL of their own
  write_env KAFKA_LIBS_4 KAFKA_LIBS_39 TEST_POSTGRES_URL PG_BIN
  unlock
}

# For work on the tests: the servers alone, for as long as one likes. `servers up|down [--dir FOLDER]`; then
# `. FOLDER/env; cargo test`.
servers() {
  local action=${1:-}
  [ $# = 0 ] || shift
  case ${1:-} in
    --dir) [ $# = 2 ] || misuse "--dir needs a folder"; mkdir -p "$2"; use_folder "$(cd "$2" && pwd -P)" ;;
    '') ;;
    *) misuse "servers: unknown option $1" ;;
  esac
  case $action in
    up) test_servers; ON_EXIT=''; say "settings: $DIR/env" ;;
    down) stop_all ;;
    *) misuse "servers: up or down" ;;
  esac
}

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
