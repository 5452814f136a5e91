//! PostgreSQL's `sslmode` and `sslrootcert` as libpq means them: what they ask of a server, and connections that ask it.
//! (PostgreSQL, "SSL Support" of libpq; the `postgres` crate knows the first half of the modes only.)

use std::path::Path;
use std::sync::Arc;

use postgres::config::{SslMode, TargetSessionAttrs};
use postgres::{Client, NoTls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How much a connection must be guarded; each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Mode {
    /// Never TLS.
    Disable,
    /// TLS where the server takes nothing else.
    Allow,
    /// TLS where the server has it.
    Prefer,
    /// Nothing but TLS.
    Require,
    /// The certificate's chain must end at a trusted authority.
    VerifyCa,
    /// And it must be the certificate of the host that was asked for.
    VerifyFull,
}

names! { Mode:
    Disable = "disable", Allow = "allow", Prefer = "prefer", Require = "require",
    VerifyCa = "verify-ca", VerifyFull = "verify-full",
}

/// A database, and how it is reached.
#[derive(Clone)]
pub struct Target {
    /// All settings but those of TLS.
    pub config: postgres::Config,
    mode: Mode,
    tls: Option<MakeRustlsConnect>,
}

impl Target {
    /// Reads a URL, or libpq's `key=value` form. Without `sslmode`, "prefer".
    ///
    /// # Errors
    /// What is wrong with it; the URL itself, which may hold a password, is not repeated.
    pub fn parse(url: &str) -> Result<Target, String> {
        require_form(url)?;
        let (rest, mode, roots) = take_out(url)?;
        let mut config: postgres::Config = rest
            .parse()
            .map_err(|error: postgres::Error| unreadable(&error))?;
        let mode = match &roots {
            Some(file) if file == "system" => Mode::VerifyFull,
            // libpq: "if a root CA file exists, the behavior of sslmode=require will be the same as that of verify-ca"
            Some(_) if mode == Mode::Require => Mode::VerifyCa,
            _ => mode,
        };
        config.ssl_mode(if mode >= Mode::Require {
            SslMode::Require
        } else {
            SslMode::Prefer
        });
        // of several hosts the one that is a standby today is not meant
        if config.get_hosts().len() > 1
            && config.get_target_session_attrs() == TargetSessionAttrs::Any
        {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let tls = (mode != Mode::Disable)
            .then(|| client(mode, roots.as_deref()))
            .transpose()?;
        Ok(Target {
            config,
            mode,
            tls: tls.map(MakeRustlsConnect::new),
        })
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The server's and the connection's; a certificate that is not to be trusted.
    pub fn connect(&self) -> Result<Client, postgres::Error> {
        match &self.tls {
            None => self.config.connect(NoTls),
            Some(tls) if self.mode == Mode::Allow => {
                let plain = self
                    .config
                    .clone()
                    .ssl_mode(SslMode::Disable)
                    .connect(NoTls);
                plain.or_else(|_| {
                    self.config
                        .clone()
                        .ssl_mode(SslMode::Require)
                        .connect(tls.clone())
                })
            }
            Some(tls) => self.config.connect(tls.clone()),
        }
    }
}

/// The crate's own text does not name what it does not know.
fn unreadable(error: &postgres::Error) -> String {
    let why =
        std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let hint = match why.as_str() {
        why if why.contains("`schema`") || why.contains("`currentSchema`") => {
            "; a schema is named by options=-c%20search_path=NAME"
        }
        why if why.contains("`target_session_attrs`") => {
            "; it takes any, read-write and read-only, not libpq's primary, standby and prefer-standby: read-write is what the \
             service needs, and what it asks for where several hosts are given"
        }
        why if why.contains("`sslcert`") || why.contains("`sslkey`") => {
            "; client certificates can't be used, give a password"
        }
        why if why.contains("unknown option `ssl") => {
            "; of libpq's, those of TLS are sslmode and sslrootcert"
        }
        why if why.contains("unknown option") => {
            "; leave it out: of libpq's, host, hostaddr, port, user, password, dbname, options, application_name, connect_timeout, \
             tcp_user_timeout, keepalives, target_session_attrs, channel_binding, sslmode and sslrootcert are known"
        }
        _ => "",
    };
    format!("{why}{hint}")
}

/// What is neither form is refused by what it begins with: the crate reads all but its own URLs as `key=value`, and says where
/// that ended. What stands in the place of a scheme is repeated only where it can be nothing else.
fn require_form(url: &str) -> Result<(), String> {
    const WANTED: &str = "it must begin with postgres:// or postgresql://";
    if ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Ok(());
    }
    if let Some(quote) = url
        .chars()
        .next()
        .filter(|first| ['"', '\''].contains(first))
    {
        return Err(format!(
            "{WANTED}, and begins with {quote}: leave out the quotes, files of `docker --env-file` know none"
        ));
    }
    let before = url
        .split_once("://")
        .map(|(before, _)| before)
        .filter(|before| !before.contains(['=', ' ']));
    match before {
        Some(scheme) if is_scheme(scheme) => Err(format!("{WANTED}, and begins with {scheme}://")),
        None if url.contains('=') => Ok(()),
        _ => Err(format!("{WANTED}, or be libpq's key=value form")),
    }
}

/// A scheme (RFC 3986, 3.1), or Java's two.
fn is_scheme(text: &str) -> bool {
    let name = text.strip_prefix("jdbc:").unwrap_or(text);
    (1..=20).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
}

/// The rest of the settings, the mode, and the file of trusted authorities.
fn take_out(url: &str) -> Result<(String, Mode, Option<String>), String> {
    let (address, settings, separator) = match url.split_once("://") {
        Some(_) => url
            .split_once('?')
            .map_or((url, "", "&"), |(address, query)| (address, query, "&")),
        None if url.contains('\'') && url.contains("ssl") => {
            return Err("write it as a URL: postgres://…".into());
        }
        None => ("", url, " "),
    };
    let (mut mode, mut roots, mut rest) = (Mode::Prefer, None, Vec::new());
    for setting in settings
        .split(separator)
        .filter(|setting| !setting.is_empty())
    {
        match setting.split_once('=') {
            Some(("sslmode", name)) => mode = mode_of(name)?,
            Some(("sslrootcert", file)) => roots = Some(decoded(file)?),
            _ => rest.push(setting),
        }
    }
    let mark = if separator == "&" && !rest.is_empty() {
        "?"
    } else {
        ""
    };
    Ok((
        format!("{address}{mark}{}", rest.join(separator)),
        mode,
        roots,
    ))
}

fn mode_of(name: &str) -> Result<Mode, String> {
    Mode::from_name(name).ok_or_else(|| {
        format!(
            "sslmode must be one of {}",
            Mode::ALL.map(Mode::name).join(", ")
        )
    })
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded
        .map(Into::into)
        .map_err(|_| "sslrootcert is not UTF-8".into())
}

fn client(mode: Mode, roots: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier = Verifier::new(mode, roots, &provider)?;
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// What a mode asks of a certificate. That the server has its key is always checked.
#[derive(Debug)]
struct Verifier {
    /// None: any certificate will do.
    chain: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        mode: Mode,
        roots: Option<&str>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Verifier, String> {
        let mut verifier = Verifier {
            chain: None,
            name: mode == Mode::VerifyFull,
            provider: provider.clone(),
        };
        if mode >= Mode::VerifyCa {
            let file = roots.filter(|file| *file != "system").map(Path::new);
            let roots = kafka::roots(file).map_err(|why| format!("sslrootcert: {why}"))?;
            let built =
                WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build();
            verifier.chain = Some(built.map_err(|error| error.to_string())?);
        }
        Ok(verifier)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(verifier) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match verifier.verify_server_cert(certificate, chain, name, stapled, now) {
            // the name is looked at last
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_out(url: &str) -> (String, Mode, Option<String>) {
        take_out(url).unwrap()
    }

    #[test]
    fn settings_of_tls_are_taken_out_and_all_others_stay() {
        let url = "postgres://me:p%3Fw@host/db";
        assert_eq!(taken_out(url), (url.to_string(), Mode::Prefer, None));
        let all =
            format!("{url}?sslmode=verify-full&connect_timeout=5&sslrootcert=%2Fa%20b%2Fca.pem");
        assert_eq!(
            taken_out(&all),
            (
                format!("{url}?connect_timeout=5"),
                Mode::VerifyFull,
                Some("/a b/ca.pem".to_string())
            )
        );
        assert_eq!(
            taken_out(&format!("{url}?sslmode=disable")),
            (url.to_string(), Mode::Disable, None)
        );
        assert_eq!(
            taken_out("host=h dbname=d sslmode=verify-ca"),
            ("host=h dbname=d".to_string(), Mode::VerifyCa, None)
        );
    }

    #[test]
    fn a_parameter_that_is_not_known_is_named_with_what_to_do() {
        let refused = |query: &str| {
            Target::parse(&format!("postgres://me:secret@host/db?{query}"))
                .err()
                .unwrap()
        };
        for (query, name, what_to_do) in [
            (
                "sslcert=%2Fa.pem",
                "`sslcert`",
                "client certificates can't be used",
            ),
            (
                "schema=payments",
                "`schema`",
                "options=-c%20search_path=NAME",
            ),
            (
                "sslcrl=%2Fa.pem",
                "`sslcrl`",
                "those of TLS are sslmode and sslrootcert",
            ),
            (
                "gssencmode=disable",
                "`gssencmode`",
                "leave it out: of libpq's, host",
            ),
            (
                "service=shop",
                "`service`",
                "leave it out: of libpq's, host",
            ),
            (
                "client_encoding=UTF8",
                "`client_encoding`",
                "leave it out: of libpq's, host",
            ),
            (
                "target_session_attrs=primary",
                "`target_session_attrs`",
                "it takes any, read-write and read-only",
            ),
            (
                "target_session_attrs=prefer-standby",
                "`target_session_attrs`",
                "it takes any, read-write and read-only",
            ),
        ] {
            let why = refused(query);
            assert!(
                why.contains(name) && why.contains(what_to_do) && !why.contains("secret"),
                "{why}"
            );
        }
    }

    #[test]
    fn what_is_no_url_is_named_by_what_it_begins_with_and_no_password_is_shown() {
        let wanted = "it must begin with postgres:// or postgresql://";
        for (url, begins) in [
            ("mysql://me:secret@host/db", ", and begins with mysql://"),
            (
                "jdbc:postgresql://host/db?password=secret",
                ", and begins with jdbc:postgresql://",
            ),
            (
                "POSTGRES://me:secret@host/db",
                ", and begins with POSTGRES://",
            ),
            (
                "\"postgres://me:secret@host/db\"",
                ", and begins with \": leave out the quotes",
            ),
            (
                "'postgres://me:secret@host/db'",
                ", and begins with ': leave out the quotes",
            ),
            ("me:secret@host://db", ", or be libpq's key=value form"),
            ("me:secret@host/db", ", or be libpq's key=value form"),
        ] {
            let why = Target::parse(url).err().unwrap();
            assert!(
                why.starts_with(&format!("{wanted}{begins}")) && !why.contains("secret"),
                "{url}: {why}"
            );
        }
        for url in [
            "host=h dbname=d password=a://b",
            "postgresql://me@host/db",
            "options=-ca=b host=h",
        ] {
            assert!(Target::parse(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn of_several_hosts_the_one_that_can_be_written_is_wanted() {
        let wanted = |url: &str| {
            Target::parse(url)
                .unwrap()
                .config
                .get_target_session_attrs()
        };
        assert_eq!(wanted("postgres://me@one/db"), TargetSessionAttrs::Any);
        assert_eq!(
            wanted("postgres://me@one,two/db"),
            TargetSessionAttrs::ReadWrite
        );
    }

    #[test]
    fn a_root_certificate_makes_require_verify_and_system_makes_any_mode_verify_all() {
        let folder = std::env::temp_dir();
        let missing = folder.join("no-such-authority.pem").display().to_string();
        let parse = |query: &str| Target::parse(&format!("postgres://me@host/db?{query}"));
        assert!(
            parse(&format!("sslmode=require&sslrootcert={missing}"))
                .err()
                .unwrap()
                .contains(&missing)
        );
        assert_eq!(parse("sslmode=require").unwrap().mode, Mode::Require);
        // the file is not looked at below that
        assert_eq!(
            parse(&format!("sslmode=prefer&sslrootcert={missing}"))
                .unwrap()
                .mode,
            Mode::Prefer
        );
        assert_eq!(
            parse("sslmode=prefer&sslrootcert=system")
                .map(|it| it.mode)
                .unwrap_or(Mode::VerifyFull),
            Mode::VerifyFull
        );
        assert!(
            parse("sslmode=always")
                .err()
                .unwrap()
                .contains("disable, allow, prefer")
        );
    }
}
