//! TLS and SASL on a real broker, with certificates made here: what is right works, what is wrong is reported, and no password is.

mod common;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use common::authority::Authority;
use common::{Broker, Line, free_port, record, unique, wait_until};
use kafka::{
    Admin, Config, Error, ErrorKind, Group, GroupConfig, Interrupt, Isolation, Mechanism, Producer,
    Sasl, Security, Tls,
};

/// It has what SASL has to escape.
const USER: &str = "ann=b,c";
const PASSWORD: &str = "right%pass word";
const WRONG: &str = "wrong-password";
/// How long the broker of this listener takes requests after a login.
const SHORT_MILLIS: u64 = 5_000;

/// A broker with a listener for every guard.
struct Guarded {
    broker: Broker,
    trusted: Tls,
    foreign: Tls,
    /// By name.
    ports: Vec<(&'static str, u16)>,
}

/// TLS; TLS by an expired certificate; TLS by one of another name; TLS for those with a certificate of their own; TLS and
/// SASL; SASL alone; TLS and SASL with sessions that end soon.
const LISTENERS: [(&str, &str); 7] = [
    ("TLS", "SSL"),
    ("EXPIRED", "SSL"),
    ("MISNAMED", "SSL"),
    ("MUTUAL", "SSL"),
    ("USERS", "SASL_SSL"),
    ("OPEN", "SASL_PLAINTEXT"),
    ("SHORT", "SASL_SSL"),
];

impl Guarded {
    fn shared() -> &'static Guarded {
        static SHARED: OnceLock<Guarded> = OnceLock::new();
        SHARED.get_or_init(Guarded::start)
    }

    fn start() -> Guarded {
        let ports: Vec<(&str, u16)> = LISTENERS
            .iter()
            .map(|(name, _)| (*name, free_port()))
            .collect();
        let mut authority = None;
        let broker = Broker::start_with(Line::Kafka4, |folder, settings| {
            let ours = authority.insert(Authority::new(folder, "ours"));
            listeners(settings, &ports) + &guards(ours)
        });
        let authority = authority.expect("made for the settings");
        let foreign = Authority::new(broker.folder(), "foreign");
        let tls = |authority: &Authority| Tls::new(Some(&authority.file()), None).unwrap();
        let guarded = Guarded {
            trusted: tls(&authority),
            foreign: tls(&foreign),
            broker,
            ports,
        };
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let login = format!("{mechanism}=[iterations=4096,password={PASSWORD}]");
            let user = [
                "--alter",
                "--entity-type",
                "users",
                "--entity-name",
                USER,
                "--add-config",
                &login,
            ];
            guarded.broker.tool("kafka.admin.ConfigCommand", &user, "");
        }
        guarded
    }

    fn config(&self, listener: &str, security: Security) -> Config {
        let (_, port) = self
            .ports
            .iter()
            .find(|(name, _)| *name == listener)
            .expect("a listener");
        let config = Config::new(vec![format!("127.0.0.1:{port}")], "test");
        // the first handshake warms the broker up, the first transaction has its internal topics made
        let patience = Duration::from_secs(20);
        Config {
            security,
            connect_timeout: patience,
            request_timeout: patience,
            ..config
        }
    }

    fn tls(&self) -> Security {
        Security {
            tls: Some(self.trusted.clone()),
            sasl: None,
        }
    }

    fn users(&self, mechanism: Mechanism, password: &str) -> Security {
        let sasl = Sasl {
            mechanism,
            username: USER.into(),
            password: password.into(),
        };
        Security {
            tls: Some(self.trusted.clone()),
            sasl: Some(sasl),
        }
    }
}

fn listeners(settings: &str, ports: &[(&str, u16)]) -> String {
    let mut changed = String::new();
    let addresses: String = ports
        .iter()
        .map(|(name, port)| format!(",{name}://127.0.0.1:{port}"))
        .collect();
    let protocols: String = LISTENERS
        .iter()
        .map(|(name, protocol)| format!(",{name}:{protocol}"))
        .collect();
    for line in settings.lines() {
        let more = match line.split('=').next() {
            Some("listeners" | "advertised.listeners") => addresses.as_str(),
            Some("listener.security.protocol.map") => protocols.as_str(),
            _ => "",
        };
        changed += &format!("{line}{more}\n");
    }
    changed
}

fn guards(authority: &Authority) -> String {
    let keystore = |listener: &str, file: &Path| {
        let own = format!("listener.name.{listener}.ssl.keystore");
        format!("{own}.type=PEM\n{own}.location={}\n", file.display())
    };
    let right = authority.sign("127.0.0.1", false).keystore;
    let mut settings: String = ["tls", "mutual", "users", "short"]
        .map(|listener| keystore(listener, &right))
        .concat();
    settings += &keystore("expired", &authority.sign("127.0.0.1", true).keystore);
    settings += &keystore("misnamed", &authority.sign("kafka.example", false).keystore);
    settings += &format!(
        "listener.name.mutual.ssl.truststore.type=PEM\nlistener.name.mutual.ssl.truststore.location={}\n",
        authority.file().display()
    );
    settings += "listener.name.mutual.ssl.client.auth=required\nsasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n";
    settings += "listener.name.open.sasl.enabled.mechanisms=PLAIN\n";
    let security = "org.apache.kafka.common.security";
    for listener in ["users", "open", "short"] {
        let own = format!("listener.name.{listener}");
        settings += &format!(
            "{own}.plain.sasl.jaas.config={security}.plain.PlainLoginModule required \"user_{USER}\"=\"{PASSWORD}\";\n"
        );
        for scram in ["scram-sha-256", "scram-sha-512"] {
            settings += &format!(
                "{own}.{scram}.sasl.jaas.config={security}.scram.ScramLoginModule required;\n"
            );
            settings +=
                &format!("listener.name.short.{scram}.connections.max.reauth.ms={SHORT_MILLIS}\n");
        }
    }
    settings
}

/// A transaction written and read back, by a group's member.
fn round(guarded: &Guarded, config: Config) {
    let partitions = guarded.broker.topic("guarded", 1);
    let topic = &partitions[0].topic;
    let mut producer = Producer::transactional(
        config.clone(),
        Interrupt::new(),
        unique("guarded-id"),
        Duration::from_secs(60),
    );
    producer.initialise().unwrap();
    let mut transaction = producer.begin().unwrap();
    // more than a TLS record, and than rustls buffers
    let large = "x".repeat(300_000);
    transaction
        .send(
            (0..3)
                .map(|n| record(topic, &format!("k{n}"), &large))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    transaction.commit().unwrap();
    let mut group = Group::new(
        config.clone(),
        Interrupt::new(),
        GroupConfig {
            session_timeout: Duration::from_secs(10),
            rebalance_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(1),
            ..GroupConfig::new(unique("guarded-group"), vec![topic.to_string()])
        },
    );
    let assigned = group.join().unwrap().partitions;
    let fetch = kafka::FetchConfig {
        isolation: Isolation::ReadCommitted,
        ..kafka::FetchConfig::default()
    };
    let mut consumer = kafka::Consumer::new(config, Interrupt::new(), fetch);
    consumer.assign(
        &assigned
            .into_iter()
            .map(|partition| (partition, 0))
            .collect::<Vec<_>>(),
    );
    let mut lengths = vec![];
    wait_until("the records", || {
        lengths.extend(
            common::records(consumer.poll().unwrap())
                .iter()
                .map(|record| common::value_of(record).len()),
        );
        lengths.len() >= 3
    });
    assert_eq!(lengths, [300_000; 3]);
    drop(group.leave());
}

#[test]
fn a_transaction_and_a_group_work_within_tls() {
    let guarded = Guarded::shared();
    round(guarded, guarded.config("TLS", guarded.tls()));
}

#[test]
fn a_client_with_a_certificate_of_its_own_is_let_in_and_one_without_is_not() {
    let guarded = Guarded::shared();
    let authority = Authority::new(guarded.broker.folder(), "clients");
    // the broker trusts `ours` only
    let stranger = authority.sign("client", false);
    let ours = guarded.broker.folder().join("ours");
    let (certificate, key) = (
        ours.join("127.0.0.1.certificate.pem"),
        ours.join("127.0.0.1.key.pem"),
    );
    let tls = |certificate: &Path, key: &Path| {
        Some(Tls::new(Some(&ours.join("authority.pem")), Some((certificate, key))).unwrap())
    };
    round(
        guarded,
        guarded.config(
            "MUTUAL",
            Security {
                tls: tls(&certificate, &key),
                sasl: None,
            },
        ),
    );
    for security in [
        guarded.tls(),
        Security {
            tls: tls(&stranger.certificate, &stranger.key),
            sasl: None,
        },
    ] {
        refusal(guarded.config("MUTUAL", security));
    }
}

#[test]
fn a_transaction_and_a_group_work_for_users_of_each_mechanism_within_tls_and_without() {
    let guarded = Guarded::shared();
    for mechanism in Mechanism::ALL {
        round(
            guarded,
            guarded.config("USERS", guarded.users(mechanism, PASSWORD)),
        );
    }
    let plainly = Security {
        tls: None,
        ..guarded.users(Mechanism::Plain, PASSWORD)
    };
    round(guarded, guarded.config("OPEN", plainly));
}

#[test]
fn a_session_that_the_broker_ends_is_a_non_event() {
    let guarded = Guarded::shared();
    let config = guarded.config("SHORT", guarded.users(Mechanism::ScramSha256, PASSWORD));
    let partitions = guarded.broker.topic("short", 1);
    let mut producer = Producer::transactional(
        config.clone(),
        Interrupt::new(),
        unique("short-id"),
        Duration::from_secs(60),
    );
    producer.initialise().unwrap();
    let expected = ["0", "1", "2"];
    for value in expected {
        let mut transaction = producer.begin().unwrap();
        transaction
            .send(vec![record(&partitions[0].topic, "k", value)])
            .unwrap();
        // the claim is about what comes after this time: requests that must not be sent twice
        std::thread::sleep(Duration::from_millis(SHORT_MILLIS + 200));
        transaction.commit().unwrap();
    }
    assert_eq!(guarded.broker.committed_values(&partitions, "2"), expected);
}

/// How a first call fails.
fn refusal(config: Config) -> Error {
    // what may pass is tried again for so long
    let config = Config {
        api_timeout: Duration::from_secs(20),
        ..config
    };
    let error = Admin::new(config, Interrupt::new())
        .describe_topics(&["none".to_owned()])
        .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(
        !text.contains(PASSWORD) && !text.contains(WRONG),
        "a password is printed: {text}"
    );
    error
}

#[test]
fn a_broker_that_is_not_trusted_or_does_not_trust_us_is_reported_and_not_tried_again() {
    let guarded = Guarded::shared();
    let foreign = Security {
        tls: Some(guarded.foreign.clone()),
        sasl: None,
    };
    let users = |mechanism, password| guarded.users(mechanism, password);
    let mut unknown = users(Mechanism::ScramSha512, PASSWORD);
    unknown.sasl.as_mut().unwrap().username = "nobody".into();
    let cases = [
        (
            "TLS",
            foreign,
            "TLS: invalid peer certificate: UnknownIssuer",
        ),
        (
            "EXPIRED",
            guarded.tls(),
            "TLS: invalid peer certificate: certificate expired",
        ),
        (
            "MISNAMED",
            guarded.tls(),
            "TLS: invalid peer certificate: certificate not valid for name \"127.0.0.1\"",
        ),
        (
            "USERS",
            users(Mechanism::Plain, WRONG),
            "the broker refuses user ann=b,c by PLAIN: Authentication failed",
        ),
        (
            "USERS",
            users(Mechanism::ScramSha256, WRONG),
            "the broker refuses user ann=b,c by SCRAM-SHA-256: Authentication failed",
        ),
        (
            "USERS",
            users(Mechanism::ScramSha512, WRONG),
            "the broker refuses user ann=b,c by SCRAM-SHA-512: Authentication failed",
        ),
        (
            "USERS",
            unknown,
            "the broker refuses user nobody by SCRAM-SHA-512: Authentication failed",
        ),
        (
            "OPEN",
            Security {
                tls: None,
                ..users(Mechanism::ScramSha256, PASSWORD)
            },
            "the broker takes no SCRAM-SHA-256, only PLAIN",
        ),
    ];
    for (listener, security, wanted) in cases {
        let error = refusal(guarded.config(listener, security));
        assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

#[test]
fn the_error_of_a_plain_client_at_a_guarded_port_and_of_a_guarded_one_at_a_plain_port_says_what_may_be_wrong()
 {
    let guarded = Guarded::shared();
    let plain = refusal(guarded.config("TLS", Security::default())).to_string();
    assert!(plain.contains("expect"), "{plain}");
    let unknown = refusal(guarded.config("OPEN", Security::default())).to_string();
    assert!(
        unknown.contains("does it expect TLS or a user (another security protocol)?"),
        "{unknown}"
    );
    let error = refusal(Config {
        security: guarded.tls(),
        ..guarded.broker.config()
    })
    .to_string();
    assert!(error.contains("does it speak TLS there?"), "{error}");
}

#[test]
fn files_that_can_not_be_used_are_named() {
    let folder = Guarded::shared().broker.folder().join("files");
    std::fs::create_dir_all(&folder).unwrap();
    let (missing, empty) = (folder.join("missing.pem"), folder.join("empty.pem"));
    std::fs::write(&empty, "no certificate\n").unwrap();
    for file in [&missing, &empty] {
        let error = Tls::new(Some(file), None).unwrap_err();
        assert!(
            error.starts_with(&format!("{}: ", file.display())),
            "{error}"
        );
    }
}
