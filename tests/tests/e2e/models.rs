//! The shipped models, in the clear: the robot's features and tables are the training's.

use anyhow::{Context, Result, ensure};
use moai_fhe::{Model, Window};
use moai_tests::recordings::{CHANNELS, SAMPLES};
use serde_json::Value;

use crate::stage::trials;

#[test]
fn every_model_scores_every_recording_as_its_training_did() -> Result<()> {
    let directory = moai_tests::repository().join("server");
    let expected = std::fs::read(directory.join("training/expected.json"))?;
    let expected: Value = serde_json::from_slice(&expected)?;
    let expected = expected["trials"].as_array().context("expected.json lists trials")?;
    let trials = trials()?;
    ensure!(trials.len() == expected.len(), "{} trials, {}", trials.len(), expected.len());
    for id in ["grasp", "failure", "force-alarm"] {
        let json = std::fs::read(directory.join("models").join(id).with_extension("json"))?;
        let model = Model::from_json(&json)?;
        for (trial, expected) in trials.iter().zip(expected) {
            let values = trial.samples.as_flattened().iter().copied().map(f64::from);
            let inputs = model.card().inputs(&Window::new(SAMPLES, CHANNELS, values)?)?;
            let scores = model.evaluate_clear(&inputs)?;
            let (name, expected) = (&expected["trial"], &expected[id]);
            let trained: Vec<i32> = serde_json::from_value(expected["scores"].clone())?;
            assert_eq!(trained, scores.values(), "{id} on {name}");
            assert_eq!(expected["label"], model.card().label(&scores), "{id} on {name}");
        }
    }
    Ok(())
}
