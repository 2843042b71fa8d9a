//! The tables of the vault's file, and what their records are sealed for.

use moai_tpm::Epoch;
use moai_transport::ids::SessionId;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;

use super::VaultError;
use crate::store::StoreError;

pub(super) type Sealed = TableDefinition<'static, &'static [u8], &'static [u8]>;

pub(super) const SESSIONS: Sealed = TableDefinition::new("sessions");
pub(super) const MARKER: TableDefinition<'_, (), u32> = TableDefinition::new("epoch");
pub(super) const AUDIT: TableDefinition<'_, (), &[u8]> = TableDefinition::new("audit");
/// What the audit log's seal is sealed for.
pub(super) const AUDIT_PURPOSE: &[u8] = b"moai/v1/audit";
pub(super) const ENDED: Sealed = TableDefinition::new("ended");
pub(super) const WARM: Sealed = TableDefinition::new("warm");
/// What records of ended sessions are sealed for.
pub(super) const ENDED_PURPOSE: &[u8] = b"moai/v1/ended";
/// What seeds made ahead are sealed for.
pub(super) const WARM_PURPOSE: &[u8] = b"moai/v1/warm";
pub(super) const SEED_LEN: usize = 32;

/// What a record is sealed for: its kind and its place.
pub(super) fn purpose(kind: &[u8], id: &SessionId) -> Vec<u8> {
    [kind, id.as_bytes()].concat()
}

pub(super) fn session_id(key: &[u8]) -> Option<SessionId> {
    SessionId::from_bytes(key.try_into().ok()?)
}

pub(super) fn encoded(facts: &impl Serialize) -> Result<Vec<u8>, VaultError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(facts, &mut bytes)
        .map_err(|error| VaultError::Encode(error.to_string()))?;
    Ok(bytes)
}

pub(super) fn read_marker(database: &Database) -> Result<Option<Epoch>, VaultError> {
    let read = database.begin_read().map_err(StoreError::from)?;
    match read.open_table(MARKER) {
        Ok(table) => {
            let marker = table.get(()).map_err(StoreError::from)?;
            Ok(marker.map(|marker| Epoch(marker.value())))
        }
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// Nothing is written in an epoch that is not the vault's.
pub(super) fn check_marker(transaction: &WriteTransaction, epoch: Epoch) -> Result<(), VaultError> {
    let marker = transaction.open_table(MARKER).map_err(StoreError::from)?;
    let vault = marker.get(()).map_err(StoreError::from)?.map(|marker| Epoch(marker.value()));
    match vault {
        Some(vault) if vault != epoch => Err(VaultError::OtherEpoch { vault, root: epoch }),
        _ => Ok(()),
    }
}
