//! The client half of CKKS in pure safe Rust, in the wire format of Microsoft SEAL and TenSEAL.
//!
//! Invariants:
//! - Parameters below 128-bit security are refused unless a test asks for them by name.

#![forbid(unsafe_code)]

mod modulus;
mod ntt;
mod parameters;
mod prime;
mod security;

pub use parameters::{
    MAX_BIT_SIZE, MAX_DEGREE, MAX_PRIMES, MIN_DEGREE, Parameters, ParametersError, ParmsId, Policy,
    Profile,
};
pub use security::Security;
