//! The public part of a model: what the robot must know to ask it.
//!
//! Invariants:
//! - A card is valid from birth: it is checked when it is built and when it is deserialised.
//! - Sizes of ciphertexts in both directions follow from the card alone.

mod ckks;
mod tfhe;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use self::ckks::{CkksCard, CkksFeature, CkksKind, Method};
pub(crate) use self::tfhe::{Fields, MESSAGES, SCORE_BITS};
pub use self::tfhe::{MAX_BOOTSTRAPS, MAX_THRESHOLD_FEATURES, ModelKind, TfheCard};
use crate::context::{Context, ContextDigest, MAX_CKKS_RESULTS};
use crate::error::ModelError;
use crate::window::{MAX_CHANNELS, MAX_SAMPLES, Window};

/// Version of the model and card formats.
pub const FORMAT: u32 = 1;
/// Most features.
pub const MAX_FEATURES: usize = 2048;
/// Most labels.
pub const MAX_LABELS: usize = 64;
/// Most characters of a label or a channel name.
const MAX_NAME_LEN: usize = 64;

/// Shape of the window a model reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowShape {
    /// Samples in a window.
    pub samples: usize,
    /// Name of each channel, in order.
    pub channels: Vec<String>,
}

/// The public part of a model, as a server's catalogue announces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AnyFields", into = "AnyFields")]
pub enum ModelCard {
    /// Evaluated with TFHE.
    Tfhe(TfheCard),
    /// Evaluated with CKKS.
    Ckks(CkksCard),
}

/// Either card as it stands in JSON and CBOR. Only one of them has a scheme.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AnyFields {
    Ckks(ckks::Fields),
    Tfhe(Fields),
}

impl TryFrom<AnyFields> for ModelCard {
    type Error = ModelError;

    fn try_from(fields: AnyFields) -> Result<Self, ModelError> {
        match fields {
            AnyFields::Tfhe(fields) => TfheCard::try_from(fields).map(Self::Tfhe),
            AnyFields::Ckks(fields) => CkksCard::try_from(fields).map(Self::Ckks),
        }
    }
}

impl From<ModelCard> for AnyFields {
    fn from(card: ModelCard) -> Self {
        match card {
            ModelCard::Tfhe(card) => Self::Tfhe(card.into()),
            ModelCard::Ckks(card) => Self::Ckks(card.into()),
        }
    }
}

impl ModelCard {
    /// The model's id, `[A-Za-z0-9_-]{1,64}`.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Tfhe(card) => card.id(),
            Self::Ckks(card) => card.id(),
        }
    }

    /// Digest of the context the model runs under.
    #[must_use]
    pub fn context(&self) -> ContextDigest {
        match self {
            Self::Tfhe(card) => card.context(),
            Self::Ckks(card) => card.context(),
        }
    }

    /// The context itself, with which [`setup`](crate::setup) makes the engine.
    #[must_use]
    pub fn to_context(&self) -> Context {
        match self {
            Self::Tfhe(_) => Context::tfhe(),
            Self::Ckks(card) => card.to_context(),
        }
    }

    /// Shape of the window the model reads.
    #[must_use]
    pub fn window(&self) -> &WindowShape {
        match self {
            Self::Tfhe(card) => card.window(),
            Self::Ckks(card) => card.window(),
        }
    }

    /// Number of features a window has for the model.
    #[must_use]
    pub fn feature_count(&self) -> usize {
        match self {
            Self::Tfhe(card) => card.features().len(),
            Self::Ckks(card) => card.features().len(),
        }
    }

    /// Bootstraps one evaluation costs; none under CKKS.
    #[must_use]
    pub fn bootstraps(&self) -> usize {
        match self {
            Self::Tfhe(card) => card.bootstraps(),
            Self::Ckks(_) => 0,
        }
    }

    /// The answers.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Tfhe(card) => card.labels(),
            Self::Ckks(card) => card.labels(),
        }
    }

    /// Number of scores in a result: one fewer than labels.
    #[must_use]
    pub fn score_count(&self) -> usize {
        self.labels().len().saturating_sub(1)
    }

    /// What a score of 1 stands for: 1 under TFHE, the precision of the model under CKKS.
    #[must_use]
    pub fn score_step(&self) -> f64 {
        match self {
            Self::Tfhe(_) => 1.0,
            Self::Ckks(card) => card.precision(),
        }
    }

    /// Most results that one set of keys may decrypt; `u64::MAX` where nothing is lost by decrypting.
    #[must_use]
    pub fn max_results(&self) -> u64 {
        match self {
            Self::Tfhe(_) => u64::MAX,
            Self::Ckks(_) => MAX_CKKS_RESULTS,
        }
    }

    /// Most bytes of an encrypted input. Inputs of a model are all equally long.
    #[must_use]
    pub fn max_ciphertext_len(&self) -> usize {
        match self {
            Self::Tfhe(card) => card.max_ciphertext_len(),
            Self::Ckks(card) => card.max_ciphertext_len(),
        }
    }

    /// Most bytes of an encrypted result. Under TFHE all results of a model are equally long.
    #[must_use]
    pub fn max_result_len(&self) -> usize {
        match self {
            Self::Tfhe(card) => card.max_result_len(),
            Self::Ckks(card) => card.max_result_len(),
        }
    }

    /// Computes what of a window the model takes: quantised features, or scaled ones.
    ///
    /// # Errors
    /// [`ModelError::WindowMismatch`] when the window has another shape than the card's.
    pub fn inputs(&self, window: &Window) -> Result<Inputs, ModelError> {
        let shape = self.window();
        if (window.samples(), window.channels()) != (shape.samples, shape.channels.len()) {
            return Err(ModelError::WindowMismatch {
                samples: shape.samples,
                channels: shape.channels.len(),
            });
        }
        Ok(match self {
            Self::Tfhe(card) => Inputs::Levels(card.levels(window)),
            Self::Ckks(card) => Inputs::Values(card.values(window)),
        })
    }

    /// The label the scores stand for: that of the largest, where the first label's score is 0 and
    /// the earlier of equal ones wins.
    #[must_use]
    pub fn label(&self, scores: &Scores) -> &str {
        let mut best = (0, 0);
        for (index, score) in scores.values().iter().enumerate() {
            if *score > best.1 {
                best = (index + 1, *score);
            }
        }
        self.labels().get(best.0).map_or("", String::as_str)
    }
}

/// What a model takes of a window: plaintext, wiped on drop.
pub enum Inputs {
    /// One level for each feature of a TFHE model.
    Levels(Zeroizing<Vec<u8>>),
    /// One value for each feature of a CKKS model.
    Values(Zeroizing<Vec<f64>>),
}

impl Inputs {
    /// Takes levels computed elsewhere.
    ///
    /// # Errors
    /// [`ModelError::LevelsMismatch`] when their number or one of them doesn't fit the card,
    /// [`ModelError::Scheme`] when the card is not of TFHE.
    pub fn from_levels(card: &ModelCard, levels: &[u8]) -> Result<Self, ModelError> {
        let ModelCard::Tfhe(card) = card else { return Err(ModelError::Scheme) };
        card.check_levels(levels)?;
        Ok(Self::Levels(Zeroizing::new(levels.to_vec())))
    }

    /// Takes values computed elsewhere.
    ///
    /// # Errors
    /// [`ModelError::ValuesMismatch`] when their number or one of them doesn't fit the card,
    /// [`ModelError::Scheme`] when the card is not of CKKS.
    pub fn from_values(card: &ModelCard, values: &[f64]) -> Result<Self, ModelError> {
        let ModelCard::Ckks(card) = card else { return Err(ModelError::Scheme) };
        card.check_values(values)?;
        Ok(Self::Values(Zeroizing::new(values.to_vec())))
    }

    /// The levels; none of a CKKS model.
    #[must_use]
    pub fn levels(&self) -> &[u8] {
        match self {
            Self::Levels(levels) => levels,
            Self::Values(_) => &[],
        }
    }

    /// How many features there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Levels(levels) => levels.len(),
            Self::Values(values) => values.len(),
        }
    }

    /// Whether there is none; a card has at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The scores of one job in steps of [`ModelCard::score_step`]: plaintext, wiped on drop.
#[derive(PartialEq, Eq)]
pub struct Scores(Zeroizing<Vec<i32>>);

impl Scores {
    /// Takes scores that an engine decrypted: one per label but the first.
    #[must_use]
    pub fn new(values: Zeroizing<Vec<i32>>) -> Self {
        Self(values)
    }

    /// One score per label but the first.
    #[must_use]
    pub fn values(&self) -> &[i32] {
        &self.0
    }
}

pub(crate) fn require(
    holds: bool,
    field: &'static str,
    reason: &'static str,
) -> Result<(), ModelError> {
    if holds { Ok(()) } else { Err(ModelError::Invalid { field, reason }) }
}

/// What every card must keep.
fn require_common(
    format: u32,
    id: &str,
    window: &WindowShape,
    labels: &[String],
) -> Result<(), ModelError> {
    require(format == FORMAT, "format", "must be 1")?;
    require(is_id(id), "id", "must match [A-Za-z0-9_-]{1,64}")?;
    require((1..=MAX_SAMPLES).contains(&window.samples), "window.samples", "must be 1 to 65536")?;
    let channels = &window.channels;
    require(
        (1..=MAX_CHANNELS).contains(&channels.len()) && channels.iter().all(|c| is_name(c)),
        "window.channels",
        "must be 1 to 256 names of 1 to 64 printable characters",
    )?;
    require(
        (2..=MAX_LABELS).contains(&labels.len()) && labels.iter().all(|label| is_name(label)),
        "labels",
        "must be 2 to 64 names of 1 to 64 printable characters",
    )
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn is_name(text: &str) -> bool {
    let length = text.chars().count();
    (1..=MAX_NAME_LEN).contains(&length) && !text.chars().any(char::is_control)
}
