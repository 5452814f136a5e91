//! What the three databases say: who is settled since when, whether money and stock are conserved. Statements of the bench
//! carry a mark by which they are distinguished from those of the services.

use std::time::{Duration, Instant};

use harness::{Service, World};
use postgres::Client;
use uuid::Uuid;

use crate::load::{Names, Placed};

/// Put into each account and item but the empty one: no run takes it all.
const PUT_IN: i64 = 1_000_000_000_000;

/// Connections to the three databases.
pub struct Books {
    order: Client,
    payment: Client,
    stock: Client,
}

/// A settled order.
pub struct Settled {
    /// Its index among those asked for.
    pub place: usize,
    /// The order's status.
    pub status: String,
    /// Whether it failed because its deadline passed.
    pub by_deadline: bool,
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
        let until_reading = self.here.saturating_duration_since(here).as_secs_f64()
            - here.saturating_duration_since(self.here).as_secs_f64();
        Duration::try_from_secs_f64(until_reading + after_reading).unwrap_or_default()
    }
}

/// As an error of ours.
pub fn said(error: postgres::Error) -> String {
    use std::error::Error;
    let cause = error
        .source()
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    format!("PostgreSQL: {error}{cause}")
}

impl Books {
    /// Those of this installation.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn open(world: &World) -> Result<Books, String> {
        let open = |service| {
            let mut client = world.db(service);
            client
                .batch_execute("set /*bench*/ statement_timeout = '300s'")
                .map_err(said)?;
            Ok::<Client, String>(client)
        };
        Ok(Books {
            order: open(Service::Order)?,
            payment: open(Service::Payment)?,
            stock: open(Service::Stock)?,
        })
    }

    /// The connection to a service's database.
    pub fn of(&mut self, service: Service) -> &mut Client {
        match service {
            Service::Order => &mut self.order,
            Service::Payment => &mut self.payment,
            Service::Stock => &mut self.stock,
        }
    }

    /// Accounts and items with plenty, and an item without stock.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn put_in(&mut self, names: Names) -> Result<(), String> {
        let account = "insert /*bench*/ into account select 'user-' || n, $1::bigint, $1 from generate_series(0, $2 - 1) as n";
        let item = "insert /*bench*/ into item select 'item-' || n, $1::bigint, $1 from generate_series(0, $2 - 1) as n
                    union all select 'empty', 0, 0";
        self.payment
            .execute(account, &[&PUT_IN, &(names.users as i32)])
            .map_err(said)?;
        self.stock
            .execute(item, &[&PUT_IN, &(names.items as i32)])
            .map_err(said)?;
        Ok(())
    }

    /// Those of `placed` that are settled.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn settled(&mut self, placed: &[Placed]) -> Result<Vec<Settled>, String> {
        let order_ids: Vec<Uuid> = placed.iter().map(|order| order.order_id).collect();
        let sql = "select /*bench*/ place, order_status, (extract(epoch from updated_at) * 1000000)::bigint,
                          coalesce(reason_code = 'DEADLINE', false)
                     from unnest($1::uuid[]) with ordinality as wanted (order_id, place) join orders using (order_id)
                    where order_status <> 'IN_PROGRESS' and payment_status not in ('READY', 'IN_PROGRESS', 'COMPENSATING')
                      and stock_status not in ('READY', 'IN_PROGRESS', 'COMPENSATING')";
        let rows = self.order.query(sql, &[&order_ids]).map_err(said)?;
        let settled = |row: &postgres::Row| Settled {
            place: row.get::<_, i64>(0) as usize - 1,
            status: row.get(1),
            at_micros: row.get(2),
            by_deadline: row.get(3),
        };
        Ok(rows.iter().map(settled).collect())
    }

    /// Reads the database's clock, the quickest of several readings.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn clock(&mut self) -> Result<Clock, String> {
        let mut best = Clock {
            here: Instant::now(),
            there_micros: 0,
            uncertainty: Duration::MAX,
        };
        for _ in 0..30 {
            let asked = Instant::now();
            let sql = "select /*bench*/ (extract(epoch from clock_timestamp()) * 1000000)::bigint";
            let there_micros = self.order.query_one(sql, &[]).map_err(said)?.get(0);
            let uncertainty = asked.elapsed() / 2;
            if uncertainty < best.uncertainty {
                best = Clock {
                    here: asked + uncertainty,
                    there_micros,
                    uncertainty,
                };
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
            let sql = "select /*bench*/ pg_logical_emit_message(true, 'bench', '')";
            self.order.execute(sql, &[]).map_err(said)?;
            times.push(asked.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    /// Accounts and items for which what is left and what was taken is not what was put in (I2).
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn unconserved(&mut self) -> Result<Vec<String>, String> {
        let accounts = unconserved("account", "user_name", "balance", "payment", "amount");
        let items = unconserved("item", "item_name", "quantity", "reservation", "quantity");
        let mut wrong = vec![];
        for (client, sql) in [(&mut self.payment, accounts), (&mut self.stock, items)] {
            for row in client.query(&sql, &[&PUT_IN]).map_err(said)? {
                let (name, left, taken): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
                wrong.push(format!(
                    "{name}: {left} left and {taken} taken are not what was put in"
                ));
            }
        }
        Ok(wrong)
    }
}

fn unconserved(table: &str, name: &str, left: &str, effects: &str, amount: &str) -> String {
    format!(
        "select /*bench*/ {name}, {left}, coalesce(taken, 0) from {table} left join
            (select {name}, sum({amount})::bigint as taken from {effects} where status = 'COMPLETED' group by 1) t using ({name})
          where {left} < 0 or {left} + coalesce(taken, 0) <> case {name} when 'empty' then 0 else $1::bigint end limit 5"
    )
}
