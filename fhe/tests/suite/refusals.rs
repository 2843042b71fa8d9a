//! What comes from the other side is read or refused, never a panic and never a wrong answer.

use crate::common::{Counter, KEYS, engine, engine_of, levels, model};
use moai_fhe::{
    EngineError, Entropy, EntropyError, EvaluationError, FormatError, Model, ModelError,
};
use proptest::prelude::*;

fn small() -> Model {
    model("lookup", 4, &[vec![vec![3, -2, 1, 0], vec![0, 1, 2, 3]]], &[0, 1])
}

fn input(model: &Model) -> Vec<u8> {
    let values = vec![1; model.card().feature_count()];
    engine()
        .encrypt(model.card(), &levels(model, &values), &mut Counter(0))
        .expect("the levels encrypt")
}

fn refusal(model: &Model, result: &[u8]) -> EngineError {
    match engine().decrypt(model.card(), result) {
        Ok(_) => panic!("a bad result was accepted"),
        Err(error) => error,
    }
}

#[test]
fn a_result_under_another_key_is_recognised() {
    let model = small();
    let result = model.evaluate(&KEYS, &input(&model)).unwrap();
    let other = engine_of([3; 32]);
    assert!(matches!(other.decrypt(model.card(), &result), Err(EngineError::ForeignKey)));
    assert!(engine().decrypt(model.card(), &result).is_ok());
}

#[test]
fn an_input_under_another_key_gives_a_result_that_is_recognised_or_clean() {
    // A foreign selector lands anywhere in the table, possibly well inside a box: then the result
    // is a valid one of other levels. What matters is that nothing panics and scores are in range.
    let model = small();
    let foreign =
        engine_of([3; 32]).encrypt(model.card(), &levels(&model, &[1]), &mut Counter(0)).unwrap();
    let result = model.evaluate(&KEYS, &foreign).unwrap();
    if let Ok(scores) = engine().decrypt(model.card(), &result) {
        assert!(scores.values().iter().all(|score| (-16..16).contains(score)));
    }
}

#[test]
fn a_trivial_result_is_refused() {
    let model = small();
    let mut result = model.evaluate(&KEYS, &input(&model)).unwrap();
    result[2..2 + 2 * 2048].fill(0);
    assert_eq!(refusal(&model, &result), EngineError::Malformed(FormatError::Trivial));
}

#[test]
fn results_of_wrong_kind_shape_or_length_are_refused() {
    let model = small();
    let result = model.evaluate(&KEYS, &input(&model)).unwrap();
    let length =
        |actual| EngineError::Malformed(FormatError::Length { expected: result.len(), actual });
    assert_eq!(refusal(&model, &[]), length(0));
    assert_eq!(refusal(&model, &result[..100]), length(100));
    assert_eq!(refusal(&model, &[&result[..], &[0]].concat()), length(result.len() + 1));
    let mut other_version = result.clone();
    other_version[0] ^= 0x20;
    assert_eq!(refusal(&model, &other_version), EngineError::Malformed(FormatError::Kind));
    let mut other_shape = result;
    other_shape[1] += 1;
    assert_eq!(refusal(&model, &other_shape), EngineError::Malformed(FormatError::Shape));
}

#[test]
fn inputs_of_wrong_kind_shape_or_length_are_refused() {
    let model = small();
    let input = input(&model);
    let refusal = |bytes: &[u8]| match model.evaluate(&KEYS, bytes).unwrap_err() {
        EvaluationError::MalformedInput(error) => error,
        other => panic!("{other}"),
    };
    let length = |actual| FormatError::Length { expected: input.len(), actual };
    assert_eq!(refusal(&[]), length(0));
    assert_eq!(refusal(&input[..2]), length(2));
    assert_eq!(refusal(&input[..input.len() - 1]), length(input.len() - 1));
    assert_eq!(refusal(&[&input[..], &[0]].concat()), length(input.len() + 1));
    let with = |index: usize, byte: u8| {
        let mut bytes = input.clone();
        bytes[index] = byte;
        bytes
    };
    assert_eq!(refusal(&with(0, 0x21)), FormatError::Kind);
    assert_eq!(refusal(&with(2, 7)), FormatError::Shape);
    assert_eq!(refusal(&with(input.len() - 1, 0xf0)), FormatError::Padding);
}

#[test]
fn levels_of_another_model_are_refused() {
    let (small, large) = (small(), model("lookup", 16, &vec![vec![vec![1; 16]]; 2], &[0]));
    let foreign = levels(&large, &[15, 15]);
    let refused = Err(EngineError::Model(ModelError::LevelsMismatch { features: 1, levels: 4 }));
    assert_eq!(engine().encrypt(small.card(), &foreign, &mut Counter(0)), refused);
    assert!(small.evaluate_clear(&foreign).is_err());
}

#[test]
fn no_entropy_no_encryption() {
    struct Dry;
    impl Entropy for Dry {
        fn fill(&mut self, _: &mut [u8]) -> Result<(), EntropyError> {
            Err(EntropyError)
        }
    }
    let model = small();
    let error = engine().encrypt(model.card(), &levels(&model, &[0]), &mut Dry).unwrap_err();
    assert_eq!(error, EngineError::Entropy(EntropyError));
    assert!(error.is_transient());
}

proptest! {
    #[test]
    fn the_robot_never_panics_on_any_result(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        random_mask in any::<u8>(),
    ) {
        let model = small();
        let engine = engine();
        prop_assert!(engine.decrypt(model.card(), &bytes).is_err());
        let mut result = vec![random_mask; model.card().max_result_len()];
        result[0] = 0x12;
        result[1] = 2;
        for (index, byte) in flips {
            *index.get_mut(&mut result) = byte;
        }
        if let Ok(scores) = engine.decrypt(model.card(), &result) {
            prop_assert_eq!(scores.values().len(), 2);
        }
    }

    #[test]
    fn the_server_never_panics_on_any_input(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let model = small();
        prop_assert!(model.evaluate(&KEYS, &bytes).is_err() || bytes.len() == model.card().max_ciphertext_len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn the_server_evaluates_any_input_of_the_right_shape(
        seed_and_body in prop::collection::vec(any::<u8>(), 18)
    ) {
        let model = small();
        let mut bytes = vec![0x11, 0, 1];
        bytes.extend(seed_and_body);
        bytes[20] &= 0x0f;
        let result = model.evaluate(&KEYS, &bytes).unwrap();
        prop_assert_eq!(result.len(), model.card().max_result_len());
    }
}
