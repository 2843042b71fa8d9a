//! The CKKS engine against results that the TenSEAL server computed with its keys.

use moai_fhe::{
    CkksParameters, Context, ContextDigest, ContextError, Engine, EngineError, Inputs, KeySeed,
    ModelCard, ModelError, Window, setup,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::Counter;

/// A model that a server serves, and what it made of the input of `ckks_requests`.
struct Golden {
    card: &'static str,
    result: &'static [u8],
    scores: &'static str,
}

macro_rules! golden {
    ($name:literal) => {
        Golden {
            card: include_str!(concat!("../golden/ckks/", $name, ".card.json")),
            result: include_bytes!(concat!("../golden/ckks/", $name, ".result")),
            scores: include_str!(concat!("../golden/ckks/", $name, ".scores.json")),
        }
    };
}

static GOLDEN: [Golden; 3] =
    [golden!("failure-linear"), golden!("grasp-linear"), golden!("grasp-mlp")];

impl Golden {
    fn json(&self) -> Value {
        serde_json::from_str(self.card).expect("the card is JSON")
    }

    fn card(&self) -> ModelCard {
        parse(self.json()).expect("the card is valid")
    }

    fn engine(&self, seed: u8) -> Box<dyn Engine> {
        setup(&self.card().to_context(), &KeySeed::from_bytes([seed; 32])).expect("primes exist")
    }

    fn window() -> Window {
        let rows: Vec<[f64; 6]> =
            serde_json::from_str(include_str!("../golden/ckks/window.json")).expect("it is JSON");
        Window::new(rows.len(), 6, rows.into_iter().flatten()).expect("it is a window")
    }
}

fn parse(json: Value) -> Result<ModelCard, serde_json::Error> {
    serde_json::from_value(json)
}

#[test]
fn results_of_the_server_give_its_scores_and_labels() {
    for golden in &GOLDEN {
        let card = golden.card();
        let exact: Vec<f64> = serde_json::from_str(golden.scores).unwrap();
        let scores = golden.engine(1).decrypt(&card, golden.result).unwrap();
        assert_eq!(scores.values().len(), exact.len());
        for (score, exact) in scores.values().iter().zip(&exact) {
            // Rounding, five deviations of the noise, each half a step, and the model's error.
            let difference = f64::from(*score) * card.score_step() - exact;
            assert!(difference.abs() < 3.1 * card.score_step(), "{}: {difference}", card.id());
        }
        assert_eq!(card.label(&scores), "normal", "{}", card.id());
    }
}

/// The same result has the same noise: asking again tells nothing new.
#[test]
fn scores_of_a_result_are_always_the_same() {
    let golden = &GOLDEN[1];
    let scores = || golden.engine(1).decrypt(&golden.card(), golden.result).unwrap();
    assert!(scores() == scores());
}

#[test]
fn keys_and_inputs_are_those_that_the_card_asks_for() {
    for golden in &GOLDEN {
        let (card, engine) = (golden.card(), golden.engine(1));
        let keys = engine.evaluation_keys().unwrap();
        assert_eq!(keys, golden.engine(1).evaluation_keys().unwrap());
        assert_ne!(keys, golden.engine(2).evaluation_keys().unwrap());
        let inputs = card.inputs(&Golden::window()).unwrap();
        assert_eq!(inputs.len(), 24);
        let first = engine.encrypt(&card, &inputs, &mut Counter(0)).unwrap();
        let second = engine.encrypt(&card, &inputs, &mut Counter(9)).unwrap();
        assert!(first != second && first.len() == second.len());
        assert!(first.len() <= card.max_ciphertext_len());
        assert!(golden.result.len() <= card.max_result_len());
    }
}

/// Whatever is wrong with a result, it looks the same.
#[test]
fn results_of_others_and_damaged_ones_are_refused_alike() {
    let golden = &GOLDEN[1];
    let (card, engine) = (golden.card(), golden.engine(1));
    let refused = |engine: &dyn Engine, body: &[u8]| engine.decrypt(&card, body).err();
    assert_eq!(refused(&*golden.engine(2), golden.result), Some(EngineError::ForeignKey));
    assert_eq!(refused(&*engine, &[]), Some(EngineError::ForeignKey));
    assert_eq!(refused(&*engine, &golden.result[1..]), Some(EngineError::ForeignKey));
    // An input is no result: it has another level and another number of values.
    let inputs = card.inputs(&Golden::window()).unwrap();
    let input = engine.encrypt(&card, &inputs, &mut Counter(0)).unwrap();
    assert_eq!(refused(&*engine, &input), Some(EngineError::ForeignKey));
    // Scores beyond what the model can give.
    let mut json = golden.json();
    json["score_limit"] = json!(0.001);
    json["error"] = json!(0.0001);
    let narrow = parse(json).unwrap();
    assert_eq!(engine.decrypt(&narrow, golden.result).err(), Some(EngineError::ForeignKey));
    // Another context, and models of another scheme.
    let other = GOLDEN[0].card();
    assert_eq!(engine.decrypt(&other, golden.result).err(), Some(EngineError::ContextMismatch));
    let levels = Inputs::Levels(vec![1; 24].into());
    let scheme = Some(EngineError::Model(ModelError::Scheme));
    assert_eq!(engine.encrypt(&card, &levels, &mut Counter(0)).err(), scheme);
    let tfhe = setup(&Context::tfhe(), &KeySeed::from_bytes([1; 32])).unwrap();
    assert_eq!(tfhe.decrypt(&card, golden.result).err(), Some(EngineError::ContextMismatch));
}

#[test]
fn a_key_decrypts_a_thousand_results_and_no_more() {
    let golden = &GOLDEN[1];
    let (card, engine) = (golden.card(), golden.engine(1));
    for _ in 0..1000 {
        assert!(engine.decrypt(&card, golden.result).is_ok());
    }
    assert!(engine.decrypt(&card, golden.result).is_err());
}

#[test]
fn inputs_are_scaled_and_clamped() {
    let mut json = GOLDEN[1].json();
    for (feature, offset, divisor) in [(0, 1.0, 2.0), (1, -1e9, 1.0), (2, 1e9, 1.0)] {
        json["features"][feature]["statistic"] = json!("max");
        json["features"][feature]["transform"] = json!("none");
        json["features"][feature]["offset"] = json!(offset);
        json["features"][feature]["divisor"] = json!(divisor);
    }
    let card = parse(json).unwrap();
    let Inputs::Values(values) = card.inputs(&Golden::window()).unwrap() else {
        panic!("of another scheme")
    };
    assert_eq!(values[..3], [-0.5, 4.0, -4.0]);
    assert!(Inputs::from_values(&card, &values).is_ok());
    for wrong in [&values[1..], &[4.1; 24][..], &[f64::NAN; 24][..]] {
        let error = ModelError::ValuesMismatch { features: 24, limit: 4.0 };
        assert_eq!(Inputs::from_values(&card, wrong).err(), Some(error));
    }
    assert!(Inputs::from_levels(&card, &[0; 24]).is_err());
}

#[test]
fn cards_come_back_and_wrong_fields_are_refused() {
    for golden in &GOLDEN {
        let card = golden.card();
        assert_eq!(parse(serde_json::to_value(&card).unwrap()).unwrap(), card);
    }
    let refused = |pointer: &str, value: Value| {
        let mut json = GOLDEN[1].json();
        *json.pointer_mut(pointer).expect("the field exists") = value;
        assert!(parse(json).is_err(), "{pointer}");
    };
    refused("/format", json!(2));
    refused("/scheme", json!("bfv"));
    refused("/id", json!("a/b"));
    refused("/kind", json!("mlp"));
    refused("/method", json!("dot"));
    refused("/context", json!("0".repeat(64)));
    refused("/parameters/poly_modulus_degree", json!(8192));
    refused("/parameters/rotations", json!([1, 1]));
    refused("/window/samples", json!(0));
    refused("/features/0/channel", json!(6));
    refused("/features/0/divisor", json!(0.0));
    refused("/input_limit", json!(-1.0));
    refused("/input_limit", json!(1e9));
    refused("/block", json!(32));
    refused("/windows", json!(2));
    refused("/labels", json!(["one"]));
    refused("/result/primes", json!(2));
    refused("/result/ciphertexts", json!(2));
    refused("/score_limit", json!(0.0));
    refused("/score_limit", json!(16.0));
    refused("/error", json!(0.0));
    refused("/precision", json!(0.0005));
    let mut json = GOLDEN[1].json();
    json["precision"] = json!(0.0001);
    json["error"] = json!(0.0001);
    assert!(parse(json).is_err(), "finer than the noise");
    let mut json = GOLDEN[1].json();
    json["surplus"] = json!(1);
    assert!(parse(json).is_err());
}

/// The example of docs/protocol.md.
#[test]
fn the_example_of_the_protocol_has_its_id() {
    let parameters = CkksParameters {
        poly_modulus_degree: 4096,
        coeff_mod_bit_sizes: vec![33, 28, 45],
        global_scale: 268_369_921.0,
        public_key: false,
        relinearisation_keys: false,
        rotations: vec![1, 2, 4, 8, 16],
    };
    let context = Context::ckks(parameters.clone()).unwrap();
    assert_eq!(
        ContextDigest::from(&context).to_string(),
        "f191f2ce25993e1c6ad90eed18d4f713891d8ceaaaa50cec09efdd6ca9c75b87"
    );
    assert_eq!(Context::from_canonical_bytes(&context.canonical_bytes()), Ok(context));
    let weak = CkksParameters { coeff_mod_bit_sizes: vec![40, 30, 40], ..parameters.clone() };
    assert_eq!(
        Context::ckks(weak),
        Err(ContextError::WeakModulus { degree: 4096, modulus_bits: 110, most: 109 })
    );
    for broken in [
        CkksParameters { poly_modulus_degree: 2048, ..parameters.clone() },
        CkksParameters { coeff_mod_bit_sizes: vec![50, 50], ..parameters.clone() },
        CkksParameters { coeff_mod_bit_sizes: vec![19, 28, 45], ..parameters.clone() },
        CkksParameters { global_scale: 1.0, ..parameters.clone() },
        CkksParameters { global_scale: f64::NAN, ..parameters.clone() },
        CkksParameters { rotations: vec![], ..parameters.clone() },
        CkksParameters { rotations: vec![2, 1], ..parameters.clone() },
        CkksParameters { rotations: vec![0], ..parameters.clone() },
        CkksParameters { rotations: vec![2048], ..parameters },
    ] {
        assert!(matches!(Context::ckks(broken), Err(ContextError::Malformed(_))));
    }
}

proptest! {
    #[test]
    fn arbitrary_contexts_and_results_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let headed = [&b"moai-fhe\x01\x02"[..], &bytes].concat();
        prop_assert!(Context::from_canonical_bytes(&headed).is_err());
        let golden = &GOLDEN[1];
        prop_assert!(golden.engine(1).decrypt(&golden.card(), &bytes).is_err());
    }
}
