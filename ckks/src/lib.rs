//! The client half of CKKS in pure safe Rust, in the wire format of Microsoft SEAL and TenSEAL.
//!
//! A robot makes a [`SecretKey`] from a [`KeySeed`], sends a server the [`EvaluationKeys`] that its
//! model needs, encrypts values as TenSEAL vectors and decrypts the answers. The server is any
//! TenSEAL 0.3.16 or later; it never sees a reading or a result.
//!
//! Invariants:
//! - Parameters below 128-bit security are refused unless a test asks for them by name.
//! - Secrets have neither `Debug` nor `Clone` and are wiped on drop, temporaries included; what works
//!   with them has no branch and no index that depends on them.
//! - Bytes from outside never panic and never allocate more than the parameters allow.

#![forbid(unsafe_code)]

mod batch;
mod ciphertext;
mod encoder;
mod error;
mod evaluation;
mod fft;
mod modulus;
mod ntt;
mod parameters;
mod prime;
mod release;
mod sample;
mod scrub;
mod secret;
mod security;
mod stream;
mod wire;

pub use batch::BatchLayout;
pub use ciphertext::Ciphertext;
pub use encoder::EncodeError;
pub use error::FormatError;
pub use evaluation::{EvaluationKeys, RotationError, Selection};
pub use parameters::{
    MAX_BIT_SIZE, MAX_DEGREE, MAX_PRIMES, MIN_DEGREE, Parameters, ParametersError, ParmsId, Policy,
    Profile,
};
pub use release::{Budget, FLOODING, Release, ReleaseError, Released, fresh_noise};
pub use secret::{
    Decrypted, EncryptError, Entropy, EntropyError, Expected, KeySeed, Refused, SecretKey,
};
pub use security::Security;
pub use wire::keys::{KeySwitchKeys, MAX_KEYS};
pub use wire::tenseal::{MAX_CHUNKS, PublicContext, Vector};
pub use wire::writer::Compression;
