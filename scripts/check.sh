# shellcheck shell=bash
# The checks: format, lints and tests, chaos, sabotage, measurements, and what takes longer.

# Where the upgrade that `proof` plays starts from: the newest commit before this version's own with the same min_version
# (sql/common). It moves on with each version that is given out, and must when a migration raises min_version: older
# instances can't run beside newer ones then.
UPGRADE_FROM=c0c5074e030bf569951d2a710644bdabdd701b34

# What asyncapi.yaml is held against by `proof`, and the collector and viewer of traces that it builds.
ASYNCAPI_SPECS_VERSION=6.11.1
JAEGER_VERSION=v1.76.0

# Limits, in seconds.
TEST_LIMIT=2400
BENCH_LIMIT=14400 # all sections with the longest --seconds
CHAOS_LIMIT=90000 # its own limits are stricter; this one is above a day of --minutes

# Of 100, by systemd-analyze: what is left is the network itself.
EXPOSURE_LIMIT=15

# What is long and rare: modules of tests/saga, and Kafka's suites. `test` passes it over, `proof` runs it.
LONG_TESTS="attack brokers repair security takeover"
LONG_SUITES="cluster outage"

# What is played on each of POSTGRES_VERSIONS: the eight rows, the points at which a service is killed, and a server that is
# killed and started again.
VERSION_TESTS="rows:: crash:: outage::servers_that_are_killed"

# Where the servers of `test NAME` are; they stay up between calls.
TEST_SERVERS=$ROOT/.run/test

# What needs neither servers nor a build of the services. `shellcheck -x -a` reads run.sh and its parts as one program.
static_checks() {
  cargo fmt --version >/dev/null 2>&1 || die "cargo fmt is not installed" "rustup component add rustfmt"
  cargo clippy --version >/dev/null 2>&1 || die "cargo clippy is not installed" "rustup component add clippy"
  stage "format" limited "$TOOL_LIMIT" cargo fmt --all --check
  # a linter that can't be had must not keep the tests from being run
  if find_shellcheck || (need shellcheck); then
    stage "scripts" limited "$TEST_LIMIT" shellcheck -x -a run.sh .ci/run deploy/compose/databases.sh
  else
    warn "the scripts are not checked: shellcheck is not there"
  fi
  stage "links" check_links
  stage "sabotage applies" git apply --check tests/sabotage.patch
  stage "lints" limited "$BUILD_LIMIT" cargo clippy --locked --workspace --all-targets
  stage "kafka without TLS" limited "$BUILD_LIMIT" cargo clippy --locked -p kafka --no-default-features --all-targets
  stage "tiny_http" limited "$BUILD_LIMIT" cargo clippy --locked -p shared --features tiny_http --all-targets
  stage "documentation" limited "$BUILD_LIMIT" cargo doc --locked --workspace --no-deps
}

# The files that the pages link to or name by their whole path are there, and compose.yaml starts the Kafka that everything else is tested with.
check_links() {
  local page link status=0
  for page in *.md docs/*.md kafka/*.md; do
    while read -r link; do
      [ -e "$(dirname "$page")/$link" ] || { warn "$page: there is no $link"; status=1; }
    done < <(grep -o '](\([^)#]*\)' "$page" | cut -c 3- | grep -v '^http' | sort -u)
    # shellcheck disable=SC2016 # code in a page, none of ours
    while read -r link; do
      [ -e "$link" ] || { warn "$page: there is no $link"; status=1; }
    done < <(grep -oE '`(deploy|docs|kafka|monitoring|order|payment|scripts|shared|sql|stock|tests)/[A-Za-z0-9_./@-]*`' "$page" | tr -d '`' | sort -u)
  done
  grep -qF "image: apache/kafka:$KAFKA_VERSION" compose.yaml || { warn "compose.yaml: its Kafka is not $KAFKA_VERSION"; status=1; }
  return $status
}

# `check`: what every edit should pass, in minutes.
check() {
  local begin=$SECONDS
  [ $# = 0 ] || misuse "check takes no arguments"
  cd "$ROOT"
  need cargo linker
  ON_EXIT=report_end
  static_checks
  stage "unit and property tests" limited "$TEST_LIMIT" cargo test --locked --workspace --lib --bins --test model --test http
  stage "outcomes" limited "$TEST_LIMIT" cargo test --locked -p order --test saga
  all_passed "$begin"
}

# `test` alone is the whole gate; `test NAME` runs the tests of that name; `test -- ARG...` hands arguments to all tests.
run_tests() { # [NAME] [-- ARG...]
  case ${1:-} in
    '') whole_gate ;;
    --) whole_gate "$@" ;;
    -*) misuse "test: unknown option $1; arguments for the tests come after --" ;;
    *)
      case ${2:---} in --) ;; *) misuse "test: one NAME, then arguments for the tests after --" ;; esac
      named_tests "$@" ;;
  esac
}

whole_gate() { # [-- ARG...]
  local begin=$SECONDS
  cd "$ROOT"
  need cargo linker postgres java maven
  use_folder "$(cd "$(mktemp -d "${TMPDIR:-/tmp}/saga-test.XXXXXX")" && pwd -P)"
  ON_EXIT=end_tests
  static_checks
  # Binaries and tests by one call: cargo would build what they share twice, because tests want more features of it.
  stage "build" limited "$BUILD_LIMIT" cargo build --locked --workspace --all-targets
  stage "servers" test_servers
  ON_EXIT=end_tests
  addresses_only debug
  stage "tests" all_tests "$@"
  # About a minute and a half. With a choice of tests nobody asks for it.
  [ $# != 0 ] || stage "chaos" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --seed 3 --orders 1200 --faults 12 --spare-broker
  all_passed "$begin"
}

# Most tests wait most of the time, so there are more at once than processors, and Kafka's suites run beside the others; what
# they print follows in the end. With arguments nothing is passed over.
all_tests() { # [-- ARG...]
  local suites skips=''
  suites=$(find kafka/tests -maxdepth 1 -name '*.rs' | sort | sed 's|.*/\(.*\)\.rs|\1|')
  if [ $# = 0 ]; then
    # shellcheck disable=SC2086 # words on purpose
    suites=$(comm -23 <(say "$suites") <(printf '%s\n' $LONG_SUITES))
    # shellcheck disable=SC2086
    skips="-- $(printf -- '--skip %s:: ' $LONG_TESTS)"
  fi
  # shellcheck disable=SC2016 # the inner shell's words
  RUST_TEST_THREADS=${RUST_TEST_THREADS:-4} limited "$TEST_LIMIT" bash -c '
    suites=$1 skips=$2 log=$3 status=0; shift 3
    cargo="cargo test --locked --workspace --no-fail-fast"
    $cargo $suites "$@" >"$log" 2>&1 &
    $cargo --lib --bins --test http --test model "$@" || status=$?
    $cargo --test saga $skips "$@" || status=$?
    $cargo --doc "$@" || status=$?
    wait $! || status=$?
    cat "$log"
    exit $status' - "$(say "$suites" | sed 's/^/--test /' | tr '\n' ' ')" "$skips" "$DIR/log/kafka-tests.log" "$@"
}

# The rest of them.
long_tests() {
  # shellcheck disable=SC2046,SC2086 # words on purpose
  stage "long tests" limited "$TEST_LIMIT" cargo test --locked -p saga-tests --test saga -- --test-threads 4 $(printf '%s:: ' $LONG_TESTS)
  # shellcheck disable=SC2046,SC2086
  stage "Kafka's long tests" limited "$TEST_LIMIT" cargo test --locked -p kafka $(printf -- '--test %s ' $LONG_SUITES)
}

# The tests whose paths contain NAME, with services built from the files as they are now, on servers that stay.
named_tests() { # NAME [-- ARG...]
  local name=$1 begin=$SECONDS targets target; shift
  cd "$ROOT"
  need cargo linker
  targets=$(files_with_test "$name" | while read -r file; do target_of "$file"; done | sort -u)
  [ -n "$targets" ] || die "no test's name contains '$name'" "list them: cargo test --workspace -- --list"
  ON_EXIT=report_end
  use_folder "$TEST_SERVERS"
  case $targets in *"--test saga servers"*)
    stage "build" limited "$BUILD_LIMIT" cargo build --locked --workspace --bin order --bin payment --bin stock --test saga ;;
  esac
  case $targets in *servers*)
    need postgres java maven
    stage "servers" test_servers
    ON_EXIT=report_end
    addresses_only debug ;;
  esac
  open_folder
  : >"$DIR/log/tests.log"
  while read -r target; do
    stage "cargo test ${target% *}" run_target "${target% *}" "$name" "$@"
  done <<<"$targets"
  within 2 grep -qE '^running [1-9]|: test$' "$DIR/log/tests.log" || die "no test's whole name contains '$name'"
  all_passed "$begin"
}

# The files with a test that NAME means. The part after the last `::` is looked for in the functions' names, and what is
# before it must name the file; `module::` is all tests of a file.
files_with_test() { # NAME
  # shellcheck disable=SC2016 # awk's words
  find kafka order payment shared stock tests -name target -prune -o -name '*.rs' -print | sort | xargs awk -v wanted="${1%::}" '
    BEGIN {
      sub(/::tests$/, "", wanted)
      modules = wanted
      if (sub(/(::tests)?::[^:]*$/, "", modules)) { sub(/.*::/, "", modules) } else { modules = "" }
      sub(/.*::/, "", wanted)
    }
    FNR == 1 { test = listed = 0; file = FILENAME; sub(/\.rs$/, "", file); sub(/.*\//, "", file) }
    /#\[test\]/ { test = 1 }
    /^on_both_lines! \{/ { listed = 1; next } # the names of tests, one a line
    /^\}/ { listed = 0 }
    test && sub(/.*fn /, "") { test = 0; found = $0; sub(/[^a-z0-9_].*/, "", found) }
    listed { found = $1 }
    found != "" {
      named = index(found, wanted) && (modules == "" || modules == "tests" || modules == file)
      if ((named || file == wanted) && !(FILENAME in seen)) { seen[FILENAME]; print FILENAME }
      found = ""
    }'
}

# Cargo's words for the target that a file belongs to, then whether its tests need servers. With --workspace nothing is
# built twice: the features of what is shared are those of the whole workspace then.
target_of() { # FILE
  local package=${1%%/*} test=${1#*/*/}
  test=${test%%/*} test=${test%.rs}
  case $1 in
    */src/*) say "-p $package --lib alone" ;;
    tests/harness/*) say "-p saga-tests --lib alone" ;;
    tests/bin/*) say "--workspace --bin $test alone" ;;
    tests/model.rs) say "--workspace --test model alone" ;;
    tests/*) say "--workspace --test saga servers" ;;
    order/tests/saga.rs) say "-p order --test saga alone" ;;
    kafka/tests/*) say "--workspace --test $test servers" ;;
    */tests/*) say "--workspace --test $test alone" ;;
  esac
}

run_target() { # TARGET NAME [-- ARG...]
  local target=$1; shift
  # shellcheck disable=SC2086 # words on purpose
  limited "$TEST_LIMIT" cargo test --locked $target "$@" > >(tee -a "$DIR/log/tests.log")
}

all_passed() { # BEGIN
  STAGE=
  say ""
  say "All passed, in $((SECONDS - $1)) s:$STAGES"
}

# The tests get addresses, and none of the settings of a running system.
addresses_only() { # PROFILE
  local brokers=$KAFKA_BROKERS
  TEST_BIN_DIR=$(target_dir)/$1
  # shellcheck disable=SC2046 # words on purpose
  unset $(places) $(BIN_DIR=$TEST_BIN_DIR tunables)
  export KAFKA_BROKERS=$brokers TEST_BIN_DIR TEST_LOG_DIR=$DIR/log RUN_DIR=$DIR
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
  case " $* " in *" --failover "*"--lost-tail"* | *" --lost-tail"*"--failover "*)
    misuse "chaos: --failover claims what --lost-tail excuses: one of them" ;;
  esac
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
      --spare-broker | --lost-tail | --lost-tail=order | --lost-tail=payment | --lost-tail=stock) shift ;;
      --failover | --overload | --nothing-else) shift ;;
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
  local arguments=()
  while [ $# -gt 0 ]; do
    case $1/${2:-} in
      --brokers/1 | --brokers/3) WANTED_BROKERS=$2; shift 2 ;;
      --brokers/*) misuse "--brokers must be 1 or 3" ;;
      *) arguments+=("$1"); shift ;;
    esac
  done
  own_stage bench release -p order -p payment -p stock -p saga-tests --bin order --bin payment --bin stock --bin bench
  stage "bench" limited "$BENCH_LIMIT" "$TEST_BIN_DIR/bench" ${arguments[@]+"${arguments[@]}"}
}

# What takes too long for each change.
proof() { # [--seed S]
  local seed=(--seed "$((RANDOM * 32768 + RANDOM))") begin=$SECONDS
  case "${1:-}" in '') ;; --seed) [ $# = 2 ] || misuse "proof: --seed needs a number"; seed=("$@") ;; *) misuse "proof: unknown option $1" ;; esac
  require_upgrade_from
  WANTED_BROKERS=3
  # shellcheck disable=SC2046 # words on purpose
  need chromium promtool pgbouncer unpackers python $(container_tools)
  own_stage proof
  stage "unit" verify_unit
  stage "alerts" check_monitoring
  stage "manifests" check_manifests
  stage "build tests" limited "$BUILD_LIMIT" cargo test --locked -p saga-tests --no-run
  long_tests
  on_tiny_http
  stage "page" limited "$TEST_LIMIT" cargo test --locked -p saga-tests --test saga page:: -- --include-ignored
  stage "build rates" limited "$BUILD_LIMIT" cargo build --locked --release -p kafka --example rates
  stage "beside Java's client" limited "$TEST_LIMIT" env RATES_BIN="$(target_dir)/release/examples/rates" \
    cargo test --locked -p kafka --test java -- --ignored --nocapture
  stage "pooler" limited "$TEST_LIMIT" cargo test --locked -p saga-tests --test saga pgbouncer -- --include-ignored
  message_schema
  traces
  say "Pictures of the page: $(target_dir)/page"
  containers
  on_other_versions
  upgrade
  stage "chaos" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 10000 --faults 50 --brokers 3 --minutes 20 "${seed[@]}"
  # Apart from it, because a lost tail relaxes what the checks of that one claim, and a flood slows all others down.
  stage "chaos, older databases" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 3000 --faults 18 --brokers 3 --minutes 15 \
    --lost-tail --overload "${seed[@]}"
  # With all three databases on a pair of servers, so that nothing is excused.
  stage "chaos, failovers" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 3000 --faults 8 --brokers 3 --minutes 15 \
    --failover --nothing-else "${seed[@]}"
  stage "chaos, load alone" limited "$TEST_LIMIT" "$TEST_BIN_DIR/chaos" --orders 1000 --faults 2 --brokers 3 --overload --nothing-else "${seed[@]}"
  prove
  say ""
  say "Proven, in $((SECONDS - begin)) s:$STAGES"
}

# The crate that was asked for, in place of our own server: what is no attack passes on it, and what attacks do to both.
on_tiny_http() {
  local folder
  folder=$(target_dir)/tiny_http
  stage "requests, tiny_http" limited "$TEST_LIMIT" cargo test --locked -p shared --features tiny_http --test http
  stage "build with tiny_http" limited "$BUILD_LIMIT" env CARGO_TARGET_DIR="$folder" \
    cargo build --locked -p order -p payment -p stock --features tiny_http
  stage "services, tiny_http" limited "$TEST_LIMIT" env TEST_BIN_DIR="$folder/debug" \
    cargo test --locked -p saga-tests --test saga -- http:: guard:: --skip malformed --skip waiting_requests_beyond
  stage "attacks on both" limited "$TEST_LIMIT" env TINY_HTTP_BIN_DIR="$folder/debug" \
    cargo test --locked -p saga-tests --test saga servers:: -- --ignored --nocapture
}

# asyncapi.yaml by AsyncAPI's own schema, which comes by npm.
message_schema() {
  local folder
  folder=$(target_dir)/asyncapi
  has npm || { say "left out: no npm to get AsyncAPI's schema with"; return 0; }
  mkdir -p "$folder"
  stage "AsyncAPI's schema" fetch_asyncapi "$folder"
  # shellcheck disable=SC2016 # the file's name
  stage "messages" limited "$TEST_LIMIT" env ASYNCAPI_SCHEMA="$folder/package/schemas/3.0.0-without-\$id.json" \
    cargo test --locked -p saga-tests --lib asyncapi -- --include-ignored
}

fetch_asyncapi() { # FOLDER
  (cd "$1" && limited "$DOWNLOAD_LIMIT" npm pack --silent "@asyncapi/specs@$ASYNCAPI_SPECS_VERSION" >packed && tar -xzf "$(cat packed)")
}

# Spans in a real Jaeger, which is built where there is a Go that can: it comes as source from Go's module proxy.
traces() {
  local folder
  folder=$(target_dir)/jaeger-$JAEGER_VERSION
  find_go || { say "left out: no go to build Jaeger with"; return 0; }
  [ -x "$folder/jaeger" ] || stage "build Jaeger" build_jaeger "$folder"
  stage "traces" limited "$TEST_LIMIT" env JAEGER_BIN="$folder/jaeger" \
    cargo test --locked -p saga-tests --test saga jaeger -- --include-ignored
}

# FOLDER. `go install` refuses a module that replaces another one, so it is built where it has been unpacked.
build_jaeger() {
  local module=github.com/jaegertracing/jaeger@$JAEGER_VERSION
  limited "$BUILD_LIMIT" go mod download "$module"
  mkdir -p "$1"
  limited "$BUILD_LIMIT" env GOFLAGS=-p=2 go -C "$(go env GOMODCACHE)/$module" build -o "$1/jaeger" ./cmd/jaeger
}

# The PostgreSQL versions that people run, one after the other, each with a Kafka of its own.
on_other_versions() {
  local version
  case $(uname -s)/$(uname -m) in
    Linux/x86_64) ;;
    *) say "not played: the PostgreSQL versions are pinned for Linux on x86-64"; return 0 ;;
  esac
  for version in $POSTGRES_VERSIONS; do stage "PostgreSQL ${version%.*}" on_version "${version%:*}" "${version#*:}"; done
}

on_version() { # VERSION SHA256
  local folder=$DIR/other bin found
  fetch_postgres "$1" "$2"
  bin=$(postgres_folder "$1")/bin
  POSTGRES_BIN=$bin "$ROOT/run.sh" servers up --dir "$folder"
  # shellcheck disable=SC1091
  found=$(. "$folder/env" && sql "$TEST_POSTGRES_URL" "show server_version")
  [ "$found" = "${1%.0}" ] || die "PostgreSQL $found was started in place of ${1%.0}"
  # shellcheck disable=SC2016,SC2086 # the inner shell's words; words on purpose
  limited "$TEST_LIMIT" bash -c '. "$1/env" && shift && exec "$@"' - "$folder" env POSTGRES_BIN="$bin" \
    cargo test --locked -p saga-tests --test saga -- --test-threads 4 $VERSION_TESTS
  end_other_servers
}

# Stops the servers of a version and removes their data; their logs are kept with ours.
end_other_servers() {
  local folder=$DIR/other
  [ -d "$folder" ] || return 0
  "$ROOT/run.sh" servers down --dir "$folder" >/dev/null
  rm -rf "$DIR/log/other"
  cp -RL "$folder/log" "$DIR/log/other"
  "$ROOT/run.sh" servers down --wipe --dir "$folder" >/dev/null
  rm -rf "$folder"
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

# Kubernetes' own schemas, of the oldest and of the newest version that the manifests are for; and what they set is a setting,
# which no schema knows.
MANIFESTS_FOR="1.27 1.37"
check_manifests() {
  local built=$DIR/manifests.yaml version name known status=0
  fetch_python_tools
  build_manifests >"$built" || return 1
  [ -s "$built" ] || { say "not validated: there is no kustomize, no kubectl that has one, and no Go to build it"; return 0; }
  for version in $MANIFESTS_FOR; do
    limited "$TOOL_LIMIT" "$PYTHON_BIN/kubernetes-validate" --quiet --strict --kubernetes-version "$version" "$built" || status=1
  done
  known=$(BIN_DIR=$TEST_BIN_DIR setting_names)
  while read -r name; do
    grep -qx "$name" <<<"$known" || { warn "deploy/kubernetes: no service has the setting $name"; status=1; }
  done < <(sed -nE 's/^ *- name: ([A-Z_]+)$/\1/p; s/^  ([A-Z_]+): .*/\1/p' "$built" | sort -u)
  [ $status != 0 ] || say "$(grep -c '^kind:' "$built") objects, valid in Kubernetes ${MANIFESTS_FOR/ / and }"
  return $status
}

# What `kubectl apply --kustomize` would send. Debian's kubectl is too old for these manifests.
KUSTOMIZE_VERSION=v5.5.0
build_manifests() {
  if has kustomize; then
    limited "$TOOL_LIMIT" kustomize build "$ROOT/deploy/kubernetes"
  elif kubectl version --client 2>/dev/null | grep -q 'Kustomize Version: v5'; then
    limited "$TOOL_LIMIT" kubectl kustomize "$ROOT/deploy/kubernetes"
  elif find_go; then
    limited "$BUILD_LIMIT" go run "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE_VERSION" build "$ROOT/deploy/kubernetes"
  fi
}

# Whether the checks notice when a mechanism is missing.
sabotage() { # ARG...
  own_stage sabotage
  prove "$@"
}

# The sabotaged binaries come from a copy, changed by a patch. git must not take it for a part of this repository.
prove() { # ARG...
  local folder source
  folder=$(target_dir)/sabotage source=$(target_dir)/sabotage/source
  rm -rf "$source"
  mkdir -p "$source"
  tar -C "$ROOT" --exclude=./target --exclude=./.git --exclude=./.run -cf - . | tar -xf - -C "$source"
  GIT_CEILING_DIRECTORIES=$folder git -C "$source" apply "$ROOT/tests/sabotage.patch"
  stage "build sabotaged" limited "$BUILD_LIMIT" env CARGO_TARGET_DIR="$folder" \
    cargo build --locked --manifest-path "$source/Cargo.toml" -p order -p payment -p stock
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
  close_box "$1"
  end_other_servers
  stop_all >/dev/null
  if [ "$1" != 0 ] && [ -r "$PG_HOME/postgres.log" ]; then rm -f "$DIR/log/postgres.log"; cp "$PG_HOME/postgres.log" "$DIR/log/"; fi
  rm -rf "$PG_HOME" "$DIR/broker" "$DIR/pid" "$DIR/env" "$DIR/servers"
  if [ "$1" = 0 ] || [ -z "$(ls -A "$DIR/log" 2>/dev/null)" ]; then rm -rf "$DIR"; fi
  [ "$1" != 0 ] || return 0
  report_end "$1"
  [ ! -d "$DIR" ] || warn "The servers' logs are kept in $DIR/log"
}

report_end() { # STATUS
  [ "$1" != 0 ] || return 0
  warn ""
  case $1 in 129 | 130 | 143) warn "INTERRUPTED in: $STAGE" ;; *) warn "FAILED in: $STAGE" ;; esac
  [ -z "$STAGES" ] || warn "passed before:$STAGES"
}

# Private servers for tests, whatever the caller's settings say.
test_servers() {
  # shellcheck disable=SC2046 # words on purpose
  unset $(places) BIN_DIR
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
  TEST_BIN_DIR=$(target_dir)/debug TEST_LOG_DIR=$DIR/log
  export KAFKA_LIBS_4 KAFKA_LIBS_39 TEST_POSTGRES_URL TEST_BIN_DIR TEST_LOG_DIR
  export PG_BIN # for tests that start a PostgreSQL of their own
  write_env KAFKA_LIBS_4 KAFKA_LIBS_39 TEST_POSTGRES_URL TEST_BIN_DIR TEST_LOG_DIR PG_BIN
  unlock
}

# `servers`: those of `test NAME`, or others in a folder of their own. After `. FOLDER/env` cargo's tests find them.
servers() { # up|down [--wipe] [--dir FOLDER]
  local action=${1:-} wipe=0
  case $action in up | down) shift ;; *) misuse "servers: up or down" ;; esac
  use_folder "$TEST_SERVERS"
  while [ $# -gt 0 ]; do
    case $action/$1 in
      */--dir) [ $# -ge 2 ] || misuse "--dir needs a folder"; mkdir -p "$2"; use_folder "$(cd "$2" && pwd -P)"; shift 2 ;;
      down/--wipe) wipe=1; shift ;;
      *) misuse "servers $action: unknown option $1" ;;
    esac
  done
  case $action in
    up)
      need cargo
      test_servers
      ON_EXIT=''
      say "settings: $DIR/env" ;;
    down)
      stop_all
      if [ $wipe = 1 ]; then wipe_data; fi ;;
  esac
}
