//! A model on ciphertext: programmable bootstrapping (Chillotti, Joye, Paillier, "Programmable
//! Bootstrapping Enables Efficient Homomorphic Inference of Deep Neural Networks", 2021) with
//! several tables per blind rotation.
//!
//! An accumulator is a polynomial of 16 boxes of 128 equal coefficients. Rotating it by the phase
//! of level `v`, encoded as message `v · stride`, brings box `v · stride + k` to coefficient
//! `k · 128`: with 8 levels (stride 2) one rotation serves two scores. Accumulators are added as
//! GLWE ciphertexts before anything is read from them, so all features together cost one mask.
//!
//! Invariants:
//! - The boxes are moved so that coefficients 0 to 8 of a box are those around its centre; the
//!   part of box 0 that a negacyclic rotation reads from the far end stands there negated.
//! - The server sends the nine coefficients of every score and nothing else of the body.

#[cfg(all(test, feature = "client"))]
mod measured;

use rayon::prelude::*;
use tfhe::core_crypto::prelude::{
    CiphertextModulus, GlweCiphertext, GlweCiphertextOwned, GlweSize, LweCiphertext,
    LweCiphertextOwned, LweSize, MonomialDegree, PolynomialSize, blind_rotate_assign,
    extract_lwe_sample_from_glwe_ciphertext, glwe_ciphertext_add_assign,
    keyswitch_lwe_ciphertext_with_scalar_change, lwe_ciphertext_centered_binary_modulus_switch,
};

use crate::card::{MESSAGES, ModelKind};
use crate::context::TFHE;
use crate::model::{Model, entry};
use crate::server::{EvaluationError, EvaluationKeys};
use crate::wire::result::{BOX, COPIES, GUARD, Group, first_coefficient, group_sizes};
use crate::wire::{self, POLYNOMIAL_SIZE, expand, expand_mask, round};

type Glwe = GlweCiphertextOwned<u64>;
type Lwe<Scalar> = LweCiphertextOwned<Scalar>;
/// The values of an accumulator's boxes.
type Boxes = [i32; MESSAGES as usize];

/// Width of a message with its padding bit.
const MESSAGE_WIDTH: u8 = 5;

impl Model {
    /// Evaluates the model on an encrypted input: one bootstrap per feature and group of scores,
    /// about 30 ms of CPU each, spread over the current rayon pool.
    ///
    /// # Errors
    /// [`EvaluationError::MalformedInput`] when the bytes are no input of this model.
    pub fn evaluate(&self, keys: &EvaluationKeys, body: &[u8]) -> Result<Vec<u8>, EvaluationError> {
        let card = self.tfhe_card();
        let (mask_seed, bodies) = wire::input::decode(body, card.features().len())
            .map_err(EvaluationError::MalformedInput)?;
        let input = input_glwe(mask_seed, &bodies);
        let groups = match card.kind() {
            ModelKind::Lookup => self.lookup(keys, &input),
            ModelKind::Threshold => vec![self.threshold(keys, &input)],
        };
        Ok(wire::result::encode(card, &groups))
    }

    fn lookup(&self, keys: &EvaluationKeys, input: &Glwe) -> Vec<Group> {
        let card = self.tfhe_card();
        let stride = usize::from(card.stride());
        let sums = self.sum_of_features(keys, input, card.group_count(), |feature, group| {
            let mut boxes = Boxes::default();
            let table = self.tables().get(feature).map_or(&[][..], Vec::as_slice);
            for (level, row) in (0..card.level_count()).zip(boxes.chunks_exact_mut(stride)) {
                for (index, value) in row.iter_mut().enumerate() {
                    *value = entry(table, group * stride + index, level);
                }
            }
            accumulator(&boxes, card.score_bits())
        });
        let mut bias = self.bias().iter().copied();
        sums.iter()
            .zip(group_sizes(card))
            .map(|(sum, size)| {
                let bias: Vec<i32> = bias.by_ref().take(size).collect();
                read_group(sum, &bias, card.score_bits())
            })
            .collect()
    }

    fn threshold(&self, keys: &EvaluationKeys, input: &Glwe) -> Group {
        let card = self.tfhe_card();
        let stride = usize::from(card.stride());
        let sums = self.sum_of_features(keys, input, 1, |feature, _| {
            let mut boxes = Boxes::default();
            let table = self.tables().get(feature).map_or(&[][..], Vec::as_slice);
            for (level, value) in (0..card.level_count()).zip(boxes.iter_mut().step_by(stride)) {
                *value = entry(table, 0, level);
            }
            accumulator(&boxes, MESSAGE_WIDTH)
        });
        let mut any = [1; MESSAGES as usize];
        any[0] = 0;
        let mut answer = accumulator(&any, card.score_bits());
        for count in &sums {
            rotate(keys, &switch_key(keys, &extract(count, GUARD)), &mut answer);
        }
        read_group(&answer, &[0], card.score_bits())
    }

    /// Rotates each feature's accumulators by its level and adds them up, group by group.
    fn sum_of_features(
        &self,
        keys: &EvaluationKeys,
        input: &Glwe,
        groups: usize,
        accumulator: impl Fn(usize, usize) -> Glwe + Sync,
    ) -> Vec<Glwe> {
        (0..self.tfhe_card().features().len())
            .into_par_iter()
            .map(|feature| {
                let selector = switch_key(keys, &extract(input, feature));
                (0..groups)
                    .map(|group| {
                        let mut rotated = accumulator(feature, group);
                        rotate(keys, &selector, &mut rotated);
                        rotated
                    })
                    .collect::<Vec<_>>()
            })
            .reduce(
                || vec![new_glwe(); groups],
                |mut sums, rotated| {
                    for (sum, rotated) in sums.iter_mut().zip(&rotated) {
                        glwe_ciphertext_add_assign(sum, rotated);
                    }
                    sums
                },
            )
    }
}

/// The input as the client encrypted it, with zeros for the body coefficients it didn't send.
fn input_glwe(mask_seed: [u8; 16], bodies: &[u16]) -> Glwe {
    let mut container = expand_mask(mask_seed);
    container.extend(bodies.iter().map(|b| expand(u64::from(*b), TFHE.input_body_bits)));
    container.resize(2 * POLYNOMIAL_SIZE, 0);
    glwe(container)
}

/// A trivial ciphertext of 16 boxes, their values encoded in the leading `width` bits.
fn accumulator(boxes: &Boxes, width: u8) -> Glwe {
    let mut polynomial: Vec<u64> =
        boxes.iter().flat_map(|value| [encode(*value, width); BOX]).collect();
    let shift = BOX / 2 - GUARD;
    for coefficient in polynomial.iter_mut().take(shift) {
        *coefficient = coefficient.wrapping_neg();
    }
    polynomial.rotate_left(shift);
    let mut container = vec![0; POLYNOMIAL_SIZE];
    container.append(&mut polynomial);
    glwe(container)
}

fn encode(value: i32, width: u8) -> u64 {
    expand(i64::from(value).cast_unsigned(), width.into())
}

fn extract(from: &Glwe, coefficient: usize) -> Lwe<u64> {
    let mut sample =
        LweCiphertext::new(0, LweSize(POLYNOMIAL_SIZE + 1), CiphertextModulus::new_native());
    extract_lwe_sample_from_glwe_ciphertext(from, &mut sample, MonomialDegree(coefficient));
    sample
}

/// From the GLWE key to the small LWE key.
fn switch_key(keys: &EvaluationKeys, sample: &Lwe<u64>) -> Lwe<u32> {
    let mut switched = LweCiphertext::new(
        0,
        LweSize(usize::from(TFHE.lwe_dimension) + 1),
        CiphertextModulus::new_native(),
    );
    keyswitch_lwe_ciphertext_with_scalar_change(keys.keyswitch(), sample, &mut switched);
    switched
}

/// Divides the accumulator by X to the phase of the selector.
fn rotate(keys: &EvaluationKeys, selector: &Lwe<u32>, accumulator: &mut Glwe) {
    let selector = lwe_ciphertext_centered_binary_modulus_switch(
        selector.as_view(),
        keys.bootstrap().polynomial_size().to_blind_rotation_input_modulus_log(),
    );
    blind_rotate_assign(&selector, accumulator, keys.bootstrap());
}

/// Adds the bias and keeps the leading bits of what is sent, one score per bias.
fn read_group(sum: &Glwe, bias: &[i32], score_bits: u8) -> Group {
    let (mask, body) = sum.as_ref().split_at(POLYNOMIAL_SIZE);
    let bodies = bias.iter().enumerate().map(|(index, bias)| {
        let mut copies = [0; COPIES];
        let first = body.iter().skip(first_coefficient(index));
        for (copy, coefficient) in copies.iter_mut().zip(first) {
            *copy = leading_bits(coefficient.wrapping_add(encode(*bias, score_bits)));
        }
        copies
    });
    Group { mask: mask.iter().map(|c| leading_bits(*c)).collect(), bodies: bodies.collect() }
}

fn leading_bits(coefficient: u64) -> u16 {
    // Rounding up to 2^16 is 0 on the torus.
    let [.., high, low] = round(coefficient, TFHE.result_bits).to_be_bytes();
    u16::from_be_bytes([high, low])
}

fn new_glwe() -> Glwe {
    glwe(vec![0; 2 * POLYNOMIAL_SIZE])
}

fn glwe(container: Vec<u64>) -> Glwe {
    debug_assert_eq!(container.len(), GlweSize(2).0 * POLYNOMIAL_SIZE);
    GlweCiphertext::from_container(
        container,
        PolynomialSize(POLYNOMIAL_SIZE),
        CiphertextModulus::new_native(),
    )
}
