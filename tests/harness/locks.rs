//! Sessions that wait for a lock: how a test knows that a statement of a service has arrived at PostgreSQL and stands still.

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
