//! What a server knows of a robot before it has seen it: a file an operator places there.
//!
//! Invariants: a JSON object of at most [`MAX_ENROLMENT_LEN`] bytes with known keys only; the
//! attestation key can only make statements of a TPM's own and never leaves it; there is at least
//! one accepted measurement, and each is of the PCRs that are to be quoted.

use serde::{Deserialize, Serialize};

use crate::pcr_values::{PcrValues, PcrValuesError, Selection};
use crate::public_area::{KeyAttributes, PublicArea, PublicAreaError};

/// The longest enrolment that is read, in bytes.
pub const MAX_ENROLMENT_LEN: usize = 256 * 1024;
/// The one format of enrolments.
pub const ENROLMENT_FORMAT: u32 = 1;
/// A fleet has a few firmware versions at a time.
const MAX_ACCEPTED: usize = 64;

/// One robot's enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    identity: String,
    attestation_key: PublicArea,
    pcrs: Selection,
    accepted: Vec<PcrValues>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    identity: String,
    attestation_key: String,
    pcrs: String,
    accepted: Vec<String>,
}

/// A text that is no enrolment, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentError {
    /// Longer than one can be.
    #[error("an enrolment has at most {MAX_ENROLMENT_LEN} bytes: copy the robot's own output")]
    TooLarge,
    /// Not the JSON it must be.
    #[error("not an enrolment ({0}): copy the output of `moai-agent identity enrolment` unchanged")]
    Json(String),
    /// Another version of the format.
    #[error(
        "enrolment of format {0}, this program reads {ENROLMENT_FORMAT}: use robot and server \
         programs of one version"
    )]
    Format(u32),
    /// Not `tenant.robot`.
    #[error("the identity {0:?} is not of the form tenant.robot")]
    Identity(String),
    /// Not a public area in hexadecimal.
    #[error("the attestation key is not in hexadecimal: copy the robot's own output")]
    Hexadecimal,
    /// Not the public area of a signing key.
    #[error("the attestation key: {0}")]
    Key(#[from] PublicAreaError),
    /// A key that could sign made-up statements, or be elsewhere than in a TPM.
    #[error(
        "the attestation key is not restricted to what its TPM states, or may leave the TPM: \
         enrol a key that `moai-agent provision` made"
    )]
    NotAnAttestationKey,
    /// PCRs or their values are not written as they must be.
    #[error("PCRs: {0}")]
    Pcrs(#[from] PcrValuesError),
    /// None or too many.
    #[error("an enrolment accepts 1 to {MAX_ACCEPTED} measurements, this has {0}")]
    Accepted(usize),
    /// Of other PCRs than those that are quoted.
    #[error("the accepted values {found} are not of the PCRs {expected}")]
    OtherPcrs {
        /// The PCRs to be quoted.
        expected: String,
        /// The PCRs of the accepted values.
        found: String,
    },
}

impl Enrolment {
    /// An enrolment of a robot in the state it is in.
    ///
    /// # Errors
    /// [`EnrolmentError::Identity`], [`EnrolmentError::NotAnAttestationKey`].
    pub fn new(
        identity: &str,
        attestation_key: PublicArea,
        present: PcrValues,
    ) -> Result<Self, EnrolmentError> {
        let pcrs = present.selection();
        let enrolment =
            Self { identity: identity.to_owned(), attestation_key, pcrs, accepted: vec![present] };
        enrolment.check()?;
        Ok(enrolment)
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// See [`EnrolmentError`].
    pub fn from_json(text: &str) -> Result<Self, EnrolmentError> {
        if text.len() > MAX_ENROLMENT_LEN {
            return Err(EnrolmentError::TooLarge);
        }
        let file: File =
            serde_json::from_str(text).map_err(|error| EnrolmentError::Json(error.to_string()))?;
        if file.format != ENROLMENT_FORMAT {
            return Err(EnrolmentError::Format(file.format));
        }
        let key = hex::decode(&file.attestation_key).map_err(|_| EnrolmentError::Hexadecimal)?;
        let accepted =
            file.accepted.iter().map(|values| values.parse()).collect::<Result<_, _>>()?;
        let enrolment = Self {
            identity: file.identity,
            attestation_key: PublicArea::from_bytes(&key)?,
            pcrs: file.pcrs.parse()?,
            accepted,
        };
        enrolment.check()?;
        Ok(enrolment)
    }

    fn check(&self) -> Result<(), EnrolmentError> {
        let attributes = self.attestation_key.attributes();
        if !attributes.never_leaves_its_tpm()
            || !attributes.is_signing_key()
            || !attributes.contains(KeyAttributes::RESTRICTED)
        {
            return Err(EnrolmentError::NotAnAttestationKey);
        }
        let is_name = |text: &str| {
            (1..=32).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !self.identity.split_once('.').is_some_and(|(t, r)| is_name(t) && is_name(r)) {
            return Err(EnrolmentError::Identity(self.identity.chars().take(80).collect()));
        }
        if !(1..=MAX_ACCEPTED).contains(&self.accepted.len()) {
            return Err(EnrolmentError::Accepted(self.accepted.len()));
        }
        match self.accepted.iter().find(|values| values.selection() != self.pcrs) {
            None => Ok(()),
            Some(other) => {
                let (expected, found) = (self.pcrs.to_string(), other.pcrs());
                Err(EnrolmentError::OtherPcrs { expected, found })
            }
        }
    }

    /// The file: JSON with a line for each accepted measurement, to which an operator adds those
    /// of firmware to come.
    ///
    /// # Errors
    /// JSON cannot be written, which for this type does not happen.
    pub fn to_json(&self) -> Result<String, EnrolmentError> {
        let file = File {
            format: ENROLMENT_FORMAT,
            identity: self.identity.clone(),
            attestation_key: hex::encode(self.attestation_key.as_bytes()),
            pcrs: self.pcrs.to_string(),
            accepted: self.accepted.iter().map(ToString::to_string).collect(),
        };
        serde_json::to_string_pretty(&file).map_err(|error| EnrolmentError::Json(error.to_string()))
    }

    /// The robot, `tenant.robot`.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The attestation key.
    #[must_use]
    pub fn attestation_key(&self) -> &PublicArea {
        &self.attestation_key
    }

    /// The PCRs to be quoted, `sha256:7`.
    #[must_use]
    pub fn pcrs(&self) -> String {
        self.pcrs.to_string()
    }

    /// The PCR values with which the robot is served.
    #[must_use]
    pub fn accepted(&self) -> &[PcrValues] {
        &self.accepted
    }
}
