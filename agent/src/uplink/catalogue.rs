//! The models the server offers.

use std::collections::BTreeMap;
use std::sync::Arc;

use moai_fhe::{ModelCard, NotBuilt};
use moai_transport::ids::ModelId;

const MAX_MODELS: usize = 256;

/// The models the server offers.
#[derive(Debug, Default)]
pub struct Catalogue {
    models: BTreeMap<ModelId, Arc<ModelCard>>,
    /// Those of schemes that this program is built without.
    out_of_reach: BTreeMap<ModelId, NotBuilt>,
}

impl Catalogue {
    /// The card of a model that can be asked.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<&Arc<ModelCard>> {
        self.models.get(model)
    }

    /// Why a model that the server offers cannot be asked.
    #[must_use]
    pub fn out_of_reach(&self, model: &ModelId) -> Option<NotBuilt> {
        self.out_of_reach.get(model).copied()
    }

    /// The ids of all models that can be asked, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &ModelId> {
        self.models.keys()
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let cards: Vec<ModelCard> =
            ciborium::from_reader(body).map_err(|error| error.to_string())?;
        if cards.len() > MAX_MODELS {
            return Err(format!("it has more than {MAX_MODELS} models"));
        }
        let mut catalogue = Self::default();
        for card in cards {
            let id: ModelId = card.id().parse().map_err(|error| format!("{error}"))?;
            match card.to_context().check_built() {
                Ok(()) => drop(catalogue.models.insert(id, Arc::new(card))),
                Err(missing) => drop(catalogue.out_of_reach.insert(id, missing)),
            }
        }
        Ok(catalogue)
    }
}
