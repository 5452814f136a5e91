//! Real brokers for the tests: private, on free ports, one of each line a test file, gone with the test process.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod authority;
mod ports;
pub mod proxy;
mod refusal;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kafka::{
    Admin, Bytes, Config, Consumer, FetchConfig, Interrupt, Isolation, NewTopic, OffsetSpec,
    Polled, Producer, ProducerRecord, Record, TopicPartition,
};

pub use ports::free_port;
use proxy::Proxy;

/// How long a condition may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";

/// Runs every claim against both lines, each in a module named after it.
#[macro_export]
macro_rules! on_both_lines {
    ($($claim:ident)*) => {
        mod kafka_3_9 {
            $(#[test] fn $claim() { super::$claim($crate::common::shared($crate::common::Line::Kafka39)); })*
        }
        mod kafka_4 {
            $(#[test] fn $claim() { super::$claim($crate::common::shared($crate::common::Line::Kafka4)); })*
        }
    };
}

/// The broker lines this client is proven on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Kafka39,
    Kafka4,
}

impl Line {
    /// The folder of this line's jars.
    pub fn libs(self) -> PathBuf {
        let variable = match self {
            Line::Kafka39 => "KAFKA_LIBS_39",
            Line::Kafka4 => "KAFKA_LIBS_4",
        };
        match std::env::var_os(variable) {
            Some(folder) => PathBuf::from(folder),
            None => {
                panic!("{variable} is not set: these tests need Kafka's jars, run `./run.sh test`")
            }
        }
    }

    /// A JVM that starts fast and stays small.
    fn java(self) -> Command {
        let mut java = Command::new("java");
        java.args([
            "-Xmx320m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
        ]);
        java.arg(self.libs().join("*"));
        java
    }
}

/// The one broker of a line that the claims of a test file share. Each claim uses topics and ids of its own.
pub fn shared(line: Line) -> &'static Broker {
    static KAFKA39: OnceLock<Broker> = OnceLock::new();
    static KAFKA4: OnceLock<Broker> = OnceLock::new();
    match line {
        Line::Kafka39 => KAFKA39.get_or_init(|| Broker::start(line)),
        Line::Kafka4 => KAFKA4.get_or_init(|| Broker::start(line)),
    }
}

/// A name that nobody else uses in this test process.
pub fn unique(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A node, broker and controller in one.
pub struct Broker {
    pub line: Line,
    pub proxy: Proxy,
    folder: PathBuf,
    port: u16,
    running: Option<Child>,
    _cleaner: Child,
}

impl Broker {
    /// Starts one that is alone and waits until it answers.
    pub fn start(line: Line) -> Broker {
        let mut broker = Broker::nodes(line, 1).remove(0);
        broker.resume();
        broker
    }

    /// Starts one that is alone, with settings made of the usual ones and of the folder for its files.
    pub fn start_with(line: Line, change: impl FnOnce(&Path, &str) -> String) -> Broker {
        let mut broker = Broker::nodes(line, 1).remove(0);
        let file = broker.folder.join("server.properties");
        let settings = change(&broker.folder, &fs::read_to_string(&file).unwrap());
        fs::write(file, settings).unwrap();
        broker.resume();
        broker
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a cluster of three and waits until they answer. Everything is replicated to all of them, and a write needs two.
    pub fn start_three(line: Line) -> Vec<Broker> {
        let mut brokers = Broker::nodes(line, 3);
        brokers.iter_mut().for_each(Broker::launch);
        brokers.iter().for_each(Broker::wait_until_ready);
        brokers
    }

    /// The nodes of one cluster, formatted and not running yet.
    fn nodes(line: Line, count: usize) -> Vec<Broker> {
        let controllers: Vec<u16> = (0..count).map(|_| free_port()).collect();
        (1..=count)
            .map(|number| Broker::node(line, number, &controllers))
            .collect()
    }

    fn node(line: Line, number: usize, controllers: &[u16]) -> Broker {
        let folder = std::env::temp_dir().join(format!(
            "kafka-test-{}-{}",
            std::process::id(),
            unique("broker")
        ));
        fs::create_dir_all(&folder).unwrap();
        let cleaner = on_end(&format!("rm -rf '{}'", folder.display()));
        let (port, behind_proxy) = (free_port(), free_port());
        let proxy = Proxy::start(behind_proxy);
        let settings = settings(
            &folder,
            number,
            port,
            controllers,
            behind_proxy,
            proxy.port(),
        );
        fs::write(folder.join("server.properties"), settings).unwrap();
        let broker = Broker {
            line,
            proxy,
            folder,
            port,
            running: None,
            _cleaner: cleaner,
        };
        broker.format();
        broker
    }

    fn format(&self) {
        let formatted = self
            .line
            .java()
            .args([
                "kafka.tools.StorageTool",
                "format",
                "-t",
                "MkU3OEVBNTcwNTJENDM2Qg",
                "-c",
            ])
            .arg(self.folder.join("server.properties"))
            .output()
            .unwrap();
        assert!(
            formatted.status.success(),
            "{}",
            String::from_utf8_lossy(&formatted.stderr)
        );
    }

    /// Starts it again on the same ports and data, and waits until it answers.
    pub fn resume(&mut self) {
        self.launch();
        self.wait_until_ready();
    }

    fn launch(&mut self) {
        let java = self.line.java();
        let arguments: Vec<_> = java
            .get_args()
            .map(|argument| format!("'{}'", argument.to_string_lossy()))
            .collect();
        let folder = self.folder.display();
        // The shell outlives this process by a moment only: its input ends with us, even by SIGKILL.
        let script = format!(
            "java {} kafka.Kafka '{folder}/server.properties' >>'{folder}/log' 2>&1 </dev/null & \
             broker=$!; echo $broker >'{folder}/pid'; read _; kill -9 $broker; wait $broker",
            arguments.join(" ")
        );
        self.running = Some(shell(&script));
    }

    /// Kills it with SIGKILL; what it has answered for is in its log.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.stdin.take());
            running.wait().unwrap();
        }
    }

    /// A signal to its process, by the name that `kill` takes.
    pub fn signal(&self, signal: &str) {
        let pid = fs::read_to_string(self.folder.join("pid")).unwrap();
        assert!(
            Command::new("kill")
                .args([signal, pid.trim()])
                .status()
                .unwrap()
                .success()
        );
    }

    fn wait_until_ready(&self) {
        let mut admin = self.admin();
        let what = format!("the broker in {}", self.folder.display());
        wait_until(&what, || {
            admin.describe_topics(&["none".to_owned()]).is_ok()
        });
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Settings that reach it directly.
    pub fn config(&self) -> Config {
        Config::new(vec![self.address()], "test")
    }

    /// Settings that reach it through the proxy only; the proxy's rules go by the client id.
    pub fn proxied(&self, client_id: &str) -> Config {
        let config = Config::new(vec![format!("127.0.0.1:{}", self.proxy.port())], client_id);
        // the first to ask a new broker waits until its internal topics are made
        Config {
            request_timeout: Duration::from_secs(20),
            ..config
        }
    }

    /// For answers lost in silence, which are waited for to the end of the request timeout.
    pub fn impatient(&self, client_id: &str) -> Config {
        Config {
            request_timeout: Duration::from_secs(8),
            ..self.proxied(client_id)
        }
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.config(), Interrupt::new())
    }

    /// A new topic of that many partitions.
    pub fn topic(&self, stem: &str, partitions: i32) -> Vec<TopicPartition> {
        self.topic_with(stem, partitions, &[])
    }

    pub fn topic_with(
        &self,
        stem: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Vec<TopicPartition> {
        let name = unique(stem);
        let configs = configs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        self.admin()
            .create_topics(&[NewTopic {
                name: name.clone(),
                partitions,
                replication: None,
                configs,
            }])
            .unwrap();
        let partitions = self.partitions(&name);
        // a broker tells who leads a moment before the leader itself knows: it answers this once it does
        let all: Vec<_> = partitions
            .iter()
            .map(|partition| (name.clone(), partition.partition))
            .collect();
        self.admin()
            .list_offsets(&all, OffsetSpec::Latest, Isolation::ReadUncommitted)
            .unwrap();
        partitions
    }

    /// The partitions of a topic that is there.
    pub fn partitions(&self, name: &str) -> Vec<TopicPartition> {
        // a tool has asked the controller, and this broker may hear of it later
        let mut described = Vec::new();
        wait_until("the broker to know the topic", || {
            described = self.admin().describe_topics(&[name.to_owned()]).unwrap();
            !described.is_empty()
        });
        let described = described.remove(0);
        let partition = |partition| TopicPartition {
            topic: name.into(),
            topic_id: described.id,
            partition,
        };
        (0..described.partitions).map(partition).collect()
    }

    /// A reader of all of these from their beginning.
    pub fn reader(&self, partitions: &[TopicPartition], isolation: Isolation) -> Consumer {
        let fetch = FetchConfig {
            isolation,
            max_wait: Duration::from_millis(100),
            ..FetchConfig::default()
        };
        let mut consumer = Consumer::new(self.config(), Interrupt::new(), fetch);
        let from_start: Vec<_> = partitions
            .iter()
            .map(|partition| (partition.clone(), 0))
            .collect();
        consumer.assign(&from_start);
        consumer
    }

    /// The values a read-committed reader sees, once it has seen `last` (write that one last).
    pub fn committed_values(&self, partitions: &[TopicPartition], last: &str) -> Vec<String> {
        let mut reader = self.reader(partitions, Isolation::ReadCommitted);
        let mut seen = Vec::new();
        wait_until(&format!("the record {last}"), || {
            seen.extend(records(reader.poll().unwrap()).iter().map(value_of));
            seen.iter().any(|value| value == last)
        });
        seen
    }

    /// Starts one of Kafka's own tools beside the test.
    pub fn start_tool(&self, class: &str, arguments: &[&str]) -> Running {
        self.start_program(self.line.java().arg(class).args(arguments))
    }

    /// Starts a program whose words are kept with the broker's files.
    pub fn start_program(&self, program: &mut Command) -> Running {
        let path = self.folder.join(unique("output"));
        let output = fs::File::create(&path).unwrap();
        program
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        Running {
            process: program.spawn().unwrap(),
            output: path,
        }
    }

    /// A file for one of Kafka's own tools, by its path.
    pub fn settings_file(&self, settings: &str) -> String {
        let path = self.folder.join(unique("settings"));
        fs::write(&path, settings).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Whether every copy of every partition has all that its leader has.
    pub fn all_in_sync(&self) -> bool {
        let arguments = ["--describe", "--under-replicated-partitions"];
        !self
            .tool("org.apache.kafka.tools.TopicCommand", &arguments, "")
            .contains("Isr:")
    }

    /// Runs one of Kafka's own tools and returns what it printed.
    pub fn tool(&self, class: &str, arguments: &[&str], input: &str) -> String {
        let mut tool = self.line.java();
        tool.arg(class)
            .args(["--bootstrap-server", &self.address()])
            .args(arguments);
        let input_file = self.folder.join(unique("input"));
        fs::write(&input_file, input).unwrap();
        let done = tool
            .stdin(fs::File::open(&input_file).unwrap())
            .output()
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr),
        );
        assert!(done.status.success(), "{class} failed:\n{out}\n{err}");
        format!("{out}\n{err}")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program beside the test; it goes with it.
pub struct Running {
    process: Child,
    output: PathBuf,
}

impl Running {
    /// What it has written so far, its errors too.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Asks it to end, and waits for that.
    pub fn stop(mut self) -> String {
        assert!(
            Command::new("kill")
                .arg(self.process.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        self.process.wait().unwrap();
        self.said()
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// The most memory it has had at once, in KiB, while it runs. Linux's own figure.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let figure = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        figure.trim().trim_end_matches(" kB").parse().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}

/// A new partition on the first two of three brokers. Either may lead it, with all records or without.
pub fn two_copies(broker: &Broker) -> TopicPartition {
    let name = unique("unclean");
    let settings = [
        "--config",
        "min.insync.replicas=1",
        "--config",
        "unclean.leader.election.enable=true",
    ];
    let create = ["--create", "--topic", &name, "--replica-assignment", "1:2"];
    broker.tool(
        "org.apache.kafka.tools.TopicCommand",
        &[&create[..], &settings[..]].concat(),
        "",
    );
    broker.partitions(&name).remove(0)
}

/// Waits until the reader reports that records were taken back, before it is given anything else: its position, and the end of what stands.
pub fn wait_for_truncation(reader: &mut Consumer) -> (i64, i64) {
    let mut truncation = None;
    wait_until("the truncation", || {
        for polled in reader.poll().unwrap_or_default() {
            match polled {
                Polled::Truncated { offset, end, .. } => truncation = Some((offset, end)),
                other => panic!("{other:?} before it was reported"),
            }
        }
        truncation.is_some()
    });
    truncation.unwrap()
}

/// The second of two copies is elected, which has 5 records of the first one's 10. It gets 20 others. What reads the 10 does so in
/// `meanwhile`. The first broker is left dead.
pub fn elect_uncleanly(
    brokers: &mut [Broker],
    partition: &TopicPartition,
    meanwhile: impl FnOnce(),
) {
    let config = Config::new(brokers.iter().map(Broker::address).collect(), "test");
    let config = Config {
        request_timeout: Duration::from_secs(6),
        ..config
    };
    let mut producer = Producer::idempotent(config, Interrupt::new());
    let mut send = |values: Range<i32>, of: &str| {
        let one = |number| record(&partition.topic, "k", &format!("{of} {number}"));
        producer.send(values.map(one).collect::<Vec<_>>()).unwrap();
    };
    send(0..5, "both");
    brokers[1].kill();
    send(5..10, "first");
    meanwhile();
    brokers[0].kill();
    brokers[1].resume();
    send(5..25, "second");
    // the second one has refused it first: it holds 5 records of this producer, not 10
    assert_eq!(producer.identity().unwrap().epoch, 1);
}

fn settings(
    folder: &Path,
    number: usize,
    port: u16,
    controllers: &[u16],
    behind_proxy: u16,
    proxy: u16,
) -> String {
    let (copies, needed) = (controllers.len(), controllers.len().div_ceil(2));
    let voters: Vec<_> = controllers
        .iter()
        .zip(1..)
        .map(|(port, node)| format!("{node}@127.0.0.1:{port}"))
        .collect();
    let (controller, voters) = (controllers[number - 1], voters.join(","));
    format!(
        "process.roles=broker,controller\n\
         node.id={number}\n\
         controller.quorum.voters={voters}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind_proxy},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}\n\
         inter.broker.listener.name=DIRECT\n\
         listener.security.protocol.map=DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         log.dirs={}/data\n\
         auto.create.topics.enable=false\n\
         log.retention.ms=-1\n\
         default.replication.factor={copies}\n\
         min.insync.replicas={needed}\n\
         offsets.topic.num.partitions=2\n\
         offsets.topic.replication.factor={copies}\n\
         transaction.state.log.num.partitions=2\n\
         transaction.state.log.replication.factor={copies}\n\
         transaction.state.log.min.isr={needed}\n\
         transaction.abort.timed.out.transaction.cleanup.interval.ms=200\n\
         broker.session.timeout.ms=4000\n\
         broker.heartbeat.interval.ms=500\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n",
        folder.display()
    )
}

/// A shell that does this when the test process ends, however it ends.
fn on_end(command: &str) -> Child {
    // A little later than the broker's own end, which still writes to its folder.
    shell(&format!("read _; sleep 1; {command}"))
}

fn shell(script: &str) -> Child {
    // A session of its own, so that a Ctrl-C at the terminal does not kill the shell before it has cleaned up.
    let mut shell = Command::new("setsid");
    shell
        .args(["sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until it is so, and fails with `what` if that takes too long.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Milliseconds since 1970. A record with a timestamp of long ago is removed by the broker, whenever it looks for old ones.
pub fn now() -> i64 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_millis() as i64
}

/// A record of now without headers, at the partition of its key.
pub fn record(topic: &str, key: &str, value: &str) -> ProducerRecord {
    ProducerRecord {
        topic: topic.into(),
        key: Some(Bytes::from(key.to_owned())),
        value: Some(Bytes::from(value.to_owned())),
        headers: Vec::new(),
        timestamp: None,
        partition: None,
    }
}

/// An offset of partition 0, to be committed with its text; where it lies only the topic's name says.
pub fn at(topic: &str, offset: i64, text: &str) -> [(TopicPartition, i64, String); 1] {
    let partition = TopicPartition {
        topic: topic.into(),
        topic_id: kafka::Uuid::nil(),
        partition: 0,
    };
    [(partition, offset, text.to_owned())]
}

pub fn records(polled: Vec<Polled>) -> Vec<Record> {
    let one = |polled| match polled {
        Polled::Records { records, .. } => records,
        other => panic!("records expected, not {other:?}"),
    };
    polled.into_iter().flat_map(one).collect()
}

pub fn value_of(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap()
}
