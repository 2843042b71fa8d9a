//! How a record is sealed.
//!
//! Invariants:
//! - a sealed record is `version u8 ‖ expiry u64 ‖ nonce 24 ‖ ciphertext and tag`
//!   (XChaCha20-Poly1305); session id, epoch and expiry are authenticated with it, so no record can
//!   pose as another, and none of an earlier epoch opens in a later one;
//! - reading never panics, whatever the bytes.

use std::sync::Arc;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use moai_tpm::Epoch;
use moai_transport::ids::SessionId;
use zeroize::Zeroizing;

use super::{SessionFacts, SessionRecord, VaultError};
use crate::secrets::{OsEntropy, SessionSeed, VaultKey, scrubbed};

const VERSION: u8 = 2;
const NONCE_LEN: usize = 24;
const HEADER_LEN: usize = 1 + 8 + NONCE_LEN;
const SEED_LEN: usize = 32;
const MAX_RECORD_LEN: usize = 2 * 1024 * 1024;

/// Seals and opens records of one epoch.
pub(super) struct EpochCipher {
    /// Where moving it leaves no copy of the key, which must be gone with its epoch.
    cipher: Box<XChaCha20Poly1305>,
    pub(super) epoch: Epoch,
}

impl EpochCipher {
    pub(super) fn new(key: &VaultKey, epoch: Epoch) -> Self {
        let cipher = scrubbed(|| Box::new(XChaCha20Poly1305::new(key.expose().into())));
        Self { cipher, epoch }
    }

    /// Seals something that is no session record; `purpose` is authenticated with it.
    pub(super) fn seal_bytes(&self, purpose: &[u8], plain: &[u8]) -> Result<Vec<u8>, VaultError> {
        let nonce: [u8; NONCE_LEN] = OsEntropy::bytes()?;
        let aad = [purpose, &self.epoch.0.to_be_bytes()].concat();
        let payload = Payload { msg: plain, aad: &aad };
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| VaultError::Encode("it is too large".to_owned()))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// `None` if it is damaged, of another epoch, or of another purpose.
    pub(super) fn open_bytes(&self, purpose: &[u8], value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = value.split_first_chunk::<NONCE_LEN>()?;
        if value.len() > MAX_RECORD_LEN {
            return None;
        }
        let aad = [purpose, &self.epoch.0.to_be_bytes()].concat();
        let payload = Payload { msg: sealed, aad: &aad };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).ok().map(Zeroizing::new)
    }

    pub(super) fn seal(&self, record: &SessionRecord) -> Result<Vec<u8>, VaultError> {
        let mut plain = Zeroizing::new(record.seed.expose().to_vec());
        ciborium::into_writer(&record.facts, &mut *plain)
            .map_err(|error| VaultError::Encode(error.to_string()))?;
        let nonce: [u8; NONCE_LEN] = OsEntropy::bytes()?;
        let expires = record.facts.expires.0.to_be_bytes();
        let aad = self.associated_data(record.id.as_bytes(), &expires);
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &aad })
            .map_err(|_| VaultError::Encode("the record is too large".to_owned()))?;
        Ok([&[VERSION][..], &expires, &nonce, &sealed].concat())
    }

    /// `None` if the record is damaged, of another epoch, or another session's.
    pub(super) fn open(&self, key: &[u8], value: &[u8]) -> Option<SessionRecord> {
        let id = SessionId::from_bytes(key.try_into().ok()?)?;
        let (header, sealed) = value.split_at_checked(HEADER_LEN)?;
        let (version, rest) = header.split_first()?;
        let (expires, nonce) = rest.split_at_checked(8)?;
        if *version != VERSION || value.len() > MAX_RECORD_LEN {
            return None;
        }
        let nonce: [u8; NONCE_LEN] = nonce.try_into().ok()?;
        let aad = self.associated_data(key, expires);
        let payload = Payload { msg: sealed, aad: &aad };
        let plain = Zeroizing::new(self.cipher.decrypt(&XNonce::from(nonce), payload).ok()?);
        let (seed, facts) = plain.split_at_checked(SEED_LEN)?;
        let seed = Arc::new(SessionSeed::from_bytes(seed.try_into().ok()?));
        let facts: SessionFacts = ciborium::from_reader(facts).ok()?;
        (facts.expires.0.to_be_bytes() == *expires).then_some(SessionRecord { id, seed, facts })
    }

    fn associated_data(&self, id: &[u8], expires: &[u8]) -> Vec<u8> {
        [b"moai/v1/session", id, &self.epoch.0.to_be_bytes(), expires].concat()
    }
}

#[cfg(test)]
mod tests {
    use moai_tpm::RootSecret;

    use super::super::tests::record;
    use super::*;

    fn cipher(root: u8, epoch: u32) -> EpochCipher {
        let key = VaultKey::derive(&RootSecret::from_bytes([root; 32]));
        EpochCipher::new(&key, Epoch(epoch))
    }

    #[test]
    fn a_record_opens_only_in_its_own_place_and_unchanged() {
        let cipher = cipher(1, 1);
        let (one, other) = (record(1), record(2));
        let sealed = cipher.seal(&one).unwrap();
        assert!(cipher.open(one.id.as_bytes(), &sealed).is_some());
        assert!(cipher.open(other.id.as_bytes(), &sealed).is_none());
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(cipher.open(one.id.as_bytes(), &changed).is_none(), "byte {index}");
            assert!(cipher.open(one.id.as_bytes(), &sealed[..index]).is_none(), "cut {index}");
        }
    }

    #[test]
    fn a_record_opens_only_in_its_epoch_and_under_its_root() {
        let sealed = cipher(1, 1).seal(&record(1)).unwrap();
        let id = record(1).id;
        assert!(cipher(1, 1).open(id.as_bytes(), &sealed).is_some());
        assert!(cipher(1, 2).open(id.as_bytes(), &sealed).is_none());
        assert!(cipher(2, 1).open(id.as_bytes(), &sealed).is_none());
    }
}
