//! Stopwatch and statistics.
//!
//! Invariants:
//! - what is compared is measured in turns within the same rounds, so that whatever else the
//!   machine does meets all of it alike;
//! - a ratio is the median of the rounds' ratios, a cost the median of the rounds' costs;
//! - CPU time is that of the whole process, threads of libraries included.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

/// A batch lasts at least this long, so that the clocks' steps don't matter.
const BATCH: Duration = Duration::from_millis(20);
const MAX_REPEATS: u32 = 10_000;

/// What an operation put out, in bytes; 0 if that doesn't matter.
pub type Output = usize;

/// An operation to measure.
pub type Operation<'a> = &'a mut dyn FnMut() -> Result<Output>;

/// CPU time of this process so far.
#[must_use]
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Seconds of one operation.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// By the clock on the wall.
    pub wall: f64,
    /// On all processors together.
    pub cpu: f64,
}

/// The same operation over all rounds.
#[derive(Debug, Default)]
pub struct Series {
    costs: Vec<Cost>,
    /// What the operation put out last.
    pub output: Output,
}

impl Series {
    /// Adds a round.
    pub fn push(&mut self, cost: Cost) {
        self.costs.push(cost);
    }

    /// Median seconds by the clock on the wall.
    #[must_use]
    pub fn wall(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.wall))
    }

    /// Median CPU seconds.
    #[must_use]
    pub fn cpu(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.cpu))
    }

    /// How many times the CPU time of `other` this takes.
    #[must_use]
    pub fn cpu_over(&self, other: &Self) -> f64 {
        self.ratio(other, |cost| cost.cpu)
    }

    /// How many times as long as `other` this takes.
    #[must_use]
    pub fn wall_over(&self, other: &Self) -> f64 {
        self.ratio(other, |cost| cost.wall)
    }

    fn ratio(&self, other: &Self, time: impl Fn(&Cost) -> f64) -> f64 {
        median(self.costs.iter().zip(&other.costs).map(|(own, other)| time(own) / time(other)))
    }
}

/// Measures operations in turns, after one run of each to warm up. Short ones are repeated within
/// a round.
///
/// # Errors
/// An operation fails.
pub fn compare<const N: usize>(
    rounds: usize,
    mut operations: [Operation<'_>; N],
) -> Result<[Series; N]> {
    let mut repeats = [1; N];
    for (operation, repeats) in operations.iter_mut().zip(&mut repeats) {
        black_box(operation()?);
        let once = time(1, operation)?.0;
        let wanted = BATCH.as_secs_f64() / once.wall.max(1e-9);
        *repeats = (1..=MAX_REPEATS).find(|n| f64::from(*n) >= wanted).unwrap_or(MAX_REPEATS);
    }
    let mut series: [Series; N] = std::array::from_fn(|_| Series::default());
    for _ in 0..rounds {
        for ((operation, repeats), series) in operations.iter_mut().zip(repeats).zip(&mut series) {
            let (cost, output) = time(repeats, operation)?;
            series.push(cost);
            series.output = output;
        }
    }
    Ok(series)
}

fn time(repeats: u32, operation: &mut Operation<'_>) -> Result<(Cost, Output)> {
    let watch = Stopwatch::start();
    let mut output = 0;
    for _ in 0..repeats {
        output = black_box(operation()?);
    }
    let Cost { wall, cpu } = watch.cost();
    Ok((Cost { wall: wall / f64::from(repeats), cpu: cpu / f64::from(repeats) }, output))
}

/// Wall and CPU time from now on.
#[derive(Debug)]
pub struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts.
    #[must_use]
    pub fn start() -> Self {
        Self { cpu: process_cpu(), wall: Instant::now() }
    }

    /// What it took since.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let wall = self.wall.elapsed().as_secs_f64();
        Cost { wall, cpu: process_cpu().saturating_sub(self.cpu).as_secs_f64() }
    }
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    f64::midpoint(middle(sorted.len().saturating_sub(1) / 2), middle(sorted.len() / 2))
}

/// The smallest of the values that at least `percent` % of them don't exceed (nearest rank); 0 of
/// nothing.
#[must_use]
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_textbook() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert!((percentile(&values, 50) - 10.0).abs() < 1e-12);
        assert!((percentile(&values, 99) - 20.0).abs() < 1e-12);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let series = |walls: [f64; 3]| {
            let mut series = Series::default();
            for wall in walls {
                series.push(Cost { wall, cpu: wall });
            }
            series
        };
        // The second round met a machine ten times as busy.
        let (one, twice) = (series([1.0, 10.0, 1.0]), series([2.0, 20.0, 2.0]));
        assert!((twice.wall_over(&one) - 2.0).abs() < 1e-12);
        assert!((one.cpu_over(&twice) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn operations_take_turns_and_a_failure_ends_the_measurement() {
        let calls = std::cell::RefCell::new(Vec::new());
        let run = |name| {
            calls.borrow_mut().push(name);
            let start = Instant::now();
            while start.elapsed() < BATCH {
                std::hint::spin_loop();
            }
            Ok(7)
        };
        let series = compare(2, [&mut || run('a'), &mut || run('b')]).unwrap();
        assert_eq!(calls.borrow().iter().collect::<String>(), "aabbabab");
        assert!(series[0].cpu() > 0.0 && series[1].output == 7);
        assert!(compare(1, [&mut || anyhow::bail!("no")]).is_err());
    }
}
