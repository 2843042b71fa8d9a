//! When a frame still means something.
//!
//! Invariants:
//! - a signed frame says until when, and that is never more than its kind's longest time ahead: what
//!   a receiver remembers against replays it may forget after that;
//! - clocks that differ by no more than [`CLOCK_ALLOWANCE`] change nothing.

use std::time::Duration;

use super::FrameKind;

/// How far the clocks of a robot and a server may differ.
pub const CLOCK_ALLOWANCE: Duration = Duration::from_mins(5);
/// The longest an open may be good for: it is asked anew long before.
pub const MAX_OPEN_LIFETIME: Duration = Duration::from_mins(5);
/// The longest any other frame may be good for; a catalogue's time.
pub const MAX_FRAME_LIFETIME: Duration = Duration::from_hours(24);

/// A frame that was signed for another time. Look at the clocks of both ends; if they are right, it
/// was held back on its way, or replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Its time is over.
    #[error(
        "the frame was good until {} and here it is {}; if that is not what held it back, check \
         the clocks of robot and server",
        utc(*expires_at), utc(*now)
    )]
    Expired {
        /// Until when it was good, in seconds since 1970.
        expires_at: u64,
        /// The receiver's time, in seconds since 1970.
        now: u64,
    },
    /// It would be good for longer than its kind may.
    #[error(
        "the frame is to be good until {}, longer than its kind may, and here it is {}; check the \
         clocks of robot and server",
        utc(*expires_at), utc(*now)
    )]
    FarAhead {
        /// Until when it is to be good, in seconds since 1970.
        expires_at: u64,
        /// The receiver's time, in seconds since 1970.
        now: u64,
    },
}

fn utc(seconds: u64) -> String {
    crate::tls::utc(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// Checks the expiry of a frame at `now`, both in seconds since 1970.
pub(super) fn check(kind: FrameKind, expires_at: u64, now: u64) -> Result<(), Stale> {
    let allowance = CLOCK_ALLOWANCE.as_secs();
    if expires_at.saturating_add(allowance) <= now {
        return Err(Stale::Expired { expires_at, now });
    }
    if expires_at > now.saturating_add(kind.max_lifetime().as_secs() + allowance) {
        return Err(Stale::FarAhead { expires_at, now });
    }
    Ok(())
}
