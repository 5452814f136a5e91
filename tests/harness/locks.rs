//! Sessions that wait for a lock: how a test knows that a statement of a service has arrived at PostgreSQL and stands still,
//! and how it ends one whose client is dead.

use postgres::Client;

use crate::wait;
use crate::world::{Service, World};

impl World {
    /// Waits until at least this many sessions of a service's database wait for a lock.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_for_waiting(&self, service: Service, sessions: i64) {
        let what = format!("{sessions} sessions that wait for a lock");
        wait::until(&what, || self.waiting(service) >= sessions);
    }

    /// Waits until no session of a service's database waits for a lock.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_for_none_waiting(&self, service: Service) {
        wait::until("no session that waits for a lock", || self.waiting(service) == 0);
    }

    fn waiting(&self, service: Service) -> i64 {
        let sql = "select count(*) from pg_stat_activity where datname = $1 and wait_event_type = 'Lock'";
        self.db(service).query_one(sql, &[&self.database(service)]).expect("a superuser may look").get(0)
    }
}

/// Ends the sessions of this name on the database of `db`, and waits until they are gone: the server goes on with a
/// statement that it has, also when the client was killed.
///
/// # Panics
/// When PostgreSQL does not answer, or that takes too long.
pub fn end_sessions(db: &mut Client, name: &str) {
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
                and application_name = $1";
    wait::until(&format!("the sessions of {name} to be gone"), || {
        db.execute(sql, &[&name]).expect("a superuser may") == 0
    });
}
