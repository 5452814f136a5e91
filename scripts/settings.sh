# shellcheck shell=bash
# Settings: which servers are used, where everything is, what a restart may change.


SERVICES="order stock payment"
# The names of the settings, as the services' own --help lists them: "  NAME=default".
setting_names() { # of the services in BIN_DIR
  local service
  for service in $SERVICES; do
    [ ! -x "${BIN_DIR:-}/$service" ] || "$BIN_DIR/$service" --help
  done | sed -n 's/^  \([A-Z][A-Z0-9_]*\)=.*/\1/p' | sort -u
}

# Where everything is: while processes run, a restart of one of them must not change that.
is_place() {
  case $1 in
    ORDER_PORT | STOCK_PORT | PAYMENT_PORT | BIND | PAYMENT_URL | STOCK_URL) ;;
    ORDER_DATABASE_URL | STOCK_DATABASE_URL | PAYMENT_DATABASE_URL) ;;
    KAFKA_BROKERS | KAFKA_SECURITY_* | KAFKA_SSL_* | KAFKA_SASL_* | TOPIC_* | INSTANCES) ;;
    *) return 1 ;;
  esac
}
places() { # those that are set
  local name
  for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' | sort); do ! is_place "$name" || say "$name"; done
}
tunables() { # what a restart may change
  local name
  for name in $(setting_names); do is_place "$name" || say "$name"; done
}

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

# TLS and passwords are for your own Kafka; a private one has neither.
require_no_guards() {
  local name
  [ $PRIVATE_KAFKA = 1 ] || return 0
  for name in ${!KAFKA_SECURITY_@} ${!KAFKA_SSL_@} ${!KAFKA_SASL_@}; do
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
      for name in $(places) $(tunables) KAFKA_LIBS BIN_DIR RUN_DIR RUN_SH "$@"; do
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
  # shellcheck disable=SC1091
  for name in $(. "$DIR/env" && tunables); do [ -z "${!name:-}" ] || kept="$kept export $name=$(quote "${!name}");"; done
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
