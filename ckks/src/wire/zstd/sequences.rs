//! Sequences: copy literals, then copy what was already written (RFC 8878, 3.1.1.3.2 and 3.1.1.4).

use super::bits::BackwardBits;
use super::fse::Table;
use super::output::Output;
use crate::error::FormatError;
use crate::wire::reader::Reader;

/// Base and number of extra bits of each literals length code.
const LITERALS: [(u32, u8); 36] = {
    let mut codes = [(0, 0); 36];
    let mut code = 0_u8;
    while code < 16 {
        codes[code as usize] = (code as u32, 0);
        code += 1;
    }
    let wide = [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    bases(codes, wide, 16)
};
/// Base and number of extra bits of each match length code.
const MATCHES: [(u32, u8); 53] = {
    let mut codes = [(0, 0); 53];
    let mut code = 0_u8;
    while code < 32 {
        codes[code as usize] = (code as u32 + 3, 0);
        code += 1;
    }
    let wide = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    bases(codes, wide, 35)
};

/// Fills in the last codes, each of which begins where the one before ends.
const fn bases<const N: usize, const W: usize>(
    mut codes: [(u32, u8); N],
    wide: [u8; W],
    first: u32,
) -> [(u32, u8); N] {
    let mut base = first;
    let mut index = 0;
    while index < W {
        codes[N - W + index] = (base, wide[index]);
        base += 1 << wide[index];
        index += 1;
    }
    codes
}

const LITERALS_COUNTS: [i16; 36] = [
    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1,
    -1, -1, -1, -1,
];
const MATCHES_COUNTS: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
const OFFSETS_COUNTS: [i16; 29] =
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];

/// Base and number of extra bits of each offset code.
const OFFSETS: [(u32, u8); 32] = {
    let mut codes = [(0, 0); 32];
    let mut code = 0_u8;
    while code < 32 {
        codes[code as usize] = (1 << code, code);
        code += 1;
    }
    codes
};

/// One of the three codes: its limits, the distribution when none is sent, and what it stands for.
struct Code {
    max_log: u8,
    max_symbol: usize,
    default_log: u8,
    default: &'static [i16],
    values: &'static [(u32, u8)],
}

const LITERALS_CODE: Code = Code {
    max_log: 9,
    max_symbol: 35,
    default_log: 6,
    default: &LITERALS_COUNTS,
    values: &LITERALS,
};
const OFFSETS_CODE: Code =
    Code { max_log: 8, max_symbol: 31, default_log: 5, default: &OFFSETS_COUNTS, values: &OFFSETS };
const MATCHES_CODE: Code =
    Code { max_log: 9, max_symbol: 52, default_log: 6, default: &MATCHES_COUNTS, values: &MATCHES };

/// What later blocks may refer back to.
pub(super) struct Sequences {
    literals: Option<Table>,
    offsets: Option<Table>,
    matches: Option<Table>,
    recent: [usize; 3],
}

impl Default for Sequences {
    fn default() -> Self {
        Self { literals: None, offsets: None, matches: None, recent: [1, 4, 8] }
    }
}

impl Sequences {
    /// Executes a block's sequences, which is what of it follows the literals.
    pub(super) fn run(
        &mut self,
        mut reader: Reader<'_>,
        mut literals: &[u8],
        out: &mut Output,
    ) -> Result<(), FormatError> {
        let count = match reader.u8()? {
            255 => usize::from(reader.u16()?) + 0x7f00,
            first @ 128.. => (usize::from(first) - 128) << 8 | usize::from(reader.u8()?),
            first => usize::from(first),
        };
        if count == 0 {
            reader.finish()?;
            return out.append(literals);
        }
        let modes = reader.u8()?;
        if modes & 3 != 0 {
            return Err(FormatError::Compression);
        }
        let mut table = |code, mode, slot| read_table(&mut reader, code, mode & 3, slot);
        let literals_table = table(&LITERALS_CODE, modes >> 6, &mut self.literals)?;
        let offsets_table = table(&OFFSETS_CODE, modes >> 4, &mut self.offsets)?;
        let matches_table = table(&MATCHES_CODE, modes >> 2, &mut self.matches)?;

        let mut bits = BackwardBits::new(reader.bytes(reader.len())?)?;
        let mut literals_state = literals_table.start(&mut bits);
        let mut offsets_state = offsets_table.start(&mut bits);
        let mut matches_state = matches_table.start(&mut bits);
        for index in 0..count {
            if bits.left() < 0 {
                return Err(FormatError::Compression);
            }
            // A word has 56 bits: both lengths have at most 32 more, an offset up to 31.
            let (mut word, mut taken) = (bits.peek(), offsets_state.extra());
            let offset = offsets_state.value(&mut word);
            if taken > 56 - 32 {
                bits.skip(taken);
                (word, taken) = (bits.peek(), 0);
            }
            let match_len = matches_state.value(&mut word);
            let literals_len = literals_state.value(&mut word);
            bits.skip(taken + matches_state.extra() + literals_state.extra());

            literals = out.append_some(literals, literals_len as usize)?;
            let offset = self.offset(offset as usize, literals_len == 0)?;
            out.repeat(offset, match_len as usize)?;

            if index + 1 < count {
                let mut word = bits.peek();
                bits.skip(literals_state.bits() + matches_state.bits() + offsets_state.bits());
                literals_state = literals_table.advance(literals_state, &mut word);
                matches_state = matches_table.advance(matches_state, &mut word);
                offsets_state = offsets_table.advance(offsets_state, &mut word);
            }
        }
        bits.finish()?;
        out.append(literals)?;
        self.literals = Some(literals_table);
        self.offsets = Some(offsets_table);
        self.matches = Some(matches_table);
        Ok(())
    }

    /// The distance an offset value stands for; 1 to 3 name recent ones.
    fn offset(&mut self, value: usize, no_literals: bool) -> Result<usize, FormatError> {
        let [first, second, third] = self.recent;
        let (offset, recent) = match value + usize::from(no_literals && value <= 3) {
            1 => (first, [first, second, third]),
            2 => (second, [second, first, third]),
            3 => (third, [third, first, second]),
            4 if value == 3 => {
                let offset = first.checked_sub(1).ok_or(FormatError::Compression)?;
                (offset, [offset, first, second])
            }
            _ => (value - 3, [value - 3, first, second]),
        };
        self.recent = recent;
        Ok(offset)
    }
}

fn read_table(
    reader: &mut Reader<'_>,
    code: &Code,
    mode: u8,
    last: &mut Option<Table>,
) -> Result<Table, FormatError> {
    let table = match mode {
        0 => Table::new(code.default_log, code.default)?,
        1 => {
            let symbol = reader.u8()?;
            if usize::from(symbol) > code.max_symbol {
                return Err(FormatError::Compression);
            }
            Table::of_one(symbol)
        }
        2 => {
            let rest = reader.clone().bytes(reader.len())?;
            let (table, used) = Table::read(rest, code.max_log, code.max_symbol)?;
            reader.bytes(used)?;
            table
        }
        _ => return last.take().ok_or(FormatError::Compression),
    };
    Ok(table.of_codes(code.values))
}
