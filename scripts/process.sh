# shellcheck shell=bash
# Processes: started in the background, known again, stopped; the folder that holds their files; the end of this script.

SERVICE_STOP_LIMIT=10 # seconds: what a service may take to finish what it has claimed
SERVER_STOP_LIMIT=30
BROKERS_STOP_LIMIT=8 # several brokers at once: the last ones, a minority, wait for the others; killed, they lose nothing acknowledged
LOCK_LIMIT=120

# Everything that is started keeps its files in one folder, DIR: .run, or another one for `servers --dir` and `test`.
# PostgreSQL refuses to run as root, and the user it then runs as may not be allowed to look below the checkout (a home
# of mode 0700). So root's clusters live outside, in a folder of that user's own, named after the folder they belong to.
use_folder() {
  DIR=$1
  PG_HOME=$DIR/postgres
  ! is_root || PG_HOME=/var/lib/saga-postgres/$(printf '%s' "$DIR" | cksum | cut -d ' ' -f 1)
  PG_DATA=$PG_HOME/data
}

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
