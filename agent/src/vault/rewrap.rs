//! The beginning of the next epoch.
//!
//! Invariant: marker and all records change in one transaction, or nothing does.

use moai_tpm::Epoch;
use redb::{ReadableTable, WriteTransaction};

use super::cipher::EpochCipher;
use super::tables::{
    AUDIT, AUDIT_PURPOSE, ENDED, ENDED_PURPOSE, MARKER, SESSIONS, Sealed, WARM, WARM_PURPOSE,
    check_marker, purpose, session_id,
};
use super::{Vault, VaultError};
use crate::secrets::VaultKey;
use crate::store::StoreError;

impl Vault {
    /// Begins the next epoch: seals every record under `key` and sets the marker, in one durable
    /// transaction. Returns the number of records. One that does not open stays as it is, to be
    /// reported by [`Self::load`].
    ///
    /// # Errors
    /// The disk refuses; the vault is in the one epoch or the other then, and only a new start
    /// tells which if the disk failed while it was told to commit.
    pub fn rewrap(&self, key: &VaultKey, epoch: Epoch) -> Result<usize, VaultError> {
        let mut cipher = self.cipher();
        let next = EpochCipher::new(key, epoch);
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        check_marker(&transaction, cipher.epoch)?;
        let count = {
            let mut sessions = transaction.open_table(SESSIONS).map_err(StoreError::from)?;
            let mut rewrapped = Vec::new();
            for row in sessions.iter().map_err(StoreError::from)? {
                let (id, value) = row.map_err(StoreError::from)?;
                if let Some(record) = cipher.open(id.value(), value.value()) {
                    rewrapped.push((id.value().to_vec(), next.seal(&record)?));
                }
            }
            for (id, sealed) in &rewrapped {
                sessions.insert(id.as_slice(), sealed.as_slice()).map_err(StoreError::from)?;
            }
            let mut audit = transaction.open_table(AUDIT).map_err(StoreError::from)?;
            let kept = audit.get(()).map_err(StoreError::from)?;
            let plain = kept.and_then(|kept| cipher.open_bytes(AUDIT_PURPOSE, kept.value()));
            if let Some(plain) = plain {
                let sealed = next.seal_bytes(AUDIT_PURPOSE, &plain)?;
                audit.insert((), sealed.as_slice()).map_err(StoreError::from)?;
            }
            for (table, sealed_for) in [(ENDED, ENDED_PURPOSE), (WARM, WARM_PURPOSE)] {
                rewrap_sealed(&transaction, table, sealed_for, &cipher, &next)?;
            }
            let mut marker = transaction.open_table(MARKER).map_err(StoreError::from)?;
            marker.insert((), epoch.0).map_err(StoreError::from)?;
            rewrapped.len()
        };
        transaction.commit().map_err(StoreError::from)?;
        *cipher = next;
        Ok(count)
    }
}

fn rewrap_sealed(
    transaction: &WriteTransaction,
    table: Sealed,
    sealed_for: &[u8],
    old: &EpochCipher,
    new: &EpochCipher,
) -> Result<(), VaultError> {
    let mut records = transaction.open_table(table).map_err(StoreError::from)?;
    let mut rewrapped = Vec::new();
    for row in records.iter().map_err(StoreError::from)? {
        let (key, value) = row.map_err(StoreError::from)?;
        let Some(id) = session_id(key.value()) else { continue };
        let purpose = purpose(sealed_for, &id);
        if let Some(plain) = old.open_bytes(&purpose, value.value()) {
            rewrapped.push((id, new.seal_bytes(&purpose, &plain)?));
        }
    }
    for (id, sealed) in &rewrapped {
        records.insert(id.as_bytes().as_slice(), sealed.as_slice()).map_err(StoreError::from)?;
    }
    Ok(())
}
