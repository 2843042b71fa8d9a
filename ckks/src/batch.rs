//! MOAI's SIMD batching: several windows in one ciphertext.
//!
//! Window w begins at slot w·stride, where the stride is the power of two from the number of inputs
//! on; what is not used is zero. A server multiplies all windows with weights that are tiled the same
//! way and adds up each window with log2(stride) rotations; the sum of window w stands at its first
//! slot.
//!
//! Invariant: strides divide the number of slots, so that rotations carry nothing across the ends.

use zeroize::Zeroizing;

use crate::encoder::EncodeError;
use crate::evaluation::Selection;
use crate::parameters::Parameters;

/// Where windows stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLayout {
    slots: usize,
    inputs: usize,
    stride: usize,
}

impl BatchLayout {
    /// For windows of this many inputs.
    ///
    /// # Errors
    /// [`EncodeError::Count`] when there is no input, or more than a ciphertext holds.
    pub fn new(parameters: &Parameters, inputs: usize) -> Result<Self, EncodeError> {
        let slots = parameters.slots();
        if !(1..=slots).contains(&inputs) {
            return Err(EncodeError::Count { slots });
        }
        Ok(Self { slots, inputs, stride: inputs.next_power_of_two() })
    }

    /// How many windows a ciphertext holds.
    #[must_use]
    pub fn capacity(self) -> usize {
        self.slots / self.stride
    }

    /// Slots from one window to the next.
    #[must_use]
    pub fn stride(self) -> usize {
        self.stride
    }

    /// The rotations that add up each window.
    #[must_use]
    pub fn selection(self) -> Selection {
        Selection::for_dot(self.stride)
    }

    /// The values of all slots.
    ///
    /// # Errors
    /// [`EncodeError::Count`] when there are more windows than fit, none, or one has another number
    /// of inputs.
    pub fn pack<'a>(
        self,
        windows: impl IntoIterator<Item = &'a [f64]>,
    ) -> Result<Zeroizing<Vec<f64>>, EncodeError> {
        let refused = EncodeError::Count { slots: self.slots };
        let mut slots = Zeroizing::new(vec![0.0; self.slots]);
        let mut places = slots.chunks_exact_mut(self.stride);
        let mut count = 0;
        for window in windows {
            let place = places.next().and_then(|place| place.get_mut(..self.inputs));
            let place = place.filter(|place| place.len() == window.len()).ok_or(refused)?;
            place.copy_from_slice(window);
            count += 1;
        }
        if count == 0 { Err(refused) } else { Ok(slots) }
    }

    /// The first `outputs` values of each window.
    #[must_use]
    pub fn unpack(self, slots: &[f64], outputs: usize) -> Vec<&[f64]> {
        let windows = slots.chunks_exact(self.stride);
        windows.filter_map(|window| window.get(..outputs)).collect()
    }
}
