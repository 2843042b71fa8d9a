//! What of a decrypted result may leave: a label, or rounded values, both behind noise.
//!
//! A CKKS result in full precision carries its error along, and the error is what hides the key: two
//! such results are enough to compute the key (Li and Micciancio, On the security of homomorphic
//! encryption on approximate numbers, 2021). So a result is flooded with noise of far greater
//! deviation than its error before it is rounded or compared (Li, Micciancio, Schultz, Sorrell 2022),
//! and the number of results, and of bits in them, is limited.
//!
//! Invariants:
//! - The noise has 2^12 times the deviation of the error, so that all results of a budget together
//!   tell less than a thousandth of a bit about their errors.
//! - All that one key ever releases, refusals included, has fewer bits than the key, so that not even
//!   a server that sends what it likes instead of results can have learned it.
//! - Full precision never leaves this crate but by [`Decrypted::expose`](crate::Decrypted::expose).

use std::f64::consts::{LN_2, PI};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::ciphertext::Ciphertext;
use crate::parameters::Parameters;
use crate::secret::{Entropy, EntropyError, Expected, Refused, SecretKey};

/// Deviation of the noise in deviations of the error.
pub const FLOODING: f64 = 4096.0;
/// Deviations of the noise in a step, at least: rounding hides more than flooding then.
const STEP: f64 = 2.0;

/// A rule that would release too much. Choose a coarser one.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Smaller than what even a fresh ciphertext has, or not a number.
    #[error("the error of a result is at least {least:.1e}")]
    Noise {
        /// Deviation of a fresh ciphertext's error.
        least: f64,
    },
    /// Finer than the noise.
    #[error("values can be rounded to steps of {least:.1e} or more under this noise")]
    Step {
        /// The finest step.
        least: f64,
    },
}

/// The rule by which results leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Release {
    kind: Kind,
    flooding: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Label,
    Rounded { step: f64 },
}

/// What left.
#[derive(Debug, PartialEq)]
pub enum Released {
    /// The index of the largest value; the lowest if several are.
    Label(usize),
    /// Multiples of the step.
    Rounded(Vec<f64>),
}

impl Release {
    /// Only the index of the largest value leaves. `noise` is the deviation of the result's error,
    /// in units of the values: what the model's evaluation adds to [`fresh_noise`].
    ///
    /// # Errors
    /// [`ReleaseError::Noise`].
    pub fn label(parameters: &Parameters, noise: f64) -> Result<Self, ReleaseError> {
        Ok(Self { kind: Kind::Label, flooding: flooding(parameters, noise)? })
    }

    /// Values leave as multiples of `step`.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn rounded(parameters: &Parameters, noise: f64, step: f64) -> Result<Self, ReleaseError> {
        let flooding = flooding(parameters, noise)?;
        let least = STEP * flooding;
        if step.is_finite() && step >= least {
            Ok(Self { kind: Kind::Rounded { step }, flooding })
        } else {
            Err(ReleaseError::Step { least })
        }
    }

    /// Bits that one result releases at most, the outcome "refused" included.
    #[must_use]
    pub fn bits(&self, expected: &Expected) -> f64 {
        let values = count(expected.values);
        let outcomes = match self.kind {
            Kind::Label => values.log2(),
            Kind::Rounded { step } => values * (2.0 * most(expected, step) + 1.0).log2(),
        };
        outcomes + 1.0
    }

    /// Bits that one result tells about its errors at most: the capacity of as many Gaussian
    /// channels.
    #[must_use]
    pub fn leaked_bits(&self, expected: &Expected) -> f64 {
        count(expected.values) * (1.0 / (FLOODING * FLOODING)).ln_1p() / (2.0 * LN_2)
    }

    fn apply(
        self,
        values: &[f64],
        expected: &Expected,
        entropy: &mut dyn Entropy,
    ) -> Result<Released, EntropyError> {
        let mut flooded = Zeroizing::new(values.to_vec());
        for value in flooded.iter_mut() {
            *value += self.flooding * gaussian(entropy)?;
        }
        Ok(match self.kind {
            Kind::Label => {
                let mut best = (0, f64::NEG_INFINITY);
                for (index, value) in flooded.iter().enumerate() {
                    if *value > best.1 {
                        best = (index, *value);
                    }
                }
                Released::Label(best.0)
            }
            Kind::Rounded { step } => {
                let most = most(expected, step);
                let round = |value: &f64| (value / step).round().clamp(-most, most) * step;
                Released::Rounded(flooded.iter().map(round).collect())
            }
        })
    }
}

/// The largest multiple of the step that is released, in steps.
fn most(expected: &Expected, step: f64) -> f64 {
    (expected.range / step).round()
}

/// Deviation of the error of a fresh ciphertext's values.
#[must_use]
pub fn fresh_noise(parameters: &Parameters) -> f64 {
    // Each value is the real part of a sum of N errors of variance 10.5, times roots of unity.
    (count(parameters.slots()) * 10.5).sqrt() / parameters.global_scale()
}

fn flooding(parameters: &Parameters, noise: f64) -> Result<f64, ReleaseError> {
    let least = fresh_noise(parameters);
    if noise.is_finite() && noise >= least {
        Ok(noise * FLOODING)
    } else {
        Err(ReleaseError::Noise { least })
    }
}

/// A number of deviation 1 (Box and Muller).
fn gaussian(entropy: &mut dyn Entropy) -> Result<f64, EntropyError> {
    let mut bytes = Zeroizing::new([0; 16]);
    entropy.fill(&mut bytes[..])?;
    let [first, second] = *bytes.as_chunks::<8>().0 else { return Err(EntropyError) };
    // 53 bits each; the first from 2^-53 to 1.
    let unit = |bytes, offset| {
        (crate::parameters::to_f64(u64::from_le_bytes(bytes) >> 11) + offset) * 0.5_f64.powi(53)
    };
    Ok((-2.0 * unit(first, 1.0).ln()).sqrt() * (2.0 * PI * unit(second, 0.0)).cos())
}

#[expect(clippy::cast_precision_loss, reason = "numbers of values are far below 2^53")]
fn count(values: usize) -> f64 {
    values as f64
}

/// How much one key may still release.
#[derive(Debug)]
pub struct Budget {
    results: u32,
    bits: f64,
}

impl Budget {
    /// For a new key: this many results, and as many bits as the degree. The key has log2(3) bits
    /// for each, so that more than a third of it stays unknown in any case.
    #[must_use]
    pub fn new(parameters: &Parameters, results: u32) -> Self {
        Self { results, bits: count(parameters.degree()) }
    }

    /// This many results and no limit on their bits: for results that nobody outside learns, so that
    /// whoever computes them sees at most that one was refused.
    #[must_use]
    pub fn of_results(results: u32) -> Self {
        Self { results, bits: f64::INFINITY }
    }

    /// Counts one result that is released in several parts.
    ///
    /// # Errors
    /// [`Refused`] when there is none left.
    pub fn charge_result(&mut self) -> Result<(), Refused> {
        self.charge(0.0)
    }

    /// Results that may still be released, if each takes this many bits.
    #[must_use]
    pub fn remaining(&self, bits: f64) -> u32 {
        // Rounding towards zero, up to the largest number: what the cast does.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let by_bits =
            (self.bits / bits.max(f64::MIN_POSITIVE)).clamp(0.0, f64::from(u32::MAX)) as u32;
        self.results.min(by_bits)
    }

    fn charge(&mut self, bits: f64) -> Result<(), Refused> {
        if self.remaining(bits) == 0 {
            return Err(Refused);
        }
        self.results -= 1;
        self.bits -= bits;
        Ok(())
    }
}

impl SecretKey {
    /// Decrypts a result that is what is expected and releases of it what the rule allows. Every
    /// call counts against the budget, refused or not.
    ///
    /// # Errors
    /// [`Refused`], whatever the reason: the result is not what is expected, a value is out of
    /// range, the budget is used up, or there is no randomness for the noise.
    pub fn release(
        &self,
        result: &Ciphertext,
        expected: &Expected,
        rule: &Release,
        budget: &mut Budget,
        entropy: &mut dyn Entropy,
    ) -> Result<Released, Refused> {
        budget.charge(rule.bits(expected))?;
        let decrypted = self.decrypt(result, expected)?;
        rule.apply(decrypted.expose(), expected, entropy).map_err(|_| Refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ciphertext::Body;
    use crate::fft::{Embedding, Values};
    use crate::parameters::Policy;
    use crate::secret::KeySeed;
    use crate::stream::Stream;

    /// A stream is a source of randomness; that of a test never ends.
    impl Entropy for Stream {
        fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
            Stream::fill(self, out);
            Ok(())
        }
    }

    const DEGREE: usize = 1024;

    struct Victim {
        secret: SecretKey,
        expected: Expected,
        entropy: Stream,
    }

    impl Victim {
        fn new() -> Self {
            let scale = 2_f64.powi(30);
            let parameters =
                Parameters::new(DEGREE, &[50, 50], scale, Policy::AnyForTests).unwrap();
            let secret = SecretKey::from_seed(&parameters, &KeySeed::from_bytes([3; 32]));
            let slots = parameters.slots();
            let expected = Expected { level: 1, size: 2, scale, values: slots, range: 16.0 };
            Self { secret, expected, entropy: Stream::new(&[9; 64]) }
        }

        /// A ciphertext that the attacker knows, and the same times X^(N/2), which he computes.
        fn results(&mut self) -> [Ciphertext; 2] {
            let parameters = self.secret.parameters();
            let values: Vec<f64> = (0..DEGREE / 2).map(|k| (count(k) * 0.7).sin()).collect();
            let result = self.secret.encrypt(&values, &mut self.entropy).unwrap();
            let result = result.expanded(parameters);
            let mut turned = result.clone();
            let prime = &parameters.ntts(1)[0];
            let mut monomial = vec![0; DEGREE];
            monomial[DEGREE / 2] = 1;
            prime.forward(&mut monomial);
            let Body::Full { words, .. } = &mut turned.body else { unreachable!() };
            for (word, factor) in words.iter_mut().zip(monomial.iter().cycle()) {
                *word = prime.modulus().multiply(*word, *factor);
            }
            [result, turned]
        }

        /// The attack of Li and Micciancio: the polynomial that both results show, rounded to
        /// integers, is message plus error, and (message + error - c0) / c1 is the key. Tells how
        /// many of the key's residues come out right.
        fn attacked(&self, result: &Ciphertext, shown: [&[f64]; 2]) -> usize {
            let embedding = Embedding::new(DEGREE);
            let [Values { re, im }, turned] =
                shown.map(|values| embedding.coefficients(values, self.expected.scale));
            let prime = &self.secret.parameters().ntts(1)[0];
            let modulus = prime.modulus();
            // The values of X^(N/2) are i and -i: what it shows is what the first did not.
            let low = re.iter().zip(turned.im.iter()).map(|(a, b)| a + b);
            let high = im.iter().zip(turned.re.iter()).map(|(a, b)| a - b);
            #[expect(clippy::cast_possible_truncation, reason = "coefficients of a small message")]
            let integer = |value: f64| modulus.reduce_signed(value.round() as i64);
            let mut phase: Vec<u64> = low.chain(high).map(integer).collect();
            prime.forward(&mut phase);
            let (c0, c1) = result.words().split_at(DEGREE);
            let guess = phase.iter().zip(c0).zip(c1).map(|((phase, c0), c1)| {
                modulus.multiply(modulus.sub(*phase, *c0), modulus.inverse(*c1))
            });
            guess.zip(self.secret.residues(0)).filter(|(guess, s)| guess == *s).count()
        }
    }

    #[test]
    fn full_precision_gives_the_key_away_and_what_is_released_does_not() {
        let mut victim = Victim::new();
        let parameters = victim.secret.parameters().clone();
        let results = victim.results();
        let shown = results
            .each_ref()
            .map(|result| victim.secret.decrypt(result, &victim.expected).unwrap());
        let full = victim.attacked(&results[0], [shown[0].expose(), shown[1].expose()]);
        assert_eq!(full, DEGREE, "or the attack of this test is none");

        // The finest rule there is, with all slots released, which no budget allows.
        let noise = fresh_noise(&parameters);
        let rule = Release::rounded(&parameters, noise, STEP * FLOODING * noise).unwrap();
        let released = shown.each_ref().map(|shown| {
            match rule.apply(shown.expose(), &victim.expected, &mut victim.entropy) {
                Ok(Released::Rounded(values)) => values,
                other => panic!("{other:?}"),
            }
        });
        let right = victim.attacked(&results[0], [&released[0], &released[1]]);
        assert!(right < 8, "{right} of {DEGREE} residues");
    }

    #[test]
    fn a_released_value_has_fewer_bits_than_the_attack_needs() {
        for (degree, sizes) in
            [(4096, &[37_u32, 32, 37][..]), (8192, &[60, 40, 60]), (16_384, &[60, 40, 40, 60])]
        {
            let scale = Parameters::matched_scale(degree, sizes).unwrap();
            let parameters = Parameters::new(degree, sizes, scale, Policy::Secure).unwrap();
            let noise = fresh_noise(&parameters);
            let rule = Release::rounded(&parameters, noise, STEP * FLOODING * noise).unwrap();
            let label = Release::label(&parameters, noise).unwrap();
            let expected = Expected { level: 1, size: 2, scale, values: 3, range: 16.0 };
            // The attack needs every coefficient of message and error to the integer, so each value
            // at least to the deviation of the error.
            let needed = (2.0 * expected.range / noise).log2();
            let released = (rule.bits(&expected) - 1.0) / 3.0;
            assert!(released + 12.0 < needed, "{released} of {needed}");
            // And all values of all results together have fewer than the key.
            let key = count(degree) * 3_f64.log2();
            for rule in [rule, label] {
                let mut budget = Budget::new(&parameters, 1000);
                let mut total = 0.0;
                while budget.charge(rule.bits(&expected)).is_ok() {
                    total += rule.bits(&expected);
                }
                assert!(total <= count(degree) && total < key - 128.0);
                assert!(1000.0 * rule.leaked_bits(&expected) < 0.001);
            }
            assert_eq!(Budget::new(&parameters, 1000).remaining(label.bits(&expected)), 1000);
        }
    }

    /// How far noise of the same deviation as the error would hide it, as a contrast: the mutual
    /// information of what is released and of the error, estimated from samples, is below what
    /// the rule states plus what so few samples can tell.
    #[test]
    fn released_values_are_independent_of_their_errors() {
        let mut entropy = Stream::new(&[5; 64]);
        let victim = Victim::new();
        let parameters = victim.secret.parameters();
        let noise = fresh_noise(parameters);
        let rule = Release::rounded(parameters, noise, STEP * FLOODING * noise).unwrap();
        let correlation = |flooding: f64, entropy: &mut Stream| {
            const SAMPLES: usize = 40_000;
            let rule = Release { flooding, ..rule };
            let errors: Vec<f64> =
                (0..SAMPLES).map(|_| noise * gaussian(entropy).unwrap()).collect();
            let Ok(Released::Rounded(values)) = rule.apply(&errors, &victim.expected, entropy)
            else {
                panic!("not rounded")
            };
            let products: f64 = errors.iter().zip(&values).map(|(e, v)| e * v).sum();
            let squares = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
            products / (squares(&errors) * squares(&values)).sqrt().max(f64::MIN_POSITIVE)
        };
        // Five deviations of the correlation of independent samples.
        let chance = 5.0 / 40_000_f64.sqrt();
        assert!(correlation(rule.flooding, &mut entropy).abs() < chance);
        let step = STEP * FLOODING * noise;
        let weak = Release { kind: Kind::Rounded { step: step / FLOODING }, ..rule };
        let rule = weak;
        let Ok(Released::Rounded(values)) = Release { flooding: noise, ..rule }.apply(
            &[4.0 * noise; 2000],
            &victim.expected,
            &mut entropy,
        ) else {
            panic!("not rounded")
        };
        let mean = values.iter().sum::<f64>() / 2000.0;
        assert!(mean > 3.0 * noise, "without flooding the error shows");
    }

    #[test]
    fn what_is_too_fine_is_refused() {
        let victim = Victim::new();
        let parameters = victim.secret.parameters();
        let least = fresh_noise(parameters);
        for noise in [0.0, least / 2.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Release::label(parameters, noise), Err(ReleaseError::Noise { least }));
        }
        let step = STEP * FLOODING * least;
        for finer in [step * 0.99, 0.0, f64::NAN, f64::INFINITY] {
            let refused = Release::rounded(parameters, least, finer);
            assert_eq!(refused, Err(ReleaseError::Step { least: step }));
        }
    }

    #[test]
    fn the_largest_value_is_the_label() {
        let mut victim = Victim::new();
        let rule = Release::label(victim.secret.parameters(), 1e-7).unwrap();
        let label = |values: &[f64], entropy: &mut Stream| {
            rule.apply(values, &victim.expected, entropy).unwrap()
        };
        assert_eq!(label(&[0.1, 0.9, 0.3], &mut victim.entropy), Released::Label(1));
        assert_eq!(label(&[-5.0, -6.0], &mut victim.entropy), Released::Label(0));
    }

    #[test]
    fn a_budget_ends_and_refusals_count() {
        let mut victim = Victim::new();
        let parameters = victim.secret.parameters().clone();
        let [result, _] = victim.results();
        let expected = Expected { values: 2, ..victim.expected };
        let rule = Release::label(&parameters, fresh_noise(&parameters)).unwrap();
        let mut budget = Budget::new(&parameters, 3);
        let mut release = |expected: &Expected, budget: &mut Budget| {
            victim.secret.release(&result, expected, &rule, budget, &mut victim.entropy)
        };
        assert_eq!(release(&expected, &mut budget), Ok(Released::Label(1)));
        assert_eq!(release(&Expected { range: 0.1, ..expected }, &mut budget), Err(Refused));
        assert_eq!(budget.remaining(1.0), 1);
        assert!(release(&expected, &mut budget).is_ok());
        assert_eq!(release(&expected, &mut budget), Err(Refused));
        // Rounded values are limited by their bits before their number.
        let mut budget = Budget::new(&parameters, 1_000_000);
        let all = victim.expected;
        let fine = Release::rounded(&parameters, 1e-6, 0.01).unwrap();
        assert!(fine.bits(&all) > count(DEGREE));
        let refused = victim.secret.release(&result, &all, &fine, &mut budget, &mut victim.entropy);
        assert_eq!(refused, Err(Refused));
    }
}
