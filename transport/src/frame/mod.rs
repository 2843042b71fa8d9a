//! The frame that wraps every message of the uplink.
//!
//! ```text
//! offset  length  field
//!      0       4  magic, "MOAI"
//!      4       1  version, 1
//!      5       1  kind
//!      6       2  header length H, big endian
//!      8       H  header: COSE_Sign1 (RFC 9052 section 4.2), payload = claims
//!  8 + H     ...  body, to the end of the message
//! ```
//!
//! Invariants:
//! - lengths are checked before anything is parsed, the header is parsed before the body is
//!   touched, and nobody sees a body whose digest is not the one in the claims;
//! - a frame has one encoding: what decodes encodes to the same bytes again;
//! - version 1 has no signature algorithm: protected header, unprotected header and signature are
//!   empty, and a frame that has more is refused instead of half understood.

mod claims;

use coset::{AsCborValue, CborSerializable, CoseSign1, CoseSign1Builder};

pub use claims::Claims;

use crate::ids::Digest;
use crate::topic::Topic;

/// Largest frame, in bytes.
pub const MAX_FRAME_LEN: usize = 1024 * 1024;
/// Length of what comes before the header.
pub const PREFIX_LEN: usize = 8;
/// The one version of this protocol.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"MOAI";
const KIB: usize = 1024;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A manifest of evaluation keys: open or re-open a session.
    Open = 1,
    /// A piece of the evaluation keys; its number is its index, from 0.
    Chunk = 2,
    /// An encrypted input; its number is the job's, from 1.
    Job = 3,
    /// Forget the session. No body.
    Delete = 4,
    /// What a worker holds of the evaluation keys.
    Have = 5,
    /// The encrypted answer to the job of the same number.
    Result = 6,
    /// A refusal: of the job of the same number, or with number 0 of the session.
    Error = 7,
    /// The catalogue of models.
    Models = 8,
}

impl FrameKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Chunk,
        Self::Job,
        Self::Delete,
        Self::Have,
        Self::Result,
        Self::Error,
        Self::Models,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Longest header, in bytes. Opens and catalogues will carry the signer's certificates.
    #[must_use]
    pub fn max_header_len(self) -> usize {
        match self {
            Self::Open | Self::Models => 4 * KIB,
            _ => KIB,
        }
    }

    /// Longest body, in bytes.
    #[must_use]
    pub fn max_body_len(self) -> usize {
        match self {
            Self::Open | Self::Job => 64 * KIB,
            Self::Chunk => 120 * KIB,
            Self::Delete => 0,
            Self::Have => 4 * KIB,
            Self::Result => 256 * KIB,
            Self::Error => 2 * KIB,
            Self::Models => MAX_FRAME_LEN - PREFIX_LEN - 4 * KIB,
        }
    }
}

/// Why bytes are no frame, or a frame is not to be believed. It will not become better: drop the
/// frame, and fix whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end before the frame does.
    #[error("the frame is truncated")]
    Truncated,
    /// Something else than a frame.
    #[error("not a frame: it does not begin with \"MOAI\"")]
    Magic,
    /// A version of the protocol that this program does not know.
    #[error("frame version {0} is not supported, only {VERSION} is; update the older end")]
    Version(u8),
    /// A kind that version 1 does not have.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The header exceeds its cap.
    #[error("the header of a {kind:?} frame has {len} bytes, at most {max} are allowed")]
    HeaderTooLarge {
        /// The frame's kind.
        kind: FrameKind,
        /// What it has.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// The body exceeds its cap.
    #[error("the body of a {kind:?} frame has {len} bytes, at most {max} are allowed")]
    BodyTooLarge {
        /// The frame's kind.
        kind: FrameKind,
        /// What it has.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// The header is not the CBOR it must be.
    #[error("malformed frame header: {0}")]
    Header(String),
    /// The header is signed, or says something else outside of its claims.
    #[error("the header has a signature or COSE headers, which version 1 does not know")]
    Signature,
    /// A claim is missing, or is there where this kind has none.
    #[error("a {kind:?} frame {problem}")]
    Claims {
        /// The frame's kind.
        kind: FrameKind,
        /// What is wrong.
        problem: &'static str,
    },
    /// The body is not the one that was framed.
    #[error("the body's digest is not the one in the header")]
    BodyDigest,
    /// The topic says something else than the frame.
    #[error("the frame came on the topic of another {0}")]
    Topic(&'static str),
}

/// One message of the uplink.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Whom and what it concerns.
    pub claims: Claims,
    /// What it holds, see [`crate::message`].
    pub body: Vec<u8>,
}

// Bodies are ciphertexts and keys by the megabyte; no log wants them.
impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("kind", &self.kind)
            .field("claims", &self.claims)
            .field("body_len", &self.body.len())
            .finish()
    }
}

impl Frame {
    /// The frame's bytes.
    ///
    /// # Errors
    /// The body is too large for its kind, or a claim is missing or out of place.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        check_body_len(self.kind, self.body.len())?;
        self.claims.check(self.kind)?;
        let header = encode_header(&self.claims, Digest::of(&self.body))?;
        check_header_len(self.kind, header.len())?;
        let header_len = u16::try_from(header.len()).map_err(|_| FrameError::Truncated)?;
        let mut bytes = Vec::with_capacity(PREFIX_LEN + header.len() + self.body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, self.kind as u8]);
        bytes.extend_from_slice(&header_len.to_be_bytes());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&self.body);
        Ok(bytes)
    }

    /// The frame in these bytes, checked but for its topic and its expiry.
    ///
    /// # Errors
    /// The bytes are no frame of version 1, exceed a cap, are not in the one canonical encoding,
    /// or the body is not the one that was framed.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (prefix, rest) = bytes.split_first_chunk().ok_or(FrameError::Truncated)?;
        let [m, o, a, i, version, kind, high, low] = *prefix;
        if [m, o, a, i] != MAGIC {
            return Err(FrameError::Magic);
        }
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = FrameKind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
        let header_len = usize::from(u16::from_be_bytes([high, low]));
        check_header_len(kind, header_len)?;
        let (header, body) = rest.split_at_checked(header_len).ok_or(FrameError::Truncated)?;
        check_body_len(kind, body.len())?;
        let (claims, digest) = decode_header(header)?;
        claims.check(kind)?;
        if Digest::of(body) != digest {
            return Err(FrameError::BodyDigest);
        }
        Ok(Self { kind, claims, body: body.to_vec() })
    }

    /// Checks that the frame belongs on the topic it came on. The broker vouches for who may write
    /// to a topic, the frame for what was meant: only together do they name the sender.
    ///
    /// # Errors
    /// Kind, identity or session differ.
    pub fn check_topic(&self, topic: &Topic) -> Result<(), FrameError> {
        if topic.kind() != Some(self.kind) {
            return Err(FrameError::Topic("kind"));
        }
        if topic.identity() != self.claims.identity.as_ref() {
            return Err(FrameError::Topic("robot"));
        }
        if topic.session() != self.claims.session.as_ref() {
            return Err(FrameError::Topic("session"));
        }
        Ok(())
    }
}

fn check_header_len(kind: FrameKind, len: usize) -> Result<(), FrameError> {
    let max = kind.max_header_len();
    if len > max { Err(FrameError::HeaderTooLarge { kind, len, max }) } else { Ok(()) }
}

fn check_body_len(kind: FrameKind, len: usize) -> Result<(), FrameError> {
    let max = kind.max_body_len();
    if len > max { Err(FrameError::BodyTooLarge { kind, len, max }) } else { Ok(()) }
}

fn malformed(error: &impl ToString) -> FrameError {
    FrameError::Header(error.to_string())
}

fn encode_header(claims: &Claims, body: Digest) -> Result<Vec<u8>, FrameError> {
    let payload = claims.to_cbor(body).map_err(|error| malformed(&error))?;
    let sign1 = CoseSign1Builder::new().payload(payload).build();
    sign1.to_vec().map_err(|error| malformed(&error))
}

fn decode_header(header: &[u8]) -> Result<(Claims, Digest), FrameError> {
    let value = crate::cbor::decode(header).map_err(|error| malformed(&error))?;
    let sign1 = CoseSign1::from_cbor_value(value).map_err(|error| malformed(&error))?;
    let is_signed = !sign1.protected.header.is_empty()
        || !sign1.unprotected.is_empty()
        || !sign1.signature.is_empty();
    if is_signed {
        return Err(FrameError::Signature);
    }
    let payload = sign1.payload.as_deref().unwrap_or_default();
    let (claims, digest) = Claims::from_cbor(payload).map_err(|error| malformed(&error))?;
    if encode_header(&claims, digest)? != header {
        return Err(malformed(&"not in deterministic encoding (RFC 8949 section 4.2.1)"));
    }
    Ok((claims, digest))
}
