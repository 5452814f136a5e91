//! A certificate authority made for a test.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

/// Signs certificates, and keeps all its files in a folder.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate's files.
pub struct Signed {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Both in one, as Kafka's `ssl.keystore.type=PEM` wants them.
    pub keystore: PathBuf,
}

impl Authority {
    /// A fresh one, called `name`.
    ///
    /// # Panics
    /// When the folder can't be written.
    pub fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority {
            folder: folder.join(name),
            issuer,
        };
        fs::create_dir_all(&authority.folder).unwrap();
        fs::write(authority.file(), authority.issuer.as_ref().pem()).unwrap();
        authority
    }

    /// Its own certificate, for those who trust it.
    pub fn file(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// A certificate for a server of this name or address, that ended long ago if it is `expired`.
    ///
    /// # Panics
    /// When the folder can't be written.
    pub fn sign(&self, host: &str, expired: bool) -> Signed {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(if expired { 2021 } else { 2100 }, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let write = |kind: &str, text: &str| {
            let file = self.folder.join(format!(
                "{host}{}.{kind}.pem",
                if expired { "-expired" } else { "" }
            ));
            fs::write(&file, text).unwrap();
            file
        };
        let key = key.serialize_pem();
        Signed {
            certificate: write("certificate", &certificate),
            key: write("key", &key),
            keystore: write("keystore", &format!("{key}{certificate}")),
        }
    }
}
