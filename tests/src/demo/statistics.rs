//! Percentiles.

use std::time::Duration;

/// Durations of one kind, one per job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    sorted: Vec<Duration>,
}

impl Distribution {
    /// The smallest value that at least `percent` % of the values do not exceed (nearest rank).
    ///
    /// None if there are no values.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.sorted.len() * percent.min(100)).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied()
    }

    /// All values, in ascending order.
    #[must_use]
    pub fn values(&self) -> &[Duration] {
        &self.sorted
    }
}

impl FromIterator<Duration> for Distribution {
    fn from_iter<I: IntoIterator<Item = Duration>>(values: I) -> Self {
        let mut sorted: Vec<Duration> = values.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

/// A duration with three significant digits and a unit.
#[must_use]
pub fn readable(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    let (value, unit) = match micros {
        ..999.5 => (micros, "µs"),
        ..999_500.0 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    // A clock of microseconds has no fractions to show.
    format!("{value:.*} {unit}", if unit == "µs" { 0 } else { decimals })
}

/// A whole number with a comma before every three digits.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in megabytes (10⁶ bytes), with one decimal.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// `part` of `whole` in per cent, with one decimal.
#[must_use]
pub fn percent(part: usize, whole: usize) -> String {
    let tenths = (part * 2000 + whole) / (2 * whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(millis: impl IntoIterator<Item = u64>) -> Distribution {
        millis.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred = distribution((1..=100).rev());
        for percent in [1, 50, 99, 100] {
            let expected = Duration::from_millis(percent as u64);
            assert_eq!(hundred.percentile(percent), Some(expected));
        }
        assert_eq!(hundred.percentile(0), Some(Duration::from_millis(1)));
        let forty = distribution(1..=40);
        assert_eq!(forty.percentile(50), Some(Duration::from_millis(20)));
        assert_eq!(forty.percentile(99), Some(Duration::from_millis(40)), "the slowest of forty");
        assert_eq!(distribution([7]).percentile(50), Some(Duration::from_millis(7)));
        assert_eq!(distribution([]).percentile(50), None);
    }

    #[test]
    fn numbers_are_readable() {
        for (micros, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_000, "1.00 ms"),
            (12_340, "12.3 ms"),
            (123_400, "123 ms"),
            (999_600, "1.00 s"),
            (1_234_000, "1.23 s"),
            (83_000_000, "83.0 s"),
        ] {
            assert_eq!(readable(Duration::from_micros(micros)), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(megabytes(22_593_601), "22.6 MB");
        assert_eq!(percent(40, 40), "100.0 %");
        assert_eq!(percent(2, 3), "66.7 %");
        assert_eq!(percent(0, 0), "0.0 %");
    }
}
