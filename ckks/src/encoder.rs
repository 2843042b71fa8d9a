//! Numbers to polynomials and back (Cheon, Kim, Kim, Song 2017; SEAL's `CKKSEncoder`).
//!
//! Invariants:
//! - A coefficient has at most 61 bits before its error is added.
//! - No branch and no index depends on a value, except that values too large are refused.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::fft::{Embedding, Values};
use crate::modulus::Modulus;
use crate::parameters::{Parameters, to_f64};

/// Most bits of a coefficient.
const MAX_COEFFICIENT_BITS: u32 = 61;

/// Why values cannot be encoded. Give others.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// No value, or more than fit.
    #[error("a ciphertext holds 1 to {slots} values")]
    Count {
        /// Values that a ciphertext holds.
        slots: usize,
    },
    /// Not a number, or too large for the scale and the primes.
    #[error("a value is not finite or too large for the scale")]
    Range,
}

/// The coefficients of encoded values.
///
/// # Errors
/// [`EncodeError`].
pub(crate) fn encode(
    parameters: &Parameters,
    embedding: &Embedding,
    values: &[f64],
) -> Result<Zeroizing<Vec<i64>>, EncodeError> {
    let slots = parameters.slots();
    if !(1..=slots).contains(&values.len()) {
        return Err(EncodeError::Count { slots });
    }
    // A coefficient is at most the largest value times the scale; one bit is its sign.
    let bits = (parameters.level_bits(parameters.data_level()) - 2).min(MAX_COEFFICIENT_BITS);
    let most = 2_f64.powi(bits.cast_signed()) / parameters.global_scale();
    let fits = values.iter().fold(true, |fits, value| fits & (value.abs() < most));
    if !fits {
        return Err(EncodeError::Range);
    }
    let folded = embedding.coefficients(values, parameters.global_scale());
    let mut coefficients = Zeroizing::new(Vec::with_capacity(parameters.degree()));
    coefficients.extend(folded.re.iter().chain(folded.im.iter()).map(|value| round(*value)));
    Ok(coefficients)
}

/// The nearest integer, halves away from zero.
#[expect(clippy::cast_possible_truncation, reason = "coefficients were bounded by 2^61")]
fn round(value: f64) -> i64 {
    (value + 0.5_f64.copysign(value)) as i64
}

/// Constants that put residues together again (Garner's mixed radix).
pub(crate) struct Composer {
    moduli: Vec<Modulus>,
    /// For each prime after the first: the inverses, modulo it, of the primes before it.
    inverses: Vec<Vec<u64>>,
    /// The product of the primes before each, as a number near it.
    weights: Vec<f64>,
}

impl Composer {
    pub(crate) fn new(parameters: &Parameters, level: usize) -> Self {
        let moduli: Vec<Modulus> =
            parameters.ntts(level).iter().map(crate::ntt::Ntt::modulus).collect();
        let inverses = moduli.iter().enumerate().map(|(index, modulus)| {
            let before = moduli[..index].iter();
            before.map(|other| modulus.inverse(modulus.reduce(other.value()))).collect()
        });
        let products = moduli.iter().scan(1.0, |product, modulus| {
            let now = *product;
            *product *= to_f64(modulus.value());
            Some(now)
        });
        Self { inverses: inverses.collect(), weights: products.collect(), moduli }
    }

    /// The centred representatives, as the nearest doubles, of the polynomial whose residues these
    /// are, folded for the embedding and divided by the scale. Overwrites the residues.
    pub(crate) fn compose(&self, residues: &mut [u64], scale: f64) -> Values {
        let degree = residues.len() / self.moduli.len().max(1);
        self.digits(residues, degree);
        let half = degree / 2;
        let mut values = Values::zeros(half);
        let inverse = 1.0 / scale;
        if let [modulus] = self.moduli[..] {
            // What a result mostly has: one prime is left, and nothing to put together.
            let (left, right) = residues.split_at(half);
            for (values, residues) in [(&mut values.re, left), (&mut values.im, right)] {
                for (value, residue) in values.iter_mut().zip(residues) {
                    *value = centred_once(modulus, *residue) * inverse;
                }
            }
            return values;
        }
        let (re, im) = (values.re.iter_mut(), values.im.iter_mut());
        for (coefficient, value) in re.chain(im).enumerate() {
            *value = self.centred(residues, degree, coefficient) * inverse;
        }
        values
    }

    /// Replaces residues by digits: the value is `d_0 + d_1 q_0 + d_2 q_0 q_1 + …`
    fn digits(&self, residues: &mut [u64], degree: usize) {
        for (index, (modulus, inverses)) in self.moduli.iter().zip(&self.inverses).enumerate() {
            let (before, rest) = residues.split_at_mut(index * degree);
            let Some(now) = rest.get_mut(..degree) else { return };
            for (digits, inverse) in before.chunks_exact(degree).zip(inverses) {
                let inverse = modulus.factor(*inverse);
                for (now, digit) in now.iter_mut().zip(digits) {
                    let difference = modulus.sub(*now, modulus.reduce(*digit));
                    *now = modulus.times(difference, inverse);
                }
            }
        }
    }

    /// The value of a coefficient's digits, less the product of all primes if it is in the upper
    /// half. Digits of the middle are (q - 1) / 2 each, so that comparing digits tells.
    fn centred(&self, digits: &[u64], degree: usize, coefficient: usize) -> f64 {
        let digit = |index: usize| digits.get(index * degree + coefficient).copied().unwrap_or(0);
        // All ones if the digits so far, lowest first, are above the middle's.
        let mut negative = 0_u64;
        for (index, modulus) in self.moduli.iter().enumerate() {
            let middle = (modulus.value() - 1) / 2;
            let above = mask(middle.wrapping_sub(digit(index)));
            let below = mask(digit(index).wrapping_sub(middle));
            negative = above | negative & !below;
        }
        // -x = (Q - 1 - x) + 1, whose digits are q - 1 - d.
        let mut sum = 0.0;
        for (index, (modulus, weight)) in self.moduli.iter().zip(&self.weights).enumerate().rev() {
            let complement = modulus.value() - 1 - digit(index);
            let chosen = digit(index) ^ (negative & (digit(index) ^ complement));
            sum += to_f64(chosen) * weight;
        }
        let sum = sum + to_f64(negative & 1);
        f64::from_bits(sum.to_bits() | negative << 63)
    }
}

/// The centred representative of a residue.
#[inline]
#[expect(clippy::cast_precision_loss, reason = "the nearest double is meant")]
fn centred_once(modulus: Modulus, residue: u64) -> f64 {
    let above = mask(((modulus.value() - 1) / 2).wrapping_sub(residue));
    residue.cast_signed().wrapping_sub((modulus.value() & above).cast_signed()) as f64
}

/// All ones if the top bit is set.
fn mask(word: u64) -> u64 {
    (word >> 63).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parameters::Policy;

    fn parameters(sizes: &[u32]) -> Parameters {
        Parameters::new(1024, sizes, 2.0, Policy::AnyForTests).unwrap()
    }

    proptest! {
        #[test]
        fn residues_compose_to_their_number(
            level in 1_usize..5,
            values in prop::collection::vec(any::<i64>(), 1024),
        ) {
            let parameters = parameters(&[40, 30, 60, 25, 60]);
            // Fewer bits than the level's primes have.
            let shift = [26, 0, 0, 0][level - 1];
            let primes = parameters.ntts(level);
            let mut residues = vec![0; 1024 * level];
            for (prime, residues) in primes.iter().zip(residues.chunks_exact_mut(1024)) {
                for (residue, value) in residues.iter_mut().zip(&values) {
                    *residue = prime.modulus().reduce_signed(value >> 1 >> shift);
                }
            }
            let composed = Composer::new(&parameters, level).compose(&mut residues, 4.0);
            let all = composed.re.iter().chain(composed.im.iter());
            for (value, composed) in values.iter().zip(all) {
                #[expect(clippy::cast_precision_loss, reason = "the nearest double is meant")]
                let expected = (value >> 1 >> shift) as f64 / 4.0;
                prop_assert!((composed - expected).abs() <= expected.abs() * 1e-15, "{composed} {expected}");
            }
        }
    }

    #[test]
    fn the_middle_is_the_last_positive_number() {
        let parameters = parameters(&[40, 30, 20]);
        let composer = Composer::new(&parameters, 2);
        let moduli: Vec<Modulus> =
            parameters.ntts(2).iter().map(crate::ntt::Ntt::modulus).collect();
        let product = u128::from(moduli[0].value()) * u128::from(moduli[1].value());
        for (value, sign) in [(product / 2, 1.0), (product / 2 + 1, -1.0), (product - 1, -1.0)] {
            let mut residues = vec![0; 2048];
            for (modulus, residues) in moduli.iter().zip(residues.chunks_exact_mut(1024)) {
                residues[0] = u64::try_from(value % u128::from(modulus.value())).unwrap();
            }
            let values = composer.compose(&mut residues, 1.0);
            assert_eq!(values.re[0].signum().to_bits(), f64::to_bits(sign), "{value}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let parameters =
            Parameters::new(4096, &[37, 32, 37], 2_f64.powi(32), Policy::Secure).unwrap();
        let embedding = Embedding::new(4096);
        let refused = |values: &[f64]| encode(&parameters, &embedding, values).unwrap_err();
        assert_eq!(refused(&[]), EncodeError::Count { slots: 2048 });
        assert_eq!(refused(&vec![0.0; 2049]), EncodeError::Count { slots: 2048 });
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 2_f64.powi(29), -1e300] {
            assert_eq!(refused(&[0.5, value]), EncodeError::Range, "{value}");
        }
        assert!(encode(&parameters, &embedding, &[2_f64.powi(28)]).is_ok());
    }
}
