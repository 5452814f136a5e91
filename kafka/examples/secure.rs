//! Shows the brokers of a cluster behind TLS with users by SCRAM:
//! `cargo run -p kafka --example secure -- broker:9093 ca.pem USER PASSWORD`.

use std::path::PathBuf;

use kafka::{Admin, Config, Error, Interrupt, Mechanism, Result, Sasl, Security, Tls};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| {
        arguments
            .next()
            .ok_or_else(|| Error::Invalid(format!("{what} is missing")))
    };
    let (broker, authorities) = (
        next("the broker")?,
        PathBuf::from(next("the file of the authorities")?),
    );
    let (username, password) = (next("the user")?, next("the password")?);
    let tls = Tls::new(Some(&authorities), None).map_err(Error::Invalid)?;
    let sasl = Sasl {
        mechanism: Mechanism::ScramSha512,
        username,
        password,
    };
    let config = Config::new(vec![broker], "example").with_security(Security {
        tls: Some(tls),
        sasl: Some(sasl),
    });
    println!("{:?}", Admin::new(config, Interrupt::new()).brokers()?);
    Ok(())
}
