//! A PostgreSQL of our own with a standby. An asynchronous one can be made to lag and then take over, so that the last commits
//! of the primary are lost, as they are at a failover in production. A synchronous one has all that was committed.
//!
//! ```text
//! clients -> proxy -> primary -> replication (a proxy, too) -> standby
//!            lead_to()          hold(), cut()
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use postgres::{Client, NoTls};
use uuid::Uuid;

use crate::process::{Process, Signal};
use crate::proxy::Proxy;
use crate::{env, ports, wait};

/// PostgreSQL refuses to run as root; this user then runs it.
const USER: &str = "postgres";
/// Two servers, each of little memory. Only processes are killed, and what they wrote outlives them in the kernel: a disk that
/// is waited for would cost a minute on a busy machine, and prove nothing. Without files under `/dev/shm`, which a killed server would leave behind.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 16MB
fsync = off
max_wal_size = 256MB
wal_keep_size = 256MB
dynamic_shared_memory_type = mmap
log_line_prefix = '%m [%p] %d %a '
timezone = 'UTC'
log_timezone = 'UTC'
";

/// Of a pair that is synchronous, besides. Each server has both lines, and so neither ever commits alone: what one of them has
/// answered is on the other one, at every moment, before and after a takeover. A standby reports itself by its cluster's name. It
/// is named here because `*` would take `pg_basebackup` for a standby, too: it receives the log while it copies.
const SYNCHRONOUS: &str = "
cluster_name = 'saga'
synchronous_standby_names = 'saga'
";

/// The primary and its standby. Dropped, both are gone with their data.
pub struct Replicated {
    /// The one address that clients may use, whichever server is the primary.
    proxy: Proxy,
    folder: PathBuf,
    password: String,
    roles: Mutex<Roles>,
}

struct Roles {
    primary: Server,
    /// None after a takeover, until [`Replicated::renew`].
    standby: Option<Standby>,
}

/// A PostgreSQL server, running or not, that clients are not led to. Dropped, it is gone with its data.
pub struct Aside(Server);

struct Standby {
    server: Server,
    /// What the primary sends comes through here.
    replication: Proxy,
}

impl Replicated {
    /// Starts both and waits until the standby follows.
    ///
    /// # Panics
    /// When a server does not start, or `PG_BIN` is not set.
    pub fn start() -> Replicated {
        Replicated::start_with(SETTINGS)
    }

    /// The same with a synchronous standby: a commit waits until the standby has it, and without one for as long as there is none.
    ///
    /// # Panics
    /// As [`Replicated::start`].
    pub fn start_synchronous() -> Replicated {
        Replicated::start_with(&format!("{SETTINGS}{SYNCHRONOUS}"))
    }

    fn start_with(settings: &str) -> Replicated {
        let folder = std::env::temp_dir().join(format!("saga-standby-{}", Uuid::new_v4().simple()));
        create_folder(&folder);
        let password = Uuid::new_v4().simple().to_string();
        let primary = Server::create(&folder.join("1"), &password, settings);
        let proxy = Proxy::to(&primary.address());
        let replicated = Replicated {
            proxy,
            folder,
            password,
            roles: Mutex::new(Roles {
                primary,
                standby: None,
            }),
        };
        replicated.renew();
        replicated
    }

    /// `host:port` of the proxy that leads to the primary.
    pub fn address(&self) -> String {
        self.proxy.addr()
    }

    /// `host:port` of the present primary itself, for proxies of others: they must be led to the next one after
    /// [`Replicated::lose_tail`].
    pub fn primary(&self) -> String {
        self.roles().primary.address()
    }

    /// `host:port` of the standby, past the proxy.
    ///
    /// # Panics
    /// When there is none.
    pub fn standby(&self) -> String {
        self.roles()
            .standby
            .as_ref()
            .expect("a standby, after renew()")
            .server
            .address()
    }

    /// A superuser's URL to a database, by the proxy.
    pub fn url(&self, database: &str) -> String {
        url(&self.password, &self.address(), database)
    }

    /// A connection to a database of the primary.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn db(&self, database: &str) -> Client {
        connect(&self.url(database))
    }

    /// Creates an empty database.
    ///
    /// # Panics
    /// When it is there already.
    pub fn create_database(&self, name: &str) {
        self.db("postgres")
            .batch_execute(&format!("create database {name}"))
            .expect("a name that is free");
    }

    /// The primary's timeline: each takeover begins another one.
    ///
    /// # Panics
    /// When the primary does not answer.
    pub fn timeline(&self) -> i32 {
        let sql =
            "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer";
        self.db("postgres")
            .query_one(sql, &[])
            .expect("a superuser may ask")
            .get(0)
    }

    /// All that was committed before this call reaches the standby; nothing that is committed after its return does.
    ///
    /// # Panics
    /// When there is no standby, or it does not catch up in time.
    pub fn lag(&self) {
        let roles = self.roles();
        let standby = roles.standby.as_ref().expect("a standby, after renew()");
        standby.wait_for(&self.password, &self.flushed(&roles.primary));
        standby.replication.hold();
    }

    /// SIGKILL to the primary. Its standby stays one until [`Replicated::fail_over`] or [`Replicated::lose_tail`].
    pub fn kill_primary(&self) {
        self.roles().primary.kill();
    }

    /// The primary is killed with SIGKILL and gone with its data; the standby takes over, and the proxy leads there.
    ///
    /// # Panics
    /// When there is no standby, or it does not take over in time.
    pub fn lose_tail(&self) {
        drop(self.fail_over());
    }

    /// [`Replicated::lose_tail`], but the old primary's data is kept: it can be brought back ([`Replicated::swap`]).
    ///
    /// # Panics
    /// As [`Replicated::lose_tail`].
    pub fn fail_over(&self) -> Aside {
        let mut roles = self.roles();
        let Standby {
            server,
            replication,
        } = roles.standby.take().expect("a standby, after renew()");
        roles.primary.kill();
        replication.cut();
        let mut db = connect(&url(&self.password, &server.address(), "postgres"));
        let promoted = db
            .query_one("select pg_promote(true, 300)", &[])
            .expect("a superuser may");
        assert!(promoted.get::<_, bool>(0), "the standby was not promoted");
        self.proxy.lead_to(&server.address());
        Aside(std::mem::replace(&mut roles.primary, server))
    }

    /// A copy of the primary's data, as a snapshot of its volume is. The primary is stopped for it and started again.
    ///
    /// # Panics
    /// When the data can't be copied, or the primary does not start.
    pub fn snapshot(&self) -> Aside {
        let mut roles = self.roles();
        roles.primary.stop();
        let folder = self.folder.join(Uuid::new_v4().simple().to_string());
        run(
            "cp",
            &["-a", text(&roles.primary.folder), text(&folder)],
            "",
        );
        let copy = Server {
            folder,
            port: 0,
            process: None,
        };
        self.lead_to(&mut roles);
        Aside(copy)
    }

    /// Clients are led to that one, which is started if it does not run; answers the one that they were led to before, and
    /// which runs on.
    ///
    /// # Panics
    /// When it does not start.
    pub fn swap(&self, aside: Aside) -> Aside {
        let mut roles = self.roles();
        let before = std::mem::replace(&mut roles.primary, aside.0);
        self.lead_to(&mut roles);
        Aside(before)
    }

    /// Starts that one, and answers its URL to a database: beside the primary, that clients are still led to.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_aside(&self, aside: &mut Aside, database: &str) -> String {
        aside.0.restart();
        aside.0.wait_until_ready(&self.password);
        url(&self.password, &aside.0.address(), database)
    }

    /// Leads clients, and the standby if there is one, to the primary, which is started if it does not run.
    fn lead_to(&self, roles: &mut Roles) {
        if roles.primary.has_ended() {
            roles.primary.restart();
            roles.primary.wait_until_ready(&self.password);
        }
        self.proxy.lead_to(&roles.primary.address());
        if let Some(standby) = &roles.standby {
            standby.replication.lead_to(&roles.primary.address());
        }
    }

    /// Makes another standby of the primary, so that it can be lost once more. The old primary comes back this way, by a fresh copy
    /// of the new one. `pg_rewind` would save the copy of a large database, but needs `wal_log_hints` or checksums and all the log
    /// since the two parted; a copy can be made of whatever is left, and operators fall back on it.
    ///
    /// # Panics
    /// When the primary has a standby, or the new one does not follow in time.
    pub fn renew(&self) {
        let mut roles = self.roles();
        assert!(roles.standby.is_none(), "it has a standby");
        let replication = Proxy::to(&roles.primary.address());
        let folder = self.folder.join(Uuid::new_v4().simple().to_string());
        let server = Server::copy(
            &folder,
            &url(&self.password, &replication.addr(), "postgres"),
        );
        server.wait_until_ready(&self.password);
        let standby = Standby {
            server,
            replication,
        };
        standby.wait_for(&self.password, &self.flushed(&roles.primary));
        roles.standby = Some(standby);
    }

    /// Up to where the primary's log is on its disk, and may be sent.
    fn flushed(&self, primary: &Server) -> String {
        let mut db = connect(&url(&self.password, &primary.address(), "postgres"));
        db.query_one("select pg_current_wal_flush_lsn()::text", &[])
            .expect("a superuser may ask")
            .get(0)
    }

    fn roles(&self) -> MutexGuard<'_, Roles> {
        self.roles
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Replicated {
    fn drop(&mut self) {
        let mut roles = self.roles();
        if let Some(standby) = roles.standby.take() {
            standby.server.stop();
        }
        roles.primary.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Standby {
    /// Waits until it has the log up to there. What came with its copy is replayed and counts as never received.
    fn wait_for(&self, password: &str, end: &str) {
        let mut db = connect(&url(password, &self.server.address(), "postgres"));
        let sql = format!(
            "select coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) >= '{end}', false)"
        );
        wait::until("the standby to catch up", || {
            db.query_one(&sql, &[]).expect("a hot standby").get(0)
        });
    }
}

/// One of the two.
struct Server {
    folder: PathBuf,
    port: u16,
    /// None before its first start.
    process: Option<Process>,
}

impl Server {
    /// A fresh one.
    fn create(folder: &Path, password: &str, settings: &str) -> Server {
        let data = text(folder);
        let file = format!("{data}.password");
        run("tee", &[&file], password);
        let arguments = [
            "--pgdata",
            data,
            "--username",
            USER,
            "--pwfile",
            &file,
            "--auth=scram-sha-256",
        ];
        run(
            &program("initdb"),
            &[
                &arguments[..],
                &["--encoding=UTF8", "--locale=C", "--no-sync"],
            ]
            .concat(),
            "",
        );
        run(
            "tee",
            &["--append", &format!("{data}/postgresql.conf")],
            settings,
        );
        let server = Server::start(folder);
        server.wait_until_ready(password);
        server
    }

    /// A standby of the one at this URL.
    fn copy(folder: &Path, primary: &str) -> Server {
        let arguments = [
            "--dbname",
            primary,
            "--pgdata",
            text(folder),
            "--write-recovery-conf",
        ];
        let quickly = ["--checkpoint=fast", "--wal-method=stream", "--no-sync"];
        run(
            &program("pg_basebackup"),
            &[&arguments[..], &quickly].concat(),
            "",
        );
        Server::start(folder)
    }

    fn start(folder: &Path) -> Server {
        let mut server = Server {
            folder: folder.into(),
            port: 0,
            process: None,
        };
        server.restart();
        server
    }

    /// On another port.
    fn restart(&mut self) {
        self.port = ports::free_port();
        let command = as_user(
            &program("postgres"),
            &["-D", text(&self.folder), "-p", &self.port.to_string()],
        );
        let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        let name = format!("postgres on port {}", self.port);
        self.process = Some(Process::start(
            &name,
            Path::new(&command[0]),
            &arguments,
            &[],
        ));
    }

    /// Or was not started yet.
    fn has_ended(&self) -> bool {
        self.process
            .as_ref()
            .is_none_or(|process| process.ended().is_some())
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn wait_until_ready(&self, password: &str) {
        let url = url(password, &self.address(), "postgres");
        wait::until("our own PostgreSQL", || {
            let said = || self.process.as_ref().map(Process::tail).unwrap_or_default();
            assert!(!self.has_ended(), "our own PostgreSQL ended:\n{}", said());
            Client::connect(&url, NoTls).is_ok()
        });
    }

    /// SIGKILL. Its other processes end by themselves; the memory that they share is then nobody's and is removed.
    fn kill(&self) {
        let memory = self.shared_memory();
        self.process.iter().for_each(Process::kill);
        let Some(memory) = memory else { return };
        wait::until("a killed PostgreSQL's processes to end", || {
            is_attached_to(&memory) != Some(true)
        });
        if is_attached_to(&memory).is_some() {
            run("ipcrm", &["--shmem-id", &memory], "");
        }
    }

    /// At once and without a checkpoint; killed if that takes too long.
    fn stop(&self) {
        let Some(process) = &self.process else { return };
        let begun = std::time::Instant::now();
        if process.ended().is_none() {
            process.signal(Signal::QUIT);
        }
        while process.ended().is_none() && begun.elapsed() < wait::LIMIT {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        process.kill();
    }

    /// The number of its block of System V memory, which it writes into its lock file.
    fn shared_memory(&self) -> Option<String> {
        let lock_file = std::fs::read_to_string(self.folder.join("postmaster.pid")).ok()?;
        lock_file
            .lines()
            .nth(6)?
            .split_whitespace()
            .nth(1)
            .map(str::to_string)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether a process uses this block of memory; none if there is no such block.
fn is_attached_to(memory: &str) -> Option<bool> {
    let all = std::fs::read_to_string("/proc/sysvipc/shm").expect("procfs");
    // key, number, permissions, size, two process ids, users
    let fields = all
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .into_iter()
        .find(|fields| fields.get(1) == Some(&memory))
        .map(|fields| fields[6] != "0")
}

fn url(password: &str, address: &str, database: &str) -> String {
    format!("postgres://{USER}:{password}@{address}/{database}")
}

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls)
        .unwrap_or_else(|error| panic!("our own PostgreSQL does not answer: {error}"))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn program(name: &str) -> String {
    format!("{}/{name}", env::setting("PG_BIN"))
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

pub(crate) fn create_folder(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a temporary folder");
    if is_root() {
        let owned = Command::new("chown")
            .arg(USER)
            .arg(folder)
            .status()
            .expect("chown is there");
        assert!(owned.success(), "there is no user {USER}");
    }
}

/// The command line that runs a program as a user whom PostgreSQL accepts. The kernel kills it when its parent ends.
pub(crate) fn as_user(program: &str, arguments: &[&str]) -> Vec<String> {
    let changed = [
        "setpriv",
        "--reuid",
        USER,
        "--regid",
        USER,
        "--init-groups",
        "--pdeathsig",
        "KILL",
        "--",
    ];
    let before = if is_root() { &changed[..] } else { &[] };
    [before, &[program], arguments]
        .concat()
        .into_iter()
        .map(str::to_string)
        .collect()
}

/// Runs it to its end.
fn run(program: &str, arguments: &[&str], input: &str) {
    let command = as_user(program, arguments);
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("can't run {program}: {error}"));
    // a program that reads nothing may have ended already; its status says whether that was right
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes());
    let done = child.wait_with_output().expect("it is our child");
    let said = [done.stdout, done.stderr].concat();
    assert!(
        done.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&said)
    );
}
