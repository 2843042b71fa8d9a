//! The sealed root secret as bytes.
//!
//! Invariants:
//! 1. Version 2 is `magic[8] version:u16 epoch:u32 epoch_key_name[34] srk_name[34]
//!    has_endorsement:u8 endorsement_name[34] bank:u16 pcr_mask:u32 pcr_values has_policy_key:u8
//!    policy_key[65] has_recovery:u8 unique[32] private_len:u16 private sha256[32]`, integers
//!    big-endian, absent fields zero, nothing after it. The trailing digest finds damage; forgery
//!    is found by the TPM.
//! 2. The public area is not stored: [`SealedRoot`] can only describe an object whose attributes
//!    this crate fixes and whose policy follows from PCR values, policy key and recovery flag,
//!    so a forged one cannot ask for a weaker policy.
//! 3. Parsing never panics and never allocates more than [`MAX_SEALED_LEN`].

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::epoch::Epoch;
use crate::measurements::Measurements;
use crate::pcr::PcrSelection;
use crate::policy::RootPolicy;
use crate::policy_key::{POINT_LEN, PolicyKey};
use crate::reader::{Invalid, Reader};
use crate::srk::{Name, SrkIdentity};

const MAGIC: &[u8; 8] = b"MOAISEAL";
const VERSION: u16 = 2;
const TRAILER_LEN: usize = 32;

/// Length of a TPM name: algorithm and SHA-256 digest (TPM 2.0 Part 1, 16).
pub(crate) const NAME_LEN: usize = 34;

/// No `TPM2B_PRIVATE` of a sealed object of 48 bytes comes near this.
const MAX_PRIVATE_LEN: usize = 1024;

/// The longest sealed root that is read, in bytes: 24 PCRs of 64 bytes and the rest fit.
pub const MAX_SEALED_LEN: usize = 4096;

/// A sealed root secret: worthless without the TPM, the epoch's key in it, and the platform state
/// or the recovery code that its policy asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRoot {
    pub(crate) epoch: Epoch,
    /// Name of the epoch's storage key, the parent of the sealed object.
    pub(crate) epoch_key: Name,
    pub(crate) srk: SrkIdentity,
    pub(crate) policy: RootPolicy,
    pub(crate) object: SealedObject,
}

/// What the TPM made: `unique` of the public area and the wrapped private area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedObject {
    pub(crate) unique: [u8; 32],
    private: Vec<u8>,
}

impl SealedObject {
    /// `None` if the private part has an impossible length.
    pub(crate) fn new(unique: [u8; 32], private: Vec<u8>) -> Option<Self> {
        (1..=MAX_PRIVATE_LEN).contains(&private.len()).then_some(Self { unique, private })
    }

    pub(crate) fn private(&self) -> &[u8] {
        &self.private
    }
}

/// A sealed root that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
}

impl SealedRoot {
    /// The epoch of the root secret.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The PCRs it was sealed to.
    #[must_use]
    pub fn pcrs(&self) -> PcrSelection {
        self.policy.pcrs()
    }

    /// The PCR values at sealing.
    #[must_use]
    pub fn measurements(&self) -> &Measurements {
        &self.policy.measurements
    }

    /// The key whose signed policies open it. Without one, only the PCR values at sealing do.
    #[must_use]
    pub fn policy_key(&self) -> Option<&PolicyKey> {
        self.policy.key.as_ref()
    }

    /// Whether a recovery code opens it too.
    #[must_use]
    pub fn has_recovery(&self) -> bool {
        self.policy.recovery
    }

    /// Name of the storage root key below which it was sealed (TPM 2.0 Part 1, 16).
    #[must_use]
    pub fn srk_name(&self) -> &[u8; NAME_LEN] {
        &self.srk.name
    }

    /// The bytes to store.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (bank, mask) = self.pcrs().parts();
        let private = self.object.private();
        let mut bytes = Vec::with_capacity(MAX_SEALED_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.epoch.0.to_be_bytes());
        bytes.extend_from_slice(&self.epoch_key);
        bytes.extend_from_slice(&self.srk.name);
        bytes.push(self.srk.endorsement.is_some().into());
        bytes.extend_from_slice(&self.srk.endorsement.unwrap_or([0; NAME_LEN]));
        bytes.extend_from_slice(&bank.to_be_bytes());
        bytes.extend_from_slice(&mask.to_be_bytes());
        bytes.extend_from_slice(self.measurements().concatenated());
        bytes.push(self.policy.key.is_some().into());
        bytes.extend_from_slice(&self.policy.key.as_ref().map_or([0; POINT_LEN], PolicyKey::point));
        bytes.push(self.policy.recovery.into());
        bytes.extend_from_slice(&self.object.unique);
        let private_len = u16::try_from(private.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&private_len.to_be_bytes());
        bytes.extend_from_slice(private);
        let trailer = Sha256::digest(&bytes);
        bytes.extend_from_slice(&trailer);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`BlobError`].
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
        let computed: [u8; TRAILER_LEN] = Sha256::digest(content).into();
        if !bool::from(computed.ct_eq(trailer)) {
            return Err(BlobError::Damaged);
        }
        reader.0 = reader.0.strip_suffix(trailer).ok_or(BlobError::Damaged)?;
        let sealed = Self::read(&mut reader)?;
        if reader.0.is_empty() { Ok(sealed) } else { Err(BlobError::Malformed("length")) }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, BlobError> {
        let malformed = |field| move || BlobError::Malformed(field);
        let epoch = reader.u32().map(Epoch).ok_or_else(malformed("epoch"))?;
        let epoch_key = reader.array().ok_or_else(malformed("name of its epoch's key"))?;
        let name = reader.array().ok_or_else(malformed("key name"))?;
        let endorsement = reader.optional().map_err(|Invalid| BlobError::Malformed("TPM name"))?;
        let selection = reader
            .u16()
            .zip(reader.u32())
            .and_then(|(bank, mask)| PcrSelection::from_parts(bank, mask))
            .ok_or_else(malformed("PCR selection"))?;
        let measurements = reader
            .take(selection.values_len())
            .and_then(|values| Measurements::new(selection, values.to_vec()))
            .ok_or_else(malformed("list of PCR values"))?;
        let key = reader
            .optional()
            .and_then(|point| {
                point.map(|point| PolicyKey::from_point(&point).ok_or(Invalid)).transpose()
            })
            .map_err(|Invalid| BlobError::Malformed("policy key"))?;
        let recovery = match reader.array() {
            Some([0]) => false,
            Some([1]) => true,
            _ => return Err(BlobError::Malformed("recovery flag")),
        };
        let unique = reader.array().ok_or_else(malformed("public part"))?;
        let object = reader
            .u16()
            .and_then(|len| reader.take(len.into()))
            .and_then(|private| SealedObject::new(unique, private.to_vec()))
            .ok_or_else(malformed("private part"))?;
        Ok(Self {
            epoch,
            epoch_key,
            srk: SrkIdentity { name, endorsement },
            policy: RootPolicy { measurements, key, recovery },
            object,
        })
    }
}
