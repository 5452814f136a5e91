//! What the tables hold, asked by SQL written here: the services' own code has no part in it.

use std::collections::BTreeMap;

use postgres::Client;
use serde_json::Value;
use uuid::Uuid;

use crate::topics::Seen;
use crate::wait;
use crate::world::{Service, TOPICS, World};

/// Tables that are not part of an installation's state: how many orders wait, where consumers are, and which relays have led.
const ASIDE: [&str; 3] = ["order_flow", "consumer_offset", "leadership"];

impl World {
    /// I2: every account's balance and its COMPLETED payments together are what was put in, and so for every item of a
    /// stock that ever ran.
    ///
    /// # Panics
    /// When they are not, naming accounts and items.
    pub fn assert_conserved(&self) {
        let accounts = "select user_name, balance, deposited, coalesce((select sum(amount) from payment p
                            where p.user_name = a.user_name and status = 'COMPLETED'), 0)::bigint from account a";
        let items = "select item_name, quantity, deposited, coalesce((select sum(quantity) from reservation r
                         where r.item_name = i.item_name and status = 'COMPLETED'), 0)::bigint from item i";
        for (service, table, sql) in [
            (Service::Payment, "account", accounts),
            (Service::Stock, "item", items),
        ] {
            let mut db = self.db(service);
            if !has_table(&mut db, table) {
                continue;
            }
            for row in db.query(sql, &[]).expect("the tables are there") {
                let (name, left, put_in, taken): (String, i64, i64, i64) =
                    (row.get(0), row.get(1), row.get(2), row.get(3));
                assert_eq!(
                    left + taken,
                    put_in,
                    "{name}: {left} left and {taken} taken of {put_in} put in"
                );
                assert!(left >= 0, "{name}: {left} left");
            }
        }
    }

    /// The status of an order's payment; none if payment has not heard of it.
    pub fn payment_status(&self, order_id: Uuid) -> Option<String> {
        status(
            &mut self.db(Service::Payment),
            "select status from payment where order_id = $1",
            order_id,
        )
    }

    /// The status of an order's reservation; none if stock has not heard of it.
    pub fn reservation_status(&self, order_id: Uuid) -> Option<String> {
        status(
            &mut self.db(Service::Stock),
            "select status from reservation where order_id = $1",
            order_id,
        )
    }

    /// How many rows an outbox holds.
    ///
    /// # Panics
    /// When the service never ran.
    pub fn outbox_rows(&self, service: Service) -> i64 {
        count(&mut self.db(service), &format!("{}_outbox", service.name()))
    }

    /// Waits until a service's outbox is empty and readers see what left it: rows go when Kafka has decided, markers come
    /// later.
    ///
    /// # Panics
    /// When that takes too long, or the service never ran.
    pub fn wait_until_published(&self, service: Service) {
        wait::until(
            &format!(
                "{}'s outbox to be empty, and no open transaction",
                service.name()
            ),
            || self.outbox_rows(service) == 0 && self.ends_at_rest(written_by(service)).is_some(),
        );
    }

    /// How many records are parked, in all three databases.
    ///
    /// # Panics
    /// When a service never ran.
    pub fn parked(&self) -> i64 {
        Service::ALL
            .iter()
            .map(|service| count(&mut self.db(*service), "dead_letter"))
            .sum()
    }

    /// Every row of every table of a service, but for `consumer_offset` and `leadership`: as JSON, sorted, by table.
    ///
    /// # Panics
    /// When the service never ran.
    pub fn tables(&self, service: Service) -> BTreeMap<String, Vec<String>> {
        let mut db = self.db(service);
        let named = db.query(
            "select table_name::text from information_schema.tables where table_schema = 'public'",
            &[],
        );
        let names = named
            .expect("a schema")
            .into_iter()
            .map(|row| row.get::<_, String>(0));
        let names = names.filter(|name| !ASIDE.contains(&name.as_str()));
        names
            .map(|name| (name.clone(), rows(&mut db, &name)))
            .collect()
    }

    /// Waits until the outboxes are empty and every consumer has handled its topics to their ends.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_quiet(&self) {
        wait::until(
            "empty outboxes and consumers at the ends of their topics",
            || self.is_quiet(),
        );
    }

    /// Whether the outboxes are empty and every consumer has handled its topics to their ends.
    ///
    /// # Panics
    /// When a service never ran.
    pub fn is_quiet(&self) -> bool {
        let Some(ends) = self.ends_at_rest(&TOPICS) else {
            return false;
        };
        // in this order: what the handled records led to is stored, what is stored is published, and that was nothing
        Service::ALL
            .iter()
            .all(|service| self.is_at_the_ends(*service))
            && Service::ALL
                .iter()
                .all(|service| self.outbox_rows(*service) == 0)
            && self.ends_at_rest(&TOPICS) == Some(ends)
    }

    /// Whether a service has handled every record of the topics it reads, and none of them is in an open transaction.
    ///
    /// # Panics
    /// When the service never ran.
    pub fn is_at_the_ends(&self, service: Service) -> bool {
        let Some(records) = self.records_at_rest(read_by(service)) else {
            return false;
        };
        let offsets = self.offsets(service);
        let next = |seen: &Seen| {
            offsets
                .get(&(seen.topic.clone(), seen.partition))
                .copied()
                .unwrap_or(0)
        };
        records.iter().all(|seen| seen.offset < next(seen))
    }

    /// Waits until a service's consumers are past all that is in the topics it reads, also what holds no records: without a new
    /// one they have nothing to do.
    ///
    /// # Panics
    /// When that takes too long, or the service never ran.
    pub fn wait_until_idle(&self, service: Service) {
        wait::until(
            &format!("{}'s consumers to have nothing to do", service.name()),
            || {
                let Some(ends) = self.ends_at_rest(read_by(service)) else {
                    return false;
                };
                let offsets = self.offsets(service);
                ends.iter().all(|(place, end)| {
                    let bare = place
                        .topic
                        .strip_prefix(self.prefix())
                        .expect("ours")
                        .to_string();
                    offsets.get(&(bare, place.partition)).copied().unwrap_or(0) == *end
                })
            },
        );
    }

    /// A service's next offsets, by topic (without prefix) and partition.
    fn offsets(&self, service: Service) -> BTreeMap<(String, i32), i64> {
        let rows = self.db(service).query(
            "select topic, partition, next_offset from consumer_offset",
            &[],
        );
        let bare = |topic: String| topic.strip_prefix(self.prefix()).expect("ours").to_string();
        rows.expect("the table is there")
            .iter()
            .map(|row| ((bare(row.get(0)), row.get(1)), row.get(2)))
            .collect()
    }
}

/// The service that reads a topic.
///
/// # Panics
/// When there is no such topic.
pub fn reader_of(topic: &str) -> Service {
    let reads = |service: &Service| read_by(*service).contains(&topic);
    Service::ALL
        .into_iter()
        .find(reads)
        .unwrap_or_else(|| panic!("nobody reads {topic}"))
}

/// The topics that a service reads.
fn read_by(service: Service) -> &'static [&'static str] {
    match service {
        Service::Order => &[
            "payment.success",
            "payment.dlt",
            "stock.success",
            "stock.dlt",
        ],
        Service::Payment => &["payment", "payment.compensation"],
        Service::Stock => &["stock", "stock.compensation"],
    }
}

fn written_by(service: Service) -> &'static [&'static str] {
    match service {
        Service::Order => &[
            "payment",
            "payment.compensation",
            "stock",
            "stock.compensation",
        ],
        Service::Payment => &["payment.success", "payment.dlt"],
        Service::Stock => &["stock.success", "stock.dlt"],
    }
}

fn has_table(db: &mut Client, name: &str) -> bool {
    db.query_one("select to_regclass($1) is not null", &[&name])
        .expect("an answer")
        .get(0)
}

fn status(db: &mut Client, sql: &str, order_id: Uuid) -> Option<String> {
    db.query_opt(sql, &[&order_id])
        .expect("the table is there")
        .map(|row| row.get(0))
}

fn count(db: &mut Client, table: &str) -> i64 {
    db.query_one(&format!("select count(*) from {table}"), &[])
        .expect("the table is there")
        .get(0)
}

fn rows(db: &mut Client, table: &str) -> Vec<String> {
    let sql = format!("select to_jsonb(t) from {table} t order by to_jsonb(t)::text");
    db.query(&sql, &[])
        .expect("a table")
        .into_iter()
        .map(|row| row.get::<_, Value>(0).to_string())
        .collect()
}
