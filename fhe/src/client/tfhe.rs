//! TFHE: secret keys, evaluation keys, packed encryption, decryption.
//!
//! An input is one RLWE ciphertext under the GLWE key: message `m` of a feature stands in a body
//! coefficient as `m / 2^5` of the torus. Only the mask's seed and the leading 12 bits of the used
//! body coefficients are sent.
//!
//! Invariants:
//! - Every secret is derived by SHA-256 from (label, context digest, seed); labels are distinct, so
//!   that knowing one derived value tells nothing of another.
//! - No mask is ever used for two inputs: mask and noise of an encryption are derived from a
//!   secret, fresh randomness and the levels, so that even a repeating source of randomness
//!   can at worst repeat a whole ciphertext (the hedge of RFC 6979 and RFC 8937).
//! - Secret-dependent code has no secret-dependent branch or address.

use sha2::{Digest as _, Sha256};
use tfhe::core_crypto::commons::generators::DeterministicSeeder;
use tfhe::core_crypto::commons::math::random::{
    CompressionSeed, DefaultRandomGenerator, RandomGenerator, Seed, Seeder as _, TUniform,
};
use tfhe::core_crypto::prelude::{
    CiphertextModulus, DecompositionBaseLog, DecompositionLevelCount, GlweSecretKey, LweSecretKey,
    PolynomialSize, SecretRandomGenerator, SeededLweBootstrapKey, SeededLweKeyswitchKey,
    generate_binary_glwe_secret_key, generate_binary_lwe_secret_key,
    generate_seeded_lwe_keyswitch_key, par_generate_seeded_lwe_bootstrap_key,
};
use zeroize::Zeroizing;

use crate::card::{Inputs, ModelCard, Scores, TfheCard};
use crate::client::stack::{scrubbed, scrubbed_pool};
use crate::client::{Engine, EngineError, Entropy, ExposedKeys, KeySeed};
use crate::context::{Context, ContextDigest, TFHE};
use crate::error::ModelError;
use crate::wire::evaluation_key::{self, BOOTSTRAP_BODIES, Bodies, KEYSWITCH_BODIES};
use crate::wire::result::{Group, first_coefficient};
use crate::wire::{self, POLYNOMIAL_SIZE, expand, expand_mask, round};

/// Width of a message with its padding bit.
const MESSAGE_WIDTH: u16 = TFHE.message_bits + 1;

/// A seed of tfhe's generator.
type SecretSeed = Zeroizing<[u8; 16]>;

/// The TFHE engine with the secret keys of one session.
pub(crate) struct TfheEngine {
    context: ContextDigest,
    /// Coefficients (0 or 1) of the GLWE secret key.
    glwe: Zeroizing<Vec<u64>>,
    /// Coefficients (0 or 1) of the small LWE secret key.
    lwe: Zeroizing<Vec<u32>>,
    /// Seeds mask and noise of the bootstrap key.
    bootstrap: SecretSeed,
    /// Seeds mask and noise of the keyswitch key.
    keyswitch: SecretSeed,
    /// Hedges the randomness of encryptions.
    hedge: SecretSeed,
}

impl TfheEngine {
    pub(crate) fn new(context: &Context, seed: &KeySeed) -> Self {
        let mut glwe = Zeroizing::new(vec![0; POLYNOMIAL_SIZE]);
        generate_binary_glwe_secret_key(
            &mut GlweSecretKey::from_container(&mut glwe[..], PolynomialSize(POLYNOMIAL_SIZE)),
            &mut SecretRandomGenerator::<DefaultRandomGenerator>::new(tfhe_seed(&derive(
                "glwe secret key",
                context,
                seed,
            ))),
        );
        let mut lwe = Zeroizing::new(vec![0; TFHE.lwe_dimension.into()]);
        generate_binary_lwe_secret_key(
            &mut LweSecretKey::from_container(&mut lwe[..]),
            &mut SecretRandomGenerator::<DefaultRandomGenerator>::new(tfhe_seed(&derive(
                "lwe secret key",
                context,
                seed,
            ))),
        );
        Self {
            context: ContextDigest::from(context),
            glwe,
            lwe,
            bootstrap: derive("bootstrap key", context, seed),
            keyswitch: derive("keyswitch key", context, seed),
            hedge: derive("encryption", context, seed),
        }
    }

    fn card<'a>(&self, card: &'a ModelCard) -> Result<&'a TfheCard, EngineError> {
        match card {
            ModelCard::Tfhe(card) if card.context() == self.context => Ok(card),
            _ => Err(EngineError::ContextMismatch),
        }
    }

    /// Seeds of mask (public) and noise (secret) of one encryption.
    fn encryption_seeds(
        &self,
        levels: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<(SecretSeed, SecretSeed), EngineError> {
        let mut fresh = Zeroizing::new([0; 32]);
        entropy.fill(&mut fresh[..])?;
        let seed = |purpose: &[u8; 5]| {
            leading_half(
                Sha256::new()
                    .chain_update(&self.hedge[..])
                    .chain_update(&fresh[..])
                    .chain_update(purpose)
                    .chain_update(levels),
            )
        };
        Ok((seed(b"mask "), seed(b"noise")))
    }

    /// Bootstrap and keyswitch key with full-width bodies, on the current rayon pool. Each GGSW
    /// ciphertext has its own stretch of both generators, so the result doesn't depend on the pool.
    fn generate(&self) -> Bodies {
        let parameters = TFHE;
        let glwe = GlweSecretKey::from_container(&self.glwe[..], PolynomialSize(POLYNOMIAL_SIZE));
        let lwe = LweSecretKey::from_container(&self.lwe[..]);

        let mut seeder =
            DeterministicSeeder::<DefaultRandomGenerator>::new(tfhe_seed(&self.bootstrap));
        let bootstrap_seed = seeder.seed();
        let mut bootstrap = SeededLweBootstrapKey::from_container(
            vec![0; BOOTSTRAP_BODIES],
            glwe.glwe_dimension().to_glwe_size(),
            glwe.polynomial_size(),
            DecompositionBaseLog(parameters.bootstrap_base_log.into()),
            DecompositionLevelCount(parameters.bootstrap_levels.into()),
            CompressionSeed::from(bootstrap_seed),
            CiphertextModulus::new_native(),
        );
        par_generate_seeded_lwe_bootstrap_key(
            &lwe,
            &glwe,
            &mut bootstrap,
            TUniform::new(parameters.glwe_noise_bound.into()),
            &mut seeder,
        );

        let mut seeder =
            DeterministicSeeder::<DefaultRandomGenerator>::new(tfhe_seed(&self.keyswitch));
        let keyswitch_seed = seeder.seed();
        let mut keyswitch = SeededLweKeyswitchKey::from_container(
            vec![0; KEYSWITCH_BODIES],
            DecompositionBaseLog(parameters.keyswitch_base_log.into()),
            DecompositionLevelCount(parameters.keyswitch_levels.into()),
            lwe.lwe_dimension().to_lwe_size(),
            CompressionSeed::from(keyswitch_seed),
            CiphertextModulus::new_native(),
        );
        generate_seeded_lwe_keyswitch_key(
            &glwe.as_lwe_secret_key(),
            &lwe,
            &mut keyswitch,
            TUniform::new(parameters.lwe_noise_bound.into()),
            &mut seeder,
        );

        Bodies {
            bootstrap_seed: bootstrap_seed.0.to_le_bytes(),
            keyswitch_seed: keyswitch_seed.0.to_le_bytes(),
            bootstrap: bootstrap.into_container(),
            keyswitch: keyswitch.into_container(),
        }
    }

    /// Message plus noise of a body coefficient under the GLWE key.
    pub(crate) fn phase(&self, mask: &[u64], body: u64, coefficient: usize) -> u64 {
        body.wrapping_sub(inner_product(mask, &self.glwe, coefficient))
    }

    pub(super) fn expose(&self) -> ExposedKeys {
        let glwe = self.glwe.iter().map(|bit| u8::from(*bit != 0)).collect();
        let lwe = self.lwe.iter().map(|bit| u8::from(*bit != 0)).collect();
        let seed = |seed: &SecretSeed| Zeroizing::new(seed.to_vec());
        ExposedKeys {
            coefficients: vec![
                ("GLWE secret key", Zeroizing::new(glwe)),
                ("LWE secret key", Zeroizing::new(lwe)),
            ],
            seeds: vec![
                ("bootstrap key seed", seed(&self.bootstrap)),
                ("keyswitch key seed", seed(&self.keyswitch)),
                ("encryption seed", seed(&self.hedge)),
            ],
        }
    }

    /// The small LWE key, for measuring noise.
    #[cfg(test)]
    pub(crate) fn small_key(&self) -> &[u32] {
        &self.lwe
    }

    fn encrypt_checked(
        &self,
        card: &TfheCard,
        levels: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError> {
        let (mask_seed, noise_seed) = self.encryption_seeds(levels, entropy)?;
        let mask = expand_mask(*mask_seed);
        let mut noise = RandomGenerator::<DefaultRandomGenerator>::new(tfhe_seed(&noise_seed));
        let distribution = TUniform::new(TFHE.glwe_noise_bound.into());
        let mut bodies = Vec::with_capacity(levels.len());
        for (coefficient, level) in levels.iter().enumerate() {
            let message = expand(u64::from(level * card.stride()), MESSAGE_WIDTH);
            let noise: u64 = noise.random_from_distribution(distribution);
            let body = inner_product(&mask, &self.glwe, coefficient)
                .wrapping_add(message)
                .wrapping_add(noise);
            let [.., high, low] = round(body, TFHE.input_body_bits).to_be_bytes();
            bodies.push(u16::from_be_bytes([high, low]) & 0x0fff);
        }
        Ok(wire::input::encode(*mask_seed, &bodies))
    }

    fn decrypt_groups(&self, card: &TfheCard, groups: &[Group]) -> Result<Scores, EngineError> {
        // Never outgrown, so that no copy is left behind.
        let mut scores = Zeroizing::new(Vec::with_capacity(card.score_count()));
        for group in groups {
            self.decrypt_group(group, card.score_bits(), &mut scores)?;
        }
        Ok(Scores::new(scores))
    }

    /// Appends one group's scores, or fails when their copies disagree.
    fn decrypt_group(
        &self,
        group: &Group,
        score_bits: u8,
        scores: &mut Vec<i32>,
    ) -> Result<(), EngineError> {
        let mask: Vec<u64> =
            group.mask.iter().map(|c| expand(u64::from(*c), TFHE.result_bits)).collect();
        for (index, copies) in group.bodies.iter().enumerate() {
            let mut agreed = None;
            let mut differences = 0;
            for (offset, body) in copies.iter().enumerate() {
                let coefficient = first_coefficient(index) + offset;
                let body = expand(u64::from(*body), TFHE.result_bits);
                let phase = self.phase(&mask, body, coefficient);
                let value = round(phase, score_bits.into()) << (64 - score_bits);
                differences |= value ^ *agreed.get_or_insert(value);
            }
            if differences != 0 {
                return Err(EngineError::ForeignKey);
            }
            let signed = agreed.unwrap_or(0).cast_signed() >> (64 - score_bits);
            scores.push(i32::try_from(signed).unwrap_or(0));
        }
        Ok(())
    }
}

impl Engine for TfheEngine {
    fn evaluation_keys(&self) -> Result<Vec<u8>, EngineError> {
        let bodies = scrubbed_pool(|| self.generate());
        Ok(evaluation_key::encode(self.context.as_bytes(), &bodies))
    }

    fn encrypt(
        &self,
        card: &ModelCard,
        inputs: &Inputs,
        entropy: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError> {
        let card = self.card(card)?;
        let Inputs::Levels(levels) = inputs else { return Err(ModelError::Scheme.into()) };
        card.check_levels(levels)?;
        scrubbed(|| self.encrypt_checked(card, levels, entropy))
    }

    fn decrypt(&self, card: &ModelCard, body: &[u8]) -> Result<Scores, EngineError> {
        let card = self.card(card)?;
        let groups = wire::result::decode(card, body)?;
        scrubbed(|| self.decrypt_groups(card, &groups))
    }
}

/// Coefficient of the product of two polynomials modulo X^N + 1, the second of zeros and ones.
fn inner_product(mask: &[u64], key: &[u64], coefficient: usize) -> u64 {
    let (low, high) = mask.split_at(coefficient + 1);
    let (key_low, key_high) = key.split_at(coefficient + 1);
    let selected = |mask: &[u64], key: &[u64]| {
        mask.iter()
            .zip(key.iter().rev())
            // Multiplication by a bit, without a branch.
            .fold(0_u64, |sum, (mask, bit)| sum.wrapping_add(mask & bit.wrapping_neg()))
    };
    selected(low, key_low).wrapping_sub(selected(high, key_high))
}

/// A value derived from the seed for one purpose.
fn derive(label: &str, context: &Context, seed: &KeySeed) -> SecretSeed {
    leading_half(
        Sha256::new()
            .chain_update(b"moai-fhe/v1/tfhe/")
            .chain_update(label)
            .chain_update([0])
            .chain_update(context.digest())
            .chain_update(seed.expose()),
    )
}

fn leading_half(hash: Sha256) -> SecretSeed {
    let digest: Zeroizing<[u8; 32]> = Zeroizing::new(hash.finalize().into());
    Zeroizing::new(std::array::from_fn(|index| digest[index]))
}

fn tfhe_seed(seed: &SecretSeed) -> Seed {
    Seed(u128::from_le_bytes(**seed))
}
