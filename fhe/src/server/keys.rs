//! Evaluation keys, unpacked for use.

use std::fmt;

use tfhe::core_crypto::commons::math::random::{CompressionSeed, Seed};
use tfhe::core_crypto::prelude::{
    CiphertextModulus, DecompositionBaseLog, DecompositionLevelCount, FourierLweBootstrapKey,
    FourierLweBootstrapKeyOwned, GlweSize, LweDimension, LweKeyswitchKeyOwned, PolynomialSize,
    SeededLweBootstrapKey, SeededLweKeyswitchKey,
    par_convert_standard_lwe_bootstrap_key_to_fourier,
};

use crate::context::{Context, TFHE};
use crate::server::EvaluationError;
use crate::wire::evaluation_key::{self, Bodies};

/// A robot's evaluation keys: 90 MB of memory, of no use for decryption.
pub struct EvaluationKeys {
    bootstrap: FourierLweBootstrapKeyOwned,
    keyswitch: LweKeyswitchKeyOwned<u32>,
}

impl EvaluationKeys {
    /// Unpacks keys from their wire format, about half a second of CPU on the current rayon pool and
    /// 150 MB of memory while it lasts.
    ///
    /// Any bytes of the right length and header are keys, if only of nobody: what they compute
    /// for others is noise, so no further check could tell.
    ///
    /// # Errors
    /// [`EvaluationError::MalformedKeys`], [`EvaluationError::ContextMismatch`].
    pub fn from_bytes(context: &Context, bytes: &[u8]) -> Result<Self, EvaluationError> {
        let Bodies { bootstrap_seed, keyswitch_seed, bootstrap, keyswitch } =
            evaluation_key::decode(&context.digest(), bytes)?;
        let parameters = TFHE;
        let lwe_dimension = LweDimension(parameters.lwe_dimension.into());
        let keyswitch = SeededLweKeyswitchKey::from_container(
            keyswitch,
            DecompositionBaseLog(parameters.keyswitch_base_log.into()),
            DecompositionLevelCount(parameters.keyswitch_levels.into()),
            lwe_dimension.to_lwe_size(),
            compression_seed(keyswitch_seed),
            CiphertextModulus::new_native(),
        )
        .par_decompress_into_lwe_keyswitch_key();
        let standard = SeededLweBootstrapKey::from_container(
            bootstrap,
            GlweSize(usize::from(parameters.glwe_dimension) + 1),
            PolynomialSize(parameters.polynomial_size.into()),
            DecompositionBaseLog(parameters.bootstrap_base_log.into()),
            DecompositionLevelCount(parameters.bootstrap_levels.into()),
            compression_seed(bootstrap_seed),
            CiphertextModulus::new_native(),
        )
        .par_decompress_into_lwe_bootstrap_key();
        let mut bootstrap = FourierLweBootstrapKey::new(
            standard.input_lwe_dimension(),
            standard.glwe_size(),
            standard.polynomial_size(),
            standard.decomposition_base_log(),
            standard.decomposition_level_count(),
        );
        par_convert_standard_lwe_bootstrap_key_to_fourier(&standard, &mut bootstrap);
        Ok(Self { bootstrap, keyswitch })
    }

    pub(crate) fn bootstrap(&self) -> &FourierLweBootstrapKeyOwned {
        &self.bootstrap
    }

    pub(crate) fn keyswitch(&self) -> &LweKeyswitchKeyOwned<u32> {
        &self.keyswitch
    }
}

impl fmt::Debug for EvaluationKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EvaluationKeys").finish_non_exhaustive()
    }
}

fn compression_seed(bytes: [u8; 16]) -> CompressionSeed {
    CompressionSeed::from(Seed(u128::from_le_bytes(bytes)))
}
