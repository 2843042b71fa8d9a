//! CKKS parameters and the evaluation keys that belong to them (Cheon, Kim, Kim, Song 2017), as
//! docs/protocol.md has them.
//!
//! Invariants:
//! - Parameters that exist keep the protocol's limits and are at least 128-bit secure by the
//!   Homomorphic Encryption Standard.
//! - Equal parameters have equal canonical bytes, different ones have different ones.

use serde::{Deserialize, Serialize};

use super::ContextError;

/// Degrees, with the most bits that all primes may have together (Homomorphic Encryption Standard,
/// 2018: ternary secret, 128 bits, classical).
const MAX_MODULUS_BITS: [(u32, u32); 3] = [(4096, 109), (8192, 218), (16_384, 438)];
const MAX_ROTATIONS: usize = 64;

/// What a CKKS context holds, as it stands in a model card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CkksParameters {
    /// Coefficients of a polynomial: 4096, 8192 or 16384.
    pub poly_modulus_degree: u32,
    /// Bits of each prime; the last is the special one.
    pub coeff_mod_bit_sizes: Vec<u8>,
    /// What values are multiplied by.
    pub global_scale: f64,
    /// Whether the session has a public key, which is one of its evaluation keys.
    pub public_key: bool,
    /// Whether it has a relinearisation key.
    pub relinearisation_keys: bool,
    /// Steps of its rotations, to the left if positive; ascending.
    pub rotations: Vec<i16>,
}

impl CkksParameters {
    /// Fails unless these keep the protocol's limits.
    pub(crate) fn check(&self) -> Result<(), ContextError> {
        let malformed = |holds: bool, problem| {
            if holds { Ok(()) } else { Err(ContextError::Malformed(problem)) }
        };
        let limit = MAX_MODULUS_BITS.iter().find(|(degree, _)| *degree == self.poly_modulus_degree);
        let (degree, most) =
            *limit.ok_or(ContextError::Malformed("the degree is not 4096, 8192 or 16384"))?;
        let sizes = &self.coeff_mod_bit_sizes;
        malformed((3..=16).contains(&sizes.len()), "there are not 3 to 16 primes")?;
        malformed(sizes.iter().all(|bits| (20..=60).contains(bits)), "primes are 20 to 60 bits")?;
        malformed(
            self.global_scale.is_finite() && self.global_scale > 1.0,
            "the scale is not finite and above 1",
        )?;
        let steps = &self.rotations;
        malformed((1..=MAX_ROTATIONS).contains(&steps.len()), "there are not 1 to 64 rotations")?;
        malformed(steps.is_sorted_by(|a, b| a < b), "rotations do not ascend")?;
        let exists = |step: &i16| (1..degree / 2).contains(&u32::from(step.unsigned_abs()));
        malformed(steps.iter().all(exists), "a rotation is 0 or half the degree or more")?;
        let modulus_bits = sizes.iter().map(|bits| u32::from(*bits)).sum();
        if modulus_bits > most {
            return Err(ContextError::WeakModulus { degree, modulus_bits, most });
        }
        Ok(())
    }

    /// What follows magic, version and scheme in the canonical bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.poly_modulus_degree.to_be_bytes());
        // Both lengths were checked.
        out.push(u8::try_from(self.coeff_mod_bit_sizes.len()).unwrap_or(u8::MAX));
        out.extend(&self.coeff_mod_bit_sizes);
        out.extend(self.global_scale.to_be_bytes());
        out.push(u8::from(self.public_key) | u8::from(self.relinearisation_keys) << 1);
        out.extend(u16::try_from(self.rotations.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(self.rotations.iter().flat_map(|step| step.to_be_bytes()));
    }

    /// Reads what [`CkksParameters::write`] wrote.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ContextError> {
        let truncated = ContextError::Malformed("truncated");
        let parse = || {
            let (degree, rest) = bytes.split_first_chunk()?;
            let (count, rest) = rest.split_first()?;
            let (sizes, rest) = rest.split_at_checked(usize::from(*count))?;
            let (scale, rest) = rest.split_first_chunk()?;
            let (flags, rest) = rest.split_first()?;
            let (count, rest) = rest.split_first_chunk()?;
            let parameters = Self {
                poly_modulus_degree: u32::from_be_bytes(*degree),
                coeff_mod_bit_sizes: sizes.to_vec(),
                global_scale: f64::from_be_bytes(*scale),
                public_key: flags & 1 != 0,
                relinearisation_keys: flags & 2 != 0,
                rotations: rest
                    .as_chunks()
                    .0
                    .iter()
                    .map(|step| i16::from_be_bytes(*step))
                    .collect(),
            };
            Some((parameters, *flags, usize::from(u16::from_be_bytes(*count)), rest.len()))
        };
        let (parameters, flags, rotations, left) = parse().ok_or(truncated)?;
        if left != 2 * rotations || flags > 3 {
            return Err(ContextError::Malformed("wrong length or flags"));
        }
        parameters.check()?;
        Ok(parameters)
    }

    /// Number of values a ciphertext holds.
    pub(crate) fn slots(&self) -> usize {
        usize::try_from(self.poly_modulus_degree / 2).unwrap_or(0)
    }

    /// Number of primes of a fresh ciphertext.
    pub(crate) fn data_primes(&self) -> usize {
        self.coeff_mod_bit_sizes.len().saturating_sub(1)
    }

    /// Most bytes of a ciphertext of two polynomials, uncompressed.
    pub(crate) fn ciphertext_len(&self, primes: usize) -> usize {
        /// Headers, ids, lengths and seeds of one SEAL object, with room.
        const OVERHEAD: usize = 512;
        2 * 8 * primes * 2 * self.slots() + OVERHEAD
    }
}
