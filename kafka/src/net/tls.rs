//! TLS by rustls: whom a client trusts, and how it shows who it is.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};

/// Settings of TLS 1.2 and 1.3; the certificate's name is always checked against the broker's address.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Trusts the certificate authorities in the PEM file `authorities` (Kafka's `ssl.truststore.location` of type PEM), or
    /// those of the system. `own`: PEM files of a certificate with its chain, and of its key, for brokers that ask for one
    /// (`ssl.keystore.location`).
    ///
    /// # Errors
    /// Which file can't be used, and why.
    pub fn new(authorities: Option<&Path>, own: Option<(&Path, &Path)>) -> Result<Tls, String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = builder.with_root_certificates(roots(authorities)?);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let certificates = certificates(chain)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, &error))?;
                builder.with_client_auth_cert(certificates, key).map_err(|error| error.to_string())?
            }
        };
        Ok(Tls { config: Arc::new(config) })
    }

    /// The client's side of a connection to this address, `host:port`; nothing is sent yet.
    pub(crate) fn begin(&self, address: &str) -> Result<ClientConnection, String> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is no name of a server"))?;
        ClientConnection::new(self.config.clone(), name).map_err(|error| error.to_string())
    }
}

/// The certificate authorities of a PEM file, or those of the system.
///
/// # Errors
/// What can't be read; none there at all.
pub fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| in_file(file, &error))?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        Err("the system has no certificate authorities: name a file of them".into())
    } else {
        Ok(roots)
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| in_file(file, &error))?;
    if certificates.is_empty() { Err(in_file(file, &"there is no certificate in it")) } else { Ok(certificates) }
}

fn in_file(file: &Path, why: &dyn std::fmt::Display) -> String {
    format!("{}: {why}", file.display())
}
