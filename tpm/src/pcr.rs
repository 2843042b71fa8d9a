//! PCR selections.
//!
//! Invariant: a selection has one bank and at least one of the PCRs 0 to 23.

use std::fmt;
use std::str::FromStr;

use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::structures::{PcrSelectionList, PcrSlot};

/// PCRs of a PC Client TPM (TCG PC Client Platform TPM Profile).
const PCR_COUNT: u8 = 24;

/// Hash bank. SHA-1 is not offered: its collisions are within reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bank {
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

    /// `TPM_ALG_ID` (TPM 2.0 Part 2, 6.3).
    fn id(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sha512 => 0x000d,
        }
    }

    fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn algorithm(self) -> HashingAlgorithm {
        match self {
            Self::Sha256 => HashingAlgorithm::Sha256,
            Self::Sha384 => HashingAlgorithm::Sha384,
            Self::Sha512 => HashingAlgorithm::Sha512,
        }
    }
}

/// A set of PCRs of one bank, written `sha256:0,2,7`. The default is `sha256:7`, Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PcrSelection {
    bank: Bank,
    /// Bit n stands for PCR n.
    mask: u32,
}

/// A PCR selection text that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcrSelectionError {
    /// Not `bank:list`.
    #[error("PCR selection {0:?} is not of the form \"sha256:7\" or \"sha256:0,2,7\"")]
    Form(String),
    /// A bank that is unknown or too weak.
    #[error("PCR bank {0:?} is not supported: use sha256, sha384 or sha512")]
    Bank(String),
    /// Not a PCR number, or one that stands there twice.
    #[error("PCR {0:?} is not a number from 0 to 23 given once")]
    Index(String),
}

impl Default for PcrSelection {
    fn default() -> Self {
        Self { bank: Bank::Sha256, mask: 1 << 7 }
    }
}

impl FromStr for PcrSelection {
    type Err = PcrSelectionError;

    fn from_str(text: &str) -> Result<Self, PcrSelectionError> {
        let (bank, list) =
            text.split_once(':').ok_or_else(|| PcrSelectionError::Form(text.to_owned()))?;
        let bank = Bank::ALL
            .into_iter()
            .find(|candidate| candidate.name() == bank)
            .ok_or_else(|| PcrSelectionError::Bank(bank.to_owned()))?;
        let mut mask = 0;
        for item in list.split(',') {
            let refused = || PcrSelectionError::Index(item.to_owned());
            let digits = (1..=2).contains(&item.len()) && item.bytes().all(|b| b.is_ascii_digit());
            let index: u8 = item.parse().map_err(|_| refused())?;
            let bit = 1_u32.checked_shl(index.into()).ok_or_else(refused)?;
            if !digits || index >= PCR_COUNT || mask & bit != 0 {
                return Err(refused());
            }
            mask |= bit;
        }
        Ok(Self { bank, mask })
    }
}

impl fmt::Display for PcrSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.bank.name())?;
        for (position, index) in self.indices().enumerate() {
            write!(f, "{}{index}", if position == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

impl PcrSelection {
    /// The selected PCRs in ascending order.
    pub fn indices(&self) -> impl Iterator<Item = u8> + use<> {
        let mask = self.mask;
        (0..PCR_COUNT).filter(move |index| mask & (1 << index) != 0)
    }

    /// Bank (`TPM_ALG_ID`) and bit mask, as they are stored.
    pub(crate) fn parts(self) -> (u16, u32) {
        (self.bank.id(), self.mask)
    }

    /// The inverse of [`Self::parts`].
    pub(crate) fn from_parts(bank: u16, mask: u32) -> Option<Self> {
        let bank = Bank::ALL.into_iter().find(|known| known.id() == bank)?;
        (mask != 0 && mask >> PCR_COUNT == 0).then_some(Self { bank, mask })
    }

    /// The selection on the wire, `TPMS_PCR_SELECTION` (TPM 2.0 Part 2, 10.6.2).
    pub(crate) fn marshalled(self) -> [u8; 6] {
        let [high, low] = self.bank.id().to_be_bytes();
        let [first, second, third, _] = self.mask.to_le_bytes();
        [high, low, 3, first, second, third]
    }

    pub(crate) fn bank_name(self) -> &'static str {
        self.bank.name()
    }

    /// Length in bytes of one PCR's value.
    pub(crate) fn digest_len(self) -> usize {
        self.bank.digest_len()
    }

    /// Length in bytes of the selection's concatenated values.
    pub(crate) fn values_len(self) -> usize {
        self.digest_len() * self.indices().count()
    }

    /// Parts of at most eight PCRs, what one `TPM2_PCR_Read` answers.
    pub(crate) fn batches(self) -> Vec<Self> {
        let indices: Vec<u8> = self.indices().collect();
        indices
            .chunks(8)
            .map(|chunk| Self {
                bank: self.bank,
                mask: chunk.iter().fold(0, |mask, index| mask | 1 << index),
            })
            .collect()
    }

    /// The selection as the TSS library wants it.
    pub(crate) fn to_list(self) -> tss_esapi::Result<PcrSelectionList> {
        let slots = self
            .indices()
            .map(|index| PcrSlot::try_from(1 << index))
            .collect::<tss_esapi::Result<Vec<_>>>()?;
        PcrSelectionList::builder().with_selection(self.bank.algorithm(), &slots).build()
    }
}
