//! A model: its card and its secret-free but unpublished tables.
//!
//! Invariants:
//! - The worst sum of table entries and bias fits the width of a score, so that no input can
//!   wrap a score around.
//! - A model that exists has passed its card's checks, the noise bound among them.

use std::collections::BTreeMap;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::card::{
    FORMAT, Fields, Inputs, ModelCard, ModelKind, SCORE_BITS, Scores, TfheCard, WindowShape,
    require,
};
use crate::context::{Context, ContextDigest};
use crate::error::ModelError;
use crate::window::Feature;

/// Longest model file in bytes.
pub const MAX_MODEL_LEN: usize = 4 << 20;

/// A model file, format 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    format: u32,
    id: String,
    kind: ModelKind,
    levels: u8,
    window: WindowShape,
    features: Vec<Feature>,
    labels: Vec<String>,
    tables: Vec<Vec<Vec<i32>>>,
    bias: Vec<i32>,
    #[serde(default)]
    provenance: BTreeMap<String, String>,
}

/// What a server computes: the card, a table per feature and score, and a bias per score.
#[derive(Clone, Debug)]
pub struct Model {
    /// As [`Model::card`] gives it out.
    public: ModelCard,
    card: TfheCard,
    /// `tables[feature][score][level]`.
    tables: Vec<Vec<Vec<i32>>>,
    bias: Vec<i32>,
    provenance: BTreeMap<String, String>,
}

impl Model {
    /// Reads a model file.
    ///
    /// # Errors
    /// [`ModelError`] saying which field is wrong, or that the model would be too noisy.
    pub fn from_json(json: &[u8]) -> Result<Self, ModelError> {
        if json.len() > MAX_MODEL_LEN {
            return Err(ModelError::TooLarge { len: json.len(), max: MAX_MODEL_LEN });
        }
        let file: ModelFile =
            serde_json::from_slice(json).map_err(|error| ModelError::Syntax(error.to_string()))?;
        require(file.format == FORMAT, "format", "must be 1")?;
        let score_bits = score_bits(&file)?;
        let card = TfheCard::try_from(Fields {
            format: FORMAT,
            id: file.id,
            kind: file.kind,
            context: ContextDigest::from(&Context::tfhe()),
            levels: file.levels,
            window: file.window,
            features: file.features,
            labels: file.labels,
            score_bits,
        })?;
        let model = Self {
            public: ModelCard::Tfhe(card.clone()),
            card,
            tables: file.tables,
            bias: file.bias,
            provenance: file.provenance,
        };
        model.check_tables()?;
        Ok(model)
    }

    /// The public part.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.public
    }

    /// What only the scheme asks for.
    #[cfg(feature = "server")]
    pub(crate) fn tfhe_card(&self) -> &TfheCard {
        &self.card
    }

    /// Where the model comes from, in free text.
    #[must_use]
    pub fn provenance(&self) -> &BTreeMap<String, String> {
        &self.provenance
    }

    /// The same computation on plaintext: the reference every encrypted result must equal.
    ///
    /// # Errors
    /// [`ModelError::LevelsMismatch`] when the levels are another model's, [`ModelError::Scheme`]
    /// when there are none.
    pub fn evaluate_clear(&self, inputs: &Inputs) -> Result<Scores, ModelError> {
        let Inputs::Levels(levels) = inputs else { return Err(ModelError::Scheme) };
        self.card.check_levels(levels)?;
        let score = |score: usize, bias: i32| {
            self.tables
                .iter()
                .zip(levels.iter())
                .fold(bias, |sum, (table, level)| sum + entry(table, score, *level))
        };
        let scores = match self.card.kind() {
            ModelKind::Lookup => {
                self.bias.iter().enumerate().map(|(index, bias)| score(index, *bias)).collect()
            }
            ModelKind::Threshold => vec![i32::from(score(0, 0) > 0)],
        };
        Ok(Scores::new(Zeroizing::new(scores)))
    }

    /// `tables[feature][score][level]`.
    #[cfg(feature = "server")]
    pub(crate) fn tables(&self) -> &[Vec<Vec<i32>>] {
        &self.tables
    }

    /// One bias per score of a lookup model, none of a threshold model.
    #[cfg(feature = "server")]
    pub(crate) fn bias(&self) -> &[i32] {
        &self.bias
    }

    fn check_tables(&self) -> Result<(), ModelError> {
        let card = &self.card;
        require(self.tables.len() == card.features().len(), "tables", "must be one per feature")?;
        for table in &self.tables {
            require(table.len() == card.score_count(), "tables", "must have a row per score")?;
            for row in table {
                require(
                    row.len() == usize::from(card.level_count()),
                    "tables",
                    "must have an entry per level",
                )?;
                require(
                    card.kind() == ModelKind::Lookup || row.iter().all(|e| matches!(e, 0 | 1)),
                    "tables",
                    "of a threshold model must be 0 or 1",
                )?;
            }
        }
        // An accumulator of zeros stays the trivial ciphertext that no client accepts.
        let is_live = |score: usize| {
            self.tables.iter().filter_map(|table| table.get(score)).flatten().any(|e| *e != 0)
        };
        require(
            (0..card.score_count()).all(is_live),
            "tables",
            "must have an entry other than 0 for every score",
        )?;
        match card.kind() {
            ModelKind::Lookup => {
                require(self.bias.len() == card.score_count(), "bias", "must be one per score")
            }
            ModelKind::Threshold => {
                require(self.bias.is_empty(), "bias", "of a threshold model must be empty")
            }
        }
    }
}

/// The narrowest permitted score that holds the worst sum of every score.
fn score_bits(file: &ModelFile) -> Result<u8, ModelError> {
    let scores = file.tables.iter().map(Vec::len).max().unwrap_or(0);
    let worst = (0..scores)
        .map(|score| {
            let bias = file.bias.get(score).map_or(0, |bias| i64::from(bias.unsigned_abs()));
            file.tables.iter().fold(bias, |sum, table| {
                let row = table.get(score).map_or(&[][..], Vec::as_slice);
                let worst = row.iter().map(|entry| i64::from(entry.unsigned_abs())).max();
                sum.saturating_add(worst.unwrap_or(0))
            })
        })
        .max();
    SCORE_BITS
        .into_iter()
        .find(|bits| worst.unwrap_or(0) < 1 << (bits - 1))
        .ok_or(ModelError::Invalid { field: "tables", reason: "must not add up to more than 63" })
}

/// One entry of a table; the shape was checked when the model was read.
pub(crate) fn entry(table: &[Vec<i32>], score: usize, level: u8) -> i32 {
    table.get(score).and_then(|row| row.get(usize::from(level))).copied().unwrap_or(0)
}
