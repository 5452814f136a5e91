//! Where the test servers are: variables that `./run.sh test` exports.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::SystemTime;

/// The value of a variable that `./run.sh test` exports.
///
/// # Panics
/// When it is missing: these tests never skip.
pub fn setting(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: these tests need real servers, run ./run.sh test"),
    }
}

/// A superuser's URL to the database `postgres` of the test server, led to another database.
pub fn database_url(database: &str) -> String {
    let url = setting("TEST_POSTGRES_URL");
    let (address, options) = url.split_once('?').unwrap_or((&url, ""));
    let (server, _) = address
        .rsplit_once('/')
        .expect("TEST_POSTGRES_URL names a database");
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{server}/{database}{mark}{options}")
}

/// `host:port` of the test PostgreSQL, for a proxy.
pub fn postgres_address() -> String {
    address_of(&setting("TEST_POSTGRES_URL"))
}

/// `host:port` of a database's URL.
///
/// # Panics
/// When it is no URL.
pub fn address_of(url: &str) -> String {
    let (_, rest) = url.split_once("://").expect("a URL");
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let address = authority
        .rsplit_once('@')
        .map_or(authority, |(_, address)| address);
    address.to_string()
}

/// The test broker's address, or several separated by commas.
pub fn brokers() -> String {
    setting("KAFKA_BROKERS")
}

/// The built binary of a service. One that is older than its sources is used all the same, with a warning.
pub fn binary(name: &str) -> PathBuf {
    let path = PathBuf::from(setting("TEST_BIN_DIR")).join(name);
    assert!(
        path.exists(),
        "{} is not built: run ./run.sh test",
        path.display()
    );
    warn_if_stale(&path, name);
    path
}

/// Cargo does not know that tests start binaries, and does not build them: after an edit those before it would be tested.
fn warn_if_stale(binary: &Path, name: &str) {
    static WARNED: Once = Once::new();
    let own = [format!("{name}/src"), format!("sql/{name}")];
    let folders = ["kafka/src", "shared/src", "sql/common", &own[0], &own[1]];
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let newest = folders
        .iter()
        .filter_map(|folder| newest_file(&root.join(folder)))
        .max();
    let Some((changed, source)) = newest else {
        return;
    };
    if binary
        .metadata()
        .and_then(|file| file.modified())
        .is_ok_and(|built| built < changed)
    {
        // not by `eprintln!`, which is shown only where the test fails
        WARNED.call_once(|| {
            let _ = writeln!(
                std::io::stderr(),
                "warning: {} is stale, {} is newer; rebuild it: cargo build --workspace --bins",
                binary.display(),
                source.strip_prefix(root).unwrap_or(&source).display()
            );
        });
    }
}

/// The file below this folder that was changed last, and when; none if there is no such folder.
fn newest_file(folder: &Path) -> Option<(SystemTime, PathBuf)> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries
        .filter_map(|entry| match entry.file_type().ok()?.is_dir() {
            true => newest_file(&entry.path()),
            false => Some((entry.metadata().ok()?.modified().ok()?, entry.path())),
        })
        .max()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir_all};
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_file_that_was_changed_last_is_found_in_folders_too() {
        let folder = std::env::temp_dir().join(format!("newest-{}", std::process::id()));
        create_dir_all(folder.join("deep/er")).unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (name, seconds) in [("a.rs", 200), ("deep/er/b.rs", 300), ("deep/c.rs", 100)] {
            let file = File::create(folder.join(name)).unwrap();
            file.set_modified(at(seconds)).unwrap();
        }
        let found = newest_file(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, Some((at(300), folder.join("deep/er/b.rs"))));
        assert_eq!(newest_file(&folder), None);
    }
}
