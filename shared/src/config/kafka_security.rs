//! What guards the connections to Kafka, under the usual names of its clients' settings.

use std::path::PathBuf;

use kafka::{Mechanism, Sasl, Security, Tls};

use super::reader::Reader;

const PROTOCOLS: [(&str, bool, bool); 4] = [
    ("PLAINTEXT", false, false),
    ("SSL", true, false),
    ("SASL_PLAINTEXT", false, true),
    ("SASL_SSL", true, true),
];
const OF_TLS: [(&str, &str, &str); 3] = [
    (
        "KAFKA_SSL_CA_LOCATION",
        "a PEM file",
        "certificate authorities to trust; without it the system's",
    ),
    (
        "KAFKA_SSL_CERTIFICATE_LOCATION",
        "a PEM file",
        "certificate for brokers that ask for one",
    ),
    ("KAFKA_SSL_KEY_LOCATION", "a PEM file", "its key"),
];
const OF_SASL: [(&str, &str, &str); 3] = [
    (
        "KAFKA_SASL_MECHANISM",
        "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
        "how the user is authenticated",
    ),
    ("KAFKA_SASL_USERNAME", "a name", "user of Kafka"),
    ("KAFKA_SASL_PASSWORD", "a text", "the user's password"),
];

/// The values of three settings, each with its name.
type Group = [(&'static str, Option<String>); 3];

impl Reader<'_> {
    /// `KAFKA_SECURITY_PROTOCOL` and what belongs to it. A setting that would be ignored is a mistake.
    pub(super) fn kafka_security(&mut self) -> Security {
        let (name, takes) = (
            "KAFKA_SECURITY_PROTOCOL",
            "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
        );
        let protocol = self.value(
            name,
            "PLAINTEXT",
            takes,
            "what guards the connections to Kafka",
        );
        let (of_tls, of_sasl) = (self.group(OF_TLS), self.group(OF_SASL));
        let Some((_, tls, sasl)) = PROTOCOLS.iter().find(|(name, ..)| *name == protocol) else {
            self.refuse(name, &protocol, takes);
            return Security::default();
        };
        for (group, is_used, with) in [
            (&of_tls, *tls, "SSL or SASL_SSL"),
            (&of_sasl, *sasl, "SASL_SSL or SASL_PLAINTEXT"),
        ] {
            for (name, _) in group
                .iter()
                .filter(|(_, value)| !is_used && value.is_some())
            {
                self.errors.push(format!(
                    "{name}: is of no use with KAFKA_SECURITY_PROTOCOL={protocol}: leave it out, or set that to {with}"
                ));
            }
        }
        Security {
            tls: tls.then(|| self.tls(of_tls)).flatten(),
            sasl: sasl.then(|| self.sasl(of_sasl)).flatten(),
        }
    }

    fn group(&mut self, settings: [(&'static str, &str, &'static str); 3]) -> Group {
        settings.map(|(name, takes, meaning)| (name, self.optional(name, takes, meaning)))
    }

    fn tls(&mut self, group: Group) -> Option<Tls> {
        let [authorities, certificate, key] = group.map(|(_, value)| value.map(PathBuf::from));
        let names = OF_TLS.map(|(name, ..)| name);
        if certificate.is_some() != key.is_some() {
            self.errors.push(format!(
                "{} and {}: set both or neither",
                names[1], names[2]
            ));
            return None;
        }
        let own = certificate.as_deref().zip(key.as_deref());
        let why = match Tls::new(authorities.as_deref(), own) {
            Ok(tls) => return Some(tls),
            Err(why) => why,
        };
        // it names the file; without one it is the system's authorities that are missing
        let files = [&authorities, &certificate, &key];
        let at_fault = files.iter().position(|file| {
            file.as_ref()
                .is_some_and(|file| why.contains(&*file.to_string_lossy()))
        });
        let name = names[at_fault.unwrap_or(0)];
        self.errors.push(format!("{name}: {why}"));
        None
    }

    fn sasl(&mut self, group: Group) -> Option<Sasl> {
        let [mechanism, username, password] = group.map(|(name, value)| {
            if value.is_none() {
                self.errors.push(format!(
                    "{name}: must be set with KAFKA_SECURITY_PROTOCOL=SASL_…"
                ));
            }
            value
        });
        let (name, username, password) = (mechanism?, username?, password?);
        let Some(mechanism) = Mechanism::ALL
            .into_iter()
            .find(|known| known.name() == name)
        else {
            let (setting, takes, _) = OF_SASL[0];
            self.refuse(setting, &name, takes);
            return None;
        };
        Some(Sasl {
            mechanism,
            username,
            password,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::config;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, String> {
        config(pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn a_user_needs_all_three_settings_and_is_shown_without_the_password() {
        let all = [
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
            ("KAFKA_SASL_USERNAME", "ann"),
            ("KAFKA_SASL_PASSWORD", "secret"),
        ];
        let config = read(&all).unwrap();
        assert!(
            format!("{config:?}").contains("SCRAM-SHA-512 as ann")
                && !format!("{config:?}").contains("secret")
        );
        for missing in 1..4 {
            let some: Vec<_> = all
                .iter()
                .filter(|pair| **pair != all[missing])
                .copied()
                .collect();
            assert!(
                read(&some)
                    .unwrap_err()
                    .contains(&format!("{}: must be set", all[missing].0))
            );
        }
    }

    #[test]
    fn what_would_be_ignored_or_is_unknown_is_named() {
        let cases: [(&[(&str, &str)], &str); 5] = [
            (
                &[("KAFKA_SASL_USERNAME", "ann")],
                "KAFKA_SASL_USERNAME: is of no use with KAFKA_SECURITY_PROTOCOL=PLAINTEXT",
            ),
            (
                &[("KAFKA_SSL_CA_LOCATION", "/ca.pem")],
                "KAFKA_SSL_CA_LOCATION: is of no use",
            ),
            (
                &[("KAFKA_SECURITY_PROTOCOL", "TLS")],
                "KAFKA_SECURITY_PROTOCOL=\"TLS\": must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
            ),
            (
                &[
                    ("KAFKA_SECURITY_PROTOCOL", "SSL"),
                    ("KAFKA_SSL_KEY_LOCATION", "/key.pem"),
                ],
                "set both or neither",
            ),
            (
                &[
                    ("KAFKA_SECURITY_PROTOCOL", "SSL"),
                    ("KAFKA_SSL_CA_LOCATION", "/no/such.pem"),
                ],
                "KAFKA_SSL_CA_LOCATION: /no/such.pem: ",
            ),
        ];
        for (settings, wanted) in cases {
            let error = read(settings).unwrap_err();
            assert!(error.contains(wanted), "{wanted} is missing in {error}");
        }
    }
}
