//! Eight situations, each the one that a mechanism is there for, brought about step by step. With the mechanism in place
//! nothing is wrong afterwards; with it turned off (binaries built with tests/sabotage.patch) the named claim must break.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::locks::end_sessions;
use harness::proxy::kafka_request;
use harness::{Api, Broker, Instance, Proxy, Replicated, Seen, Service, Signal, World, env, until};
use postgres::Client;

use crate::evidence::{Lost, Moment};
use crate::flood;
use crate::load::{self, Asked, End, Heard, PutIn};

/// Kafka's numbers of the requests that begin a transaction, and that end it.
const ADD_PARTITIONS_TO_TXN: i16 = 24;
const END_TXN: i16 = 26;
/// For what a turned off mechanism leaves undone, before it is judged as it is.
/// A killed consumer alone costs its session and a rebalance; a flood that nobody refuses is settled or given up meanwhile.
const QUIET_LIMIT: Duration = Duration::from_secs(90);
/// Short, so that a flood of some seconds exceeds it.
const DEADLINE: &str = "6s";
/// How long the flood lasts: what is accepted at its begin would meet its deadline before its end.
const FLOOD: Duration = Duration::from_secs(8);

/// So long a session's calls are held at a time: shorter than PostgreSQL lets it be idle (5 s).
const HELD: Duration = Duration::from_secs(2);

/// A situation.
pub struct Scenario {
    /// The mechanism it is about, as `SABOTAGE` names it.
    pub mechanism: &'static str,
    /// A part of the claim that breaks without it.
    pub breaks: &'static str,
    /// Whether load alone is there to delay an order.
    pub is_load_alone: bool,
    run: fn(&mut Play),
}

/// All of them.
pub static ALL: [Scenario; 8] = [
    scenario("natural-key", "money is conserved", requests_read_again),
    scenario("offset-cas", "offset never goes back", thawed_consumer),
    scenario(
        "pair",
        "both messages of an order or neither",
        killed_at_the_commit,
    ),
    scenario("fencing", "on its topic exactly once", thawed_leader),
    scenario(
        "position",
        "on its topic exactly once",
        killed_before_the_delete,
    ),
    scenario(
        "append-lock",
        "in stored order on each topic-partition",
        stalled_writer,
    ),
    Scenario {
        is_load_alone: true,
        ..scenario(
            "admission",
            "fails by its deadline because of load",
            flooded,
        )
    },
    scenario(
        "repair",
        "nothing is kept for an order that order does not have",
        lost_orders,
    ),
];

const fn scenario(mechanism: &'static str, breaks: &'static str, run: fn(&mut Play)) -> Scenario {
    Scenario {
        mechanism,
        breaks,
        is_load_alone: false,
        run,
    }
}

/// A scenario under way: the system, and what its client asked and heard.
pub struct Play<'a> {
    /// Databases, topics, processes.
    pub world: World,
    broker: &'a Broker,
    /// What was asked for.
    pub asked: Vec<Asked>,
    /// What was heard.
    pub heard: Vec<Heard>,
    /// Looks at the requests at moments when no transaction was open.
    pub looks: Vec<Vec<Seen>>,
    /// The tails that were lost.
    pub lost: Vec<Lost>,
    /// Where order's database is, if its tail shall be lost.
    replicated: Option<Replicated>,
}

impl Scenario {
    /// Plays it on this broker by these binaries; `off`: without its mechanism.
    ///
    /// # Panics
    /// When a step does not come about.
    pub fn play<'a>(&self, broker: &'a Broker, binaries: &Path, off: bool) -> Play<'a> {
        let sabotage = if off { self.mechanism } else { "" };
        // two consumers share only what has several partitions
        let partitions = if self.mechanism == "offset-cas" {
            "3"
        } else {
            "1"
        };
        let mut settings = vec![
            ("KAFKA_BROKERS", broker.direct()),
            ("TOPIC_PARTITIONS", partitions.into()),
            ("SABOTAGE", sabotage.into()),
        ];
        settings.extend(
            self.is_load_alone
                .then(|| ("ORDER_DEADLINE", DEADLINE.into())),
        );
        let settings: Vec<(&str, &str)> = settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let mut world = World::with("scenario", &settings).run_by(binaries);
        let replicated = (self.mechanism == "repair").then(Replicated::start);
        if let Some(replicated) = &replicated {
            world = world.on(Service::Order, replicated);
        }
        let (asked, heard, looks, lost) = Default::default();
        let mut play = Play {
            world,
            broker,
            asked,
            heard,
            looks,
            lost,
            replicated,
        };
        (self.run)(&mut play);
        play.settle();
        play
    }
}

/// What is put in, in every scenario.
pub fn put_in() -> PutIn {
    let plenty = |name: String| (name, load::PLENTY);
    let of_the_flood = |what: &str| {
        (0..4)
            .map(|number| format!("{what}-{number}"))
            .collect::<Vec<_>>()
    };
    let [accounts, items] =
        [(["slow", "fast"].as_slice(), "user"), (&["tea"], "item")].map(|(names, flood)| {
            names
                .iter()
                .map(|name| name.to_string())
                .chain(of_the_flood(flood))
                .map(plenty)
                .collect()
        });
    PutIn { accounts, items }
}

impl Play<'_> {
    /// One instance of each service, the order's with these settings; the history begins.
    fn start(&self, of_order: &[(&str, &str)]) -> [Instance; 3] {
        let order = self.world.start_with(Service::Order, of_order);
        let instances = [
            order,
            self.world.start(Service::Payment),
            self.world.start(Service::Stock),
        ];
        crate::evidence::begin_history(&self.world).expect("the databases are there");
        let PutIn { accounts, items } = put_in();
        accounts
            .iter()
            .for_each(|(user, balance)| instances[1].api().put_balance(user, *balance));
        items
            .iter()
            .for_each(|(item, quantity)| instances[2].api().put_quantity(item, *quantity));
        instances
            .iter()
            .for_each(|instance| instance.wait_for_log("leading: producer"));
        instances
    }

    fn place(&mut self, api: &Api, user: &str) {
        let asked = asked(self.asked.len(), user);
        self.heard.push(ask_once(api, &asked));
        self.asked.push(asked);
    }

    fn place_and_settle(&mut self, api: &Api, count: usize) {
        let from = self.heard.len();
        (0..count).for_each(|_| self.place(api, "fast"));
        let ids = self.heard[from..].iter().flat_map(|heard| &heard.accepted);
        ids.for_each(|order_id| drop(api.settled(*order_id)));
    }

    /// Until nothing is left to happen.
    fn settle(&mut self) {
        let begun = Instant::now();
        while !self.world.is_quiet() && begun.elapsed() < QUIET_LIMIT {
            std::thread::sleep(Duration::from_millis(100));
        }
        self.look();
    }

    fn look(&mut self) {
        let mut seen = None;
        until("a moment without an open transaction", || {
            seen = self.world.records_at_rest(&["payment", "stock"]);
            seen.is_some()
        });
        self.looks.extend(seen);
    }
}

fn asked(number: usize, user: &str) -> Asked {
    let (key, user, item) = (format!("scenario-{number}"), user.into(), "tea".into());
    Asked {
        key,
        user,
        item,
        price: 3,
        quantity: 2,
        end: End::Completed,
        gives_up: false,
        repeats: false,
    }
}

fn ask_once(api: &Api, asked: &Asked) -> Heard {
    let mut heard = Heard::default();
    load::ask(api, asked, &mut heard);
    heard
}

/// All requests are delivered once more.
fn requests_read_again(play: &mut Play) {
    let [order, payment, _stock] = play.start(&[]);
    play.place_and_settle(order.api(), 5);
    assert!(payment.stop().success());
    play.world
        .db(Service::Payment)
        .batch_execute("delete from consumer_offset")
        .expect("rows of ours to delete");
    let _payment = play.world.start(Service::Payment);
    until("the requests to be read again", || {
        play.world.is_at_the_ends(Service::Payment)
    });
}

/// A consumer is frozen between its poll and its transaction until another one has long gone on.
fn thawed_consumer(play: &mut Play) {
    let [order, payment, _stock] = play.start(&[]);
    let proxy = Proxy::to(&env::postgres_address());
    let url = play.world.database_url_at(Service::Payment, &proxy.addr());
    let frozen = play
        .world
        .start_with(Service::Payment, &[("PAYMENT_DATABASE_URL", &url)]);
    let own = format!("{}payment-", play.world.prefix());
    until("a share of the requests", || {
        last_join(&frozen).is_some_and(|line| line.contains(&own))
    });
    // until its own share gets one, and no longer: it must be frozen before PostgreSQL ends its idle sessions, or else it
    // would wait for new ones behind the proxy, and end itself when it is thawed; where another of its calls is caught, once more
    let mut held: Option<Instant> = None;
    until("it to take up a request", || {
        match held {
            Some(since) if since.elapsed() > HELD => {
                proxy.resume();
                held = None;
            }
            Some(_) => {}
            None => {
                proxy.hold_requests();
                held = Some(Instant::now());
            }
        }
        play.place(order.api(), "fast");
        proxy.keeps(b"fast") // the user's name, as a batch begins with the balances that its requests need
    });
    frozen.signal(Signal::STOP);
    until("the other consumer to handle them", || {
        play.world.is_at_the_ends(Service::Payment)
    });
    play.place_and_settle(order.api(), 60);
    let joined = frozen.log().matches("joined the group").count();
    proxy.resume();
    frozen.signal(Signal::CONT);
    until("it to join again", || {
        frozen.log().matches("joined the group").count() > joined
    });
    drop(payment);
}

fn last_join(instance: &Instance) -> Option<String> {
    instance
        .log()
        .lines()
        .rev()
        .find(|line| line.contains("joined the group"))
        .map(str::to_string)
}

/// The relay is killed when Kafka has committed, before it hears of it.
fn killed_at_the_commit(play: &mut Play) {
    let [order, ..] = play.start(&[("KAFKA_BROKERS", &play.broker.proxied())]);
    play.broker
        .proxy
        .hold_after(kafka_request(END_TXN, "order-relay"));
    play.place(order.api(), "fast");
    until("the commit", || play.broker.proxy.holds_the_answer());
    order.signal(Signal::KILL);
    play.look();
    play.broker.proxy.resume();
    play.world.start(Service::Order);
}

/// A leader is frozen inside of its transaction until its successor has published the same rows.
fn thawed_leader(play: &mut Play) {
    let [frozen, ..] = play.start(&[("KAFKA_BROKERS", &play.broker.proxied())]);
    let successor = play.world.start(Service::Order);
    // before its position is written: no successor could read past one whose fate is open
    play.broker
        .proxy
        .hold_after(kafka_request(ADD_PARTITIONS_TO_TXN, "order-relay"));
    play.place(frozen.api(), "fast");
    until("the transaction to begin", || {
        play.broker.proxy.holds_the_answer()
    });
    frozen.signal(Signal::STOP);
    successor.wait_for_log("leading: producer");
    until("the successor to publish", || {
        play.world.outbox_rows(Service::Order) == 0
    });
    play.broker.proxy.resume();
    frozen.signal(Signal::CONT);
    until("the thawed leader to be refused, or not", || {
        frozen.log().contains("a relay turn failed") || play.world.records("payment").len() > 1
    });
}

/// The relay is killed between Kafka's commit and the delete of the rows.
fn killed_before_the_delete(play: &mut Play) {
    let [order, ..] = play.start(&[]);
    let (mut blocker, mut watch) = (play.world.db(Service::Order), play.world.db(Service::Order));
    // the transaction that deletes the rows also writes the deadline
    blocker
        .batch_execute("begin; lock table deadline in share mode")
        .expect("locked");
    play.place(order.api(), "fast");
    until("the delete to be blocked", || {
        waiting(&mut watch, "order-relay") == 1
    });
    order.signal(Signal::KILL);
    end_sessions(&mut watch, "order-relay");
    blocker.batch_execute("rollback").expect("released");
    play.world.start(Service::Order);
}

/// A writer stands still between drawing its row's id and its commit, while another one stores.
fn stalled_writer(play: &mut Play) {
    let [order, ..] = play.start(&[]);
    let other = play.world.start(Service::Order);
    let (mut gate, mut watch) = (play.world.db(Service::Order), play.world.db(Service::Order));
    gate.batch_execute(
        "create function stall() returns trigger language plpgsql as
             $$ begin perform pg_advisory_xact_lock(4711); return null; end $$;
         create trigger stall after insert on order_outbox for each row
             when (new.messages::text like '%\"slow\"%') execute function stall();
         select pg_advisory_lock(4711)",
    )
    .expect("a gate");
    let (slow, fast) = (asked(0, "slow"), asked(1, "fast"));
    let heard = std::thread::scope(|scope| {
        let first = scope.spawn(|| ask_once(order.api(), &slow));
        until("the first writer to stand still", || {
            waiting(&mut watch, "order%") == 1
        });
        let second = scope.spawn(|| ask_once(other.api(), &fast));
        until("the second one to wait, or to be published", || {
            waiting(&mut watch, "order%") == 2 || !play.world.records("payment").is_empty()
        });
        gate.batch_execute("select pg_advisory_unlock(4711)")
            .expect("the gate was ours");
        [first, second].map(|client| client.join().expect("no client panics"))
    });
    play.asked = vec![slow, fast];
    play.heard = heard.to_vec();
}

/// Many more orders come than can be settled.
fn flooded(play: &mut Play) {
    let [order, ..] = play.start(&[]);
    flood::limit_capacity(&play.world).expect("payment's database is there");
    // what it can do it must have seen, and for longer than a moment
    play.place_and_settle(order.api(), 20);
    let flooded = flood::flood("scenario", &[order.port()], FLOOD, 1);
    for (asked, mut heard) in flooded {
        if heard.given_up.is_some() {
            let standing =
                crate::evidence::standing(&mut play.world.db(Service::Order), &asked.key);
            heard.given_up = Some(standing.expect("order's database is there"));
            load::ask_until_accepted(order.api(), &asked, &mut heard);
        }
        play.asked.push(asked);
        play.heard.push(heard);
    }
}

/// Order's database is lost when the participants have done their part of orders that its standby has not heard of.
fn lost_orders(play: &mut Play) {
    let [order, payment, stock] = play.start(&[]);
    play.place_and_settle(order.api(), 3);
    let replicated = play.replicated.as_ref().expect("of this scenario");
    let database = play.world.database(Service::Order);
    let now = || Moment::now(&mut replicated.db(&database)).expect("a primary that answers");
    let since = now();
    replicated.lag();
    let from = play.heard.len();
    let placed: Vec<(Asked, Heard)> = (from..from + 5)
        .map(|number| {
            let asked = asked(number, "fast");
            let heard = ask_once(order.api(), &asked);
            (asked, heard)
        })
        .collect();
    for order_id in placed.iter().flat_map(|(_, heard)| &heard.accepted) {
        let done = |api: &Api, path: String| {
            api.call("GET", &path, &[], None)
                .is_ok_and(|answer| answer.status == 200)
        };
        until("the participants to do their part", || {
            done(payment.api(), format!("/payments/{order_id}"))
                && done(stock.api(), format!("/reservations/{order_id}"))
        });
    }
    replicated.lose_tail();
    play.lost.push(Lost {
        service: "order",
        since,
        until: now(),
    });
    let (asked, heard): (Vec<Asked>, Vec<Heard>) = placed.into_iter().unzip();
    play.asked.extend(asked);
    play.heard.extend(heard);
    until("order to answer again", || {
        order
            .api()
            .call("GET", "/orders", &[], None)
            .is_ok_and(|answer| answer.status == 200)
    });
}

/// How many sessions of this name wait for a lock.
fn waiting(db: &mut Client, name: &str) -> i64 {
    let sql = "select count(*) from pg_stat_activity where datname = current_database()
                and wait_event_type = 'Lock' and application_name like $1";
    db.query_one(sql, &[&name]).expect("an answer").get(0)
}
