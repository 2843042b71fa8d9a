//! Huffman-coded literals (RFC 8878, 4.2).

use super::bits::BackwardBits;
use super::fse::Table;
use crate::error::FormatError;
use crate::wire::reader::Reader;

const MAX_BITS: u32 = 11;
const SIZE: usize = 1 << MAX_BITS;
/// Symbols that one refill of a bit stream surely serves.
const AT_ONCE: usize = 5;

/// What the next eleven bits begin with.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Two to the number of bits of its code: multiplying by it moves on, and costs less than a shift
    /// by a number that only the table knows.
    step: u16,
    symbol: u8,
}

/// An entry for each value of the next eleven bits.
pub(super) struct Huffman([Entry; SIZE]);

impl Huffman {
    /// Reads a tree's description.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Box<Self>, FormatError> {
        let header = usize::from(reader.u8()?);
        let mut weights = Vec::with_capacity(256);
        if header >= 128 {
            let count = header - 127;
            for pair in reader.bytes(count.div_ceil(2))? {
                weights.extend([pair >> 4, pair & 15]);
            }
            weights.truncate(count);
        } else {
            read_weights(reader.bytes(header)?, &mut weights)?;
        }
        Self::new(&weights)
    }

    /// The table of all weights but the last, which follows from them.
    fn new(weights: &[u8]) -> Result<Box<Self>, FormatError> {
        let mut sum = 0_u32;
        for weight in weights {
            if u32::from(*weight) > MAX_BITS {
                return Err(FormatError::Compression);
            }
            sum += 1 << weight >> 1;
        }
        let bits = sum.checked_ilog2().ok_or(FormatError::Compression)? + 1;
        let last = (1 << bits) - sum;
        if bits > MAX_BITS || !last.is_power_of_two() || weights.len() > 255 {
            return Err(FormatError::Compression);
        }
        let last_weight = u8::try_from(last.ilog2() + 1).map_err(|_| FormatError::Compression)?;
        let mut table = Box::new(Self([Entry::default(); SIZE]));
        // Entries come by rising weight; the table is as if every code had up to eleven bits.
        let entries = |weight: u8| 1_usize << weight >> 1 << (MAX_BITS - bits);
        let weights = || weights.iter().copied().chain([last_weight]);
        let mut places = [0; MAX_BITS as usize + 2];
        for weight in weights() {
            places[usize::from(weight) + 1] += entries(weight);
        }
        for weight in 1..places.len() {
            places[weight] += places[weight - 1];
        }
        for (symbol, weight) in (0..=255).zip(weights()).filter(|(_, weight)| *weight > 0) {
            let place = &mut places[usize::from(weight)];
            let step = 1 << (bits + 1 - u32::from(weight));
            let now = table.0.get_mut(*place..*place + entries(weight));
            now.ok_or(FormatError::Compression)?.fill(Entry { step, symbol });
            *place += entries(weight);
        }
        Ok(table)
    }

    /// Decodes a stream that holds exactly these bytes.
    pub(super) fn decode(&self, stream: &[u8], out: &mut [u8]) -> Result<(), FormatError> {
        let mut bits = BackwardBits::new(stream)?;
        self.decode_rest(&mut bits, out)
    }

    fn decode_rest(&self, bits: &mut BackwardBits, out: &mut [u8]) -> Result<(), FormatError> {
        for out in out.chunks_mut(AT_ONCE) {
            if bits.left() <= 0 {
                return Err(FormatError::Compression);
            }
            let mut word = marked(bits);
            for out in out {
                *out = self.symbol(&mut word);
            }
            bits.skip(word.trailing_zeros());
        }
        bits.finish()
    }

    /// Decodes four streams, whose lengths stand before them.
    pub(super) fn decode_four(
        &self,
        mut reader: Reader<'_>,
        out: &mut [u8],
    ) -> Result<(), FormatError> {
        let lengths = [reader.u16()?, reader.u16()?, reader.u16()?];
        let mut a = BackwardBits::new(reader.bytes(usize::from(lengths[0]))?)?;
        let mut b = BackwardBits::new(reader.bytes(usize::from(lengths[1]))?)?;
        let mut c = BackwardBits::new(reader.bytes(usize::from(lengths[2]))?)?;
        let mut d = BackwardBits::new(reader.bytes(reader.len())?)?;
        let quarter = out.len().div_ceil(4);
        let mut parts = out.chunks_mut(quarter.max(1));
        let mut part = || parts.next().unwrap_or_default();
        let outs = [part(), part(), part(), part()];
        let common = outs[3].len() / AT_ONCE * AT_ONCE;
        let [(a_now, a_rest), (b_now, b_rest), (c_now, c_rest), (d_now, d_rest)] =
            outs.map(|out| out.split_at_mut(common));
        let chunks = |out| <[u8]>::as_chunks_mut::<AT_ONCE>(out).0.iter_mut();
        let together = chunks(a_now).zip(chunks(b_now)).zip(chunks(c_now).zip(chunks(d_now)));
        for ((a_out, b_out), (c_out, d_out)) in together {
            if a.left().min(b.left()).min(c.left()).min(d.left()) <= 0 {
                return Err(FormatError::Compression);
            }
            let (mut a_word, mut b_word) = (marked(&a), marked(&b));
            let (mut c_word, mut d_word) = (marked(&c), marked(&d));
            for index in 0..AT_ONCE {
                a_out[index] = self.symbol(&mut a_word);
                b_out[index] = self.symbol(&mut b_word);
                c_out[index] = self.symbol(&mut c_word);
                d_out[index] = self.symbol(&mut d_word);
            }
            a.skip(a_word.trailing_zeros());
            b.skip(b_word.trailing_zeros());
            c.skip(c_word.trailing_zeros());
            d.skip(d_word.trailing_zeros());
        }
        self.decode_rest(&mut a, a_rest)?;
        self.decode_rest(&mut b, b_rest)?;
        self.decode_rest(&mut c, c_rest)?;
        self.decode_rest(&mut d, d_rest)
    }

    /// The symbol at the top of a word, which moves on to the next.
    #[inline]
    fn symbol(&self, word: &mut u64) -> u8 {
        let entry = self.0[(*word >> (64 - MAX_BITS)) as usize];
        *word = word.wrapping_mul(u64::from(entry.step));
        entry.symbol
    }
}

/// The next bits, with a mark in the lowest, which is none of them: how far it moved up is how many
/// were taken.
#[inline]
fn marked(bits: &BackwardBits) -> u64 {
    bits.peek() | 1
}

/// Weights as two interleaved streams of states.
fn read_weights(bytes: &[u8], weights: &mut Vec<u8>) -> Result<(), FormatError> {
    let (table, used) = Table::read(bytes, 6, usize::from(u8::MAX))?;
    let mut bits = BackwardBits::new(bytes.get(used..).unwrap_or_default())?;
    let mut now = table.start(&mut bits);
    let mut other = table.start(&mut bits);
    if bits.left() < 0 {
        return Err(FormatError::Compression);
    }
    while weights.len() < 255 {
        weights.push(now.symbol);
        let count = now.bits();
        if bits.left() < count.cast_signed() as isize {
            weights.push(other.symbol);
            return Ok(());
        }
        now = table.advance(now, &mut bits.peek());
        bits.skip(count);
        std::mem::swap(&mut now, &mut other);
    }
    Err(FormatError::Compression)
}
