//! Which of the waiting jobs goes first, and which gives way.

use std::str::FromStr;

/// What a task wants of the jobs that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Every job counts: the oldest is sent first, and where nothing more fits a new one is refused.
    #[default]
    OldestFirst,
    /// The present counts: the newest is sent first, and where nothing more fits the oldest is dropped.
    NewestFirst,
}

impl FromStr for Order {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "oldest-first" => Ok(Self::OldestFirst),
            "newest-first" => Ok(Self::NewestFirst),
            _ => Err("it must be \"oldest-first\" or \"newest-first\""),
        }
    }
}
