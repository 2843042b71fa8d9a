//! Encrypted input: one seeded RLWE ciphertext of which only the used body coefficients are sent.
//!
//! ```text
//! kind 0x11 | feature count, u16 big-endian | mask seed, 16 bytes | bodies, 12 bits each
//! ```
//! Two bodies fill three bytes: low byte of the first, its high nibble below the low nibble of the
//! second, high byte of the second. After an odd count the last high nibble is zero.

/// Version 1 (high nibble) of an input (low nibble).
const KIND: u8 = 0x11;
/// Kind, count and mask seed.
const HEADER_LEN: usize = 1 + 2 + 16;

/// Length of an encrypted input of `features` features.
pub(crate) fn input_len(features: usize) -> usize {
    HEADER_LEN + (3 * features).div_ceil(2)
}

/// Encodes the mask seed and one 12-bit body per feature.
#[cfg(feature = "client")]
pub(crate) fn encode(mask_seed: [u8; 16], bodies: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(input_len(bodies.len()));
    bytes.push(KIND);
    let count = u16::try_from(bodies.len()).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&count.to_be_bytes());
    bytes.extend_from_slice(&mask_seed);
    let (pairs, rest) = bodies.as_chunks::<2>();
    for [first, second] in pairs {
        let [first_high, first_low] = first.to_be_bytes();
        let [_, second_low] = second.to_be_bytes();
        let [_, second_high] = (second >> 4).to_be_bytes();
        bytes.extend_from_slice(&[first_low, first_high | (second_low << 4), second_high]);
    }
    for last in rest {
        bytes.extend_from_slice(&last.to_le_bytes());
    }
    bytes
}

/// Decodes an input made for `features` features into its mask seed and 12-bit bodies.
#[cfg(feature = "server")]
pub(crate) fn decode(
    bytes: &[u8],
    features: usize,
) -> Result<([u8; 16], Vec<u16>), crate::error::FormatError> {
    use crate::error::FormatError;

    let [kind, count @ ..] = bytes else {
        return Err(FormatError::Length { expected: input_len(features), actual: 0 });
    };
    if *kind != KIND {
        return Err(FormatError::Kind);
    }
    let truncated = FormatError::Length { expected: input_len(features), actual: bytes.len() };
    let (count, rest) = count.split_first_chunk::<2>().ok_or(truncated)?;
    if usize::from(u16::from_be_bytes(*count)) != features {
        return Err(FormatError::Shape);
    }
    if bytes.len() != input_len(features) {
        return Err(truncated);
    }
    let (mask_seed, packed) = rest.split_first_chunk::<16>().ok_or(truncated)?;
    let (triples, rest) = packed.as_chunks::<3>();
    let mut bodies = Vec::with_capacity(features);
    for [first_low, middle, second_high] in triples {
        bodies.push(u16::from_le_bytes([*first_low, middle & 0x0f]));
        bodies.push(u16::from(*second_high) << 4 | u16::from(middle >> 4));
    }
    if let [low, high] = rest {
        if high & 0xf0 != 0 {
            return Err(FormatError::Padding);
        }
        bodies.push(u16::from_le_bytes([*low, *high]));
    }
    Ok((*mask_seed, bodies))
}
