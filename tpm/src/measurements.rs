//! The values of selected PCRs at one moment.
//!
//! Invariants: values are held in ascending PCR order, one digest of the bank's size for each
//! selected PCR; the text form is `sha256:7=<hex>,8=<hex>`, of bounded length.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::pcr::{PcrSelection, PcrSelectionError};

/// 24 values of 64 bytes in hexadecimal, with room to spare.
const MAX_TEXT_LEN: usize = 4096;

/// PCR values: what a platform measured of itself at boot. Public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurements {
    selection: PcrSelection,
    concatenated: Vec<u8>,
}

/// A text of PCR values that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasurementsError {
    /// Not `bank:index=hex,…`.
    #[error(
        "PCR values are not of the form \"sha256:7=HEX\" or \"sha256:4=HEX,7=HEX\": copy them \
         unchanged"
    )]
    Form,
    /// The PCRs named in it are no selection.
    #[error(transparent)]
    Selection(#[from] PcrSelectionError),
    /// A value that is no digest of the bank.
    #[error("the value of PCR {index} is not {expected} bytes in hexadecimal: copy it unchanged")]
    Value {
        /// The PCR.
        index: u8,
        /// Length in bytes of the bank's digests.
        expected: usize,
    },
}

impl Measurements {
    /// `concatenated` holds one digest for each selected PCR in ascending order; `None` if its
    /// length is another.
    pub(crate) fn new(selection: PcrSelection, concatenated: Vec<u8>) -> Option<Self> {
        (concatenated.len() == selection.values_len()).then_some(Self { selection, concatenated })
    }

    /// The PCRs.
    #[must_use]
    pub fn pcrs(&self) -> PcrSelection {
        self.selection
    }

    /// Their values in ascending order, one after the other: what `pcrDigest` of a quote or of
    /// `TPM2_PolicyPCR` is the hash of.
    #[must_use]
    pub fn concatenated(&self) -> &[u8] {
        &self.concatenated
    }

    /// The PCRs that do not have one and the same value in both, ascending. Those selected in
    /// only one of them, or in another bank, count as different.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<u8> {
        let ours: BTreeMap<_, _> = self.values().collect();
        let theirs: BTreeMap<_, _> = other.values().collect();
        let same_bank = self.selection.parts().0 == other.selection.parts().0;
        let mut indices: Vec<u8> = ours
            .keys()
            .chain(theirs.keys())
            .filter(|&index| !same_bank || ours.get(index) != theirs.get(index))
            .copied()
            .collect();
        indices.sort_unstable();
        indices.dedup();
        indices
    }

    fn values(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.selection.indices().zip(self.concatenated.chunks(self.selection.digest_len()))
    }
}

impl fmt::Display for Measurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.selection.bank_name())?;
        for (position, (index, value)) in self.values().enumerate() {
            let separator = if position == 0 { ':' } else { ',' };
            write!(f, "{separator}{index}={}", hex::encode(value))?;
        }
        Ok(())
    }
}

impl FromStr for Measurements {
    type Err = MeasurementsError;

    fn from_str(text: &str) -> Result<Self, MeasurementsError> {
        if text.len() > MAX_TEXT_LEN {
            return Err(MeasurementsError::Form);
        }
        let (bank, list) = text.split_once(':').ok_or(MeasurementsError::Form)?;
        let pairs = list
            .split(',')
            .map(|item| item.split_once('=').ok_or(MeasurementsError::Form))
            .collect::<Result<Vec<_>, _>>()?;
        let indices: Vec<&str> = pairs.iter().map(|(index, _)| *index).collect();
        let selection: PcrSelection = format!("{bank}:{}", indices.join(",")).parse()?;
        let mut values = BTreeMap::new();
        for (index, value) in pairs {
            // The selection accepted it.
            let index: u8 = index.parse().map_err(|_| MeasurementsError::Form)?;
            let expected = selection.digest_len();
            let value = hex::decode(value)
                .ok()
                .filter(|value| value.len() == expected)
                .ok_or(MeasurementsError::Value { index, expected })?;
            values.insert(index, value);
        }
        let concatenated = values.into_values().flatten().collect();
        Self::new(selection, concatenated).ok_or(MeasurementsError::Form)
    }
}
