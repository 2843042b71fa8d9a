//! The compute server's parts; the binary `moai-server` composes them.
//!
//! In the order data meets them: [`service`] takes frames, [`store`] keeps keys for their time,
//! [`engine`] computes [`models`] on ciphertext, and [`audit`] notes what happened.

pub mod attestation;
pub mod audit;
pub mod config;
pub mod engine;
mod evaluator;
pub mod health;
pub mod models;
mod prepared;
mod refusal;
pub mod service;
mod sessions;
pub mod signing_key;
pub mod store;
pub mod tenants;
