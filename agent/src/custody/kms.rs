//! Custodian `kms`: envelope encryption by a cloud's key management service, here AWS KMS.
//! Google Cloud KMS is not offered yet.
//!
//! Invariants:
//! - the root secret never goes to the service: `GenerateDataKey` gives a data key in the clear and
//!   wrapped; the root is sealed here under the clear one, which is then wiped, and only the wrapped
//!   one is kept;
//! - purpose, robot and epoch are the encryption context of the data key and authenticated with the
//!   root, so no body can pose as another's;
//! - a body is opened with the configured key only, so nobody can slip in a root secret that was
//!   sealed under a key of his own.
//!
//! A body is `version u8 = 1 ‖ length u16 ‖ wrapped data key ‖ nonce 24 ‖ ciphertext 32 ‖ tag 16`,
//! sealed with XChaCha20-Poly1305.
//!
//! The key stays in the service: an old body opens for as long as somebody may use that key, so
//! this custodian does not shred.

mod client;
mod error;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use moai_tpm::{Epoch, RootSecret};
use moai_transport::ids::Identity;
use zeroize::Zeroizing;

use self::client::DataKey;
pub use self::error::KmsError;
use super::{Custodian, CustodianKind, CustodyError};
use crate::config::KmsConfig;
use crate::secrets::OsEntropy;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const CIPHERTEXT_LEN: usize = 32 + 16;
/// A wrapped data key of a symmetric key has less than 200 bytes.
const MAX_WRAPPED_LEN: usize = 1024;

/// A cloud's key management service as custodian.
pub struct KmsCustodian {
    config: KmsConfig,
    identity: Identity,
}

impl KmsCustodian {
    /// Does not talk to the service yet.
    #[must_use]
    pub fn new(config: KmsConfig, identity: Identity) -> Self {
        Self { config, identity }
    }

    fn context(&self, epoch: Epoch) -> Context<'_> {
        Context { purpose: Purpose::Root, identity: &self.identity, epoch }
    }
}

impl Custodian for KmsCustodian {
    fn kind(&self) -> CustodianKind {
        CustodianKind::Kms
    }

    fn describe(&self) -> Result<String, CustodyError> {
        let KmsConfig { key, region, endpoint } = &self.config;
        let place = endpoint.as_ref().map_or_else(String::new, |at| format!(" at {at}"));
        Ok(format!("AWS KMS key {key} in {region}{place}"))
    }

    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError> {
        Ok(client::random(&self.config)?)
    }

    fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        _previous: Option<&[u8]>,
    ) -> Result<Vec<u8>, CustodyError> {
        Ok(seal(&self.config, self.context(epoch), root)?)
    }

    fn unseal(&self, epoch: Epoch, body: &[u8]) -> Result<RootSecret, CustodyError> {
        Ok(open(&self.config, self.context(epoch), body)?)
    }

    fn retire(&self, _keep: Epoch, _body: &[u8]) -> Result<(), CustodyError> {
        // The service has one key for all epochs.
        Ok(())
    }

    fn shreds(&self) -> bool {
        false
    }
}

/// What a body is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The robot's own sealed root secret.
    Root,
    /// The copy for the day the robot's custodian is lost.
    Escrow,
}

/// What a body is bound to; the service logs it, so it holds nothing secret.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) purpose: Purpose,
    pub(super) identity: &'a Identity,
    pub(super) epoch: Epoch,
}

impl Context<'_> {
    /// As key and value, in the order in which they are authenticated.
    fn pairs(&self) -> [(&'static str, String); 3] {
        let purpose = match self.purpose {
            Purpose::Root => "moai-agent root secret",
            Purpose::Escrow => "moai-agent escrow",
        };
        [
            ("purpose", purpose.to_owned()),
            ("identity", self.identity.to_string()),
            ("epoch", self.epoch.to_string()),
        ]
    }

    fn associated_data(&self) -> Vec<u8> {
        let [purpose, identity, epoch] = self.pairs().map(|(_, value)| value);
        format!("{VERSION}\n{purpose}\n{identity}\n{epoch}").into_bytes()
    }
}

/// Seals a root secret under a fresh data key; blocks.
///
/// # Errors
/// The service refuses or cannot be reached.
pub(super) fn seal(
    config: &KmsConfig,
    context: Context<'_>,
    root: &RootSecret,
) -> Result<Vec<u8>, KmsError> {
    let DataKey { plain, wrapped } = client::data_key(config, context)?;
    let length = u16::try_from(wrapped.len()).ok().filter(|_| wrapped.len() <= MAX_WRAPPED_LEN);
    let length = length.ok_or(KmsError::Answer { what: "a wrapped data key that is too long" })?;
    let nonce = OsEntropy::bytes::<NONCE_LEN>()?;
    let payload = Payload { msg: root.expose(), aad: &context.associated_data() };
    let sealed = XChaCha20Poly1305::new((&**plain).into())
        .encrypt(&XNonce::from(nonce), payload)
        .expect("32 bytes are not too long for XChaCha20-Poly1305");
    let mut body = vec![VERSION];
    body.extend(length.to_be_bytes());
    body.extend(wrapped);
    body.extend(nonce);
    body.extend(sealed);
    Ok(body)
}

/// Opens what [`seal`] made; blocks.
///
/// # Errors
/// It was altered or is bound to something else, the service refuses or cannot be reached.
pub(super) fn open(
    config: &KmsConfig,
    context: Context<'_>,
    body: &[u8],
) -> Result<RootSecret, KmsError> {
    let Parts { wrapped, nonce, sealed } = Parts::parse(body).ok_or(KmsError::Body)?;
    let plain = client::unwrap(config, context, wrapped)?;
    let payload = Payload { msg: sealed, aad: &context.associated_data() };
    let root = XChaCha20Poly1305::new((&**plain).into())
        .decrypt(&XNonce::from(nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| KmsError::Tampered)?;
    let root = root.as_slice().try_into().map_err(|_| KmsError::Body)?;
    Ok(RootSecret::copy_of(root))
}

/// A body taken apart.
struct Parts<'a> {
    wrapped: &'a [u8],
    nonce: [u8; NONCE_LEN],
    sealed: &'a [u8; CIPHERTEXT_LEN],
}

impl<'a> Parts<'a> {
    fn parse(body: &'a [u8]) -> Option<Self> {
        let (&[VERSION, high, low], rest) = body.split_first_chunk()? else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > MAX_WRAPPED_LEN {
            return None;
        }
        let (wrapped, rest) = rest.split_at_checked(length)?;
        let (nonce, sealed) = rest.split_first_chunk()?;
        Some(Self { wrapped, nonce: *nonce, sealed: sealed.try_into().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parsing_never_panics_and_takes_every_byte(
            body in proptest::collection::vec(any::<u8>(), 0..1400),
        ) {
            if let Some(parts) = Parts::parse(&body) {
                let parsed = 3 + parts.wrapped.len() + NONCE_LEN + CIPHERTEXT_LEN;
                prop_assert_eq!(parsed, body.len());
            }
        }

        #[test]
        fn only_a_body_of_exact_length_is_taken_apart(length in 0_usize..1100, cut in 1_usize..200) {
            let mut body = vec![VERSION];
            body.extend(u16::try_from(length).unwrap().to_be_bytes());
            body.extend(vec![7; length + NONCE_LEN + CIPHERTEXT_LEN]);
            let valid = (1..=MAX_WRAPPED_LEN).contains(&length);
            prop_assert_eq!(Parts::parse(&body).is_some(), valid);
            let shorter = body.len().saturating_sub(cut);
            prop_assert!(Parts::parse(&body[..shorter]).is_none());
            body.push(0);
            prop_assert!(Parts::parse(&body).is_none());
        }
    }
}
