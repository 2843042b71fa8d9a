//! Why bytes from outside were refused.

use thiserror::Error;

/// Why bytes could not be read. The peer sent something else than was agreed; retrying never helps.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatError {
    /// They end too early.
    #[error("it is cut short")]
    Truncated,
    /// They go on after their end.
    #[error("bytes follow its end")]
    Trailing,
    /// Longer than anything valid.
    #[error("it is larger than anything valid")]
    TooLarge,
    /// No SEAL object.
    #[error("it does not begin with a SEAL header")]
    Header,
    /// A version of SEAL that writes another format.
    #[error("it was written by SEAL {major}.{minor}, whose format is another")]
    Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// Compressed in a way that SEAL doesn't use, or damaged.
    #[error("its compressed data is damaged or of an unknown kind")]
    Compression,
    /// A kind of object, or a field, that is not what was asked for.
    #[error("it is another kind of object")]
    Kind,
    /// Made under other parameters.
    #[error("it was made under other parameters")]
    Parameters,
    /// Its dimensions contradict each other or the parameters.
    #[error("its dimensions are not those of its parameters")]
    Shape,
    /// A number is not reduced modulo its prime.
    #[error("a number in it is out of range")]
    Range,
    /// The scale is not finite and positive.
    #[error("its scale is not a positive number")]
    Scale,
    /// Not in the form the scheme computes with.
    #[error("it is not in NTT form")]
    Form,
    /// Expanded from a seed by a generator that this crate doesn't have.
    #[error("its seed is for an unknown generator")]
    Generator,
    /// Not the protocol buffer message that was expected.
    #[error("its protocol buffer is malformed")]
    ProtocolBuffer,
}
