//! Byte formats of evaluation keys, encrypted inputs and encrypted results.
//!
//! Invariants:
//! - Every message has one encoding and one length, known from the context or the model card
//!   before the first byte is read.
//! - Decoding checks kind, version and length, never indexes outside data and never panics.
//! - Coefficients are rounded to their leading bits when they are encoded; what is lost is in the
//!   noise bounds of [`crate::noise`].

pub(crate) mod evaluation_key;
pub(crate) mod input;
pub(crate) mod result;

pub(crate) use input::input_len;
pub(crate) use result::result_len;

/// Coefficients of a polynomial.
pub(crate) const POLYNOMIAL_SIZE: usize = crate::context::TFHE.polynomial_size as usize;

/// The leading `bits` bits (1 to 63) of a torus element, rounded to nearest, wrapping around.
pub(crate) fn round(value: u64, bits: u16) -> u64 {
    value.wrapping_add(1 << (63 - bits)) >> (64 - bits)
}

/// The torus element whose leading `bits` bits are `value`.
pub(crate) fn expand(value: u64, bits: u16) -> u64 {
    value << (64 - bits)
}

#[cfg(feature = "tfhe")]
/// A mask: uniform coefficients expanded from a public seed by the scheme's generator.
pub(crate) fn expand_mask(seed: [u8; 16]) -> Vec<u64> {
    use tfhe::core_crypto::commons::math::random::{DefaultRandomGenerator, RandomGenerator, Seed};
    let mut generator =
        RandomGenerator::<DefaultRandomGenerator>::new(Seed(u128::from_le_bytes(seed)));
    let mut mask = vec![0; POLYNOMIAL_SIZE];
    generator.fill_slice_with_random_uniform(&mut mask);
    mask
}
