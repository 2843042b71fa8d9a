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
//! - opens and reports are signed with ES256 and carry their signer's certificates; a chunk has an
//!   empty protected header and signature, for its digest stands in the signed manifest; all other
//!   kinds are signed with Ed25519. What has more or less is refused, not half understood;
//! - a signed frame is opaque until its signature was verified, see [`SignedFrame`].

mod claims;
mod freshness;
mod signed;

use std::time::Duration;

use coset::{AsCborValue, CborSerializable, CoseSign1, CoseSign1Builder};

pub use claims::Claims;
pub use freshness::{CLOCK_ALLOWANCE, MAX_FRAME_LIFETIME, MAX_OPEN_LIFETIME, Stale};
pub use signed::{
    FrameSigner, MAX_CHAIN_CERTIFICATES, MAX_CHAIN_LEN, SignatureError, SignedFrame, VerifiedFrame,
    check_chain,
};
use signed::{Proof, Signing};

use crate::ids::Digest;
use crate::keys::{OperatorSigningKey, ServerSigningKey, SessionSigningKey};
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
    /// A worker asks for evidence of the robot's state before it serves a session.
    Challenge = 9,
    /// The evidence.
    Attest = 10,
    /// The fleet's operator tells a robot to do something; its number is the time of issue, in
    /// milliseconds since 1970.
    Command = 11,
    /// What became of the command of the same number.
    Report = 12,
}

impl FrameKind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Open,
        Self::Chunk,
        Self::Job,
        Self::Delete,
        Self::Have,
        Self::Result,
        Self::Error,
        Self::Models,
        Self::Challenge,
        Self::Attest,
        Self::Command,
        Self::Report,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whose key signs frames of this kind; none for a chunk, whose digest stands in the manifest
    /// that its robot signed.
    #[must_use]
    pub fn signatory(self) -> Option<Signatory> {
        match self {
            Self::Open | Self::Report => Some(Signatory::Robot),
            Self::Job | Self::Delete | Self::Attest => Some(Signatory::Session),
            Self::Have | Self::Challenge | Self::Result | Self::Error | Self::Models => {
                Some(Signatory::Server)
            }
            Self::Command => Some(Signatory::Operator),
            Self::Chunk => None,
        }
    }

    /// Whether frames of this kind are about a session.
    #[must_use]
    pub fn concerns_session(self) -> bool {
        !matches!(self, Self::Models | Self::Command | Self::Report)
    }

    /// How far ahead the expiry of such a frame may lie.
    #[must_use]
    pub fn max_lifetime(self) -> Duration {
        match self {
            Self::Open => MAX_OPEN_LIFETIME,
            _ => MAX_FRAME_LIFETIME,
        }
    }

    /// Longest header, in bytes. What an identity key signs carries its certificates.
    #[must_use]
    pub fn max_header_len(self) -> usize {
        match self.signatory() {
            Some(Signatory::Robot) => 4 * KIB,
            _ => KIB,
        }
    }

    /// Longest body, in bytes.
    #[must_use]
    pub fn max_body_len(self) -> usize {
        match self {
            Self::Open => 64 * KIB,
            // An input of CKKS; with the header it fits the 512 KiB that brokers are set to take.
            Self::Job => 448 * KIB,
            Self::Chunk => 120 * KIB,
            Self::Delete => 0,
            Self::Have => 4 * KIB,
            Self::Result => 256 * KIB,
            Self::Error => 2 * KIB,
            Self::Challenge | Self::Command | Self::Report => KIB,
            Self::Attest => 8 * KIB,
            Self::Models => MAX_FRAME_LEN - PREFIX_LEN - KIB,
        }
    }
}

/// Whose key signs a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signatory {
    /// The robot's identity key, whose certificates the frame carries.
    Robot,
    /// The key that the session's manifest names.
    Session,
    /// The servers' key, which robots are configured with.
    Server,
    /// The key of the fleet's operator, which robots are configured with.
    Operator,
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
    /// The header is signed though its kind is not, or in a way that this version does not know.
    #[error("the header has a signature or COSE headers that version 1 does not know there")]
    Signature,
    /// The header lacks the signature that its kind must have.
    #[error("a {0:?} frame must be signed, and this one is not")]
    Unsigned(FrameKind),
    /// The key is not the one that signs frames of this kind.
    #[error("a {0:?} frame is signed by another key, or by none")]
    Signatory(FrameKind),
    /// The signer's certificates are none or too many.
    #[error(
        "a frame carries 1 to {MAX_CHAIN_CERTIFICATES} certificates of together at most \
         {MAX_CHAIN_LEN} bytes, not {certificates} of {len} bytes"
    )]
    Chain {
        /// How many there are.
        certificates: usize,
        /// Their length.
        len: usize,
    },
    /// The identity key did not sign.
    #[error("the frame could not be signed: {0}")]
    NotSigned(String),
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

/// A chunk as it arrives, with the digest of its body, which was computed on the way: hashing is
/// most of what a chunk costs.
#[derive(Debug, Clone)]
pub struct ChunkFrame {
    frame: Frame,
    digest: Digest,
}

impl ChunkFrame {
    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The frame.
    #[must_use]
    pub fn into_frame(self) -> Frame {
        self.frame
    }

    /// Which chunk it is.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.frame.claims.number
    }

    /// The chunk's bytes.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.frame.body
    }

    /// SHA-256 of its bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// A frame as it arrives: but for chunks it has to be verified first.
#[derive(Debug, Clone)]
pub enum Received {
    /// A chunk. Until the manifest's digest of it was compared, its sender is anybody.
    Chunk(ChunkFrame),
    /// A frame of any other kind.
    Signed(SignedFrame),
}

impl Received {
    /// The frame in these bytes, checked but for its signature, its topic and its expiry.
    ///
    /// # Errors
    /// The bytes are no frame of version 1, exceed a cap, are not in the one canonical encoding,
    /// the body is not the one that was framed, or a signature is missing or misplaced.
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
        let (claims, digest, proof) = decode_header(kind, header)?;
        claims.check(kind)?;
        if Digest::of(body) != digest {
            return Err(FrameError::BodyDigest);
        }
        let frame = Frame { kind, claims, body: body.to_vec() };
        Ok(match proof {
            None => Self::Chunk(ChunkFrame { frame, digest }),
            Some(proof) => Self::Signed(SignedFrame::new(frame, proof)),
        })
    }
}

impl Frame {
    /// The bytes of a chunk.
    ///
    /// # Errors
    /// The body is too large, a claim is missing or out of place, or it is a frame of another kind:
    /// those have to be signed.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self.kind.signatory() {
            None => encode_chunk(&self.claims, &self.body, Digest::of(&self.body)),
            Some(_) => Err(FrameError::Unsigned(self.kind)),
        }
    }

    /// The bytes of an open or of a report. Blocks for as long as the signer does.
    ///
    /// # Errors
    /// The body is too large for its kind, a claim is missing or out of place, frames of this kind
    /// are not signed by robots, or the signer fails.
    pub fn encode_as_robot(&self, signer: &dyn FrameSigner) -> Result<Vec<u8>, FrameError> {
        self.encode_signed(&Signing::Identity(signer))
    }

    /// The bytes of a frame of a session: of a job, a delete, an evidence.
    ///
    /// # Errors
    /// The body is too large for its kind, a claim is missing or out of place, or frames of this
    /// kind are not signed by sessions.
    pub fn encode_as_session(&self, key: &SessionSigningKey) -> Result<Vec<u8>, FrameError> {
        self.encode_signed(&Signing::Session(key))
    }

    /// The bytes of a server's frame.
    ///
    /// # Errors
    /// The body is too large for its kind, a claim is missing or out of place, or frames of this
    /// kind are not signed by servers.
    pub fn encode_as_server(&self, key: &ServerSigningKey) -> Result<Vec<u8>, FrameError> {
        self.encode_signed(&Signing::Server(key))
    }

    /// The bytes of an operator's frame: of a command.
    ///
    /// # Errors
    /// The body is too large for its kind, a claim is missing or out of place, or frames of this
    /// kind are not signed by operators.
    pub fn encode_as_operator(&self, key: &OperatorSigningKey) -> Result<Vec<u8>, FrameError> {
        self.encode_signed(&Signing::Operator(key))
    }

    fn encode_signed(&self, signing: &Signing<'_>) -> Result<Vec<u8>, FrameError> {
        if self.kind.signatory() != Some(signing.signatory()) {
            return Err(FrameError::Signatory(self.kind));
        }
        let digest = Digest::of(&self.body);
        let sign = |payload| signed::sign(self.kind, payload, signing);
        assemble(self.kind, &self.claims, &self.body, digest, sign)
    }

    /// Checks that the frame belongs on the topic it came on: a frame is routed by its topic, and its
    /// signer meant it for one.
    ///
    /// # Errors
    /// Kind, identity, session or tenant differ.
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
        let tenant = match topic {
            Topic::Models { tenant } => Some(tenant),
            _ => None,
        };
        if tenant != self.claims.tenant.as_ref() {
            return Err(FrameError::Topic("tenant"));
        }
        Ok(())
    }
}

/// The bytes of a chunk's frame, whose digest is known from the manifest. With another digest than
/// the body's, the receiver refuses it.
///
/// # Errors
/// The body is too large, or a claim is missing or out of place.
pub fn encode_chunk(claims: &Claims, body: &[u8], digest: Digest) -> Result<Vec<u8>, FrameError> {
    let plain = |payload| Ok(CoseSign1Builder::new().payload(payload).build());
    assemble(FrameKind::Chunk, claims, body, digest, plain)
}

fn assemble(
    kind: FrameKind,
    claims: &Claims,
    body: &[u8],
    digest: Digest,
    protect: impl FnOnce(Vec<u8>) -> Result<CoseSign1, FrameError>,
) -> Result<Vec<u8>, FrameError> {
    check_body_len(kind, body.len())?;
    claims.check(kind)?;
    let payload = claims.to_cbor(digest).map_err(|error| malformed(&error))?;
    let header = protect(payload)?.to_vec().map_err(|error| malformed(&error))?;
    check_header_len(kind, header.len())?;
    let header_len = u16::try_from(header.len()).map_err(|_| FrameError::Truncated)?;
    let mut bytes = Vec::with_capacity(PREFIX_LEN + header.len() + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, kind as u8]);
    bytes.extend_from_slice(&header_len.to_be_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(body);
    Ok(bytes)
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

fn decode_header(
    kind: FrameKind,
    header: &[u8],
) -> Result<(Claims, Digest, Option<Proof>), FrameError> {
    let value = crate::cbor::decode(header).map_err(|error| malformed(&error))?;
    let sign1 = CoseSign1::from_cbor_value(value).map_err(|error| malformed(&error))?;
    let proof = signed::proof(kind, &sign1)?;
    let payload = sign1.payload.as_deref().unwrap_or_default();
    let (claims, digest) = Claims::from_cbor(payload).map_err(|error| malformed(&error))?;
    let payload = claims.to_cbor(digest).map_err(|error| malformed(&error))?;
    let again = match &proof {
        None => CoseSign1Builder::new().payload(payload).build(),
        Some(proof) => proof.encode_around(payload),
    };
    if again.to_vec().map_err(|error| malformed(&error))? != header {
        return Err(malformed(&"not in deterministic encoding (RFC 8949 section 4.2.1)"));
    }
    Ok((claims, digest, proof))
}
