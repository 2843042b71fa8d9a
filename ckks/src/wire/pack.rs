//! Zstandard frames (RFC 8878) of numbers that have zero bytes at the top, written without a search.
//!
//! The residues modulo a prime of 40 bits are five random bytes and three zero bytes each. One
//! sequence "five literals, then three bytes from eight bytes ago" says so; when all sequences of a
//! block are alike, their three code tables are of the kind "repeat one symbol", and each sequence
//! takes no bit at all. So a block is its random bytes and a dozen more: what entropy coding could
//! not beat, at the speed of copying, and of a length that is known before the first number is.
//!
//! Invariants:
//! - A frame's length depends on the shape of its content alone.
//! - At most one block is in memory.

use std::io::{self, Write};

/// Most content of a block, and the window.
const BLOCK_LEN: usize = 128 * 1024;
const WORDS: usize = BLOCK_LEN / 8;
/// Bytes of a number from which on there are too few zero bytes for a match, which has three.
const TOO_WIDE: usize = 6;
/// What stands for numbers that are only counted.
const PLAIN: [u64; 512] = [0; 512];

/// Magic number; no content size, no checksum, no dictionary; a window of 128 KiB.
const FRAME_HEADER: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
/// All three code tables are of one symbol.
const ALL_ONE_SYMBOL: u8 = 0b0101_0100;

#[derive(Clone, Copy)]
enum Kind {
    Raw = 0,
    Repeat = 1,
    Compressed = 2,
}

/// Writes one frame.
pub(crate) struct Packer<W> {
    out: W,
    /// Content that will be a raw block.
    pending: Vec<u8>,
    /// Whether the most recent offset is 8; decided by what stands before the first numbers.
    primed: Option<bool>,
    literals: Vec<u8>,
}

impl<W: Write> Packer<W> {
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&FRAME_HEADER)?;
        Ok(Self { out, pending: Vec::with_capacity(BLOCK_LEN), primed: None, literals: Vec::new() })
    }

    pub(crate) fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.pending.len() == BLOCK_LEN {
                self.flush()?;
            }
            let count = bytes.len().min(BLOCK_LEN - self.pending.len());
            self.pending.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Zero bytes.
    pub(crate) fn zeros(&mut self, mut count: usize) -> io::Result<()> {
        self.flush()?;
        while count > 0 {
            let now = count.min(BLOCK_LEN);
            self.out.write_all(&block_header(Kind::Repeat, now, false))?;
            self.out.write_all(&[0])?;
            count -= now;
        }
        Ok(())
    }

    /// Numbers that fit `width` bytes.
    pub(crate) fn words(&mut self, words: &[u64], width: usize) -> io::Result<()> {
        let (plain, packed) = words.split_at(self.plain(words.len(), width)?);
        self.plain_words(plain)?;
        if !packed.is_empty() {
            self.flush()?;
        }
        for words in packed.chunks(WORDS) {
            gather(words, width, &mut self.literals);
            self.block(words.len(), width)?;
        }
        Ok(())
    }

    /// As many bytes as for so many numbers, whatever they are.
    pub(crate) fn blank_words(&mut self, count: usize, width: usize) -> io::Result<()> {
        let plain = self.plain(count, width)?;
        for _ in 0..plain / PLAIN.len() {
            self.plain_words(&PLAIN)?;
        }
        self.plain_words(&PLAIN[..plain % PLAIN.len()])?;
        let mut packed = count - plain;
        if packed > 0 {
            self.flush()?;
        }
        while packed > 0 {
            let now = packed.min(WORDS);
            self.literals.clear();
            self.literals.resize(now * width, 0);
            self.block(now, width)?;
            packed -= now;
        }
        Ok(())
    }

    /// How many of these numbers go as they are: all, or the first, which has the zero bytes that
    /// the first match copies.
    fn plain(&mut self, count: usize, width: usize) -> io::Result<usize> {
        let primed = self.prime()?;
        Ok(if primed && width < TOO_WIDE { count.min(1) } else { count })
    }

    fn plain_words(&mut self, mut words: &[u64]) -> io::Result<()> {
        while !words.is_empty() {
            if BLOCK_LEN - self.pending.len() < 8 {
                self.flush()?;
            }
            let start = self.pending.len();
            let (now, later) = words.split_at(words.len().min((BLOCK_LEN - start) / 8));
            self.pending.resize(start + 8 * now.len(), 0);
            let places = self.pending[start..].as_chunks_mut::<8>().0;
            for (place, word) in places.iter_mut().zip(now) {
                *place = word.to_le_bytes();
            }
            words = later;
        }
        Ok(())
    }

    /// Makes 8 the most recent offset, if the pending content repeats three bytes at that distance.
    /// Tried once, before the first numbers, so that it does not depend on them.
    fn prime(&mut self) -> io::Result<bool> {
        const LEN: usize = 3;
        if let Some(primed) = self.primed {
            return Ok(primed);
        }
        let pending = &self.pending;
        let repeats = |place: &usize| pending[*place..*place + LEN] == pending[*place - 8..][..LEN];
        let place = (8..pending.len().saturating_sub(LEN - 1)).find(repeats);
        self.primed = Some(place.is_some());
        let Some(place) = place else { return Ok(false) };
        let before = &pending[..place - 1];
        self.out.write_all(&block_header(Kind::Raw, before.len(), false))?;
        self.out.write_all(before)?;
        // One literal, one match of three bytes at offset 8: code 3 (8 to 15, less 3), extra bits 3,
        // below the bit that marks the end.
        let body = [1 << 3, pending[place - 1], 1, ALL_ONE_SYMBOL, 1, 3, 0, 0b1011];
        self.out.write_all(&block_header(Kind::Compressed, body.len(), false))?;
        self.out.write_all(&body)?;
        self.pending.drain(..place + LEN);
        Ok(true)
    }

    /// One block of words whose zero bytes repeat those before them, and whose others are the
    /// literals.
    fn block(&mut self, count: usize, width: usize) -> io::Result<()> {
        let literals = &self.literals;
        // Literals as they are, of a 20-bit length.
        let [a, b, c, ..] = ((literals.len() << 4) | 0b1100).to_le_bytes();
        let [low, high, ..] = count.to_le_bytes();
        let [width, ..] = width.to_le_bytes();
        // Match lengths begin at three; the offset is the most recent one; no bits but the marker.
        let codes = [ALL_ONE_SYMBOL, width, 0, 8 - 3 - width, 1];
        let sequences = if count < 128 { &[low][..] } else { &[high + 128, low][..] };
        let length = 3 + literals.len() + sequences.len() + codes.len();
        self.out.write_all(&block_header(Kind::Compressed, length, false))?;
        self.out.write_all(&[a, b, c])?;
        self.out.write_all(literals)?;
        self.out.write_all(sequences)?;
        self.out.write_all(&codes)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.out.write_all(&block_header(Kind::Raw, self.pending.len(), false))?;
            self.out.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }

    /// Ends the frame.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&block_header(Kind::Raw, self.pending.len(), true))?;
        self.out.write_all(&self.pending)?;
        Ok(self.out)
    }
}

/// The low bytes of words, one word's after another.
fn gather(words: &[u64], width: usize, out: &mut Vec<u8>) {
    fn of_width<const WIDTH: usize>(words: &[u64], out: &mut [u8]) {
        for (place, word) in out.as_chunks_mut::<WIDTH>().0.iter_mut().zip(words) {
            place.copy_from_slice(&word.to_le_bytes()[..WIDTH]);
        }
    }
    out.clear();
    out.resize(words.len() * width, 0);
    match width {
        1 => of_width::<1>(words, out),
        2 => of_width::<2>(words, out),
        3 => of_width::<3>(words, out),
        4 => of_width::<4>(words, out),
        _ => of_width::<5>(words, out),
    }
}

fn block_header(kind: Kind, size: usize, last: bool) -> [u8; 3] {
    let [a, b, c, ..] = (size << 3 | (kind as usize) << 1 | usize::from(last)).to_le_bytes();
    [a, b, c]
}
