//! Why the root secret is not at hand, or not where it should be.
//!
//! Invariants: every message names cause and remedy; [`CustodyError::advice`] answers retry, fix or
//! stop for every variant, and [`CustodyError::heals`] whether the daemon keeps trying.

use std::path::PathBuf;

use moai_tpm::{Advice, BlobError, Epoch, TpmError};

use super::custodian::CustodianKind;
use super::env::EnvError;
use super::escrow::EscrowError;
#[cfg(feature = "kms")]
use super::kms::KmsError;
#[cfg(feature = "pkcs11")]
use super::pkcs11::Pkcs11Error;
use super::sealed_file::SealedFileError;
use super::tpm::PolicyFileError;
use crate::vault::VaultError;

/// A failure of custody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    File {
        /// The sealed root secret.
        path: PathBuf,
        /// What is wrong with it.
        source: SealedFileError,
    },
    /// Another custodian sealed it.
    #[error(
        "{} was sealed by custodian \"{sealed}\", but the configuration says \"{configured}\": set \
         custody.custodian back, or move the file away and provision anew", path.display()
    )]
    OtherCustodian {
        /// The sealed root secret.
        path: PathBuf,
        /// Who sealed it.
        sealed: CustodianKind,
        /// Who was asked to open it.
        configured: CustodianKind,
    },
    /// The build lacks the custodian.
    #[error("custodian \"{0}\" is not part of this build: build with the feature of that name")]
    NotBuilt(CustodianKind),
    /// Only a TPM has what was asked for.
    #[error("custodian \"{0}\" has no boot policy and no recovery code: only \"tpm\" has")]
    OnlyTpm(CustodianKind),
    /// An escrow was asked for and nobody is to have it.
    #[error("no escrow without a recipient: set escrow.recipient in the configuration")]
    NoEscrow,
    /// The escrow holds another root secret than the vault's.
    #[error(
        "the root secret of the escrow opens none of the vault's records: it is another robot's, or \
         forged. Look for another copy of the escrow, or move the vault away to go on without \
         sessions"
    )]
    OtherRoot,
    /// A living agent, or another command, works with the same files.
    #[error(
        "another moai-agent works with {}: stop it first (systemctl stop moai-agent)", path.display()
    )]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// What the TPM sealed is not readable.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The TPM refuses.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The policy key or the signed policies cannot be read.
    #[error(transparent)]
    PolicyFile(#[from] PolicyFileError),
    /// The development key refuses.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The PKCS #11 token refuses.
    #[cfg(feature = "pkcs11")]
    #[error(transparent)]
    Pkcs11(#[from] Pkcs11Error),
    /// The key management service refuses.
    #[cfg(feature = "kms")]
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The escrow refuses.
    #[error(transparent)]
    Escrow(#[from] EscrowError),
    /// The vault does not go with the root secret, or its disk refuses.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The next epoch is in force, but keys of the one before may still be there.
    #[error(
        "epoch {epoch} is in force, but the key of the epoch before it could not be destroyed: \
         {source}. It is tried again at the next start and the next rotation"
    )]
    NotRetired {
        /// The epoch in force.
        epoch: Epoch,
        /// What the custodian said.
        source: Box<CustodyError>,
    },
    /// No randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}

impl CustodyError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::NotProvisioned { .. }
            | Self::AlreadyProvisioned { .. }
            | Self::OtherCustodian { .. }
            | Self::NotBuilt(_)
            | Self::OnlyTpm(_)
            | Self::NoEscrow
            | Self::OtherRoot
            | Self::InUse { .. }
            | Self::PolicyFile(_) => Advice::Fix,
            Self::File { source, .. } => source.advice(),
            Self::Blob(error) => error.advice(),
            Self::Tpm(error) => error.advice(),
            Self::Env(error) => error.advice(),
            #[cfg(feature = "pkcs11")]
            Self::Pkcs11(error) => error.advice(),
            #[cfg(feature = "kms")]
            Self::Kms(error) => error.advice(),
            Self::Escrow(error) => error.advice(),
            Self::Vault(error) => error.advice(),
            Self::NotRetired { source, .. } => source.advice(),
            Self::Randomness(_) => Advice::Stop,
        }
    }

    /// Whether the daemon keeps trying: it can heal without anybody touching this robot's files.
    #[must_use]
    pub fn heals(&self) -> bool {
        self.advice() == Advice::Retry
            || match self {
                // Drivers load late, software TPMs start late, and lockout ends with time.
                Self::Tpm(error) => matches!(error, TpmError::Absent { .. } | TpmError::Lockout),
                #[cfg(feature = "pkcs11")]
                Self::Pkcs11(error) => error.heals(),
                #[cfg(feature = "kms")]
                Self::Kms(error) => error.heals(),
                Self::NotRetired { source, .. } => source.heals(),
                _ => false,
            }
    }

    /// Whether a call was given up unanswered. What hangs for good cannot be cancelled, only left
    /// behind with the process.
    #[must_use]
    pub fn hangs(&self) -> bool {
        matches!(self, Self::Tpm(TpmError::Deadline { .. }))
    }
}
