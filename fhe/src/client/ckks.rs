//! CKKS: the keys of `moai-ckks`, a window as a TenSEAL vector, scores behind noise.
//!
//! Invariants:
//! - A result is decrypted only if it has exactly the shape, level and scale that the card says, and
//!   scores leave only flooded with noise and rounded to the card's precision.
//! - The noise is derived from a secret and the result: the same result always has the same, so that
//!   nothing is averaged away.
//! - All reasons to refuse a result look alike.

use std::sync::Mutex;

use moai_ckks::{
    Budget, Compression, EncryptError, EvaluationKeys, Expected, FLOODING, Parameters, Policy,
    Release, Released, SecretKey, Selection, Vector,
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::card::{CkksCard, Inputs, Method, ModelCard, Scores};
use crate::client::stack::scrubbed;
use crate::client::{Engine, EngineError, Entropy, EntropyError, ExposedKeys, KeySeed};
use crate::context::{CkksParameters, Context, ContextDigest, MAX_CKKS_RESULTS};
use crate::error::{FormatError, ModelError};

/// The CKKS engine with the secret key of one session.
pub(crate) struct CkksEngine {
    context: ContextDigest,
    selection: Selection,
    secret: SecretKey,
    /// What everything is derived from.
    seed: Zeroizing<[u8; 32]>,
    /// Derives the noise of releases.
    flooding: Zeroizing<[u8; 32]>,
    budget: Mutex<Budget>,
}

impl CkksEngine {
    pub(crate) fn new(
        context: &Context,
        parameters: &CkksParameters,
        seed: &KeySeed,
    ) -> Result<Self, EngineError> {
        let sizes: Vec<u32> =
            parameters.coeff_mod_bit_sizes.iter().map(|bits| u32::from(*bits)).collect();
        let degree = 2 * parameters.slots();
        let scheme = Parameters::new(degree, &sizes, parameters.global_scale, Policy::Secure)
            .map_err(|_| EngineError::ContextMismatch)?;
        let digest = ContextDigest::from(context);
        let derived = derive("key seed", digest, seed);
        let key_seed = moai_ckks::KeySeed::from_bytes(*derived);
        let secret = SecretKey::from_seed(&scheme, &key_seed);
        let selection = Selection {
            public_key: parameters.public_key,
            relinearization: parameters.relinearisation_keys,
            rotations: parameters.rotations.iter().map(|steps| i32::from(*steps)).collect(),
        };
        Ok(Self {
            context: digest,
            selection,
            // Counted while this process runs; who keeps the session counts over restarts.
            budget: Mutex::new(Budget::of_results(
                u32::try_from(MAX_CKKS_RESULTS).unwrap_or(u32::MAX),
            )),
            secret,
            seed: derived,
            flooding: derive("flooding", digest, seed),
        })
    }

    pub(super) fn expose(&self) -> ExposedKeys {
        let digits = self.secret.expose().iter().map(|digit| digit.cast_unsigned()).collect();
        let seed = |seed: &[u8; 32]| Zeroizing::new(seed.to_vec());
        ExposedKeys {
            coefficients: vec![("CKKS secret key", Zeroizing::new(digits))],
            seeds: vec![
                ("CKKS key seed", seed(&self.seed)),
                ("CKKS flooding seed", seed(&self.flooding)),
            ],
        }
    }

    fn card<'a>(&self, card: &'a ModelCard) -> Result<&'a CkksCard, EngineError> {
        match card {
            ModelCard::Ckks(card) if card.context() == self.context => Ok(card),
            _ => Err(EngineError::ContextMismatch),
        }
    }

    /// The released scores, in steps of the precision.
    fn release(&self, card: &CkksCard, vector: &Vector, digest: &[u8]) -> Option<Vec<i32>> {
        let parameters = self.secret.parameters();
        let scores = card.labels().len() - 1;
        let step = card.precision();
        let rule = Release::rounded(parameters, step / (2.0 * FLOODING), step).ok()?;
        let expected = Expected {
            level: card.result_primes(),
            size: 2,
            scale: parameters.global_scale(),
            values: if card.method() == Method::Dot { 1 } else { scores },
            range: card.score_limit() + card.error(),
        };
        let mut noise = Derived { key: &self.flooding, result: digest, counter: 0 };
        // Counted once for a result, however many ciphertexts it has.
        let mut budget = Budget::of_results(u32::try_from(vector.ciphertexts().len()).ok()?);
        self.budget.lock().ok()?.charge_result().ok()?;
        let mut released = Vec::with_capacity(scores);
        for ciphertext in vector.ciphertexts() {
            let values =
                self.secret.release(ciphertext, &expected, &rule, &mut budget, &mut noise).ok()?;
            let Released::Rounded(values) = values else { return None };
            released.extend(values.iter().map(|value| in_steps(value / step)));
        }
        Some(released)
    }
}

impl Engine for CkksEngine {
    fn evaluation_keys(&self) -> Result<Vec<u8>, EngineError> {
        let keys = EvaluationKeys::new(&self.secret, self.selection.clone(), Compression::Packed)
            .map_err(|_| EngineError::ContextMismatch)?;
        Ok(keys.context())
    }

    fn encrypt(
        &self,
        card: &ModelCard,
        inputs: &Inputs,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError> {
        let card = self.card(card)?;
        let Inputs::Values(values) = inputs else { return Err(ModelError::Scheme.into()) };
        card.check_values(values)?;
        let mut block = Zeroizing::new(vec![0.0; card.block()]);
        for (slot, value) in block.iter_mut().zip(values.iter()) {
            *slot = *value;
        }
        let vector = self.secret.encrypt_vector(&block, &mut Source(entropy));
        let vector = vector.map_err(|error| match error {
            EncryptError::Entropy(_) => EngineError::Entropy(EntropyError),
            _ => EngineError::Model(ModelError::ValuesMismatch {
                features: card.features().len(),
                limit: card.input_limit(),
            }),
        })?;
        Ok(vector.encode(self.secret.parameters(), Compression::Packed))
    }

    fn decrypt(&self, card: &ModelCard, body: &[u8]) -> Result<Scores, EngineError> {
        let card = self.card(card)?;
        if body.len() > card.max_result_len() {
            return Err(EngineError::Malformed(FormatError::Shape));
        }
        let parameters = self.secret.parameters();
        let length =
            if card.method() == Method::Dot { card.block() } else { card.labels().len() - 1 };
        let vector =
            Vector::decode_result(parameters, body, length, card.result_ciphertexts()).ok();
        let vector =
            vector.filter(|vector| vector.scale().to_bits() == parameters.global_scale().to_bits());
        let digest = Sha256::digest(body);
        let scores = scrubbed(|| vector.and_then(|vector| self.release(card, &vector, &digest)));
        let scores = scores.ok_or(EngineError::ForeignKey)?;
        Ok(Scores::new(Zeroizing::new(scores)))
    }
}

/// A released value in steps: an integer, which the card's limits keep below 2^31.
#[expect(
    clippy::cast_possible_truncation,
    reason = "released values are small multiples of a step"
)]
fn in_steps(value: f64) -> i32 {
    value.round() as i32
}

/// The caller's randomness, for the other crate.
struct Source<'a>(&'a mut dyn Entropy);

impl moai_ckks::Entropy for Source<'_> {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), moai_ckks::EntropyError> {
        self.0.fill(out).map_err(|_| moai_ckks::EntropyError)
    }
}

/// Bytes that follow from a secret and a result.
struct Derived<'a> {
    key: &'a [u8; 32],
    result: &'a [u8],
    counter: u64,
}

impl moai_ckks::Entropy for Derived<'_> {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), moai_ckks::EntropyError> {
        for out in out.chunks_mut(32) {
            let block: Zeroizing<[u8; 32]> = Zeroizing::new(
                Sha256::new()
                    .chain_update(self.key)
                    .chain_update(self.counter.to_be_bytes())
                    .chain_update(self.result)
                    .finalize()
                    .into(),
            );
            out.copy_from_slice(&block[..out.len()]);
            self.counter += 1;
        }
        Ok(())
    }
}

/// A secret derived from the seed for one purpose.
fn derive(label: &str, context: ContextDigest, seed: &KeySeed) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(
        Sha256::new()
            .chain_update(b"moai-fhe/v1/ckks/")
            .chain_update(label)
            .chain_update([0])
            .chain_update(context.as_bytes())
            .chain_update(seed.expose())
            .finalize()
            .into(),
    )
}
