//! Keys follow from context and seed, and from nothing else.

use crate::common::{Counter, KEY_BYTES, engine, engine_of, levels, model};
use moai_fhe::{Context, EvaluationError, EvaluationKeys, FormatError, MAX_EVALUATION_KEY_LEN};

#[test]
fn evaluation_keys_are_the_same_on_any_number_of_threads() {
    assert_eq!(KEY_BYTES.len(), MAX_EVALUATION_KEY_LEN);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let again = pool.install(|| engine().evaluation_keys().unwrap());
    assert!(again == *KEY_BYTES);
}

#[test]
fn another_seed_gives_other_keys() {
    let other = engine_of([2; 32]).evaluation_keys().unwrap();
    // Past kind and context digest, nothing is shared.
    let shared = other.iter().zip(KEY_BYTES.iter()).skip(33).filter(|(a, b)| a == b).count();
    let expected = MAX_EVALUATION_KEY_LEN / 256;
    assert!(
        shared.abs_diff(expected) < expected / 20,
        "{shared} bytes agree, {expected} by chance"
    );
}

#[test]
fn equal_levels_never_encrypt_equally() {
    let model = model("lookup", 4, &vec![vec![vec![1; 4]]; 8], &[0]);
    let engine = engine();
    let levels = levels(&model, &[2; 8]);
    let mut entropy = Counter(0);
    let first = engine.encrypt(model.card(), &levels, &mut entropy).unwrap();
    let second = engine.encrypt(model.card(), &levels, &mut entropy).unwrap();
    // Kind, version and count are the same; seed and bodies are not.
    assert!(first[..3] == second[..3] && first[3..19] != second[3..19]);
    assert!(first[19..] != second[19..]);
}

#[test]
fn repeating_entropy_never_repeats_a_mask_for_other_levels() {
    let model = model("lookup", 4, &vec![vec![vec![1; 4]]; 8], &[0]);
    let engine = engine();
    let mask_seed = |value| {
        let levels = levels(&model, &[value; 8]);
        engine.encrypt(model.card(), &levels, &mut Counter(0)).unwrap()[3..19].to_vec()
    };
    assert!(mask_seed(1) == mask_seed(1));
    assert!(mask_seed(1) != mask_seed(2));
}

#[test]
fn foreign_or_damaged_keys_are_refused() {
    let context = Context::tfhe();
    let refusal = |bytes: &[u8]| EvaluationKeys::from_bytes(&context, bytes).unwrap_err();
    let length = |actual| {
        EvaluationError::MalformedKeys(FormatError::Length {
            expected: MAX_EVALUATION_KEY_LEN,
            actual,
        })
    };
    assert_eq!(refusal(&[]), length(0));
    assert_eq!(refusal(&KEY_BYTES[1..]), length(MAX_EVALUATION_KEY_LEN - 1));
    let mut bytes = KEY_BYTES.clone();
    bytes.push(0);
    assert_eq!(refusal(&bytes), length(MAX_EVALUATION_KEY_LEN + 1));
    bytes.pop();
    bytes[0] ^= 0x10;
    assert_eq!(refusal(&bytes), EvaluationError::MalformedKeys(FormatError::Kind));
    bytes[0] ^= 0x10;
    bytes[5] ^= 1;
    assert_eq!(refusal(&bytes), EvaluationError::ContextMismatch);
}
