//! Zstandard frames (RFC 8878): what SEAL's compressor writes, read into one buffer.
//!
//! Invariants:
//! - Every frame is either decompressed to at most the given number of bytes or refused; no input
//!   panics, and no memory is reserved beyond that number and a few tables.
//! - One frame without dictionary and checksum, as SEAL writes it, is all there is.

mod bits;
mod fse;
mod huffman;
mod output;
mod sequences;

use self::huffman::Huffman;
use self::output::Output;
use self::sequences::Sequences;
use super::reader::Reader;
use crate::error::FormatError;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const MAX_BLOCK_LEN: usize = 128 * 1024;

/// Decompresses a frame of at most `cap` bytes.
pub(crate) fn decompress(frame: &[u8], cap: usize) -> Result<Vec<u8>, FormatError> {
    let mut reader = Reader::new(frame);
    let content_len = frame_header(&mut reader)?;
    if content_len.is_some_and(|length| length > cap as u64) {
        return Err(FormatError::TooLarge);
    }
    let mut decoder = Decoder {
        out: Output::new(content_len.and_then(|it| it.try_into().ok()).unwrap_or(cap)),
        huffman: None,
        literals: Vec::new(),
        sequences: Sequences::default(),
    };
    loop {
        let [a, b, c] = reader.array()?;
        let header = u32::from_le_bytes([a, b, c, 0]);
        let size = (header >> 3) as usize;
        if size > MAX_BLOCK_LEN {
            return Err(FormatError::Compression);
        }
        decoder.out.begin_block();
        match header >> 1 & 3 {
            0 => decoder.out.append(reader.bytes(size)?)?,
            1 => decoder.out.fill(reader.u8()?, size)?,
            2 => decoder.block(reader.bytes(size)?)?,
            _ => return Err(FormatError::Compression),
        }
        if header & 1 == 1 {
            break;
        }
    }
    reader.finish()?;
    if content_len.is_some_and(|length| length != decoder.out.len() as u64) {
        return Err(FormatError::Compression);
    }
    Ok(decoder.out.finish())
}

/// Reads a frame's header and tells the length of its content, if it says so.
fn frame_header(reader: &mut Reader<'_>) -> Result<Option<u64>, FormatError> {
    if reader.array()? != MAGIC {
        return Err(FormatError::Compression);
    }
    let descriptor = reader.u8()?;
    let single_segment = descriptor & 0x20 != 0;
    // Reserved bit, checksum, dictionary.
    if descriptor & 0b1111 != 0 {
        return Err(FormatError::Compression);
    }
    if !single_segment {
        // The window: everything is in memory, so that every offset within it is at hand.
        reader.u8()?;
    }
    Ok(match descriptor >> 6 {
        0 if single_segment => Some(u64::from(reader.u8()?)),
        0 => None,
        1 => Some(u64::from(reader.u16()?) + 256),
        2 => Some(u64::from(u32::from_le_bytes(reader.array()?))),
        _ => Some(reader.u64()?),
    })
}

struct Decoder {
    out: Output,
    huffman: Option<Box<Huffman>>,
    literals: Vec<u8>,
    sequences: Sequences,
}

impl Decoder {
    fn block(&mut self, block: &[u8]) -> Result<(), FormatError> {
        let mut reader = Reader::new(block);
        let literals = self.literals(&mut reader)?;
        let literals = literals.unwrap_or(&self.literals);
        self.sequences.run(reader, literals, &mut self.out)
    }

    /// Reads the literals into `self.literals`, or finds them as they are.
    fn literals<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, FormatError> {
        let first = reader.u8()?;
        let (kind, size_format) = (first & 3, first >> 2 & 3);
        if kind < 2 {
            let mut header = u32::from(first);
            let extra = [0, 1, 0, 2][usize::from(size_format)];
            for index in 1..=extra {
                header |= u32::from(reader.u8()?) << (8 * index);
            }
            let size = (header >> if extra == 0 { 3 } else { 4 }) as usize;
            if size > MAX_BLOCK_LEN {
                return Err(FormatError::Compression);
            }
            if kind == 0 {
                return reader.bytes(size).map(Some);
            }
            self.literals.clear();
            self.literals.resize(size, reader.u8()?);
            return Ok(None);
        }
        let (extra, width) = [(2, 10), (2, 10), (3, 14), (4, 18)][usize::from(size_format)];
        let mut header = u64::from(first);
        for index in 1..=extra {
            header |= u64::from(reader.u8()?) << (8 * index);
        }
        // At most 18 bits.
        let field = |shift: u32| usize::try_from((header >> shift) & ((1 << width) - 1));
        let (Ok(size), Ok(stored)) = (field(4), field(4 + width)) else {
            return Err(FormatError::Compression);
        };
        if size > MAX_BLOCK_LEN {
            return Err(FormatError::Compression);
        }
        let mut reader = Reader::new(reader.bytes(stored)?);
        if kind == 2 {
            self.huffman = Some(Huffman::read(&mut reader)?);
        }
        let huffman = self.huffman.as_ref().ok_or(FormatError::Compression)?;
        self.literals.clear();
        self.literals.resize(size, 0);
        if size_format == 0 {
            huffman.decode(reader.bytes(reader.len())?, &mut self.literals)?;
        } else {
            huffman.decode_four(reader, &mut self.literals)?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::pack::Packer;

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().as_chunks::<2>().0.iter();
        digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn packed_frames_unpack(
            sections in prop::collection::vec((1_usize..9, 0_usize..400, any::<u64>()), 0..6),
            zeros in 0_usize..300_000,
            head in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut packer = Packer::new(Vec::new()).unwrap();
            let mut expected = head.clone();
            packer.bytes(&head).unwrap();
            for (width, count, seed) in sections {
                let count = if seed % 7 == 0 { count * 100 } else { count };
                let word = |index: usize| {
                    (seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - 8 * width)
                };
                let words: Vec<u64> = (0..count).map(word).collect();
                packer.bytes(&[0; 24]).unwrap();
                packer.words(&words, width).unwrap();
                expected.extend([0; 24]);
                expected.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            }
            packer.zeros(zeros).unwrap();
            expected.resize(expected.len() + zeros, 0);
            let frame = packer.finish().unwrap();
            prop_assert!(decompress(&frame, expected.len()) == Ok(expected.clone()));
            if let Some(less) = expected.len().checked_sub(1) {
                prop_assert_eq!(decompress(&frame, less), Err(FormatError::TooLarge));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decompress(&bytes, 100_000);
            bytes.splice(0..0, [0x28, 0xb5, 0x2f, 0xfd, 0, 0x38]);
            let _ = decompress(&bytes, 100_000);
        }
    }

    /// Frames that Zstandard's own library wrote, at several levels, and the CRC-like sum of what
    /// they hold.
    #[test]
    fn frames_of_the_reference_implementation_are_read() {
        let text = include_str!("zstd/reference.txt");
        let mut count = 0;
        for line in text.lines() {
            let (digest, frame) = line.split_once(' ').unwrap();
            let content = decompress(&unhex(frame), 1 << 20).unwrap();
            assert_eq!(blake2b_simd::blake2b(&content).to_hex()[..32], *digest, "frame {count}");
            count += 1;
        }
        assert!(count >= 10);
    }

    #[test]
    fn damaged_frames_never_panic() {
        for line in include_str!("zstd/reference.txt").lines() {
            let frame = unhex(line.split_once(' ').unwrap().1);
            for place in 0..frame.len().min(200) {
                for flip in [1, 0x10, 0x80, 0xff] {
                    let mut damaged = frame.clone();
                    damaged[place] ^= flip;
                    let _ = decompress(&damaged, 1 << 20);
                }
                let _ = decompress(&frame[..place], 1 << 20);
            }
        }
    }
}
