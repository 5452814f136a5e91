//! What the three databases say: who is settled since when, whether money and stock are conserved.

use std::time::{Duration, Instant};

use postgres::Client;
use shared::config::Config;
use shared::event::Service;
use shared::postgres_tls::Target;
use uuid::Uuid;

use crate::load::{PUT_IN, Placed};

/// Connections to the three databases.
pub struct Books {
    order: Client,
    payment: Client,
    stock: Client,
}

/// A settled order.
pub struct Settled {
    /// Its index among the accepted ones.
    pub place: usize,
    /// The order's status.
    pub status: String,
    /// When, in microseconds since 1970 by the database's clock.
    pub at_micros: i64,
}

/// The database's clock beside ours.
pub struct Clock {
    here: Instant,
    there_micros: i64,
    /// Half the round trip it was read in.
    pub uncertainty: Duration,
}

impl Clock {
    /// From a moment here to one there; zero if it seems negative, which the uncertainty allows.
    pub fn since(&self, there_micros: i64, here: Instant) -> Duration {
        let after_reading = (there_micros - self.there_micros) as f64 / 1e6;
        Duration::try_from_secs_f64((self.here - here).as_secs_f64() + after_reading).unwrap_or_default()
    }
}

fn said(error: postgres::Error) -> String {
    format!("PostgreSQL: {error}")
}

impl Books {
    /// The databases of the environment's settings.
    ///
    /// # Errors
    /// Bad settings, or a database that is away.
    pub fn open() -> Result<Books, String> {
        let open = |service| {
            let config = Config::from_env(service).map_err(|error| error.to_string())?;
            let mut target = Target::parse(&config.database_url)?;
            target.config.connect_timeout(Duration::from_secs(10)).options("-c statement_timeout=60s");
            target.connect().map_err(said)
        };
        Ok(Books { order: open(Service::Order)?, payment: open(Service::Payment)?, stock: open(Service::Stock)? })
    }

    /// PostgreSQL's version.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn version(&mut self) -> Result<String, String> {
        Ok(self.order.query_one("show server_version", &[]).map_err(said)?.get(0))
    }

    /// Those of `placed` that are settled.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn settled(&mut self, placed: &[Placed]) -> Result<Vec<Settled>, String> {
        let order_ids: Vec<Uuid> = placed.iter().map(|order| order.order_id).collect();
        let sql = "select place, order_status, (extract(epoch from updated_at) * 1000000)::bigint
                     from unnest($1::uuid[]) with ordinality as wanted (order_id, place) join orders using (order_id)
                    where order_status <> 'IN_PROGRESS' and payment_status not in ('READY', 'IN_PROGRESS', 'COMPENSATING')
                      and stock_status not in ('READY', 'IN_PROGRESS', 'COMPENSATING')";
        let rows = self.order.query(sql, &[&order_ids]).map_err(said)?;
        let settled = |row: &postgres::Row| Settled {
            place: row.get::<_, i64>(0) as usize - 1,
            status: row.get(1),
            at_micros: row.get(2),
        };
        Ok(rows.iter().map(settled).collect())
    }

    /// Reads the database's clock, the quickest of several readings. `began` must be a moment of this run: the clock
    /// is read after it.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn clock(&mut self, began: Instant) -> Result<Clock, String> {
        let mut best = Clock { here: began, there_micros: 0, uncertainty: Duration::MAX };
        for _ in 0..30 {
            let asked = Instant::now();
            let sql = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
            let there_micros = self.order.query_one(sql, &[]).map_err(said)?.get(0);
            let uncertainty = asked.elapsed() / 2;
            if uncertainty < best.uncertainty {
                best = Clock { here: asked + uncertainty, there_micros, uncertainty };
            }
        }
        Ok(best)
    }

    /// What a commit takes on the idle server: the median of some that only flush a message into the log.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn commit_time(&mut self) -> Result<Duration, String> {
        let mut times = vec![];
        for _ in 0..21 {
            let asked = Instant::now();
            self.order.execute("select pg_logical_emit_message(true, 'bench', '')", &[]).map_err(said)?;
            times.push(asked.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    /// The accounts and items of this run for which what is left and what was taken is not what was put in (I2).
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn unconserved(&mut self, suffix: &str) -> Result<Vec<String>, String> {
        let accounts =
            "select a.user_name, a.balance, coalesce(sum(p.amount) filter (where p.status = 'COMPLETED'), 0)::bigint
                          from account a left join payment p using (user_name) where a.user_name like $1 group by 1, 2";
        let items =
            "select i.item_name, i.quantity, coalesce(sum(r.quantity) filter (where r.status = 'COMPLETED'), 0)::bigint
                       from item i left join reservation r using (item_name) where i.item_name like $1 group by 1, 2";
        let names = format!("bench-%-{suffix}");
        let mut wrong = vec![];
        for (client, sql) in [(&mut self.payment, accounts), (&mut self.stock, items)] {
            for row in client.query(sql, &[&names]).map_err(said)? {
                let (name, left, taken): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
                let put_in = if name.starts_with("bench-empty") { 0 } else { PUT_IN };
                if left < 0 || left + taken != put_in {
                    wrong.push(format!("{name}: {left} left and {taken} taken are not {put_in}"));
                }
            }
        }
        Ok(wrong)
    }
}
