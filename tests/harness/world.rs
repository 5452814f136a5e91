//! An isolated installation on the shared test servers: three databases and a topic prefix of its own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka::{Admin, Interrupt};
use postgres::{Client, NoTls};
use uuid::Uuid;

use crate::api::Api;
use crate::process::{Process, Signal};
use crate::standby::Replicated;
use crate::topics::Message;
use crate::{env, ports, wait};

/// The eight topics.
pub const TOPICS: [&str; 8] = [
    "payment",
    "payment.success",
    "payment.dlt",
    "payment.compensation",
    "stock",
    "stock.success",
    "stock.dlt",
    "stock.compensation",
];

/// What is promised for a stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// One of the three services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Takes orders.
    Order,
    /// Takes money.
    Payment,
    /// Takes stock.
    Stock,
}

impl Service {
    /// All three.
    pub const ALL: [Service; 3] = [Service::Order, Service::Payment, Service::Stock];

    /// Its name in settings, tables and binaries.
    pub fn name(self) -> &'static str {
        match self {
            Service::Order => "order",
            Service::Payment => "payment",
            Service::Stock => "stock",
        }
    }

    fn variable(self, what: &str) -> String {
        format!("{}_{what}", self.name().to_uppercase())
    }
}

/// The installation. Dropped, its processes are killed, its databases and topics removed.
pub struct World {
    id: String,
    prefix: String,
    settings: Vec<(String, String)>,
    /// Where the services' binaries are; none: where the tests were built.
    binaries: Option<PathBuf>,
    processes: Mutex<Vec<Arc<Process>>>,
    started: AtomicUsize,
    /// Records that no service has written.
    by_hand: Mutex<HashSet<Message>>,
    spoils_messages: AtomicBool,
}

impl World {
    /// A fresh installation with default settings; `name` shows in the names of its databases and topics.
    ///
    /// # Panics
    /// When the test servers are not there.
    pub fn new(name: &str) -> World {
        World::with(name, &[])
    }

    /// The same with settings for all its services. `KAFKA_BROKERS` among them leads it, and the test's own readers, to another
    /// Kafka.
    ///
    /// # Panics
    /// When the test servers are not there.
    pub fn with(name: &str, settings: &[(&str, &str)]) -> World {
        let random = Uuid::new_v4().simple().to_string();
        let id = format!("{name}_{}", &random[..8]);
        let mut all = vec![
            ("KAFKA_BROKERS".to_string(), String::new()),
            ("TOPIC_PREFIX".to_string(), format!("{id}.")),
            ("TOPIC_REPLICATION".to_string(), "1".to_string()),
            ("RUST_BACKTRACE".to_string(), "1".to_string()),
        ];
        all.extend(
            Service::ALL.map(|service| (service.variable("DATABASE_URL"), url(&id, service))),
        );
        all.extend(
            settings
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string())),
        );
        if value(&all, "KAFKA_BROKERS").is_empty() {
            all.push(("KAFKA_BROKERS".to_string(), env::brokers()));
        }
        let prefix = value(&all, "TOPIC_PREFIX").to_string();
        let world = World {
            id,
            prefix,
            settings: all,
            binaries: None,
            processes: Mutex::default(),
            started: AtomicUsize::new(0),
            by_hand: Mutex::default(),
            spoils_messages: AtomicBool::new(false),
        };
        let mut admin = connect(&env::database_url("postgres"));
        for service in Service::ALL {
            let created =
                admin.batch_execute(&format!("create database {}", world.database(service)));
            created.unwrap_or_else(|error| panic!("create database: {error}"));
        }
        world
    }

    /// The same with the services' binaries of another folder.
    pub fn run_by(mut self, binaries: &Path) -> World {
        self.binaries = Some(binaries.to_path_buf());
        self
    }

    /// The same with a service's database on servers whose tail can be lost.
    ///
    /// # Panics
    /// When it can't be created there.
    pub fn on(mut self, service: Service, servers: &Replicated) -> World {
        let name = self.database(service);
        servers.create_database(&name);
        self.settings
            .push((service.variable("DATABASE_URL"), servers.url(&name)));
        self
    }

    fn binary(&self, service: Service) -> PathBuf {
        self.binaries.as_ref().map_or_else(
            || env::binary(service.name()),
            |folder| folder.join(service.name()),
        )
    }

    /// Put before the names of its topics, groups and transactional ids.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its Kafka, as the test reaches it.
    pub fn brokers(&self) -> &str {
        value(&self.settings, "KAFKA_BROKERS")
    }

    /// The same, an address each, for a client of the `kafka` package.
    pub fn bootstrap(&self) -> Vec<String> {
        self.brokers().split(',').map(str::to_string).collect()
    }

    /// The name of a service's database.
    pub fn database(&self, service: Service) -> String {
        database(&self.id, service)
    }

    /// Keeps a copy of a service's database, as a backup does; nobody may be connected.
    ///
    /// # Panics
    /// When somebody is.
    pub fn back_up(&self, service: Service) {
        copy_database(&self.database(service), &self.backup(service));
    }

    /// Puts the copy in the database's place, and takes over as an operator does: all that was stored since is lost.
    ///
    /// # Panics
    /// When there is none, or it can't be taken over.
    pub fn restore(&self, service: Service) {
        copy_database(&self.backup(service), &self.database(service));
        self.take_over(service);
    }

    fn backup(&self, service: Service) -> String {
        format!("{}_older", self.database(service))
    }

    /// The URL of a service's database.
    pub fn database_url(&self, service: Service) -> String {
        value(&self.settings, &service.variable("DATABASE_URL")).to_string()
    }

    /// The URL of a service's database as it is reached at another `host:port`, that of a proxy.
    pub fn database_url_at(&self, service: Service, address: &str) -> String {
        let url = self.database_url(service);
        url.replacen(&env::address_of(&url), address, 1)
    }

    /// A connection of the test's own to a service's database.
    ///
    /// # Panics
    /// When the test PostgreSQL is not there.
    pub fn db(&self, service: Service) -> Client {
        connect(&self.database_url(service))
    }

    /// Starts an instance and waits until it answers.
    ///
    /// # Panics
    /// When it ends or is silent instead, with its log.
    pub fn start(&self, service: Service) -> Instance {
        self.start_with(service, &[])
    }

    /// The same with settings that only this instance has.
    ///
    /// # Panics
    /// As [`World::start`].
    pub fn start_with(&self, service: Service, settings: &[(&str, &str)]) -> Instance {
        let instance = self.launch(service, settings);
        instance.wait_until_ready();
        instance
    }

    /// Stops an instance as an operator does, and starts it again on its port.
    ///
    /// # Panics
    /// When it does not stop in order, and as [`World::start`].
    pub fn restart(&self, instance: &mut Instance) {
        assert_eq!(instance.stop().code(), Some(0), "{}", instance.log());
        let variable = format!("{}_PORT", instance.service().name().to_uppercase());
        *instance = self.start_with(
            instance.service(),
            &[(&variable, &instance.port().to_string())],
        );
    }

    /// One instance of each service: order, payment, stock.
    ///
    /// # Panics
    /// As [`World::start`].
    pub fn start_all(&self) -> [Instance; 3] {
        let instances = Service::ALL.map(|service| self.launch(service, &[]));
        instances.iter().for_each(Instance::wait_until_ready);
        instances
    }

    /// Starts an instance that may never answer.
    ///
    /// # Panics
    /// When the operating system can't start it.
    pub fn launch(&self, service: Service, settings: &[(&str, &str)]) -> Instance {
        self.launch_by(&self.binary(service), &[], service, settings)
    }

    /// Starts an instance with this limit of descriptors, soft and hard, and waits until it answers.
    ///
    /// # Panics
    /// As [`World::start`].
    pub fn start_with_descriptors(
        &self,
        limit: (usize, usize),
        service: Service,
        settings: &[(&str, &str)],
    ) -> Instance {
        let binary = self.binary(service);
        let args = [
            format!("--nofile={}:{}", limit.0, limit.1),
            "--".into(),
            binary.display().to_string(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let instance = self.launch_by(Path::new("prlimit"), &args, service, settings);
        instance.wait_until_ready();
        instance
    }

    /// Starts an instance by the binary of another folder, another version of the service, and waits until it answers.
    ///
    /// # Panics
    /// As [`World::start`].
    pub fn start_of(
        &self,
        binaries: &Path,
        service: Service,
        settings: &[(&str, &str)],
    ) -> Instance {
        let instance = self.launch_by(&binaries.join(service.name()), &[], service, settings);
        instance.wait_until_ready();
        instance
    }

    /// Runs a service's binary with these arguments to its end: its exit code, and all that it wrote.
    ///
    /// # Panics
    /// When it does not end by itself.
    pub fn ask(&self, service: Service, args: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
        let asked = self.launch_by(&self.binary(service), args, service, settings);
        let status = asked.process().exit();
        (
            status
                .code()
                .unwrap_or_else(|| panic!("ended by a signal: {}", asked.log())),
            asked.log(),
        )
    }

    /// Runs `--take-over`, as an operator does who goes on with a database that was not the last one to write; answers what it
    /// said.
    ///
    /// # Panics
    /// When it refuses.
    pub fn take_over(&self, service: Service) -> String {
        let (code, said) = self.ask(service, &["--take-over"], &[]);
        assert_eq!(code, 0, "{said}");
        said
    }

    fn launch_by(
        &self,
        program: &Path,
        args: &[&str],
        service: Service,
        settings: &[(&str, &str)],
    ) -> Instance {
        let port = ports::free_port();
        let mut all = self.settings.clone();
        all.push((service.variable("PORT"), port.to_string()));
        all.extend(
            settings
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string())),
        );
        let port = value(&all, &service.variable("PORT"))
            .parse()
            .unwrap_or(port);
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}#{number} of {}", service.name(), self.id);
        let process = Arc::new(Process::start(&name, program, args, &all));
        self.processes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(process.clone());
        Instance {
            service,
            port,
            api: Api::new(port),
            process,
        }
    }

    /// The test spoils what services write, or writes to their outboxes, what `asyncapi.yaml` does not have: nothing is held
    /// against that document.
    pub fn spoils_messages(&self) {
        self.spoils_messages.store(true, Ordering::Relaxed);
    }

    /// Whether a record was written by a service, as it is.
    pub(crate) fn is_a_service_s(&self, message: &Message) -> bool {
        !self.spoils_messages.load(Ordering::Relaxed) && !self.by_hand().contains(message)
    }

    pub(crate) fn by_hand(&self) -> MutexGuard<'_, HashSet<Message>> {
        self.by_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self) {
        self.processes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .iter()
            .for_each(|process| process.kill());
        let topics: Vec<String> = TOPICS
            .iter()
            .map(|topic| format!("{}{topic}", self.prefix))
            .collect();
        let mut kafka = self.kafka();
        kafka.api_timeout = Duration::from_secs(5);
        let _ = Admin::new(kafka, Interrupt::new()).delete_topics(&topics);
        let Ok(mut admin) = Client::connect(&env::database_url("postgres"), NoTls) else {
            return;
        };
        for service in Service::ALL {
            for database in [self.database(service), self.backup(service)] {
                let _ = admin
                    .batch_execute(&format!("drop database if exists {database} with (force)"));
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.spoils_messages.load(Ordering::Relaxed) {
            self.hold_all_records();
        }
        self.remove();
    }
}

/// A service process of an installation. The installation kills it at its end, and so does its last handle.
pub struct Instance {
    service: Service,
    port: u16,
    api: Api,
    process: Arc<Process>,
}

impl Instance {
    /// Which service it is.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its HTTP interface.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sends it a signal, as [`Process::signal`].
    ///
    /// # Panics
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGKILL, and its end waited for.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// SIGTERM; its exit within the promised ten seconds.
    ///
    /// # Panics
    /// When it takes longer.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.process.exit_within(STOP_LIMIT)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until a line of its log contains `text`.
    ///
    /// # Panics
    /// When none does in time.
    pub fn wait_for_log(&self, text: &str) {
        wait::until(
            &format!("{:?} in the log of {}", text, self.service.name()),
            || self.log().contains(text),
        );
    }

    /// Waits until it answers HTTP.
    ///
    /// # Panics
    /// When it ends or is silent instead, with its log.
    pub fn wait_until_ready(&self) {
        wait::until(
            &format!("{} to answer on port {}", self.service.name(), self.port),
            || {
                if let Some(status) = self.process.ended() {
                    panic!(
                        "{} ended with {status}:\n{}",
                        self.service.name(),
                        self.process.tail()
                    );
                }
                self.api.call("GET", "/dead-letters", &[], None).is_ok()
            },
        );
    }
}

/// Replaces a database by a copy of another one.
fn copy_database(from: &str, to: &str) {
    let mut admin = connect(&env::database_url("postgres"));
    admin
        .batch_execute(&format!("drop database if exists {to} with (force)"))
        .expect("dropped");
    admin
        .batch_execute(&format!("create database {to} template {from}"))
        .expect("copied");
}

fn database(id: &str, service: Service) -> String {
    format!("test_{id}_{}", service.name())
}

fn url(id: &str, service: Service) -> String {
    env::database_url(&database(id, service))
}

/// The last setting of a name counts.
fn value<'a>(settings: &'a [(String, String)], name: &str) -> &'a str {
    settings
        .iter()
        .rev()
        .find(|(setting, _)| setting == name)
        .map_or("", |(_, value)| value)
}

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls)
        .unwrap_or_else(|error| panic!("the test PostgreSQL does not answer: {error:?}"))
}
