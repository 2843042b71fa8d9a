//! Encrypted result: per group of scores one RLWE mask and a few body coefficients.
//!
//! ```text
//! kind 0x12 | score count, u8 | per group: mask, 2048 × u16 | per score: 9 bodies × u16
//! ```
//! All coefficients are the leading 16 bits, big-endian. A score stands nine times in its box, at
//! the coefficients around the one a noiseless selection would read: under the right key all nine
//! agree, under another key each is uniform, so that a result is recognised as foreign but for a
//! chance of 2^(-8 · score bits) per score. A selection error moves all nine together; they can
//! disagree under the right key when it comes within four coefficients of a border, which has
//! probability below 2^-110, and costs one refused job.

use crate::card::TfheCard;
use crate::wire::POLYNOMIAL_SIZE;

/// Version 1 (high nibble) of a result (low nibble).
const KIND: u8 = 0x12;
/// Kind and score count.
const HEADER_LEN: usize = 2;
/// Copies of a score on each side of the centre of its box.
pub(crate) const GUARD: usize = 4;
/// Copies of a score.
pub(crate) const COPIES: usize = 2 * GUARD + 1;
/// Coefficients of a box of an accumulator.
pub(crate) const BOX: usize = POLYNOMIAL_SIZE / crate::card::MESSAGES as usize;

/// One mask and the bodies of the scores it covers.
#[derive(Clone)]
pub(crate) struct Group {
    /// Leading 16 bits of every mask coefficient.
    pub(crate) mask: Vec<u16>,
    /// Leading 16 bits of the body coefficients, one row per score.
    pub(crate) bodies: Vec<[u16; COPIES]>,
}

/// Length of an encrypted result of the card's model.
pub(crate) fn result_len(card: &TfheCard) -> usize {
    HEADER_LEN + 2 * (card.group_count() * POLYNOMIAL_SIZE + card.score_count() * COPIES)
}

/// First of the nine coefficients of the `index`th score of a group.
pub(crate) fn first_coefficient(index: usize) -> usize {
    index * BOX
}

/// Number of scores in each group of the card.
pub(crate) fn group_sizes(card: &TfheCard) -> impl Iterator<Item = usize> {
    let (scores, stride) = (card.score_count(), usize::from(card.stride()));
    (0..card.group_count()).map(move |group| stride.min(scores - group * stride))
}

/// Encodes the groups of the card's result.
#[cfg(feature = "server")]
pub(crate) fn encode(card: &TfheCard, groups: &[Group]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(result_len(card));
    bytes.push(KIND);
    bytes.push(u8::try_from(card.score_count()).unwrap_or(u8::MAX));
    for group in groups {
        let bodies = group.bodies.iter().flatten();
        bytes.extend(group.mask.iter().chain(bodies).flat_map(|c| c.to_be_bytes()));
    }
    bytes
}

/// Decodes a result of the card's model.
#[cfg(feature = "client")]
pub(crate) fn decode(
    card: &TfheCard,
    bytes: &[u8],
) -> Result<Vec<Group>, crate::error::FormatError> {
    use crate::error::FormatError;

    let expected = result_len(card);
    let wrong_length = FormatError::Length { expected, actual: bytes.len() };
    let [kind, scores, coefficients @ ..] = bytes else {
        return Err(wrong_length);
    };
    if *kind != KIND {
        return Err(FormatError::Kind);
    }
    if usize::from(*scores) != card.score_count() {
        return Err(FormatError::Shape);
    }
    if bytes.len() != expected {
        return Err(wrong_length);
    }
    let (coefficients, _) = coefficients.as_chunks::<2>();
    let mut coefficients = coefficients.iter().map(|bytes| u16::from_be_bytes(*bytes));
    let mut groups = Vec::with_capacity(card.group_count());
    for size in group_sizes(card) {
        let mask: Vec<u16> = coefficients.by_ref().take(POLYNOMIAL_SIZE).collect();
        if mask.iter().all(|coefficient| *coefficient == 0) {
            return Err(FormatError::Trivial);
        }
        let mut bodies = vec![[0; COPIES]; size];
        for (body, coefficient) in bodies.iter_mut().flatten().zip(coefficients.by_ref()) {
            *body = coefficient;
        }
        groups.push(Group { mask, bodies });
    }
    Ok(groups)
}
