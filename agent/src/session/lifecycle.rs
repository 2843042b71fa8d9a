//! The states of a session and the ways from one to the next.
//!
//! ```text
//! Generating ─▶ Registering ─▶ Active ─▶ Draining ─▶ Ended(closed | rotated)
//!      └─────────────┴────────────┴──────────┴─────▶ Ended(expired | revoked | failed)
//! ```
//!
//! Invariants:
//! - a state is consumed by the transition that leaves it, and there is no other transition than
//!   those of the picture: a draining session never becomes active, an ended one nothing at all;
//! - a session that drains may have been in any state before: what it was handed is still finished;
//! - nothing here does anything: no clock, no I/O, no keys.

use serde::{Deserialize, Serialize};

use crate::onboard::Code;

/// Its keys are being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generating(());

/// Its keys are made; no server is ready to compute yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registering(());

/// It is the one that its task's jobs go to, and a server has taken its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active(());

/// It takes nothing more and finishes what waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining(DrainReason);

/// It is over, and its keys are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended(EndReason);

/// Why a session takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainReason {
    /// The task was closed.
    Closed,
    /// The task goes on with a newer session.
    Rotated,
}

/// Why a session ends at once, whatever waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutReason {
    /// Its time was over.
    Expired,
    /// Somebody wants its keys gone now.
    Revoked,
    /// It could not be set up or kept.
    Failed(String),
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// Its time was over.
    Expired,
    /// The task was closed.
    Closed,
    /// The task goes on with a newer session.
    Rotated,
    /// Somebody wanted its keys gone.
    Revoked,
    /// It could not be set up or kept.
    Failed(String),
}

impl EndReason {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Expired => "the session's time is over".to_owned(),
            Self::Closed => "the task was closed".to_owned(),
            Self::Rotated => "the session was rotated".to_owned(),
            Self::Revoked => "the session was revoked".to_owned(),
            Self::Failed(why) => why.clone(),
        }
    }

    /// In one word, for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Closed => "closed",
            Self::Rotated => "rotated",
            Self::Revoked => "revoked",
            Self::Failed(_) => "failed",
        }
    }

    /// What a job that it leaves without an answer is refused with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Expired => Code::Expired,
            Self::Revoked => Code::Revoked,
            Self::Closed | Self::Rotated | Self::Failed(_) => Code::SessionEnded,
        }
    }
}

impl From<DrainReason> for EndReason {
    fn from(reason: DrainReason) -> Self {
        match reason {
            DrainReason::Closed => Self::Closed,
            DrainReason::Rotated => Self::Rotated,
        }
    }
}

impl From<CutReason> for EndReason {
    fn from(reason: CutReason) -> Self {
        match reason {
            CutReason::Expired => Self::Expired,
            CutReason::Revoked => Self::Revoked,
            CutReason::Failed(why) => Self::Failed(why),
        }
    }
}

impl Generating {
    /// Its keys are made.
    #[must_use]
    pub fn generated(self) -> Registering {
        Registering(())
    }
}

impl Registering {
    /// A server is ready to compute.
    #[must_use]
    pub fn registered(self) -> Active {
        Active(())
    }
}

impl Draining {
    /// Why it drains.
    #[must_use]
    pub fn reason(self) -> DrainReason {
        self.0
    }

    /// Nothing waits any more.
    #[must_use]
    pub fn drained(self) -> Ended {
        Ended(self.0.into())
    }
}

impl Ended {
    /// Why it ended.
    #[must_use]
    pub fn reason(&self) -> &EndReason {
        &self.0
    }
}

/// States in which a session takes jobs.
pub trait Taking: sealed::Sealed {
    /// It takes nothing more.
    #[must_use]
    fn drain(self, reason: DrainReason) -> Draining
    where
        Self: Sized,
    {
        Draining(reason)
    }
}

impl Taking for Generating {}
impl Taking for Registering {}
impl Taking for Active {}

/// States from which a session can end at once: all but the end.
pub trait Living: sealed::Sealed {
    /// It ends, whatever waits.
    #[must_use]
    fn cut(self, reason: CutReason) -> Ended
    where
        Self: Sized,
    {
        Ended(reason.into())
    }
}

impl Living for Generating {}
impl Living for Registering {}
impl Living for Active {}
impl Living for Draining {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Generating {}
    impl Sealed for super::Registering {}
    impl Sealed for super::Active {}
    impl Sealed for super::Draining {}
}

/// The state of a session that lives, as its vault record has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// See [`Generating`].
    Generating(Generating),
    /// See [`Registering`].
    Registering(Registering),
    /// See [`Active`].
    Active(Active),
    /// See [`Draining`].
    Draining(Draining),
}

impl Lifecycle {
    /// The first state.
    #[must_use]
    pub fn begin() -> Self {
        Self::Generating(Generating(()))
    }

    /// The first state of a session whose keys were made ahead.
    #[must_use]
    pub fn begin_with_keys() -> Self {
        Self::Registering(Generating(()).generated())
    }

    /// In one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Generating(_) => "generating",
            Self::Registering(_) => "registering",
            Self::Active(_) => "active",
            Self::Draining(_) => "draining",
        }
    }

    /// Why it drains; none if it takes jobs.
    #[must_use]
    pub fn draining(self) -> Option<DrainReason> {
        match self {
            Self::Draining(draining) => Some(draining.reason()),
            Self::Generating(_) | Self::Registering(_) | Self::Active(_) => None,
        }
    }

    /// Whether jobs go to it and a server has had its keys.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Active(_))
    }

    /// Its keys are made; news to a session that made them for the first time only.
    #[must_use]
    pub fn generated(self) -> Self {
        match self {
            Self::Generating(state) => Self::Registering(state.generated()),
            other => other,
        }
    }

    /// A server is ready; news to a session that registers only.
    #[must_use]
    pub fn registered(self) -> Self {
        match self {
            Self::Registering(state) => Self::Active(state.registered()),
            other => other,
        }
    }

    /// It takes nothing more; the first reason stands.
    #[must_use]
    pub fn drain(self, reason: DrainReason) -> Self {
        Self::Draining(match self {
            Self::Generating(state) => state.drain(reason),
            Self::Registering(state) => state.drain(reason),
            Self::Active(state) => state.drain(reason),
            Self::Draining(state) => state,
        })
    }

    /// It ends, whatever waits.
    #[must_use]
    pub fn cut(self, reason: CutReason) -> Ended {
        match self {
            Self::Generating(state) => state.cut(reason),
            Self::Registering(state) => state.cut(reason),
            Self::Active(state) => state.cut(reason),
            Self::Draining(state) => state.cut(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lives_in_one_direction() {
        let begun = Lifecycle::begin();
        assert_eq!(begun.word(), "generating");
        assert_eq!(begun.registered(), begun, "there are no keys to register");
        let registering = begun.generated();
        assert_eq!(registering, Lifecycle::begin_with_keys());
        let active = registering.registered();
        assert!(active.is_active());
        assert_eq!(active.generated(), active, "keys made again change nothing");
        let draining = active.drain(DrainReason::Rotated);
        assert_eq!(draining.registered(), draining, "a draining session takes nothing more");
        assert_eq!(draining.drain(DrainReason::Closed).draining(), Some(DrainReason::Rotated));
    }

    #[test]
    fn every_state_can_drain_and_be_cut() {
        let begun = Lifecycle::begin();
        let all = [
            begun,
            begun.generated(),
            begun.generated().registered(),
            begun.drain(DrainReason::Rotated),
        ];
        for state in all {
            let Lifecycle::Draining(draining) = state.drain(DrainReason::Rotated) else {
                panic!("{} does not drain", state.word());
            };
            assert_eq!(draining.drained().reason(), &EndReason::Rotated);
            assert_eq!(state.cut(CutReason::Revoked).reason(), &EndReason::Revoked);
            assert_eq!(state.cut(CutReason::Expired).reason().code(), Code::Expired);
        }
    }

    #[test]
    fn a_state_comes_back_from_the_vault_as_it_went() {
        for state in [Lifecycle::begin(), Lifecycle::begin().drain(DrainReason::Closed)] {
            let mut bytes = Vec::new();
            ciborium::into_writer(&state, &mut bytes).unwrap();
            assert_eq!(ciborium::from_reader::<Lifecycle, _>(&bytes[..]).unwrap(), state);
        }
    }
}
