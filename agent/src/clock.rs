//! The clocks a session lives by, injected so that tests own time.
//!
//! Invariants:
//! - lifetimes are measured on the boot clock (`CLOCK_BOOTTIME`: monotonic, counts suspend), so a
//!   wall clock that jumps changes no lifetime;
//! - an instant of the boot clock means nothing without the boot it belongs to.

pub mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Which run of the kernel an instant belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(String);

impl BootId {
    /// The running kernel's id.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self(text.trim().to_owned()))
    }

    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Display for BootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A point on the boot clock: milliseconds since the kernel started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootInstant(pub u64);

impl BootInstant {
    /// This instant moved by `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The instant `duration` before this one, or when the kernel started.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long from `now` until this instant; zero if it has passed.
    #[must_use]
    pub fn remaining(self, now: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(now.0))
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Now, on the boot clock.
    fn boot(&self) -> BootInstant;

    /// Now, as Unix time, for what leaves the robot (ids, expiry of frames).
    fn unix(&self) -> Duration;

    /// Whether the wall clock is known to be right: something has set it by a time server in this
    /// boot.
    fn is_trusted(&self) -> bool;
}

/// systemd-timesyncd makes this file once it has set the clock, and it goes with the boot. Whoever
/// uses another time service has that make it.
pub const SYNCHRONISED_FILE: &str = "/run/systemd/timesync/synchronized";

/// The kernel's clocks.
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot(&self) -> BootInstant {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let milliseconds = u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
        BootInstant(seconds.saturating_mul(1000).saturating_add(milliseconds))
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn is_trusted(&self) -> bool {
        std::path::Path::new(SYNCHRONISED_FILE).exists()
    }
}
