//! Why the vault failed.

use moai_tpm::{Advice, Epoch};

use crate::store::StoreError;

/// Why the vault failed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file failed.
    #[error("the session vault: {0}")]
    Store(#[from] StoreError),
    /// No randomness for a nonce.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
    /// A record could not be encoded.
    #[error("a session record cannot be written: {0}")]
    Encode(String),
    /// A record does not open.
    #[error(
        "the record of session {session} does not open: it was changed, or another root secret \
         wrote it; it is erased and the session ends"
    )]
    Unreadable {
        /// The session whose record it was, or what stood in its place.
        session: String,
    },
    /// Root secret and vault do not go together.
    #[error(
        "the session vault is of epoch {vault}, the root secret of epoch {root}: an old copy of one \
         of them was put back. Put the newer file back, or move the vault away to start without \
         sessions; nothing was erased"
    )]
    OtherEpoch {
        /// The vault's.
        vault: Epoch,
        /// The root secret's.
        root: Epoch,
    },
}

impl VaultError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Store(_) | Self::OtherEpoch { .. } => Advice::Fix,
            Self::Randomness(_) | Self::Encode(_) | Self::Unreadable { .. } => Advice::Stop,
        }
    }
}
