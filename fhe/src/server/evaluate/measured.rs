//! Accumulators and noise as they are, against what the bounds assume.

use tfhe::core_crypto::prelude::ModulusSwitchedLweCiphertext as _;

use super::*;
use crate::client::tfhe::TfheEngine;
use crate::client::{Engine as _, KeySeed};
use crate::context::Context;
use crate::noise;

/// Mean and variance of samples on the torus.
fn moments(samples: &[f64]) -> (f64, f64) {
    let count = samples.iter().fold(0.0, |count, _| count + 1.0);
    let mean = samples.iter().sum::<f64>() / count;
    (mean, samples.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / count)
}

/// A torus element as a real number in [-1/2, 1/2).
fn real(torus: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "noise has far fewer than 52 leading bits")]
    let signed = torus.cast_signed() as f64;
    signed * (-64_f64).exp2()
}

/// An encryption of the message with a 12-bit body. The noise of an encryption, 2^-47 of the torus,
/// is left out: it is nothing beside the rounding.
fn fresh(engine: &TfheEngine, message: u64, number: u8) -> Glwe {
    let mask_seed = [number; 16];
    let product = engine.phase(&expand_mask(mask_seed), 0, 0).wrapping_neg();
    let body = round(product.wrapping_add(expand(message, MESSAGE_WIDTH.into())), 12);
    let [.., high, low] = (body % 4096).to_be_bytes();
    input_glwe(mask_seed, &[u16::from_be_bytes([high, low])])
}

#[test]
fn the_copies_of_a_score_stand_around_the_centre_of_its_box() {
    let boxes: Boxes = std::array::from_fn(|index| i32::try_from(index).unwrap() - 8);
    let trivial = accumulator(&boxes, 7);
    let (_, body) = trivial.as_ref().split_at(POLYNOMIAL_SIZE);
    // Coefficient GUARD is the centre: as many coefficients of the same value on either side,
    // those before coefficient 0 read negated from the end.
    let extended = |index: i64| match usize::try_from(index) {
        Ok(index) => body[index],
        Err(_) => body[usize::try_from(index + 2048).unwrap()].wrapping_neg(),
    };
    for (centre, value) in (4..).step_by(128).zip(boxes) {
        for distance in -64..64 {
            assert_eq!(extended(centre + distance), encode(value, 7), "{value} {distance}");
        }
    }
}

#[test]
fn noise_stays_within_the_bounds_it_is_held_against() {
    let context = Context::tfhe();
    let engine = TfheEngine::new(&context, &KeySeed::from_bytes([7; 32]));
    let keys = EvaluationKeys::from_bytes(&context, &engine.evaluation_keys().unwrap()).unwrap();

    // Selection: what reaches the blind rotation, in units of 1/4096 shifted by half a unit.
    let selections: Vec<f64> = (0..=255)
        .map(|number| {
            let message = u64::from(number % 16);
            let selector = switch_key(&keys, &extract(&fresh(&engine, message, number), 0));
            let switched = lwe_ciphertext_centered_binary_modulus_switch::<u32, usize, _>(
                selector.as_view(),
                keys.bootstrap().polynomial_size().to_blind_rotation_input_modulus_log(),
            );
            let product = switched
                .mask()
                .zip(engine.small_key())
                .filter(|(_, bit)| **bit == 1)
                .fold(0, |sum: usize, (mask, _)| sum.wrapping_add(mask));
            let units = u64::try_from(switched.body().wrapping_sub(product) % 4096).unwrap();
            real((units << 52).wrapping_sub(message << 59)) + 1.0 / 8192.0
        })
        .collect();
    let (mean, variance) = moments(&selections);
    let bound = noise::fresh_variance(&TFHE) + noise::selection_variance(&TFHE);
    assert!(mean.abs() < 4.0 * (bound / 256.0).sqrt());
    assert!((0.7..1.3).contains(&(variance / bound)), "{variance:e} against {bound:e}");

    // Bootstraps: the middle half of every box, where the selection's noise can't show.
    let boxes: Boxes = std::array::from_fn(|index| i32::try_from(index).unwrap() - 8);
    let mut errors = Vec::new();
    for number in 0..8 {
        let mut rotated = accumulator(&boxes, 7);
        let input = fresh(&engine, 0, number);
        rotate(&keys, &switch_key(&keys, &extract(&input, 0)), &mut rotated);
        let (mask, body) = rotated.as_ref().split_at(POLYNOMIAL_SIZE);
        for (index, value) in boxes.iter().enumerate() {
            let middle = index * BOX..index * BOX + BOX / 4;
            for coefficient in middle {
                let phase = engine.phase(mask, body[coefficient], coefficient);
                errors.push(real(phase.wrapping_sub(encode(*value, 7))));
            }
        }
    }
    let (mean, variance) = moments(&errors);
    let bound = noise::bootstrap_variance(&TFHE);
    assert!(mean.abs() < bound.sqrt());
    assert!((0.5..1.15).contains(&(variance / bound)), "{variance:e} against {bound:e}");
}
