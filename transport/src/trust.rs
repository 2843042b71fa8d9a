//! Who is a robot: the chain of trust from an authority to a robot's certificate.
//!
//! Invariants:
//! - a [`RobotCertificate`] only exists for a chain that an authority of the given set vouches for
//!   at the given time (RFC 5280 section 6), whose leaf is for TLS clients, names exactly one robot
//!   and has a P-256 key;
//! - time is the caller's: nothing here reads a clock.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::ids::{Identity, ParseIdError};
use crate::tls::{self, CertificateFacts, CredentialError, CredentialFile, utc};

/// The authorities that say who is a robot.
#[derive(Clone)]
pub struct TrustedRobots(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for TrustedRobots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrustedRobots")
    }
}

/// A robot's certificate that an authority vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RobotCertificate {
    /// The robot.
    pub identity: Identity,
    /// Its identity key: an uncompressed point of P-256 (SEC1 2.3.3).
    pub public_key: [u8; 65],
    /// When the certificate begins to be valid, in seconds since 1970.
    pub not_before: i64,
    /// When it ceases to be valid, in seconds since 1970.
    pub not_after: i64,
}

/// Why a certificate does not make its holder a robot. Only another certificate helps, or for
/// [`Expired`](Self::Expired) and [`NotYetValid`](Self::NotYetValid) a clock that is right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefusal {
    /// No certificate, or bytes that are none.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// The chain does not end at an authority of ours.
    #[error("the certificate is not from an authority that is trusted for robots")]
    ForeignAuthority,
    /// It is no longer valid.
    #[error("the certificate expired on {}; renew it", utc(*not_after))]
    Expired {
        /// When it ceased to be valid, in seconds since 1970.
        not_after: i64,
    },
    /// It is not valid yet.
    #[error("the certificate is valid only from {} on; check the clocks", utc(*not_before))]
    NotYetValid {
        /// When it begins to be valid, in seconds since 1970.
        not_before: i64,
    },
    /// It is not for TLS clients.
    #[error("the certificate is not for TLS clients: it lacks the extended key usage clientAuth")]
    Purpose,
    /// Its key is of another kind.
    #[error("the certificate's key is not an ECDSA key on the curve P-256")]
    Key,
    /// It names no robot.
    #[error("the certificate's common name \"{common_name}\" is no robot's: {problem}")]
    Name {
        /// The name.
        common_name: String,
        /// What is wrong with it.
        problem: ParseIdError,
    },
    /// Path validation failed in another way.
    #[error("the certificate is refused: {0}")]
    Other(String),
}

impl TrustedRobots {
    /// Trusts the authorities in a PEM file.
    ///
    /// # Errors
    /// The file is not PEM, or holds no authority.
    pub fn from_pem(ca_pem: &[u8]) -> Result<Self, CredentialError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(tls::authorities(ca_pem)?);
        WebPkiClientVerifier::builder_with_provider(roots, provider).build().map(Self).map_err(
            |error| CredentialError::Unusable {
                file: CredentialFile::Authority,
                problem: error.to_string(),
            },
        )
    }

    /// The robot that this chain, leaf first, is of at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// See [`CertificateRefusal`].
    pub fn check(
        &self,
        chain: &[CertificateDer<'_>],
        now: u64,
    ) -> Result<RobotCertificate, CertificateRefusal> {
        let malformed = |problem: &str| CertificateRefusal::Malformed(problem.to_owned());
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| malformed("there is none"))?;
        let facts = CertificateFacts::from_der(leaf)
            .map_err(|error| CertificateRefusal::Malformed(error.to_string()))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        self.0
            .verify_client_cert(leaf, intermediates, now)
            .map_err(|error| refusal(&error, &facts))?;
        if !facts.is_for_clients {
            return Err(CertificateRefusal::Purpose);
        }
        let identity = facts.identity().map_err(|problem| CertificateRefusal::Name {
            common_name: facts.common_name.clone(),
            problem,
        })?;
        let public_key = facts.p256_key.ok_or(CertificateRefusal::Key)?;
        let CertificateFacts { not_before, not_after, .. } = facts;
        Ok(RobotCertificate { identity, public_key, not_before, not_after })
    }
}

fn refusal(error: &rustls::Error, facts: &CertificateFacts) -> CertificateRefusal {
    let rustls::Error::InvalidCertificate(problem) = error else {
        return CertificateRefusal::Other(error.to_string());
    };
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            CertificateRefusal::Expired { not_after: facts.not_after }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateRefusal::NotYetValid { not_before: facts.not_before }
        }
        // An authority of the same name but with another key shows as a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            CertificateRefusal::ForeignAuthority
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateRefusal::Purpose
        }
        CertificateError::BadEncoding => CertificateRefusal::Malformed(problem.to_string()),
        other => CertificateRefusal::Other(other.to_string()),
    }
}
