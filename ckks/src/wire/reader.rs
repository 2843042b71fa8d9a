//! Reading numbers from bytes.
//!
//! Invariant: nothing is read beyond the end, and nothing is allocated.

use crate::error::FormatError;

/// What of a message is still to be read.
#[derive(Clone)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (now, later) = self.0.split_at_checked(count).ok_or(FormatError::Truncated)?;
        self.0 = later;
        Ok(now)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (now, later) = self.0.split_first_chunk().ok_or(FormatError::Truncated)?;
        self.0 = later;
        Ok(*now)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn f64(&mut self) -> Result<f64, FormatError> {
        self.array().map(f64::from_le_bytes)
    }

    /// A number of things, each of at least one byte that is still to come.
    pub(crate) fn count(&mut self) -> Result<usize, FormatError> {
        usize::try_from(self.u64()?).map_err(|_| FormatError::TooLarge)
    }

    /// `count` words.
    pub(crate) fn words(&mut self, count: usize) -> Result<&'a [[u8; 8]], FormatError> {
        let length = count.checked_mul(8).ok_or(FormatError::TooLarge)?;
        Ok(self.bytes(length)?.as_chunks().0)
    }

    pub(crate) fn finish(self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError::Trailing) }
    }
}
