//! The files of a store in a directory: how they are written, and what they are when they are found.
//!
//! Invariants:
//! - a small file is there whole or not at all;
//! - what a file holds is believed only if it is what its name says.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::store::record::{MAX_RECORD_LEN, decode_tombstone};
use crate::store::{Record, SessionKey, StoreError, UnixMillis};

pub(super) const RECORD: &str = "record";
pub(super) const KEYS: &str = "keys";
pub(super) const ENDED: &str = "ended";

/// Puts a small file in its place in one step.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let new = path.with_added_extension("new");
    create(&new, true)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| refusal(path, &error))
}

pub(super) fn create(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(truncate).mode(0o600).open(path)
}

pub(super) fn private_directory(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| unusable(path, &error))?;
    let facts = fs::symlink_metadata(path).map_err(|error| unusable(path, &error))?;
    if !facts.is_dir() {
        let message = format!("{} is no directory", path.display());
        return Err(StoreError::Unusable(message));
    }
    if facts.mode() & 0o077 != 0 {
        let message = format!("others may look into {}; it must have mode 0700", path.display());
        return Err(StoreError::Unusable(message));
    }
    Ok(())
}

/// A file that is what its name says.
pub(super) enum Whole {
    Record(SessionKey, Record),
    Keys(SessionKey),
    Ended(SessionKey, UnixMillis),
}

pub(super) fn understand(path: &Path) -> Option<Whole> {
    let (name, extension) = path.file_name()?.to_str()?.rsplit_once('.')?;
    let key: SessionKey = name.parse().ok()?;
    if !fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let read = || {
        let mut bytes = Vec::new();
        let file = File::open(path).ok()?;
        file.take(MAX_RECORD_LEN as u64 + 1).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    match extension {
        KEYS => Some(Whole::Keys(key)),
        RECORD => Record::decode(&key, &read()?).map(|record| Whole::Record(key, record)),
        ENDED => decode_tombstone(&key, &read()?).map(|until| Whole::Ended(key, until)),
        _ => None,
    }
}

pub(super) fn discard(path: &Path) -> Result<(), StoreError> {
    tracing::warn!(path = %path.display(), "torn or foreign file removed from the key store");
    fs::remove_file(path).map_err(|error| unusable(path, &error))
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Unusable(format!("{}: {error}", path.display()))
}

pub(super) fn refusal(path: &Path, error: &io::Error) -> StoreError {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(message),
        _ => StoreError::Unavailable(message),
    }
}
