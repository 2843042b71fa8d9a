//! The vault: sealed records of live sessions, so that a restart needs nothing else.
//!
//! Invariants:
//! - a record is sealed under a key derived from the root secret of one epoch; all records are of
//!   the epoch that the vault's marker names, which is in the clear;
//! - the next epoch begins in one transaction: marker and all records, or nothing;
//! - a root secret of another epoch than the marker's opens nothing and erases nothing;
//! - a record is on disk before the session it describes acts;
//! - a session that ended leaves its jobs' epitaph, without a seed, until each of them has its error;
//! - a seed made ahead becomes one session's and ceases to be ahead in one transaction;
//! - a record that cannot be opened in its own epoch is reported and erased, never guessed at.

mod cipher;
mod error;
mod locked;
mod record;
mod rewrap;
mod tables;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moai_tpm::Epoch;
use moai_transport::ids::SessionId;
use redb::{Database, ReadableDatabase, ReadableTable};
use zeroize::Zeroizing;

use self::cipher::EpochCipher;
pub use self::error::VaultError;
pub use self::locked::LockedVault;
pub use self::record::{EndedFacts, Release, SessionFacts, SessionRecord, WarmFacts, WarmRecord};
use self::tables::{
    AUDIT, AUDIT_PURPOSE, ENDED, ENDED_PURPOSE, SEED_LEN, SESSIONS, Sealed, WARM, WARM_PURPOSE,
    check_marker, encoded, purpose, read_marker, session_id,
};
use crate::secrets::SessionSeed;
use crate::store::{self, StoreError};

/// The database of sealed session records.
pub struct Vault {
    database: Database,
    /// Held for a whole transaction, so that none falls between two epochs.
    cipher: Mutex<EpochCipher>,
}

impl Vault {
    /// The epoch of all records on disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn marker(&self) -> Result<Option<Epoch>, VaultError> {
        read_marker(&self.database)
    }

    /// Makes sure that records are written in `epoch`.
    ///
    /// # Errors
    /// They are written in another.
    pub fn expect(&self, epoch: Epoch) -> Result<(), VaultError> {
        let vault = self.cipher().epoch;
        if vault == epoch { Ok(()) } else { Err(VaultError::OtherEpoch { vault, root: epoch }) }
    }

    /// Writes a record, replacing the session's earlier one; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write(&self, record: &SessionRecord) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal(record)?;
        self.replace(&cipher, None, Some((SESSIONS, &record.id, &sealed)))
    }

    /// Erases a session's record and its seed, and keeps in their place why it ended; durable when
    /// it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn end(&self, id: &SessionId, facts: &EndedFacts) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal_bytes(&purpose(ENDED_PURPOSE, id), &encoded(facts)?)?;
        self.replace(&cipher, Some((SESSIONS, id)), Some((ENDED, id, &sealed)))
    }

    /// Forgets an ended session.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget(&self, id: &SessionId) -> Result<(), VaultError> {
        self.replace(&self.cipher(), Some((ENDED, id)), None)
    }

    /// Every ended session that is not forgotten; records that do not open are erased.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load_ended(&self) -> Result<Vec<(SessionId, EndedFacts)>, VaultError> {
        self.load_sealed(ENDED, ENDED_PURPOSE, |id, plain| {
            Some((id, ciborium::from_reader(plain).ok()?))
        })
    }

    /// Keeps a seed made ahead; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write_warm(&self, record: &WarmRecord) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let facts = encoded(&record.facts)?;
        let mut plain = Zeroizing::new(Vec::with_capacity(SEED_LEN + facts.len()));
        plain.extend_from_slice(record.seed.expose());
        plain.extend_from_slice(&facts);
        let sealed = cipher.seal_bytes(&purpose(WARM_PURPOSE, &record.id), &plain)?;
        self.replace(&cipher, None, Some((WARM, &record.id, &sealed)))
    }

    /// Every seed made ahead; records that do not open are erased.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load_warm(&self) -> Result<Vec<WarmRecord>, VaultError> {
        self.load_sealed(WARM, WARM_PURPOSE, |id, plain| {
            let (seed, facts) = plain.split_first_chunk::<SEED_LEN>()?;
            let seed = Arc::new(SessionSeed::from_bytes(*seed));
            Some(WarmRecord { id, seed, facts: ciborium::from_reader(facts).ok()? })
        })
    }

    /// Makes a seed made ahead that of a session: its warm record goes as the session's comes, in
    /// one durable transaction.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn adopt(&self, warm: &SessionId, record: &SessionRecord) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal(record)?;
        self.replace(&cipher, Some((WARM, warm)), Some((SESSIONS, &record.id, &sealed)))
    }

    /// Erases a seed made ahead.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn erase_warm(&self, id: &SessionId) -> Result<(), VaultError> {
        self.replace(&self.cipher(), Some((WARM, id)), None)
    }

    /// Removes one record and inserts another, in one durable transaction.
    fn replace(
        &self,
        cipher: &EpochCipher,
        remove: Option<(Sealed, &SessionId)>,
        insert: Option<(Sealed, &SessionId, &[u8])>,
    ) -> Result<(), VaultError> {
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        check_marker(&transaction, cipher.epoch)?;
        if let Some((table, id)) = remove {
            let mut table = transaction.open_table(table).map_err(StoreError::from)?;
            table.remove(id.as_bytes().as_slice()).map_err(StoreError::from)?;
        }
        if let Some((table, id, sealed)) = insert {
            let mut table = transaction.open_table(table).map_err(StoreError::from)?;
            table.insert(id.as_bytes().as_slice(), sealed).map_err(StoreError::from)?;
        }
        transaction.commit().map_err(StoreError::from)?;
        Ok(())
    }

    fn load_sealed<T>(
        &self,
        table: Sealed,
        sealed_for: &[u8],
        read: impl Fn(SessionId, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, VaultError> {
        let cipher = self.cipher();
        let mut records = Vec::new();
        let mut unreadable: Vec<Vec<u8>> = Vec::new();
        {
            let snapshot = self.database.begin_read().map_err(StoreError::from)?;
            let Ok(rows) = snapshot.open_table(table) else { return Ok(records) };
            for row in rows.iter().map_err(StoreError::from)? {
                let (key, value) = row.map_err(StoreError::from)?;
                let record = session_id(key.value()).and_then(|id| {
                    let plain = cipher.open_bytes(&purpose(sealed_for, &id), value.value())?;
                    read(id, &plain)
                });
                match record {
                    Some(record) => records.push(record),
                    None => unreadable.push(key.value().to_vec()),
                }
            }
        }
        if !unreadable.is_empty() {
            tracing::error!(count = unreadable.len(), "records that do not open are erased");
            store::write(&self.database, table, |table| {
                for key in &unreadable {
                    table.remove(key.as_slice())?;
                }
                Ok(())
            })?;
        }
        Ok(records)
    }

    /// Every record; those that do not open are erased and returned as errors.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load(&self) -> Result<Vec<Result<SessionRecord, VaultError>>, VaultError> {
        let cipher = self.cipher();
        let mut records = Vec::new();
        let mut unreadable: Vec<Vec<u8>> = Vec::new();
        {
            let read = self.database.begin_read().map_err(StoreError::from)?;
            let Ok(table) = read.open_table(SESSIONS) else { return Ok(records) };
            for row in table.iter().map_err(StoreError::from)? {
                let (key, value) = row.map_err(StoreError::from)?;
                let record = cipher.open(key.value(), value.value());
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

    /// What the audit log keeps here; `None` if it keeps nothing that opens.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read_audit(&self) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let cipher = self.cipher();
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let table = match read.open_table(AUDIT) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(StoreError::from(error).into()),
        };
        let sealed = table.get(()).map_err(StoreError::from)?;
        Ok(sealed.and_then(|sealed| cipher.open_bytes(AUDIT_PURPOSE, sealed.value())))
    }

    /// Keeps something for the audit log, in place of what it kept before; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write_audit(&self, plain: &[u8]) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal_bytes(AUDIT_PURPOSE, plain)?;
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        check_marker(&transaction, cipher.epoch)?;
        {
            let mut table = transaction.open_table(AUDIT).map_err(StoreError::from)?;
            table.insert((), sealed.as_slice()).map_err(StoreError::from)?;
        }
        transaction.commit().map_err(StoreError::from)?;
        Ok(())
    }

    fn cipher(&self) -> MutexGuard<'_, EpochCipher> {
        self.cipher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
