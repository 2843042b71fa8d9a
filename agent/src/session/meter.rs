//! How fast an upload goes, as people want to know it: over the last seconds, not since the start.
//!
//! Invariants:
//! - what is remembered is bounded, however often it is asked;
//! - an upload that stands still is soon shown as such.

use std::collections::VecDeque;
use std::time::Duration;

use moai_transport::chunk::Progress;
use tokio::time::Instant;

use crate::status::UploadStatus;

/// The rate is that of the last so many seconds; at 60 KB/s a chunk takes two.
const WINDOW: Duration = Duration::from_secs(20);
/// How far apart what is remembered lies at least.
const STEP: Duration = Duration::from_millis(500);

/// Where an upload was and when.
#[derive(Debug, Default)]
pub(super) struct Meter(VecDeque<(Instant, u64)>);

impl Meter {
    /// Notes where the upload is, and tells how fast it came there.
    pub(super) fn measure(&mut self, progress: Progress, now: Instant) -> UploadStatus {
        let Progress { bytes, of } = progress;
        // Another server begins with another upload.
        if self.0.back().is_some_and(|(_, before)| *before > bytes) {
            self.0.clear();
        }
        if self.0.back().is_none_or(|(at, _)| now >= *at + STEP) {
            self.0.push_back((now, bytes));
        }
        while self.0.get(1).is_some_and(|(at, _)| now >= *at + WINDOW) {
            self.0.pop_front();
        }
        let rate = self.0.front().and_then(|(since, before)| {
            let micros = now.saturating_duration_since(*since).as_micros();
            let moved = u128::from(bytes - before) * 1_000_000;
            u64::try_from(moved.checked_div(micros)?).ok()
        });
        let seconds_left = rate.filter(|rate| *rate > 0).map(|rate| (of - bytes).div_ceil(rate));
        UploadStatus { bytes, of, bytes_per_second: rate, seconds_left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::default();
        let mut at = |second: u64, bytes: u64| {
            let now = start + Duration::from_secs(second);
            meter.measure(Progress { bytes, of: 10_000 }, now)
        };
        let first = at(0, 0);
        assert_eq!((first.bytes_per_second, first.seconds_left), (None, None));
        let status = at(10, 1000);
        assert_eq!((status.bytes_per_second, status.seconds_left), (Some(100), Some(90)));
        // From here on ten times as fast, and after a while only that counts.
        at(11, 2000);
        at(12, 3000);
        let status = at(19, 9999);
        assert!(status.bytes_per_second < Some(1000), "{status:?}");
        assert_eq!(status.seconds_left, Some(1));
        // Nothing moves any more.
        at(20, 9999);
        let status = at(45, 9999);
        assert_eq!((status.bytes_per_second, status.seconds_left), (Some(0), None));
        // The keys go to another server, which has nothing.
        assert_eq!(at(46, 0).bytes_per_second, None);
    }

    #[tokio::test(start_paused = true)]
    async fn however_often_it_is_asked_it_remembers_little() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for millis in 0..100_000 {
            let now = start + Duration::from_millis(millis);
            meter.measure(Progress { bytes: millis, of: 200_000 }, now);
        }
        assert!(meter.0.len() < 50, "{}", meter.0.len());
    }
}
