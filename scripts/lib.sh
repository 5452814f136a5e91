# shellcheck shell=bash
# The words that the other scripts are written in: output, waiting, ports.

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

port_taken() { (exec 3<>"/dev/tcp/${2:-127.0.0.1}/$1") 2>/dev/null; } # PORT [HOST]

# Prints the wanted port if it is free, else a free one, below those that the system hands out to clients.
free_port() {
  local port=${1:-}
  while [ -z "$port" ] || port_taken "$port"; do port=$((20000 + RANDOM % 12000)); done
  say "$port"
}
