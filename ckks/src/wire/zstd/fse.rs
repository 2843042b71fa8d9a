//! Finite state entropy tables (RFC 8878, 4.1).

use super::bits::{BackwardBits, ForwardBits, take};
use crate::error::FormatError;

/// One state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) symbol: u8,
    bits: u8,
    base: u16,
    /// What the symbol's code stands for: a number, and how many bits more are added to it.
    value: u32,
    extra: u8,
}

impl State {
    /// The number that the symbol stands for, by the bits at the top of a word.
    #[inline]
    pub(super) fn value(self, word: &mut u64) -> u32 {
        self.value + take(word, self.extra)
    }

    /// Bits of [`State::value`].
    #[inline]
    pub(super) fn extra(self) -> u32 {
        u32::from(self.extra)
    }

    /// Bits that leave this state.
    #[inline]
    pub(super) fn bits(self) -> u32 {
        u32::from(self.bits)
    }
}

/// A decoding table of 2^log states.
#[derive(Clone, Debug)]
pub(super) struct Table {
    log: u8,
    states: Vec<State>,
}

impl Table {
    /// A table whose only symbol takes no bits.
    pub(super) fn of_one(symbol: u8) -> Self {
        Self { log: 0, states: vec![State { symbol, ..State::default() }] }
    }

    /// Reads a description, and tells how many bytes it has.
    pub(super) fn read(
        bytes: &[u8],
        max_log: u8,
        max_symbol: usize,
    ) -> Result<(Self, usize), FormatError> {
        let mut bits = ForwardBits::new(bytes);
        let log = u8::try_from(bits.read(4)? + 5).map_err(|_| FormatError::Compression)?;
        if log > max_log {
            return Err(FormatError::Compression);
        }
        let mut remaining = 1_i32 << log;
        let mut counts = Vec::with_capacity(max_symbol + 1);
        while remaining > 0 {
            if counts.len() > max_symbol {
                return Err(FormatError::Compression);
            }
            let width = (remaining + 1).ilog2() + 1;
            let value = bits.read(width)?.cast_signed();
            let low = value & ((1 << (width - 1)) - 1);
            let threshold = (1 << width) - 2 - remaining;
            let value = if low < threshold {
                bits.back();
                low
            } else if value >= 1 << (width - 1) {
                value - threshold
            } else {
                value
            };
            let count = value - 1;
            remaining -= count.abs();
            counts.push(i16::try_from(count).map_err(|_| FormatError::Compression)?);
            if count == 0 {
                loop {
                    let repeat = bits.read(2)?;
                    counts.resize(counts.len() + repeat as usize, 0);
                    if repeat != 3 || counts.len() > max_symbol + 1 {
                        break;
                    }
                }
            }
        }
        if remaining != 0 || counts.len() > max_symbol + 1 {
            return Err(FormatError::Compression);
        }
        Ok((Self::new(log, &counts)?, bits.bytes_used()))
    }

    /// The table of a distribution: a count for each symbol, -1 for "less than one".
    pub(super) fn new(log: u8, counts: &[i16]) -> Result<Self, FormatError> {
        let size = 1_usize << log;
        let mut states = vec![State::default(); size];
        let mut next = vec![0_u16; counts.len()];
        let mut high = size;
        for (symbol, count) in (0_u8..=255).zip(counts) {
            if *count == -1 {
                high = high.checked_sub(1).ok_or(FormatError::Compression)?;
                states[high].symbol = symbol;
                next[usize::from(symbol)] = 1;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut place = 0;
        for (symbol, count) in (0_u8..=255).zip(counts) {
            let Ok(count) = u16::try_from(*count) else { continue };
            next[usize::from(symbol)] = count;
            for _ in 0..count {
                if high == 0 {
                    return Err(FormatError::Compression);
                }
                states[place].symbol = symbol;
                place = (place + step) & (size - 1);
                while place >= high {
                    place = (place + step) & (size - 1);
                }
            }
        }
        if place != 0 {
            return Err(FormatError::Compression);
        }
        for state in &mut states {
            let next = &mut next[usize::from(state.symbol)];
            let bits = u32::from(log)
                .checked_sub((*next).checked_ilog2().ok_or(FormatError::Compression)?);
            let bits = bits.ok_or(FormatError::Compression)?;
            state.bits = u8::try_from(bits).map_err(|_| FormatError::Compression)?;
            let base = (usize::from(*next) << bits).wrapping_sub(size);
            state.base = u16::try_from(base).map_err(|_| FormatError::Compression)?;
            *next += 1;
        }
        Ok(Self { log, states })
    }

    /// The same with what each symbol's code stands for.
    pub(super) fn of_codes(mut self, codes: &[(u32, u8)]) -> Self {
        for state in &mut self.states {
            let code = codes.get(usize::from(state.symbol)).copied();
            (state.value, state.extra) = code.unwrap_or_default();
        }
        self
    }

    /// The first state of a stream.
    pub(super) fn start(&self, bits: &mut BackwardBits) -> State {
        let index = bits.read(self.log) as usize;
        self.states.get(index).copied().unwrap_or_default()
    }

    /// The state after this one, by the bits at the top of a word.
    #[inline]
    pub(super) fn advance(&self, state: State, word: &mut u64) -> State {
        let index = usize::from(state.base) + take(word, state.bits) as usize;
        self.states.get(index).copied().unwrap_or_default()
    }
}
