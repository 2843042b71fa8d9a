//! What is decompressed: a buffer that grows block by block, with room to write a little too much.
//!
//! Invariants:
//! - nothing counts beyond the cap, and nothing is reserved beyond it but one block and [`SLACK`];
//! - short pieces are copied as a fixed number of bytes, of which those behind the piece do not count
//!   and are overwritten by what comes next.

use super::MAX_BLOCK_LEN;
use crate::error::FormatError;

/// Bytes behind the end that may be written. Most pieces are shorter.
pub(super) const SLACK: usize = 64;

/// Decompressed bytes.
pub(super) struct Output {
    /// At least [`SLACK`] longer than what may be written before the next [`Output::begin_block`].
    bytes: Vec<u8>,
    len: usize,
    /// Where the present block ends at the latest.
    most: usize,
    cap: usize,
}

impl Output {
    /// Room for at most `cap` bytes.
    pub(super) fn new(cap: usize) -> Self {
        Self { bytes: Vec::new(), len: 0, most: 0, cap }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for another block.
    pub(super) fn begin_block(&mut self) {
        self.most = (self.len + MAX_BLOCK_LEN).min(self.cap);
        self.bytes.resize(self.most + SLACK, 0);
    }

    fn check_room(&self, count: usize) -> Result<(), FormatError> {
        if self.most - self.len < count { Err(FormatError::TooLarge) } else { Ok(()) }
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.check_room(bytes.len())?;
        let place = self.bytes.get_mut(self.len..self.len + bytes.len());
        place.ok_or(FormatError::TooLarge)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Appends the first `count` bytes, and returns the others.
    #[inline]
    pub(super) fn append_some<'b>(
        &mut self,
        bytes: &'b [u8],
        count: usize,
    ) -> Result<&'b [u8], FormatError> {
        let (now, later) = bytes.split_at_checked(count).ok_or(FormatError::Compression)?;
        self.check_room(count)?;
        let place = self.bytes.get_mut(self.len..).and_then(<[u8]>::first_chunk_mut::<SLACK>);
        match (place, bytes.first_chunk::<SLACK>()) {
            (Some(place), Some(short)) if count <= SLACK => {
                *place = *short;
                self.len += count;
            }
            _ => self.append(now)?,
        }
        Ok(later)
    }

    /// Appends so many of one byte.
    pub(super) fn fill(&mut self, byte: u8, count: usize) -> Result<(), FormatError> {
        self.check_room(count)?;
        let place = self.bytes.get_mut(self.len..self.len + count);
        place.ok_or(FormatError::TooLarge)?.fill(byte);
        self.len += count;
        Ok(())
    }

    /// Appends what stands `offset` bytes before the end, over and over.
    #[inline]
    pub(super) fn repeat(&mut self, offset: usize, count: usize) -> Result<(), FormatError> {
        // The zero bytes of one number, which stand eight bytes before.
        const SHORT: usize = 8;
        self.check_room(count)?;
        let start = self.len.checked_sub(offset).filter(|_| offset > 0);
        let start = start.ok_or(FormatError::Compression)?;
        if count <= SHORT && offset >= SHORT {
            let short = self.bytes.get(start..).and_then(<[u8]>::first_chunk::<SHORT>).copied();
            let place = self.bytes.get_mut(self.len..).and_then(<[u8]>::first_chunk_mut::<SHORT>);
            if let (Some(short), Some(place)) = (short, place) {
                *place = short;
                self.len += count;
                return Ok(());
            }
        }
        let mut left = count;
        while left > 0 {
            // What was just copied may be copied again: the period stays the offset.
            let now = left.min(self.len - start);
            self.bytes.copy_within(start..start + now, self.len);
            self.len += now;
            left -= now;
        }
        Ok(())
    }

    /// Everything.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.len);
        self.bytes
    }
}
