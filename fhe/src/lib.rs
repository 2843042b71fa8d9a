//! FHE engines behind one interface, and models that run on ciphertext. No I/O.
//!
//! A robot (feature `client`) turns a [`Window`] into [`Inputs`] as a [`ModelCard`] says, encrypts
//! them with the engine of the card's scheme and decrypts the [`Scores`]. A server (feature `server`)
//! evaluates a TFHE [`Model`] on the ciphertext; models of CKKS are evaluated with TenSEAL. Types that
//! hold secrets exist only under `client`. Which engines a client has, the features `ckks` and `tfhe` say;
//! without an engine the cards of its models can be read, and nothing else.
//!
//! Invariants:
//! - 128-bit security and, under TFHE, failure probability ≤ 2^-128 of every decision, or no
//!   context, no card, no model.
//! - Bytes from outside never panic: they decode or they are refused with a typed error.
//! - Keys and evaluation keys are deterministic in (context, seed); nothing else needs storing.

#[cfg(not(any(feature = "client", feature = "server")))]
compile_error!("choose a half of moai-fhe: feature `client`, `server` or both");
#[cfg(all(feature = "client", not(any(feature = "ckks", feature = "tfhe"))))]
compile_error!("choose what moai-fhe encrypts under: feature `ckks`, `tfhe` or both");
#[cfg(all(feature = "tfhe", target_pointer_width = "32"))]
compile_error!(
    "TFHE-rs is not made for 32 bits; models of CKKS are what a 32 bit robot uses: build the agent with \
     --no-default-features --features ckks,pkcs11"
);

mod card;
mod context;
mod error;
mod model;
#[cfg(feature = "tfhe")]
mod noise;
mod window;
#[cfg_attr(not(feature = "tfhe"), expect(dead_code, reason = "cards ask for lengths alone"))]
mod wire;

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod server;

pub use card::{
    CkksCard, CkksFeature, CkksKind, FORMAT, Inputs, MAX_BOOTSTRAPS, MAX_FEATURES, MAX_LABELS,
    MAX_THRESHOLD_FEATURES, Method, ModelCard, ModelKind, Scores, TfheCard, WindowShape,
};
#[cfg(feature = "client")]
pub use client::{Engine, EngineError, Entropy, EntropyError, ExposedKeys, KeySeed, setup};
pub use context::{
    CkksParameters, Context, ContextDigest, ContextError, MAX_CKKS_RESULTS, MAX_LOG2_FAILURE,
    NotBuilt,
};
pub use error::{FormatError, ModelError};
pub use model::{MAX_MODEL_LEN, Model};
#[cfg(feature = "server")]
pub use server::{EvaluationError, EvaluationKeys};
pub use window::{Feature, MAX_CHANNELS, MAX_SAMPLES, Statistic, Transform, Window, WindowError};
pub use wire::evaluation_key::MAX_EVALUATION_KEY_LEN;
