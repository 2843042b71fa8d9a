//! An engine with keys of a few bytes, both halves, for what is about the way of jobs and not about
//! FHE: it takes microseconds where TFHE takes a third of a second.
//!
//! Its one model counts: a window says its own number, and so does the answer, in the label and in the
//! scores. An answer to another window, or to a window that is not made of one window's samples, is
//! another answer.
//!
//! Nothing of it hides anything.

use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};

use moai_agent::engines::Engines;
use moai_fhe::{
    Context, ContextDigest, Engine, EngineError, Entropy, FormatError, Inputs, KeySeed, ModelCard,
    Scores,
};
use moai_server::engine::{self, PreparedKeys};
use moai_transport::ids::{ContextId, Digest, ModelId};
use serde_json::json;
use zeroize::Zeroizing;

/// The model.
pub const MODEL: &str = "count";
/// Samples of a window.
pub const SAMPLES: u64 = 15;
/// Values of a sample.
pub const CHANNELS: usize = 6;
/// Windows that have a number of their own.
pub const WINDOWS: u64 = 4096;
/// How many labels there are.
const LABELS: u8 = 8;
/// Stands in keys and ciphertexts, and says whose they are.
const TAG_LEN: usize = 8;
const KEYS_LEN: usize = 512;

type Tag = [u8; TAG_LEN];

static CARD: LazyLock<ModelCard> = LazyLock::new(|| {
    let edges: Vec<f64> = (0..15).map(|edge| f64::from(edge) + 0.5).collect();
    let features: Vec<_> = (0..4)
        .map(|channel| {
            json!({"channel": channel, "statistic": "mean", "transform": "none", "edges": edges})
        })
        .collect();
    let labels: Vec<String> = (0..LABELS).map(|label| label.to_string()).collect();
    let card = json!({
        "format": 1, "id": MODEL, "kind": "lookup", "levels": 16, "score_bits": 5,
        "context": String::from(ContextDigest::from(&Context::tfhe())),
        "window": {"samples": SAMPLES, "channels": ["high", "middle", "low", "parity", "x", "y"]},
        "features": features, "labels": labels,
    });
    serde_json::from_value(card).expect("this is a card")
});

/// The values of a sample; `index` counts over all windows.
#[must_use]
pub fn sample(index: u64) -> [u8; CHANNELS] {
    let window = index / SAMPLES % WINDOWS;
    let digit = |shift: u32| u8::try_from(window >> shift & 15).unwrap_or_default();
    // The parity is 0 or 15 only if all of a window's samples are of one window.
    [digit(8), digit(4), digit(0), digit(0) % 2 * 15, 7, u8::try_from(index % 100).unwrap_or(0)]
}

/// The window that a right answer answers; none if it is no right answer to any.
#[must_use]
pub fn answered(answer: &serde_json::Value) -> Option<u64> {
    let window = answer["scores"][0].as_i64()?.unsigned_abs();
    let label: u64 = answer["label"].as_str()?.parse().ok()?;
    let is_right = label == window % u64::from(LABELS) && window < WINDOWS;
    is_right.then_some(window)
}

fn tag(seed: &KeySeed) -> Tag {
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&Digest::of(seed.expose()).0[..TAG_LEN]);
    tag
}

/// The robot's half.
pub struct TinyEngines;

impl Engines for TinyEngines {
    fn setup(&self, _: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(TinyEngine(tag(seed))))
    }
}

struct TinyEngine(Tag);

impl Engine for TinyEngine {
    fn evaluation_keys(&self) -> Result<Vec<u8>, EngineError> {
        Ok(self.0.into_iter().cycle().take(KEYS_LEN).collect())
    }

    fn encrypt(
        &self,
        _: &ModelCard,
        inputs: &Inputs,
        _: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError> {
        Ok([&self.0, inputs.levels()].concat())
    }

    fn decrypt(&self, _: &ModelCard, body: &[u8]) -> Result<Scores, EngineError> {
        let (tag, scores) = body.split_first_chunk().ok_or(EngineError::ForeignKey)?;
        if *tag != self.0 {
            return Err(EngineError::ForeignKey);
        }
        let (scores, rest) = scores.as_chunks();
        if !rest.is_empty() || scores.len() != CARD.score_count() {
            return Err(EngineError::Malformed(FormatError::Shape));
        }
        let scores = scores.iter().copied().map(i32::from_le_bytes).collect();
        Ok(Scores::new(Zeroizing::new(scores)))
    }
}

/// The server's half.
#[derive(Default)]
pub struct TinyServer(Gate);

/// Nothing is computed while it is shut.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Shuts or opens.
    pub fn set_shut(&self, is_shut: bool) {
        let (state, changed) = &*self.0;
        *state.lock().unwrap_or_else(PoisonError::into_inner) = is_shut;
        changed.notify_all();
    }

    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut is_shut = state.lock().unwrap_or_else(PoisonError::into_inner);
        while *is_shut {
            is_shut = changed.wait(is_shut).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl TinyServer {
    /// One that computes while this is open.
    #[must_use]
    pub fn behind(gate: &Gate) -> Self {
        Self(gate.clone())
    }
}

impl engine::Engine for TinyServer {
    fn context(&self) -> ContextId {
        ContextId(Digest(Context::tfhe().digest()))
    }

    fn max_key_len(&self) -> u64 {
        KEYS_LEN as u64
    }

    fn models(&self) -> Vec<ModelId> {
        MODEL.parse().into_iter().collect()
    }

    fn catalogue(&self, models: &[ModelId]) -> Vec<u8> {
        let cards = vec![&*CARD; models.len()];
        let mut bytes = Vec::new();
        ciborium::into_writer(&cards, &mut bytes).expect("a card is plain data");
        bytes
    }

    fn prepare(&self, keys: &[u8]) -> Result<Arc<dyn PreparedKeys>, engine::EngineError> {
        let tag = keys.first_chunk().filter(|_| keys.len() == KEYS_LEN);
        let tag = tag.ok_or_else(|| engine::EngineError::Keys("these are no keys".to_owned()))?;
        Ok(Arc::new(TinyKeys { tag: *tag, gate: self.0.clone() }))
    }
}

struct TinyKeys {
    tag: Tag,
    gate: Gate,
}

impl PreparedKeys for TinyKeys {
    fn evaluate(&self, _: &ModelId, input: &[u8]) -> Result<Vec<u8>, engine::EngineError> {
        self.gate.pass();
        let wrong = || engine::EngineError::Input("this is no input".to_owned());
        let (tag, levels) = input.split_first_chunk().ok_or_else(wrong)?;
        let [digits @ .., parity] = <[u8; 4]>::try_from(levels).map_err(|_| wrong())?;
        if *tag != self.tag {
            return Err(wrong());
        }
        let window = digits.iter().fold(0, |window, digit| window * 16 + i32::from(*digit));
        let is_whole = i32::from(parity) == window % 2 * 15;
        // The largest positive score names the label; for the first label there is none.
        let (number, label) =
            if is_whole { (window, window % i32::from(LABELS)) } else { (i32::MAX, 0) };
        let rows = 1..i32::from(LABELS);
        let scores = rows.map(|row| if row == label { number } else { -number });
        Ok(self.tag.into_iter().chain(scores.flat_map(i32::to_le_bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use moai_fhe::Window;
    use moai_server::engine::Engine as _;

    use super::*;

    /// What comes back of 15 samples from this one on.
    fn answer(from: u64) -> serde_json::Value {
        struct NoEntropy;
        impl Entropy for NoEntropy {
            fn fill(&mut self, _: &mut [u8]) -> Result<(), moai_fhe::EntropyError> {
                Err(moai_fhe::EntropyError)
            }
        }
        let robot = TinyEngines.setup(&Context::tfhe(), &KeySeed::from_bytes([3; 32])).unwrap();
        let keys = TinyServer::default().prepare(&robot.evaluation_keys().unwrap()).unwrap();
        let values = (from..from + SAMPLES).flat_map(sample).map(f64::from);
        let window = Window::new(15, CHANNELS, values).unwrap();
        let input = robot.encrypt(&CARD, &CARD.inputs(&window).unwrap(), &mut NoEntropy).unwrap();
        let output = keys.evaluate(&MODEL.parse().unwrap(), &input).unwrap();
        let scores = robot.decrypt(&CARD, &output).unwrap();
        json!({"label": CARD.label(&scores), "scores": scores.values()})
    }

    #[test]
    fn every_window_says_its_number_and_a_shifted_one_says_none() {
        for window in 0..WINDOWS {
            assert_eq!(answered(&answer(window * SAMPLES)), Some(window));
        }
        for shift in 1..SAMPLES {
            assert_eq!(answered(&answer(17 * SAMPLES + shift)), None, "{shift}");
        }
        let mut wrong = answer(17 * SAMPLES);
        wrong["label"] = "2".into();
        assert_eq!(answered(&wrong), None);
    }
}
