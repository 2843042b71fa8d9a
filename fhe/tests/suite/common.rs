//! One key set for all tests, and models written as JSON.

use std::sync::LazyLock;

use moai_fhe::{
    Context, Engine, Entropy, EntropyError, EvaluationKeys, Inputs, KeySeed, Model, Scores, setup,
};
use serde_json::{Value, json};

/// Evaluation keys of [`engine`].
pub(crate) static KEY_BYTES: LazyLock<Vec<u8>> =
    LazyLock::new(|| engine().evaluation_keys().expect("the engine makes keys"));

/// The same, unpacked.
pub(crate) static KEYS: LazyLock<EvaluationKeys> = LazyLock::new(|| {
    EvaluationKeys::from_bytes(&Context::tfhe(), &KEY_BYTES).expect("the keys are well-formed")
});

/// The engine whose keys are [`KEYS`].
pub(crate) fn engine() -> Box<dyn Engine> {
    engine_of([1; 32])
}

/// The engine of another session.
pub(crate) fn engine_of(seed: [u8; 32]) -> Box<dyn Engine> {
    setup(&Context::tfhe(), &KeySeed::from_bytes(seed)).expect("the context is known")
}

/// Entropy that never repeats and needs no operating system.
pub(crate) struct Counter(pub(crate) u64);

impl Entropy for Counter {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        for chunk in out.chunks_mut(8) {
            self.0 += 1;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// A model file whose features are the means of as many channels, with edges 1, 2, 3, ….
pub(crate) fn model_json(kind: &str, levels: u8, tables: &[Vec<Vec<i32>>], bias: &[i32]) -> Value {
    let channels: Vec<String> = (0..tables.len()).map(|c| format!("channel {c}")).collect();
    let features: Vec<Value> = (0..tables.len())
        .map(|channel| {
            let edges: Vec<u8> = (1..levels).collect();
            json!({"channel": channel, "statistic": "mean", "transform": "none", "edges": edges})
        })
        .collect();
    let scores = tables.first().map_or(1, Vec::len);
    let labels: Vec<String> = (0..=scores).map(|label| format!("label {label}")).collect();
    json!({
        "format": 1, "id": "test-model", "kind": kind, "levels": levels,
        "window": {"samples": 1, "channels": channels},
        "features": features, "labels": labels, "tables": tables, "bias": bias,
        "provenance": {"made by": "a test"},
    })
}

/// The model of such a file.
pub(crate) fn model(kind: &str, levels: u8, tables: &[Vec<Vec<i32>>], bias: &[i32]) -> Model {
    parse(&model_json(kind, levels, tables, bias)).expect("the model is valid")
}

/// Reads a model file.
pub(crate) fn parse(json: &Value) -> Result<Model, moai_fhe::ModelError> {
    Model::from_json(json.to_string().as_bytes())
}

/// Levels of the model's features.
pub(crate) fn levels(model: &Model, values: &[u8]) -> Inputs {
    Inputs::from_levels(model.card(), values).expect("the levels fit the model")
}

/// What the robot sends, what the server answers, what the robot reads.
pub(crate) fn round_trip(model: &Model, levels: &Inputs, entropy: u64) -> Scores {
    let engine = engine();
    let input =
        engine.encrypt(model.card(), levels, &mut Counter(entropy)).expect("the levels encrypt");
    assert_eq!(input.len(), model.card().max_ciphertext_len());
    let result = model.evaluate(&KEYS, &input).expect("the input evaluates");
    assert_eq!(result.len(), model.card().max_result_len());
    engine.decrypt(model.card(), &result).expect("the result decrypts")
}
