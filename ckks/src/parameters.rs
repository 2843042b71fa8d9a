//! Encryption parameters, as `TenSEAL` and MOAI's `ParamsConfig` name them.
//!
//! Invariants:
//! - Parameters that exist are valid: the degree is a power of two, the primes are distinct and 1
//!   modulo 2N, the scale is finite and positive and fits the first data level.
//! - They are at least 128-bit secure unless [`Policy::AnyForTests`] asked otherwise.
//! - Cloning is cheap: the tables are shared.

use std::sync::Arc;

use thiserror::Error;

use crate::modulus::Modulus;
use crate::ntt::Ntt;
use crate::prime::{coefficient_modulus, is_prime};
use crate::security::{self, Security};

/// Smallest degree.
pub const MIN_DEGREE: usize = 1024;
/// Largest degree: the last row of the standard's table.
pub const MAX_DEGREE: usize = 32_768;
/// Most primes.
pub const MAX_PRIMES: usize = 64;
/// Largest prime in bits.
pub const MAX_BIT_SIZE: u32 = 60;

/// Names a set of primes on the wire: BLAKE2b-256 of scheme, degree and primes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParmsId(pub [u8; 32]);

/// How secure parameters must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// At least 128 bits by the Homomorphic Encryption Standard.
    #[default]
    Secure,
    /// Anything the arithmetic allows. SEAL refuses such parameters too, unless told otherwise.
    AnyForTests,
}

/// Why parameters were refused. Choose others.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ParametersError {
    /// Not a power of two in the range.
    #[error("poly_modulus_degree must be a power of two from {MIN_DEGREE} to {MAX_DEGREE}")]
    Degree,
    /// No prime, or too many.
    #[error("coeff_mod_bit_sizes must have 1 to {MAX_PRIMES} entries")]
    Count,
    /// A prime is too large, or there are too few of its size that are 1 modulo twice the degree.
    #[error("coeff_mod_bit_sizes must be up to {MAX_BIT_SIZE}, and large enough that primes exist")]
    BitSize,
    /// A number is no prime that is 1 modulo twice the degree, or is there twice.
    #[error("the coefficient modulus must be distinct primes that are 1 modulo twice the degree")]
    Prime,
    /// Not finite and positive, or above the data primes' product.
    #[error("global_scale must be positive and below half the product of the data primes")]
    Scale,
    /// Below 128 bits.
    #[error(
        "a coefficient modulus of {modulus_bits} bits gives about {estimate:.0} bits of security at \
         degree {degree}; 128 are required: use smaller primes or a larger degree"
    )]
    Insecure {
        /// The degree.
        degree: usize,
        /// Bits of the product of all primes.
        modulus_bits: u32,
        /// Estimated bits of security.
        estimate: f64,
    },
}

/// MOAI's parameter sets by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// 4096, one multiplication: primes of 37, 32, 37 bits. Values must stay below 16.
    Low,
    /// 8192, two multiplications: primes of 60, 40, 40, 60 bits.
    Standard,
    /// 16384, four multiplications: primes of 60, 40, 40, 40, 40, 60 bits.
    High,
}

impl Profile {
    /// Degree and sizes of the primes in bits.
    #[must_use]
    pub fn sizes(self) -> (usize, &'static [u32]) {
        match self {
            Self::Low => (4096, &[37, 32, 37]),
            Self::Standard => (8192, &[60, 40, 40, 60]),
            Self::High => (16_384, &[60, 40, 40, 40, 40, 60]),
        }
    }
}

/// Encryption parameters with everything that follows from them.
#[derive(Clone)]
pub struct Parameters(Arc<Inner>);

struct Inner {
    degree: usize,
    primes: Vec<Ntt>,
    /// Of the first 1, 2, … primes.
    ids: Vec<ParmsId>,
    scale: f64,
    modulus_bits: u32,
}

impl std::fmt::Debug for Parameters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Parameters")
            .field("poly_modulus_degree", &self.degree())
            .field("coeff_modulus", &self.primes().collect::<Vec<_>>())
            .field("global_scale", &self.global_scale())
            .finish()
    }
}

impl PartialEq for Parameters {
    fn eq(&self, other: &Self) -> bool {
        self.key_id() == other.key_id()
            && self.global_scale().to_bits() == other.global_scale().to_bits()
    }
}

impl Eq for Parameters {}

impl Parameters {
    /// Takes MOAI's `ParamsConfig`. The primes are those that SEAL chooses for these sizes; the
    /// last is the special prime of key switching.
    ///
    /// A `global_scale` equal to the last data prime ([`Parameters::matched_scale`]) loses nothing
    /// to `TenSEAL`'s habit of calling the scale after a rescaling what it was before.
    ///
    /// # Errors
    /// [`ParametersError`] saying which must change.
    pub fn new(
        poly_modulus_degree: usize,
        coeff_mod_bit_sizes: &[u32],
        global_scale: f64,
        policy: Policy,
    ) -> Result<Self, ParametersError> {
        check_shape(poly_modulus_degree, coeff_mod_bit_sizes.len())?;
        if coeff_mod_bit_sizes.iter().any(|bits| !(2..=MAX_BIT_SIZE).contains(bits)) {
            return Err(ParametersError::BitSize);
        }
        let primes = coefficient_modulus(poly_modulus_degree, coeff_mod_bit_sizes)
            .ok_or(ParametersError::BitSize)?;
        Self::from_primes(poly_modulus_degree, &primes, global_scale, policy)
    }

    /// The parameters of a profile, at the scale that suits it.
    ///
    /// # Errors
    /// None: every profile is valid and at least 128-bit secure.
    pub fn of(profile: Profile) -> Result<Self, ParametersError> {
        let (degree, sizes) = profile.sizes();
        let scale = Self::matched_scale(degree, sizes)?;
        Self::new(degree, sizes, scale, Policy::Secure)
    }

    /// The last data prime of these sizes: the scale that the first rescaling divides by.
    ///
    /// # Errors
    /// [`ParametersError`] saying which must change.
    pub fn matched_scale(
        poly_modulus_degree: usize,
        coeff_mod_bit_sizes: &[u32],
    ) -> Result<f64, ParametersError> {
        check_shape(poly_modulus_degree, coeff_mod_bit_sizes.len())?;
        let primes = coefficient_modulus(poly_modulus_degree, coeff_mod_bit_sizes)
            .ok_or(ParametersError::BitSize)?;
        let last = primes.len().saturating_sub(2);
        primes.get(last).map(|prime| to_f64(*prime)).ok_or(ParametersError::Count)
    }

    /// Takes primes chosen elsewhere.
    ///
    /// # Errors
    /// [`ParametersError`] saying which must change.
    pub fn from_primes(
        poly_modulus_degree: usize,
        coeff_modulus: &[u64],
        global_scale: f64,
        policy: Policy,
    ) -> Result<Self, ParametersError> {
        let degree = poly_modulus_degree;
        check_shape(degree, coeff_modulus.len())?;
        let modulus_bits = product_bits(coeff_modulus);
        if policy == Policy::Secure && Security::of(degree, modulus_bits) < Security::Bits128 {
            let estimate = security::estimate(degree, modulus_bits);
            return Err(ParametersError::Insecure { degree, modulus_bits, estimate });
        }
        let mut primes = Vec::with_capacity(coeff_modulus.len());
        for (index, prime) in coeff_modulus.iter().enumerate() {
            if coeff_modulus[..index].contains(prime) || !is_prime(*prime) {
                return Err(ParametersError::Prime);
            }
            primes.push(Ntt::new(degree, Modulus::new(*prime)).ok_or(ParametersError::Prime)?);
        }
        let data_primes = data_level(primes.len());
        let room = product_bits(&coeff_modulus[..data_primes]);
        if !(global_scale.is_normal()
            && global_scale >= 1.0
            && global_scale.log2() + 1.0 < f64::from(room))
        {
            return Err(ParametersError::Scale);
        }
        let ids =
            (1..=primes.len()).map(|level| parms_id(degree, &coeff_modulus[..level])).collect();
        Ok(Self(Arc::new(Inner { degree, primes, ids, scale: global_scale, modulus_bits })))
    }

    /// Number of coefficients N of a polynomial.
    #[must_use]
    pub fn degree(&self) -> usize {
        self.0.degree
    }

    /// Number of values a ciphertext holds: half the degree.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.0.degree / 2
    }

    /// All primes, the special prime last.
    pub fn primes(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.primes.iter().map(|prime| prime.modulus().value())
    }

    /// Number of primes, the special prime included.
    #[must_use]
    pub fn key_level(&self) -> usize {
        self.0.primes.len()
    }

    /// Number of primes of a fresh ciphertext. Every rescaling takes one.
    #[must_use]
    pub fn data_level(&self) -> usize {
        data_level(self.0.primes.len())
    }

    /// The scale of fresh ciphertexts: a value v stands as v · scale.
    #[must_use]
    pub fn global_scale(&self) -> f64 {
        self.0.scale
    }

    /// Bits of the product of all primes, the special prime included.
    #[must_use]
    pub fn modulus_bits(&self) -> u32 {
        self.0.modulus_bits
    }

    /// Bits of the product of the first `level` primes.
    #[must_use]
    pub fn level_bits(&self, level: usize) -> u32 {
        product_bits(&self.primes().take(level).collect::<Vec<_>>())
    }

    /// The level of the Homomorphic Encryption Standard that these parameters reach.
    #[must_use]
    pub fn security(&self) -> Security {
        Security::of(self.degree(), self.modulus_bits())
    }

    /// About how many bits of security these are, between the rows of the standard's table.
    #[must_use]
    pub fn security_estimate(&self) -> f64 {
        security::estimate(self.degree(), self.modulus_bits())
    }

    /// Names all primes; keys carry it.
    #[must_use]
    pub fn key_id(&self) -> ParmsId {
        self.id(self.key_level())
    }

    /// Names the first `level` primes; ciphertexts of this level carry it.
    pub(crate) fn id(&self, level: usize) -> ParmsId {
        self.0.ids.get(level.wrapping_sub(1)).copied().unwrap_or(ParmsId([0; 32]))
    }

    /// The number of primes that an id names.
    pub(crate) fn level_of(&self, id: ParmsId) -> Option<usize> {
        self.0.ids.iter().position(|known| *known == id).map(|index| index + 1)
    }

    pub(crate) fn ntts(&self, level: usize) -> &[Ntt] {
        self.0.primes.get(..level).unwrap_or(&self.0.primes)
    }
}

/// Number of primes of fresh ciphertexts: all but the special one.
fn data_level(primes: usize) -> usize {
    primes.saturating_sub(1).max(1)
}

fn check_shape(degree: usize, primes: usize) -> Result<(), ParametersError> {
    if !degree.is_power_of_two() || !(MIN_DEGREE..=MAX_DEGREE).contains(&degree) {
        return Err(ParametersError::Degree);
    }
    if !(1..=MAX_PRIMES).contains(&primes) {
        return Err(ParametersError::Count);
    }
    Ok(())
}

fn parms_id(degree: usize, primes: &[u64]) -> ParmsId {
    const CKKS: u64 = 2;
    const NO_PLAIN_MODULUS: u64 = 0;
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    state.update(&CKKS.to_le_bytes()).update(&(degree as u64).to_le_bytes());
    for prime in primes {
        state.update(&prime.to_le_bytes());
    }
    let mut id = [0; 32];
    id.copy_from_slice(state.update(&NO_PLAIN_MODULUS.to_le_bytes()).finalize().as_bytes());
    ParmsId(id)
}

/// Bits of a product.
fn product_bits(factors: &[u64]) -> u32 {
    let mut product = vec![1_u64];
    for factor in factors {
        let mut carry = 0;
        for limb in &mut product {
            (*limb, carry) = limb.carrying_mul(*factor, carry);
        }
        if carry > 0 {
            product.push(carry);
        }
    }
    let top = product.last().copied().unwrap_or(0);
    let below = u32::try_from(product.len() - 1).unwrap_or(u32::MAX) * u64::BITS;
    below + u64::BITS - top.leading_zeros()
}

#[expect(clippy::cast_precision_loss, reason = "the nearest double is meant")]
pub(crate) fn to_f64(x: u64) -> f64 {
    x as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_secure_and_say_how_secure() {
        let facts = [Profile::Low, Profile::Standard, Profile::High].map(|profile| {
            let parameters = Parameters::of(profile).unwrap();
            (parameters.modulus_bits(), parameters.security())
        });
        assert_eq!(
            facts,
            [(106, Security::Bits128), (200, Security::Bits128), (280, Security::Bits192)]
        );
        let standard = Parameters::of(Profile::Standard).unwrap();
        assert!((145.0..146.0).contains(&standard.security_estimate()));
    }

    #[test]
    fn what_is_insecure_is_refused_unless_a_test_asks_for_it() {
        let sizes = [40, 30, 40]; // 110 bits
        assert_eq!(
            Parameters::new(4096, &sizes, 1e9, Policy::Secure),
            Err(ParametersError::Insecure {
                degree: 4096,
                modulus_bits: 110,
                estimate: 128.0 * 109.0 / 110.0
            })
        );
        let weak = Parameters::new(4096, &sizes, 1e9, Policy::AnyForTests).unwrap();
        assert_eq!(weak.security(), Security::Below128);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |degree, sizes: &[u32], scale| {
            Parameters::new(degree, sizes, scale, Policy::Secure).unwrap_err()
        };
        assert_eq!(refused(4095, &[30], 2.0), ParametersError::Degree);
        assert_eq!(refused(512, &[20], 2.0), ParametersError::Degree);
        assert_eq!(refused(65_536, &[20], 2.0), ParametersError::Degree);
        assert_eq!(refused(4096, &[], 2.0), ParametersError::Count);
        assert_eq!(refused(4096, &[61, 20], 2.0), ParametersError::BitSize);
        assert_eq!(refused(4096, &[1], 2.0), ParametersError::BitSize);
        assert_eq!(refused(4096, &[13, 13, 13], 2.0), ParametersError::BitSize);
        for scale in [0.0, -1.0, 0.5, f64::NAN, f64::INFINITY, 2_f64.powi(60)] {
            assert_eq!(refused(4096, &[40, 20, 40], scale), ParametersError::Scale, "{scale}");
        }
        let primes = |primes: &[u64]| {
            Parameters::from_primes(4096, primes, 2.0, Policy::Secure).unwrap_err()
        };
        assert_eq!(primes(&[40_961, 40_961]), ParametersError::Prime);
        assert_eq!(primes(&[40_963]), ParametersError::Prime);
        assert_eq!(primes(&[0]), ParametersError::Prime);
        assert_eq!(primes(&[2]), ParametersError::Prime);
        assert_eq!(primes(&[8192 * 3 + 1]), ParametersError::Prime);
    }

    #[test]
    fn sizes_of_products_are_exact() {
        assert_eq!(product_bits(&[]), 1);
        assert_eq!(product_bits(&[1 << 59, 1 << 59]), 119);
        assert_eq!(product_bits(&[(1 << 60) - 1; 4]), 240);
        assert_eq!(product_bits(&[u64::MAX, u64::MAX]), 128);
    }
}
