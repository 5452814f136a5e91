//! A private Kafka: a single node that can be killed, and whose clients can be made to come through a [`Proxy`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kafka::{Admin, Config, Interrupt};
use uuid::Uuid;

use crate::process::Process;
use crate::proxy::Proxy;
use crate::{env, ports, wait};

/// A running or killed broker. Dropped, it is gone with its data.
pub struct Broker {
    /// In front of it, for those who were given [`Broker::proxied`].
    pub proxy: Proxy,
    folder: PathBuf,
    port: u16,
    /// Listeners besides: name and port.
    guarded: Vec<(String, u16)>,
    process: Option<Process>,
}

impl Broker {
    /// Starts a broker of the 4.x line and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start() -> Broker {
        Broker::start_with(&[], "")
    }

    /// The same with more listeners, each with its security protocol, and with settings for them. One named ASTRAY tells
    /// its clients to go to a host that does not exist.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_with(listeners: &[(&str, &str)], more: &str) -> Broker {
        let folder = std::env::temp_dir().join(format!("saga-broker-{}", Uuid::new_v4().simple()));
        fs::create_dir_all(&folder).expect("a folder for the broker");
        let (port, behind_proxy) = (ports::free_port(), ports::free_port());
        let proxy = Proxy::to(&format!("127.0.0.1:{behind_proxy}"));
        let guarded: Vec<(String, u16)> = listeners
            .iter()
            .map(|(name, _)| (name.to_string(), ports::free_port()))
            .collect();
        let addresses: String = guarded
            .iter()
            .map(|(name, port)| format!(",{name}://127.0.0.1:{port}"))
            .collect();
        let protocols: String = listeners
            .iter()
            .map(|(name, protocol)| format!(",{name}:{protocol}"))
            .collect();
        let advertised = addresses.replace("ASTRAY://127.0.0.1", "ASTRAY://kafka-internal.invalid");
        let ours = settings(
            &folder,
            port,
            behind_proxy,
            proxy.port(),
            [&addresses, &advertised, &protocols],
        );
        let settings = ours + more;
        fs::write(folder.join("server.properties"), settings).expect("the broker's folder");
        let mut broker = Broker {
            proxy,
            folder,
            port,
            guarded,
            process: None,
        };
        broker.tool(
            "kafka.tools.StorageTool",
            &[
                "format",
                "-t",
                "MkU3OEVBNTcwNTJENDM2Qg",
                "-c",
                &broker.properties(),
            ],
        );
        broker.restart();
        broker
    }

    /// Its address, past the proxy.
    pub fn direct(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its address behind the proxy; its clients then stay behind it.
    pub fn proxied(&self) -> String {
        self.proxy.addr()
    }

    /// The address of one of the listeners that were asked for.
    ///
    /// # Panics
    /// When it was not.
    pub fn guarded(&self, listener: &str) -> String {
        let (_, port) = self
            .guarded
            .iter()
            .find(|(name, _)| name == listener)
            .expect("a listener of this name");
        format!("127.0.0.1:{port}")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it (again) on the same ports and data, and waits until it answers.
    ///
    /// # Panics
    /// When it does not, with its log.
    pub fn restart(&mut self) {
        let args = [
            &java_args()[..],
            &["kafka.Kafka".to_string(), self.properties()],
        ]
        .concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let process = self
            .process
            .insert(Process::start("kafka", Path::new("java"), &args, &[]));
        let mut admin = Admin::new(
            Config::new(vec![format!("127.0.0.1:{}", self.port)], "saga-tests"),
            Interrupt::new(),
        );
        wait::until("the private broker", || {
            assert!(
                process.ended().is_none(),
                "the private broker ended:\n{}",
                process.tail()
            );
            admin.describe_topics(&["none".to_owned()]).is_ok()
        });
    }

    /// Spoils the last byte of the batch with this number (from 0) in the first log segment of a partition.
    ///
    /// # Panics
    /// When there is no such batch.
    pub fn spoil_batch(&self, partition: &str, number: usize) {
        let segment = self
            .folder
            .join("data")
            .join(partition)
            .join("00000000000000000000.log");
        let mut bytes = fs::read(&segment).expect("the partition's segment");
        let mut end = 0;
        for _ in 0..=number {
            // base offset (8 bytes), then the length of what follows (4 bytes)
            let length = bytes[end + 8..end + 12].try_into().expect("four bytes");
            end += 12 + u32::from_be_bytes(length) as usize;
        }
        bytes[end - 1] ^= 0xff;
        fs::write(&segment, bytes).expect("the partition's segment");
    }

    /// Runs one of Kafka's own classes to its end and answers what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        tool(class, arguments)
    }

    fn properties(&self) -> String {
        self.folder.join("server.properties").display().to_string()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Runs one of Kafka's own classes to its end and answers what it printed.
///
/// # Panics
/// When it fails.
pub fn tool(class: &str, arguments: &[&str]) -> String {
    let done = Command::new("java")
        .args(java_args())
        .arg(class)
        .args(arguments)
        .output()
        .expect("java is there");
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{class} failed:\n{out}\n{err}");
    format!("{out}\n{err}")
}

/// A JVM that starts fast and stays small, with Kafka's classes.
pub fn java_args() -> Vec<String> {
    let jars = format!("{}/*", env::setting("KAFKA_LIBS_4"));
    [
        "-Xmx320m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
        &jars,
    ]
    .map(str::to_string)
    .to_vec()
}

fn settings(folder: &Path, port: u16, behind_proxy: u16, proxy: u16, more: [&str; 3]) -> String {
    let controller = ports::free_port();
    let [addresses, advertised, protocols] = more;
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind_proxy},CONTROLLER://127.0.0.1:{controller}{addresses}\n\
         advertised.listeners=DIRECT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy}{advertised}\n\
         inter.broker.listener.name=DIRECT\n\
         listener.security.protocol.map=DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\n\
         log.dirs={}/data\n\
         auto.create.topics.enable=false\n\
         broker.session.timeout.ms=6000\n\
         broker.heartbeat.interval.ms=500\n\
         offsets.topic.num.partitions=2\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.num.partitions=2\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         # open transactions are ended by whoever comes next, not by a time limit that happens to pass\n\
         transaction.abort.timed.out.transaction.cleanup.interval.ms=600000\n\
         group.initial.rebalance.delay.ms=0\n",
        folder.display()
    )
}
