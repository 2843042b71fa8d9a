//! What computes: an FHE scheme with its models, behind one interface, so that the service serves
//! any of them and knows nothing of keys and ciphertexts but their bytes.
//!
//! Invariants:
//! - an engine serves one context;
//! - keys and inputs of any content are prepared, evaluated or refused; neither panics on purpose,
//!   and a panic ends the call it happened in only.

mod tfhe;

use std::sync::Arc;

use moai_transport::ids::{ContextId, ModelId};

pub use self::tfhe::TfheEngine;

/// Why keys or an input are refused. Sending the same again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The bytes are no evaluation keys of the engine's context.
    #[error("{0}")]
    Keys(String),
    /// The bytes are no input of the model.
    #[error("{0}")]
    Input(String),
    /// The engine has no such model.
    #[error("there is no model {0}")]
    UnknownModel(ModelId),
}

/// A scheme under one set of parameters, and the models it computes.
pub trait Engine: Send + Sync {
    /// Scheme and parameters.
    fn context(&self) -> ContextId;

    /// Longest evaluation keys, in bytes.
    fn max_key_len(&self) -> u64;

    /// Every model, sorted.
    fn models(&self) -> Vec<ModelId>;

    /// The cards of these models, as the body of a catalogue has them: a CBOR array. Models that
    /// the engine does not have are left out.
    fn catalogue(&self, models: &[ModelId]) -> Vec<u8>;

    /// Unpacks evaluation keys for use. Takes a good part of a second and all threads of the current
    /// rayon pool: call it off the async threads.
    ///
    /// # Errors
    /// [`EngineError::Keys`].
    fn prepare(&self, keys: &[u8]) -> Result<Arc<dyn PreparedKeys>, EngineError>;
}

/// Evaluation keys of one session, ready for use.
pub trait PreparedKeys: Send + Sync {
    /// Computes a model on an encrypted input and returns the encrypted result. Uses the current
    /// rayon pool.
    ///
    /// # Errors
    /// [`EngineError::Input`], [`EngineError::UnknownModel`].
    fn evaluate(&self, model: &ModelId, input: &[u8]) -> Result<Vec<u8>, EngineError>;
}
