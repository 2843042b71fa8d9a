//! The files of custody in the state directory.
//!
//! Invariants:
//! - whoever changes them holds the directory's lock, which ends with the process;
//! - a file is replaced whole or not at all: after a power cut it is the old or the new one. It is
//!   readable by its owner only;
//! - no more of a file is read than a valid one can have.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::CustodyError;
use super::escrow::ESCROW_FILE;
use super::sealed_file::{MAX_FILE_LEN, SealedFile, SealedFileError};

/// Name of the sealed root secret in the state directory.
pub const ROOT_FILE: &str = "root.sealed";
/// The same during a rotation: the root secret of the next epoch.
pub const NEXT_ROOT_FILE: &str = "root.next";
/// The escrow of the next epoch during a rotation.
pub const NEXT_ESCROW_FILE: &str = "escrow.next";
/// The vault.
pub const VAULT_FILE: &str = "vault.redb";

const LOCK_FILE: &str = "lock";

/// The state directory, locked: nobody else changes custody's files while this lives.
pub struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

impl StateDirectory {
    /// Makes the directory if need be and locks it.
    ///
    /// # Errors
    /// A living process has it, or the operating system refuses.
    pub fn lock(path: &Path) -> Result<Self, CustodyError> {
        let lock_path = path.join(LOCK_FILE);
        let open = || {
            std::fs::create_dir_all(path)?;
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(false).mode(0o600).open(&lock_path)
        };
        let lock = open().map_err(|source| io_error(&lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(CustodyError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(io_error(&lock_path, source)),
        }
    }

    /// The file of that name.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The root secret in force.
    ///
    /// # Errors
    /// It was never provisioned, or the file is not usable.
    pub fn root(&self) -> Result<SealedFile, CustodyError> {
        read_sealed(&self.file(ROOT_FILE))?
            .ok_or_else(|| CustodyError::NotProvisioned { path: self.file(ROOT_FILE) })
    }

    /// Puts the root secret of the next epoch beside the one in force, with its escrow if there is
    /// one.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(super) fn write_next(
        &self,
        next: &SealedFile,
        escrow: Option<&[u8]>,
    ) -> Result<(), CustodyError> {
        if let Some(escrow) = escrow {
            self.write(NEXT_ESCROW_FILE, escrow)?;
        }
        self.write_sealed(NEXT_ROOT_FILE, next)
    }

    /// The root secret of the next epoch takes the place of the one in force. The escrow goes first:
    /// as long as `root.next` is there, a start does the rest.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(super) fn promote_next(&self) -> Result<(), CustodyError> {
        self.rename(NEXT_ESCROW_FILE, ESCROW_FILE)?;
        self.rename(NEXT_ROOT_FILE, ROOT_FILE)
    }

    /// Drops what a rotation left that did not reach the vault.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(super) fn discard_next(&self) -> Result<(), CustodyError> {
        self.remove(NEXT_ROOT_FILE)?;
        self.remove(NEXT_ESCROW_FILE)
    }

    /// # Errors
    /// The file is not usable.
    pub(super) fn next(&self) -> Result<Option<SealedFile>, CustodyError> {
        read_sealed(&self.file(NEXT_ROOT_FILE))
    }

    pub(super) fn write_sealed(&self, name: &str, file: &SealedFile) -> Result<(), CustodyError> {
        let bytes = file
            .to_bytes()
            .map_err(|source| CustodyError::File { path: self.file(name), source })?;
        self.write(name, &bytes)
    }

    /// Writes a file in place of one that may exist; durable when it returns.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CustodyError> {
        let path = self.file(name);
        let fresh = self.file(&format!("{name}.new"));
        let write = || {
            remove_if_there(&fresh)?;
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)?;
            self.sync()
        };
        write().map_err(|source| io_error(&path, source))
    }

    /// Removes a file that need not be there.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn remove(&self, name: &str) -> Result<(), CustodyError> {
        let path = self.file(name);
        remove_if_there(&path).and_then(|()| self.sync()).map_err(|source| io_error(&path, source))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), CustodyError> {
        let (from, to) = (self.file(from), self.file(to));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.and_then(|()| self.sync()).map_err(|source| io_error(&from, source)),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads a sealed root secret; `None` if there is no such file.
///
/// # Errors
/// It is not usable.
pub fn read_sealed(path: &Path) -> Result<Option<SealedFile>, CustodyError> {
    let unusable = |source| CustodyError::File { path: path.to_owned(), source };
    match read_capped(path, MAX_FILE_LEN) {
        Ok(bytes) => SealedFile::from_bytes(&bytes).map(Some).map_err(unusable),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(error.into())),
    }
}

/// Reads a file up to one byte more than `limit`, so that a longer one is noticed.
pub(crate) fn read_capped(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn io_error(path: &Path, source: io::Error) -> CustodyError {
    CustodyError::File { path: path.to_owned(), source: SealedFileError::Io(source) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use moai_tpm::Epoch;

    use super::*;
    use crate::custody::CustodianKind;

    fn sealed(epoch: u32) -> SealedFile {
        SealedFile { custodian: CustodianKind::Env, epoch: Epoch(epoch), body: vec![1] }
    }

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let owner = StateDirectory::lock(scratch.path()).unwrap();
        let other = StateDirectory::lock(scratch.path());
        assert!(matches!(other, Err(CustodyError::InUse { .. })));
        drop(owner);
        StateDirectory::lock(scratch.path()).unwrap();
    }

    #[test]
    fn files_are_private_and_a_torn_write_leaves_the_old_one() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDirectory::lock(scratch.path()).unwrap();
        assert!(matches!(state.root(), Err(CustodyError::NotProvisioned { .. })));
        // What a power cut in the middle of a write leaves.
        std::fs::write(state.file("root.sealed.new"), b"MOAIRO").unwrap();
        state.write_sealed(ROOT_FILE, &sealed(1)).unwrap();
        assert_eq!(state.root().unwrap(), sealed(1));
        let mode = std::fs::metadata(state.file(ROOT_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!state.file("root.sealed.new").exists());
    }

    #[test]
    fn an_oversized_file_is_refused_unread() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDirectory::lock(scratch.path()).unwrap();
        std::fs::write(state.file(ROOT_FILE), vec![0; MAX_FILE_LEN * 2]).unwrap();
        let refused = state.root().unwrap_err().to_string();
        assert!(refused.contains("longer than any"), "{refused}");
    }
}
