//! The vault: sealed records of live sessions, so that a restart needs nothing else.
//!
//! Invariants:
//! - a record is sealed with XChaCha20-Poly1305 under a key derived from the root secret; its
//!   session id and its expiry are authenticated with it, so no record can pose as another;
//! - a record is on disk before the session it describes acts;
//! - a record that cannot be opened is reported and erased, never guessed at.

use std::path::Path;
use std::sync::Arc;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use moai_fhe::ModelCard;
use moai_transport::ids::{SessionId, TaskId};
use moai_transport::message::Manifest;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::{BootId, BootInstant};
use crate::secrets::{OsEntropy, SessionSeed, VaultKey};
use crate::store::{self, StoreError};
use crate::ttl::TtlClass;

const SESSIONS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("sessions");
const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const HEADER_LEN: usize = 1 + 8 + NONCE_LEN;
const SEED_LEN: usize = 32;
const MAX_RECORD_LEN: usize = 2 * 1024 * 1024;

/// A session as the vault keeps it. A clone shares the seed, it does not copy it.
#[derive(Clone)]
pub struct SessionRecord {
    /// The session.
    pub id: SessionId,
    /// What all its keys come from.
    pub seed: Arc<SessionSeed>,
    /// What may be known of it.
    pub facts: SessionFacts,
}

/// The part of a record that is not secret in itself.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFacts {
    /// The task it serves.
    pub task: TaskId,
    /// The model it was opened for, as the catalogue had it then.
    pub card: ModelCard,
    /// Its lifetime class.
    pub ttl: TtlClass,
    /// When it ends.
    pub expires: BootInstant,
    /// The boot `expires` belongs to.
    pub boot: BootId,
    /// What its evaluation keys look like; absent until they were generated once.
    pub manifest: Option<Manifest>,
}

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
    /// A record does not open under this root secret.
    #[error(
        "the record of session {session} does not open: it was changed, or another root secret \
         wrote it; it is erased and the session ends"
    )]
    Unreadable {
        /// The session whose record it was, or what stood in its place.
        session: String,
    },
}

/// The database of sealed session records.
pub struct Vault {
    database: Database,
    cipher: XChaCha20Poly1305,
}

impl Vault {
    /// Opens or creates the vault file.
    ///
    /// # Errors
    /// The file cannot be opened or is not a vault.
    pub fn open(path: &Path, key: &VaultKey) -> Result<Self, VaultError> {
        let database = store::open(path)?;
        let cipher = XChaCha20Poly1305::new(key.expose().into());
        Ok(Self { database, cipher })
    }

    /// Writes a record, replacing the session's earlier one; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write(&self, record: &SessionRecord) -> Result<(), VaultError> {
        let sealed = self.seal(record)?;
        let id = record.id.as_bytes();
        store::write(&self.database, SESSIONS, |table| {
            table.insert(id.as_slice(), sealed.as_slice())?;
            Ok(())
        })?;
        Ok(())
    }

    /// Erases a session's record.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn erase(&self, id: &SessionId) -> Result<(), VaultError> {
        store::write(&self.database, SESSIONS, |table| {
            table.remove(id.as_bytes().as_slice())?;
            Ok(())
        })?;
        Ok(())
    }

    /// Every record; those that do not open are erased and returned as errors.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load(&self) -> Result<Vec<Result<SessionRecord, VaultError>>, VaultError> {
        let mut records = Vec::new();
        let mut unreadable: Vec<Vec<u8>> = Vec::new();
        {
            let read = self.database.begin_read().map_err(StoreError::from)?;
            let Ok(table) = read.open_table(SESSIONS) else { return Ok(records) };
            for row in table.iter().map_err(StoreError::from)? {
                let (key, value) = row.map_err(StoreError::from)?;
                let record = self.unseal(key.value(), value.value());
                if record.is_none() {
                    unreadable.push(key.value().to_vec());
                }
                records.push(
                    record.ok_or_else(|| VaultError::Unreadable {
                        session: hex::encode(key.value()),
                    }),
                );
            }
        }
        if !unreadable.is_empty() {
            store::write(&self.database, SESSIONS, |table| {
                for key in &unreadable {
                    table.remove(key.as_slice())?;
                }
                Ok(())
            })?;
        }
        Ok(records)
    }

    fn seal(&self, record: &SessionRecord) -> Result<Vec<u8>, VaultError> {
        let mut plain = Zeroizing::new(record.seed.expose().to_vec());
        ciborium::into_writer(&record.facts, &mut *plain)
            .map_err(|error| VaultError::Encode(error.to_string()))?;
        let nonce: [u8; NONCE_LEN] = OsEntropy::bytes()?;
        let expires = record.facts.expires.0.to_be_bytes();
        let aad = associated_data(record.id.as_bytes(), &expires);
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &aad })
            .map_err(|_| VaultError::Encode("the record is too large".to_owned()))?;
        Ok([&[VERSION][..], &expires, &nonce, &sealed].concat())
    }

    fn unseal(&self, key: &[u8], value: &[u8]) -> Option<SessionRecord> {
        let id = SessionId::from_bytes(key.try_into().ok()?)?;
        let (header, sealed) = value.split_at_checked(HEADER_LEN)?;
        let (version, rest) = header.split_first()?;
        let (expires, nonce) = rest.split_at_checked(8)?;
        if *version != VERSION || value.len() > MAX_RECORD_LEN {
            return None;
        }
        let nonce: [u8; NONCE_LEN] = nonce.try_into().ok()?;
        let aad = associated_data(key, expires);
        let payload = Payload { msg: sealed, aad: &aad };
        let plain = Zeroizing::new(self.cipher.decrypt(&XNonce::from(nonce), payload).ok()?);
        let (seed, facts) = plain.split_at_checked(SEED_LEN)?;
        let seed = Arc::new(SessionSeed::from_bytes(seed.try_into().ok()?));
        let facts: SessionFacts = ciborium::from_reader(facts).ok()?;
        (facts.expires.0.to_be_bytes() == *expires).then_some(SessionRecord { id, seed, facts })
    }
}

fn associated_data(id: &[u8], expires: &[u8]) -> Vec<u8> {
    [b"moai/v1/session", id, expires].concat()
}

#[cfg(test)]
mod tests {
    use moai_fhe::Model;
    use moai_tpm::RootSecret;

    use super::*;

    fn card() -> ModelCard {
        let json = r#"{"format":1,"id":"m","kind":"lookup","levels":2,
            "window":{"samples":1,"channels":["x"]},"labels":["a","b"],
            "features":[{"channel":0,"statistic":"mean","transform":"none","edges":[0.5]}],
            "tables":[[[0,1]]],"bias":[0],"provenance":{}}"#;
        Model::from_json(json.as_bytes()).unwrap().card().clone()
    }

    fn record(n: u8) -> SessionRecord {
        let facts = SessionFacts {
            task: "arm".parse().unwrap(),
            card: card(),
            ttl: TtlClass::Sensitive,
            expires: BootInstant(5000),
            boot: BootId::of("boot"),
            manifest: None,
        };
        let seed = Arc::new(SessionSeed::from_bytes([n; 32]));
        SessionRecord { id: SessionId::new(1_700_000_000_000, [n; 10]), seed, facts }
    }

    fn open(path: &Path, root: u8) -> Vault {
        Vault::open(path, &VaultKey::derive(&RootSecret::from_bytes([root; 32]))).unwrap()
    }

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.redb");
        (directory, path)
    }

    #[test]
    fn a_record_survives_a_restart_and_goes_when_it_is_erased() {
        let (_directory, path) = file();
        open(&path, 1).write(&record(7)).unwrap();
        let vault = open(&path, 1);
        let kept = vault.load().unwrap().remove(0).unwrap();
        assert_eq!(kept.id, record(7).id);
        assert_eq!(kept.seed.expose(), &[7; 32]);
        assert_eq!(kept.facts.expires, BootInstant(5000));
        vault.erase(&kept.id).unwrap();
        assert!(vault.load().unwrap().is_empty());
    }

    #[test]
    fn under_another_root_secret_no_record_opens_and_all_are_erased() {
        let (_directory, path) = file();
        open(&path, 1).write(&record(7)).unwrap();
        let vault = open(&path, 2);
        assert!(matches!(vault.load().unwrap()[..], [Err(VaultError::Unreadable { .. })]));
        assert!(vault.load().unwrap().is_empty());
    }

    #[test]
    fn a_record_opens_only_in_its_own_place_and_unchanged() {
        let (_directory, path) = file();
        let vault = open(&path, 1);
        let (one, other) = (record(1), record(2));
        let sealed = vault.seal(&one).unwrap();
        assert!(vault.unseal(one.id.as_bytes(), &sealed).is_some());
        assert!(vault.unseal(other.id.as_bytes(), &sealed).is_none());
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(vault.unseal(one.id.as_bytes(), &changed).is_none(), "byte {index}");
            assert!(vault.unseal(one.id.as_bytes(), &sealed[..index]).is_none(), "cut {index}");
        }
    }

    #[test]
    fn the_seed_is_not_on_disk() {
        let (_directory, path) = file();
        let vault = open(&path, 1);
        let mut secret = record(3);
        secret.seed = Arc::new(SessionSeed::from_bytes(
            *b"a seed that must never be on disk".first_chunk().unwrap(),
        ));
        vault.write(&secret).unwrap();
        drop(vault);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(16).any(|window| window == &secret.seed.expose()[..16]));
    }
}
