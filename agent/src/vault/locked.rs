//! The vault before the root secret is at hand.
//!
//! Invariant: nothing is written but the marker of a vault that has none.

use std::path::Path;
use std::sync::Mutex;

use moai_tpm::Epoch;
use redb::{Database, ReadableDatabase, ReadableTable};

use super::cipher::EpochCipher;
use super::tables::{MARKER, SESSIONS, read_marker};
use super::{Vault, VaultError};
use crate::secrets::VaultKey;
use crate::store::{self, StoreError};

/// The vault's file before the root secret is at hand.
pub struct LockedVault {
    database: Database,
}

impl LockedVault {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file cannot be opened or is not a vault.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        Ok(Self { database: store::open(path)? })
    }

    /// Opens or creates the file. One that is damaged is moved aside, since a robot that starts
    /// without its sessions is better than one that does not start; returns its new name, which ends
    /// in `now`, in seconds since 1970.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_or_begin(path: &Path, now: u64) -> Result<(Self, Option<String>), VaultError> {
        let damage = match Self::open(path) {
            Err(VaultError::Store(error @ StoreError::Damaged { .. })) => error,
            opened => return opened.map(|vault| (vault, None)),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = format!("{name}.damaged-{now}");
        std::fs::rename(path, path.with_file_name(&aside))
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        tracing::error!(%damage, %aside, "the vault was damaged; all sessions begin anew");
        Ok((Self::open(path)?, Some(aside)))
    }

    /// A vault that is gone with its last handle.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self { database: store::in_memory() }
    }

    /// The epoch of all records; `None` if the vault was never unlocked.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn epoch(&self) -> Result<Option<Epoch>, VaultError> {
        read_marker(&self.database)
    }

    /// Whether a key could be that of the records of `epoch`: one of them opens, or there is none.
    ///
    /// # Errors
    /// The records are of another epoch, or the disk refuses.
    pub fn fits(&self, key: &VaultKey, epoch: Epoch) -> Result<bool, VaultError> {
        if let Some(vault) = self.epoch()?.filter(|vault| *vault != epoch) {
            return Err(VaultError::OtherEpoch { vault, root: epoch });
        }
        let cipher = EpochCipher::new(key, epoch);
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let Ok(table) = read.open_table(SESSIONS) else { return Ok(true) };
        let mut is_empty = true;
        for row in table.iter().map_err(StoreError::from)? {
            let (id, value) = row.map_err(StoreError::from)?;
            if cipher.open(id.value(), value.value()).is_some() {
                return Ok(true);
            }
            is_empty = false;
        }
        Ok(is_empty)
    }

    /// Opens the records of `epoch`, with the key derived from its root secret.
    ///
    /// # Errors
    /// The records are of another epoch, or the disk refuses.
    pub fn unlock(self, key: &VaultKey, epoch: Epoch) -> Result<Vault, VaultError> {
        match self.epoch()? {
            Some(vault) if vault != epoch => {
                return Err(VaultError::OtherEpoch { vault, root: epoch });
            }
            Some(_) => {}
            None => store::write(&self.database, MARKER, |marker| {
                marker.insert((), epoch.0)?;
                Ok(())
            })?,
        }
        let cipher = Mutex::new(EpochCipher::new(key, epoch));
        Ok(Vault { database: self.database, cipher })
    }
}
