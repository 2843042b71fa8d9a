//! Models in the clear, as their owner has them: what encrypted decisions are compared with.
//!
//! Invariant: a reference computes on readings, from the file that the server serves; nothing of the
//! agent's or the server's is used but the features that the model's card defines.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use moai_fhe::{CkksParameters, Context, ContextDigest, Inputs, Model, ModelCard, Window};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::recordings::{CHANNELS, SAMPLES, Trial};

/// How a model is encrypted, and with that who serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Scheme {
    /// TFHE, by `moai-server`.
    Tfhe,
    /// CKKS, by the TenSEAL server.
    Ckks,
}

impl Scheme {
    /// Where the models of the repository lie.
    #[must_use]
    pub fn models(self) -> PathBuf {
        crate::repository().join(match self {
            Self::Tfhe => "server/models",
            Self::Ckks => "server/tenseal/models",
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tfhe => "TFHE",
            Self::Ckks => "CKKS",
        })
    }
}

/// A released score of CKKS differs from the exact one by fewer steps: rounding, five deviations of the
/// noise, each half a step, and the model's error.
pub const RELEASE_STEPS: f64 = 3.1;

/// A model that computes on readings.
#[derive(Debug, Clone)]
pub struct Reference {
    card: ModelCard,
    provenance: BTreeMap<String, String>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Tfhe(Box<Model>),
    Ckks(Vec<Layer>),
}

/// A layer of a CKKS model: `weights[input][output]`. Between layers values are squared.
#[derive(Debug, Clone, Deserialize)]
struct Layer {
    weights: Vec<Vec<f64>>,
    bias: Vec<f64>,
}

impl Layer {
    fn apply(&self, inputs: &[f64]) -> Vec<f64> {
        let mut outputs = self.bias.clone();
        for (input, row) in inputs.iter().zip(&self.weights) {
            for (output, weight) in outputs.iter_mut().zip(row) {
                *output += input * weight;
            }
        }
        outputs
    }

    /// The same with magnitudes: no inputs below these give more.
    fn bound(&self, inputs: &[f64]) -> Vec<f64> {
        let magnitude = |row: &Vec<f64>| row.iter().map(|weight| weight.abs()).collect();
        let weights = self.weights.iter().map(magnitude).collect();
        let bias = self.bias.iter().map(|bias| bias.abs()).collect();
        Self { weights, bias }.apply(inputs)
    }
}

fn through(
    layers: &[Layer],
    inputs: Vec<f64>,
    apply: impl Fn(&Layer, &[f64]) -> Vec<f64>,
) -> Vec<f64> {
    layers.iter().enumerate().fold(inputs, |values, (index, layer)| {
        let squared: Vec<f64>;
        let values = if index == 0 {
            &values
        } else {
            squared = values.iter().map(|value| value * value).collect();
            &squared
        };
        apply(layer, values)
    })
}

impl Reference {
    /// The model with this id, from the files that the server serves.
    ///
    /// # Errors
    /// The file is missing or no model.
    pub fn load(scheme: Scheme, id: &str) -> Result<Self> {
        let path = scheme.models().join(id).with_extension("json");
        let json = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let parsed = match scheme {
            Scheme::Tfhe => tfhe(&json),
            Scheme::Ckks => ckks(&json),
        };
        parsed.with_context(|| format!("{} is no model", path.display()))
    }

    /// Its card.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Where it comes from, in free text.
    #[must_use]
    pub fn provenance(&self, key: &str) -> Option<&str> {
        self.provenance.get(key).map(String::as_str)
    }

    /// What it says of a recording.
    ///
    /// # Errors
    /// The model reads windows of another shape.
    pub fn label(&self, trial: &Trial) -> Result<String> {
        let mut best = (0, 0.0);
        for (index, score) in self.scores(trial)?.into_iter().enumerate() {
            if score > best.1 {
                best = (index + 1, score);
            }
        }
        self.card.labels().get(best.0).cloned().context("more scores than labels")
    }

    /// The labels that a release of the scores may have for a recording: where two scores are closer to
    /// each other than the noise of a release, either may come out ahead.
    ///
    /// # Errors
    /// The model reads windows of another shape.
    pub fn possible_labels(&self, trial: &Trial) -> Result<Vec<String>> {
        let noise = match self.kind {
            Kind::Tfhe(_) => 0.0,
            Kind::Ckks(_) => RELEASE_STEPS * self.card.score_step(),
        };
        // The first label's score is 0, and exactly that.
        let scores = self.scores(trial)?;
        let lowest = scores.iter().fold(0.0, |most: f64, score| most.max(score - noise));
        let highest = [0.0].into_iter().chain(scores.iter().map(|score| score + noise));
        let named = self.card.labels().iter().zip(highest);
        Ok(named.filter(|(_, most)| *most >= lowest).map(|(label, _)| label.clone()).collect())
    }

    /// The scores of all labels but the first, whose score is 0.
    ///
    /// # Errors
    /// The model reads windows of another shape.
    pub fn scores(&self, trial: &Trial) -> Result<Vec<f64>> {
        let values = trial.samples.as_flattened().iter().copied();
        let inputs = self.card.inputs(&Window::new(SAMPLES, CHANNELS, values.map(f64::from))?)?;
        match (&self.kind, &inputs) {
            (Kind::Tfhe(model), _) => {
                let scores = model.evaluate_clear(&inputs)?;
                Ok(scores.values().iter().map(|score| f64::from(*score)).collect())
            }
            (Kind::Ckks(layers), Inputs::Values(values)) => {
                Ok(through(layers, values.to_vec(), Layer::apply))
            }
            _ => bail!("the card has the inputs of another scheme"),
        }
    }
}

fn tfhe(json: &[u8]) -> Result<Reference> {
    let model = Model::from_json(json)?;
    let (card, provenance) = (model.card().clone(), model.provenance().clone());
    Ok(Reference { card, provenance, kind: Kind::Tfhe(Box::new(model)) })
}

/// A file of the TenSEAL server. What its card says beyond the file follows from it.
fn ckks(json: &[u8]) -> Result<Reference> {
    let mut fields: BTreeMap<String, Value> = serde_json::from_slice(json)?;
    let mut take = |key: &str| fields.remove(key).with_context(|| format!("no {key}"));
    let layers: Vec<Layer> = serde_json::from_value(take("layers")?)?;
    let provenance = serde_json::from_value(take("provenance")?)?;
    let field = |key: &str| fields.get(key).with_context(|| format!("no {key}"));
    let parameters: CkksParameters = serde_json::from_value(field("parameters")?.clone())?;
    let features = field("features")?.as_array().map_or(0, Vec::len);
    let limit = field("input_limit")?.as_f64().context("the input limit is a number")?;
    let scores = layers.last().map_or(0, |layer| layer.bias.len());
    let ciphertexts = if field("method")? == "dot" { scores } else { 1 };
    let bounds = through(&layers, vec![limit; features], Layer::bound);
    let context = ContextDigest::from(&Context::ckks(parameters)?);
    let more = json!({
        "scheme": "ckks",
        "context": serde_json::to_value(context)?,
        // All models of the repository use up their levels.
        "result": {"ciphertexts": ciphertexts, "primes": 1},
        "score_limit": bounds.into_iter().fold(0.0, f64::max),
    });
    fields.extend(more.as_object().cloned().unwrap_or_default());
    let card = serde_json::from_value(serde_json::to_value(fields)?)?;
    Ok(Reference { card, provenance, kind: Kind::Ckks(layers) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recordings;

    /// What `fhe`'s tests know of the TenSEAL server.
    #[test]
    fn a_card_is_the_one_that_the_server_gives_out() {
        for id in ["failure-linear", "grasp-linear", "grasp-mlp"] {
            let path = format!("fhe/tests/golden/ckks/{id}.card.json");
            let card = fs::read(crate::repository().join(path)).unwrap();
            let mut card: Value = serde_json::from_slice(&card).unwrap();
            let ours = Reference::load(Scheme::Ckks, id).unwrap();
            let mut ours = serde_json::to_value(ours.card()).unwrap();
            let [limit, our_limit] =
                [&mut card, &mut ours].map(|card| card["score_limit"].take().as_f64().unwrap());
            // Sums in another order differ in the last bits.
            assert!((limit - our_limit).abs() < 1e-9 * limit, "{limit} {our_limit}");
            assert_eq!(ours, card);
        }
    }

    #[test]
    fn a_decision_is_among_those_that_are_possible() {
        let trials = recordings::distinct(recordings::load(&recordings::directory()).unwrap());
        let mut close = 0;
        for (scheme, id) in [(Scheme::Tfhe, "grasp"), (Scheme::Ckks, "grasp-linear")] {
            let reference = Reference::load(scheme, id).unwrap();
            for trial in &trials {
                let (label, possible) =
                    (reference.label(trial).unwrap(), reference.possible_labels(trial).unwrap());
                assert!(possible.contains(&label), "{label} is not in {possible:?}");
                assert!(scheme == Scheme::Ckks || possible.len() == 1, "{id}: {possible:?}");
                close += possible.len() - 1;
            }
        }
        assert!((1..20).contains(&close), "{close} decisions are close");
    }

    #[test]
    fn models_are_as_good_as_their_training_says() {
        let trials = recordings::distinct(recordings::load(&recordings::directory()).unwrap());
        for (scheme, id, least) in [
            (Scheme::Tfhe, "grasp", 251),
            (Scheme::Ckks, "grasp-linear", 226),
            (Scheme::Ckks, "grasp-mlp", 226),
        ] {
            let reference = Reference::load(scheme, id).unwrap();
            let is_right = |trial: &&Trial| {
                let outcome = trial.outcome().map(|outcome| outcome.to_string());
                outcome == reference.label(trial).ok()
            };
            let right = trials.iter().filter(is_right).count();
            assert!(right >= least, "{id}: {right} of {}", trials.len());
        }
    }
}
