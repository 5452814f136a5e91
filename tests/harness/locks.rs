//! Sessions that stand still: how a test knows that a statement of a service has arrived at PostgreSQL and waits for a lock, how
//! it stops one that no `lock_timeout` ends, and how it ends one whose client is dead.

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
        wait::until("no session that waits for a lock", || {
            self.waiting(service) == 0
        });
    }

    /// Stops every `statement` (`insert on account`) of a service's database, without a lock, until [`World::let_go`].
    ///
    /// # Panics
    /// When there is no such table.
    pub fn stop_at(&self, service: Service, statement: &str) {
        let sql = format!(
            "create table gate (closed boolean); insert into gate values (true);
             create function stand_still() returns trigger language plpgsql as
                 $$ begin while exists (select from gate) loop perform pg_sleep(0.02); end loop; return new; end $$;
             create trigger stand_still before {statement} for each row execute function stand_still()"
        );
        self.db(service)
            .batch_execute(&sql)
            .expect("a superuser may");
    }

    /// Waits until so many statements stand still there.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_for_stopped(&self, service: Service, statements: i64) {
        let what = format!("{statements} statements that stand still");
        wait::until(&what, || {
            self.sessions(service, "wait_event = 'PgSleep'") == statements
        });
    }

    /// Lets them go on.
    ///
    /// # Panics
    /// When they were not stopped.
    pub fn let_go(&self, service: Service) {
        self.db(service)
            .batch_execute("delete from gate")
            .expect("a superuser may");
    }

    fn waiting(&self, service: Service) -> i64 {
        self.sessions(service, "wait_event_type = 'Lock'")
    }

    fn sessions(&self, service: Service, state: &str) -> i64 {
        let sql = format!("select count(*) from pg_stat_activity where datname = $1 and {state}");
        self.db(service)
            .query_one(&sql, &[&self.database(service)])
            .expect("a superuser may look")
            .get(0)
    }
}

/// Ends the sessions of this name on the database of `db`, and waits until they are gone: the server goes on with a
/// statement that it has, also when the client was killed.
///
/// # Panics
/// When PostgreSQL does not answer, or that takes too long.
pub fn end_sessions(db: &mut Client, name: &str) {
    let sql =
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
                and application_name = $1";
    wait::until(&format!("the sessions of {name} to be gone"), || {
        db.execute(sql, &[&name]).expect("a superuser may") == 0
    });
}
