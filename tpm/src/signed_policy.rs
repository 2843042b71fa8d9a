//! Signed policies: PCR values that the fleet's policy key declares good.
//!
//! Invariants:
//! 1. The signature is ECDSA P-256 with SHA-256 over `approvedPolicy || policyRef`, what
//!    `TPM2_PolicyAuthorize` asks for (TPM 2.0 Part 3, 23.16); signing needs no TPM.
//! 2. The file is JSON of one format version and at most [`MAX_SIGNED_POLICY_LEN`] bytes; the
//!    approved policy is not in it but follows from the PCR values, so that it cannot differ
//!    from what a person reads there.

use p256::SecretKey;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use serde::{Deserialize, Serialize};

use crate::measurements::{Measurements, MeasurementsError};
use crate::pcr::PcrSelection;
use crate::policy::{self, PolicyDigest};
use crate::policy_key::{MAX_PEM_LEN, PolicyKey};

/// The longest signed policy that is read, in bytes.
pub const MAX_SIGNED_POLICY_LEN: usize = 8192;

const FORMAT: &str = "moai-signed-policy/1";

/// PCR values under the signature of a policy key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPolicy {
    measurements: Measurements,
    /// Fingerprint of the key, as the file claims: a hint for messages, the signature decides.
    signer: String,
    signature: Signature,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    /// Text form of [`Measurements`].
    pcrs: String,
    /// [`PolicyKey::fingerprint`].
    signer: String,
    /// `r || s` in hexadecimal.
    signature: String,
}

/// A signed policy or a policy key that is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Longer than anything this crate writes.
    #[error(
        "longer than {MAX_SIGNED_POLICY_LEN} bytes, no signed policy: copy the file anew from \
         where it was signed"
    )]
    TooLarge,
    /// No JSON of the right shape.
    #[error("no signed policy ({0}): copy the file anew from where it was signed")]
    Json(String),
    /// Another format.
    #[error(
        "signed policy of a format this program does not know, it reads {FORMAT:?}: use the \
         version of the program that signed it"
    )]
    Format,
    /// The PCR values.
    #[error(transparent)]
    Measurements(#[from] MeasurementsError),
    /// Not a P-256 signature at all.
    #[error("the policy's signature is no ECDSA P-256 signature: sign the policy again")]
    Signature,
    /// Signed by another key, or altered since.
    #[error(
        "the policy is not signed by the policy key {key} (it claims {claimed}), or was altered: \
         sign it with that key"
    )]
    Signer {
        /// Fingerprint of the key it should be signed by.
        key: String,
        /// Fingerprint that the policy names.
        claimed: String,
    },
    /// Not a public key.
    #[error(
        "no P-256 public key in PEM: write one with `openssl pkey -in policy.key -pubout -out \
         policy.pub`"
    )]
    PublicKey,
    /// Not a private key.
    #[error(
        "no P-256 private key in PEM without password: make one with `openssl ecparam -name \
         prime256v1 -genkey -noout -out policy.key`"
    )]
    PrivateKey,
}

/// Signs PCR values; `key_pem` is a P-256 private key (PKCS #8 or SEC 1).
///
/// # Errors
/// [`PolicyError::PrivateKey`] if `key_pem` is none.
pub fn sign_policy(
    key_pem: &str,
    measurements: &Measurements,
) -> Result<SignedPolicy, PolicyError> {
    if key_pem.len() > MAX_PEM_LEN {
        return Err(PolicyError::PrivateKey);
    }
    let key = SecretKey::from_pem(key_pem).map_err(|_| PolicyError::PrivateKey)?;
    let key = SigningKey::from(key);
    let signature =
        key.try_sign(&signed_bytes(measurements)).map_err(|_| PolicyError::PrivateKey)?;
    Ok(SignedPolicy {
        measurements: measurements.clone(),
        signer: PolicyKey::of_signer(&key).fingerprint(),
        signature,
    })
}

/// `approvedPolicy || policyRef`.
fn signed_bytes(measurements: &Measurements) -> Vec<u8> {
    [&policy::pcr(measurements)[..], &policy::policy_ref(measurements.pcrs())].concat()
}

impl SignedPolicy {
    /// The PCRs it is about.
    #[must_use]
    pub fn pcrs(&self) -> PcrSelection {
        self.measurements.pcrs()
    }

    /// The PCR values it declares good.
    #[must_use]
    pub fn measurements(&self) -> &Measurements {
        &self.measurements
    }

    /// Fingerprint of the key that it claims to be signed by. Only [`Self::signed_by`] tells
    /// whether that is true.
    #[must_use]
    pub fn claimed_signer(&self) -> &str {
        &self.signer
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`PolicyError::Signer`] if it is not that key's.
    pub fn signed_by(&self, key: &PolicyKey) -> Result<(), PolicyError> {
        if key.verifies(&self.signed_bytes(), &self.signature) {
            return Ok(());
        }
        Err(PolicyError::Signer { key: key.fingerprint(), claimed: self.signer.clone() })
    }

    /// What is signed, before hashing.
    pub(crate) fn signed_bytes(&self) -> Vec<u8> {
        signed_bytes(&self.measurements)
    }

    /// The digest of the policy it approves.
    pub(crate) fn approved(&self) -> PolicyDigest {
        policy::pcr(&self.measurements)
    }

    /// `r` and `s`.
    pub(crate) fn signature(&self) -> (Vec<u8>, Vec<u8>) {
        let (r, s) = self.signature.split_bytes();
        (r.to_vec(), s.to_vec())
    }

    /// The bytes of the file.
    ///
    /// # Panics
    /// Never: four strings are always JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let file = File {
            format: FORMAT.to_owned(),
            pcrs: self.measurements.to_string(),
            signer: self.signer.clone(),
            signature: hex::encode(self.signature.to_bytes()),
        };
        let mut json = serde_json::to_string_pretty(&file).expect("four strings are JSON");
        json.push('\n');
        json
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// Every [`PolicyError`] but those of keys and signers.
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Self, PolicyError> {
        let json = json.as_ref();
        if json.len() > MAX_SIGNED_POLICY_LEN {
            return Err(PolicyError::TooLarge);
        }
        let file: File =
            serde_json::from_slice(json).map_err(|error| PolicyError::Json(error.to_string()))?;
        if file.format != FORMAT {
            return Err(PolicyError::Format);
        }
        let signature = hex::decode(&file.signature).map_err(|_| PolicyError::Signature)?;
        Ok(Self {
            measurements: file.pcrs.parse()?,
            signature: Signature::from_slice(&signature).map_err(|_| PolicyError::Signature)?,
            signer: fingerprint(&file.signer)?,
        })
    }
}

/// Nothing else than a fingerprint may reach a terminal or a log.
fn fingerprint(text: &str) -> Result<String, PolicyError> {
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex { Ok(text.to_owned()) } else { Err(PolicyError::Json("signer".to_owned())) }
}
