//! PCR values as text: `sha256:4=HEX,7=HEX`.
//!
//! Invariants: one bank, at least one of the PCRs 0 to 23, each once, in ascending order, each
//! with one digest of the bank's size in lower-case hexadecimal; `Display` gives exactly what
//! `FromStr` takes.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

const PCR_COUNT: u8 = 24;
/// Longest text, in bytes: 24 PCRs of SHA-512 fit.
pub(crate) const MAX_TEXT_LEN: usize = 4096;

/// A hash bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bank {
    Sha256,
    Sha384,
    Sha512,
}

impl Bank {
    const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Bank of a `TPM_ALG_ID` (TPM 2.0 Part 2, 6.3).
    pub(crate) fn from_id(id: u16) -> Option<Self> {
        match id {
            0x000b => Some(Self::Sha256),
            0x000c => Some(Self::Sha384),
            0x000d => Some(Self::Sha512),
            _ => None,
        }
    }

    fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl FromStr for Bank {
    type Err = PcrValuesError;

    fn from_str(text: &str) -> Result<Self, PcrValuesError> {
        Self::ALL.into_iter().find(|bank| bank.name() == text).ok_or(PcrValuesError::Bank)
    }
}

/// PCRs of one bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Selection {
    bank: Bank,
    mask: u32,
}

impl Selection {
    pub(crate) fn new(bank: Bank, mask: u32) -> Option<Self> {
        (mask != 0 && mask >> PCR_COUNT == 0).then_some(Self { bank, mask })
    }

    fn indices(self) -> impl Iterator<Item = u8> {
        (0..PCR_COUNT).filter(move |index| self.mask & (1 << index) != 0)
    }
}

impl FromStr for Selection {
    type Err = PcrValuesError;

    /// `sha256:4,7`.
    fn from_str(text: &str) -> Result<Self, PcrValuesError> {
        let (bank, list) = text.split_once(':').ok_or(PcrValuesError::Form)?;
        let bank = bank.parse()?;
        let mut mask = 0;
        for item in list.split(',') {
            mask = with_index(mask, parse_index(item)?)?;
        }
        Self::new(bank, mask).ok_or(PcrValuesError::Form)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.bank.name())?;
        for (position, index) in self.indices().enumerate() {
            write!(f, "{}{index}", if position == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

fn parse_index(text: &str) -> Result<u8, PcrValuesError> {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse()
        .ok()
        .filter(|&index| plain && index < PCR_COUNT)
        .ok_or_else(|| PcrValuesError::Index(text.chars().take(8).collect()))
}

/// The mask with one more PCR, which is above all that are in it.
fn with_index(mask: u32, index: u8) -> Result<u32, PcrValuesError> {
    if mask >> index != 0 {
        return Err(PcrValuesError::Order(index));
    }
    Ok(mask | 1 << index)
}

/// What PCRs of one bank hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrValues {
    selection: Selection,
    /// In ascending order of the PCRs.
    concatenated: Vec<u8>,
}

/// A text that names no PCR values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcrValuesError {
    /// Longer than one can be.
    #[error("PCR values have at most {MAX_TEXT_LEN} characters")]
    TooLarge,
    /// Not of this form.
    #[error("not of the form sha256:7=HEX or sha256:4=HEX,7=HEX")]
    Form,
    /// An unknown bank.
    #[error("the bank is none of sha256, sha384, sha512")]
    Bank,
    /// No PCR.
    #[error("PCR {0:?} is not a number from 0 to 23")]
    Index(String),
    /// Not in order, or given twice.
    #[error("PCR {0} does not come after all that stand before it")]
    Order(u8),
    /// No digest of the bank.
    #[error("the value of PCR {0} is not a digest of its bank in lower-case hexadecimal")]
    Value(u8),
}

impl PcrValues {
    pub(crate) fn selection(&self) -> Selection {
        self.selection
    }

    /// The PCRs alone: `sha256:4,7`.
    #[must_use]
    pub fn pcrs(&self) -> String {
        self.selection.to_string()
    }

    /// `pcrDigest` of a quote that a key with SHA-256 signs.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.concatenated).into()
    }

    /// The PCRs whose values differ, of two readings of the same PCRs.
    pub(crate) fn differing(&self, other: &Self) -> Vec<u8> {
        self.values()
            .zip(other.values())
            .filter(|(ours, theirs)| ours != theirs)
            .map(|((index, _), _)| index)
            .collect()
    }

    fn values(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.selection.indices().zip(self.concatenated.chunks(self.selection.bank.digest_len()))
    }
}

impl FromStr for PcrValues {
    type Err = PcrValuesError;

    fn from_str(text: &str) -> Result<Self, PcrValuesError> {
        if text.len() > MAX_TEXT_LEN {
            return Err(PcrValuesError::TooLarge);
        }
        let (bank, list) = text.split_once(':').ok_or(PcrValuesError::Form)?;
        let bank: Bank = bank.parse()?;
        let (mut mask, mut concatenated) = (0, Vec::new());
        for item in list.split(',') {
            let (index, value) = item.split_once('=').ok_or(PcrValuesError::Form)?;
            let index = parse_index(index)?;
            mask = with_index(mask, index)?;
            let digest = hex::decode(value).ok().filter(|digest| {
                digest.len() == bank.digest_len() && !value.bytes().any(|b| b.is_ascii_uppercase())
            });
            concatenated.extend(digest.ok_or(PcrValuesError::Value(index))?);
        }
        let selection = Selection::new(bank, mask).ok_or(PcrValuesError::Form)?;
        Ok(Self { selection, concatenated })
    }
}

impl fmt::Display for PcrValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.selection.bank.name())?;
        for (position, (index, value)) in self.values().enumerate() {
            let separator = if position == 0 { ':' } else { ',' };
            write!(f, "{separator}{index}={}", hex::encode(value))?;
        }
        Ok(())
    }
}
