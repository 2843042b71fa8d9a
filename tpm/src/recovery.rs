//! The recovery code: 128 bits that a person can write down and type.
//!
//! Invariants:
//! 1. The bytes live in one heap allocation and are wiped on drop; nothing prints, clones or
//!    serialises them; [`RecoveryCode::expose`] and [`RecoveryCode::to_text`] are the only ways
//!    to them.
//! 2. The text is seven groups of five characters of Crockford's base 32, for instance
//!    `00000-…`. A group is 20 bits and a check character, which finds one mistyped character,
//!    two swapped ones and a group in the wrong place for certain. The 140 bits of the groups
//!    are the code and 12 bits of its SHA-256 digest, which find 4095 of 4096 other mistakes.
//! 3. No error repeats what was typed.

use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use tss_esapi::structures::Auth;
use zeroize::{Zeroize, Zeroizing};

/// Crockford's base 32: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUPS: usize = 7;
const GROUP_LEN: usize = 5;
const SYMBOL_BITS: u32 = 5;
const DIGEST_BITS: u32 = 12;
const TEXT_LEN: usize = GROUPS * GROUP_LEN + GROUPS - 1;

/// What a person might type, with generous separators.
const MAX_TEXT_LEN: usize = 256;

/// Opens a sealed root whatever state the platform is in.
pub struct RecoveryCode(Box<[u8; RecoveryCode::LEN]>);

/// A text that is no recovery code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryCodeError {
    /// Too few or too many characters.
    #[error(
        "a recovery code has {GROUPS} groups of {GROUP_LEN} letters and digits, this text has \
         {found} letters and digits: type all groups"
    )]
    Length {
        /// How many letters and digits there are.
        found: usize,
    },
    /// A group that fails its check.
    #[error("group {number} of the recovery code is mistyped or in the wrong place: check it")]
    Group {
        /// 1 to 7.
        number: usize,
    },
    /// All groups pass, but not together.
    #[error("the groups do not belong together: check each against the recovery code")]
    Mixed,
}

impl RecoveryCode {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Takes the code over. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; Self::LEN]) -> Self {
        let code = Self::copy_of(&bytes);
        bytes.zeroize();
        code
    }

    /// Copies from one place in memory to the other, without a stop on the stack.
    #[must_use]
    pub fn copy_of(bytes: &[u8; Self::LEN]) -> Self {
        let mut code = Self(Box::new([0; Self::LEN]));
        code.0.copy_from_slice(bytes);
        code
    }

    /// The secret bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The text to write down.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_LEN));
        let mut bits = Zeroizing::new(Bits { value: 0, len: 0 });
        let digest = self.digest_bits();
        // 128 bits are 25 symbols and 3 bits, to which the digest's 12 are added.
        let mut bytes = self.0.iter();
        for number in 1..=GROUPS {
            if number > 1 {
                text.push('-');
            }
            let mut check = Check::of_group(number);
            for _ in 1..GROUP_LEN {
                while bits.len < SYMBOL_BITS {
                    match bytes.next() {
                        Some(byte) => bits.push((*byte).into(), 8),
                        None => bits.push(digest, DIGEST_BITS),
                    }
                }
                let symbol = bits.pop_symbol();
                check.add(symbol);
                text.push(character(symbol));
            }
            text.push(character(check.symbol()));
        }
        text
    }

    /// The code as the sealed object's password. TPMs drop zeros at its end, and so do HMACs: as
    /// all codes have one length, no two become one.
    pub(crate) fn to_auth(&self) -> tss_esapi::Result<Auth> {
        Auth::try_from(self.expose().to_vec())
    }

    fn digest_bits(&self) -> u32 {
        let digest: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(self.0.as_slice()).into());
        let [first, second, ..] = *digest;
        u32::from(u16::from_be_bytes([first, second]) >> (16 - DIGEST_BITS))
    }
}

impl Drop for RecoveryCode {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl FromStr for RecoveryCode {
    type Err = RecoveryCodeError;

    /// Reads what a person types: upper or lower case, any spaces and dashes, O for 0, I and L
    /// for 1.
    fn from_str(text: &str) -> Result<Self, RecoveryCodeError> {
        let separator = |c: char| c.is_whitespace() || matches!(c, '-' | '‐' | '–' | '—' | '_');
        let typed = text.chars().filter(|&c| !separator(c)).count();
        if typed != GROUPS * GROUP_LEN || text.len() > MAX_TEXT_LEN {
            return Err(misshapen(text, separator, typed));
        }
        let mut code = Self(Box::new([0; Self::LEN]));
        let mut bytes = code.0.iter_mut();
        let mut bits = Zeroizing::new(Bits { value: 0, len: 0 });
        let mut characters = text.chars().filter(|&c| !separator(c));
        for number in 1..=GROUPS {
            let mistyped = RecoveryCodeError::Group { number };
            let mut symbol = || characters.next().and_then(symbol).ok_or_else(|| mistyped.clone());
            let mut check = Check::of_group(number);
            for _ in 1..GROUP_LEN {
                let symbol = symbol()?;
                check.add(symbol);
                bits.push(symbol.into(), SYMBOL_BITS);
                if bits.len >= 8
                    && let Some(byte) = bytes.next()
                {
                    *byte = bits.pop_byte();
                }
            }
            if symbol()? != check.symbol() {
                return Err(mistyped);
            }
        }
        if bits.value == code.digest_bits() { Ok(code) } else { Err(RecoveryCodeError::Mixed) }
    }
}

/// Names the group of wrong length where there are as many groups as there should be.
fn misshapen(text: &str, separator: impl Fn(char) -> bool, found: usize) -> RecoveryCodeError {
    let groups = || text.split(&separator).filter(|group| !group.is_empty());
    let odd = groups().position(|group| group.chars().count() != GROUP_LEN);
    match odd {
        Some(index) if groups().count() == GROUPS => RecoveryCodeError::Group { number: index + 1 },
        _ => RecoveryCodeError::Length { found },
    }
}

fn character(symbol: u8) -> char {
    ALPHABET.get(usize::from(symbol)).copied().map_or('?', char::from)
}

fn symbol(character: char) -> Option<u8> {
    let upper = match character.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    let position = ALPHABET.iter().position(|&known| char::from(known) == upper)?;
    u8::try_from(position).ok()
}

/// A queue of bits, the most significant first.
#[derive(Zeroize)]
struct Bits {
    value: u32,
    len: u32,
}

impl Bits {
    fn push(&mut self, bits: u32, len: u32) {
        self.value = self.value << len | bits;
        self.len += len;
    }

    fn pop(&mut self, len: u32) -> u8 {
        self.len = self.len.saturating_sub(len);
        let [.., bits] = (self.value >> self.len).to_be_bytes();
        self.value &= (1 << self.len) - 1;
        bits
    }

    fn pop_symbol(&mut self) -> u8 {
        self.pop(SYMBOL_BITS)
    }

    fn pop_byte(&mut self) -> u8 {
        self.pop(8)
    }
}

/// Check symbol of a group over GF(32): `number + Σ 2^i · symbol_i`. The weights 2, 4, 8, 16 and
/// the check's own 1 differ, so any one wrong symbol and any two swapped ones change it.
struct Check {
    sum: u8,
    weight: u8,
}

impl Check {
    fn of_group(number: usize) -> Self {
        Self { sum: u8::try_from(number).unwrap_or_default(), weight: 2 }
    }

    fn add(&mut self, symbol: u8) {
        self.sum ^= product(self.weight, symbol);
        self.weight = product(self.weight, 2);
    }

    fn symbol(&self) -> u8 {
        self.sum
    }
}

/// Product in GF(32) with the primitive polynomial x^5 + x^2 + 1.
fn product(mut left: u8, mut right: u8) -> u8 {
    let mut product = 0;
    while right != 0 {
        if right & 1 != 0 {
            product ^= left;
        }
        left <<= 1;
        if left & 0x20 != 0 {
            left ^= 0x25;
        }
        right >>= 1;
    }
    product
}
