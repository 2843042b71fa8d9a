//! Public areas of keys (`TPMT_PUBLIC`, TPM 2.0 Part 2, 12.2.4).
//!
//! Invariants: only P-256 keys for ECDSA with SHA-256 whose name algorithm is SHA-256 are
//! accepted; a public area keeps its bytes, so that its name is the TPM's; nothing may follow it.

use p256::ecdsa::VerifyingKey;
use sha2::{Digest as _, Sha256};

use crate::reader::Reader;

const ALG_ECC: u16 = 0x0023;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_ECDSA: u16 = 0x0018;
const NIST_P256: u16 = 0x0003;

/// Longest authorisation policy, in bytes: a SHA-512 digest.
const MAX_POLICY_LEN: usize = 64;
const COORDINATE_LEN: usize = 32;
/// Longest public area of such a key, in bytes.
pub(crate) const MAX_PUBLIC_AREA_LEN: usize = 160;

/// `TPMA_OBJECT` (TPM 2.0 Part 2, 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAttributes(u32);

impl KeyAttributes {
    /// The hierarchy's seed and parent cannot change: the key stays in its TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// The key cannot be duplicated to another parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM generated the private part.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// The key signs only what the TPM itself made.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// The key decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// The key signs.
    pub const SIGN: Self = Self(1 << 18);

    /// Whether all of `wanted` are set.
    #[must_use]
    pub fn contains(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// The private part was made in the TPM and cannot leave it.
    #[must_use]
    pub fn never_leaves_its_tpm(self) -> bool {
        [Self::FIXED_TPM, Self::FIXED_PARENT, Self::SENSITIVE_DATA_ORIGIN]
            .into_iter()
            .all(|wanted| self.contains(wanted))
    }

    /// Signs and does nothing else.
    #[must_use]
    pub fn is_signing_key(self) -> bool {
        self.contains(Self::SIGN) && !self.contains(Self::DECRYPT)
    }
}

/// The public area of a P-256 signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicArea {
    bytes: Vec<u8>,
    attributes: KeyAttributes,
    public_key: [u8; 65],
}

/// Bytes that are no public area of a P-256 signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicAreaError {
    /// Longer than one can be.
    #[error("a public area has at most {MAX_PUBLIC_AREA_LEN} bytes")]
    TooLarge,
    /// The bytes end too early, or something follows them.
    #[error("the public area has the wrong length")]
    Length,
    /// Another algorithm, curve, scheme or name algorithm.
    #[error("the key is not a P-256 key for ECDSA with SHA-256: its {0} is another")]
    Algorithm(&'static str),
    /// The coordinates are not those of a point.
    #[error("the public key is not a point on P-256")]
    Point,
}

impl PublicArea {
    /// Parses a `TPMT_PUBLIC`.
    ///
    /// # Errors
    /// See [`PublicAreaError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PublicAreaError> {
        if bytes.len() > MAX_PUBLIC_AREA_LEN {
            return Err(PublicAreaError::TooLarge);
        }
        let mut reader = Reader::new(bytes);
        let expect = |reader: &mut Reader<'_>, value, what| match reader.u16() {
            Some(found) if found == value => Ok(()),
            Some(_) => Err(PublicAreaError::Algorithm(what)),
            None => Err(PublicAreaError::Length),
        };
        expect(&mut reader, ALG_ECC, "type")?;
        expect(&mut reader, ALG_SHA256, "name algorithm")?;
        let attributes = reader.u32().map(KeyAttributes).ok_or(PublicAreaError::Length)?;
        reader.sized(MAX_POLICY_LEN).ok_or(PublicAreaError::Length)?;
        expect(&mut reader, ALG_NULL, "symmetric algorithm")?;
        expect(&mut reader, ALG_ECDSA, "signing scheme")?;
        expect(&mut reader, ALG_SHA256, "hash")?;
        expect(&mut reader, NIST_P256, "curve")?;
        expect(&mut reader, ALG_NULL, "key derivation scheme")?;
        let mut public_key = [0; 65];
        let (tag, coordinates) = public_key.split_at_mut(1);
        tag.fill(4);
        for coordinate in coordinates.chunks_exact_mut(COORDINATE_LEN) {
            let number = reader.sized(COORDINATE_LEN).ok_or(PublicAreaError::Length)?;
            // A TPM may leave out leading zeros.
            let padding = COORDINATE_LEN.saturating_sub(number.len());
            for (byte, digit) in coordinate.iter_mut().skip(padding).zip(number) {
                *byte = *digit;
            }
        }
        if !reader.is_empty() {
            return Err(PublicAreaError::Length);
        }
        VerifyingKey::from_sec1_bytes(&public_key).map_err(|_| PublicAreaError::Point)?;
        Ok(Self { bytes: bytes.to_vec(), attributes, public_key })
    }

    /// The bytes it was parsed from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What may be done with the key.
    #[must_use]
    pub fn attributes(&self) -> KeyAttributes {
        self.attributes
    }

    /// The public key: SEC1, uncompressed (`04 ‖ x ‖ y`).
    #[must_use]
    pub fn public_key(&self) -> &[u8; 65] {
        &self.public_key
    }

    /// The TPM's name of the key (TPM 2.0 Part 1, 16): algorithm and digest of the public area.
    #[must_use]
    pub fn name(&self) -> [u8; 34] {
        let mut name = [0; 34];
        let digest = Sha256::digest(&self.bytes);
        for (byte, value) in name.iter_mut().zip(ALG_SHA256.to_be_bytes().iter().chain(&digest)) {
            *byte = *value;
        }
        name
    }
}
