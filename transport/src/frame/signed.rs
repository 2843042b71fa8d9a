//! Signed frames: a `COSE_Sign1` by a robot's identity key with its certificates (RFC 9360), by a
//! session's key, by a server's or by an operator's.
//!
//! Invariants:
//! - a signed frame gives neither claims nor body before one of the `verify` functions of
//!   [`SignedFrame`] has found it to be its signer's, and fresh: there is no other way to its parts;
//! - each kind of frame has one kind of signer, and no other verifies it;
//! - the signature covers magic, version and kind too, so it is good for no other kind of frame;
//! - chain and signature have their caps before anything looks into them.

use std::error::Error;
use std::fmt;

use ciborium::Value;
use coset::iana::{self, EnumI64};
use coset::{
    CoseSign1, CoseSign1Builder, Header, HeaderBuilder, Label, RegisteredLabelWithPrivate,
};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::{Frame, FrameError, FrameKind, MAGIC, Signatory, VERSION, freshness, malformed};
use crate::ids::Identity;
use crate::keys::{
    OperatorKeys, OperatorSigningKey, SIGNATURE_LEN, ServerKeys, ServerSigningKey,
    SessionPublicKey, SessionSigningKey,
};
use crate::trust::{CertificateRefusal, RobotCertificate, TrustedRobots};

/// Most certificates a frame carries.
pub const MAX_CHAIN_CERTIFICATES: usize = 4;
/// Most bytes of certificates a frame carries; the claims need the rest of the header.
pub const MAX_CHAIN_LEN: usize = 3 * 1024;

/// What signs a robot's opens and reports: its identity key, wherever that is.
pub trait FrameSigner: Send + Sync {
    /// The key's certificate and the intermediate ones behind it; without the authority's own.
    fn chain(&self) -> Vec<CertificateDer<'static>>;

    /// The ECDSA signature r ‖ s over a message with this SHA-256. May block as long as a TPM does.
    ///
    /// # Errors
    /// The key cannot be used, for now or for good.
    fn sign(&self, sha256: [u8; 32]) -> Result<[u8; 64], Box<dyn Error + Send + Sync>>;
}

/// Why a signed frame is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The certificate does not make its holder a robot.
    #[error(transparent)]
    Certificate(#[from] CertificateRefusal),
    /// The signature is not over these claims, or not by the certificate's key.
    #[error("the frame's signature is not by the key of its certificate")]
    BadSignature,
    /// The session's key did not sign these claims.
    #[error("the frame's signature is not by the key that the session was opened with")]
    NotTheSession,
    /// No key that is trusted for servers signed these claims.
    #[error("the frame's signature is by no server whose key is trusted here")]
    NotTheServer,
    /// No key that is trusted for operators signed these claims.
    #[error("the frame's signature is by no operator whose key is trusted here")]
    NotTheOperator,
    /// One robot signed in another's name.
    #[error("the frame says that it is {claimed}'s, but {signer} signed it")]
    OtherRobot {
        /// Whose certificate it is.
        signer: Identity,
        /// Whom the claims name.
        claimed: String,
    },
    /// Its kind is signed by somebody else.
    #[error("a {0:?} frame does not come from there")]
    OtherSignatory(FrameKind),
    /// The signature is right, and its time is over or far ahead.
    #[error(transparent)]
    Stale(#[from] freshness::Stale),
}

/// A frame whose signature nobody has verified yet.
#[derive(Clone)]
pub struct SignedFrame {
    frame: Frame,
    proof: Proof,
}

impl fmt::Debug for SignedFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedFrame").field("kind", &self.frame.kind).finish_non_exhaustive()
    }
}

/// A frame that the robot it names has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedFrame {
    frame: Frame,
    signer: RobotCertificate,
}

impl VerifiedFrame {
    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The certificate of the key that signed it.
    #[must_use]
    pub fn signer(&self) -> &RobotCertificate {
        &self.signer
    }

    /// The frame alone.
    #[must_use]
    pub fn into_frame(self) -> Frame {
        self.frame
    }
}

impl SignedFrame {
    pub(super) fn new(frame: Frame, proof: Proof) -> Self {
        Self { frame, proof }
    }

    /// What the frame holds.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        self.frame.kind
    }

    /// The frame, if at `now`, in seconds since 1970, a certificate that `robots` vouch for makes
    /// its signer the robot that its claims name, and it is fresh.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn verify_robot(
        self,
        robots: &TrustedRobots,
        now: u64,
    ) -> Result<VerifiedFrame, SignatureError> {
        let Proof::Identity { chain, signed, signature } = &self.proof else {
            return Err(SignatureError::OtherSignatory(self.kind()));
        };
        let signer = robots.check(chain, now)?;
        let key = VerifyingKey::from_sec1_bytes(&signer.public_key)
            .map_err(|_| CertificateRefusal::Key)?;
        let signature =
            Signature::from_slice(signature).map_err(|_| SignatureError::BadSignature)?;
        key.verify_prehash(signed, &signature).map_err(|_| SignatureError::BadSignature)?;
        if self.frame.claims.identity.as_ref() != Some(&signer.identity) {
            let claimed = self.frame.claims.identity.as_ref();
            let claimed = claimed.map_or_else(|| "nobody".to_owned(), ToString::to_string);
            return Err(SignatureError::OtherRobot { signer: signer.identity, claimed });
        }
        freshness::check(self.frame.kind, self.frame.claims.expires_at, now)?;
        Ok(VerifiedFrame { frame: self.frame, signer })
    }

    /// The frame, if the session's key has signed it and it is fresh at `now`, in seconds since
    /// 1970. That it is this session's is for [`Frame::check_topic`] to see.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn verify_session(self, key: &SessionPublicKey, now: u64) -> Result<Frame, SignatureError> {
        let verifies = |message: &[u8], signature: &_| key.verifies(message, signature);
        self.verify_key(Signatory::Session, verifies, SignatureError::NotTheSession, now)
    }

    /// The frame, if one of these servers has signed it and it is fresh at `now`, in seconds since
    /// 1970. That it is for this robot is for [`Frame::check_topic`] to see.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn verify_server(self, keys: &ServerKeys, now: u64) -> Result<Frame, SignatureError> {
        let verifies = |message: &[u8], signature: &_| keys.verify(message, signature);
        self.verify_key(Signatory::Server, verifies, SignatureError::NotTheServer, now)
    }

    /// The frame, if one of these operators has signed it and it is fresh at `now`, in seconds since
    /// 1970. That it is for this robot is for [`Frame::check_topic`] to see.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn verify_operator(self, keys: &OperatorKeys, now: u64) -> Result<Frame, SignatureError> {
        let verifies = |message: &[u8], signature: &_| keys.verify(message, signature);
        self.verify_key(Signatory::Operator, verifies, SignatureError::NotTheOperator, now)
    }

    fn verify_key(
        self,
        signatory: Signatory,
        verifies: impl FnOnce(&[u8], &[u8; SIGNATURE_LEN]) -> bool,
        otherwise: SignatureError,
        now: u64,
    ) -> Result<Frame, SignatureError> {
        let kind = self.kind();
        match &self.proof {
            Proof::Key { signed, signature } if kind.signatory() == Some(signatory) => {
                if !verifies(signed, signature) {
                    return Err(otherwise);
                }
            }
            _ => return Err(SignatureError::OtherSignatory(kind)),
        }
        freshness::check(self.frame.kind, self.frame.claims.expires_at, now)?;
        Ok(self.frame)
    }
}

/// Checks that frames can carry a chain of certificates.
///
/// # Errors
/// It is empty or too long.
pub fn check_chain(chain: &[CertificateDer<'_>]) -> Result<(), FrameError> {
    let len = chain.iter().map(|certificate| certificate.len()).sum();
    if (1..=MAX_CHAIN_CERTIFICATES).contains(&chain.len()) && len <= MAX_CHAIN_LEN {
        Ok(())
    } else {
        Err(FrameError::Chain { certificates: chain.len(), len })
    }
}

/// What a signed header has beside its claims, and what exactly was signed.
#[derive(Clone)]
pub(super) enum Proof {
    /// ES256 over a message with this SHA-256, and the certificates of the key.
    Identity {
        chain: Vec<CertificateDer<'static>>,
        signed: [u8; 32],
        signature: [u8; SIGNATURE_LEN],
    },
    /// Ed25519 over this message.
    Key { signed: Vec<u8>, signature: [u8; SIGNATURE_LEN] },
}

/// Who signs a frame, with the key for it.
pub(super) enum Signing<'k> {
    Identity(&'k dyn FrameSigner),
    Session(&'k SessionSigningKey),
    Server(&'k ServerSigningKey),
    Operator(&'k OperatorSigningKey),
}

impl Signing<'_> {
    pub(super) fn signatory(&self) -> Signatory {
        match self {
            Self::Identity(_) => Signatory::Robot,
            Self::Session(_) => Signatory::Session,
            Self::Server(_) => Signatory::Server,
            Self::Operator(_) => Signatory::Operator,
        }
    }
}

/// The protected header of what an identity key signs: algorithm and certificates.
fn identity_header(chain: &[CertificateDer<'_>]) -> Header {
    let mut certificates = chain.iter().map(|certificate| Value::Bytes(certificate.to_vec()));
    let chain = match (certificates.next(), certificates.len()) {
        (Some(only), 0) => only,
        (first, _) => Value::Array(first.into_iter().chain(certificates).collect()),
    };
    HeaderBuilder::new()
        .algorithm(iana::Algorithm::ES256)
        .value(iana::HeaderParameter::X5Chain.to_i64(), chain)
        .build()
}

/// The protected header of all other signed kinds. The key is known from elsewhere, and what does
/// not stand in a header cannot be believed from there.
fn key_header() -> Header {
    HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).build()
}

/// Signed along with header and payload, so that no other kind of frame can be made of them.
fn external_aad(kind: FrameKind) -> [u8; 6] {
    let [m, o, a, i] = MAGIC;
    [m, o, a, i, VERSION, kind as u8]
}

/// A header over this payload, signed.
pub(super) fn sign(
    kind: FrameKind,
    payload: Vec<u8>,
    signing: &Signing<'_>,
) -> Result<CoseSign1, FrameError> {
    let header = match signing {
        Signing::Identity(signer) => {
            let chain = signer.chain();
            check_chain(&chain)?;
            identity_header(&chain)
        }
        Signing::Session(_) | Signing::Server(_) | Signing::Operator(_) => key_header(),
    };
    CoseSign1Builder::new()
        .protected(header)
        .payload(payload)
        .try_create_signature(&external_aad(kind), |message| {
            match signing {
                Signing::Identity(signer) => signer.sign(Sha256::digest(message).into()),
                Signing::Session(key) => Ok(key.sign(message)),
                Signing::Server(key) => Ok(key.sign(message)),
                Signing::Operator(key) => Ok(key.sign(message)),
            }
            .map(|signature| signature.to_vec())
        })
        .map(CoseSign1Builder::build)
        .map_err(|error| FrameError::NotSigned(error.to_string()))
}

/// What proves a decoded header; none if its kind is not signed.
pub(super) fn proof(kind: FrameKind, sign1: &CoseSign1) -> Result<Option<Proof>, FrameError> {
    if !sign1.unprotected.is_empty() {
        return Err(FrameError::Signature);
    }
    let is_bare = sign1.protected.header.is_empty() && sign1.signature.is_empty();
    let signatory = match kind.signatory() {
        None if is_bare => return Ok(None),
        None => return Err(FrameError::Signature),
        Some(_) if is_bare => return Err(FrameError::Unsigned(kind)),
        Some(signatory) => signatory,
    };
    let signature = sign1.signature.as_slice().try_into().map_err(|_| FrameError::Signature)?;
    let signed = sign1.tbs_data(&external_aad(kind));
    match signatory {
        Signatory::Robot => {
            let chain = chain(&sign1.protected.header)?;
            Ok(Some(Proof::Identity { chain, signed: Sha256::digest(signed).into(), signature }))
        }
        _ if sign1.protected.header == key_header() => Ok(Some(Proof::Key { signed, signature })),
        _ => Err(FrameError::Signature),
    }
}

/// The certificates of a protected header that has them, the algorithm and nothing else.
fn chain(header: &Header) -> Result<Vec<CertificateDer<'static>>, FrameError> {
    let Header { alg, rest, .. } = header;
    let es256 = RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES256);
    let x5chain = Label::Int(iana::HeaderParameter::X5Chain.to_i64());
    let (Some(alg), [(label, chain)]) = (alg, rest.as_slice()) else {
        return Err(FrameError::Signature);
    };
    if *alg != es256 || *label != x5chain {
        return Err(FrameError::Signature);
    }
    let certificates: Vec<&Value> = match chain {
        Value::Array(certificates) => certificates.iter().collect(),
        only => vec![only],
    };
    let chain = certificates
        .into_iter()
        .map(|certificate| Some(CertificateDer::from(certificate.as_bytes()?.clone())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| malformed(&"a certificate is no byte string"))?;
    check_chain(&chain)?;
    // Whatever else the protected header had is not in this one, and does not encode to it.
    if *header == identity_header(&chain) { Ok(chain) } else { Err(FrameError::Signature) }
}

impl Proof {
    /// The same header, encoded anew around this payload.
    pub(super) fn encode_around(&self, payload: Vec<u8>) -> CoseSign1 {
        let (header, signature) = match self {
            Self::Identity { chain, signature, .. } => (identity_header(chain), signature),
            Self::Key { signature, .. } => (key_header(), signature),
        };
        CoseSign1Builder::new()
            .protected(header)
            .payload(payload)
            .signature(signature.to_vec())
            .build()
    }
}
