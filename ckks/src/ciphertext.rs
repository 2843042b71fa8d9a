//! Ciphertexts: what stands on the wire, in memory.
//!
//! Invariants:
//! - Every residue is below its prime, the scale is finite and positive, the level and the number
//!   of words follow from the parameters: whatever exists was made here or passed the parser.
//! - Nothing in here is secret.

use crate::error::FormatError;
use crate::parameters::{Parameters, ParmsId};
use crate::stream::{SEED_LEN, Stream};
use crate::wire::ciphertext::{MAX_SIZE, decode_ciphertext, encode_ciphertext};
use crate::wire::writer::Compression;

/// An encrypted polynomial in NTT form.
#[derive(Clone, Debug, PartialEq)]
pub struct Ciphertext {
    pub(crate) id: ParmsId,
    pub(crate) level: usize,
    pub(crate) scale: f64,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// The first polynomial, and the seed of the second.
    Seeded { c0: Vec<u64>, seed: Box<[u8; SEED_LEN]> },
    /// All polynomials, one after another.
    Full { size: usize, words: Vec<u64> },
}

impl Ciphertext {
    /// Reads an object that SEAL wrote, of any level that data may have.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged, was made under other parameters, or is something that
    /// SEAL would take although the scheme can't: a negative scale, no NTT form.
    pub fn decode(parameters: &Parameters, bytes: &[u8]) -> Result<Self, FormatError> {
        decode_ciphertext(parameters, bytes, parameters.data_level(), MAX_SIZE)
    }

    /// The object as SEAL reads it.
    #[must_use]
    pub fn encode(&self, parameters: &Parameters, compression: Compression) -> Vec<u8> {
        encode_ciphertext(parameters, self, compression)
    }

    /// Number of primes left. Each rescaling takes one.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level
    }

    /// What a value was multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Number of polynomials: 2, or 3 of a product that was not relinearised.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.body {
            Body::Seeded { .. } => 2,
            Body::Full { size, .. } => *size,
        }
    }

    /// Whether the second polynomial is a seed.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        matches!(self.body, Body::Seeded { .. })
    }

    /// The stored words.
    pub(crate) fn words(&self) -> &[u64] {
        match &self.body {
            Body::Seeded { c0: words, .. } | Body::Full { words, .. } => words,
        }
    }

    /// The same ciphertext with all its polynomials.
    #[must_use]
    pub fn expanded(&self, parameters: &Parameters) -> Self {
        let Body::Seeded { c0, seed } = &self.body else {
            return self.clone();
        };
        let mut words = c0.clone();
        words.resize(2 * c0.len(), 0);
        Stream::new(seed).uniform(parameters.ntts(self.level), &mut words[c0.len()..]);
        Self { body: Body::Full { size: 2, words }, ..self.clone() }
    }
}
