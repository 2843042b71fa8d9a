//! Bit streams: forward for table descriptions, backward for everything else (RFC 8878, 4.1).
//!
//! Invariant: reading beyond the end gives zeros and is noticed by who asks at the end.

use crate::error::FormatError;

/// Bits from the last byte to the first; within a byte from the top.
pub(super) struct BackwardBits {
    /// The stream with eight zero bytes before it.
    bytes: Vec<u8>,
    /// Bits still to be read; negative when too many were.
    left: isize,
}

impl BackwardBits {
    pub(super) fn new(stream: &[u8]) -> Result<Self, FormatError> {
        let last = stream.last().ok_or(FormatError::Compression)?;
        if *last == 0 || stream.len() > super::MAX_BLOCK_LEN {
            return Err(FormatError::Compression);
        }
        let mut bytes = Vec::with_capacity(stream.len() + 8);
        bytes.extend([0; 8]);
        bytes.extend_from_slice(stream);
        let padding = last.leading_zeros() as usize + 1;
        Ok(Self { bytes, left: (stream.len() * 8 - padding).cast_signed() })
    }

    /// The next bits at the top of a word: at least 56 of them, zeros beyond the end.
    #[inline]
    pub(super) fn peek(&self) -> u64 {
        let place = self.left.max(0).cast_unsigned() + 64;
        let start = place / 8 - 7;
        let word = self.bytes.get(start..).and_then(<[u8]>::first_chunk);
        word.map_or(0, |word| u64::from_le_bytes(*word)) << (8 - place % 8)
    }

    #[inline]
    pub(super) fn skip(&mut self, count: u32) {
        self.left -= count.cast_signed() as isize;
    }

    /// The next `count` bits, at most 32, as a number.
    #[inline]
    pub(super) fn read(&mut self, count: u8) -> u32 {
        let mut word = self.peek();
        self.skip(u32::from(count));
        take(&mut word, count)
    }

    /// Bits still to be read; negative when too many were.
    pub(super) fn left(&self) -> isize {
        self.left
    }

    pub(super) fn finish(&self) -> Result<(), FormatError> {
        if self.left == 0 { Ok(()) } else { Err(FormatError::Compression) }
    }
}

/// Takes `count` bits, at most 32, from the top of a word.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "at most 32 bits are asked for")]
pub(super) fn take(word: &mut u64, count: u8) -> u32 {
    let bits = (*word >> 1 >> (63 - (count & 63))) as u32;
    *word <<= count & 63;
    bits
}

/// Bits from the first byte to the last; within a byte from the bottom.
pub(super) struct ForwardBits<'a> {
    bytes: &'a [u8],
    used: usize,
}

impl<'a> ForwardBits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, used: 0 }
    }

    /// The next `count` bits, at most 16.
    pub(super) fn read(&mut self, count: u32) -> Result<u32, FormatError> {
        let start = self.used / 8;
        let mut word = 0;
        for (index, byte) in self.bytes.iter().skip(start).take(4).enumerate() {
            word |= u32::from(*byte) << (8 * index);
        }
        let value = word >> (self.used % 8) & ((1 << count) - 1);
        self.used += count as usize;
        if self.used > self.bytes.len() * 8 { Err(FormatError::Compression) } else { Ok(value) }
    }

    pub(super) fn back(&mut self) {
        self.used -= 1;
    }

    /// Bytes that were begun.
    pub(super) fn bytes_used(&self) -> usize {
        self.used.div_ceil(8)
    }
}
