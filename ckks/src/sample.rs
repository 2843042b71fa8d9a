//! Secret randomness: SEAL's distributions, drawn from a secret stream.
//!
//! Invariant: the number of bytes drawn and everything done with them is the same whatever they
//! are: no rejection, no branch, no index.

use zeroize::Zeroize as _;

use crate::modulus::high;
use crate::stream::Stream;

/// Largest magnitude of an error.
#[cfg(test)]
pub(crate) const MAX_ERROR: i64 = 21;
/// Standard deviation of an error: √10.5.
#[cfg(test)]
pub(crate) const ERROR_DEVIATION: f64 = 3.240_370_349_203_93;

const WORD_BITS: u64 = (1 << 21) - 1;

/// Uniform in -1, 0, 1, up to 2^-62.
pub(crate) fn ternary(stream: &mut Stream, out: &mut [i8]) {
    let mut bytes = [0; 512];
    for out in out.chunks_mut(64) {
        stream.fill(&mut bytes[..out.len() * 8]);
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
            // floor(3x / 2^64) is 0, 1 or 2.
            let [digit, ..] = high(u64::from_le_bytes(*bytes), 3).to_le_bytes();
            *out = digit.cast_signed() - 1;
        }
    }
    bytes.zeroize();
}

/// Adds to each number a centred binomial error: 21 bits set, less 21 bits set.
pub(crate) fn add_errors(stream: &mut Stream, out: &mut [i64]) {
    let mut bytes = [0; 6 * 512];
    for out in out.chunks_mut(512) {
        stream.fill(&mut bytes[..out.len() * 6]);
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<6>().0) {
            let mut word = [0; 8];
            word[..6].copy_from_slice(bytes);
            let bits = u64::from_le_bytes(word);
            let pair = bits & WORD_BITS | (bits >> 21 & WORD_BITS) << 32;
            // Bits set in each half of the word, by adding up ever wider fields.
            let pair = pair - (pair >> 1 & 0x5555_5555_5555_5555);
            let pair = (pair & 0x3333_3333_3333_3333) + (pair >> 2 & 0x3333_3333_3333_3333);
            let pair = (pair + (pair >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
            let pair = pair + (pair >> 8) + (pair >> 16);
            *out += (pair & 0xff).cast_signed() - (pair >> 32 & 0xff).cast_signed();
        }
    }
    bytes.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::to_f64;

    /// Pearson's statistic of observed counts against expected probabilities.
    fn chi_square(counts: &[u64], probabilities: &[f64]) -> f64 {
        let total = to_f64(counts.iter().sum());
        let terms = counts.iter().zip(probabilities).map(|(count, probability)| {
            let expected = total * probability;
            (to_f64(*count) - expected).powi(2) / expected
        });
        terms.sum()
    }

    /// The bound that a chi-square of this many degrees of freedom exceeds once in 10^9 (Wilson
    /// and Hilferty).
    fn bound(freedom: f64) -> f64 {
        let spread = 2.0 / (9.0 * freedom);
        freedom * (1.0 - spread + 6.0 * spread.sqrt()).powi(3)
    }

    #[test]
    fn secrets_are_uniform_in_three_values() {
        let mut secret = vec![0; 300_000];
        ternary(&mut Stream::new(&[1; 64]), &mut secret);
        let count = |value: i8| secret.iter().filter(|s| **s == value).count() as u64;
        let counts = [count(-1), count(0), count(1)];
        assert_eq!(counts.iter().sum::<u64>(), 300_000);
        assert!(chi_square(&counts, &[1.0 / 3.0; 3]) < bound(2.0), "{counts:?}");
        // Neighbours are independent.
        let mut pairs = [0; 9];
        for pair in secret.as_chunks::<2>().0 {
            pairs[usize::try_from((pair[0] + 1) * 3 + pair[1] + 1).unwrap()] += 1;
        }
        assert!(chi_square(&pairs, &[1.0 / 9.0; 9]) < bound(8.0), "{pairs:?}");
    }

    #[test]
    fn errors_are_centred_binomial() {
        let mut errors = vec![0; 400_000];
        add_errors(&mut Stream::new(&[2; 64]), &mut errors);
        // The difference of two sums of 21 bits is a sum of 42 bits, less 21.
        let mut probabilities = vec![0.5_f64.powi(42)];
        for k in 1..=42_u32 {
            let last = probabilities[probabilities.len() - 1];
            probabilities.push(last * f64::from(43 - k) / f64::from(k));
        }
        let mut counts = vec![0_u64; 43];
        for error in &errors {
            counts[usize::try_from(error + MAX_ERROR).unwrap()] += 1;
        }
        // Tails of fewer than five expected go together.
        let rare = |p: f64| p * 400_000.0 < 5.0;
        let (mut common, mut expected, mut tail, mut tail_expected) = (vec![], vec![], 0, 0.0);
        for (count, probability) in counts.iter().zip(&probabilities) {
            if rare(*probability) {
                tail += count;
                tail_expected += probability;
            } else {
                common.push(*count);
                expected.push(*probability);
            }
        }
        common.push(tail);
        expected.push(tail_expected);
        let freedom = f64::from(u32::try_from(common.len()).unwrap()) - 1.0;
        assert!(chi_square(&common, &expected) < bound(freedom), "{counts:?}");
        let variance =
            errors.iter().map(|e| to_f64((e * e).unsigned_abs())).sum::<f64>() / 400_000.0;
        assert!((variance.sqrt() - ERROR_DEVIATION).abs() < 0.02, "{variance}");
    }
}
