//! Errors shared by both halves, and what their receiver should do.

use thiserror::Error;

/// Why a model, card or its input was refused. Retrying never helps: the message says what has to
/// be fixed.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// Longer than any model may be.
    #[error("the model file has {len} bytes, {max} are allowed")]
    TooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not JSON of the model format.
    #[error("the model file is not valid: {0}")]
    Syntax(String),
    /// A field has a value it must not have.
    #[error("the model's {field} {reason}")]
    Invalid {
        /// Path of the field.
        field: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// The model would answer wrongly too often.
    #[error(
        "the model fails with probability 2^{log2_failure:.1}, 2^-128 is allowed; \
         use fewer features or smaller table entries"
    )]
    Noise {
        /// Base-2 logarithm of the failure probability.
        log2_failure: f64,
    },
    /// The window is not what the model reads.
    #[error("the model reads windows of {samples} samples of {channels} channels")]
    WindowMismatch {
        /// Samples the model reads.
        samples: usize,
        /// Channels the model reads.
        channels: usize,
    },
    /// The values are those of another model.
    #[error("the model takes {features} values of magnitude {limit} at most")]
    ValuesMismatch {
        /// Features of the model.
        features: usize,
        /// Largest magnitude.
        limit: f64,
    },
    /// The model is evaluated with another scheme.
    #[error("the model is evaluated with another scheme")]
    Scheme,
    /// The levels are those of another model.
    #[error("the model takes {features} levels below {levels}")]
    LevelsMismatch {
        /// Features of the model.
        features: usize,
        /// Levels of each.
        levels: u8,
    },
}

/// Why bytes from the other side could not be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// Another length than this kind of message has.
    #[error("it has {actual} bytes instead of {expected}")]
    Length {
        /// Bytes expected.
        expected: usize,
        /// Bytes received.
        actual: usize,
    },
    /// Another kind of message, or a version this release doesn't know.
    #[error("its kind or version is unknown")]
    Kind,
    /// Made for another number of features or scores.
    #[error("it is made for another model")]
    Shape,
    /// Bits that must be zero are not.
    #[error("its padding is not zero")]
    Padding,
    /// A mask of zeros encrypts nothing.
    #[error("it is not encrypted")]
    Trivial,
}
