//! Credentials of a link, and what certificates say.
//!
//! Invariants:
//! - TLS 1.3 or 1.2 with the ring provider, chosen here and not process-wide;
//! - only the given authority vouches for the broker; the system's authorities do not;
//! - private keys are read, never shown: errors name files, not contents.

use std::fmt;
use std::sync::Arc;

use p256::ecdsa::VerifyingKey;
use p256::pkcs8::DecodePublicKey;
use rustls::client::{ResolvesClientCert, Resumption, WantsClientCert};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::ids::{Identity, ParseIdError};

/// One of the files that make credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialFile {
    /// The authority that signed the broker's certificate.
    Authority,
    /// Our own certificate, with intermediate ones behind it.
    Certificate,
    /// The private key of our certificate.
    Key,
}

impl fmt::Display for CredentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authority => "authority (CA) file",
            Self::Certificate => "certificate file",
            Self::Key => "key file",
        })
    }
}

/// Why credentials cannot be used. The files are wrong: fix them and start again.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file has nothing of the kind in it.
    #[error("the {file} holds no {expected} in PEM form")]
    Empty {
        /// Which file.
        file: CredentialFile,
        /// What it should hold.
        expected: &'static str,
    },
    /// The file's PEM is broken.
    #[error("the {file} is not well-formed PEM: {problem}")]
    Pem {
        /// Which file.
        file: CredentialFile,
        /// What is wrong.
        problem: String,
    },
    /// What the file holds is not usable.
    #[error("the {file} cannot be used: {problem}")]
    Unusable {
        /// Which file.
        file: CredentialFile,
        /// What is wrong.
        problem: String,
    },
    /// Key and certificate are not a pair.
    #[error("the key file is not the key of the certificate file")]
    KeyMismatch,
}

/// TLS for a link: trusts the authorities in `ca_pem`, and shows the certificate chain in
/// `certificate_pem`, leaf first, with the key in `key_pem` (PKCS #8, SEC1 or PKCS #1).
///
/// # Errors
/// A file is not PEM, holds something else, or key and certificate do not belong together.
pub fn client_config(
    ca_pem: &[u8],
    certificate_pem: &[u8],
    key_pem: &[u8],
) -> Result<Arc<ClientConfig>, CredentialError> {
    let chain = certificates(CredentialFile::Certificate, certificate_pem)?;
    let file = CredentialFile::Key;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| match error {
        pem::Error::NoItemsFound => CredentialError::Empty { file, expected: "private key" },
        error => CredentialError::Pem { file, problem: pem_problem(&error) },
    })?;
    trusting(ca_pem)?.with_client_auth_cert(chain, key).map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => CredentialError::KeyMismatch,
        error @ rustls::Error::InvalidCertificate(_) => {
            unusable(CredentialFile::Certificate, &error)
        }
        error => unusable(CredentialFile::Key, &error),
    })
}

/// TLS for a link: trusts the authorities in `ca_pem`, and shows at each handshake what
/// `credentials` has then. So a key may stay in a TPM, and a renewed certificate needs no restart.
/// Sessions are not resumed: a resumed one would keep the certificate of before.
///
/// # Errors
/// The authority file is not PEM or holds something else.
pub fn client_config_resolving(
    ca_pem: &[u8],
    credentials: Arc<dyn ResolvesClientCert>,
) -> Result<Arc<ClientConfig>, CredentialError> {
    let mut config = trusting(ca_pem)?.with_client_cert_resolver(credentials);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn trusting(
    ca_pem: &[u8],
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, CredentialError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder: ConfigBuilder<ClientConfig, WantsVerifier> =
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(CredentialFile::Authority, &error))?;
    Ok(builder.with_root_certificates(authorities(ca_pem)?))
}

/// The authorities in a PEM file.
pub(crate) fn authorities(ca_pem: &[u8]) -> Result<RootCertStore, CredentialError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CredentialFile::Authority, ca_pem)? {
        roots.add(certificate).map_err(|error| unusable(CredentialFile::Authority, &error))?;
    }
    Ok(roots)
}

fn unusable(file: CredentialFile, error: &rustls::Error) -> CredentialError {
    CredentialError::Unusable { file, problem: error.to_string() }
}

/// The certificates in a PEM file, leaf first.
///
/// # Errors
/// The file is not PEM, or has no certificate in it.
pub fn certificate_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    certificates(CredentialFile::Certificate, pem)
}

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject's common name.
    pub common_name: String,
    /// When it begins to be valid, in seconds since 1970.
    pub not_before: i64,
    /// When it ceases to be valid, in seconds since 1970.
    pub not_after: i64,
    /// Its public key as an uncompressed point of P-256 (SEC1 2.3.3); none if it is another key.
    pub p256_key: Option<[u8; 65]>,
    /// Whether it says that its holder may be a TLS client (RFC 5280 section 4.2.1.12).
    pub is_for_clients: bool,
}

impl CertificateFacts {
    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    /// Not PEM, not a certificate, or none with exactly one common name.
    pub fn from_pem(certificate_pem: &[u8]) -> Result<Self, CredentialError> {
        let chain = certificate_chain(certificate_pem)?;
        Self::from_der(chain.first().map(AsRef::as_ref).unwrap_or_default())
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// Not a certificate, or none with exactly one common name.
    pub fn from_der(certificate: &[u8]) -> Result<Self, CredentialError> {
        let file = CredentialFile::Certificate;
        let unusable = |problem: String| CredentialError::Unusable { file, problem };
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| unusable(error.to_string()))?;
        let mut names = certificate.subject().iter_common_name();
        let (Some(name), None) = (names.next(), names.next()) else {
            return Err(unusable("its subject does not have exactly one common name".to_owned()));
        };
        let common_name = name.as_str().map_err(|error| unusable(error.to_string()))?.to_owned();
        let validity = certificate.validity();
        let key = VerifyingKey::from_public_key_der(certificate.public_key().raw).ok();
        let usage = certificate.extended_key_usage().ok().flatten();
        Ok(Self {
            common_name,
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            p256_key: key.and_then(|key| key.to_sec1_point(false).as_bytes().try_into().ok()),
            is_for_clients: usage.is_some_and(|usage| usage.value.client_auth),
        })
    }

    /// The robot the certificate is for.
    ///
    /// # Errors
    /// The common name is not `tenant.robot`.
    pub fn identity(&self) -> Result<Identity, ParseIdError> {
        self.common_name.parse()
    }
}

/// An instant of a certificate as people read it.
#[must_use]
pub fn utc(seconds: i64) -> String {
    ASN1Time::from_timestamp(seconds)
        .map_or_else(|_| format!("{seconds} seconds after 1970"), |time| time.to_string())
}

fn certificates(
    file: CredentialFile,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| CredentialError::Pem { file, problem: pem_problem(&error) })?;
    if certificates.is_empty() {
        return Err(CredentialError::Empty { file, expected: "certificate" });
    }
    Ok(certificates)
}

/// What is wrong with PEM, without quoting any of it: it may be a key.
fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section begins wrongly".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        pem::Error::Io(error) => error.to_string(),
        _ => "unexpected content".to_owned(),
    }
}
