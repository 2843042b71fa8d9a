//! The server's half: evaluation keys and models on ciphertext. Holds no secret type.
//!
//! Invariants:
//! - Keys and inputs of any content are either refused or evaluated; neither panics.
//! - Work runs on the current rayon pool.

mod evaluate;
mod keys;

use thiserror::Error;

pub use keys::EvaluationKeys;

use crate::error::FormatError;

/// Why keys or an input were refused. The robot must fix what it sends; retrying never helps.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvaluationError {
    /// The keys were made under another context.
    #[error("the evaluation keys were made under another context; update the older side")]
    ContextMismatch,
    /// The bytes are not evaluation keys.
    #[error("the evaluation keys are malformed: {0}")]
    MalformedKeys(FormatError),
    /// The bytes are not an input of this model.
    #[error("the encrypted input is malformed: {0}")]
    MalformedInput(FormatError),
}
