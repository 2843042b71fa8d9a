//! Collects samples into windows.
//!
//! Invariants:
//! - windows tumble: every sample belongs to at most one window, and to exactly one unless the window
//!   is begun anew;
//! - a sample of the wrong width changes nothing;
//! - samples are wiped when their window is done.

use moai_fhe::{ModelCard, Window, WindowError};
use zeroize::{Zeroize, Zeroizing};

/// The window under construction.
pub struct WindowBuffer {
    samples: usize,
    channels: usize,
    values: Zeroizing<Vec<f64>>,
}

impl WindowBuffer {
    /// An empty window of the model's shape.
    #[must_use]
    pub fn new(card: &ModelCard) -> Self {
        let shape = card.window();
        let (samples, channels) = (shape.samples, shape.channels.len());
        Self { samples, channels, values: Zeroizing::new(Vec::with_capacity(samples * channels)) }
    }

    /// How many values a sample must have.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Bytes of a window's samples as 64-bit numbers.
    #[must_use]
    pub fn plain_len(&self) -> u32 {
        u32::try_from(self.samples * self.channels * size_of::<f64>()).unwrap_or(u32::MAX)
    }

    /// Forgets the samples of the window under way; returns how many these were.
    pub fn restart(&mut self) -> usize {
        let samples = self.values.len() / self.channels.max(1);
        self.values.zeroize();
        samples
    }

    /// Takes one sample of the right width; returns the window it completes.
    ///
    /// # Errors
    /// The window holds a value that is not finite.
    ///
    /// # Panics
    /// If the sample has not [`WindowBuffer::channels`] values.
    pub fn push(&mut self, sample: &[f64]) -> Result<Option<Window>, WindowError> {
        assert_eq!(sample.len(), self.channels, "the caller checks the width");
        self.values.extend_from_slice(sample);
        if self.values.len() < self.samples * self.channels {
            return Ok(None);
        }
        let empty = Zeroizing::new(Vec::with_capacity(self.values.capacity()));
        let values = std::mem::replace(&mut self.values, empty);
        Window::new(self.samples, self.channels, values.iter().copied()).map(Some)
    }
}
