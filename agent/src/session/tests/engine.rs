//! An engine with keys of a few bytes, and a witness of what is decrypted with them.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use moai_fhe::{Context, Engine, EngineError, Entropy, Inputs, KeySeed, Model, ModelCard, Scores};
use moai_transport::ids::Digest;
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::engines::Engines;
use crate::vault::Vault;

/// Stands in a ciphertext and says whose it is.
pub(super) const TAG_LEN: usize = 8;
/// More than one chunk.
const KEYS_LEN: usize = 125_000;

/// A model whose only score is the number of the window.
pub(super) static CARD: LazyLock<ModelCard> = LazyLock::new(|| {
    let edges: Vec<f64> = (0..15).map(|edge| f64::from(edge) + 0.5).collect();
    let mut table = [0; 16];
    table[15] = 1;
    let features: Vec<_> = (0..3)
        .map(|channel| {
            serde_json::json!({
                "channel": channel, "statistic": "mean", "transform": "none", "edges": edges,
            })
        })
        .collect();
    let json = serde_json::json!({
        "format": 1, "id": "tiny", "kind": "lookup", "levels": 16,
        "window": {"samples": 1, "channels": ["high", "middle", "low"]},
        "labels": ["no", "yes"], "features": features,
        "tables": [[table], [table], [table]], "bias": [0], "provenance": {},
    });
    Model::from_json(json.to_string().as_bytes()).unwrap().card().clone()
});

/// The window of a number, as onboard software sends it.
pub(super) fn window(number: u16) -> String {
    let digits = [number / 256 % 16, number / 16 % 16, number % 16];
    serde_json::json!(digits).to_string()
}

/// What went wrong where no test can look.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    pub(super) fn add(&self, fault: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault.into());
    }

    pub(super) fn check(&self) {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(faults.is_empty(), "{faults:?}");
    }
}

/// Makes tiny engines.
pub(super) struct TinyEngines {
    pub(super) vault: Arc<Vault>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) faults: Faults,
}

struct TinyEngine {
    seed: [u8; 32],
    vault: Arc<Vault>,
    clock: Arc<dyn Clock>,
    faults: Faults,
}

impl Engines for TinyEngines {
    fn setup(&self, _: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(TinyEngine {
            seed: *seed.expose(),
            vault: Arc::clone(&self.vault),
            clock: Arc::clone(&self.clock),
            faults: self.faults.clone(),
        }))
    }
}

impl TinyEngine {
    fn tag(&self) -> [u8; TAG_LEN] {
        *Digest::of(&self.seed).0.first_chunk().unwrap()
    }

    /// Whether the vault has a session of these keys whose time is not over.
    fn is_live(&self) -> bool {
        self.vault.load().unwrap().into_iter().flatten().any(|record| {
            record.seed.fhe_seed("tfhe").expose() == &self.seed
                && record.facts.expires > self.clock.boot()
        })
    }
}

impl Engine for TinyEngine {
    fn evaluation_keys(&self) -> Result<Vec<u8>, EngineError> {
        Ok(self.tag().into_iter().cycle().take(KEYS_LEN).collect())
    }

    fn encrypt(
        &self,
        _: &ModelCard,
        inputs: &Inputs,
        _: &mut dyn Entropy,
    ) -> Result<Vec<u8>, EngineError> {
        Ok([&self.tag(), inputs.levels()].concat())
    }

    fn decrypt(&self, _: &ModelCard, body: &[u8]) -> Result<Scores, EngineError> {
        if !self.is_live() {
            self.faults.add("something is decrypted with the keys of a session that is over");
        }
        let (tag, levels) = body.split_first_chunk().ok_or(EngineError::ForeignKey)?;
        if *tag != self.tag() || levels.len() != 3 {
            return Err(EngineError::ForeignKey);
        }
        let number = levels.iter().fold(0, |number, level| number * 16 + i32::from(*level));
        Ok(Scores::new(Zeroizing::new(vec![number])))
    }
}
