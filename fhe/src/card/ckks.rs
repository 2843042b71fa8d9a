//! The public part of a model that is evaluated with CKKS by a TenSEAL server (docs/protocol.md).
//!
//! Invariants:
//! - The parameters are at least 128-bit secure, and a result has room for every score.
//! - Scores are released no finer than noise flooding allows.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{MAX_FEATURES, WindowShape, require, require_common};
use crate::context::{CkksParameters, Context, ContextDigest};
use crate::error::ModelError;
use crate::window::{Statistic, Transform, Window};

/// Most bytes of an input and of a result that the protocol carries.
const MAX_INPUT_LEN: usize = 448 << 10;
const MAX_RESULT_LEN: usize = 256 << 10;
/// Deviations of a fresh ciphertext's error in a released step: noise of 4096 deviations, twice.
const MIN_STEP: f64 = 8192.0;
/// Variance of an error coefficient: 21 bits set, less 21 bits set.
const ERROR_VARIANCE: f64 = 10.5;

/// What a CKKS model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CkksKind {
    /// Weights and biases.
    Linear,
    /// Two layers of them with the square between.
    Mlp,
}

/// How a CKKS model is computed, which says where scores stand in a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Method {
    /// One product for each score: a ciphertext each, the score in the first slot of the window.
    Dot,
    /// A product with a matrix: one ciphertext, a score in each of its first slots.
    Matmul,
}

/// The one scheme of these cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scheme {
    Ckks,
}

/// One scaled input of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CkksFeature {
    /// Index of the channel in the window.
    pub channel: usize,
    /// What is computed over the channel's samples.
    pub statistic: Statistic,
    /// What is applied to the statistic.
    pub transform: Transform,
    /// What is subtracted then.
    pub offset: f64,
    /// What is divided by then.
    pub divisor: f64,
}

/// The shape of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultShape {
    ciphertexts: usize,
    primes: usize,
}

/// The card as it stands in JSON and CBOR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fields {
    format: u32,
    scheme: Scheme,
    id: String,
    kind: CkksKind,
    method: Method,
    context: ContextDigest,
    parameters: CkksParameters,
    window: WindowShape,
    features: Vec<CkksFeature>,
    input_limit: f64,
    block: usize,
    windows: usize,
    labels: Vec<String>,
    result: ResultShape,
    score_limit: f64,
    error: f64,
    precision: f64,
}

/// The public part of a CKKS model, as a server's catalogue announces it.
#[derive(Clone, Debug, PartialEq)]
pub struct CkksCard {
    fields: Fields,
}

impl TryFrom<Fields> for CkksCard {
    type Error = ModelError;

    fn try_from(fields: Fields) -> Result<Self, ModelError> {
        let card = Self { fields };
        card.validate()?;
        Ok(card)
    }
}

impl From<CkksCard> for Fields {
    fn from(card: CkksCard) -> Self {
        card.fields
    }
}

impl CkksCard {
    /// The model's id, `[A-Za-z0-9_-]{1,64}`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.fields.id
    }

    /// What the model computes.
    #[must_use]
    pub fn kind(&self) -> CkksKind {
        self.fields.kind
    }

    /// How the server computes it.
    #[must_use]
    pub fn method(&self) -> Method {
        self.fields.method
    }

    /// Digest of the context the model runs under.
    #[must_use]
    pub fn context(&self) -> ContextDigest {
        self.fields.context
    }

    /// The context itself.
    pub(super) fn to_context(&self) -> Context {
        Context::of_checked(self.fields.parameters.clone())
    }

    /// Shape of the window the model reads.
    #[must_use]
    pub fn window(&self) -> &WindowShape {
        &self.fields.window
    }

    /// The inputs, in the order of their slots.
    #[must_use]
    pub fn features(&self) -> &[CkksFeature] {
        &self.fields.features
    }

    /// Largest magnitude of an input.
    #[must_use]
    pub fn input_limit(&self) -> f64 {
        self.fields.input_limit
    }

    /// Slots of one window: its features, then zeros.
    #[must_use]
    pub fn block(&self) -> usize {
        self.fields.block
    }

    /// The answers.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.fields.labels
    }

    /// Number of ciphertexts of a result.
    #[must_use]
    pub fn result_ciphertexts(&self) -> usize {
        self.fields.result.ciphertexts
    }

    /// Number of primes of a result's ciphertexts.
    #[must_use]
    pub fn result_primes(&self) -> usize {
        self.fields.result.primes
    }

    /// No input within its limits gives a score of larger magnitude.
    #[must_use]
    pub fn score_limit(&self) -> f64 {
        self.fields.score_limit
    }

    /// A decrypted score differs from the exact one by less.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.fields.error
    }

    /// Step to which a released score is rounded.
    #[must_use]
    pub fn precision(&self) -> f64 {
        self.fields.precision
    }

    /// Most bytes of an encrypted input: with its mask as a seed, uncompressed.
    #[must_use]
    pub fn max_ciphertext_len(&self) -> usize {
        let parameters = &self.fields.parameters;
        parameters.ciphertext_len(parameters.data_primes()) / 2 + 512
    }

    /// Most bytes of an encrypted result.
    #[must_use]
    pub fn max_result_len(&self) -> usize {
        let ResultShape { ciphertexts, primes } = self.fields.result;
        self.fields.parameters.ciphertext_len(primes).saturating_mul(ciphertexts).saturating_add(64)
    }

    /// Computes the inputs of a window that has the card's shape.
    pub(super) fn values(&self, window: &Window) -> Zeroizing<Vec<f64>> {
        let limit = self.input_limit();
        let value = |feature: &CkksFeature| {
            let statistic = feature.statistic.of(window, feature.channel);
            let value = (feature.transform.apply(statistic) - feature.offset) / feature.divisor;
            // A statistic of huge readings may be NaN, and is treated like infinity.
            if value.is_nan() { limit } else { value.clamp(-limit, limit) }
        };
        Zeroizing::new(self.features().iter().map(value).collect())
    }

    /// Fails unless these could be inputs of the model.
    pub(crate) fn check_values(&self, values: &[f64]) -> Result<(), ModelError> {
        let (features, limit) = (self.features().len(), self.input_limit());
        if values.len() == features && values.iter().all(|value| value.abs() <= limit) {
            Ok(())
        } else {
            Err(ModelError::ValuesMismatch { features, limit })
        }
    }

    fn validate(&self) -> Result<(), ModelError> {
        let fields = &self.fields;
        require_common(fields.format, &fields.id, &fields.window, &fields.labels)?;
        require(
            fields.parameters.check().is_ok(),
            "parameters",
            "are out of the protocol's limits, or less than 128-bit secure",
        )?;
        require(
            fields.context == ContextDigest::from(&self.to_context()),
            "context",
            "is not that of its parameters",
        )?;
        let features = &fields.features;
        require((1..=MAX_FEATURES).contains(&features.len()), "features", "must be 1 to 2048")?;
        for feature in features {
            require(
                feature.channel < fields.window.channels.len(),
                "features.channel",
                "must exist",
            )?;
            require(feature.offset.is_finite(), "features.offset", "must be finite")?;
            require(
                is_positive(feature.divisor),
                "features.divisor",
                "must be finite and above 0",
            )?;
        }
        require(is_positive(fields.input_limit), "input_limit", "must be finite and above 0")?;
        self.validate_layout()?;
        self.validate_scores()
    }

    fn validate_layout(&self) -> Result<(), ModelError> {
        let Fields { block, windows, kind, method, result, parameters, labels, .. } = &self.fields;
        let features = self.features().len();
        match method {
            Method::Dot => {
                require(
                    block.is_power_of_two() && *block >= features,
                    "block",
                    "for dot must be a power of two that holds the features",
                )?;
                require(*kind == CkksKind::Linear, "method", "of a network must be matmul")?;
            }
            Method::Matmul => {
                require(
                    *block == features && *windows == 1,
                    "block",
                    "for matmul must be the number of features, and windows 1",
                )?;
            }
        }
        require(
            *windows >= 1 && block.saturating_mul(*windows) <= parameters.slots(),
            "windows",
            "do not fit a ciphertext",
        )?;
        let consumed = match kind {
            CkksKind::Linear => 1,
            CkksKind::Mlp => 3,
        };
        let ciphertexts = match method {
            Method::Dot => labels.len() - 1,
            Method::Matmul => 1,
        };
        require(
            result.primes >= 1
                && result.primes + consumed == parameters.data_primes()
                && result.ciphertexts == ciphertexts,
            "result",
            "is not what kind and method give",
        )?;
        require(
            labels.len() - 1 <= parameters.slots()
                && self.max_result_len() <= MAX_RESULT_LEN
                && self.max_ciphertext_len() <= MAX_INPUT_LEN,
            "parameters",
            "make an input or a result longer than the protocol carries",
        )
    }

    fn validate_scores(&self) -> Result<(), ModelError> {
        let Fields { parameters, score_limit, error, precision, input_limit, .. } = &self.fields;
        require(
            is_positive(*score_limit) && is_positive(*error),
            "score_limit",
            "and the error must be finite and above 0",
        )?;
        let room = |primes: usize| {
            let bits = parameters.coeff_mod_bit_sizes.iter().take(primes);
            bits.map(|bits| 2_f64.powi(i32::from(*bits) - 1)).product::<f64>()
                / parameters.global_scale
        };
        require(
            score_limit + error < room(self.result_primes())
                && *input_limit < room(parameters.data_primes()) / 4.0
                && input_limit * parameters.global_scale < 2_f64.powi(60),
            "score_limit",
            "or the input limit is more than a ciphertext has room for",
        )?;
        let slots = f64::from(parameters.poly_modulus_degree) / 2.0;
        let fresh = (slots * ERROR_VARIANCE).sqrt() / parameters.global_scale;
        require(
            precision.is_finite() && *precision >= *error && *precision >= MIN_STEP * fresh,
            "precision",
            "is finer than the error or than noise that hides it",
        )?;
        require(
            score_limit / precision < 2_f64.powi(30),
            "precision",
            "is too fine for the score limit",
        )
    }
}

fn is_positive(number: f64) -> bool {
    number.is_finite() && number > 0.0
}
