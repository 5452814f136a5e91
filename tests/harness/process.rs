//! A child process: its log is kept, signals reach it, and it never outlives the test process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::wait;

/// Lines of the log that a failing test shows.
const TAIL: usize = 60;

/// A running or ended child process. Dropped, it is killed; a failing test shows the end of its log, and so does every
/// test when `TEST_LOG` is set.
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    log: Arc<Mutex<String>>,
    /// The threads that write the log; they end with the process.
    readers: Mutex<Vec<JoinHandle<()>>>,
}

impl Process {
    /// Starts `program` with these variables and no others but `PATH`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(name: &str, program: &Path, args: &[&str], env: &[(String, String)]) -> Process {
        // The kernel kills it when the test process ends, by whatever. And where the tests were started by nohup, it does
        // not inherit that SIGHUP is ignored.
        let mut command = Command::new("env");
        command
            .args([
                "--default-signal=HUP",
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
            ])
            .arg(program)
            .args(args);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            spawn(command).unwrap_or_else(|error| panic!("can't start {name}: {error}"));
        let log = Arc::default();
        let (out, err) = (
            child.stdout.take().expect("piped"),
            child.stderr.take().expect("piped"),
        );
        let readers = Mutex::new(vec![keep(out, &log), keep(err, &log)]);
        Process {
            name: name.to_string(),
            pid: child.id(),
            child: Mutex::new(child),
            log,
            readers,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A figure of `/proc/<pid>/status`: `VmRSS` and `VmHWM` (its peak) in KiB, `Threads`.
    ///
    /// # Panics
    /// When it has ended, or there is no such figure.
    pub fn figure(&self, name: &str) -> usize {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{} has no {name}:\n{}", self.name, self.tail()))
    }

    /// Sends a signal; after [`Signal::STOP`] waits until the process stands still, after [`Signal::KILL`] until it is gone.
    ///
    /// # Panics
    /// When the process has ended already.
    pub fn signal(&self, signal: Signal) {
        assert!(
            self.ended().is_none(),
            "{} has ended before {signal:?}:\n{}",
            self.name,
            self.tail()
        );
        let pid = Pid::from_raw(self.pid as i32).expect("a process id");
        kill_process(pid, signal)
            .unwrap_or_else(|error| panic!("{signal:?} to {}: {error}", self.name));
        if signal == Signal::STOP {
            wait::until(&format!("{} to stand still", self.name), || {
                self.stands_still()
            });
        } else if signal == Signal::KILL {
            self.exit();
        }
    }

    /// Every one of its threads is stopped.
    fn stands_still(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("procfs");
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // the state follows the name, which may hold spaces and stands in parentheses
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Kills it with SIGKILL, if it still runs, and waits for its end.
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        self.finish_log();
    }

    /// How it ended, its log complete; none while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        let status = lock(&self.child).try_wait().expect("it is our child");
        if status.is_some() {
            self.finish_log();
        }
        status
    }

    fn finish_log(&self) {
        lock(&self.readers)
            .drain(..)
            .for_each(|reader| drop(reader.join()));
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After [`wait::LIMIT`], with its log.
    pub fn exit(&self) -> ExitStatus {
        self.exit_within(wait::LIMIT)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `limit`, with its log.
    pub fn exit_within(&self, limit: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                begun.elapsed() < limit,
                "{} still runs after {limit:?}:\n{}",
                self.name,
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that it has written to standard output and error so far.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// The last lines of it.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() || std::env::var_os("TEST_LOG").is_some() {
            eprintln!(
                "---- {} (process {}) said last:\n{}",
                self.name,
                self.pid,
                self.tail()
            );
        }
    }
}

fn keep(from: impl std::io::Read + Send + 'static, log: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let mut log = lock(&log);
            log.push_str(&String::from_utf8_lossy(&line));
            log.push('\n');
        }
    })
}

type Spawned = std::io::Result<Child>;

/// Spawns from a thread that lives as long as this process: the kernel's death signal comes when the parent *thread*
/// ends, and tests are threads.
fn spawn(command: Command) -> Spawned {
    static SPAWNER: OnceLock<mpsc::Sender<(Command, mpsc::Sender<Spawned>)>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<(Command, mpsc::Sender<Spawned>)>();
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, spawned) = mpsc::channel();
    spawner
        .send((command, reply))
        .expect("the spawner never ends");
    spawned.recv().expect("the spawner answers")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
