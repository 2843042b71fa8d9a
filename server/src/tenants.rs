//! Who is served, and how far.

use std::collections::BTreeSet;

use moai_transport::ids::ModelId;
use moai_transport::message::ErrorCode;

use crate::refusal::Refused;
use crate::store::{Budget, Exceeded};

/// What one tenant may have of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRules {
    /// The models its robots see and may ask; none for all.
    pub models: Option<BTreeSet<ModelId>>,
    /// What its robots may keep in the store, all workers together.
    pub budget: Budget,
    /// Jobs of its robots that may wait or be computed at a time, on each worker.
    pub max_jobs: usize,
}

impl TenantRules {
    /// Whether robots of the tenant may know of a model.
    #[must_use]
    pub fn sees(&self, model: &ModelId) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }
}

/// What a robot hears when its tenant has as much as it may have.
pub(crate) fn beyond(exceeded: Exceeded) -> Refused {
    match exceeded {
        Exceeded::Sessions(limit) => Refused(
            ErrorCode::Busy,
            format!("the tenant has {limit} sessions open, its limit max_sessions"),
        ),
        Exceeded::Bytes(limit) => Refused(
            ErrorCode::TooLarge,
            format!("the tenant's keys would exceed {limit} bytes, its limit max_bytes"),
        ),
        Exceeded::Tombstones(limit) => Refused(
            ErrorCode::Busy,
            format!(
                "{limit} sessions of the tenant ended lately, more than max_sessions allows for"
            ),
        ),
    }
}
