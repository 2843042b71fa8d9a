//! Evaluation keys: seeds of all masks, and the bodies.
//!
//! ```text
//! kind 0x13 | context digest, 32 bytes | bootstrap mask seed, 16 | keyswitch mask seed, 16
//! | bootstrap bodies, leading 48 of 64 bits each | keyswitch bodies, 32 bits each
//! ```
//! All integers are big-endian, bodies stand in the order of tfhe's seeded keys. Rounding adds an
//! error of standard deviation 2^14.2 to bootstrap bodies, whose noise has 2^16.2: 6 % of its
//! variance and 2 % of that of a bootstrap.

use crate::context::TFHE;
use crate::wire::POLYNOMIAL_SIZE;

/// Version 1 (high nibble) of evaluation keys (low nibble).
const KIND: u8 = 0x13;
/// Kind, context digest and two seeds.
const HEADER_LEN: usize = 1 + 32 + 16 + 16;
/// Bytes of a bootstrap body.
const BOOTSTRAP_BODY_LEN: usize = TFHE.bootstrap_body_bits as usize / 8;
/// Bytes of a keyswitch body.
const KEYSWITCH_BODY_LEN: usize = TFHE.keyswitch_modulus_bits as usize / 8;
/// Body coefficients of a bootstrap key.
pub(crate) const BOOTSTRAP_BODIES: usize = TFHE.lwe_dimension as usize
    * TFHE.bootstrap_levels as usize
    * (TFHE.glwe_dimension as usize + 1)
    * POLYNOMIAL_SIZE;
/// Bodies of a keyswitch key.
pub(crate) const KEYSWITCH_BODIES: usize =
    TFHE.glwe_dimension as usize * POLYNOMIAL_SIZE * TFHE.keyswitch_levels as usize;

/// Length in bytes of the evaluation keys of [`crate::Context::tfhe`]. All are equally long.
pub const MAX_EVALUATION_KEY_LEN: usize =
    HEADER_LEN + BOOTSTRAP_BODIES * BOOTSTRAP_BODY_LEN + KEYSWITCH_BODIES * KEYSWITCH_BODY_LEN;

/// Seeds and bodies of both keys.
pub(crate) struct Bodies {
    pub(crate) bootstrap_seed: [u8; 16],
    pub(crate) keyswitch_seed: [u8; 16],
    pub(crate) bootstrap: Vec<u64>,
    pub(crate) keyswitch: Vec<u32>,
}

/// Encodes the keys, rounding the bootstrap bodies.
#[cfg(feature = "client")]
pub(crate) fn encode(context_digest: &[u8; 32], keys: &Bodies) -> Vec<u8> {
    use crate::wire::round;

    let mut bytes = Vec::with_capacity(MAX_EVALUATION_KEY_LEN);
    bytes.push(KIND);
    bytes.extend_from_slice(context_digest);
    bytes.extend_from_slice(&keys.bootstrap_seed);
    bytes.extend_from_slice(&keys.keyswitch_seed);
    for body in &keys.bootstrap {
        let [_, _, rounded @ ..] = round(*body, TFHE.bootstrap_body_bits).to_be_bytes();
        bytes.extend_from_slice(&rounded);
    }
    for body in &keys.keyswitch {
        bytes.extend_from_slice(&body.to_be_bytes());
    }
    bytes
}

/// Decodes keys made under the context with this digest.
#[cfg(feature = "server")]
pub(crate) fn decode(
    context_digest: &[u8; 32],
    bytes: &[u8],
) -> Result<Bodies, crate::server::EvaluationError> {
    use crate::error::FormatError;
    use crate::server::EvaluationError;

    let malformed = |error| EvaluationError::MalformedKeys(error);
    let wrong_length =
        malformed(FormatError::Length { expected: MAX_EVALUATION_KEY_LEN, actual: bytes.len() });
    if bytes.len() != MAX_EVALUATION_KEY_LEN {
        return Err(wrong_length);
    }
    let (kind, rest) = bytes.split_first().ok_or(wrong_length)?;
    if *kind != KIND {
        return Err(malformed(FormatError::Kind));
    }
    let (digest, rest) = rest.split_first_chunk::<32>().ok_or(wrong_length)?;
    if digest != context_digest {
        return Err(EvaluationError::ContextMismatch);
    }
    let (bootstrap_seed, rest) = rest.split_first_chunk::<16>().ok_or(wrong_length)?;
    let (keyswitch_seed, rest) = rest.split_first_chunk::<16>().ok_or(wrong_length)?;
    let (bootstrap, keyswitch) =
        rest.split_at_checked(BOOTSTRAP_BODIES * BOOTSTRAP_BODY_LEN).ok_or(wrong_length)?;
    let (bootstrap, _) = bootstrap.as_chunks::<BOOTSTRAP_BODY_LEN>();
    let (keyswitch, _) = keyswitch.as_chunks::<KEYSWITCH_BODY_LEN>();
    Ok(Bodies {
        bootstrap_seed: *bootstrap_seed,
        keyswitch_seed: *keyswitch_seed,
        bootstrap: bootstrap
            .iter()
            .map(|[a, b, c, d, e, f]| u64::from_be_bytes([*a, *b, *c, *d, *e, *f, 0, 0]))
            .collect(),
        keyswitch: keyswitch.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect(),
    })
}
