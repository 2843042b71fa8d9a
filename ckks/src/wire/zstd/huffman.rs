//! Huffman-coded literals (RFC 8878, 4.2).

use super::bits::BackwardBits;
use super::fse::Table;
use crate::error::FormatError;
use crate::wire::reader::Reader;

const MAX_BITS: u32 = 11;
const SIZE: usize = 1 << MAX_BITS;
/// Symbols that one refill of a bit stream surely serves.
const AT_ONCE: usize = 5;

/// What the next eleven bits begin with: symbol in the low byte, its number of bits above.
pub(super) struct Huffman([u16; SIZE]);

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
        let mut table = Box::new(Self([0; SIZE]));
        let mut place = 0;
        // Entries come by rising weight; the table is as if every code had up to eleven bits.
        for weight in 1..=MAX_BITS {
            let symbols = (0_u8..=255).zip(weights.iter().chain([&last_weight]));
            for (symbol, _) in symbols.filter(|(_, other)| u32::from(**other) == weight) {
                let length = u16::try_from(bits + 1 - weight).unwrap_or(0);
                let count = 1 << (weight - 1) << (MAX_BITS - bits);
                let entries = table.0.get_mut(place..place + count);
                entries.ok_or(FormatError::Compression)?.fill(length << 8 | u16::from(symbol));
                place += count;
            }
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
            let mut word = bits.peek();
            for out in out {
                *out = self.symbol(bits, &mut word);
            }
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
            let mut words = [a.peek(), b.peek(), c.peek(), d.peek()];
            for index in 0..AT_ONCE {
                a_out[index] = self.symbol(&mut a, &mut words[0]);
                b_out[index] = self.symbol(&mut b, &mut words[1]);
                c_out[index] = self.symbol(&mut c, &mut words[2]);
                d_out[index] = self.symbol(&mut d, &mut words[3]);
            }
        }
        self.decode_rest(&mut a, a_rest)?;
        self.decode_rest(&mut b, b_rest)?;
        self.decode_rest(&mut c, c_rest)?;
        self.decode_rest(&mut d, d_rest)
    }

    #[inline]
    fn symbol(&self, bits: &mut BackwardBits, word: &mut u64) -> u8 {
        let entry = self.0[(*word >> (64 - MAX_BITS)) as usize];
        let [symbol, length] = entry.to_le_bytes();
        *word <<= length;
        bits.skip(length);
        symbol
    }
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
        if bits.left() < Table::bits_of(now) {
            weights.push(other.symbol);
            return Ok(());
        }
        now = table.advance(now, &mut bits);
        std::mem::swap(&mut now, &mut other);
    }
    Err(FormatError::Compression)
}
