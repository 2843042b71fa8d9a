//! What a robot answers a challenge with.
//!
//! Invariants: on the wire it is a CBOR array (RFC 8949) of fixed length in the one encoding
//! [`Evidence::to_bytes`] gives, of at most [`MAX_EVIDENCE_LEN`] bytes; what decodes is well
//! formed in each part, and not yet believed in any.

use ciborium::Value;

use crate::pcr_values::{MAX_TEXT_LEN, PcrValues};
use crate::public_area::{MAX_PUBLIC_AREA_LEN, PublicArea, PublicAreaError};
use crate::statement::MAX_STATEMENT_LEN;

/// The longest evidence that is read, in bytes.
pub const MAX_EVIDENCE_LEN: usize = 8 * 1024;

const FORMAT: u8 = 1;
/// An array of byte strings nests no deeper.
const MAX_DEPTH: usize = 4;

/// A statement of a TPM and the signature over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// `TPMS_ATTEST` (TPM 2.0 Part 2, 10.12.12).
    pub statement: Vec<u8>,
    /// ECDSA with SHA-256 over the statement: `r ‖ s`.
    pub signature: [u8; 64],
}

/// The answer to a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Public area of the attestation key, which signed both statements.
    pub attestation_key: PublicArea,
    /// Public area of the identity key.
    pub identity_key: PublicArea,
    /// That the identity key is in the TPM (`TPM2_Certify`).
    pub certification: Attested,
    /// What the PCRs hold (`TPM2_Quote`).
    pub quote: Attested,
    /// The values the quote has a digest of.
    pub pcr_values: PcrValues,
}

/// Bytes that are no evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Longer than one can be.
    #[error("evidence has at most {MAX_EVIDENCE_LEN} bytes")]
    TooLarge,
    /// Not the CBOR it must be.
    #[error("the evidence is malformed: {0}")]
    Malformed(&'static str),
    /// Another version of the format.
    #[error("evidence of format {0}, this program reads {FORMAT}: update the older end")]
    Format(u64),
    /// A key that is none.
    #[error("the {key} key in the evidence: {source}")]
    Key {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        source: PublicAreaError,
    },
}

impl Evidence {
    /// The bytes on the wire: `[1, attestation key, identity key, certification, its signature,
    /// quote, its signature, PCR values]`, all but the first and the last byte strings.
    ///
    /// # Errors
    /// A statement is longer than any TPM makes one.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EvidenceError> {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let attested = [&self.certification, &self.quote];
        if attested.iter().any(|attested| attested.statement.len() > MAX_STATEMENT_LEN) {
            return Err(EvidenceError::TooLarge);
        }
        let array = Value::Array(vec![
            Value::from(FORMAT),
            bytes(self.attestation_key.as_bytes()),
            bytes(self.identity_key.as_bytes()),
            bytes(&self.certification.statement),
            bytes(&self.certification.signature),
            bytes(&self.quote.statement),
            bytes(&self.quote.signature),
            Value::Text(self.pcr_values.to_string()),
        ]);
        let mut encoded = Vec::new();
        ciborium::into_writer(&array, &mut encoded)
            .map_err(|_| EvidenceError::Malformed("it cannot be encoded"))?;
        Ok(encoded)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`EvidenceError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_EVIDENCE_LEN {
            return Err(EvidenceError::TooLarge);
        }
        let malformed = EvidenceError::Malformed;
        let value: Value = ciborium::de::from_reader_with_recursion_limit(bytes, MAX_DEPTH)
            .map_err(|_| malformed("not CBOR"))?;
        let items = value.into_array().map_err(|_| malformed("not an array"))?;
        let format = items.first().and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok());
        match format {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(EvidenceError::Format(format)),
            None => return Err(malformed("its format is missing")),
        }
        let [
            _,
            attestation,
            identity,
            certification,
            certification_signature,
            quote,
            quote_signature,
            values,
        ] = items.as_slice()
        else {
            return Err(malformed("not an array of eight"));
        };
        let values = values
            .as_text()
            .filter(|text| text.len() <= MAX_TEXT_LEN)
            .and_then(|text| text.parse().ok())
            .ok_or(malformed("its PCR values"))?;
        let evidence = Self {
            attestation_key: key("attestation", attestation)?,
            identity_key: key("identity", identity)?,
            certification: attested(certification, certification_signature)
                .ok_or(malformed("its certification"))?,
            quote: attested(quote, quote_signature).ok_or(malformed("its quote"))?,
            pcr_values: values,
        };
        // One encoding only, with nothing behind it.
        if evidence.to_bytes()? == bytes { Ok(evidence) } else { Err(malformed("its encoding")) }
    }
}

fn key(key: &'static str, value: &Value) -> Result<PublicArea, EvidenceError> {
    let bytes = value
        .as_bytes()
        .filter(|bytes| bytes.len() <= MAX_PUBLIC_AREA_LEN)
        .ok_or(EvidenceError::Malformed("its keys"))?;
    PublicArea::from_bytes(bytes).map_err(|source| EvidenceError::Key { key, source })
}

fn attested(statement: &Value, signature: &Value) -> Option<Attested> {
    let statement = statement.as_bytes().filter(|bytes| bytes.len() <= MAX_STATEMENT_LEN)?.clone();
    Some(Attested { statement, signature: signature.as_bytes()?.as_slice().try_into().ok()? })
}
