//! What the work costs: processor time, memory, statements, bytes, by process.

use std::path::{Path, PathBuf};

use harness::{Instance, Service, env};
use postgres::{Client, NoTls};

use crate::books::said;
use crate::procfs;
use crate::stage::Stage;

/// Where the servers' figures are read.
pub struct Meter {
    admin: Client,
    postmaster: u32,
    /// The brokers, one or three.
    kafka: Vec<u32>,
    /// Where their data is.
    brokers: PathBuf,
    /// Whether PostgreSQL counts statements.
    counts: bool,
}

/// Counters at one moment.
pub struct Usage {
    /// Seconds of processor time, by process name.
    cpu: Vec<(&'static str, f64)>,
    /// Bytes that PostgreSQL has written ahead.
    wal: f64,
    /// Bytes of Kafka's logs.
    log: f64,
    /// Statements that the services have sent.
    statements: f64,
}

/// Figure, unit, value.
pub type Cost = (String, &'static str, f64);

impl Meter {
    /// The private servers of `run.sh`.
    ///
    /// # Errors
    /// When they are not there.
    pub fn new() -> Result<Meter, String> {
        let folder = std::env::var("RUN_DIR")
            .map_err(|_| "RUN_DIR is not set: start this as ./run.sh bench")?;
        let mut admin = Client::connect(&env::setting("TEST_POSTGRES_URL"), NoTls).map_err(said)?;
        let sql = "select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)";
        let postmaster = id(admin.query_one(sql, &[]).map_err(said)?.get(0))?;
        let counts = admin
            .batch_execute("create extension if not exists pg_stat_statements")
            .is_ok();
        let kafka = files(&Path::new(&folder).join("pid"))
            .filter(|(name, _)| name.starts_with("kafka"))
            .map(|(_, file)| id(&std::fs::read_to_string(file).map_err(|error| error.to_string())?))
            .collect::<Result<Vec<u32>, String>>()?;
        Ok(Meter {
            admin,
            postmaster,
            kafka,
            brokers: Path::new(&folder).join("broker"),
            counts,
        })
    }

    /// Reads all counters; the peaks of memory begin anew.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn read(&mut self, stage: &Stage) -> Result<Usage, String> {
        stage
            .instances()
            .iter()
            .for_each(|instance| procfs::forget_peak(instance.pid()));
        let mut cpu = by_service(stage, procfs::cpu, |all| all.iter().sum());
        cpu.push(("PostgreSQL", procfs::cpu_of_family(self.postmaster)));
        cpu.push(("Kafka", self.kafka.iter().copied().map(procfs::cpu).sum()));
        cpu.push(("load tool", procfs::cpu(std::process::id())));
        cpu.push(("all", cpu.iter().map(|(_, seconds)| seconds).sum()));
        let wal = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8";
        let wal = self.admin.query_one(wal, &[]).map_err(said)?.get(0);
        Ok(Usage {
            cpu,
            wal,
            log: self.log_bytes(stage.world.prefix()),
            statements: self.statements(stage)?,
        })
    }

    /// The logs of the installation's topics and of Kafka's own; those of earlier installations go when Kafka likes.
    fn log_bytes(&self, prefix: &str) -> f64 {
        // one has its data in the folder itself, three have one each below it
        let mut data = vec![self.brokers.join("data")];
        data.extend(files(&self.brokers).map(|(_, folder)| folder.join("data")));
        let partitions = data.iter().flat_map(|folder| files(folder));
        let partitions =
            partitions.filter(|(name, _)| name.starts_with(prefix) || name.starts_with("__"));
        let segments = partitions
            .flat_map(|(_, folder)| files(&folder))
            .filter(|(name, _)| name.ends_with(".log"));
        segments
            .filter_map(|(_, segment)| Some(segment.metadata().ok()?.len() as f64))
            .sum()
    }

    /// Statements on the three databases but for the bench's own, which are marked.
    fn statements(&mut self, stage: &Stage) -> Result<f64, String> {
        if !self.counts {
            return Ok(f64::NAN);
        }
        let databases = Service::ALL
            .map(|service| stage.world.database(service))
            .to_vec();
        let sql = "select coalesce(sum(calls), 0)::float8 from pg_stat_statements
                    where dbid in (select oid from pg_database where datname = any($1)) and query not like '%/*bench*/%'";
        Ok(self
            .admin
            .query_one(sql, &[&databases])
            .map_err(said)?
            .get(0))
    }

    /// What each order, row or record has cost since `before`.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn costs(
        &mut self,
        stage: &Stage,
        before: &Usage,
        count: usize,
    ) -> Result<Vec<Cost>, String> {
        let after = self.read(stage)?;
        let each = |from: f64, to: f64| (to - from) / count as f64;
        let cpu = before.cpu.iter().zip(&after.cpu);
        let cpu = cpu.map(|((name, from), (_, to))| {
            (format!("CPU of {name}"), "ms each", each(*from, *to) * 1e3)
        });
        let more = [
            ("WAL".into(), "bytes each", each(before.wal, after.wal)),
            (
                "Kafka log".into(),
                "bytes each",
                each(before.log, after.log),
            ),
            (
                "statements".into(),
                "each",
                each(before.statements, after.statements),
            ),
        ];
        Ok(cpu.chain(more).collect())
    }

    /// The memory of each process: the services' largest instance at its peak, the servers' now.
    pub fn memory(&self, stage: &Stage) -> Vec<Cost> {
        let mut memory = by_service(stage, procfs::peak, |all| {
            all.iter().copied().fold(f64::NAN, f64::max)
        });
        memory.push(("PostgreSQL", procfs::memory_of_family(self.postmaster)));
        let kafka = self.kafka.iter().copied();
        memory.push(("Kafka", kafka.map(procfs::memory_of_family).sum()));
        memory
            .into_iter()
            .map(|(name, mib)| (format!("memory of {name}"), "MiB", mib))
            .collect()
    }
}

/// A figure of each service that runs, of all its instances together.
fn by_service(
    stage: &Stage,
    figure: fn(u32) -> f64,
    together: fn(&[f64]) -> f64,
) -> Vec<(&'static str, f64)> {
    let all = Service::ALL.iter().map(|service| {
        let its = stage
            .instances()
            .iter()
            .filter(|instance| instance.service() == *service);
        (
            service.name(),
            its.map(Instance::pid).map(figure).collect::<Vec<f64>>(),
        )
    });
    all.filter(|(_, figures)| !figures.is_empty())
        .map(|(name, figures)| (name, together(&figures)))
        .collect()
}

/// Names and paths; none if the folder is gone.
fn files(folder: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| {
        (
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        )
    })
}

fn id(text: &str) -> Result<u32, String> {
    let line = text.lines().next().unwrap_or_default();
    line.trim()
        .parse()
        .map_err(|_| format!("{line:?} is no process id"))
}
