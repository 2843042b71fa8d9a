//! Refusals, as onboard software sees them.
//!
//! Invariant: every refusal has a code of [`Code::ALL`], and the guide explains each of them.

use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// A stable word for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// As messages have it.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

codes! {
    /// A task of this name is open with another model or lifetime.
    AlreadyOpen = "already_open",
    /// More windows wait for an answer than a session keeps.
    BacklogFull = "backlog_full",
    /// The message asks for an answer where none may be published.
    BadResponseTopic = "bad_response_topic",
    /// The server's answer is none.
    BadResult = "bad_result",
    /// The task is the configuration's, and not to be opened otherwise.
    Declared = "declared",
    /// Newer windows took the job's place.
    Dropped = "dropped",
    /// The session's time was over before the job was answered.
    Expired = "expired",
    /// The server takes the robot for another.
    IdentityMismatch = "identity_mismatch",
    /// A trigger came and another topic of the task had nothing fresh.
    Incomplete = "incomplete",
    /// The message is not what its topic takes.
    Malformed = "malformed",
    /// The server cannot read the job.
    MalformedCiphertext = "malformed_ciphertext",
    /// The task is the configuration's, and not to be closed.
    NotClosable = "not_closable",
    /// The window could not be encrypted.
    NotEncrypted = "not_encrypted",
    /// A value is not a finite number.
    NotFinite = "not_finite",
    /// The task is not open.
    NotOpen = "not_open",
    /// The job could not be made durable.
    NotSpooled = "not_spooled",
    /// The session was revoked before the job was answered.
    Revoked = "revoked",
    /// Samples came faster than they are taken.
    SamplesDropped = "samples_dropped",
    /// The server refused the job.
    ServerRefused = "server_refused",
    /// The session ended before the job was answered.
    SessionEnded = "session_ended",
    /// A session could not be kept; the task tries another.
    SessionFailed = "session_failed",
    /// The disk has lost the job.
    SpoolDamaged = "spool_damaged",
    /// As many bytes wait for an answer as the spool takes.
    SpoolFull = "spool_full",
    /// Requests come faster than they are taken.
    TooFast = "too_fast",
    /// The message is too large.
    TooLarge = "too_large",
    /// The agent serves as many tasks as it can.
    TooManyTasks = "too_many_tasks",
    /// The message's content type is none of those that are understood.
    UnknownFormat = "unknown_format",
    /// The server offers no such model.
    UnknownModel = "unknown_model",
    /// The model is of a scheme that this agent is built without.
    UnknownScheme = "unknown_scheme",
    /// The declared topics do not give the channels that the model takes.
    WrongChannels = "wrong_channels",
    /// Another number of values than expected.
    WrongLength = "wrong_length",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// A stable word for programs.
    pub code: Code,
    /// What was wrong and what to do, for people.
    pub message: String,
    /// The job it ends, if it ends one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// The session that job belonged to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// How many it stands for, if it may be more than one: samples or messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Refusal {
    /// A refusal that concerns no job.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), job: None, session: None, count: None }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_guide_explains_every_code_and_no_other() {
        let guide = include_str!("../../../docs/onboard.md");
        let section = guide.split("\n## Errors\n").nth(1).expect("the guide has a section Errors");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let explained: BTreeSet<&str> = rows.collect();
        let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.text()).collect();
        assert_eq!(explained, codes);
    }
}
