//! The fleet's policy key: whose signature on PCR values lets a root secret out.
//!
//! Invariant: a [`PolicyKey`] is a point of the curve P-256. Its TPM name is that of one fixed
//! public area, so two parties that know the point agree on the name.

use std::fmt;

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;
use sha2::{Digest as _, Sha256};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{
    EccParameter, EccPoint, EccScheme, HashScheme, Public, PublicEccParametersBuilder,
};

use crate::blob::NAME_LEN;
use crate::signed_policy::PolicyError;

/// Length of an uncompressed point (SEC 1, 2.3.3).
pub(crate) const POINT_LEN: usize = 65;

/// No PEM file of a P-256 key comes near this.
pub(crate) const MAX_PEM_LEN: usize = 8192;

/// `SubjectPublicKeyInfo` of a P-256 key up to its point (RFC 5480).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// `TPMT_PUBLIC` of the key up to its point (TPM 2.0 Part 2, 12.2.4): ECC, SHA-256, attributes
/// sign and userWithAuth, no policy, no symmetric cipher, ECDSA with SHA-256, P-256, no KDF.
const PUBLIC_PREFIX: [u8; 22] = [
    0x00, 0x23, 0x00, 0x0b, 0x00, 0x04, 0x00, 0x40, 0x00, 0x00, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b,
    0x00, 0x03, 0x00, 0x10, 0x00, 0x20,
];

/// The public half of the key that signs a fleet's policies, ECDSA P-256.
#[derive(Clone, PartialEq, Eq)]
pub struct PolicyKey(VerifyingKey);

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyKey({})", self.fingerprint())
    }
}

impl PolicyKey {
    /// Reads a PEM file of the kind `openssl pkey -pubout` writes (`PUBLIC KEY`, RFC 7468).
    ///
    /// # Errors
    /// [`PolicyError::PublicKey`] if it is no P-256 public key.
    pub fn from_pem(pem: &str) -> Result<Self, PolicyError> {
        if pem.len() > MAX_PEM_LEN {
            return Err(PolicyError::PublicKey);
        }
        VerifyingKey::from_public_key_pem(pem.trim()).map(Self).map_err(|_| PolicyError::PublicKey)
    }

    /// SHA-256 of the key's `SubjectPublicKeyInfo` in hexadecimal, as
    /// `openssl pkey -pubin -outform der | sha256sum` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::new().chain_update(SPKI_PREFIX).chain_update(self.point()).finalize())
    }

    pub(crate) fn of_signer(key: &p256::ecdsa::SigningKey) -> Self {
        Self(*key.verifying_key())
    }

    /// `None` for bytes that are no point of the curve in uncompressed form.
    pub(crate) fn from_point(bytes: &[u8; POINT_LEN]) -> Option<Self> {
        VerifyingKey::from_sec1_bytes(bytes).ok().map(Self)
    }

    pub(crate) fn point(&self) -> [u8; POINT_LEN] {
        let mut point = [0; POINT_LEN];
        let encoded = self.0.to_sec1_point(false);
        for (to, from) in point.iter_mut().zip(encoded.as_bytes()) {
            *to = *from;
        }
        point
    }

    fn coordinates(&self) -> ([u8; 32], [u8; 32]) {
        let [_, coordinates @ ..] = self.point();
        let (mut x, mut y) = ([0; 32], [0; 32]);
        for (to, from) in x.iter_mut().chain(&mut y).zip(coordinates) {
            *to = from;
        }
        (x, y)
    }

    /// Whether `signature` is this key's over the SHA-256 digest of `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        self.0.verify(message, signature).is_ok()
    }

    /// The name the TPM gives the key (TPM 2.0 Part 1, 16).
    pub(crate) fn name(&self) -> [u8; NAME_LEN] {
        let (x, y) = self.coordinates();
        let digest = Sha256::new()
            .chain_update(PUBLIC_PREFIX)
            .chain_update(x)
            .chain_update([0x00, 0x20])
            .chain_update(y)
            .finalize();
        let mut name = [0; NAME_LEN];
        for (to, from) in name.iter_mut().zip([0x00, 0x0b].iter().chain(&digest)) {
            *to = *from;
        }
        name
    }

    /// The public area whose name is [`Self::name`].
    pub(crate) fn public(&self) -> tss_esapi::Result<Public> {
        let attributes =
            ObjectAttributesBuilder::new().with_user_with_auth(true).with_sign_encrypt(true);
        let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
        let parameters =
            PublicEccParametersBuilder::new_unrestricted_signing_key(scheme, EccCurve::NistP256);
        let (x, y) = self.coordinates();
        let point =
            EccPoint::new(EccParameter::try_from(x.to_vec())?, EccParameter::try_from(y.to_vec())?);
        Public::builder()
            .with_public_algorithm(PublicAlgorithm::Ecc)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes.build()?)
            .with_ecc_parameters(parameters.build()?)
            .with_ecc_unique_identifier(point)
            .build()
    }
}
