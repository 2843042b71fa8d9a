//! A scheme without secrecy and without cost: the keys are a tag, a ciphertext is the tag and the
//! levels, and evaluating says them back. A job that is computed with another robot's keys, and an
//! answer that reaches another robot, are refused all the same.

use std::sync::{Arc, LazyLock};

use moai_agent::engines::Engines;
use moai_fhe::{Context, Engine, EngineError, Entropy, Inputs, KeySeed, Model, ModelCard, Scores};
use moai_server::engine::{EngineError as Refusal, PreparedKeys};
use moai_transport::ids::{ContextId, Digest, ModelId};
use zeroize::Zeroizing;

/// Of a session's keys.
const TAG_LEN: usize = 8;
/// Tiny: less than one chunk.
const KEYS_LEN: usize = 1024;
/// Digits of a window's number.
const DIGITS: u32 = 3;
const BASE: u16 = 16;
/// Numbers that windows can have.
pub const NUMBERS: u16 = BASE.pow(DIGITS);
/// The one model.
pub const MODEL: &str = "number";

/// A model whose only score is the number of the window.
static CARD: LazyLock<Option<ModelCard>> = LazyLock::new(|| {
    let edges: Vec<f64> = (1..BASE).map(|edge| f64::from(edge) - 0.5).collect();
    let table: Vec<u16> = (0..BASE).map(|digit| u16::from(digit + 1 == BASE)).collect();
    let features: Vec<_> = (0..DIGITS)
        .map(|channel| {
            serde_json::json!({
                "channel": channel, "statistic": "mean", "transform": "none", "edges": edges,
            })
        })
        .collect();
    let json = serde_json::json!({
        "format": 1, "id": MODEL, "kind": "lookup", "levels": BASE,
        "window": {"samples": 1, "channels": ["high", "middle", "low"]},
        "labels": ["no", "yes"], "features": features,
        "tables": [[table], [table], [table]], "bias": [0], "provenance": {},
    });
    Some(Model::from_json(json.to_string().as_bytes()).ok()?.card().clone())
});

/// A window of this number, as onboard software sends it.
#[must_use]
pub fn window(number: u16) -> String {
    let digits = [number / BASE / BASE % BASE, number / BASE % BASE, number % BASE];
    serde_json::json!(digits).to_string()
}

/// Makes the robots' half.
#[derive(Debug)]
pub struct TinyEngines;

struct TinyEngine {
    tag: [u8; TAG_LEN],
}

impl Engines for TinyEngines {
    fn setup(&self, _: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError> {
        let Digest(digest) = Digest::of(seed.expose());
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(digest.first_chunk::<TAG_LEN>().ok_or(EngineError::ForeignKey)?);
        Ok(Box::new(TinyEngine { tag }))
    }
}

impl Engine for TinyEngine {
    fn evaluation_keys(&self) -> Result<Vec<u8>, EngineError> {
        Ok(self.tag.into_iter().cycle().take(KEYS_LEN).collect())
    }

    fn encrypt(
        &self,
        _: &ModelCard,
        inputs: &Inputs,
        _: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError> {
        Ok([&self.tag, inputs.levels()].concat())
    }

    fn decrypt(&self, _: &ModelCard, body: &[u8]) -> Result<Scores, EngineError> {
        let (tag, levels) = body.split_first_chunk::<TAG_LEN>().ok_or(EngineError::ForeignKey)?;
        if *tag != self.tag {
            return Err(EngineError::ForeignKey);
        }
        let number =
            levels.iter().fold(0, |number, level| number * i32::from(BASE) + i32::from(*level));
        Ok(Scores::new(Zeroizing::new(vec![number])))
    }
}

/// The server's half.
#[derive(Debug)]
pub struct TinyServer;

struct TinyKeys {
    tag: Vec<u8>,
}

impl moai_server::engine::Engine for TinyServer {
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
        let cards: Vec<&ModelCard> =
            CARD.iter().filter(|card| models.iter().any(|id| id.as_ref() == card.id())).collect();
        let mut bytes = Vec::new();
        // Cards are plain data, which CBOR can say, and a vector takes what it is given.
        if ciborium::into_writer(&cards, &mut bytes).is_err() {
            bytes.clear();
        }
        bytes
    }

    fn prepare(&self, keys: &[u8]) -> Result<Arc<dyn PreparedKeys>, Refusal> {
        let tag = keys.first_chunk::<TAG_LEN>();
        let tag = tag.ok_or_else(|| Refusal::Keys("they are too short".to_owned()))?;
        Ok(Arc::new(TinyKeys { tag: tag.to_vec() }))
    }
}

impl PreparedKeys for TinyKeys {
    fn evaluate(&self, _: &ModelId, input: &[u8]) -> Result<Vec<u8>, Refusal> {
        if input.starts_with(&self.tag) {
            Ok(input.to_vec())
        } else {
            Err(Refusal::Input("it was encrypted with other keys".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use moai_agent::secrets::OsEntropy;
    use moai_fhe::Window;
    use moai_server::engine::Engine as _;

    use super::*;

    fn keys(seed: u8) -> Box<dyn Engine> {
        TinyEngines.setup(&Context::tfhe(), &KeySeed::from_bytes([seed; 32])).unwrap()
    }

    fn encrypt(engine: &dyn Engine, number: u16) -> Vec<u8> {
        let card = CARD.as_ref().unwrap();
        let digits: Vec<f64> = serde_json::from_str(&window(number)).unwrap();
        let inputs = card.inputs(&Window::new(1, 3, digits).unwrap()).unwrap();
        engine.encrypt(card, &inputs, &mut OsEntropy).unwrap()
    }

    #[test]
    fn the_answer_is_the_windows_number() {
        let (engine, card) = (keys(1), CARD.as_ref().unwrap());
        let prepared = TinyServer.prepare(&engine.evaluation_keys().unwrap()).unwrap();
        let model = MODEL.parse().unwrap();
        for number in [0, 1, 15, 16, 300, NUMBERS - 1] {
            let answer = prepared.evaluate(&model, &encrypt(&*engine, number)).unwrap();
            let scores = engine.decrypt(card, &answer).unwrap();
            assert_eq!(scores.values(), [i32::from(number)]);
        }
    }

    #[test]
    fn nothing_of_other_keys_is_computed_or_decrypted() {
        let (one, two, card) = (keys(1), keys(2), CARD.as_ref().unwrap());
        let prepared = TinyServer.prepare(&one.evaluation_keys().unwrap()).unwrap();
        let foreign = encrypt(&*two, 7);
        assert!(prepared.evaluate(&MODEL.parse().unwrap(), &foreign).is_err());
        assert!(one.decrypt(card, &foreign).is_err());
        assert!(TinyServer.prepare(&[1; TAG_LEN - 1]).is_err());
    }
}
