//! What frames and status topics hold.
//!
//! Invariants:
//! - bodies are CBOR maps with text keys, decoded strictly: unknown and doubled keys, other types
//!   and trailing bytes are errors;
//! - a decoded body is consistent in itself; what depends on the receiver's own limits is checked
//!   against limits it passes in;
//! - nothing here is secret, and nothing here is logged but codes and messages of errors.

mod command;
mod status;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use command::{Command, Report};
pub use status::{MAX_STATUS_LEN, RobotState, WorkerState};

use crate::cbor;
use crate::ids::{ContextId, Digest, WorkerId};
use crate::keys::SessionPublicKey;

/// Longest chunk of a key, in bytes: a frame with it fits the 128 KiB that public brokers take.
pub const MAX_CHUNK_LEN: u32 = 120 * 1024;
/// Most chunks of a key, so that a manifest fits its frame.
pub const MAX_CHUNKS: usize = 1536;
/// Most jobs of a session: their numbers are 1 to this one. What a robot would decrypt for a session
/// has a limit too, and a server can remember which numbers it has seen.
pub const MAX_JOBS: u64 = 10_000;
/// Longest message of an [`ErrorBody`] or a [`Report`], in bytes.
pub const MAX_ERROR_MESSAGE_LEN: usize = 512;

/// Why bytes are not the message they should be. Sending them again changes nothing: fix the
/// sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not the CBOR or JSON it must be.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// Well formed, but not possible.
    #[error("inconsistent {what}: {problem}")]
    Inconsistent {
        /// Which message.
        what: &'static str,
        /// What does not fit.
        problem: &'static str,
    },
    /// A key larger than the receiver takes.
    #[error("the evaluation keys have {len} bytes, at most {max} are taken")]
    KeyTooLarge {
        /// What the manifest says.
        len: u64,
        /// The receiver's limit.
        max: u64,
    },
}

/// Body of an open: what evaluation keys a session has, and into what chunks they are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Fresh for each open. The have that repeats it speaks of the time after that open.
    pub nonce: u64,
    /// Scheme and parameters of the keys.
    pub context: ContextId,
    /// How long the server is to keep the keys, in seconds from now.
    pub ttl_seconds: u32,
    /// What signs all further frames of the session but chunks.
    pub session_key: SessionPublicKey,
    /// Length of the keys in bytes.
    pub key_len: u64,
    /// Digest of the whole.
    pub key_digest: Digest,
    /// Length in bytes of each chunk but the last, which is what remains.
    pub chunk_len: u32,
    /// Digest of each chunk.
    pub chunk_digests: Vec<Digest>,
}

impl Manifest {
    /// The body's bytes.
    ///
    /// # Errors
    /// The manifest is inconsistent.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        self.check(u64::MAX)?;
        encode("manifest", self)
    }

    /// The manifest in a frame's body, of keys of at most `max_key_len` bytes.
    ///
    /// # Errors
    /// Not a manifest, an inconsistent one, or one of larger keys.
    pub fn decode(body: &[u8], max_key_len: u64) -> Result<Self, MessageError> {
        let manifest: Self = decode("manifest", body)?;
        manifest.check(max_key_len)?;
        Ok(manifest)
    }

    /// Checks that the chunks cover the keys exactly, and that the keys are no longer than
    /// `max_key_len` bytes.
    ///
    /// # Errors
    /// They do not, or are.
    pub fn check(&self, max_key_len: u64) -> Result<(), MessageError> {
        let fail = |problem| Err(MessageError::Inconsistent { what: "manifest", problem });
        if self.chunk_len == 0 || self.chunk_len > MAX_CHUNK_LEN {
            return fail("the chunk length is 0 or above 120 KiB");
        }
        if self.key_len == 0 || self.chunk_digests.len() > MAX_CHUNKS {
            return fail("there are no chunks or too many");
        }
        if self.key_len.div_ceil(self.chunk_len.into()) != self.chunk_digests.len() as u64 {
            return fail("the chunks do not cover the keys");
        }
        if self.ttl_seconds == 0 {
            return fail("the lifetime is 0");
        }
        if self.key_len > max_key_len {
            return Err(MessageError::KeyTooLarge { len: self.key_len, max: max_key_len });
        }
        Ok(())
    }
}

/// Body of a have: what a worker holds of a session's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Have {
    /// Who answers; chunks and jobs of the session go to it from now on.
    pub worker: WorkerId,
    /// The nonce of the open it answers.
    pub nonce: u64,
    /// Chunk `i` is held if bit `i % 8` of byte `i / 8` is set, least significant bit first.
    #[serde(with = "crate::cbor::bytes")]
    pub bitmap: Vec<u8>,
    /// All chunks are here and checked: jobs are taken.
    pub registered: bool,
}

impl Have {
    /// The body's bytes.
    ///
    /// # Errors
    /// The bitmap has more bits than a key may have chunks.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        self.check()?;
        encode("have", self)
    }

    /// The have in a frame's body. Whether its bitmap fits the session is for the receiver to see.
    ///
    /// # Errors
    /// Not a have.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let have: Self = decode("have", body)?;
        have.check()?;
        Ok(have)
    }

    fn check(&self) -> Result<(), MessageError> {
        if self.bitmap.is_empty() || self.bitmap.len() > MAX_CHUNKS.div_ceil(8) {
            let problem = "the bitmap is empty or too long";
            return Err(MessageError::Inconsistent { what: "have", problem });
        }
        Ok(())
    }
}

/// Length in bytes of what a challenge asks to be signed along.
pub const CHALLENGE_LEN: usize = 32;

/// Body of a challenge: a worker that requires attestation asks for evidence before it serves a
/// session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Who asks; the evidence goes to it.
    pub worker: WorkerId,
    /// The nonce of the open it answers.
    pub nonce: u64,
    /// Random, to be signed along; [`CHALLENGE_LEN`] bytes.
    #[serde(with = "crate::cbor::bytes")]
    pub challenge: Vec<u8>,
}

impl Challenge {
    /// The body's bytes.
    ///
    /// # Errors
    /// The random part has another length.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        self.random()?;
        encode("challenge", self)
    }

    /// The challenge in a frame's body.
    ///
    /// # Errors
    /// Not a challenge.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let challenge: Self = decode("challenge", body)?;
        challenge.random()?;
        Ok(challenge)
    }

    /// The random part.
    ///
    /// # Errors
    /// It has another length.
    pub fn random(&self) -> Result<[u8; CHALLENGE_LEN], MessageError> {
        let problem = "its random part has another length than 32 bytes";
        let inconsistent = MessageError::Inconsistent { what: "challenge", problem };
        self.challenge.as_slice().try_into().map_err(|_| inconsistent)
    }
}

/// Why a server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The worker has no such session: open it again.
    UnknownSession,
    /// The session's time is over, or it was deleted: open another.
    ExpiredSession,
    /// The server has no such model, or not for this tenant or context.
    UnknownModel,
    /// The encrypted input, or a part of the keys, is not what its context says.
    MalformedCiphertext,
    /// A frame or its body cannot be understood.
    MalformedFrame,
    /// The frame came on another robot's topic, or another robot signed it.
    IdentityMismatch,
    /// The frame lacks its signature, or the signature is not by the key that has to sign it.
    BadSignature,
    /// The frame's time is over, or too far ahead: the clocks of robot and server differ, or it was
    /// held back on its way. The message tells the server's time.
    ExpiredFrame,
    /// The open is not newer than the newest of its session; or the job was answered already, and its
    /// answer is no longer kept.
    Replayed,
    /// The job has the number of another job of the session.
    NumberReused,
    /// The robot's certificate is expired, or not from an authority the server trusts. Another
    /// certificate heals it, and the same frame may be sent again then.
    UntrustedCertificate,
    /// The server serves attested robots only, and does not believe this one's evidence. Another
    /// enrolment or another boot heals it, and the same frame may be sent again then.
    NotAttested,
    /// Keys, inputs or their number exceed a limit of the server.
    TooLarge,
    /// No room at the moment: try again later.
    Busy,
    /// The server failed: try again, it may be another one that answers.
    Internal,
}

impl ErrorCode {
    /// Whether the same request may be taken at another time.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Internal
                | Self::UntrustedCertificate
                | Self::NotAttested
                | Self::ExpiredFrame
        )
    }
}

/// Body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// Why, for programs.
    pub code: ErrorCode,
    /// What was wrong and what to do, for people.
    pub message: String,
}

impl ErrorBody {
    /// An error; a message that is too long is cut.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: cut(message.into()) }
    }

    /// The body's bytes.
    ///
    /// # Errors
    /// The message is too long.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        check_text("error", &self.message)?;
        encode("error", self)
    }

    /// The error in a frame's body. Its message is the other end's: show it, obey it not.
    ///
    /// # Errors
    /// Not an error.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let error: Self = decode("error", body)?;
        check_text("error", &error.message)?;
        Ok(error)
    }
}

fn cut(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_ERROR_MESSAGE_LEN));
    message
}

fn check_text(what: &'static str, message: &str) -> Result<(), MessageError> {
    if message.len() > MAX_ERROR_MESSAGE_LEN {
        let problem = "its message is too long";
        return Err(MessageError::Inconsistent { what, problem });
    }
    Ok(())
}

fn malformed(what: &'static str, reason: &impl ToString) -> MessageError {
    MessageError::Malformed { what, reason: reason.to_string() }
}

fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, MessageError> {
    cbor::encode(value).map_err(|error| malformed(what, &error))
}

fn decode<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, MessageError> {
    cbor::decode(body).map_err(|error| malformed(what, &error))
}
