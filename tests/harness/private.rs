//! A private PostgreSQL and Kafka of `./run.sh servers`, that can be killed and started again on the same ports and data.

use std::path::{Path, PathBuf};
use std::process::Command;

use postgres::{Client, NoTls};
use uuid::Uuid;

/// The pair. Dropped, it is stopped and gone with its data.
pub struct PrivateServers {
    folder: PathBuf,
    env: Vec<(String, String)>,
    /// PostgreSQL's, which root's `run.sh` keeps outside of the folder.
    data: PathBuf,
    /// Whether they go when this is dropped.
    ours: bool,
}

impl PrivateServers {
    /// Starts both and waits until they answer.
    ///
    /// # Panics
    /// When they do not, with what `run.sh` said.
    pub fn start() -> PrivateServers {
        let folder = std::env::temp_dir().join(format!("saga-servers-{}", Uuid::new_v4().simple()));
        let servers = PrivateServers {
            folder,
            env: vec![],
            data: PathBuf::new(),
            ours: true,
        };
        servers.restart();
        servers.described()
    }

    /// A pair that runs in this folder already, and is left there when this is dropped.
    ///
    /// # Panics
    /// When there is none.
    pub fn of(folder: &Path) -> PrivateServers {
        PrivateServers {
            folder: folder.into(),
            env: vec![],
            data: PathBuf::new(),
            ours: false,
        }
        .described()
    }

    fn described(mut self) -> PrivateServers {
        let servers = &mut self;
        let text = std::fs::read_to_string(servers.folder.join("env")).expect("run.sh writes it");
        let assignments = text
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        servers.env = assignments
            .map(|(name, value)| (name.to_string(), value.trim_matches('\'').to_string()))
            .collect();
        servers.data = servers
            .ask("select current_setting('data_directory')")
            .into();
        self
    }

    /// One of the settings that lead to them, as `ORDER_DATABASE_URL` or `KAFKA_BROKERS`.
    ///
    /// # Panics
    /// When `run.sh` does not write it.
    pub fn setting(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(setting, _)| setting == name);
        found
            .map(|(_, value)| value.as_str())
            .unwrap_or_else(|| panic!("run.sh servers wrote no {name}"))
    }

    /// Starts again what was killed, and waits until it answers.
    ///
    /// # Panics
    /// When it does not, with what `run.sh` said.
    pub fn restart(&self) {
        self.run("up");
    }

    /// SIGKILL to PostgreSQL's postmaster; its other processes end by themselves.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_postgres(&self) {
        signal_to(
            "-KILL",
            &self.ask("select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)"),
        );
    }

    /// A signal to the broker of this number, from 1; a lone one has number 1.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal_kafka(&self, number: usize, signal: &str) {
        let names = ["pid/kafka".to_string(), format!("pid/kafka-{number}")];
        let written = names
            .iter()
            .find_map(|name| std::fs::read_to_string(self.folder.join(name)).ok());
        signal_to(
            signal,
            written
                .expect("run.sh writes it")
                .lines()
                .next()
                .expect("a process id"),
        );
    }

    fn ask(&self, sql: &str) -> String {
        let mut client = Client::connect(self.setting("TEST_POSTGRES_URL"), NoTls)
            .expect("the private PostgreSQL answers");
        client.query_one(sql, &[]).expect("a superuser may").get(0)
    }

    fn run(&self, action: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../run.sh");
        let done = Command::new(script)
            .args(["servers", action, "--dir"])
            .arg(&self.folder)
            .output()
            .expect("run.sh is there");
        let said = [done.stdout, done.stderr].concat();
        assert!(
            done.status.success(),
            "run.sh servers {action}: {}",
            String::from_utf8_lossy(&said)
        );
    }
}

impl Drop for PrivateServers {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        self.run("down");
        let home = self
            .data
            .parent()
            .filter(|home| home.starts_with("/var/lib/saga-postgres"));
        for folder in [Some(self.folder.as_path()), home].into_iter().flatten() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn signal_to(signal: &str, pid: &str) {
    let sent = Command::new("kill")
        .args([signal, pid.trim()])
        .status()
        .expect("kill is there");
    assert!(sent.success(), "there is no process {pid}");
}
