//! The public part of a model that is evaluated with TFHE.
//!
//! Invariants:
//! - The failure probability of every decision in evaluating and decrypting the model is at most
//!   2^-128 under the card's context, where there is an engine to evaluate or decrypt it.
//! - Sizes of ciphertexts in both directions follow from the card alone.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{MAX_FEATURES, WindowShape, require, require_common};
use crate::context::{Context, ContextDigest};
use crate::error::ModelError;
use crate::window::{Feature, Window};
use crate::wire;

/// Most bootstraps one evaluation may cost.
pub const MAX_BOOTSTRAPS: usize = 1024;
/// Most features of a threshold model: their sum must fit a message.
pub const MAX_THRESHOLD_FEATURES: usize = 15;
/// Widths of a score in bits. Fewer would weaken the recognition of results under another key.
pub(crate) const SCORE_BITS: std::ops::RangeInclusive<u8> = 5..=7;
/// Values a message of the context can take.
pub(crate) const MESSAGES: u8 = 16;

/// What a model computes on its levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelKind {
    /// Every level adds its table's entry to each score; the label is the largest score, where
    /// the first label's score is fixed at 0 and ties go to the lower index.
    Lookup,
    /// Every feature says by its table whether it is beyond its limit; the only score is 1 when
    /// any is, and picks the second label.
    Threshold,
}

/// The public part of a TFHE model, as a server's catalogue announces it.
#[derive(Clone, Debug, PartialEq)]
pub struct TfheCard {
    fields: Fields,
}

/// The card as it stands in JSON and CBOR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fields {
    pub(crate) format: u32,
    pub(crate) id: String,
    pub(crate) kind: ModelKind,
    pub(crate) context: ContextDigest,
    pub(crate) levels: u8,
    pub(crate) window: WindowShape,
    pub(crate) features: Vec<Feature>,
    pub(crate) labels: Vec<String>,
    pub(crate) score_bits: u8,
}

impl TryFrom<Fields> for TfheCard {
    type Error = ModelError;

    fn try_from(fields: Fields) -> Result<Self, ModelError> {
        let card = Self { fields };
        card.validate()?;
        Ok(card)
    }
}

impl From<TfheCard> for Fields {
    fn from(card: TfheCard) -> Self {
        card.fields
    }
}

impl TfheCard {
    /// The model's id, `[A-Za-z0-9_-]{1,64}`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.fields.id
    }

    /// What the model computes.
    #[must_use]
    pub fn kind(&self) -> ModelKind {
        self.fields.kind
    }

    /// Digest of the context the model runs under.
    #[must_use]
    pub fn context(&self) -> ContextDigest {
        self.fields.context
    }

    /// Shape of the window the model reads.
    #[must_use]
    pub fn window(&self) -> &WindowShape {
        &self.fields.window
    }

    /// Number of levels a feature is quantised to: 2, 4, 8 or 16.
    #[must_use]
    pub fn level_count(&self) -> u8 {
        self.fields.levels
    }

    /// The quantised inputs, in the order of their coefficients.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.fields.features
    }

    /// The answers.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.fields.labels
    }

    /// Number of scores in a result: one fewer than labels.
    #[must_use]
    pub fn score_count(&self) -> usize {
        self.fields.labels.len().saturating_sub(1)
    }

    /// Width of a score in bits; scores are signed integers of this width.
    #[must_use]
    pub fn score_bits(&self) -> u8 {
        self.fields.score_bits
    }

    /// Bootstraps one evaluation costs.
    #[must_use]
    pub fn bootstraps(&self) -> usize {
        match self.fields.kind {
            ModelKind::Lookup => self.features().len() * self.group_count(),
            ModelKind::Threshold => self.features().len() + 1,
        }
    }

    /// Length in bytes of an encrypted input. All inputs of a model are equally long.
    #[must_use]
    pub fn max_ciphertext_len(&self) -> usize {
        wire::input_len(self.features().len())
    }

    /// Length in bytes of an encrypted result. All results of a model are equally long.
    #[must_use]
    pub fn max_result_len(&self) -> usize {
        wire::result_len(self)
    }

    /// Computes and quantises the features of a window that has the card's shape.
    pub(crate) fn levels(&self, window: &Window) -> Zeroizing<Vec<u8>> {
        // Collected into an exactly sized vector, which never moves and is wiped.
        Zeroizing::new(self.features().iter().map(|feature| feature.level(window)).collect())
    }

    /// Fails unless these could be levels of the card's model.
    pub(crate) fn check_levels(&self, levels: &[u8]) -> Result<(), ModelError> {
        if levels.len() == self.features().len()
            && levels.iter().all(|level| *level < self.level_count())
        {
            return Ok(());
        }
        let features = self.features().len();
        Err(ModelError::LevelsMismatch { features, levels: self.level_count() })
    }

    /// Checks everything a card promises. A card that exists has passed it.
    ///
    /// # Errors
    /// [`ModelError::Invalid`] naming the field, [`ModelError::Noise`] when the model would fail
    /// more often than allowed.
    pub fn validate(&self) -> Result<(), ModelError> {
        let fields = &self.fields;
        require_common(fields.format, &fields.id, &fields.window, &fields.labels)?;
        require(
            fields.context == ContextDigest::from(&Context::tfhe()),
            "context",
            "is not one this release knows; update the older side",
        )?;
        require(matches!(fields.levels, 2 | 4 | 8 | 16), "levels", "must be 2, 4, 8 or 16")?;
        self.validate_features()?;
        require(SCORE_BITS.contains(&fields.score_bits), "score_bits", "must be 5 to 7")?;
        if fields.kind == ModelKind::Threshold {
            require(fields.labels.len() == 2, "labels", "of a threshold model must be two")?;
            require(
                fields.features.len() <= MAX_THRESHOLD_FEATURES,
                "features",
                "of a threshold model must be 15 at most",
            )?;
        }
        require(
            self.bootstraps() <= MAX_BOOTSTRAPS,
            "features",
            "cost more than 1024 bootstraps; use fewer features, labels or levels",
        )?;
        // Whoever cannot encrypt for the model need not know how noisy it is.
        #[cfg(feature = "tfhe")]
        self.validate_noise()?;
        Ok(())
    }

    fn validate_features(&self) -> Result<(), ModelError> {
        let Fields { features, window, levels, .. } = &self.fields;
        require((1..=MAX_FEATURES).contains(&features.len()), "features", "must be 1 to 2048")?;
        for feature in features {
            require(feature.channel < window.channels.len(), "features.channel", "must exist")?;
            let edges = &feature.edges;
            require(
                edges.len() + 1 == usize::from(*levels)
                    && edges.iter().all(|edge| edge.is_finite())
                    && edges.is_sorted_by(|a, b| a < b),
                "features.edges",
                "must be finite, strictly increasing and one fewer than levels",
            )?;
        }
        Ok(())
    }

    /// Every decision: selecting a box by a fresh input, decoding a score; for a threshold also
    /// selecting a box by the sum of all features.
    #[cfg(feature = "tfhe")]
    fn validate_noise(&self) -> Result<(), ModelError> {
        use crate::context::{MAX_LOG2_FAILURE, TFHE};
        use crate::noise;

        let features = u16::try_from(self.features().len()).unwrap_or(u16::MAX);
        let input = noise::log2_selection_failure(&TFHE, noise::fresh_variance(&TFHE));
        let (sum, summands) = match self.fields.kind {
            ModelKind::Lookup => (f64::NEG_INFINITY, features),
            ModelKind::Threshold => {
                let variance = f64::from(features) * noise::bootstrap_variance(&TFHE);
                (noise::log2_selection_failure(&TFHE, variance), 1)
            }
        };
        let score = noise::log2_score_failure(&TFHE, summands, self.fields.score_bits);
        let log2_failure = input.max(sum).max(score);
        if log2_failure > MAX_LOG2_FAILURE {
            return Err(ModelError::Noise { log2_failure });
        }
        Ok(())
    }

    /// Boxes of the table that one level occupies, which is how many scores one bootstrap serves.
    pub(crate) fn stride(&self) -> u8 {
        // Division by zero can't happen in a valid card and must not panic while validating.
        MESSAGES.checked_div(self.fields.levels).unwrap_or(1).max(1)
    }

    /// Accumulators per feature, which is also the number of masks in a result.
    pub(crate) fn group_count(&self) -> usize {
        self.score_count().div_ceil(usize::from(self.stride()))
    }
}
