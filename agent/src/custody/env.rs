//! Custodian `env`: a key in an environment variable. For development only.
//!
//! Invariants:
//! - it exists only where the configuration says `development = true`, and says so loudly whenever
//!   it is opened;
//! - a body is `version u8 = 1 ‖ nonce 24 ‖ ciphertext 32 ‖ tag 16` (XChaCha20-Poly1305); the epoch
//!   is authenticated with it;
//! - it shreds nothing: who has the variable opens every epoch.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use moai_tpm::{Advice, Epoch, RootSecret};
use zeroize::Zeroizing;

use super::custodian::{Custodian, CustodianKind};
use super::error::CustodyError;
use crate::config::Config;
use crate::secrets::OsEntropy;

/// The variable that holds the key: 64 hexadecimal digits.
pub const KEY_VARIABLE: &str = "MOAI_DEVELOPMENT_KEY";

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;

/// Why custodian `env` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// The configuration does not allow it.
    #[error(
        "custodian \"env\" is refused: it protects nothing. Use another custodian, or set \
         `development = true` on a machine that holds nothing worth protecting"
    )]
    NotDevelopment,
    /// The variable is not set.
    #[error("{KEY_VARIABLE} is not set: set it to 64 hexadecimal digits (openssl rand -hex 32)")]
    NoKey,
    /// The variable holds something else.
    #[error("{KEY_VARIABLE} is not 64 hexadecimal digits: make one with openssl rand -hex 32")]
    MalformedKey,
    /// The sealed root secret is not one of this custodian.
    #[error("the sealed root secret is damaged: restore the file from a copy")]
    Body,
    /// The sealed root secret does not open.
    #[error(
        "the sealed root secret does not open under {KEY_VARIABLE}: set the key it was provisioned \
         with, or restore the file from a copy"
    )]
    Refused,
}

impl EnvError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::NotDevelopment | Self::NoKey | Self::MalformedKey | Self::Refused => Advice::Fix,
            Self::Body => Advice::Stop,
        }
    }
}

/// A key in the process's environment.
pub struct EnvCustodian {
    cipher: XChaCha20Poly1305,
}

impl EnvCustodian {
    /// Takes the key from [`KEY_VARIABLE`].
    ///
    /// # Errors
    /// The configuration does not say `development = true`, or there is no usable key.
    pub fn open(config: &Config) -> Result<Self, EnvError> {
        if !config.development {
            return Err(EnvError::NotDevelopment);
        }
        let text = Zeroizing::new(std::env::var(KEY_VARIABLE).map_err(|_| EnvError::NoKey)?);
        let custodian = Self::from_hex(&text)?;
        tracing::warn!(
            "DEVELOPMENT ONLY: the root secret is protected by nothing but {KEY_VARIABLE}; never \
             run a robot in the field like this"
        );
        Ok(custodian)
    }

    pub(super) fn from_hex(text: &str) -> Result<Self, EnvError> {
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), key.as_mut_slice())
            .map_err(|_| EnvError::MalformedKey)?;
        Ok(Self { cipher: XChaCha20Poly1305::new((&*key).into()) })
    }
}

impl Custodian for EnvCustodian {
    fn kind(&self) -> CustodianKind {
        CustodianKind::Env
    }

    fn describe(&self) -> Result<String, CustodyError> {
        Ok(format!("env ({KEY_VARIABLE}), for development only"))
    }

    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError> {
        Ok(Box::new(Zeroizing::new(OsEntropy::bytes()?)))
    }

    fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        _previous: Option<&[u8]>,
    ) -> Result<Vec<u8>, CustodyError> {
        let nonce: [u8; NONCE_LEN] = OsEntropy::bytes()?;
        let payload = Payload { msg: root.expose(), aad: &associated_data(epoch) };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| CustodyError::Env(EnvError::Body))?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    fn unseal(&self, epoch: Epoch, body: &[u8]) -> Result<RootSecret, CustodyError> {
        let [VERSION, rest @ ..] = body else { return Err(EnvError::Body.into()) };
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(EnvError::Body)?;
        let payload = Payload { msg: sealed, aad: &associated_data(epoch) };
        let root = self.cipher.decrypt(&XNonce::from(*nonce), payload);
        let root = Zeroizing::new(root.map_err(|_| EnvError::Refused)?);
        Ok(RootSecret::from_bytes(root.as_slice().try_into().map_err(|_| EnvError::Body)?))
    }

    fn retire(&self, _keep: Epoch, _body: &[u8]) -> Result<(), CustodyError> {
        Ok(())
    }

    fn shreds(&self) -> bool {
        false
    }
}

fn associated_data(epoch: Epoch) -> Vec<u8> {
    format!("moai/v1/root env epoch {epoch}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custodian(digit: &str) -> EnvCustodian {
        EnvCustodian::from_hex(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn what_it_seals_opens_in_the_same_epoch_under_the_same_key_only() {
        let root = RootSecret::from_bytes([7; 32]);
        let body = custodian("a").seal(Epoch(3), &root, None).unwrap();
        assert_eq!(custodian("a").unseal(Epoch(3), &body).unwrap().expose(), root.expose());
        assert!(custodian("a").unseal(Epoch(4), &body).is_err());
        assert!(custodian("b").unseal(Epoch(3), &body).is_err());
        for index in 0..body.len() {
            let mut changed = body.clone();
            changed[index] ^= 1;
            assert!(custodian("a").unseal(Epoch(3), &changed).is_err(), "byte {index}");
            assert!(custodian("a").unseal(Epoch(3), &body[..index]).is_err(), "cut {index}");
        }
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        for text in ["", "a", &"a".repeat(63), &"a".repeat(65), &"g".repeat(64)] {
            assert!(matches!(EnvCustodian::from_hex(text), Err(EnvError::MalformedKey)), "{text}");
        }
    }
}
