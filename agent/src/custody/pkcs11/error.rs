//! What can go wrong with a PKCS #11 token, and what to do about it.
//!
//! Invariant: return codes of the token are translated here and nowhere else; a code without a
//! message of its own is shown under its name in the standard.

use std::path::PathBuf;

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use moai_tpm::Advice;

/// Why a PIN file is not used.
#[derive(Debug, thiserror::Error)]
pub enum PinFileProblem {
    /// The operating system refuses.
    #[error("{0}: write the user PIN into it, readable for the agent's user alone")]
    Io(#[from] std::io::Error),
    /// Others than its owner may read it.
    #[error("its mode is {mode:04o}, so others can read it: `chmod 600` it")]
    Mode {
        /// Permission bits.
        mode: u32,
    },
    /// Empty, several lines or too long.
    #[error("it must hold one PIN of 1 to 255 bytes and nothing else")]
    Content,
}

/// A call of a PKCS #11 token that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs11Error {
    /// The module cannot be loaded.
    #[error(
        "the PKCS #11 module {} cannot be used ({reason}): install the library of the token, or \
         correct `pkcs11.module`", module.display()
    )]
    Module {
        /// The shared library.
        module: PathBuf,
        /// What the loader or the module says.
        reason: String,
    },
    /// No token has the label.
    #[error(
        "no token is labelled {token:?} ({there}): plug it in, or correct `pkcs11.token`",
        there = There(.labels)
    )]
    TokenMissing {
        /// The label in the configuration.
        token: String,
        /// The labels that are there.
        labels: Vec<String>,
    },
    /// Several tokens have the label.
    #[error("{count} tokens are labelled {token:?}: unplug or relabel all but one")]
    TokenAmbiguous {
        /// The label in the configuration.
        token: String,
        /// How many there are.
        count: usize,
    },
    /// The PIN file is not used.
    #[error("the PIN file {}: {problem}", path.display())]
    PinFile {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: PinFileProblem,
    },
    /// The token has no user PIN yet.
    #[error(
        "the token {token:?} has no user PIN yet: initialise it, for example with \
         pkcs11-tool --init-pin"
    )]
    PinUnset {
        /// Its label.
        token: String,
    },
    /// The token refuses the PIN.
    #[error(
        "the token {token:?} refuses the PIN in {}: correct the file before the agent is started \
         again, because the token counts wrong PINs and locks", path.display()
    )]
    PinWrong {
        /// Its label.
        token: String,
        /// The PIN file.
        path: PathBuf,
    },
    /// One wrong PIN more would lock the token.
    #[error(
        "the token {token:?} has one try left before it locks, which the agent does not use: \
         correct the PIN file and log in once by hand, for example with pkcs11-tool --login"
    )]
    PinLastTry {
        /// Its label.
        token: String,
    },
    /// Too many wrong PINs.
    #[error(
        "the user PIN of the token {token:?} is locked after too many wrong ones: unlock it with \
         the security officer's PIN (pkcs11-tool --init-pin --login --login-type so); its keys \
         are not lost"
    )]
    PinLocked {
        /// Its label.
        token: String,
    },
    /// The token lacks what is needed.
    #[error(
        "the token does not offer what the agent needs ({what}): AES-256 key generation and \
         AES-GCM; use a token that does"
    )]
    Mechanism {
        /// What the token said.
        what: String,
    },
    /// No room for another key.
    #[error("the token has no room for another key: delete objects that nobody uses")]
    TokenFull,
    /// The key of the epoch is not in the token.
    #[error(
        "the key {label} that sealed the root secret is not in the token {token:?}: an old copy \
         of the state was put back after a rotation, or the token was initialised or exchanged. \
         Bring back the newest copy or the right token; if there is none, recover from escrow or \
         provision anew"
    )]
    KeyGone {
        /// Label of the key.
        label: String,
        /// Label of the token.
        token: String,
    },
    /// Not what the token sealed for this robot and epoch.
    #[error(
        "the sealed root secret was altered, or sealed for another robot or epoch; the token \
         refuses it: restore the file from a copy, recover from escrow or provision anew"
    )]
    Tampered,
    /// Not the form of a sealed body.
    #[error(
        "the sealed root secret is not of the form this version of the agent writes for a PKCS \
         #11 token: use the version that wrote it, or restore the file from a copy"
    )]
    Body,
    /// The token went away or is busy.
    #[error(
        "the token stopped answering ({what}): look whether it is plugged in; it is tried again"
    )]
    Lost {
        /// What the token said.
        what: String,
    },
    /// Anything else.
    #[error("the token refuses ({what}): look it up in the manual of the token")]
    Refused {
        /// What the token said.
        what: String,
    },
}

struct There<'a>(&'a [String]);

impl std::fmt::Display for There<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            f.write_str("there is no token at all")
        } else {
            write!(f, "there are: {}", self.0.join(", "))
        }
    }
}

impl Pkcs11Error {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Lost { .. } => Advice::Retry,
            Self::KeyGone { .. } | Self::Tampered => Advice::Stop,
            Self::Module { .. }
            | Self::TokenMissing { .. }
            | Self::TokenAmbiguous { .. }
            | Self::PinFile { .. }
            | Self::PinUnset { .. }
            | Self::PinWrong { .. }
            | Self::PinLastTry { .. }
            | Self::PinLocked { .. }
            | Self::Mechanism { .. }
            | Self::TokenFull
            | Self::Body
            | Self::Refused { .. } => Advice::Fix,
        }
    }

    /// Whether the agent keeps trying: what is missing may come back by itself.
    #[must_use]
    pub fn heals(&self) -> bool {
        self.advice() == Advice::Retry || matches!(self, Self::TokenMissing { .. })
    }

    /// A failed decryption is the body's fault, unless the token says otherwise. `SoftHSM` knows
    /// nothing better than a general error for a tag that does not fit.
    pub(super) fn from_decryption(error: Error) -> Self {
        match error {
            Error::Pkcs11(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::GeneralError
                | RvError::FunctionFailed,
                Function::Decrypt,
            ) => Self::Tampered,
            other => other.into(),
        }
    }
}

impl From<Error> for Pkcs11Error {
    fn from(error: Error) -> Self {
        let what = describe(&error);
        let Error::Pkcs11(code, _) = error else { return Self::Refused { what } };
        match code {
            RvError::DeviceMemory => Self::TokenFull,
            RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::KeySizeRange
            | RvError::FunctionNotSupported => Self::Mechanism { what },
            RvError::DeviceError
            | RvError::DeviceRemoved
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::SessionClosed
            | RvError::SessionCount
            | RvError::SessionHandleInvalid
            | RvError::CryptokiNotInitialized
            | RvError::FunctionCanceled => Self::Lost { what },
            _ => Self::Refused { what },
        }
    }
}

/// `C_Function: CodeOfTheStandard`.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?}: {code:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_or_unplugged_token_is_told_from_a_refusing_one() {
        let call = |code| Pkcs11Error::from(Error::Pkcs11(code, Function::GenerateKey));
        assert!(matches!(call(RvError::DeviceMemory), Pkcs11Error::TokenFull));
        assert_eq!(call(RvError::DeviceRemoved).advice(), Advice::Retry);
        assert!(matches!(call(RvError::MechanismInvalid), Pkcs11Error::Mechanism { .. }));
        let other = call(RvError::TemplateInconsistent);
        assert_eq!(other.advice(), Advice::Fix);
        assert!(other.to_string().contains("C_GenerateKey: TemplateInconsistent"), "{other}");
    }
}
