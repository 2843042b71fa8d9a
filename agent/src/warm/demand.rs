//! For which contexts keys are made ahead.
//!
//! Invariant: only contexts of models that the catalogue has, or had when a task asked: those that
//! tasks asked for last, then those of declared tasks, then all others.

use moai_fhe::Context;
use moai_transport::ids::{ContextId, Digest, ModelId};

use super::MAX_WARM;
use crate::uplink::Catalogue;

/// What key sets are wanted for.
pub(super) struct Demand {
    /// Key sets that there are to be, of all contexts together.
    wanted: usize,
    declared: Vec<ModelId>,
    /// The most wanted first; empty until there is a catalogue.
    contexts: Vec<Context>,
    /// What tasks asked for, the last first.
    asked: Vec<ContextId>,
}

impl Demand {
    pub(super) fn new(wanted: usize, declared: Vec<ModelId>) -> Self {
        Self { wanted, declared, contexts: Vec::new(), asked: Vec::new() }
    }

    /// Other numbers and other models, until the next change.
    pub(super) fn change(&mut self, wanted: usize, declared: Vec<ModelId>) {
        (self.wanted, self.declared) = (wanted, declared);
    }

    /// Key sets that there are to be.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// The contexts, the most wanted first.
    pub(super) fn contexts(&self) -> impl Iterator<Item = &Context> {
        self.contexts.iter()
    }

    /// Takes the contexts of a catalogue's models.
    pub(super) fn look_into(&mut self, catalogue: Option<&Catalogue>) {
        let Some(catalogue) = catalogue else { return };
        let declared = self.declared.iter().filter_map(|model| catalogue.get(model));
        let all = catalogue.ids().filter_map(|model| catalogue.get(model));
        let mut contexts: Vec<Context> = Vec::new();
        for card in declared.chain(all) {
            let context = card.to_context();
            if !contexts.contains(&context) {
                contexts.push(context);
            }
        }
        contexts.sort_by_key(|context| {
            let asked = self.asked.iter().position(|asked| *asked == id(context));
            asked.unwrap_or(self.asked.len())
        });
        self.contexts = contexts;
    }

    /// A task has asked for this context: it will again.
    pub(super) fn prefer(&mut self, context: Context) {
        let asked = id(&context);
        self.asked.retain(|other| *other != asked);
        self.asked.insert(0, asked);
        self.asked.truncate(MAX_WARM);
        self.contexts.retain(|other| *other != context);
        self.contexts.insert(0, context);
    }

    /// How many key sets of a context there are to be.
    pub(super) fn share(&self, context: ContextId) -> usize {
        let contexts = self.contexts.len();
        match self.contexts.iter().position(|other| id(other) == context) {
            Some(place) => self.wanted / contexts + usize::from(place < self.wanted % contexts),
            None => 0,
        }
    }
}

/// A context as the vault names it.
pub(super) fn id(context: &Context) -> ContextId {
    ContextId(Digest(context.digest()))
}

#[cfg(test)]
mod tests {
    use moai_fhe::{Model, ModelCard};

    use super::*;

    const MODELS: [&[u8]; 2] = [
        include_bytes!("../../../server/models/grasp.json"),
        include_bytes!("../../../server/models/failure.json"),
    ];
    const CARDS: [&str; 2] = [
        include_str!("../../../fhe/tests/golden/ckks/failure-linear.card.json"),
        include_str!("../../../fhe/tests/golden/ckks/grasp-linear.card.json"),
    ];

    /// Two models in one context of TFHE, two in contexts of their own of CKKS.
    fn cards() -> [ModelCard; 4] {
        let [grasp, failure] = MODELS.map(|json| Model::from_json(json).unwrap().card().clone());
        let [ours, theirs] = CARDS.map(|json| serde_json::from_str(json).unwrap());
        [grasp, failure, ours, theirs]
    }

    fn catalogue(cards: &[ModelCard]) -> Catalogue {
        let mut body = Vec::new();
        ciborium::into_writer(cards, &mut body).unwrap();
        Catalogue::parse(&body).unwrap()
    }

    fn shares(demand: &Demand) -> Vec<usize> {
        cards().map(|card| demand.share(id(&card.to_context())))[1..].to_vec()
    }

    #[test]
    fn declared_tasks_come_first_then_what_was_asked_for_last() {
        let all = catalogue(&cards());
        let mut demand = Demand::new(1, vec!["grasp-linear".parse().unwrap()]);
        assert_eq!(shares(&demand), [0, 0, 0], "nobody knows yet what there is");
        demand.look_into(Some(&all));
        assert_eq!(shares(&demand), [0, 0, 1]);
        demand.prefer(Context::tfhe());
        assert_eq!(shares(&demand), [1, 0, 0]);
        // Another catalogue with the same models changes nothing; without a model, its context goes.
        demand.look_into(Some(&all));
        assert_eq!(shares(&demand), [1, 0, 0]);
        demand.look_into(Some(&catalogue(&cards()[2..])));
        assert_eq!(shares(&demand), [0, 0, 1]);
        demand.look_into(None);
        assert_eq!(shares(&demand), [0, 0, 1]);
    }

    #[test]
    fn several_are_shared_out() {
        let mut demand = Demand::new(4, Vec::new());
        demand.look_into(Some(&catalogue(&cards())));
        // Contexts in the order of the models' ids: failure, failure-linear, grasp, grasp-linear.
        assert_eq!(shares(&demand), [2, 1, 1]);
        demand.look_into(Some(&catalogue(&cards()[..2])));
        assert_eq!(shares(&demand), [4, 0, 0]);
    }
}
