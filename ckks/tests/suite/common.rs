//! What the tests share.

use moai_ckks::{Entropy, EntropyError, Expected, KeySeed, Parameters, Policy, SecretKey};

/// Bytes that differ from call to call. Secrets of tests keep nothing secret.
pub(crate) struct Counting(pub(crate) u8);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        self.0 = self.0.wrapping_add(1);
        out.fill(self.0);
        Ok(())
    }
}

/// A source that has nothing.
pub(crate) struct Exhausted;

impl Entropy for Exhausted {
    fn fill(&mut self, _: &mut [u8]) -> Result<(), EntropyError> {
        Err(EntropyError)
    }
}

/// Parameters whose scale is the prime that the first rescaling takes.
pub(crate) fn matched(degree: usize, sizes: &[u32]) -> Parameters {
    let scale = Parameters::matched_scale(degree, sizes).unwrap();
    Parameters::new(degree, sizes, scale, Policy::Secure).unwrap()
}

pub(crate) fn secret(parameters: &Parameters) -> SecretKey {
    SecretKey::from_seed(parameters, &KeySeed::from_bytes([42; 32]))
}

/// What a fresh ciphertext of this many values is.
pub(crate) fn fresh(parameters: &Parameters, values: usize) -> Expected {
    Expected {
        level: parameters.data_level(),
        size: 2,
        scale: parameters.global_scale(),
        values,
        range: 1e6,
    }
}

/// Values from -1 to 1 that follow no pattern the encoding knows.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let number = |index: usize| {
        let word = (seed + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        f64::from(i32::try_from((word >> 33) & 0xffff).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(number).collect()
}

/// The largest difference.
pub(crate) fn error(values: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(values.len(), expected.len());
    values.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
