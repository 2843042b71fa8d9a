//! The figures of a run, computed once for table and report.

use anyhow::{Context, Result};
use moai_fhe::{CkksKind, Method, ModelCard};

use super::naive;
use super::play::{Bytes, Job, Part};
use super::site::Opening;
use super::statistics::{Distribution, readable};
use crate::recordings::{CHANNELS, SAMPLES};
use crate::reference::{Reference, Scheme};

/// Readings in a window.
pub const READINGS: u64 = (SAMPLES * CHANNELS) as u64;

/// A run, in figures.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The model's id.
    pub model: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Features it looks at.
    pub features: u64,
    /// How it is encrypted.
    pub scheme: Scheme,
    /// What one evaluation is, for people.
    pub evaluation: String,
    /// Its accuracy on trials it was not trained on, as the training wrote it.
    pub cross_validated: String,
    /// Number of jobs.
    pub jobs: usize,
    /// Jobs whose encrypted and plaintext decisions are the same.
    pub agree: usize,
    /// Jobs whose decisions differ within the noise of a release.
    pub close: usize,
    /// Jobs whose decision is the label.
    pub right: usize,
    /// The largest of each.
    pub bytes: Bytes,
    /// Bytes of one reading as a `CompressedFheInt16`; under TFHE only.
    pub naive_reading: Option<u64>,
    /// Keys.
    pub opening: Opening,
    times: Vec<(Part, Distribution)>,
}

impl Summary {
    /// Sums a run up. Takes some CPU time.
    ///
    /// # Errors
    /// There was no job, or the naive encoding cannot be measured.
    pub fn new(model: &Reference, opening: Opening, jobs: &[Job]) -> Result<Self> {
        let card = model.card();
        let provenance = model.provenance("cross_validated_accuracy").unwrap_or("unknown");
        let scheme = match card {
            ModelCard::Tfhe(_) => Scheme::Tfhe,
            ModelCard::Ckks(_) => Scheme::Ckks,
        };
        let largest = |a: Bytes, b: Bytes| Bytes {
            ciphertext_up: a.ciphertext_up.max(b.ciphertext_up),
            ciphertext_down: a.ciphertext_down.max(b.ciphertext_down),
            frame_up: a.frame_up.max(b.frame_up),
            frame_down: a.frame_down.max(b.frame_down),
            plain: a.plain.max(b.plain),
        };
        let bytes = jobs.iter().map(|job| job.answer.bytes).reduce(largest);
        let times = Part::ALL
            .map(|part| (part, jobs.iter().map(|job| job.answer.timing.of(part)).collect()))
            .into();
        Ok(Self {
            model: card.id().to_owned(),
            labels: card.labels().to_vec(),
            features: card.feature_count() as u64,
            scheme,
            evaluation: evaluation(card),
            cross_validated: provenance.to_owned(),
            jobs: jobs.len(),
            agree: jobs.iter().filter(|job| job.agrees()).count(),
            close: jobs.iter().filter(|job| job.is_close()).count(),
            right: jobs.iter().filter(|job| job.is_right()).count(),
            bytes: bytes.context("there was no job")?,
            naive_reading: (scheme == Scheme::Tfhe).then(naive::bytes_per_reading).transpose()?,
            opening,
            times,
        })
    }

    /// The durations of every part, the sum last.
    #[must_use]
    pub fn times(&self) -> &[(Part, Distribution)] {
        &self.times
    }

    /// The given percentile of one part, readable.
    #[must_use]
    pub fn percentile(&self, wanted: Part, percent: usize) -> String {
        let times = self.times.iter().find(|(part, _)| *part == wanted);
        let value = times.and_then(|(_, times)| times.percentile(percent));
        value.map_or_else(String::new, readable)
    }

    /// Bytes of a window's readings, each as a `CompressedFheInt16`.
    #[must_use]
    pub fn naive_window(&self) -> Option<u64> {
        Some(self.naive_reading? * READINGS)
    }

    /// Bytes of the model's features, each as a `CompressedFheInt16`.
    #[must_use]
    pub fn naive_features(&self) -> Option<u64> {
        Some(self.naive_reading? * self.features)
    }
}

fn evaluation(card: &ModelCard) -> String {
    match card {
        ModelCard::Tfhe(_) => format!("{} programmable bootstraps", card.bootstraps()),
        ModelCard::Ckks(card) => match (card.kind(), card.method()) {
            (CkksKind::Linear, Method::Dot) => "a dot product for each score".to_owned(),
            (CkksKind::Linear, _) => "a product with a matrix".to_owned(),
            _ => "two layers with squares between".to_owned(),
        },
    }
}
