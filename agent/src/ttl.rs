//! Lifetime classes of sessions.
//!
//! Invariant: no class lives longer than [`MAX_LIFETIME`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a session may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TtlClass {
    /// 1 hour unless configured otherwise.
    #[default]
    General,
    /// 15 minutes, for readings whose exposure would hurt most.
    Sensitive,
    /// 4 hours, for slow links and rare readings.
    Long,
}

impl std::str::FromStr for TtlClass {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "general" => Ok(Self::General),
            "sensitive" => Ok(Self::Sensitive),
            "long" => Ok(Self::Long),
            _ => Err("it must be \"general\", \"sensitive\" or \"long\""),
        }
    }
}

/// The longest lifetime a configuration may give a class.
pub const MAX_LIFETIME: Duration = Duration::from_hours(4);

/// The lifetime of each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of [`TtlClass::General`].
    pub general: Duration,
    /// Of [`TtlClass::Sensitive`].
    pub sensitive: Duration,
    /// Of [`TtlClass::Long`].
    pub long: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            general: Duration::from_hours(1),
            sensitive: Duration::from_mins(15),
            long: MAX_LIFETIME,
        }
    }
}

impl Lifetimes {
    /// How long a session of this class lives.
    #[must_use]
    pub fn of(&self, class: TtlClass) -> Duration {
        match class {
            TtlClass::General => self.general,
            TtlClass::Sensitive => self.sensitive,
            TtlClass::Long => self.long,
        }
    }
}
