//! What the vault keeps of the log: its keys, and its newest entry.
//!
//! Invariants:
//! - a key is random, serves one epoch, and is on disk only inside the vault;
//! - keys are in the order of their epochs; the last one is in force;
//! - it is sealed after the entries it knows of are durable, so the log may be ahead of it by what
//!   was written in between, and never behind.

use moai_tpm::Epoch;
use zeroize::{Zeroize as _, Zeroizing};

use super::line::LineHash;
use crate::secrets::OsEntropy;

const VERSION: u8 = 1;
const KEY_LEN: usize = 32;
const HEADER_LEN: usize = 1 + 8 + 32 + 8;
const ENTRY_LEN: usize = 4 + 8 + KEY_LEN;

/// The MAC key of one epoch's entries.
pub(super) struct AuditKey(Box<Zeroizing<[u8; KEY_LEN]>>);

impl AuditKey {
    fn random() -> Result<Self, getrandom::Error> {
        Ok(Self::from_bytes(OsEntropy::bytes()?))
    }

    pub(super) fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        let mut key = Self(Box::default());
        key.0.copy_from_slice(&bytes);
        bytes.zeroize();
        key
    }

    /// The bytes: for the MAC and for the vault.
    pub(super) fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// A key and what it is for.
pub(super) struct EpochKey {
    pub(super) epoch: Epoch,
    /// Sequence number of the first entry that has its MAC from this key.
    pub(super) first: u64,
    pub(super) key: AuditKey,
}

/// The sealed part of the log.
pub(super) struct AuditSeal {
    keys: Vec<EpochKey>,
    /// Sequence number of the newest entry; 0 before the first.
    pub(super) newest: u64,
    /// That entry's hash.
    pub(super) hash: LineHash,
    /// Sequence number of the oldest entry that is kept.
    pub(super) oldest: u64,
}

impl AuditSeal {
    /// Of a log that begins.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub(super) fn begin(epoch: Epoch) -> Result<Self, getrandom::Error> {
        let first = EpochKey { epoch, first: 1, key: AuditKey::random()? };
        Ok(Self { keys: vec![first], newest: 0, hash: LineHash::NONE, oldest: 1 })
    }

    /// Every key that entries may have their MAC from.
    pub(super) fn keys(&self) -> &[EpochKey] {
        &self.keys
    }

    /// The key in force.
    pub(super) fn present(&self) -> &EpochKey {
        self.keys.last().expect("a seal has a key from its beginning on")
    }

    /// Entries after the newest have a new key.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub(super) fn next_epoch(&mut self, epoch: Epoch) -> Result<(), getrandom::Error> {
        let key = AuditKey::random()?;
        self.keys.push(EpochKey { epoch, first: self.newest + 1, key });
        Ok(())
    }

    /// Entries before `oldest` are not kept, nor are the keys only they needed.
    pub(super) fn forget_before(&mut self, oldest: u64) {
        self.oldest = oldest;
        let needed = self.keys.iter().rposition(|key| key.first <= oldest).unwrap_or(0);
        self.keys.drain(..needed);
    }

    pub(super) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let length = HEADER_LEN + self.keys.len() * ENTRY_LEN;
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.newest.to_be_bytes());
        bytes.extend_from_slice(&self.hash.0);
        bytes.extend_from_slice(&self.oldest.to_be_bytes());
        for EpochKey { epoch, first, key } in &self.keys {
            bytes.extend_from_slice(&epoch.0.to_be_bytes());
            bytes.extend_from_slice(&first.to_be_bytes());
            bytes.extend_from_slice(key.expose());
        }
        bytes
    }

    /// `None` if the bytes are no seal.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (newest, rest) = rest.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk()?;
        let (oldest, rest) = rest.split_first_chunk()?;
        let (entries, rest) = rest.as_chunks::<ENTRY_LEN>();
        if *version != VERSION || !rest.is_empty() || entries.is_empty() {
            return None;
        }
        let entry = |entry: &[u8; ENTRY_LEN]| {
            let (epoch, entry) = entry.split_first_chunk()?;
            let (first, key) = entry.split_first_chunk()?;
            Some(EpochKey {
                epoch: Epoch(u32::from_be_bytes(*epoch)),
                first: u64::from_be_bytes(*first),
                key: AuditKey::from_bytes(key.try_into().ok()?),
            })
        };
        Some(Self {
            keys: entries.iter().map(entry).collect::<Option<_>>()?,
            newest: u64::from_be_bytes(*newest),
            hash: LineHash(*hash),
            oldest: u64::from_be_bytes(*oldest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_keeps_the_keys_of_the_entries_that_are_kept() {
        let mut seal = AuditSeal::begin(Epoch(1)).unwrap();
        for epoch in 2..=4 {
            seal.newest = u64::from(epoch) * 10;
            seal.next_epoch(Epoch(epoch)).unwrap();
        }
        let firsts = |seal: &AuditSeal| seal.keys().iter().map(|k| k.first).collect::<Vec<_>>();
        assert_eq!(firsts(&seal), [1, 21, 31, 41]);
        seal.forget_before(30);
        assert_eq!(firsts(&seal), [21, 31, 41]);
        seal.forget_before(31);
        assert_eq!(firsts(&seal), [31, 41]);
        let again = AuditSeal::from_bytes(&seal.to_bytes()).unwrap();
        assert_eq!((firsts(&again), again.newest, again.oldest), (vec![31, 41], 40, 31));
        assert_eq!(again.present().key.expose(), seal.present().key.expose());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = AuditSeal::from_bytes(&bytes);
        }
    }
}
