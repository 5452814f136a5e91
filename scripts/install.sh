# shellcheck shell=bash
# Programs that must be there: each is found where systems put it, or installed, or the caller is told what to install.

POSTGRES_OLDEST=14
JAVA_OLDEST=17

find_cargo() {
  has cargo || { [ -x "$HOME/.cargo/bin/cargo" ] && PATH=$HOME/.cargo/bin:$PATH; } || return 1
  use_installed_rust
}

# rust-toolchain.toml names rustup's toolchain `stable`. Where that is not installed the default one is used, so that
# nothing is downloaded for its name alone; cargo refuses one that is too old.
use_installed_rust() {
  local default
  if ! has rustup || [ -n "${RUSTUP_TOOLCHAIN:-}" ] || rustup toolchain list | grep -q '^stable-'; then return 0; fi
  default=$(rustup default 2>/dev/null | cut -d ' ' -f 1)
  [ -z "$default" ] || export RUSTUP_TOOLCHAIN="$default"
}

find_maven() { has mvn; }

find_linker() { has cc || has clang; }

find_shellcheck() { has shellcheck; }

find_promtool() { has promtool; }

find_pgbouncer() { has pgbouncer; }

find_podman() { has podman && has runc && has mmdebstrap; }

find_go() { has go || { [ -x /usr/local/go/bin/go ] && PATH=$PATH:/usr/local/go/bin; }; }

find_python() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

find_unpackers() { has unzip && has xz; }

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

# PG_BIN: the server's programs, those in POSTGRES_BIN if that is set. PSQL: an installed psql, of whichever version.
find_postgres() {
  find_installed_postgres || return 1
  [ -n "${POSTGRES_BIN:-}" ] || return 0
  [ -x "$POSTGRES_BIN/postgres" ] || die "POSTGRES_BIN: there is no program postgres in $POSTGRES_BIN"
  PG_BIN=$POSTGRES_BIN
}

# Those of the PostgreSQL that wrote our data, or else of the newest one there is.
find_installed_postgres() {
  local bin major wanted='' best=0
  if [ -z "${POSTGRES_BIN:-}" ] && [ -f "$PG_DATA/PG_VERSION" ]; then wanted=$(cat "$PG_DATA/PG_VERSION"); fi
  PG_BIN=
  for bin in "$(dirname "$(command -v postgres || echo /none/x)")" "$(pg_config --bindir 2>/dev/null || echo /none)" \
    /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
    if ! [ -x "$bin/postgres" ] || ! [ -x "$bin/initdb" ] || ! [ -x "$bin/psql" ]; then continue; fi
    major=$("$bin/postgres" --version | sed 's/.*) \([0-9]*\).*/\1/')
    [ "$major" -ge "$POSTGRES_OLDEST" ] || continue
    if [ "$major" = "$wanted" ]; then PG_BIN=$bin PSQL=$bin/psql; return 0; fi
    if [ "$major" -gt "$best" ]; then PG_BIN=$bin best=$major; fi
  done
  [ -n "$PG_BIN" ] || return 1
  PSQL=$PG_BIN/psql
  [ -z "$wanted" ] || die "the data under $PG_DATA was written by PostgreSQL $wanted, which is not installed" \
    "install it again, or remove the data: ./run.sh down --wipe"
}

find_psql() { find_postgres || { has psql && PSQL=$(command -v psql); }; }

# `need THING...` finds each of cargo, linker, postgres, psql, java, maven, shellcheck, chromium, promtool, pgbouncer,
# podman, python, unpackers; it installs what is missing, or says what to install.
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
    shellcheck) echo "shellcheck, which checks the shell scripts" ;;
    promtool) echo "promtool, which comes with Prometheus" ;;
    pgbouncer) echo "PgBouncer" ;;
    podman) echo "podman with runc, and mmdebstrap" ;;
    python) echo "Python 3 with venv" ;;
    unpackers) echo "unzip and xz, which unpack PostgreSQL's other versions" ;;
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
      shellcheck) apt+=(shellcheck) brew+=(shellcheck) ;;
      promtool) apt+=(prometheus) brew+=(prometheus) ;;
      pgbouncer) apt+=(pgbouncer) brew+=(pgbouncer) ;;
      podman) apt+=(podman runc mmdebstrap) brew+=(podman) ;;
      python) apt+=(python3-venv) brew+=(python) ;;
      unpackers) apt+=(unzip xz-utils) brew+=(unzip xz) ;;
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

# Programs of PyPI, in a folder of their own: PYTHON_BIN. Debian has no schemas of Kubernetes, and its podman-compose hands
# health checks to a shell, which our images lack.
PODMAN_COMPOSE_VERSION=1.6.0
KUBERNETES_VALIDATE_VERSION=1.37.0
fetch_python_tools() {
  local folder
  folder=$(target_dir)/python
  PYTHON_BIN=$folder/bin
  [ -x "$PYTHON_BIN/pip" ] || limited "$DOWNLOAD_LIMIT" python3 -m venv --clear "$folder"
  limited "$DOWNLOAD_LIMIT" "$PYTHON_BIN/pip" install --quiet --disable-pip-version-check \
    "podman-compose==$PODMAN_COMPOSE_VERSION" "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION"
}
