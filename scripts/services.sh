# shellcheck shell=bash
# The three services: built, started, shown, stopped. The commands that work on the running system.

BUILD_LIMIT=3600 # seconds
SERVICE_LIMIT=75 # until a service answers HTTP, or gives up waiting for its servers and says why

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
  # shellcheck disable=SC2086 # words on purpose
  build -p order -p stock -p payment ${FEATURES:+--features "$FEATURES"}
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
  if [ $wipe = 1 ]; then wipe_data; fi
  unlock
}
wipe_data() {
  rm -rf "$PG_HOME" "$DIR/broker" "$DIR/env" "$DIR/log" "$DIR/pid"
  say "The data is removed."
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

demo() { # ARG...
  local before status=0
  before=$(running_services)
  bring_up
  build -p saga-tests --bin demo
  "$BIN_DIR/demo" "$@" || status=$?
  [ -n "$before" ] || say "The system was started for this and is left running: ./run.sh down stops it."
  exit "$status"
}
