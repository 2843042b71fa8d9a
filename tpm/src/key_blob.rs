//! A signing key of the TPM as it lies on disk, wrapped by the storage root key.
//!
//! Invariants:
//! 1. Version 1 is `magic[8] version:u16 kind:u8 srk_name[34] has_endorsement:u8
//!    endorsement_name[34] x[32] y[32] private_len:u16 private sha256[32]`, integers big-endian,
//!    nothing after it. The trailing digest finds damage; forgery is found by the TPM.
//! 2. Of the public area only the kind and the point are stored: a [`KeyBlob`] can only describe
//!    a key with the attributes fixed here, so a forged file cannot pass off a weaker one.
//! 3. Parsing never panics and never allocates more than [`MAX_KEY_BLOB_LEN`].

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::blob::NAME_LEN;
use crate::error::Advice;
use crate::reader::Reader;
use crate::srk::SrkIdentity;

const MAGIC: &[u8; 8] = b"MOAIKEY\0";
const VERSION: u16 = 1;
const DIGEST_LEN: usize = 32;
/// Length in bytes of a coordinate of a P-256 point.
pub(crate) const COORDINATE_LEN: usize = 32;

/// No `TPM2B_PRIVATE` of a P-256 key comes near this.
const MAX_PRIVATE_LEN: usize = 1024;

/// The longest key blob that is read, in bytes.
pub const MAX_KEY_BLOB_LEN: usize = 2048;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Signs digests from outside: TLS handshakes, certificate requests, registrations.
    Identity,
    /// Signs only what the TPM itself states: quotes and certifications.
    Attestation,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "identity key",
            Self::Attestation => "attestation key",
        })
    }
}

impl KeyKind {
    const fn code(self) -> u8 {
        match self {
            Self::Identity => 1,
            Self::Attestation => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Identity, Self::Attestation].into_iter().find(|kind| kind.code() == code)
    }

    /// `TPMA_OBJECT` (TPM 2.0 Part 2, 8.3): fixedTPM, fixedParent, sensitiveDataOrigin,
    /// userWithAuth, noDA, sign; restricted too for the attestation key.
    const fn attributes(self) -> u32 {
        const RESTRICTED: u32 = 1 << 16;
        let common = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 18;
        match self {
            Self::Identity => common,
            Self::Attestation => common | RESTRICTED,
        }
    }
}

/// `TPMT_PUBLIC` (TPM 2.0 Part 2, 12.2.4) of a P-256 key for ECDSA with SHA-256; with an empty
/// point it is the template of such a key.
pub(crate) fn public_area(kind: KeyKind, x: &[u8], y: &[u8]) -> Vec<u8> {
    const ALG_ECC: u16 = 0x0023;
    const ALG_SHA256: u16 = 0x000b;
    const ALG_NULL: u16 = 0x0010;
    const ALG_ECDSA: u16 = 0x0018;
    const NIST_P256: u16 = 0x0003;
    let mut bytes = Vec::with_capacity(2 * COORDINATE_LEN + 24);
    let put = |bytes: &mut Vec<u8>, value: u16| bytes.extend_from_slice(&value.to_be_bytes());
    put(&mut bytes, ALG_ECC);
    put(&mut bytes, ALG_SHA256);
    bytes.extend_from_slice(&kind.attributes().to_be_bytes());
    // No policy; no symmetric cipher, the scheme with its hash, the curve, no key derivation.
    for value in [0, ALG_NULL, ALG_ECDSA, ALG_SHA256, NIST_P256, ALG_NULL] {
        put(&mut bytes, value);
    }
    for coordinate in [x, y] {
        put(&mut bytes, u16::try_from(coordinate.len()).unwrap_or(u16::MAX));
        bytes.extend_from_slice(coordinate);
    }
    bytes
}

/// A signing key that only the TPM that made it can use. Whoever has this and the TPM can sign,
/// so the file belongs to the agent's user alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBlob {
    kind: KeyKind,
    pub(crate) srk: SrkIdentity,
    x: [u8; COORDINATE_LEN],
    y: [u8; COORDINATE_LEN],
    private: Vec<u8>,
}

/// A key blob that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyBlobError {
    /// Longer than anything this crate writes.
    #[error("longer than {MAX_KEY_BLOB_LEN} bytes, no TPM key: restore the file from a copy")]
    TooLarge,
    /// Other magic bytes.
    #[error("no TPM key: the path names another file, or it was overwritten")]
    NotKeyBlob,
    /// Written by another version of the format.
    #[error(
        "TPM key of format {found}, this program reads {VERSION}: use the version of the program \
         that wrote it"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// The digest at the end does not fit.
    #[error(
        "the TPM key is damaged or cut short: check the storage, restore the file from a copy or \
         provision anew"
    )]
    Damaged,
    /// The digest fits, the content does not.
    #[error("the TPM key has an invalid {0}: restore the file from a copy or provision anew")]
    Malformed(&'static str),
}

impl KeyBlobError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Version { .. } => Advice::Fix,
            Self::TooLarge | Self::NotKeyBlob | Self::Damaged | Self::Malformed(_) => Advice::Stop,
        }
    }
}

impl KeyBlob {
    /// `None` if the TPM gave a private part of impossible length.
    pub(crate) fn new(
        kind: KeyKind,
        srk: SrkIdentity,
        x: [u8; COORDINATE_LEN],
        y: [u8; COORDINATE_LEN],
        private: Vec<u8>,
    ) -> Option<Self> {
        (1..=MAX_PRIVATE_LEN).contains(&private.len()).then_some(Self { kind, srk, x, y, private })
    }

    /// What the key is for.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The public key: SEC1, uncompressed (`04 ‖ x ‖ y`).
    #[must_use]
    pub fn public_key(&self) -> [u8; 65] {
        let mut point = [4; 65];
        for (byte, coordinate) in point.iter_mut().skip(1).zip(self.x.iter().chain(&self.y)) {
            *byte = *coordinate;
        }
        point
    }

    /// The public area, `TPMT_PUBLIC` (TPM 2.0 Part 2, 12.2.4).
    #[must_use]
    pub fn public_area(&self) -> Vec<u8> {
        public_area(self.kind, &self.x, &self.y)
    }

    /// Name of the storage root key that wraps it (TPM 2.0 Part 1, 16).
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
        let mut bytes = Vec::with_capacity(MAX_KEY_BLOB_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.push(self.kind.code());
        bytes.extend_from_slice(&self.srk.name);
        bytes.push(self.srk.endorsement.is_some().into());
        bytes.extend_from_slice(&self.srk.endorsement.unwrap_or([0; NAME_LEN]));
        bytes.extend_from_slice(&self.x);
        bytes.extend_from_slice(&self.y);
        let private_len = u16::try_from(self.private.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&private_len.to_be_bytes());
        bytes.extend_from_slice(&self.private);
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`KeyBlobError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyBlobError> {
        if bytes.len() > MAX_KEY_BLOB_LEN {
            return Err(KeyBlobError::TooLarge);
        }
        let mut reader = Reader(bytes);
        if reader.array() != Some(*MAGIC) {
            return Err(KeyBlobError::NotKeyBlob);
        }
        match reader.u16() {
            Some(VERSION) => {}
            Some(found) => return Err(KeyBlobError::Version { found }),
            None => return Err(KeyBlobError::Damaged),
        }
        let (content, digest) =
            bytes.split_last_chunk::<DIGEST_LEN>().ok_or(KeyBlobError::Damaged)?;
        let computed: [u8; DIGEST_LEN] = Sha256::digest(content).into();
        if !bool::from(computed.ct_eq(digest)) {
            return Err(KeyBlobError::Damaged);
        }
        reader.0 = reader.0.strip_suffix(digest).ok_or(KeyBlobError::Damaged)?;
        Self::read(&mut reader)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, KeyBlobError> {
        let malformed = |field| move || KeyBlobError::Malformed(field);
        let kind = reader
            .array()
            .and_then(|[code]| KeyKind::from_code(code))
            .ok_or_else(malformed("kind"))?;
        let name = reader.array().ok_or_else(malformed("name of its storage root key"))?;
        let endorsement = reader.optional().map_err(|_| KeyBlobError::Malformed("TPM name"))?;
        let x = reader.array().ok_or_else(malformed("public part"))?;
        let y = reader.array().ok_or_else(malformed("public part"))?;
        let private_len = reader.u16().map(usize::from);
        if private_len != Some(reader.0.len()) {
            return Err(KeyBlobError::Malformed("private part"));
        }
        let srk = SrkIdentity { name, endorsement };
        Self::new(kind, srk, x, y, reader.0.to_vec()).ok_or_else(malformed("private part"))
    }
}
