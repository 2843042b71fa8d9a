//! Things that may happen a thousand times a second and are told once.
//!
//! Invariant: the first is told at once, and from then on all that happened since, once an interval.

use std::time::Duration;

use tokio::time::Instant;

/// How often the same kind of refusal is told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Counts what was not told yet.
#[derive(Default)]
pub struct Throttle {
    count: u64,
    not_before: Option<Instant>,
}

impl Throttle {
    /// It happened so many times more.
    pub fn note(&mut self, count: u64) {
        self.count = self.count.saturating_add(count);
    }

    /// When it is to be told; `None` if there is nothing to tell.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        (self.count > 0).then(|| self.not_before.unwrap_or(now))
    }

    /// How often it happened, if it is to be told now.
    pub fn take(&mut self, now: Instant) -> Option<u64> {
        self.due(now).filter(|due| *due <= now)?;
        self.not_before = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_is_told_at_once_and_the_rest_together() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.take(start), None);
        throttle.note(1);
        assert_eq!(throttle.take(start), Some(1));
        throttle.note(2);
        throttle.note(3);
        assert_eq!(throttle.take(start), None);
        assert_eq!(throttle.due(start), Some(start + INTERVAL));
        assert_eq!(throttle.take(start + INTERVAL), Some(5));
        assert_eq!(throttle.due(start + INTERVAL), None);
    }
}
