//! TFHE, by way of `moai-fhe`.

use std::sync::Arc;

use moai_fhe::{Context, EvaluationError, EvaluationKeys, MAX_EVALUATION_KEY_LEN, ModelCard};
use moai_transport::ids::{ContextId, Digest, ModelId};

use super::{Engine, EngineError, PreparedKeys};
use crate::models::Models;

/// The engine of the TFHE context that `moai-fhe` computes in.
pub struct TfheEngine {
    context: Context,
    models: Arc<Models>,
}

impl TfheEngine {
    /// An engine that computes these models.
    #[must_use]
    pub fn new(models: Models) -> Self {
        Self { context: Context::tfhe(), models: Arc::new(models) }
    }
}

impl Engine for TfheEngine {
    fn context(&self) -> ContextId {
        ContextId(Digest(self.context.digest()))
    }

    fn max_key_len(&self) -> u64 {
        MAX_EVALUATION_KEY_LEN as u64
    }

    fn models(&self) -> Vec<ModelId> {
        self.models.ids().cloned().collect()
    }

    fn catalogue(&self, models: &[ModelId]) -> Vec<u8> {
        let models = models.iter().filter_map(|id| self.models.get(id));
        let cards: Vec<&ModelCard> = models.map(|model| model.card()).collect();
        let mut bytes = Vec::new();
        // Cards are plain data, which CBOR can say, and a vector takes what it is given.
        if ciborium::into_writer(&cards, &mut bytes).is_err() {
            bytes.clear();
        }
        bytes
    }

    fn prepare(&self, keys: &[u8]) -> Result<Arc<dyn PreparedKeys>, EngineError> {
        let keys = EvaluationKeys::from_bytes(&self.context, keys)
            .map_err(|error| EngineError::Keys(error.to_string()))?;
        Ok(Arc::new(TfheKeys { keys, models: Arc::clone(&self.models) }))
    }
}

struct TfheKeys {
    keys: EvaluationKeys,
    models: Arc<Models>,
}

impl PreparedKeys for TfheKeys {
    fn evaluate(&self, model: &ModelId, input: &[u8]) -> Result<Vec<u8>, EngineError> {
        let found = self.models.get(model);
        let found = found.ok_or_else(|| EngineError::UnknownModel(model.clone()))?;
        found
            .evaluate(&self.keys, input)
            .map_err(|error: EvaluationError| EngineError::Input(error.to_string()))
    }
}
