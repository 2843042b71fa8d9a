//! What a TPM states (`TPMS_ATTEST`, TPM 2.0 Part 2, 10.12.12).
//!
//! Invariants: only quotes and certifications are accepted, and only those a TPM generated
//! (`TPM_GENERATED_VALUE`, which a restricted key signs in nothing from outside); a quote selects
//! PCRs of one bank; nothing may follow the statement.

use crate::pcr_values::{Bank, Selection};
use crate::reader::Reader;

/// `TPM_GENERATED_VALUE`.
const GENERATED: u32 = 0xff54_4347;
const ST_ATTEST_CERTIFY: u16 = 0x8017;
const ST_ATTEST_QUOTE: u16 = 0x8018;

/// `TPM2B_NAME`: algorithm and SHA-512 digest at most.
const MAX_NAME_LEN: usize = 66;
/// `TPM2B_DATA` and `TPM2B_DIGEST`: a SHA-512 digest at most.
const MAX_DIGEST_LEN: usize = 64;
/// clock, resetCount, restartCount, safe and firmwareVersion.
const CLOCK_AND_FIRMWARE_LEN: usize = 8 + 4 + 4 + 1 + 8;
/// Longest statement, in bytes.
pub(crate) const MAX_STATEMENT_LEN: usize = 512;

/// A parsed statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'a> {
    /// `extraData`: what the caller had the TPM sign along.
    pub qualifying: &'a [u8],
    /// What is stated.
    pub kind: StatementKind<'a>,
}

/// What is stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatementKind<'a> {
    /// A key of this name is loaded in the TPM.
    Certify {
        /// Name of the key.
        name: &'a [u8],
    },
    /// PCRs hold values of this digest.
    Quote {
        /// The selected PCRs, `sha256:7`.
        pcrs: String,
        /// Digest of the concatenated values.
        digest: &'a [u8],
    },
}

/// Bytes that are no statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Longer than one can be.
    #[error("a statement has at most {MAX_STATEMENT_LEN} bytes")]
    TooLarge,
    /// It does not begin as what a TPM makes.
    #[error("no TPM made the statement: it does not begin with TPM_GENERATED_VALUE")]
    Magic,
    /// Neither a quote nor a certification.
    #[error("the statement is of type {0:#06x}, neither a quote nor a certification")]
    Type(u16),
    /// The bytes end too early, or something follows them.
    #[error("the statement has the wrong length")]
    Length,
    /// PCRs of no bank, several banks or an unknown one.
    #[error("the quote does not select PCRs of one known bank")]
    Selection,
}

impl<'a> Statement<'a> {
    /// Parses a `TPMS_ATTEST`.
    ///
    /// # Errors
    /// See [`StatementError`].
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, StatementError> {
        if bytes.len() > MAX_STATEMENT_LEN {
            return Err(StatementError::TooLarge);
        }
        let mut reader = Reader::new(bytes);
        match reader.u32() {
            Some(GENERATED) => {}
            Some(_) => return Err(StatementError::Magic),
            None => return Err(StatementError::Length),
        }
        let kind = reader.u16().ok_or(StatementError::Length)?;
        if ![ST_ATTEST_CERTIFY, ST_ATTEST_QUOTE].contains(&kind) {
            return Err(StatementError::Type(kind));
        }
        // The qualified signer tells the key's ancestors, which nobody recorded.
        reader.sized(MAX_NAME_LEN).ok_or(StatementError::Length)?;
        let qualifying = reader.sized(MAX_DIGEST_LEN).ok_or(StatementError::Length)?;
        reader.take(CLOCK_AND_FIRMWARE_LEN).ok_or(StatementError::Length)?;
        let kind = if kind == ST_ATTEST_QUOTE {
            let pcrs = selection(&mut reader)?.to_string();
            let digest = reader.sized(MAX_DIGEST_LEN).ok_or(StatementError::Length)?;
            StatementKind::Quote { pcrs, digest }
        } else {
            let name = reader.sized(MAX_NAME_LEN).ok_or(StatementError::Length)?;
            let _qualified_name = reader.sized(MAX_NAME_LEN).ok_or(StatementError::Length)?;
            StatementKind::Certify { name }
        };
        if reader.is_empty() { Ok(Self { qualifying, kind }) } else { Err(StatementError::Length) }
    }
}

/// `TPML_PCR_SELECTION` of one bank.
fn selection(reader: &mut Reader<'_>) -> Result<Selection, StatementError> {
    let count = reader.u32().ok_or(StatementError::Length)?;
    if count != 1 {
        return Err(StatementError::Selection);
    }
    let bank = reader.u16().ok_or(StatementError::Length)?;
    let len = reader.u8().ok_or(StatementError::Length)?;
    let bits = reader.take(len.into()).ok_or(StatementError::Length)?;
    let mut mask = [0; 4];
    if bits.len() > mask.len() {
        return Err(StatementError::Selection);
    }
    for (byte, bits) in mask.iter_mut().zip(bits) {
        *byte = *bits;
    }
    Bank::from_id(bank)
        .and_then(|bank| Selection::new(bank, u32::from_le_bytes(mask)))
        .ok_or(StatementError::Selection)
}
