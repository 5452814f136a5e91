# shellcheck shell=bash
# The images, compose.yaml's services and the systemd unit, for real, in podman's containers.
#
# No registry is asked: the base images are made here of Debian's packages, under the names that the Dockerfile has for
# them. Cargo and its downloads are this machine's, mounted read-only, and the build has no network. What cargo builds on
# the way stays in its target folder for the next time; it is no part of the images, and neither is anything else of that.
#
# compose.yaml is played by podman-compose without its postgres and kafka, whose images only a registry has: the services
# meet the servers of `proof` in the machine's own network, so published ports and names are not played.

# What the services' binaries need of the base image, and what its name promises.
RUNTIME_PACKAGES="base-files ca-certificates libc6 libgcc-s1"
# What the official build image has, and systemd, for the unit.
BUILD_PACKAGES=ca-certificates,dbus,gcc,libc6-dev,systemd,systemd-sysv

# compose.yaml's stop_grace_period and the unit's TimeoutStopSec, seconds.
STOP_LIMIT=15

# The programs that it needs: none where it is left out.
container_tools() { ! containers_possible || say podman python; }
containers_possible() { is_root && has apt-get && unshare --mount true 2>/dev/null; }

# BOX: the folder of all that podman keeps. A user's own images, containers and networks are elsewhere.
BOX=
containers() {
  local -x ADMIN_TOKEN POSTGRES_PASSWORD=$POSTGRES_PASSWORD TOPIC_PREFIX=containers. BIND=127.0.0.1 ORDER_PORT='' STOCK_PORT='' PAYMENT_PORT=''
  local -x ORDER_DATABASE_URL STOCK_DATABASE_URL PAYMENT_DATABASE_URL
  local build_image runtime_image sold=0
  containers_possible || { left_out "They need root with the right to mount, and Debian's packages."; return 0; }
  build_image=$(base_image build) runtime_image=$(base_image runtime)
  ADMIN_TOKEN=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
  until [ "$(printf '%s\n' "$ORDER_PORT" "$STOCK_PORT" "$PAYMENT_PORT" | sort -u | wc -l)" = 3 ]; do
    ORDER_PORT=$(free_port) STOCK_PORT=$(free_port) PAYMENT_PORT=$(free_port)
  done
  ORDER_DATABASE_URL=$(postgres_url saga containers_order) STOCK_DATABASE_URL=$(postgres_url saga containers_stock)
  PAYMENT_DATABASE_URL=$(postgres_url saga containers_payment)
  open_box
  stage "base images" make_base_images
  limited "$TOOL_LIMIT" podman run --rm "$build_image" true || { left_out "Podman can't run one here, as it says above."; close_box 0; return 0; }
  stage "images" build_images
  stage "compose" play_compose
  stage "unit started" play_unit
  close_box 0
}
left_out() { say ""; say "Left out: images, compose.yaml and unit in containers. $1"; }

open_box() {
  BOX=$(target_dir)/containers
  export CONTAINERS_CONF=$BOX/containers.conf CONTAINERS_STORAGE_CONF=$BOX/storage.conf
  # podman would have systemd's timers ask for health; here this script does
  export DISABLE_HC_SYSTEMD=true
  mkdir -p "$BOX/cargo"
  # The limits are explicit, because podman's own defaults are more than a machine may grant. Those of files are the unit's.
  cat >"$CONTAINERS_CONF" <<CONF
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=2000:2000"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$BOX/tmp"
[network]
network_config_dir = "$BOX/networks"
CONF
  cat >"$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "overlay"
graphroot = "$BOX/storage"
runroot = "$BOX/run"
[storage.options.overlay]
skip_mount_home = "true"
CONF
  empty_box # of a run that was killed
}

# Containers, images and secrets go, cargo's part stays. After a failure the logs are kept beside the servers'.
close_box() { # STATUS
  local name
  [ -n "$BOX" ] || return 0
  if [ "$1" != 0 ]; then
    for name in $(podman ps --all --format '{{.Names}}' 2>/dev/null); do
      podman logs "$name" >"$DIR/log/container-$name.log" 2>&1
      case $name in unit) podman exec unit journalctl --no-pager --unit='saga@*' >>"$DIR/log/container-unit.log" 2>&1 ;; esac
    done
  fi
  empty_box
  rm -f "$CONTAINERS_CONF" "$CONTAINERS_STORAGE_CONF"
  unset CONTAINERS_CONF CONTAINERS_STORAGE_CONF DISABLE_HC_SYSTEMD
  BOX=
}
empty_box() {
  podman rm --all --force --time "$STOP_LIMIT" >/dev/null || true
  rm -rf --one-file-system "${BOX:?}"/{storage,run,tmp,networks,etc,bin,override.yaml,build.tar,runtime.tar}
}

base_image() { sed -n "s/^FROM \(.*\) AS $1\$/\1/p" "$ROOT/Dockerfile"; } # STAGE

# Of the Debian that the build image is named after. The packages of the runtime image are unpacked and not installed: it has
# no shell for their scripts, and the one that counts makes a file of the authorities.
make_base_images() {
  local -x RUNTIME_TAR=$BOX/runtime.tar RUNTIME_PACKAGES=$RUNTIME_PACKAGES
  # shellcheck disable=SC2016 # words of the shells in there
  limited "$BUILD_LIMIT" mmdebstrap --variant=minbase --include="$BUILD_PACKAGES" --customize-hook='
    set -e
    mkdir -p "$1/runtime/root/etc/ssl/certs"
    chroot "$1" sh -c "cd /runtime && apt-get download $RUNTIME_PACKAGES"
    cd "$1/runtime"
    for package in *.deb; do dpkg-deb --extract "$package" root; done
    cat root/usr/share/ca-certificates/mozilla/*.crt >root/etc/ssl/certs/ca-certificates.crt
    rm -r root/usr/share/doc
    tar -C root -cf "$RUNTIME_TAR" .
    rm -r "$1/runtime"' "${build_image##*-}" "$BOX/build.tar"
  # a name without a host is Docker Hub's, for podman as for Docker
  limited "$BUILD_LIMIT" podman import --quiet \
    --change "ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    --change "ENV CARGO_HOME=/usr/local/cargo" --change "ENV CARGO_NET_OFFLINE=true" \
    --change "ENV CARGO_BUILD_BUILD_DIR=/var/cache/cargo" "$BOX/build.tar" "docker.io/library/$build_image"
  limited "$BUILD_LIMIT" podman import --quiet --change "USER 65532:65532" "$BOX/runtime.tar" "$runtime_image"
  say "$build_image: Debian's packages ($BUILD_PACKAGES) with this machine's $(rustc --version)"
  say "$runtime_image: Debian's packages ($RUNTIME_PACKAGES), unpacked; user 65532"
}

composed() { # ARG...
  limited "$BUILD_LIMIT" "$PYTHON_BIN/podman-compose" --in-pod false --parallel 1 --file "$ROOT/compose.yaml" --file "$BOX/override.yaml" "$@"
}

build_images() {
  local sysroot
  fetch_python_tools
  sysroot=$(rustc --print sysroot)
  say "services: {}" >"$BOX/override.yaml"
  # shellcheck disable=SC2086 # words on purpose
  composed --podman-build-args "--pull=never --network=none --volume $sysroot:/usr/local/rust:ro \
    --volume ${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry:ro --volume $BOX/cargo:/var/cache/cargo" build $SERVICES
  podman images --format '{{.Repository}}: {{.Size}}' | grep saga_
}

settings_of() { # SERVICE: its settings here, as NAME=value
  local url port
  url=$(upper "$1")_DATABASE_URL port=$(upper "$1")_PORT
  printf '%s\n' "KAFKA_BROKERS=$KAFKA_BROKERS" "TOPIC_PREFIX=$TOPIC_PREFIX" "ADMIN_TOKEN=$ADMIN_TOKEN" "$url=${!url}" "$port=${!port}"
}

play_compose() {
  local service before after
  for service in $SERVICES; do ensure_database "$(upper "$service")_DATABASE_URL"; done
  (
    umask 077
    say "services:"
    for service in $SERVICES; do
      printf '  %s:\n    network_mode: host\n    environment:\n' "$service"
      settings_of "$service" | sed 's/=/: "/; s/$/"/; s/^/      /'
    done
  ) >"$BOX/override.yaml"
  # shellcheck disable=SC2086 # words on purpose
  composed up --detach --no-deps --no-build $SERVICES
  # shellcheck disable=SC2086
  within "$SERVICE_LIMIT" all is_ready $SERVICES || die "the containers are not ready"
  put_in payment accounts/alice '{"balance": 100000}'
  put_in stock items/book '{"quantity": 1000}'
  for service in $SERVICES; do
    limited "$TOOL_LIMIT" podman healthcheck run "saga_${service}_1" || die "$service is ready, and its health check fails"
    before=$(process_of "$service")
    is_confined <"/proc/$before/status" || die "$service has rights that it should not have" "$(cat "/proc/$before/status")"
    grep -q ' / [a-z]* ro,' "/proc/$before/mounts" || die "$service can write to its root"
  done
  sell
  say "killing payment"
  before=$(process_of payment)
  kill -KILL "$before"
  sell
  after=$(process_of payment)
  [ "$before" != "$after" ] || die "payment was not replaced"
  limited "$TOOL_LIMIT" podman healthcheck run saga_payment_1 || die "the health check of the new payment fails"
  # shellcheck disable=SC2086
  stops_in_time composed stop $SERVICES
  for service in $SERVICES; do
    [ "$(podman inspect --format '{{.State.ExitCode}}' "saga_${service}_1")" = 0 ] || die "$service did not stop in order"
  done
}
process_of() { podman inspect --format '{{.State.Pid}}' "saga_$1_1"; } # SERVICE

# The status of a process: no capability, none to be had by another program, a filter of system calls, and not root.
is_confined() {
  [ "$(grep -cE '^(CapEff|CapBnd):\s+0+$|^NoNewPrivs:\s+1$|^Seccomp:\s+2$|^Uid:\s+[1-9]')" = 5 ]
}

# One more order: COMPLETED, also when a service has just been killed, and paid and taken once.
sell() {
  local id
  id=$(ask -H 'content-type: application/json' -d '{"userName": "alice", "itemName": "book", "price": 1200, "quantity": 2}' \
    "$(url_of order)/orders" | sed -n 's/.*"orderId":"\([^"]*\)".*/\1/p')
  [ -n "$id" ] || die "the order was not accepted"
  within 300 says '"orderStatus":"COMPLETED"' "$(url_of order)/orders/$id?wait=10s" || die "order $id is not COMPLETED"
  sold=$((sold + 1))
  within 300 says "\"balance\":$((100000 - 1200 * sold))[,}]" "$(url_of payment)/accounts/alice" || die "alice's balance is wrong"
  within 300 says "\"quantity\":$((1000 - 2 * sold))[,}]" "$(url_of stock)/items/book" || die "the stock of books is wrong"
  say "order $id is COMPLETED"
}
ask() { curl --noproxy '*' -sf --connect-timeout 2 --max-time 20 "$@"; }
says() { ask "$2" | grep -q -e "$1"; } # WORDS URL

stops_in_time() { # COMMAND...
  local begin=$SECONDS
  "$@"
  [ $((SECONDS - begin)) -lt "$STOP_LIMIT" ] || die "the stop took $((SECONDS - begin)) s"
  say "stopped within $((SECONDS - begin + 1)) s"
}

# The unit as it is, with the images' binaries, under a systemd of its own.
play_unit() {
  local service units="saga@order saga@payment saga@stock"
  mkdir -p "$BOX/bin" "$BOX/etc"
  for service in $SERVICES; do
    limited "$TOOL_LIMIT" podman cp "saga_${service}_1:/service" "$BOX/bin/$service"
    (umask 077; settings_of "$service" >"$BOX/etc/$service.env")
  done
  : >"$BOX/etc/saga.env"
  # What systemd needs to confine the units; it is not privileged, so it can't change the machine's own settings.
  limited "$TOOL_LIMIT" podman run --quiet --detach --name unit --systemd=always --cap-add SYS_ADMIN,SYS_PTRACE --volume "$BOX/bin:/usr/local/lib/saga:ro" \
    --volume "$ROOT/deploy/systemd/saga@.service:/etc/systemd/system/saga@.service:ro" --volume "$BOX/etc:/etc/saga:ro" \
    "$build_image" /sbin/init
  within "$TOOL_LIMIT" in_unit systemctl is-system-running --quiet || die "systemd does not run" "$(in_unit systemctl --failed)"
  # shellcheck disable=SC2086 # words on purpose
  in_unit systemctl start $units
  # shellcheck disable=SC2086
  within "$SERVICE_LIMIT" all is_ready $SERVICES || die "the units are not ready"
  for service in $SERVICES; do
    # shellcheck disable=SC2016 # the inner shell's words
    in_unit sh -c 'cat "/proc/$(systemctl show --property=MainPID --value "$1")/status"' - "saga@$service" | is_confined ||
      die "saga@$service has rights that it should not have"
  done
  sell
  say "killing saga@payment"
  in_unit systemctl kill --signal=KILL saga@payment
  sell
  [ "$(in_unit systemctl show --property=NRestarts --value saga@payment)" = 1 ] || die "saga@payment was not started again"
  # shellcheck disable=SC2086
  stops_in_time in_unit systemctl stop $units
  for service in $SERVICES; do
    [ "$(in_unit systemctl show --property=Result --value "saga@$service")" = success ] || die "saga@$service did not stop in order"
  done
  say "CONSUMERS=many" >>"$BOX/etc/order.env"
  in_unit systemctl start saga@order || true
  within 300 in_unit systemctl is-failed --quiet saga@order || die "saga@order is started again and again with a bad setting"
}
in_unit() { limited "$TOOL_LIMIT" podman exec unit "$@"; }
