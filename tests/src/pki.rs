//! A throw-away certificate authority.
//!
//! Invariants:
//! - keys are ECDSA P-256, made for one run, in files of mode 0600;
//! - the CA's key never leaves memory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A CA and the directory its certificates are written to.
#[derive(Debug)]
pub struct Pki {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// Three PEM files: whom to trust, who we are, and the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The CA the peer's certificate must come from.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its private key, PKCS #8.
    pub key: PathBuf,
}

impl Pki {
    /// Makes a CA whose certificate is `ca.pem` in `directory`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "moai throw-away CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let pki = Self { directory: directory.to_owned(), issuer: Issuer::new(params, key) };
        fs::write(pki.ca(), certificate.pem())?;
        Ok(pki)
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A server certificate for `localhost` and `127.0.0.1`.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn server(&self) -> Result<Credentials> {
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("localhost", params)
    }

    /// A client certificate with the given common name.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn client(&self, common_name: &str) -> Result<Credentials> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(common_name, params)
    }

    fn issue(&self, common_name: &str, mut params: CertificateParams) -> Result<Credentials> {
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        // Common names with a slash are issued on purpose: brokers must refuse them.
        let file = self.directory.join(common_name.replace('/', "_"));
        let credentials = Credentials {
            ca: self.ca(),
            certificate: append(&file, ".pem"),
            key: append(&file, ".key"),
        };
        fs::write(&credentials.certificate, certificate.pem())?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&credentials.key)?
            .write_all(key.serialize_pem().as_bytes())?;
        Ok(credentials)
    }
}

/// `with_extension` would cut a common name at its dot.
fn append(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

impl Credentials {
    /// The same certificate, but trusting another CA.
    #[must_use]
    pub fn trusting(self, ca: PathBuf) -> Self {
        Self { ca, ..self }
    }

    /// The TLS 1.3 client configuration these credentials make.
    ///
    /// # Errors
    /// A file is missing or is not what its name says.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.ca)? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}
