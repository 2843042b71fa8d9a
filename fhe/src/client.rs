//! The robot's half: keys from a seed, encryption, decryption.
//!
//! Invariants:
//! - Secret keys live in types without `Debug`, `Clone` and `Serialize` and are wiped on drop;
//!   [`KeySeed::expose`] and [`KeySeed::expose_keys`] are the only ways out for a secret.
//! - Randomness comes from the caller, fresh for every encryption.
//! - What works with a secret key leaves nothing of it on the stacks it ran on, rayon's included.
//! - What tfhe keeps on the heap while it generates keys is wiped by the program's zeroizing
//!   allocator, not by this crate.

#[cfg(feature = "ckks")]
mod ckks;
mod stack;
#[cfg(feature = "tfhe")]
pub(crate) mod tfhe;

use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::card::{Inputs, ModelCard, Scores};
use crate::context::{Context, NotBuilt, Scheme};
use crate::error::{FormatError, ModelError};

/// 32 secret bytes from which all keys of a session follow. Moving it leaves no copy behind.
pub struct KeySeed(Box<Zeroizing<[u8; 32]>>);

impl KeySeed {
    /// Takes 32 uniformly random bytes. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let seed = Self::filled_by(|seed| seed.copy_from_slice(&bytes));
        bytes.zeroize();
        seed
    }

    /// Has 32 uniformly random bytes written to where they stay.
    #[must_use]
    pub fn filled_by(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut seed = Self(Box::default());
        fill(&mut seed.0);
        seed
    }

    /// The secret bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The secret keys that follow from the seed, for whoever searches for leaks of them.
    #[must_use]
    pub fn expose_keys(&self, context: &Context) -> ExposedKeys {
        match context.scheme() {
            #[cfg(feature = "tfhe")]
            Scheme::Tfhe => tfhe::TfheEngine::new(context, self).expose(),
            #[cfg(feature = "ckks")]
            Scheme::Ckks(parameters) => ckks::CkksEngine::new(context, parameters, self)
                .map_or_else(|_| ExposedKeys::default(), |engine| engine.expose()),
            #[cfg(not(all(feature = "tfhe", feature = "ckks")))]
            _ => ExposedKeys::default(),
        }
    }
}

/// Everything secret that an engine holds for a session, by name.
#[derive(Default)]
pub struct ExposedKeys {
    /// Coefficients of secret keys, in the order of the key: each 0 or 1, or 255 for -1.
    pub coefficients: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
    /// Seeds of noise and of secret randomness.
    pub seeds: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
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

/// Why an engine refused.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum EngineError {
    /// The source of randomness failed. Retry.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The card or the levels don't fit. Fix the input.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine is not part of this program.
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    /// The card was made for another context. Ask the server for its current catalogue.
    #[error("the model runs under another context; fetch the catalogue again")]
    ContextMismatch,
    /// The bytes are not a result of this model. Stop: the peer is broken or hostile.
    #[error("the encrypted result is malformed: {0}")]
    Malformed(#[from] FormatError),
    /// The result decrypts to nothing sensible: it was computed with other keys. Register the
    /// session's evaluation keys again.
    #[error("the encrypted result was not made with this session's keys; register them again")]
    ForeignKey,
}

impl EngineError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Entropy(_))
    }
}

/// The client half of one FHE scheme, with the keys of one session.
pub trait Engine: Send + Sync {
    /// The evaluation keys in their wire format, deterministic in context and seed. TFHE's are
    /// 22.6 MB and take about 1.5 seconds of CPU on the current rayon pool, those of CKKS 0.5 to
    /// 50 MB and as many hundredths of a second; call it off the async threads.
    ///
    /// # Errors
    /// [`EngineError`] when an engine cannot make them; for contexts of valid cards it always can.
    fn evaluation_keys(&self) -> Result<Vec<u8>, EngineError>;

    /// Encrypts what a model takes of one window: microseconds with TFHE, up to a few milliseconds
    /// with CKKS.
    ///
    /// # Errors
    /// [`EngineError::ContextMismatch`], [`EngineError::Model`] when the inputs are another
    /// model's, [`EngineError::Entropy`].
    fn encrypt(
        &self,
        card: &ModelCard,
        inputs: &Inputs,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError>;

    /// Decrypts a result: microseconds with TFHE, up to a few milliseconds with CKKS. CKKS scores
    /// are flooded with noise and rounded, and every way in which a result can be wrong looks the
    /// same.
    ///
    /// # Errors
    /// [`EngineError::ContextMismatch`], [`EngineError::Malformed`] when the bytes are no result
    /// of this model, [`EngineError::ForeignKey`] when they were computed with other keys.
    fn decrypt(&self, card: &ModelCard, body: &[u8]) -> Result<Scores, EngineError>;
}

/// Makes the engine of a context with the keys of a seed: milliseconds, deterministic.
///
/// # Errors
/// [`EngineError::ContextMismatch`] when no primes of the sizes of a CKKS context exist,
/// [`EngineError::NotBuilt`] when the scheme's engine is not part of this program.
pub fn setup(context: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError> {
    stack::scrubbed(|| engine(context, seed))
}

fn engine(context: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError> {
    match context.scheme() {
        #[cfg(feature = "tfhe")]
        Scheme::Tfhe => Ok(Box::new(tfhe::TfheEngine::new(context, seed))),
        #[cfg(feature = "ckks")]
        Scheme::Ckks(parameters) => Ok(Box::new(ckks::CkksEngine::new(context, parameters, seed)?)),
        #[cfg(not(all(feature = "tfhe", feature = "ckks")))]
        _ => Err(NotBuilt { scheme: context.scheme_name() }.into()),
    }
}
