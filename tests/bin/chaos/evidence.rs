//! The evidence: a history that triggers of our own keep, the tables, the topics. Plain SQL, nothing of the services.

use std::collections::{HashMap, HashSet};

use harness::{Seen, Service, World};
use postgres::Client;
use serde_json::Value;
use uuid::Uuid;

/// Kept in the transaction that stores the outbox row, and never deleted.
const OUTBOX_HISTORY: &str = "
    create table chaos_outbox_history
        (id bigint, stored_at timestamptz, order_id uuid, messages json, seen bigint generated always as identity);
    create function chaos_keep_outbox() returns trigger language plpgsql as $$ begin
        insert into chaos_outbox_history (id, stored_at, order_id, messages)
            values (new.id, new.stored_at, new.order_id, new.messages);
        return null;
    end $$;
    create trigger chaos_keep after insert on $OUTBOX for each row execute function chaos_keep_outbox();";

/// Every state that an order was in, in the transaction that brought it there.
const ORDER_HISTORY: &str = "
    create table chaos_order_history (seen bigint generated always as identity, order_id uuid,
        order_status text, payment_status text, stock_status text, at timestamptz default clock_timestamp());
    create function chaos_keep_order() returns trigger language plpgsql as $$ begin
        insert into chaos_order_history (order_id, order_status, payment_status, stock_status)
            values (new.order_id, new.order_status, new.payment_status, new.stock_status);
        return null;
    end $$;
    create trigger chaos_keep after insert or update on orders for each row execute function chaos_keep_order();";

/// Every move of a consumer's offset, in the transaction of the move.
const OFFSET_HISTORY: &str = "
    create table chaos_offset_history (topic text, partition integer, was bigint, becomes bigint);
    create function chaos_keep_offset() returns trigger language plpgsql as $$ begin
        insert into chaos_offset_history values (new.topic, new.partition, old.next_offset, new.next_offset);
        return null;
    end $$;
    create trigger chaos_keep after update on consumer_offset for each row execute function chaos_keep_offset();";

/// Every balance or quantity set by a call, in the transaction that set it: what was there, and what is.
const PUT_HISTORY: &str = "
    create table chaos_put_history (name text, was bigint, becomes bigint);
    create function chaos_keep_put() returns trigger language plpgsql as $$ begin
        insert into chaos_put_history values (new.$NAME, old.$LEFT, new.$LEFT);
        return null;
    end $$;
    create trigger chaos_keep after update on $TABLE for each row
        when (old.deposited <> new.deposited) execute function chaos_keep_put();";
const PUT_TABLES: [(Service, [&str; 3]); 2] = [
    (Service::Payment, ["account", "user_name", "balance"]),
    (Service::Stock, ["item", "item_name", "quantity"]),
];

/// Settled, as the contract defines it.
const SETTLED: &str = "order_status <> 'IN_PROGRESS' and payment_status not in ('READY', 'IN_PROGRESS', 'COMPENSATING')
    and stock_status not in ('READY', 'IN_PROGRESS', 'COMPENSATING')";

/// An order's row.
#[derive(Clone, Debug, Default)]
pub struct OrderRow {
    /// Its id.
    pub order_id: Uuid,
    /// User, item, price, quantity.
    pub asked: (String, String, i64, i64),
    /// The order's status, the payment side's, the stock side's.
    pub statuses: [String; 3],
    /// The code of its reason; empty if none.
    pub reason: String,
}

/// A payment's or a reservation's row.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Its status.
    pub status: String,
    /// User or item.
    pub name: Option<String>,
    /// Amount or quantity.
    pub amount: Option<i64>,
}

/// An account or item.
#[derive(Clone, Debug)]
pub struct Holding {
    /// User or item.
    pub name: String,
    /// Balance or quantity.
    pub left: i64,
    /// The sum of its COMPLETED payments or reservations.
    pub taken: i64,
}

/// A message of an outbox row.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The service whose outbox it was stored in.
    pub service: &'static str,
    /// The row, and the message's place in it: the stored order.
    pub place: (i64, usize),
    /// The row's stored time, in the form of `ce_time`.
    pub stored_at: String,
    /// The order.
    pub order_id: Uuid,
    /// The message id.
    pub id: String,
    /// The topic, without prefix.
    pub topic: String,
    /// `ce_type`.
    pub ce_type: String,
    /// The value.
    pub data: Value,
}

/// A moment by a database's clock.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// In the form of `ce_time`.
    pub text: String,
    /// In seconds since 1970.
    pub seconds: f64,
}

impl Moment {
    /// The present one.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn now(db: &mut Client) -> Result<Moment, postgres::Error> {
        let sql = r#"select to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                            extract(epoch from now())::float8"#;
        let row = db.query_one(sql, &[])?;
        Ok(Moment {
            text: row.get(0),
            seconds: row.get(1),
        })
    }
}

/// The tail that a database lost: what was committed between two moments may be gone, and our history of it too.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Whose database.
    pub service: &'static str,
    /// All that was committed before is there.
    pub since: Moment,
    /// All that is committed from then on is there.
    pub until: Moment,
}

impl Lost {
    /// Whether what was stored at this time may be gone.
    pub fn covers(&self, stored_at: &str) -> bool {
        *self.since.text <= *stored_at && *stored_at <= *self.until.text
    }
}

/// All there is to judge.
#[derive(Default)]
pub struct Evidence {
    /// All orders.
    pub orders: Vec<OrderRow>,
    /// The order that stands for a key.
    pub keys: HashMap<String, Uuid>,
    /// Each order's states, in their order: its status, the payment side's, the stock side's.
    pub states: HashMap<Uuid, Vec<[String; 3]>>,
    /// Payments and reservations by order.
    pub parts: [HashMap<Uuid, Part>; 2],
    /// Accounts and items.
    pub holdings: [Vec<Holding>; 2],
    /// All that was ever stored, by service in stored order.
    pub stored: Vec<Stored>,
    /// Every move of a consumer's offset: where, from, to.
    pub moves: Vec<(String, i64, i64)>,
    /// What a read-committed reader sees.
    pub records: Vec<Seen>,
    /// The rows that are still in an outbox.
    pub waiting: Vec<String>,
    /// The parked records.
    pub parked: Vec<Parked>,
    /// What was set by a call: service, name, what was there, what is.
    pub puts: Vec<(&'static str, String, i64, i64)>,
    /// Which tails were lost. Not found, but known to who took them away.
    pub lost: Vec<Lost>,
}

/// A parked record.
#[derive(Clone, Debug, Default)]
pub struct Parked {
    /// The service.
    pub service: &'static str,
    /// Why.
    pub cause: String,
    /// Its value.
    pub value: String,
    /// The order that its key names.
    pub order_id: Option<Uuid>,
    /// Whether it waits for a person.
    pub open: bool,
    /// Where it was read, and what is said of it.
    pub story: String,
}

/// Starts the history in all three databases. The services must have migrated them, and stored nothing yet.
///
/// # Errors
/// What PostgreSQL says.
pub fn begin_history(world: &World) -> Result<(), postgres::Error> {
    for service in Service::ALL {
        let outbox = format!("{}_outbox", service.name());
        world
            .db(service)
            .batch_execute(&OUTBOX_HISTORY.replace("$OUTBOX", &outbox))?;
        world.db(service).batch_execute(OFFSET_HISTORY)?;
    }
    for (service, [table, name, left]) in PUT_TABLES {
        let sql = PUT_HISTORY
            .replace("$TABLE", table)
            .replace("$NAME", name)
            .replace("$LEFT", left);
        world.db(service).batch_execute(&sql)?;
    }
    world.db(Service::Order).batch_execute(ORDER_HISTORY)
}

/// How many orders are not settled, and how many rows wait in the outboxes.
///
/// # Errors
/// What PostgreSQL says.
pub fn unfinished(world: &World) -> Result<(i64, i64), postgres::Error> {
    let sql = format!("select count(*) filter (where not ({SETTLED})) from orders");
    let orders = world.db(Service::Order).query_one(&sql, &[])?.get(0);
    Ok((
        orders,
        Service::ALL
            .iter()
            .map(|service| world.outbox_rows(*service))
            .sum(),
    ))
}

/// The ids of all orders.
///
/// # Errors
/// What PostgreSQL says.
pub fn order_ids(db: &mut Client) -> Result<HashSet<Uuid>, postgres::Error> {
    Ok(db
        .query("select order_id from orders", &[])?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

/// The order that stands for this key now.
///
/// # Errors
/// What PostgreSQL says.
pub fn standing(db: &mut Client, key: &str) -> Result<Option<Uuid>, postgres::Error> {
    let found = db.query_opt(
        "select order_id from idempotency_key where idempotency_key = $1",
        &[&key],
    )?;
    Ok(found.map(|row| row.get(0)))
}

/// Of the orders that were there and not settled at a moment (seconds since 1970): how many, and until when the last of
/// them took to settle.
///
/// # Errors
/// What PostgreSQL says.
pub fn settled_after(db: &mut Client, moment: f64) -> Result<(i64, f64), postgres::Error> {
    let sql = "with history as (select order_id, extract(epoch from min(at))::float8 as first,
                                    extract(epoch from max(at))::float8 as last
                               from chaos_order_history group by order_id)
               select count(*), coalesce(max(last) - $1, 0)::float8 from history where first <= $1 and last > $1";
    let row = db.query_one(sql, &[&moment])?;
    Ok((row.get(0), row.get(1)))
}

/// Reads everything.
///
/// # Errors
/// What PostgreSQL says.
pub fn read(world: &World) -> Result<Evidence, postgres::Error> {
    let mut all = Evidence {
        records: world.all_records(),
        ..Evidence::default()
    };
    let mut order = world.db(Service::Order);
    all.orders = orders(&mut order)?;
    let keys = order.query("select idempotency_key, order_id from idempotency_key", &[])?;
    all.keys = keys.iter().map(|row| (row.get(0), row.get(1))).collect();
    let sql = "select order_id, array[order_status, payment_status, stock_status] from chaos_order_history order by seen";
    for row in order.query(sql, &[])? {
        let statuses: Vec<String> = row.get(1);
        all.states
            .entry(row.get(0))
            .or_default()
            .push(statuses.try_into().expect("three"));
    }
    let (mut payment, mut stock) = (world.db(Service::Payment), world.db(Service::Stock));
    all.parts = [
        parts(
            &mut payment,
            "select order_id, status, user_name, amount from payment",
        )?,
        parts(
            &mut stock,
            "select order_id, status, item_name, quantity from reservation",
        )?,
    ];
    all.holdings = [accounts(&mut payment)?, items(&mut stock)?];
    for service in Service::ALL {
        let mut db = world.db(service);
        all.stored.extend(stored(&mut db, service.name())?);
        let moves =
            "select format('%s-%s of %s', topic, partition, current_database()), was, becomes
                       from chaos_offset_history";
        all.moves.extend(
            db.query(moves, &[])?
                .iter()
                .map(|row| (row.get(0), row.get(1), row.get(2))),
        );
        let waiting = format!(
            "select '{0} outbox row ' || id from {0}_outbox",
            service.name()
        );
        all.waiting.extend(texts(&mut db, &waiting)?);
        let parked = "select cause, coalesce(encode(record_value, 'escape'), ''), order_id, state = 'OPEN',
                             format('%s-%s@%s: %s', topic, partition, record_offset, detail) from dead_letter";
        let row = |row: &postgres::Row| Parked {
            service: service.name(),
            cause: row.get(0),
            value: row.get(1),
            order_id: row.get(2),
            open: row.get(3),
            story: row.get(4),
        };
        all.parked.extend(db.query(parked, &[])?.iter().map(row));
    }
    for (service, _) in PUT_TABLES {
        let rows = world
            .db(service)
            .query("select name, was, becomes from chaos_put_history", &[])?;
        all.puts.extend(
            rows.iter()
                .map(|row| (service.name(), row.get(0), row.get(1), row.get(2))),
        );
    }
    Ok(all)
}

fn texts(db: &mut Client, sql: &str) -> Result<Vec<String>, postgres::Error> {
    Ok(db.query(sql, &[])?.iter().map(|row| row.get(0)).collect())
}

fn orders(db: &mut Client) -> Result<Vec<OrderRow>, postgres::Error> {
    let sql = "select order_id, user_name, item_name, price, quantity, order_status, payment_status, stock_status,
                      coalesce(reason_code, '') from orders";
    let row = |row: &postgres::Row| OrderRow {
        order_id: row.get(0),
        asked: (row.get(1), row.get(2), row.get(3), row.get(4)),
        statuses: [row.get(5), row.get(6), row.get(7)],
        reason: row.get(8),
    };
    Ok(db.query(sql, &[])?.iter().map(row).collect())
}

fn parts(db: &mut Client, sql: &str) -> Result<HashMap<Uuid, Part>, postgres::Error> {
    let part = |row: &postgres::Row| Part {
        status: row.get(1),
        name: row.get(2),
        amount: row.get(3),
    };
    Ok(db
        .query(sql, &[])?
        .iter()
        .map(|row| (row.get(0), part(row)))
        .collect())
}

/// Accounts as one snapshot.
///
/// # Errors
/// What PostgreSQL says.
pub fn accounts(db: &mut Client) -> Result<Vec<Holding>, postgres::Error> {
    let sql = "select user_name, balance, coalesce((select sum(amount) from payment p
                   where p.user_name = a.user_name and status = 'COMPLETED'), 0)::bigint from account a";
    holdings(db, sql)
}

/// Items as one snapshot.
///
/// # Errors
/// What PostgreSQL says.
pub fn items(db: &mut Client) -> Result<Vec<Holding>, postgres::Error> {
    let sql = "select item_name, quantity, coalesce((select sum(quantity) from reservation r
                   where r.item_name = i.item_name and status = 'COMPLETED'), 0)::bigint from item i";
    holdings(db, sql)
}

fn holdings(db: &mut Client, sql: &str) -> Result<Vec<Holding>, postgres::Error> {
    let holding = |row: &postgres::Row| Holding {
        name: row.get(0),
        left: row.get(1),
        taken: row.get(2),
    };
    Ok(db.query(sql, &[])?.iter().map(holding).collect())
}

fn stored(db: &mut Client, service: &'static str) -> Result<Vec<Stored>, postgres::Error> {
    let sql =
        "select id, to_char(stored_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), order_id, messages
                 from chaos_outbox_history order by id, seen";
    let mut all = Vec::new();
    for row in db.query(sql, &[])? {
        let messages: Value = row.get(3);
        for (number, message) in messages.as_array().into_iter().flatten().enumerate() {
            let text = |name: &str| message[name].as_str().unwrap_or_default().to_string();
            all.push(Stored {
                service,
                place: (row.get(0), number),
                stored_at: row.get(1),
                order_id: row.get(2),
                id: text("id"),
                topic: text("topic"),
                ce_type: text("type"),
                data: message["data"].clone(),
            });
        }
    }
    Ok(all)
}
