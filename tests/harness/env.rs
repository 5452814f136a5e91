//! Where the test servers are: variables that `./run.sh test` exports.

use std::path::PathBuf;

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

/// The built binary of a service.
pub fn binary(name: &str) -> PathBuf {
    let path = PathBuf::from(setting("TEST_BIN_DIR")).join(name);
    assert!(
        path.exists(),
        "{} is not built: run ./run.sh test",
        path.display()
    );
    path
}
