//! Key sets on disk: the evaluation keys in a file, the seed in the vault.
//!
//! Invariants:
//! - the file is written before the record, and goes before it: a record without a file is never used;
//! - keys are made on one thread of low priority, which ends with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moai_fhe::Context;
use moai_transport::ids::{Digest, SessionId};

use super::WarmParts;
use super::demand::id;
use super::thread;
use crate::secrets::OsEntropy;
use crate::services::{SeedError, fresh_seed};
use crate::vault::{VaultError, WarmFacts, WarmRecord};

const SUFFIX: &str = "keys";

/// Why no key set was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("no keys can be made: {0}")]
    Engine(#[from] moai_fhe::EngineError),
    #[error("no thread to make keys on: {0}")]
    Thread(std::io::Error),
    #[error("the evaluation keys cannot be written: {0}")]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

fn file(directory: &Path, session: &SessionId) -> PathBuf {
    directory.join(format!("{session}.{SUFFIX}"))
}

/// Makes a key set: the file first, then the record.
pub(super) fn make(parts: &WarmParts, context: &Context) -> Result<WarmRecord, MakeError> {
    let seed = Arc::new(fresh_seed(&*parts.custodian)?);
    let milliseconds = u64::try_from(parts.clock.unix().as_millis()).unwrap_or(u64::MAX);
    let random = OsEntropy::bytes().map_err(SeedError::from)?;
    let session = SessionId::new(milliseconds, random);
    let fhe_seed = seed.fhe_seed(context.scheme_name());
    let keys = thread::run(|| parts.engines.setup(context, &fhe_seed)?.evaluation_keys())
        .map_err(MakeError::Thread)??;
    std::fs::create_dir_all(&parts.directory)?;
    write(&file(&parts.directory, &session), &keys)?;
    let facts = WarmFacts {
        context: id(context),
        key_len: keys.len() as u64,
        key_digest: Digest::of(&keys),
    };
    let record = WarmRecord { id: session, seed, facts };
    if let Err(error) = parts.vault.write_warm(&record) {
        remove(&file(&parts.directory, &record.id));
        return Err(error.into());
    }
    Ok(record)
}

/// Reads keys and removes their file.
pub(super) fn read(directory: &Path, record: &WarmRecord) -> Result<Vec<u8>, std::io::Error> {
    let path = file(directory, &record.id);
    let limit = usize::try_from(record.facts.key_len).unwrap_or(usize::MAX);
    let keys = crate::custody::files::read_capped(&path, limit)?;
    std::fs::remove_file(&path)?;
    if Digest::of(&keys) == record.facts.key_digest {
        Ok(keys)
    } else {
        Err(std::io::Error::other("the file was changed"))
    }
}

fn write(path: &Path, keys: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // What a power cut leaves half written, its digest gives away.
    file.write_all(keys)
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a file of keys made ahead stays");
        }
        _ => {}
    }
}

pub(super) fn erase(parts: &WarmParts, session: &SessionId) {
    remove(&file(&parts.directory, session));
    if let Err(error) = parts.vault.erase_warm(session) {
        tracing::error!(%error, "a seed made ahead stays in the vault");
    }
}

/// The usable key sets of an earlier run, at most as many as are wanted; nothing else is left.
pub(super) fn swept(parts: &WarmParts) -> Result<Vec<WarmRecord>, VaultError> {
    let mut ready = Vec::new();
    for record in parts.vault.load_warm()? {
        let path = file(&parts.directory, &record.id);
        let is_whole = std::fs::metadata(&path).is_ok_and(|it| it.len() == record.facts.key_len);
        if is_whole && ready.len() < parts.wanted {
            ready.push(record);
        } else {
            erase(parts, &record.id);
        }
    }
    // There is no directory before the first key set.
    for entry in std::fs::read_dir(&parts.directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if !ready.iter().any(|record| file(&parts.directory, &record.id) == path) {
            remove(&path);
        }
    }
    Ok(ready)
}
