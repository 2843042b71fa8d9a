//! The root secret's custodian: the TPM.
//!
//! Invariants:
//! - a root secret is made exactly once, by `provision`, and never replaced behind anybody's back;
//! - on disk it exists only sealed.

use std::path::{Path, PathBuf};

use moai_tpm::{Advice, Options, RootSecret, SealedRoot, Tpm, TpmError};
use zeroize::Zeroizing;

use crate::config::TpmConfig;
use crate::secrets::OsEntropy;

/// Name of the sealed root secret in the state directory.
pub const ROOT_FILE: &str = "root.sealed";

/// Why the root secret is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// The robot was never provisioned.
    #[error("there is no root secret at {}; run `moai-agent provision` once", path.display())]
    NotProvisioned {
        /// Where it should be.
        path: PathBuf,
    },
    /// The robot is provisioned already.
    #[error(
        "{} exists: this robot is provisioned already; a new root secret would make everything \
         sealed under the old one unreadable (remove the file to do that on purpose)", path.display()
    )]
    AlreadyProvisioned {
        /// The sealed root secret.
        path: PathBuf,
    },
    /// The sealed file is not usable.
    #[error("{}: {source}", path.display())]
    Blob {
        /// The sealed root secret.
        path: PathBuf,
        /// What is wrong with it.
        source: moai_tpm::BlobError,
    },
    /// The TPM refuses.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// No randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}

impl CustodyError {
    /// Whether trying again can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Tpm(error) if error.advice() == Advice::Retry)
    }
}

/// Connects to the TPM; blocks for milliseconds.
///
/// # Errors
/// There is none, or it does not answer.
pub fn connect(config: &TpmConfig) -> Result<Tpm, TpmError> {
    Tpm::start(config.tcti.clone(), Options { deadline: config.deadline })
}

/// Makes the root secret and seals it; blocks.
///
/// # Errors
/// The robot is provisioned already, or TPM or disk refuse.
pub fn provision(tpm: &Tpm, config: &TpmConfig, state: &Path) -> Result<PathBuf, CustodyError> {
    let path = state.join(ROOT_FILE);
    if path.exists() {
        return Err(CustodyError::AlreadyProvisioned { path });
    }
    // Both sources are mixed, so the secret is good while either is.
    let mut bytes = Zeroizing::new(OsEntropy::bytes::<32>()?);
    for (byte, other) in bytes.iter_mut().zip(tpm.random()?.iter()) {
        *byte ^= other;
    }
    let root = RootSecret::from_bytes(*bytes);
    let sealed = tpm.seal(&root, &config.pcrs)?;
    sealed.save(&path).map_err(|source| CustodyError::Blob { path: path.clone(), source })?;
    Ok(path)
}

/// Unseals the root secret; blocks.
///
/// # Errors
/// It was never provisioned, its file is damaged, or the TPM refuses.
pub fn unseal(tpm: &Tpm, state: &Path) -> Result<RootSecret, CustodyError> {
    let path = state.join(ROOT_FILE);
    if !path.exists() {
        return Err(CustodyError::NotProvisioned { path });
    }
    let sealed = SealedRoot::load(&path).map_err(|source| CustodyError::Blob { path, source })?;
    Ok(tpm.unseal(&sealed)?)
}
