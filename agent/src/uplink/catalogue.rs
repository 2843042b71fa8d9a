//! The models the server offers.

use std::collections::BTreeMap;
use std::sync::Arc;

use moai_fhe::ModelCard;
use moai_transport::ids::ModelId;

const MAX_MODELS: usize = 256;

/// The models the server offers.
#[derive(Debug, Default)]
pub struct Catalogue(BTreeMap<ModelId, Arc<ModelCard>>);

impl Catalogue {
    /// The card of a model.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<&Arc<ModelCard>> {
        self.0.get(model)
    }

    /// The ids of all models, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &ModelId> {
        self.0.keys()
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let cards: Vec<ModelCard> =
            ciborium::from_reader(body).map_err(|error| error.to_string())?;
        if cards.len() > MAX_MODELS {
            return Err(format!("it has more than {MAX_MODELS} models"));
        }
        let mut models = BTreeMap::new();
        for card in cards {
            let id: ModelId = card.id().parse().map_err(|error| format!("{error}"))?;
            models.insert(id, Arc::new(card));
        }
        Ok(Self(models))
    }
}
