//! TLS by rustls: whom a client trusts, and how it shows who it is.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};

use crate::net::stream::{Distrust, Guard, Limited};

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
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = builder.with_root_certificates(roots(authorities)?);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let certificates = certificates(chain)?;
                let key =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, &error))?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .map_err(|error| error.to_string())?
            }
        };
        Ok(Tls {
            config: Arc::new(config),
        })
    }

    /// The client's side of a connection to this address, `host:port`; nothing is sent yet.
    pub(crate) fn begin(&self, address: &str) -> Result<Box<dyn Guard>, String> {
        let host = address
            .rsplit_once(':')
            .map_or(address, |(host, _)| host)
            .trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host} is no name of a server"))?;
        let begun =
            ClientConnection::new(self.config.clone(), name).map_err(|error| error.to_string())?;
        Ok(Box::new(begun))
    }
}

impl Guard for ClientConnection {
    fn shake_hands(&mut self, socket: &mut Limited<'_>) -> io::Result<()> {
        while self.is_handshaking() {
            self.complete_io(socket).map_err(|error| {
                let distrust = error
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>());
                distrust
                    .map(|why| io::Error::other(Distrust(format!("TLS: {why}"))))
                    .unwrap_or(error)
            })?;
        }
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8], socket: &mut Limited<'_>) -> io::Result<()> {
        let mut guarded = rustls::Stream::new(self, socket);
        guarded.write_all(bytes)?;
        guarded.flush()
    }

    fn read_to_end(
        &mut self,
        length: u64,
        into: &mut Vec<u8>,
        socket: &mut Limited<'_>,
    ) -> io::Result<usize> {
        rustls::Stream::new(self, socket)
            .take(length)
            .read_to_end(into)
    }

    /// A ticket or a new key is for TLS alone.
    fn is_idle(&mut self, socket: &mut TcpStream) -> bool {
        loop {
            match self.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                _ => return false,
            }
            match self.read_tls(socket) {
                Ok(length) if length > 0 => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                _ => return false,
            }
        }
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
                roots
                    .add(certificate)
                    .map_err(|error| in_file(file, &error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        Err("the system has no certificate authorities: name a file of them".into())
    } else {
        Ok(roots)
    }
}

/// The certificates of a PEM file.
///
/// # Errors
/// When it can't be read, or has none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| in_file(file, &error))?;
    if certificates.is_empty() {
        Err(in_file(file, &"there is no certificate in it"))
    } else {
        Ok(certificates)
    }
}

fn in_file(file: &Path, why: &dyn std::fmt::Display) -> String {
    format!("{}: {why}", file.display())
}
