//! The sealed root secret as it lies on disk.
//!
//! Invariants:
//! 1. Version 1 is `magic[8] version:u16 srk_name[34] has_endorsement:u8 endorsement_name[34]
//!    bank:u16 pcr_mask:u32 pcr_values unique[32] private_len:u16 private sha256[32]`, integers
//!    big-endian, nothing after it. The trailing digest finds damage; forgery is found by the
//!    TPM.
//! 2. The public area is not stored: [`SealedRoot`] can only describe an object whose attributes
//!    this crate fixes and whose policy follows from the PCR values, so a forged file cannot ask
//!    for a weaker one.
//! 3. Parsing never panics and never allocates more than [`MAX_SEALED_LEN`].
//! 4. A file is replaced whole or not at all, and only its owner may read it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tempfile::NamedTempFile;

use crate::pcr::{PcrSelection, PcrValues};
use crate::srk::SrkIdentity;

const MAGIC: &[u8; 8] = b"MOAISEAL";
const VERSION: u16 = 1;
const TRAILER_LEN: usize = 32;

/// Length of a TPM name: algorithm and SHA-256 digest (TPM 2.0 Part 1, 16).
pub(crate) const NAME_LEN: usize = 34;

/// No `TPM2B_PRIVATE` of a 32-byte sealed object comes near this.
const MAX_PRIVATE_LEN: usize = 1024;

/// The longest sealed root that is read, in bytes: 24 PCRs of 64 bytes and the rest fit.
pub const MAX_SEALED_LEN: usize = 4096;

/// A sealed root secret: worthless without the TPM and the platform state it was sealed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRoot {
    pub(crate) srk: SrkIdentity,
    pub(crate) pcrs: PcrValues,
    /// `unique` of the object's public area.
    pub(crate) unique: [u8; 32],
    private: Vec<u8>,
}

/// A sealed root that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Longer than anything this crate writes.
    #[error(
        "longer than {MAX_SEALED_LEN} bytes, no sealed root secret: restore the file from a copy"
    )]
    TooLarge,
    /// Other magic bytes.
    #[error("no sealed root secret: the path names another file, or it was overwritten")]
    NotSealedRoot,
    /// Written by another version of the format.
    #[error(
        "sealed root secret of format {found}, this program reads {VERSION}: use the version of \
         the program that wrote it"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// The digest at the end does not fit.
    #[error(
        "the sealed root secret is damaged or cut short: check the storage, restore the file from \
         a copy or provision anew"
    )]
    Damaged,
    /// The digest fits, the content does not.
    #[error("the sealed root secret has an invalid {0}: restore the file from a copy")]
    Malformed(&'static str),
    /// There is a sealed root already.
    #[error(
        "{} exists: replacing it destroys the secret in it, so ask for that explicitly",
        .0.display()
    )]
    Exists(PathBuf),
    /// There is no such file.
    #[error("{} does not exist: provision first", .0.display())]
    Missing(PathBuf),
    /// The operating system refused.
    #[error("{}: {source}: check the directory's permissions and free space", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl SealedRoot {
    /// `None` if the TPM gave a private part of impossible length.
    pub(crate) fn new(
        srk: SrkIdentity,
        pcrs: PcrValues,
        unique: [u8; 32],
        private: Vec<u8>,
    ) -> Option<Self> {
        (1..=MAX_PRIVATE_LEN).contains(&private.len()).then_some(Self {
            srk,
            pcrs,
            unique,
            private,
        })
    }

    /// The PCRs it was sealed to.
    #[must_use]
    pub fn pcrs(&self) -> PcrSelection {
        self.pcrs.selection()
    }

    /// Name of the storage root key that sealed it (TPM 2.0 Part 1, 16).
    #[must_use]
    pub fn srk_name(&self) -> &[u8; NAME_LEN] {
        &self.srk.name
    }

    pub(crate) fn private(&self) -> &[u8] {
        &self.private
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (bank, mask) = self.pcrs.selection().parts();
        let mut bytes = Vec::with_capacity(MAX_SEALED_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.srk.name);
        bytes.push(self.srk.endorsement.is_some().into());
        bytes.extend_from_slice(&self.srk.endorsement.unwrap_or([0; NAME_LEN]));
        bytes.extend_from_slice(&bank.to_be_bytes());
        bytes.extend_from_slice(&mask.to_be_bytes());
        bytes.extend_from_slice(self.pcrs.concatenated());
        bytes.extend_from_slice(&self.unique);
        let private_len = u16::try_from(self.private.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&private_len.to_be_bytes());
        bytes.extend_from_slice(&self.private);
        let trailer = Sha256::digest(&bytes);
        bytes.extend_from_slice(&trailer);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// Every [`BlobError`] but those of files.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BlobError> {
        if bytes.len() > MAX_SEALED_LEN {
            return Err(BlobError::TooLarge);
        }
        let mut reader = Reader(bytes);
        if reader.array() != Some(*MAGIC) {
            return Err(BlobError::NotSealedRoot);
        }
        match reader.u16() {
            Some(VERSION) => {}
            Some(found) => return Err(BlobError::Version { found }),
            None => return Err(BlobError::Damaged),
        }
        let (content, trailer) =
            bytes.split_last_chunk::<TRAILER_LEN>().ok_or(BlobError::Damaged)?;
        if !bool::from(Sha256::digest(content).ct_eq(trailer)) {
            return Err(BlobError::Damaged);
        }
        reader.0 = reader.0.strip_suffix(trailer).ok_or(BlobError::Damaged)?;
        let sealed = Self::read(&mut reader)?;
        if reader.0.is_empty() { Ok(sealed) } else { Err(BlobError::Malformed("length")) }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, BlobError> {
        let malformed = |field| move || BlobError::Malformed(field);
        let name = reader.array().ok_or_else(malformed("key name"))?;
        let present = reader.array().ok_or_else(malformed("TPM name"))?;
        let stored = reader.array().ok_or_else(malformed("TPM name"))?;
        let endorsement = match (present, stored) {
            ([1], name) => Some(name),
            ([0], name) if name == [0; NAME_LEN] => None,
            _ => return Err(BlobError::Malformed("TPM name")),
        };
        let selection = reader
            .u16()
            .zip(reader.u32())
            .and_then(|(bank, mask)| PcrSelection::from_parts(bank, mask))
            .ok_or_else(malformed("PCR selection"))?;
        let pcrs = reader
            .take(selection.values_len())
            .and_then(|values| PcrValues::new(selection, values.to_vec()))
            .ok_or_else(malformed("list of PCR values"))?;
        let unique = reader.array().ok_or_else(malformed("public part"))?;
        let private = reader
            .u16()
            .and_then(|len| reader.take(len.into()))
            .ok_or_else(malformed("private part"))?;
        let srk = SrkIdentity { name, endorsement };
        Self::new(srk, pcrs, unique, private.to_vec()).ok_or_else(malformed("private part"))
    }

    /// Writes a new file, readable by its owner only.
    ///
    /// # Errors
    /// [`BlobError::Exists`] if there is one, [`BlobError::Io`] if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), BlobError> {
        self.write(path, |file| file.persist_noclobber(path).map_err(|e| e.error))
    }

    /// Writes a file in place of one that may exist; a power cut leaves the one or the other.
    /// The secret in the old one is lost.
    ///
    /// # Errors
    /// [`BlobError::Io`] if it cannot be written.
    pub fn replace(&self, path: &Path) -> Result<(), BlobError> {
        self.write(path, |file| file.persist(path).map_err(|e| e.error))
    }

    fn write(
        &self,
        path: &Path,
        persist: impl FnOnce(NamedTempFile) -> io::Result<File>,
    ) -> Result<(), BlobError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let write = || {
            // Created with mode 0600.
            let mut file = NamedTempFile::new_in(directory)?;
            file.write_all(&self.to_bytes())?;
            file.as_file().sync_all()?;
            persist(file)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BlobError::Exists(path.to_owned()),
            _ => BlobError::Io { path: path.to_owned(), source },
        })
    }

    /// Reads a file that [`Self::save`] or [`Self::replace`] wrote.
    ///
    /// # Errors
    /// Every [`BlobError`] but [`BlobError::Exists`].
    pub fn load(path: &Path) -> Result<Self, BlobError> {
        let mut bytes = Vec::with_capacity(MAX_SEALED_LEN);
        // One byte more than allowed, so that a longer file is noticed.
        let limit = MAX_SEALED_LEN as u64 + 1;
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(
            |source| match source.kind() {
                io::ErrorKind::NotFound => BlobError::Missing(path.to_owned()),
                _ => BlobError::Io { path: path.to_owned(), source },
            },
        )?;
        Self::from_bytes(&bytes)
    }
}

/// What is left to parse.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}
