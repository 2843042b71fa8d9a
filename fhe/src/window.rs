//! A window of samples, its features, and their quantised levels.
//!
//! Invariants:
//! - Every value is finite; a window has as many values as samples × channels.
//! - All arithmetic is in `f64`; the standard deviation is that of the population (ddof 0).
//! - Windows and levels are plaintext readings: no `Debug`, no `Clone`, wiped on drop.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// Most samples in a window.
pub const MAX_SAMPLES: usize = 65_536;
/// Most channels in a window.
pub const MAX_CHANNELS: usize = 256;

/// Why values are not a window. The caller must fix its input.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WindowError {
    /// No sample, no channel, or too many.
    #[error(
        "a window has 1 to {MAX_SAMPLES} samples of 1 to {MAX_CHANNELS} channels, \
         not {samples} of {channels}"
    )]
    Shape {
        /// Samples asked for.
        samples: usize,
        /// Channels asked for.
        channels: usize,
    },
    /// Another number of values than samples × channels.
    #[error("the window needs {expected} values, not {actual}")]
    Length {
        /// Samples × channels.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// NaN or infinite.
    #[error("value {index} of the window is not finite")]
    NotFinite {
        /// Index in row-major order.
        index: usize,
    },
}

/// Consecutive samples of all channels, row-major (`values[sample * channels + channel]`).
pub struct Window {
    samples: usize,
    channels: usize,
    values: Zeroizing<Vec<f64>>,
}

impl Window {
    /// Takes `samples` × `channels` values of `f32` or `f64`, sample by sample.
    ///
    /// # Errors
    /// [`WindowError`] when the shape is out of range, the number of values is another one, or a
    /// value is not finite.
    pub fn new<T: Into<f64>>(
        samples: usize,
        channels: usize,
        values: impl IntoIterator<Item = T>,
    ) -> Result<Self, WindowError> {
        if !(1..=MAX_SAMPLES).contains(&samples) || !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(WindowError::Shape { samples, channels });
        }
        let expected = samples * channels;
        // Allocated once: a growing vector would leave copies of the readings behind.
        let mut kept = Zeroizing::new(Vec::with_capacity(expected));
        let mut actual = 0;
        for value in values {
            let value: f64 = value.into();
            if !value.is_finite() {
                return Err(WindowError::NotFinite { index: actual });
            }
            actual += 1;
            if actual > expected {
                return Err(WindowError::Length { expected, actual });
            }
            kept.push(value);
        }
        if actual != expected {
            return Err(WindowError::Length { expected, actual });
        }
        Ok(Self { samples, channels, values: kept })
    }

    /// Number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Number of channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The values of one channel in time order; empty when there is no such channel.
    fn channel(&self, channel: usize) -> impl Iterator<Item = f64> {
        self.values.iter().skip(channel).step_by(self.channels).copied()
    }
}

/// A statistic over the samples of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Standard deviation of the population (ddof 0).
    Std,
    /// Largest value.
    Max,
    /// Smallest value.
    Min,
}

impl Statistic {
    pub(crate) fn of(self, window: &Window, channel: usize) -> f64 {
        let count = window.channel(channel).fold(0.0, |count, _| count + 1.0);
        let mean = window.channel(channel).sum::<f64>() / count;
        match self {
            Self::Mean => mean,
            Self::Std => {
                let squares: f64 = window.channel(channel).map(|v| (v - mean) * (v - mean)).sum();
                (squares / count).sqrt()
            }
            Self::Max => window.channel(channel).fold(f64::NEG_INFINITY, f64::max),
            Self::Min => window.channel(channel).fold(f64::INFINITY, f64::min),
        }
    }
}

/// A transform between statistic and quantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Transform {
    /// The statistic as it is.
    None,
    /// sign(x) · ln(1 + |x|).
    SignedLog,
}

impl Transform {
    pub(crate) fn apply(self, value: f64) -> f64 {
        match self {
            Self::None => value,
            Self::SignedLog => value.abs().ln_1p().copysign(value),
        }
    }
}

/// One quantised input of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Index of the channel in the window.
    pub channel: usize,
    /// What is computed over the channel's samples.
    pub statistic: Statistic,
    /// What is applied to the statistic.
    pub transform: Transform,
    /// Strictly increasing bounds, one fewer than the model has levels. The level is the number
    /// of edges at or below the transformed value.
    pub edges: Vec<f64>,
}

impl Feature {
    /// The level of this feature in a window that has its channel.
    pub(crate) fn level(&self, window: &Window) -> u8 {
        let value = self.transform.apply(self.statistic.of(window, self.channel));
        // A statistic of huge readings may overflow to infinity or, for the deviation, NaN:
        // infinity is beyond every edge, NaN is treated like it.
        let reached = self.edges.iter().filter(|edge| **edge <= value || value.is_nan()).count();
        u8::try_from(reached).unwrap_or(u8::MAX)
    }
}
