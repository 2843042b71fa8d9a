//! What a fleet's operator tells a robot to do, and what became of it.
//!
//! Invariant: a command says nothing that the robot's own control socket does not offer.

use serde::{Deserialize, Serialize};

use super::{MessageError, check_text, cut, decode, encode};
use crate::ids::{SessionId, TaskId};

/// Body of a command: what the fleet's operator wants of a robot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Go on with new keys as soon as they are ready.
    RotateTask {
        /// The task.
        task: TaskId,
    },
    /// Take nothing more, answer what waits, and end.
    CloseTask {
        /// The task.
        task: TaskId,
    },
    /// Wipe a task's keys now.
    RevokeTask {
        /// The task.
        task: TaskId,
        /// End the task too.
        stay_closed: bool,
    },
    /// Wipe a session's keys now.
    RevokeSession {
        /// The session.
        #[serde(with = "text")]
        session: SessionId,
    },
    /// Wipe all keys now, and begin a new epoch.
    Emergency {
        /// End all tasks too.
        stay_closed: bool,
    },
}

impl Command {
    /// The body's bytes.
    ///
    /// # Errors
    /// CBOR cannot be written, which for this type does not happen.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        encode("command", self)
    }

    /// The command in a frame's body.
    ///
    /// # Errors
    /// Not a command.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        decode("command", body)
    }
}

/// Body of a report: what became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Whether it was done.
    pub done: bool,
    /// What was done, or why nothing was, for people.
    pub message: String,
}

impl Report {
    /// A report; a message that is too long is cut.
    #[must_use]
    pub fn new(done: bool, message: impl Into<String>) -> Self {
        Self { done, message: cut(message.into()) }
    }

    /// The body's bytes.
    ///
    /// # Errors
    /// The message is too long.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        check_text("report", &self.message)?;
        encode("report", self)
    }

    /// The report in a frame's body. Its message is the robot's: show it, obey it not.
    ///
    /// # Errors
    /// Not a report.
    pub fn decode(body: &[u8]) -> Result<Self, MessageError> {
        let report: Self = decode("report", body)?;
        check_text("report", &report.message)?;
        Ok(report)
    }
}

/// A session as text: which form is meant, a tagged enum does not hand on to its fields.
mod text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::ids::SessionId;

    pub(super) fn serialize<S: Serializer>(
        id: &SessionId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SessionId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
