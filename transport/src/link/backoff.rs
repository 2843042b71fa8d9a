//! How long to wait between attempts to connect.
//!
//! Invariants:
//! - no wait is longer than the maximum;
//! - every wait is random over at least half of its span, so that a fleet that lost its broker at
//!   one moment does not come back at one moment;
//! - a connection that does not last does not count as success.

use std::time::Duration;

/// Waits between attempts to connect: short at first, doubling up to a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect {
    /// Upper bound of the first wait; the second lies between this and twice this.
    pub initial: Duration,
    /// Upper bound of all waits. A connection that lasted this long starts over with short waits.
    pub max: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

/// Counts failures and turns them into waits.
#[derive(Debug)]
pub(super) struct Backoff {
    reconnect: Reconnect,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(reconnect: Reconnect) -> Self {
        Self { reconnect, failures: 0 }
    }

    /// A connection ended that had been up for `uptime`.
    pub(super) fn on_connection(&mut self, uptime: Duration) {
        if uptime >= self.reconnect.max {
            self.failures = 0;
        }
    }

    /// How long to wait before the next attempt, by a random number. After a fatal error the
    /// longest wait: whatever it takes will not happen within a second.
    pub(super) fn next_wait(&mut self, is_fatal: bool, random: u32) -> Duration {
        let Reconnect { initial, max } = self.reconnect;
        let fraction = f64::from(random) / (f64::from(u32::MAX) + 1.0);
        let doubled = 2_u32.checked_pow(self.failures).and_then(|times| initial.checked_mul(times));
        let span = if is_fatal { max } else { doubled.unwrap_or(max).min(max) };
        let wait = if self.failures == 0 && !is_fatal {
            span.mul_f64(fraction)
        } else {
            span.mul_f64(0.5 + fraction / 2.0)
        };
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_wait_is_short_and_later_ones_double_up_to_the_maximum() {
        let mut longest = Backoff::new(Reconnect::default());
        let waits: Vec<_> =
            (0..7).map(|_| longest.next_wait(false, u32::MAX).as_secs_f64().round()).collect();
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        let mut shortest = Backoff::new(Reconnect::default());
        assert_eq!(shortest.next_wait(false, 0), Duration::ZERO);
        assert_eq!(shortest.next_wait(false, 0), SECOND);
        assert_eq!(shortest.next_wait(false, 0), 2 * SECOND);
    }

    #[test]
    fn a_fatal_error_waits_long_at_once() {
        let mut backoff = Backoff::new(Reconnect::default());
        assert_eq!(backoff.next_wait(true, 0), 15 * SECOND);
    }

    #[test]
    fn only_a_connection_that_lasted_starts_over() {
        let mut backoff = Backoff::new(Reconnect::default());
        backoff.next_wait(false, 0);
        backoff.next_wait(false, 0);
        backoff.on_connection(29 * SECOND);
        assert_eq!(backoff.next_wait(false, 0), 2 * SECOND);
        backoff.on_connection(30 * SECOND);
        assert_eq!(backoff.next_wait(false, 0), Duration::ZERO);
    }

    #[test]
    fn any_number_of_failures_is_survived() {
        let mut backoff = Backoff::new(Reconnect { initial: SECOND, max: 30 * SECOND });
        backoff.failures = u32::MAX;
        assert!(backoff.next_wait(false, u32::MAX) <= 30 * SECOND);
    }
}
