//! SEAL's keys as bytes: `KSwitchKeys` (relinearisation, Galois), `PublicKey`, `SecretKey`.

use zeroize::Zeroizing;

use super::ciphertext::{decode_ciphertext, max_payload_len, read};
use super::header::{self, HEADER_LEN, Header};
use super::reader::Reader;
use super::writer::array_len;
use crate::ciphertext::Ciphertext;
use crate::error::FormatError;
use crate::parameters::{Parameters, ParmsId};

/// Most key-switching keys in one object.
pub const MAX_KEYS: usize = 256;

/// Key-switching keys: for each index the parts of its key, one for each data prime.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySwitchKeys {
    keys: Vec<(usize, Vec<Ciphertext>)>,
}

impl KeySwitchKeys {
    /// Reads Galois keys.
    ///
    /// # Errors
    /// [`FormatError`] when they are damaged or of other parameters.
    pub fn decode_galois(parameters: &Parameters, bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(parameters, bytes, parameters.degree(), MAX_KEYS)
    }

    /// Reads a relinearisation key.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged or of other parameters.
    pub fn decode_relinearization(
        parameters: &Parameters,
        bytes: &[u8],
    ) -> Result<Self, FormatError> {
        Self::decode(parameters, bytes, 1, 1)
    }

    fn decode(
        parameters: &Parameters,
        bytes: &[u8],
        indexes: usize,
        max_keys: usize,
    ) -> Result<Self, FormatError> {
        let level = parameters.key_level();
        let parts = level.saturating_sub(1);
        let part_len = HEADER_LEN + max_payload_len(parameters.degree(), level, 2);
        let (_, payload) = header::open(bytes, 40 + 8 * indexes + max_keys * parts * part_len)?;
        let mut reader = Reader::new(&payload);
        if ParmsId(reader.array()?) != parameters.key_id() {
            return Err(FormatError::Parameters);
        }
        if reader.count()? != indexes {
            return Err(FormatError::Shape);
        }
        let mut keys = Vec::new();
        for index in 0..indexes {
            match reader.count()? {
                0 => continue,
                count if count == parts && keys.len() < max_keys => {}
                _ => return Err(FormatError::Shape),
            }
            let mut key = Vec::with_capacity(parts);
            for _ in 0..parts {
                let header = Header::read_nested(&mut reader)?;
                let mut payload = header.nested(&mut reader)?;
                let part = read(&mut payload, header.major, parameters, level, 2)?;
                payload.finish()?;
                check_key(&part, level)?;
                key.push(part);
            }
            keys.push((index, key));
        }
        reader.finish()?;
        Ok(Self { keys })
    }

    /// The indexes that have a key: (g - 1) / 2 for the Galois element g; 0 for relinearisation.
    pub fn indexes(&self) -> impl Iterator<Item = usize> + '_ {
        self.keys.iter().map(|(index, _)| *index)
    }

    /// The parts of a key.
    #[must_use]
    pub fn key(&self, index: usize) -> Option<&[Ciphertext]> {
        let found = self.keys.iter().find(|(known, _)| *known == index);
        found.map(|(_, parts)| parts.as_slice())
    }
}

/// Reads a public key.
pub(crate) fn decode_public_key(
    parameters: &Parameters,
    bytes: &[u8],
) -> Result<Ciphertext, FormatError> {
    let level = parameters.key_level();
    let key = decode_ciphertext(parameters, bytes, level, 2)?;
    check_key(&key, level)?;
    Ok(key)
}

/// A key is at key level and has no scale.
fn check_key(key: &Ciphertext, level: usize) -> Result<(), FormatError> {
    if key.level() != level {
        return Err(FormatError::Shape);
    }
    if key.scale().to_bits() == 1.0_f64.to_bits() { Ok(()) } else { Err(FormatError::Scale) }
}

/// Reads the residues of a secret key, one prime's values after another. They are reduced, but
/// nothing says yet that they are a key.
pub(crate) fn decode_secret_key(
    parameters: &Parameters,
    bytes: &[u8],
) -> Result<Zeroizing<Vec<u64>>, FormatError> {
    let (degree, level) = (parameters.degree(), parameters.key_level());
    let cap = 48 + usize::try_from(array_len(degree * level)).unwrap_or(0);
    let (_, payload) = header::open(bytes, cap)?;
    let decompressed;
    let payload = match payload {
        std::borrow::Cow::Borrowed(payload) => payload,
        std::borrow::Cow::Owned(payload) => {
            decompressed = Zeroizing::new(payload);
            &decompressed[..]
        }
    };
    let mut reader = Reader::new(payload);
    if ParmsId(reader.array()?) != parameters.key_id() {
        return Err(FormatError::Parameters);
    }
    if reader.count()? != degree * level {
        return Err(FormatError::Shape);
    }
    if reader.f64()?.to_bits() != 1.0_f64.to_bits() {
        return Err(FormatError::Scale);
    }
    let header = Header::read_nested(&mut reader)?;
    let mut array = header.nested(&mut reader)?;
    if array.count()? != degree * level {
        return Err(FormatError::Shape);
    }
    let stored = array.words(degree * level)?;
    array.finish()?;
    reader.finish()?;
    let mut words = Zeroizing::new(Vec::with_capacity(stored.len()));
    for (values, prime) in stored.chunks_exact(degree).zip(parameters.primes()) {
        words.extend(values.iter().map(|bytes| u64::from_le_bytes(*bytes).min(prime)));
        if words.iter().rev().take(degree).any(|word| *word == prime) {
            return Err(FormatError::Range);
        }
    }
    Ok(words)
}
