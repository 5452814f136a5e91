//! The installation: several instances of each service, each with proxies of its own before database and brokers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use harness::private::PrivateServers;
use harness::{Instance, Proxy, Replicated, Service, Signal, World, env};
use postgres::{Client, NoTls};

use crate::evidence::{Lost, Moment};
use crate::options::Options;

/// An instance under its name and port, through all its lives.
pub struct Member {
    /// Which service.
    pub service: Service,
    /// From 1.
    pub number: usize,
    /// The same in every life.
    pub port: u16,
    /// Between it and its database, with an address for each server that may hold it.
    pub database: Proxy,
    /// Between it and the brokers.
    pub kafka: Proxy,
    lives: Mutex<Vec<Instance>>,
}

impl Member {
    /// As `order-1`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.service.name(), self.number)
    }

    fn lives(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.lives
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A signal to its present life.
    pub fn signal(&self, signal: Signal) {
        self.lives().last().expect("it was started").signal(signal);
    }

    fn has_ended(&self) -> bool {
        self.lives()
            .last()
            .expect("it was started")
            .process()
            .ended()
            .is_some()
    }

    fn answers(&self) -> bool {
        self.lives()
            .last()
            .expect("it was started")
            .api()
            .call("GET", "/dead-letters", &[], None)
            .is_ok()
    }
}

/// All that runs.
pub struct Stage {
    /// Databases, topics, processes.
    pub world: World,
    /// PostgreSQL and Kafka, nobody else's.
    pub servers: PrivateServers,
    /// All instances of all services.
    pub members: Vec<Member>,
    /// The service whose database may lose its tail, and where that is.
    tail: Option<(Service, Replicated)>,
    /// Where all databases are, if they may fail over.
    pair: Option<Pair>,
    lost: Mutex<Vec<Lost>>,
    log_folder: PathBuf,
}

/// A primary and its synchronous standby, both of them hosts in every service's URL.
struct Pair {
    servers: Replicated,
    /// Which host the primary is, 0 or 1.
    primary: AtomicUsize,
}

impl Stage {
    /// Starts everything on the private servers that `run.sh` started in `folder`, every topic on all brokers.
    ///
    /// # Panics
    /// When something does not start.
    pub fn start(folder: &Path, options: &Options) -> Stage {
        let servers = PrivateServers::of(folder);
        let (instances, brokers) = (options.instances, options.brokers.to_string());
        // so short that some orders meet their deadline while something is frozen or away
        let short = [("ORDER_DEADLINE", "8s"), ("COMPENSATION_RETRY", "4s")];
        let mut world = World::with(
            "chaos",
            &[&short[..], &[("TOPIC_REPLICATION", brokers.as_str())]].concat(),
        );
        let tail = options
            .lost_tail
            .map(|service| (service, Replicated::start()));
        if let Some((service, replicated)) = &tail {
            world = world.on(*service, replicated);
        }
        let pair = options.failover.then(|| Pair {
            servers: Replicated::start_synchronous(),
            primary: AtomicUsize::new(0),
        });
        if let Some(pair) = &pair {
            for service in Service::ALL {
                world = world.on(service, &pair.servers);
            }
        }
        let hosts = |service| match (&pair, &tail) {
            (Some(pair), _) => vec![pair.servers.primary(), pair.servers.standby()],
            (None, Some((its, replicated))) if *its == service => vec![replicated.primary()],
            _ => vec![env::postgres_address()],
        };
        let members = Service::ALL
            .iter()
            .flat_map(|service| (1..=instances).map(|number| (*service, number)));
        let start = |(service, number)| member(&world, service, number, &hosts(service));
        let members: Vec<Member> = members.map(start).collect();
        members
            .iter()
            .for_each(|member| member.lives()[0].wait_until_ready());
        Stage {
            world,
            servers,
            members,
            tail,
            pair,
            lost: Mutex::default(),
            log_folder: folder.join("log"),
        }
    }

    /// From now on the standby of the database that may lose its tail receives nothing; the moment.
    ///
    /// # Panics
    /// When no database may, or its servers fail.
    pub fn lag(&self) -> Moment {
        let (service, replicated) = self.tail.as_ref().expect("--lost-tail");
        let since = self.moment(*service);
        replicated.lag();
        since
    }

    /// The database is lost, its standby takes over and gets a standby of its own. All instances' proxies lead there.
    ///
    /// # Panics
    /// As [`Stage::lag`].
    pub fn lose_tail(&self, since: Moment) {
        let (service, replicated) = self.tail.as_ref().expect("--lost-tail");
        replicated.lose_tail();
        let lost = Lost {
            service: service.name(),
            since,
            until: self.moment(*service),
        };
        self.lost
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(lost);
        self.members_of(*service)
            .for_each(|member| member.database.lead_to(&replicated.primary()));
        replicated.renew();
    }

    /// The primary of all databases is gone. Its connections are cut first, so that nobody hears what it does while it dies: a
    /// backend that outlives the postmaster for a moment shows commits that were never sent. A server without power shows none.
    ///
    /// # Panics
    /// Without `--failover`.
    pub fn kill_primary(&self) {
        let pair = self.pair.as_ref().expect("--failover");
        self.members.iter().for_each(|member| member.database.cut());
        pair.servers.kill_primary();
        self.members
            .iter()
            .for_each(|member| member.database.resume());
    }

    /// The standby takes over. The old primary comes back under its own address, as the new one's standby; until then no commit
    /// is answered.
    ///
    /// # Panics
    /// Without `--failover`, or when the servers fail.
    pub fn fail_over(&self) {
        let pair = self.pair.as_ref().expect("--failover");
        drop(pair.servers.fail_over());
        pair.servers.renew();
        let old = pair.primary.fetch_xor(1, Ordering::SeqCst);
        let standby = pair.servers.standby();
        self.members
            .iter()
            .for_each(|member| member.database.lead_host_to(old, &standby));
    }

    /// How often the standby has taken over; none without `--failover`.
    ///
    /// # Panics
    /// When the primary does not answer.
    pub fn failovers(&self) -> Option<usize> {
        let timeline = self.pair.as_ref()?.servers.timeline();
        // a cluster begins on its first one
        Some(usize::try_from(timeline - 1).expect("a timeline"))
    }

    /// The log of each life of each instance, under the instance's name.
    pub fn logs(&self) -> Vec<(String, String)> {
        let mut logs = vec![];
        for member in &self.members {
            for life in member.lives().iter() {
                logs.push((member.name(), life.log()));
            }
        }
        logs
    }

    /// What was lost so far.
    pub fn lost(&self) -> Vec<Lost> {
        self.lost
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    fn moment(&self, service: Service) -> Moment {
        let mut db = self.world.db(service);
        Moment::now(&mut db).expect("a database that answers")
    }

    /// The instances of one service.
    pub fn members_of(&self, service: Service) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.service == service)
    }

    /// Starts a member's next life, on its port.
    pub fn restart(&self, member: &Member) {
        let next = launch(
            &self.world,
            member.service,
            [&member.database, &member.kafka],
            Some(member.port),
        );
        member.lives().push(next);
    }

    /// Starts those again that ended without being killed; answers their names.
    pub fn revive(&self) -> Vec<String> {
        let ended: Vec<&Member> = self
            .members
            .iter()
            .filter(|member| member.has_ended())
            .collect();
        ended.iter().for_each(|member| self.restart(member));
        ended.iter().map(|member| member.name()).collect()
    }

    /// Waits until every instance answers; whether they all do.
    pub fn answers_within(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            self.revive();
            if self.members.iter().all(Member::answers) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        false
    }

    /// A connection of our own to a service's database, past all proxies.
    ///
    /// # Errors
    /// When PostgreSQL is away.
    pub fn db(&self, service: Service) -> Result<Client, postgres::Error> {
        Client::connect(&self.world.database_url(service), NoTls)
    }

    /// The member whose relay holds the leader's lock of its database; none while nobody leads.
    pub fn leader(&self, service: Service) -> Option<&Member> {
        let sql = "select a.client_port from pg_locks l join pg_stat_activity a using (pid)
                    where l.locktype = 'advisory' and l.classid = 7301 and l.objid = 2 and l.granted
                      and a.datname = current_database()";
        let row = self.db(service).ok()?.query_opt(sql, &[]).ok()??;
        let port = u16::try_from(row.get::<_, i32>(0)).ok()?;
        self.members_of(service)
            .find(|member| member.database.carries(port))
    }

    /// Writes the logs of all lives to files; answers their folder.
    pub fn keep_logs(&self) -> &Path {
        for member in &self.members {
            for (life, instance) in member.lives().iter().enumerate() {
                let file = self
                    .log_folder
                    .join(format!("{}.life-{}.log", member.name(), life + 1));
                let _ = fs::write(file, instance.log());
            }
        }
        &self.log_folder
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("all logs: {}", self.keep_logs().display());
        }
    }
}

fn member(world: &World, service: Service, number: usize, hosts: &[String]) -> Member {
    let (database, kafka) = (Proxy::to_hosts(hosts), Proxy::to_kafka(world.brokers()));
    let first = launch(world, service, [&database, &kafka], None);
    Member {
        service,
        number,
        port: first.port(),
        database,
        kafka,
        lives: Mutex::new(vec![first]),
    }
}

fn launch(
    world: &World,
    service: Service,
    [database, kafka]: [&Proxy; 2],
    port: Option<u16>,
) -> Instance {
    let upper = service.name().to_uppercase();
    let (url_name, port_name) = (format!("{upper}_DATABASE_URL"), format!("{upper}_PORT"));
    let (url, brokers) = (
        world.database_url_at(service, &database.addr()),
        kafka.addr(),
    );
    let port = port.map(|port| port.to_string());
    let mut settings = vec![
        (url_name.as_str(), url.as_str()),
        ("KAFKA_BROKERS", brokers.as_str()),
    ];
    settings.extend(port.iter().map(|port| (port_name.as_str(), port.as_str())));
    world.launch(service, &settings)
}
