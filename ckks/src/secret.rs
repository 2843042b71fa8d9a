//! The secret key: derivation, encryption, decryption.
//!
//! Invariants:
//! - Everything secret is derived from the seed by keyed `BLAKE2b` with distinct labels, lives in
//!   memory that wipes itself, and has neither `Debug`, `Clone` nor a serialisation but
//!   [`KeySeed::expose`] and [`Decrypted::expose`].
//! - No seed of a uniform polynomial is ever used for two messages: it is derived from a secret,
//!   fresh randomness and the message, so that even a repeating source of randomness can at worst
//!   repeat a whole ciphertext (the hedge of RFC 6979 and RFC 8937).
//! - No branch and no index depends on the key or an error.

use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::ciphertext::{Body, Ciphertext};
use crate::encoder::{Composer, EncodeError, encode};
use crate::error::FormatError;
use crate::fft::Embedding;
use crate::modulus::{Factor, subtract_once};
use crate::ntt::Ntt;
use crate::parameters::{Parameters, Policy};
use crate::sample;
use crate::scrub::scrubbed;
use crate::stream::{SEED_LEN, Stream};
use crate::wire::keys::decode_secret_key;
use crate::wire::tenseal::{ContextParts, Vector};

/// 32 secret bytes from which all keys follow. Moving it leaves no copy behind.
pub struct KeySeed(Box<Zeroizing<[u8; 32]>>);

impl KeySeed {
    /// Takes 32 uniformly random bytes. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let mut seed = Self(Box::default());
        seed.0.copy_from_slice(&bytes);
        bytes.zeroize();
        seed
    }

    /// The secret bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The caller's source of randomness could not be read. Retry later.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the system's random number source failed; retry")]
pub struct EntropyError;

/// A cryptographically secure source of random bytes.
pub trait Entropy {
    /// Fills `out` with fresh random bytes.
    ///
    /// # Errors
    /// [`EntropyError`] when the source has none; `out` must not be used then.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError>;
}

/// Why nothing was encrypted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncryptError {
    /// The source of randomness failed. Retry.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The values cannot be encoded. Give others.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// A result was not decrypted, or not released: it was not what was expected. One error for all
/// reasons, so that whoever sees it learns nothing about the key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the encrypted result was refused")]
pub struct Refused;

/// What a ciphertext must be before it is decrypted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Number of primes it has left.
    pub level: usize,
    /// Number of polynomials: 2, or 3 of a product that was not relinearised.
    pub size: usize,
    /// Its scale, up to a relative error of 2^-30.
    pub scale: f64,
    /// Number of values that mean anything.
    pub values: usize,
    /// Largest magnitude of a value that is believed.
    pub range: f64,
}

const SCALE_TOLERANCE: f64 = 1.0 / (1024.0 * 1024.0 * 1024.0);

/// The secret key of one set of parameters.
pub struct SecretKey {
    parameters: Parameters,
    embedding: Embedding,
    composers: Vec<Composer>,
    /// Coefficients, each -1, 0 or 1.
    ternary: Zeroizing<Vec<i8>>,
    /// In NTT form under every prime, with the quotients of Shoup's multiplication.
    residues: Zeroizing<Vec<u64>>,
    quotients: Zeroizing<Vec<u64>>,
    /// Derives everything else.
    root: Zeroizing<[u8; 64]>,
}

impl SecretKey {
    /// Derives the key from a seed, deterministically: milliseconds.
    #[must_use]
    pub fn from_seed(parameters: &Parameters, seed: &KeySeed) -> Self {
        scrubbed(|| {
            let root = derive(seed.expose(), b"root", &parameters.key_id().0, &[]);
            let mut ternary = Zeroizing::new(vec![0; parameters.degree()]);
            sample::ternary(
                &mut Stream::new(&derive(&root[..], b"secret", &[], &[])),
                &mut ternary,
            );
            Self::from_parts(parameters, ternary, root)
        })
    }

    /// Takes over a key that SEAL wrote, to read what was encrypted under it. The bytes also seed
    /// what is derived from the key.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged, of other parameters, or not ternary.
    pub fn decode(parameters: &Parameters, bytes: &[u8]) -> Result<Self, FormatError> {
        scrubbed(|| {
            let stored = decode_secret_key(parameters, bytes)?;
            let ternary = to_ternary(parameters, &stored)?;
            let mut bytes = Zeroizing::new(Vec::with_capacity(ternary.len()));
            bytes.extend(ternary.iter().map(|digit| digit.cast_unsigned()));
            let root = derive(&[], b"imported", &parameters.key_id().0, &bytes);
            let key = Self::from_parts(parameters, ternary, root);
            if *key.residues == *stored { Ok(key) } else { Err(FormatError::Range) }
        })
    }

    /// Takes over the key of a `TenSEAL` context that was saved with it.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged, holds no key, or is too weak for the policy.
    pub fn decode_context(bytes: &[u8], policy: Policy) -> Result<Self, FormatError> {
        let parts = ContextParts::decode(bytes)?;
        let key = parts.secret_key.ok_or(FormatError::Kind)?;
        Self::decode(&parts.parameters(policy)?, key)
    }

    fn from_parts(
        parameters: &Parameters,
        ternary: Zeroizing<Vec<i8>>,
        root: Zeroizing<[u8; 64]>,
    ) -> Self {
        let (degree, level) = (parameters.degree(), parameters.key_level());
        let mut residues = Zeroizing::new(vec![0; degree * level]);
        let mut quotients = Zeroizing::new(vec![0; degree * level]);
        let halves = residues.chunks_exact_mut(degree).zip(quotients.chunks_exact_mut(degree));
        for ((residues, quotients), prime) in halves.zip(parameters.ntts(level)) {
            let q = prime.modulus();
            for (residue, digit) in residues.iter_mut().zip(ternary.iter()) {
                *residue = q.reduce_signed(i64::from(*digit));
            }
            prime.forward(residues);
            for (quotient, residue) in quotients.iter_mut().zip(residues) {
                *quotient = q.factor(*residue).quotient;
            }
        }
        Self {
            parameters: parameters.clone(),
            embedding: Embedding::new(degree),
            composers: (1..=level).map(|level| Composer::new(parameters, level)).collect(),
            ternary,
            residues,
            quotients,
            root,
        }
    }

    /// The parameters of the key.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The coefficients, each -1, 0 or 1, for whoever searches for leaks of them.
    #[must_use]
    pub fn expose(&self) -> &[i8] {
        &self.ternary
    }

    /// Encrypts up to N/2 values at the global scale, repeated cyclically over all slots as
    /// `TenSEAL` expects: half a millisecond at degree 8192.
    ///
    /// # Errors
    /// [`EncryptError`].
    pub fn encrypt(
        &self,
        values: &[f64],
        entropy: &mut dyn Entropy,
    ) -> Result<Ciphertext, EncryptError> {
        scrubbed(|| self.encrypt_values(values, entropy))
    }

    /// Encrypts any number of values as `TenSEAL`'s `CKKSVector`: N/2 a ciphertext.
    ///
    /// # Errors
    /// [`EncryptError`].
    pub fn encrypt_vector(
        &self,
        values: &[f64],
        entropy: &mut dyn Entropy,
    ) -> Result<Vector, EncryptError> {
        let slots = self.parameters.slots();
        let most = slots * crate::wire::tenseal::MAX_CHUNKS;
        if values.is_empty() || values.len() > most {
            return Err(EncodeError::Count { slots: most }.into());
        }
        let chunks = values.chunks(slots).map(|values| self.encrypt(values, entropy));
        let ciphertexts = chunks.collect::<Result<_, _>>()?;
        Ok(Vector::new(values.len(), ciphertexts, self.parameters.global_scale()))
    }

    fn encrypt_values(
        &self,
        values: &[f64],
        entropy: &mut dyn Entropy,
    ) -> Result<Ciphertext, EncryptError> {
        let parameters = &self.parameters;
        let mut message = encode(parameters, &self.embedding, values)?;
        let mut fresh = Zeroizing::new([0; 64]);
        entropy.fill(&mut fresh[..])?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(values.len() * 8));
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let seed = derive(&self.root[..], b"public", &fresh[..], &bytes);
        let error_seed = derive(&self.root[..], b"error", &fresh[..], &bytes);

        let level = parameters.data_level();
        let mut scratch = Scratch::new(parameters, level);
        scratch.stream.reseed(&error_seed);
        sample::add_errors(&mut scratch.stream, &mut message);
        self.mask(&message, &seed, &mut scratch);
        Ok(Ciphertext {
            id: parameters.id(level),
            level,
            scale: parameters.global_scale(),
            body: Body::Seeded { c0: std::mem::take(&mut scratch.c0), seed: Box::new(*seed) },
        })
    }

    /// Writes m - a·s to `scratch.c0`, where a is expanded from the seed.
    pub(crate) fn mask(&self, message: &[i64], seed: &[u8; SEED_LEN], scratch: &mut Scratch) {
        let degree = self.parameters.degree();
        let primes = self.parameters.ntts(scratch.c0.len() / degree);
        scratch.stream.reseed(seed);
        scratch.stream.uniform(primes, &mut scratch.uniform);
        let c0 = scratch.c0.chunks_exact_mut(degree);
        let uniform = scratch.uniform.chunks_exact(degree);
        for (index, ((c0, uniform), prime)) in c0.zip(uniform).zip(primes).enumerate() {
            let q = prime.modulus();
            for (value, message) in c0.iter_mut().zip(message) {
                *value = q.reduce_signed(*message);
            }
            prime.forward_below_4q(c0);
            for ((value, a), s) in c0.iter_mut().zip(uniform).zip(self.factors(index)) {
                // Below 6q, in four subtractions.
                let difference = *value + 2 * q.value() - q.times_below_2q(*a, s);
                *value = prime.reduce_4q(subtract_once(difference, 4 * q.value()));
            }
        }
    }

    /// The key under one prime.
    fn factors(&self, prime: usize) -> impl Iterator<Item = Factor> + '_ {
        let residues = self.residues(prime);
        let quotients = self.quotients.chunks_exact(self.parameters.degree()).nth(prime);
        let pairs = residues.iter().zip(quotients.unwrap_or_default());
        pairs.map(|(value, quotient)| Factor { value: *value, quotient: *quotient })
    }

    /// The key in NTT form under one prime.
    pub(crate) fn residues(&self, prime: usize) -> &[u64] {
        self.residues.chunks_exact(self.parameters.degree()).nth(prime).unwrap_or_default()
    }

    /// Secret bytes for one purpose.
    pub(crate) fn derive(&self, label: &[u8], index: &[u8]) -> Zeroizing<[u8; SEED_LEN]> {
        derive(&self.root[..], label, index, &[])
    }

    /// Decrypts a ciphertext that is what is expected: a millisecond at degree 8192.
    ///
    /// # Errors
    /// [`Refused`] when it is anything else, or a value is out of range.
    pub fn decrypt(
        &self,
        ciphertext: &Ciphertext,
        expected: &Expected,
    ) -> Result<Decrypted, Refused> {
        let level = ciphertext.level();
        let scale_error = (ciphertext.scale() / expected.scale - 1.0).abs();
        let fits = level == expected.level
            && level <= self.parameters.data_level()
            && ciphertext.id == self.parameters.id(level)
            && ciphertext.size() == expected.size
            && scale_error <= SCALE_TOLERANCE
            && (1..=self.parameters.slots()).contains(&expected.values)
            && !is_transparent(ciphertext);
        if !fits {
            return Err(Refused);
        }
        let values = scrubbed(|| self.decrypt_values(ciphertext, expected.values));
        let in_range =
            values.iter().fold(true, |fits, value| fits & (value.abs() <= expected.range));
        if in_range { Ok(Decrypted { values }) } else { Err(Refused) }
    }

    fn decrypt_values(&self, ciphertext: &Ciphertext, count: usize) -> Zeroizing<Vec<f64>> {
        let degree = self.parameters.degree();
        let level = ciphertext.level();
        let expanded;
        let words = match &ciphertext.body {
            Body::Full { words, .. } => words,
            Body::Seeded { .. } => {
                expanded = ciphertext.expanded(&self.parameters);
                expanded.words()
            }
        };
        let mut phase = Zeroizing::new(vec![0; degree * level]);
        let primes = self.parameters.ntts(level);
        for (index, (prime, phase)) in primes.iter().zip(phase.chunks_exact_mut(degree)).enumerate()
        {
            let q = prime.modulus();
            // Horner's rule in s, from the last polynomial to the first.
            for polynomial in words.chunks_exact(degree * level).rev() {
                let values = polynomial.chunks_exact(degree).nth(index).unwrap_or_default();
                for ((phase, value), s) in phase.iter_mut().zip(values).zip(self.factors(index)) {
                    *phase = subtract_once(q.times_below_2q(*phase, s) + *value, 2 * q.value());
                }
            }
            prime.inverse(phase);
        }
        let mut values = Zeroizing::new(vec![0.0; count]);
        if let Some(composer) = self.composers.get(level - 1) {
            let folded = composer.compose(&mut phase, ciphertext.scale());
            self.embedding.slots(folded, &mut values);
        }
        values
    }
}

/// Memory that encryptions use again and again.
pub(crate) struct Scratch {
    pub(crate) c0: Vec<u64>,
    uniform: Vec<u64>,
    pub(crate) stream: Stream,
}

impl Scratch {
    pub(crate) fn new(parameters: &Parameters, level: usize) -> Self {
        let words = parameters.degree() * level;
        Self { c0: vec![0; words], uniform: vec![0; words], stream: Stream::new(&[0; SEED_LEN]) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What was not taken may be a message in the middle of its encryption.
        self.c0.zeroize();
    }
}

/// Decrypted values in full precision: plaintext, wiped on drop. Two of them can reveal the key (Li
/// and Micciancio 2021); what leaves is what a [`Release`](crate::Release) makes of them.
pub struct Decrypted {
    values: Zeroizing<Vec<f64>>,
}

impl Decrypted {
    /// The values in full precision. They must never reach whoever can see the ciphertext.
    #[must_use]
    pub fn expose(&self) -> &[f64] {
        &self.values
    }
}

/// Whether every polynomial but the first is zero: no secret hides the message then, so that it
/// was not encrypted by anybody.
fn is_transparent(ciphertext: &Ciphertext) -> bool {
    match &ciphertext.body {
        Body::Seeded { .. } => false,
        Body::Full { size, words } => {
            words.iter().skip(words.len() / size).fold(0, |any, word| any | word) == 0
        }
    }
}

/// The coefficients of a key in NTT form, if they are all -1, 0 or 1.
fn to_ternary(parameters: &Parameters, stored: &[u64]) -> Result<Zeroizing<Vec<i8>>, FormatError> {
    let prime: &Ntt = parameters.ntts(1).first().ok_or(FormatError::Shape)?;
    let q = prime.modulus();
    let mut coefficients =
        Zeroizing::new(stored.get(..parameters.degree()).unwrap_or_default().to_vec());
    prime.inverse(&mut coefficients);
    let mut ternary = Zeroizing::new(vec![0; coefficients.len()]);
    let mut excess = 0;
    for (digit, coefficient) in ternary.iter_mut().zip(coefficients.iter()) {
        let [shifted, ..] = q.add(*coefficient, 1).to_le_bytes();
        excess |= q.add(*coefficient, 1) >> 2 | u64::from(shifted & (shifted >> 1) & 1);
        *digit = (shifted & 3).cast_signed() - 1;
    }
    if excess == 0 { Ok(ternary) } else { Err(FormatError::Range) }
}

/// 64 bytes for one purpose: `BLAKE2b` keyed with a secret.
fn derive(key: &[u8], label: &[u8], index: &[u8], content: &[u8]) -> Zeroizing<[u8; SEED_LEN]> {
    let mut state = blake2b_simd::Params::new().hash_length(SEED_LEN).key(key).to_state();
    state.update(b"moai-ckks/v1/");
    for part in [label, index] {
        state.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let hash = state.update(content).finalize();
    let mut derived = Zeroizing::new([0; SEED_LEN]);
    derived.copy_from_slice(hash.as_bytes());
    derived
}
