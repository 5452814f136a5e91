# shellcheck shell=bash
# The private Kafka: downloaded from Maven Central, one broker or three.

# Kafka is pinned here and nowhere else. 3.9 serves the Kafka client's own tests only.
KAFKA_VERSION=4.3.1
KAFKA_OLD_VERSION=3.9.1
LOG4J_VERSION=2.25.4
MAVEN_COPY=org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies

DOWNLOAD_LIMIT=900 # seconds
TOOL_LIMIT=60

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
