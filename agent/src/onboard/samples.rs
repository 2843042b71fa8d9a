//! Sensor samples, as the topic `input` takes them in every format.
//!
//! Invariants:
//! - a message is refused whole or taken whole;
//! - every value is finite, and all samples of a message have the same number of values;
//! - a refusal names places, never values.

use std::num::NonZeroUsize;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::format::{self, Format};
use super::refusal::{Code, Refusal};

/// Most samples in a message.
pub(super) const MAX_SAMPLES_PER_MESSAGE: usize = 4096;
/// Most channels of a sample.
pub const MAX_CHANNELS: usize = moai_fhe::MAX_CHANNELS;

/// Samples, oldest first. Secret, therefore not `Debug`; wiped on drop.
pub struct Samples {
    values: Zeroizing<Vec<f64>>,
    /// Values of each sample; packed formats do not tell.
    width: Option<NonZeroUsize>,
}

impl Samples {
    /// One sample with these values. `None` if there are none or too many, or one is not finite.
    #[must_use]
    pub fn one(values: Vec<f64>) -> Option<Self> {
        let width = NonZeroUsize::new(values.len()).filter(|width| width.get() <= MAX_CHANNELS)?;
        let is_finite = values.iter().all(|value| value.is_finite());
        is_finite.then(|| Self { values: Zeroizing::new(values), width: Some(width) })
    }

    /// Reads the payload of an input.
    ///
    /// # Errors
    /// It is none, or too much.
    pub fn parse(format: Format, payload: &[u8]) -> Result<Self, Refusal> {
        let collected = match format::read::<Collected>(format, payload) {
            Some(collected) => collected.map_err(|place| {
                let message = format!(
                    "not an input ({}): send v, [v, …], {{\"values\": [v, …]}} or \
                     {{\"samples\": [[v, …], …]}} with finite numbers",
                    place.0
                );
                Refusal::new(Code::Malformed, message)
            })?,
            None => Collected::packed(format::unpack(format, payload)),
        };
        if let Some(problem) = collected.problem {
            return Err(problem.refusal());
        }
        let width = NonZeroUsize::new(collected.width);
        Ok(Self { values: Zeroizing::new(collected.values), width })
    }

    /// The samples, if each has `channels` values.
    ///
    /// # Errors
    /// They have another number of values.
    pub fn rows(
        &self,
        channels: NonZeroUsize,
    ) -> Result<std::slice::ChunksExact<'_, f64>, Refusal> {
        let len = self.values.len();
        let message = match self.width {
            Some(width) if width != channels => {
                format!("{channels} values make a sample, this one has {width}")
            }
            None if len % channels != 0 => format!(
                "{channels} values make a sample, and {len} values are no whole number of samples"
            ),
            None if len / channels > MAX_SAMPLES_PER_MESSAGE => Problem::Samples.refusal().message,
            _ => return Ok(self.values.chunks_exact(channels.get())),
        };
        let message = format!("{message}; nothing of the message was taken");
        Err(Refusal::new(Code::WrongLength, message))
    }

    /// How many values there are.
    #[must_use]
    pub fn value_count(&self) -> usize {
        self.values.len()
    }
}

/// What is wrong with the shape or the values of a message that was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    /// No sample, or too many.
    Samples,
    /// This sample (from 1) has no value, or too many.
    Width { sample: usize },
    /// This sample has another number of values than the first.
    Ragged { sample: usize },
    /// This sample has a value that is not finite.
    NotFinite { sample: usize },
    /// This value (from 1) of a packed payload is not finite.
    NotFiniteValue { value: usize },
    /// The payload is no whole number of values.
    Packed,
}

impl Problem {
    fn refusal(self) -> Refusal {
        let (code, message) = match self {
            Self::Samples => (
                Code::WrongLength,
                format!("a message holds 1 to {MAX_SAMPLES_PER_MESSAGE} samples"),
            ),
            Self::Width { sample } => (
                Code::WrongLength,
                format!("sample {sample} does not have 1 to {MAX_CHANNELS} values"),
            ),
            Self::Ragged { sample } => (
                Code::WrongLength,
                format!("sample {sample} has another number of values than sample 1"),
            ),
            Self::NotFinite { sample } => {
                (Code::NotFinite, format!("sample {sample} holds a value that is not finite"))
            }
            Self::NotFiniteValue { value } => {
                (Code::NotFinite, format!("value {value} is not finite"))
            }
            Self::Packed => {
                (Code::WrongLength, "the payload is no whole number of values".to_owned())
            }
        };
        Refusal::new(code, message)
    }
}

/// What a parser has found so far. After a problem it goes on, to see whether the rest is one
/// document, and keeps nothing more.
#[derive(Default)]
struct Collected {
    values: Vec<f64>,
    width: usize,
    samples: usize,
    in_sample: usize,
    problem: Option<Problem>,
}

impl Collected {
    fn packed(values: Option<Vec<f64>>) -> Self {
        let problem = match &values {
            None => Some(Problem::Packed),
            Some(values) if values.is_empty() => Some(Problem::Samples),
            Some(values) => values
                .iter()
                .position(|value| !value.is_finite())
                .map(|index| Problem::NotFiniteValue { value: index + 1 }),
        };
        Self { values: values.unwrap_or_default(), problem, ..Self::default() }
    }

    fn note(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
        self.values.clear();
    }

    fn value(&mut self, value: f64) {
        self.in_sample += 1;
        if self.in_sample > MAX_CHANNELS {
            self.note(Problem::Width { sample: self.samples + 1 });
        } else if !value.is_finite() {
            self.note(Problem::NotFinite { sample: self.samples + 1 });
        }
        if self.problem.is_none() {
            self.values.push(value);
        }
    }

    fn end_sample(&mut self) {
        self.samples += 1;
        let (sample, width) = (self.samples, std::mem::take(&mut self.in_sample));
        if sample == 1 {
            self.width = width;
        }
        if width == 0 {
            self.note(Problem::Width { sample });
        } else if width != self.width {
            self.note(Problem::Ragged { sample });
        } else if sample > MAX_SAMPLES_PER_MESSAGE {
            self.note(Problem::Samples);
        }
    }
}

impl<'de> Deserialize<'de> for Collected {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut collected = Self::default();
        deserializer.deserialize_any(Root(&mut collected))?;
        Ok(collected)
    }
}

/// A whole input: a bare value, a bare sample, or an object with one of two keys.
struct Root<'c>(&'c mut Collected);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Values,
    Samples,
}

/// The numbers that a parser may meet; everything else is refused by serde's defaults.
macro_rules! visit_numbers {
    () => {
        fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
            self.number(value)
        }

        #[expect(clippy::cast_precision_loss, reason = "readings beyond 2⁵³ are rounded")]
        fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
            self.number(value as f64)
        }

        #[expect(clippy::cast_precision_loss, reason = "readings beyond 2⁵³ are rounded")]
        fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
            self.number(value as f64)
        }
    };
}

impl Root<'_> {
    #[expect(clippy::unnecessary_wraps, reason = "what visitors return")]
    fn number<E>(self, value: f64) -> Result<(), E> {
        self.0.value(value);
        self.0.end_sample();
        Ok(())
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an input")
    }

    visit_numbers!();

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        Sample(self.0).visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match map.next_key()? {
            Some(Key::Values) => map.next_value_seed(Sample(self.0))?,
            Some(Key::Samples) => map.next_value_seed(List(self.0))?,
            None => return Err(A::Error::custom("neither `values` nor `samples`")),
        }
        match map.next_key::<Key>()? {
            Some(_) => Err(A::Error::custom("more than one of `values` and `samples`")),
            None => Ok(()),
        }
    }
}

/// One sample: a list of numbers.
struct Sample<'c>(&'c mut Collected);

impl<'de> DeserializeSeed<'de> for Sample<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Sample<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(Number(value)) = items.next_element()? {
            self.0.value(value);
        }
        self.0.end_sample();
        Ok(())
    }
}

/// A list of samples.
struct List<'c>(&'c mut Collected);

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of samples")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Sample(self.0))?.is_some() {}
        if self.0.samples == 0 {
            self.0.note(Problem::Samples);
        }
        Ok(())
    }
}

/// A number, however the format writes it.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl NumberVisitor {
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "what visitors look like")]
    fn number<E>(self, value: f64) -> Result<Number, E> {
        Ok(Number(value))
    }
}

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a number")
    }

    visit_numbers!();
}

#[cfg(test)]
mod tests;
