//! The compute server's parts; the binary `moai-server` composes them.
//!
//! In the order data meets them: [`service`] takes frames, [`sessions`] keeps keys for their
//! time, [`evaluator`] computes [`models`] on ciphertext.

pub mod attestation;
pub mod config;
pub mod evaluator;
pub mod models;
mod opens;
mod refusal;
pub mod service;
pub mod sessions;
pub mod signing_key;
