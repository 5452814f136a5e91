//! A PgBouncer of our own before the test PostgreSQL.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use postgres::{Config, NoTls};
use uuid::Uuid;

use crate::process::{Process, Signal};
use crate::standby::{as_user, create_folder, text};
use crate::{env, ports, wait};

/// Dropped, it is gone.
pub struct Pooler {
    folder: PathBuf,
    port: u16,
    process: Process,
}

impl Pooler {
    /// Starts one that knows the user of the test PostgreSQL, with this `pool_mode`.
    ///
    /// # Panics
    /// When there is no `pgbouncer` in PATH, or it does not answer.
    pub fn start(mode: &str) -> Pooler {
        let folder = std::env::temp_dir().join(format!("saga-pooler-{}", Uuid::new_v4().simple()));
        create_folder(&folder);
        let port = ports::free_port();
        let config: Config = env::database_url("postgres").parse().expect("a URL");
        let (user, password) = (
            config.get_user().expect("a user"),
            config.get_password().expect("a password"),
        );
        let password = std::str::from_utf8(password).expect("UTF-8");
        let address = env::postgres_address();
        let (host, its_port) = address.rsplit_once(':').expect("host:port");
        let mut file = format!(
            "[databases]\n* = host={host} port={its_port} user={user} password={password}\n[pgbouncer]\n"
        );
        let _ = writeln!(
            file,
            "listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any"
        );
        let _ = writeln!(
            file,
            "pool_mode = {mode}\nignore_startup_parameters = extra_float_digits,options"
        );
        let ini = folder.join("pgbouncer.ini");
        std::fs::write(&ini, file).expect("a temporary folder");
        let command = as_user("pgbouncer", &[text(&ini)]);
        let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        let process = Process::start("pgbouncer", Path::new(&command[0]), &arguments, &[]);
        let pooler = Pooler {
            folder,
            port,
            process,
        };
        wait::until("PgBouncer", || {
            assert!(
                pooler.process.ended().is_none(),
                "PgBouncer ended:\n{}",
                pooler.process.tail()
            );
            postgres::Client::connect(&pooler.url("postgres"), NoTls).is_ok()
        });
        pooler
    }

    /// The URL of a database of the test PostgreSQL, by way of this.
    pub fn url(&self, database: &str) -> String {
        env::database_url(database).replacen(
            &env::postgres_address(),
            &format!("127.0.0.1:{}", self.port),
            1,
        )
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.signal(Signal::KILL);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
