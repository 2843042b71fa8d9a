//! Sequences: copy literals, then copy what was already written (RFC 8878, 3.1.1.3.2 and 3.1.1.4).

use super::bits::BackwardBits;
use super::fse::Table;
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

/// One of the three codes: its limits and the distribution when none is sent.
struct Code {
    max_log: u8,
    max_symbol: usize,
    default_log: u8,
    default: &'static [i16],
}

const LITERALS_CODE: Code =
    Code { max_log: 9, max_symbol: 35, default_log: 6, default: &LITERALS_COUNTS };
const OFFSETS_CODE: Code =
    Code { max_log: 8, max_symbol: 31, default_log: 5, default: &OFFSETS_COUNTS };
const MATCHES_CODE: Code =
    Code { max_log: 9, max_symbol: 52, default_log: 6, default: &MATCHES_COUNTS };

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
    /// Executes a block's sequences, which is what of it follows the literals. `out` grows to at
    /// most `most` bytes.
    pub(super) fn run(
        &mut self,
        mut reader: Reader<'_>,
        mut literals: &[u8],
        out: &mut Vec<u8>,
        most: usize,
    ) -> Result<(), FormatError> {
        let count = match reader.u8()? {
            255 => usize::from(reader.u16()?) + 0x7f00,
            first @ 128.. => (usize::from(first) - 128) << 8 | usize::from(reader.u8()?),
            first => usize::from(first),
        };
        if count == 0 {
            reader.finish()?;
            return append(out, literals, most);
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
            let offset_code = offsets_state.symbol.min(31);
            let offset = (1 << offset_code) + bits.read(offset_code);
            let mut length = |codes: &[(u32, u8)], symbol: u8| {
                let (base, extra) = codes.get(usize::from(symbol)).copied().unwrap_or_default();
                (base + bits.read(extra)) as usize
            };
            let match_len = length(&MATCHES, matches_state.symbol);
            let literals_len = length(&LITERALS, literals_state.symbol);

            let (now, later) =
                literals.split_at_checked(literals_len).ok_or(FormatError::Compression)?;
            literals = later;
            append(out, now, most)?;
            let offset = self.offset(offset as usize, literals_len == 0)?;
            repeat(out, offset, match_len, most)?;

            if index + 1 < count {
                literals_state = literals_table.advance(literals_state, &mut bits);
                matches_state = matches_table.advance(matches_state, &mut bits);
                offsets_state = offsets_table.advance(offsets_state, &mut bits);
            }
        }
        bits.finish()?;
        append(out, literals, most)?;
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
    match mode {
        0 => Table::new(code.default_log, code.default),
        1 => {
            let symbol = reader.u8()?;
            if usize::from(symbol) > code.max_symbol {
                return Err(FormatError::Compression);
            }
            Ok(Table::of_one(symbol))
        }
        2 => {
            let rest = reader.clone().bytes(reader.len())?;
            let (table, used) = Table::read(rest, code.max_log, code.max_symbol)?;
            reader.bytes(used)?;
            Ok(table)
        }
        _ => last.take().ok_or(FormatError::Compression),
    }
}

fn append(out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), FormatError> {
    if most.saturating_sub(out.len()) < bytes.len() {
        return Err(FormatError::TooLarge);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Appends what stands `offset` bytes before the end, over and over.
fn repeat(
    out: &mut Vec<u8>,
    offset: usize,
    mut count: usize,
    most: usize,
) -> Result<(), FormatError> {
    if most.saturating_sub(out.len()) < count {
        return Err(FormatError::TooLarge);
    }
    let start = out.len().checked_sub(offset).ok_or(FormatError::Compression)?;
    if offset == 0 {
        return Err(FormatError::Compression);
    }
    while count > 0 {
        // What was just copied may be copied again: the period stays the offset.
        let now = count.min(out.len() - start);
        out.extend_from_within(start..start + now);
        count -= now;
    }
    Ok(())
}
