//! The embedded store under the vault: a redb file with a small cache and a private mode.
//!
//! Invariants:
//! - a file is created with mode 0600;
//! - a write is durable when its function returns, or did not happen.

use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, Key, StorageError, Table, TableDefinition, Value};

/// Small tables: a large page cache would only hold memory the robot needs.
const CACHE_LEN: usize = 1024 * 1024;

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("cannot open {}: {source}; check the state directory's owner and free space", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file cannot be read, or is in use.
    #[error("{} is not usable: {source}; check the disk's health", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the store said.
        source: redb::DatabaseError,
    },
    /// The file is not a store of this version, or is damaged beyond its own repair.
    #[error("{} is not a usable store: {source}; move it away to start with an empty one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the store said.
        source: redb::DatabaseError,
    },
    /// A transaction failed.
    #[error("the store refused: {0}; check free space and the disk's health")]
    Transaction(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Transaction(Box::new(error.into()))
    }
}

/// Opens or creates a store file.
///
/// # Errors
/// The file cannot be opened, or is none of ours.
pub fn open(path: &Path) -> Result<Database, StoreError> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let open = |file| {
        let backend = FileBackend::new(file)?;
        let mut database =
            Database::builder().set_cache_size(CACHE_LEN).create_with_backend(backend)?;
        // Every page by its checksum: a damaged one would else be found when it is needed.
        database.check_integrity()?;
        Ok(database)
    };
    // The library panics at some damage that it meets before it compares checksums.
    let opened = catch_unwind(|| open(file)).unwrap_or_else(|_| {
        let what = "its pages do not make sense".to_owned();
        Err(DatabaseError::Storage(StorageError::Corrupted(what)))
    });
    opened.map_err(|source| {
        let path = path.to_owned();
        if is_damage(&source) {
            StoreError::Damaged { path, source }
        } else {
            StoreError::Unusable { path, source }
        }
    })
}

fn is_damage(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::UpgradeRequired(_)
        | DatabaseError::RepairAborted
        | DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// A store that is gone with its last handle.
#[cfg(test)]
pub(crate) fn in_memory() -> Database {
    let backend = redb::backends::InMemoryBackend::new();
    Database::builder().create_with_backend(backend).expect("memory refuses nothing")
}

/// Runs `change` on a table in one durable transaction.
///
/// # Errors
/// The store refuses; nothing was changed then.
pub fn write<K: Key + 'static, V: Value + 'static, T>(
    database: &Database,
    definition: TableDefinition<'_, K, V>,
    change: impl FnOnce(&mut Table<'_, K, V>) -> Result<T, redb::StorageError>,
) -> Result<T, StoreError> {
    let transaction = database.begin_write()?;
    let result = change(&mut transaction.open_table(definition)?)?;
    transaction.commit()?;
    Ok(result)
}
