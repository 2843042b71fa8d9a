//! The robot's identity: a key that does not leave its TPM, and the certificate that names it.
//!
//! [`key`] signs, [`certificate`] keeps the chain that is shown at handshakes and in signed frames,
//! [`csr`] asks for one, [`renewal`] replaces it before it ends. [`attestation`] proves to a server
//! where the key is and what was booted, which [`enrolment`] makes known to it.
//!
//! Invariants:
//! - the private key is in the TPM; one in a file is for development, and said aloud at each start;
//! - a certificate is used only if it is for this robot and this key;
//! - renewal never takes a working certificate away: a new one replaces it or the old one stays.

pub mod attestation;
pub mod certificate;
pub mod csr;
pub mod enrolment;
mod file;
pub mod issuer;
pub mod key;
pub mod renewal;
#[cfg(test)]
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use moai_tpm::{Tpm, TpmError};
use moai_transport::frame::FrameError;
use moai_transport::ids::Identity;
use moai_transport::tls::CredentialError;
use moai_transport::trust::CertificateRefusal;
use tokio::sync::watch;

pub use certificate::CertificateStore;
use issuer::{RenewCommand, RenewalError};
pub use key::IdentityKey;
use renewal::{CertificateState, Renewal};

use crate::clock::Clock;
use crate::config::Config;
use crate::services::off_thread;

/// The identity of the running agent: what is shown, what keeps it alive, and what is to be said of
/// it. A robot without a certificate gets its first one here, if there is a command to get it. `tpm`
/// is called if the key is in the TPM.
///
/// # Errors
/// Key or certificate are missing, or not what they should be.
pub async fn open(
    config: &Arc<Config>,
    tpm: impl FnOnce() -> Result<Tpm, TpmError> + Send + 'static,
    clock: Arc<dyn Clock>,
) -> Result<
    (Arc<CertificateStore>, Renewal<RenewCommand>, watch::Receiver<CertificateState>),
    RenewalError,
> {
    let reading = Arc::clone(config);
    let key = off_thread(move || IdentityKey::open(&reading, tpm)).await?;
    if let IdentityKey::Software(_) = key {
        tracing::warn!(
            "DEVELOPMENT ONLY: the identity key is a file; whoever copies it is this robot"
        );
    }
    let store = Arc::new(CertificateStore::open(config, Arc::new(key))?);
    let command = RenewCommand::new(config.uplink.renew_command.clone());
    let (mut renewal, state) = Renewal::new(Arc::clone(&store), command, clock);
    renewal.first().await?;
    Ok((store, renewal, state))
}

/// Why the robot's identity is not at hand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The robot was never provisioned.
    #[error("there is no identity key at {}; run `moai-agent provision` once", path.display())]
    NoKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// The robot has a key but nobody has certified it.
    #[error(
        "there is no certificate at {}; hand what `moai-agent identity csr` prints to your \
         authority and its answer to `moai-agent identity install`", path.display()
    )]
    NoCertificate {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}: {source}; check the file and its owner", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The key file is damaged or none.
    #[error("{}: {problem}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or authority file is not what it should be.
    #[error("{}: {source}", path.display())]
    Credential {
        /// The file, or what else it came from.
        path: PathBuf,
        /// What is wrong with it.
        source: CredentialError,
    },
    /// The certificate is somebody else's.
    #[error("the certificate is {named}'s, but the configuration says identity = \"{expected}\"")]
    OtherRobot {
        /// The certificate's common name.
        named: String,
        /// The robot.
        expected: Identity,
    },
    /// The certificate is for another key.
    #[error(
        "the certificate is not for this robot's identity key; ask for one with \
         `moai-agent identity csr`"
    )]
    OtherKey,
    /// The authority that servers trust does not vouch for the certificate.
    #[error(
        "{source}; the authorities are those in {} (uplink.robots_ca)", authority.display()
    )]
    Refused {
        /// The authority file.
        authority: PathBuf,
        /// Why.
        source: CertificateRefusal,
    },
    /// The chain does not fit into a signed frame.
    #[error("the certificate chain cannot be used: {0}; leave the authority's own out")]
    Chain(#[from] FrameError),
    /// The TPM refuses.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A request or a certificate cannot be made.
    #[error("cannot make {what}: {problem}")]
    Make {
        /// What.
        what: &'static str,
        /// Why not.
        problem: String,
    },
    /// No randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}
