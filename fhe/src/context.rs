//! Public parameters of an FHE scheme, and the digest that names them.
//!
//! Invariants:
//! - A [`Context`] can only hold parameters this crate computes with; parsing refuses the rest,
//!   and says apart whether they are weak, unreliable or merely unknown.
//! - Equal contexts have equal canonical bytes, different contexts have different ones.
//! - Everything a wire format depends on (dimensions, noise, decompositions, how many bits of a
//!   coefficient are sent) is part of the canonical bytes.

mod ckks;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub use self::ckks::CkksParameters;

/// First bytes of every canonical context.
const MAGIC: &[u8; 8] = b"moai-fhe";
/// Version of the canonical encoding.
const VERSION: u8 = 1;
/// The schemes' numbers in the canonical encoding.
const SCHEME_TFHE: u8 = 1;
const SCHEME_CKKS: u8 = 2;
/// Number of 16-bit fields after the scheme number.
const FIELDS: usize = 14;

/// Failure probability of one operation, as a base-2 logarithm, that no context or model may
/// exceed.
pub const MAX_LOG2_FAILURE: f64 = -128.0;

/// Parameters of the TFHE scheme (Chillotti, Gama, Georgieva, Izabachène, "TFHE: Fast Fully
/// Homomorphic Encryption over the Torus", 2018) on a torus of 64 bits (32 bits between keyswitch and
/// blind rotation), with binary secret keys and `TUniform` noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// Dimension of the small LWE key, the one a blind rotation consumes.
    pub(crate) lwe_dimension: u16,
    /// Number of mask polynomials of a GLWE ciphertext.
    pub(crate) glwe_dimension: u16,
    /// Coefficients of a polynomial, a power of two.
    pub(crate) polynomial_size: u16,
    /// `TUniform` bound (base-2 logarithm) of noise under the small LWE key.
    pub(crate) lwe_noise_bound: u16,
    /// `TUniform` bound (base-2 logarithm) of noise under the GLWE key.
    pub(crate) glwe_noise_bound: u16,
    /// Bootstrap decomposition base, as a base-2 logarithm.
    pub(crate) bootstrap_base_log: u16,
    /// Bootstrap decomposition levels.
    pub(crate) bootstrap_levels: u16,
    /// Keyswitch decomposition base, as a base-2 logarithm.
    pub(crate) keyswitch_base_log: u16,
    /// Keyswitch decomposition levels.
    pub(crate) keyswitch_levels: u16,
    /// Bits of a message in an input coefficient; one padding bit precedes them.
    pub(crate) message_bits: u16,
    /// Leading bits of an input body coefficient that are sent.
    pub(crate) input_body_bits: u16,
    /// Leading bits of a bootstrap key body coefficient that are sent.
    pub(crate) bootstrap_body_bits: u16,
    /// Bits of the small LWE modulus, a power of two.
    pub(crate) keyswitch_modulus_bits: u16,
    /// Leading bits of a result coefficient that are sent.
    pub(crate) result_bits: u16,
}

/// The parameters this crate computes with: the values of
/// `V1_8_PARAM_MESSAGE_2_CARRY_2_KS32_PBS_TUNIFORM_2M128` of tfhe 1.8 (132-bit security by the
/// lattice estimator), used through its core API with our own packing.
pub(crate) const TFHE: Parameters = Parameters {
    lwe_dimension: 918,
    glwe_dimension: 1,
    polynomial_size: 2048,
    lwe_noise_bound: 13,
    glwe_noise_bound: 17,
    bootstrap_base_log: 23,
    bootstrap_levels: 1,
    keyswitch_base_log: 4,
    keyswitch_levels: 4,
    message_bits: 4,
    input_body_bits: 12,
    bootstrap_body_bits: 48,
    keyswitch_modulus_bits: 32,
    result_bits: 16,
};

impl Parameters {
    fn to_fields(self) -> [u16; FIELDS] {
        [
            self.lwe_dimension,
            self.glwe_dimension,
            self.polynomial_size,
            self.lwe_noise_bound,
            self.glwe_noise_bound,
            self.bootstrap_base_log,
            self.bootstrap_levels,
            self.keyswitch_base_log,
            self.keyswitch_levels,
            self.message_bits,
            self.input_body_bits,
            self.bootstrap_body_bits,
            self.keyswitch_modulus_bits,
            self.result_bits,
        ]
    }

    fn from_fields(fields: [u16; FIELDS]) -> Self {
        let [
            lwe_dimension,
            glwe_dimension,
            polynomial_size,
            lwe_noise_bound,
            glwe_noise_bound,
            bootstrap_base_log,
            bootstrap_levels,
            keyswitch_base_log,
            keyswitch_levels,
            message_bits,
            input_body_bits,
            bootstrap_body_bits,
            keyswitch_modulus_bits,
            result_bits,
        ] = fields;
        Self {
            lwe_dimension,
            glwe_dimension,
            polynomial_size,
            lwe_noise_bound,
            glwe_noise_bound,
            bootstrap_base_log,
            bootstrap_levels,
            keyswitch_base_log,
            keyswitch_levels,
            message_bits,
            input_body_bits,
            bootstrap_body_bits,
            keyswitch_modulus_bits,
            result_bits,
        }
    }
}

/// Why bytes are not a context this crate will use. None is worth a retry: the peer has to offer
/// other parameters, or one side has to be updated.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ContextError {
    /// Not the canonical encoding of any context.
    #[error("the context is malformed: {0}; the peer must send its canonical bytes unchanged")]
    Malformed(&'static str),
    /// Less than 128 bits of security.
    #[error(
        "the context is weak: {key} noise of 2^{bound} where 128-bit security needs 2^{minimum}; \
         use the parameters of this release"
    )]
    Weak {
        /// Which key has too little noise.
        key: &'static str,
        /// Offered `TUniform` bound, as a base-2 logarithm.
        bound: u16,
        /// Least acceptable bound.
        minimum: u32,
    },
    /// A computation would go wrong more often than once in 2^128 bootstraps.
    #[error(
        "the context is unreliable: a bootstrap fails with probability 2^{log2_failure:.1}, \
         2^-128 is allowed; use the parameters of this release"
    )]
    Unreliable {
        /// Base-2 logarithm of the failure probability.
        log2_failure: f64,
    },
    /// Less than 128 bits of security, of a CKKS context.
    #[error(
        "the context is weak: primes of {modulus_bits} bits together where 128-bit security at \
         degree {degree} allows {most}; use smaller primes or a larger degree"
    )]
    WeakModulus {
        /// Coefficients of a polynomial.
        degree: u32,
        /// Bits of all primes together.
        modulus_bits: u32,
        /// The most there may be.
        most: u32,
    },
    /// Of a scheme whose engine this program is built without.
    #[error("{0}")]
    NotBuilt(#[from] NotBuilt),
    /// Sound as far as is known, but not what this release computes with.
    #[error("the context is not one this release knows; update the older side")]
    Unsupported,
}

/// Most results that one set of CKKS keys decrypts: what is released of each tells a little of its
/// error, and with that of the key (`docs/ckks.md`).
pub const MAX_CKKS_RESULTS: u64 = 1000;

/// A scheme with its parameters. Public; named by its digest.
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    scheme: Scheme,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scheme {
    /// With the parameters of this release, [`TFHE`].
    Tfhe,
    Ckks(CkksParameters),
}

impl Context {
    /// The TFHE context of this release: 132-bit security, failure probability of a bootstrap
    /// below 2^-128.
    #[must_use]
    pub fn tfhe() -> Self {
        Self { scheme: Scheme::Tfhe }
    }

    /// A CKKS context.
    ///
    /// # Errors
    /// [`ContextError`] when the parameters are out of the protocol's limits or weak.
    pub fn ckks(parameters: CkksParameters) -> Result<Self, ContextError> {
        parameters.check()?;
        Ok(Self { scheme: Scheme::Ckks(parameters) })
    }

    /// The scheme's name, `tfhe` or `ckks`: what a session's seed for its engine is derived for.
    #[must_use]
    pub fn scheme_name(&self) -> &'static str {
        match self.scheme {
            Scheme::Tfhe => "tfhe",
            Scheme::Ckks(_) => "ckks",
        }
    }

    /// Fails if the engine of the scheme is not part of this program.
    ///
    /// # Errors
    /// [`NotBuilt`], which names the scheme.
    pub fn check_built(&self) -> Result<(), NotBuilt> {
        let is_built = match self.scheme {
            Scheme::Tfhe => cfg!(feature = "tfhe"),
            Scheme::Ckks(_) => cfg!(feature = "ckks"),
        };
        if is_built { Ok(()) } else { Err(NotBuilt { scheme: self.scheme_name() }) }
    }

    /// SHA-256 of the canonical bytes.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.canonical_bytes()).into()
    }

    /// The one encoding of this context: magic, version, scheme, then the parameters in the order
    /// of the protocol description, big-endian.
    #[must_use]
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        match &self.scheme {
            Scheme::Tfhe => {
                bytes.extend([VERSION, SCHEME_TFHE]);
                for field in TFHE.to_fields() {
                    bytes.extend_from_slice(&field.to_be_bytes());
                }
            }
            Scheme::Ckks(parameters) => {
                bytes.extend([VERSION, SCHEME_CKKS]);
                parameters.write(&mut bytes);
            }
        }
        bytes
    }

    /// Reads canonical bytes from a peer.
    ///
    /// # Errors
    /// [`ContextError`], in the order weak, unreliable, unsupported, so that the message names the
    /// gravest flaw.
    pub fn from_canonical_bytes(bytes: &[u8]) -> Result<Self, ContextError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(ContextError::Malformed("wrong magic"))?;
        let [version, scheme, rest @ ..] = rest else {
            return Err(ContextError::Malformed("truncated"));
        };
        match (*version, *scheme) {
            (VERSION, SCHEME_TFHE) => {
                let (words, []) = rest.as_chunks::<2>() else {
                    return Err(ContextError::Malformed("wrong length"));
                };
                let words: &[[u8; 2]; FIELDS] =
                    words.try_into().map_err(|_| ContextError::Malformed("wrong length"))?;
                check(&Parameters::from_fields(words.map(u16::from_be_bytes)))?;
                Ok(Self::tfhe())
            }
            (VERSION, SCHEME_CKKS) => CkksParameters::read(rest)
                .map(|parameters| Self { scheme: Scheme::Ckks(parameters) }),
            _ => Err(ContextError::Unsupported),
        }
    }

    /// The context of parameters that were checked.
    pub(crate) fn of_checked(parameters: CkksParameters) -> Self {
        Self { scheme: Scheme::Ckks(parameters) }
    }

    #[cfg_attr(not(feature = "client"), expect(dead_code, reason = "only engines ask"))]
    pub(crate) fn scheme(&self) -> &Scheme {
        &self.scheme
    }
}

/// The engine of a scheme is not part of this program. Stop: another build is needed, or another model.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "this program is built without the scheme {scheme}; install the build that has it, or use a model \
     of another scheme"
)]
pub struct NotBuilt {
    /// The scheme's name, `tfhe` or `ckks`.
    pub scheme: &'static str,
}

#[cfg(not(feature = "tfhe"))]
fn check(_parameters: &Parameters) -> Result<(), ContextError> {
    Err(NotBuilt { scheme: "tfhe" }.into())
}

#[cfg(feature = "tfhe")]
fn check(parameters: &Parameters) -> Result<(), ContextError> {
    use crate::noise;

    let (lwe_minimum, glwe_minimum) = noise::minimal_noise_bounds(parameters);
    for (key, bound, minimum) in [
        ("LWE", parameters.lwe_noise_bound, lwe_minimum),
        ("GLWE", parameters.glwe_noise_bound, glwe_minimum),
    ] {
        if u32::from(bound) < minimum {
            return Err(ContextError::Weak { key, bound, minimum });
        }
    }
    let log2_failure = noise::log2_selection_failure(parameters, noise::fresh_variance(parameters));
    if log2_failure > MAX_LOG2_FAILURE {
        return Err(ContextError::Unreliable { log2_failure });
    }
    if *parameters != TFHE {
        return Err(ContextError::Unsupported);
    }
    Ok(())
}

/// Digest of a context as it stands in model cards: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContextDigest([u8; 32]);

impl ContextDigest {
    /// The 32 bytes of SHA-256.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<&Context> for ContextDigest {
    fn from(context: &Context) -> Self {
        Self(context.digest())
    }
}

impl From<ContextDigest> for String {
    fn from(digest: ContextDigest) -> Self {
        hex::encode(digest.0)
    }
}

impl TryFrom<String> for ContextDigest {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest)?;
        Ok(Self(digest))
    }
}

impl fmt::Display for ContextDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContextDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
