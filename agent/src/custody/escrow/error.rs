//! What can go wrong with an escrow, and what to do about it.

use std::path::PathBuf;

use moai_tpm::Advice;

use super::EscrowKind;
#[cfg(feature = "kms")]
use crate::custody::kms::KmsError;

/// Why an escrow file is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// Longer than any escrow.
    #[error("it is longer than any escrow file")]
    TooLarge,
    /// Other magic bytes.
    #[error("it is no escrow file, or it was overwritten")]
    NotEscrow,
    /// Written by another version.
    #[error("it has format {found}, which this version of the agent does not read")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The digest does not fit.
    #[error("it is damaged or cut short")]
    Damaged,
    /// The digest fits, the content does not.
    #[error("its content makes no sense")]
    Malformed,
}

/// Why a key is not usable.
#[derive(Debug, thiserror::Error)]
pub enum KeyProblem {
    /// The file cannot be read.
    #[error("{0}: check its path and permissions")]
    Io(#[from] std::io::Error),
    /// Larger than any key.
    #[error("it is larger than any key: check its path")]
    TooLarge,
    /// Not PEM, or PEM of something else.
    #[error(
        "it is no PEM block labelled \"{expected}\": use what `moai-agent escrow keygen` wrote"
    )]
    NotPem {
        /// The label it should have.
        expected: &'static str,
    },
    /// A key for something else.
    #[error("it is no X25519 key (RFC 8410): use what `moai-agent escrow keygen` wrote")]
    NotX25519,
    /// A public key that protects nothing.
    #[error(
        "it is one of the few public keys that protect nothing (RFC 7748, 6.1): use what \
         `moai-agent escrow keygen` wrote"
    )]
    Weak,
}

/// An escrow that could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EscrowError {
    /// The file is not usable.
    #[error("the escrow file cannot be used: {0}: bring another copy of escrow.sealed")]
    File(#[from] FileProblem),
    /// A file with a key is not usable.
    #[error("the key file {}: {problem}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: KeyProblem,
    },
    /// The key at hand is not usable.
    #[error("the escrow key: {0}")]
    Key(#[from] KeyProblem),
    /// Sealed for another public key.
    #[error(
        "the escrow was sealed for the public key {sealed}, the private key at hand belongs to \
         {given}: bring the other private key"
    )]
    OtherKey {
        /// Fingerprint of the key it was sealed for.
        sealed: String,
        /// Fingerprint of the key at hand.
        given: String,
    },
    /// Sealed for somebody else altogether.
    #[error("the escrow was sealed for {}", match .0 {
        EscrowKind::PublicKey => "an offline key: give its private half with --escrow-key",
        EscrowKind::Kms => "a key management service: leave --escrow-key out and configure [kms]",
    })]
    OtherKind(EscrowKind),
    /// Altered, or bound to another robot.
    #[error(
        "the escrow was altered, or is another robot's: check `identity` in the configuration, or \
         bring another copy of escrow.sealed"
    )]
    Tampered,
    /// The build lacks the key management service.
    #[error("this build has no key management service: build with the feature kms")]
    NotBuilt,
    /// The key management service refuses.
    #[cfg(feature = "kms")]
    #[error("escrow: {0}")]
    Kms(#[from] KmsError),
    /// No randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}

impl EscrowError {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::File(_)
            | Self::KeyFile { .. }
            | Self::Key(_)
            | Self::OtherKey { .. }
            | Self::OtherKind(_)
            | Self::Tampered
            | Self::NotBuilt => Advice::Fix,
            #[cfg(feature = "kms")]
            Self::Kms(error) => error.advice(),
            Self::Randomness(_) => Advice::Stop,
        }
    }
}
