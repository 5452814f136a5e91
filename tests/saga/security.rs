//! The wires: Kafka by TLS and SASL, PostgreSQL by TLS, with certificates made here. What is wrong with them ends a service at
//! its start, with a clear word and no password.

use std::path::Path;

use harness::authority::{Authority, Signed};
use harness::private::PrivateServers;
use harness::{Broker, Instance, Service, World, until};
use postgres::{Client, NoTls};

const PASSWORD: &str = "right-password";
const WRONG: &str = "wrong-password";

/// A Kafka for users within TLS, and a PostgreSQL with TLS.
struct Guarded {
    broker: Broker,
    servers: PrivateServers,
    authority: Authority,
    foreign: Authority,
}

impl Guarded {
    fn start(folder: &Path) -> Guarded {
        let (authority, foreign) = (
            Authority::new(folder, "ours"),
            Authority::new(folder, "foreign"),
        );
        let keystores = [("users", false), ("expired", true)].map(|(listener, expired)| {
            let keystore = authority.sign("127.0.0.1", expired).keystore;
            let own = format!("listener.name.{listener}");
            format!(
                "{own}.ssl.keystore.type=PEM\n{own}.ssl.keystore.location={}\n\
                 {own}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_shop=\"{PASSWORD}\";\n",
                keystore.display()
            )
        });
        let settings = keystores.concat() + "sasl.enabled.mechanisms=PLAIN\n";
        let broker =
            Broker::start_with(&[("USERS", "SASL_SSL"), ("EXPIRED", "SASL_SSL")], &settings);
        let guarded = Guarded {
            broker,
            servers: PrivateServers::start(),
            authority,
            foreign,
        };
        guarded.serve(&guarded.authority.sign("127.0.0.1", false));
        guarded
    }

    fn postgres(&self) -> Client {
        Client::connect(self.servers.setting("TEST_POSTGRES_URL"), NoTls).unwrap()
    }

    /// Has PostgreSQL show this certificate from now on.
    fn serve(&self, signed: &Signed) {
        let mut db = self.postgres();
        for (file, name) in [
            (&signed.certificate, "server.crt"),
            (&signed.key, "server.key"),
        ] {
            let text = std::fs::read_to_string(file).unwrap();
            // by the server itself: only its own user may own the key
            let write = format!(
                "copy (select unnest(string_to_array(trim($${text}$$, e'\\n'), e'\\n')))
                   to program 'umask 077; cat > server.new; mv server.new {name}'"
            );
            db.batch_execute(&write).unwrap();
        }
        db.batch_execute("alter system set ssl = on").unwrap();
        db.batch_execute("select pg_reload_conf()").unwrap();
        until("TLS in PostgreSQL", || {
            let mut fresh = self.postgres();
            fresh
                .query_one("select current_setting('ssl') = 'on'", &[])
                .unwrap()
                .get(0)
        });
    }

    fn world(&self, name: &str) -> World {
        let names = [
            "ORDER_DATABASE_URL",
            "PAYMENT_DATABASE_URL",
            "STOCK_DATABASE_URL",
        ];
        let mut settings = names
            .map(|name| (name, self.servers.setting(name)))
            .to_vec();
        let direct = self.broker.direct();
        settings.push(("KAFKA_BROKERS", &direct));
        World::with(name, &settings)
    }

    /// Settings of an instance behind these guards.
    fn settings(&self, world: &World, service: Service, ssl: &str) -> Vec<(String, String)> {
        let file = self.authority.file().display().to_string();
        let url = format!("{}?{ssl}", world.database_url(service));
        [
            (
                format!("{}_DATABASE_URL", service.name().to_uppercase()),
                url,
            ),
            ("KAFKA_BROKERS".into(), self.broker.guarded("USERS")),
            ("KAFKA_SECURITY_PROTOCOL".into(), "SASL_SSL".into()),
            ("KAFKA_SSL_CA_LOCATION".into(), file),
            ("KAFKA_SASL_MECHANISM".into(), "PLAIN".into()),
            ("KAFKA_SASL_USERNAME".into(), "shop".into()),
            ("KAFKA_SASL_PASSWORD".into(), PASSWORD.into()),
        ]
        .to_vec()
    }

    fn verify(&self, mode: &str) -> String {
        format!(
            "sslmode={mode}&sslrootcert={}",
            self.authority.file().display()
        )
    }
}

fn launch(world: &World, service: Service, settings: &[(String, String)]) -> Instance {
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    world.launch(service, &settings)
}

/// It ends at its start, says this, and no password.
fn assert_refused(instance: &Instance, wanted: &str, passwords: &[&str]) {
    assert_eq!(
        instance.process().exit().code(),
        Some(1),
        "{}",
        instance.log()
    );
    let log = instance.log();
    let last = log.lines().last().unwrap();
    assert!(
        last.contains("stopped: ") && last.contains(wanted),
        "{wanted:?} is missing in {last}"
    );
    assert!(
        last.contains("refuses us, or is not to be trusted") && last.contains("check the settings"),
        "{last}"
    );
    passwords
        .iter()
        .for_each(|password| assert!(!log.contains(password), "a password is logged: {log}"));
}

/// How many sessions of a service there are, and how many of them are within TLS.
fn sessions(world: &World, service: Service) -> (i64, i64) {
    let sql = "select count(*), count(*) filter (where s.ssl) from pg_stat_ssl s join pg_stat_activity a using (pid)
                where a.datname = current_database() and a.application_name like $1";
    let row = world
        .db(service)
        .query_one(sql, &[&format!("{}%", service.name())])
        .unwrap();
    (row.get(0), row.get(1))
}

#[test]
fn orders_settle_within_tls_for_a_user_of_kafka_and_what_is_wrong_with_the_wires_ends_a_service_at_its_start()
 {
    let folder = std::env::temp_dir().join(format!("saga-wires-{}", uuid::Uuid::new_v4().simple()));
    let guarded = Guarded::start(&folder);
    let world = guarded.world("wires");
    orders_settle(&guarded, &world);
    kafka_is_refused(&guarded, &world);
    postgres_is_refused(&guarded, &world);
    std::fs::remove_dir_all(folder).unwrap();
}

fn orders_settle(guarded: &Guarded, world: &World) {
    let instances = Service::ALL.map(|service| {
        launch(
            world,
            service,
            &guarded.settings(world, service, &guarded.verify("verify-full")),
        )
    });
    instances.iter().for_each(Instance::wait_until_ready);
    instances[1].api().put_balance("ann", 10);
    instances[2].api().put_quantity("tea", 10);
    let order_id = instances[0].api().place("ann", "tea", 3, 2);
    assert_eq!(
        instances[0].api().settled(order_id)["orderStatus"],
        "COMPLETED"
    );
    for service in Service::ALL {
        let (all, guarded) = sessions(world, service);
        assert!(
            all > 3 && all == guarded,
            "{guarded} of {all} sessions of {} are within TLS",
            service.name()
        );
    }
    for instance in &instances {
        assert!(!instance.log().contains(PASSWORD));
        assert!(instance.stop().success());
    }
}

fn kafka_is_refused(guarded: &Guarded, world: &World) {
    let cases = [
        (
            "KAFKA_SASL_PASSWORD",
            WRONG.to_string(),
            "the broker refuses user shop by PLAIN: Authentication failed",
        ),
        (
            "KAFKA_SASL_MECHANISM",
            "SCRAM-SHA-256".into(),
            "the broker takes no SCRAM-SHA-256, only PLAIN",
        ),
        (
            "KAFKA_SSL_CA_LOCATION",
            guarded.foreign.file().display().to_string(),
            "TLS: invalid peer certificate: UnknownIssuer",
        ),
        (
            "KAFKA_BROKERS",
            guarded.broker.guarded("EXPIRED"),
            "TLS: invalid peer certificate: certificate expired",
        ),
    ];
    for (name, value, wanted) in cases {
        let mut settings = guarded.settings(world, Service::Payment, "sslmode=require");
        settings.push((name.to_string(), value));
        let stopped = launch(world, Service::Payment, &settings);
        assert_refused(&stopped, wanted, &[PASSWORD, WRONG]);
        assert!(
            stopped.log().contains("stopped: Kafka refuses us"),
            "{}",
            stopped.log()
        );
    }
}

fn postgres_is_refused(guarded: &Guarded, world: &World) {
    let right = guarded.verify("verify-full");
    let foreign = format!(
        "sslmode=verify-ca&sslrootcert={}",
        guarded.foreign.file().display()
    );
    let plain = world.database_url(Service::Payment);
    let own = plain.split(['/', ':', '@']).nth(4).unwrap().to_string();
    let refused = |settings: &[(String, String)], wanted: &str| {
        let stopped = launch(world, Service::Payment, settings);
        assert_refused(&stopped, wanted, &[PASSWORD, WRONG, &own]);
        assert!(
            stopped.log().contains("stopped: PostgreSQL refuses us"),
            "{}",
            stopped.log()
        );
    };
    let payment = |ssl: &str| guarded.settings(world, Service::Payment, ssl);
    let mut wrong = payment(&right);
    wrong[0].1 = wrong[0].1.replacen(&own, WRONG, 1);
    refused(&wrong, "password authentication failed");
    refused(
        &payment(&foreign),
        "invalid peer certificate: UnknownIssuer",
    );
    guarded.serve(&guarded.authority.sign("127.0.0.1", true));
    refused(
        &payment(&guarded.verify("verify-ca")),
        "invalid peer certificate: certificate expired",
    );
    guarded.serve(&guarded.authority.sign("postgres.example", false));
    refused(
        &payment(&right),
        "invalid peer certificate: certificate not valid for name",
    );
    // which is nothing to verify-ca, nor to require without an authority
    for ssl in [guarded.verify("verify-ca"), "sslmode=require".into()] {
        let started = launch(world, Service::Payment, &payment(&ssl));
        started.wait_until_ready();
        assert!(started.stop().success());
    }
}
