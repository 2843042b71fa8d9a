//! Signed frames: a `COSE_Sign1` by the robot's identity key, with its certificates (RFC 9360).
//!
//! Invariants:
//! - a frame that must be signed gives neither claims nor body before [`SignedFrame::verify`] has
//!   found it to be the robot's: there is no other way to its parts;
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

use super::{Frame, FrameError, FrameKind, MAGIC, VERSION, malformed};
use crate::ids::Identity;
use crate::trust::{CertificateRefusal, RobotCertificate, TrustedRobots};

/// Most certificates a frame carries.
pub const MAX_CHAIN_CERTIFICATES: usize = 4;
/// Most bytes of certificates a frame carries; the claims need the rest of the header.
pub const MAX_CHAIN_LEN: usize = 3 * 1024;
/// Length of an ES256 signature: r ‖ s.
const SIGNATURE_LEN: usize = 64;

/// What signs a robot's frames: its identity key, wherever that is.
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
    /// One robot signed in another's name.
    #[error("the frame says that it is {claimed}'s, but {signer} signed it")]
    OtherRobot {
        /// Whose certificate it is.
        signer: Identity,
        /// Whom the claims name.
        claimed: String,
    },
}

/// A frame whose signature nobody has verified yet.
#[derive(Clone)]
pub struct SignedFrame {
    frame: Frame,
    chain: Vec<CertificateDer<'static>>,
    signed: [u8; 32],
    signature: [u8; SIGNATURE_LEN],
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
    pub(super) fn new(frame: Frame, protection: Protection) -> Self {
        let Protection { chain, signed, signature } = protection;
        Self { frame, chain, signed, signature }
    }

    /// What the frame holds.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        self.frame.kind
    }

    /// The frame, if at `now`, in seconds since 1970, a certificate that `robots` vouch for makes
    /// its signer the robot that its claims name.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn verify(self, robots: &TrustedRobots, now: u64) -> Result<VerifiedFrame, SignatureError> {
        let signer = robots.check(&self.chain, now)?;
        let key = VerifyingKey::from_sec1_bytes(&signer.public_key)
            .map_err(|_| CertificateRefusal::Key)?;
        let signature =
            Signature::from_slice(&self.signature).map_err(|_| SignatureError::BadSignature)?;
        key.verify_prehash(&self.signed, &signature).map_err(|_| SignatureError::BadSignature)?;
        if self.frame.claims.identity.as_ref() != Some(&signer.identity) {
            let claimed = self.frame.claims.identity.as_ref();
            let claimed = claimed.map_or_else(|| "nobody".to_owned(), ToString::to_string);
            return Err(SignatureError::OtherRobot { signer: signer.identity, claimed });
        }
        Ok(VerifiedFrame { frame: self.frame, signer })
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

/// What a signed header has beside its claims.
pub(super) struct Protection {
    chain: Vec<CertificateDer<'static>>,
    signed: [u8; 32],
    signature: [u8; SIGNATURE_LEN],
}

/// The protected header: algorithm and certificates.
fn protected(chain: &[CertificateDer<'_>]) -> Header {
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

/// Signed along with header and payload, so that no other kind of frame can be made of them.
fn external_aad(kind: FrameKind) -> [u8; 6] {
    let [m, o, a, i] = MAGIC;
    [m, o, a, i, VERSION, kind as u8]
}

/// A header over this payload, signed.
pub(super) fn sign(
    kind: FrameKind,
    payload: Vec<u8>,
    signer: &dyn FrameSigner,
) -> Result<CoseSign1, FrameError> {
    let chain = signer.chain();
    check_chain(&chain)?;
    CoseSign1Builder::new()
        .protected(protected(&chain))
        .payload(payload)
        .try_create_signature(&external_aad(kind), |message| {
            signer.sign(Sha256::digest(message).into()).map(|signature| signature.to_vec())
        })
        .map(CoseSign1Builder::build)
        .map_err(|error| FrameError::NotSigned(error.to_string()))
}

/// What protects a decoded header; none if nothing does.
pub(super) fn protection(
    kind: FrameKind,
    sign1: &CoseSign1,
) -> Result<Option<Protection>, FrameError> {
    if !sign1.unprotected.is_empty() {
        return Err(FrameError::Signature);
    }
    if sign1.protected.header.is_empty() && sign1.signature.is_empty() {
        return Ok(None);
    }
    let Header { alg, rest, .. } = &sign1.protected.header;
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
    if sign1.protected.header != protected(&chain) {
        return Err(FrameError::Signature);
    }
    let signature = sign1.signature.as_slice().try_into().map_err(|_| FrameError::Signature)?;
    let signed = Sha256::digest(sign1.tbs_data(&external_aad(kind))).into();
    Ok(Some(Protection { chain, signed, signature }))
}

impl Protection {
    /// The same header, encoded anew around this payload.
    pub(super) fn encode_around(&self, payload: Vec<u8>) -> CoseSign1 {
        CoseSign1Builder::new()
            .protected(protected(&self.chain))
            .payload(payload)
            .signature(self.signature.to_vec())
            .build()
    }
}
