//! The topics of the uplink.
//!
//! Invariants:
//! - `Display` gives exactly what `FromStr` takes, and nothing else is taken;
//! - everything a robot writes lies under `moai/v1/up/{identity}`, everything it alone reads under
//!   `moai/v1/down/{identity}`, so that a broker can enforce both from the certificate;
//! - no topic has more than 8 levels, which is what the strictest public brokers take.

use std::fmt;
use std::str::FromStr;

use crate::frame::FrameKind;
use crate::ids::{Identity, SessionId, Tenant, WorkerGroup, WorkerId};

const ROOT: &str = "moai/v1";

/// A topic of the uplink.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A robot opens or re-opens a session: whichever worker is free answers.
    Open {
        /// The robot.
        identity: Identity,
        /// The session.
        session: SessionId,
    },
    /// A piece of the evaluation keys, for the worker that answered.
    Chunk {
        /// The robot.
        identity: Identity,
        /// Who answered the open.
        worker: WorkerId,
        /// The session.
        session: SessionId,
    },
    /// An encrypted input.
    Job {
        /// The robot.
        identity: Identity,
        /// Who holds the keys.
        worker: WorkerId,
        /// The session.
        session: SessionId,
    },
    /// The session is over: the worker forgets its keys.
    Delete {
        /// The robot.
        identity: Identity,
        /// Who holds the keys.
        worker: WorkerId,
        /// The session.
        session: SessionId,
    },
    /// Evidence of the robot's state, for the worker that asked.
    Attest {
        /// The robot.
        identity: Identity,
        /// Who asked.
        worker: WorkerId,
        /// The session.
        session: SessionId,
    },
    /// Whether a robot is connected; retained, with a last will.
    RobotStatus {
        /// The robot.
        identity: Identity,
    },
    /// What a worker holds of a session's keys.
    Have {
        /// The robot.
        identity: Identity,
        /// The session.
        session: SessionId,
    },
    /// A worker asks for evidence of the robot's state.
    Challenge {
        /// The robot.
        identity: Identity,
        /// The session.
        session: SessionId,
    },
    /// An encrypted answer.
    Result {
        /// The robot.
        identity: Identity,
        /// The session.
        session: SessionId,
    },
    /// A refusal.
    Error {
        /// The robot.
        identity: Identity,
        /// The session.
        session: SessionId,
    },
    /// What the fleet's operator wants of a robot; retained, the newest only.
    Command {
        /// The robot.
        identity: Identity,
    },
    /// What became of a robot's newest command; retained.
    Report {
        /// The robot.
        identity: Identity,
    },
    /// Whether a worker is connected; retained, with a last will.
    WorkerStatus {
        /// The worker.
        worker: WorkerId,
    },
    /// The models a tenant may use; retained.
    Models {
        /// The tenant.
        tenant: Tenant,
    },
}

impl Topic {
    /// The kind of frame this topic carries; none where it carries no frame but JSON.
    #[must_use]
    pub fn kind(&self) -> Option<FrameKind> {
        match self {
            Self::Open { .. } => Some(FrameKind::Open),
            Self::Chunk { .. } => Some(FrameKind::Chunk),
            Self::Job { .. } => Some(FrameKind::Job),
            Self::Delete { .. } => Some(FrameKind::Delete),
            Self::Attest { .. } => Some(FrameKind::Attest),
            Self::Challenge { .. } => Some(FrameKind::Challenge),
            Self::Have { .. } => Some(FrameKind::Have),
            Self::Result { .. } => Some(FrameKind::Result),
            Self::Error { .. } => Some(FrameKind::Error),
            Self::Models { .. } => Some(FrameKind::Models),
            Self::Command { .. } => Some(FrameKind::Command),
            Self::Report { .. } => Some(FrameKind::Report),
            Self::RobotStatus { .. } | Self::WorkerStatus { .. } => None,
        }
    }

    /// The robot the topic belongs to, if it belongs to one.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Open { identity, .. }
            | Self::Chunk { identity, .. }
            | Self::Job { identity, .. }
            | Self::Delete { identity, .. }
            | Self::Attest { identity, .. }
            | Self::Challenge { identity, .. }
            | Self::RobotStatus { identity }
            | Self::Command { identity }
            | Self::Report { identity }
            | Self::Have { identity, .. }
            | Self::Result { identity, .. }
            | Self::Error { identity, .. } => Some(identity),
            Self::WorkerStatus { .. } | Self::Models { .. } => None,
        }
    }

    /// The session the topic belongs to, if it belongs to one.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Open { session, .. }
            | Self::Chunk { session, .. }
            | Self::Job { session, .. }
            | Self::Delete { session, .. }
            | Self::Attest { session, .. }
            | Self::Challenge { session, .. }
            | Self::Have { session, .. }
            | Self::Result { session, .. }
            | Self::Error { session, .. } => Some(session),
            Self::RobotStatus { .. }
            | Self::Command { .. }
            | Self::Report { .. }
            | Self::WorkerStatus { .. }
            | Self::Models { .. } => None,
        }
    }
}

/// What a robot subscribes to.
#[must_use]
pub fn robot_filters(identity: &Identity) -> Vec<String> {
    vec![
        format!("{ROOT}/down/{identity}/+/+"),
        Topic::Command { identity: identity.clone() }.to_string(),
        format!("{ROOT}/workers/+/status"),
        Topic::Models { tenant: identity.tenant.clone() }.to_string(),
    ]
}

/// What a worker subscribes to: opens, shared with the other workers of its group, and what is
/// meant for itself.
#[must_use]
pub fn worker_filters(group: &WorkerGroup, worker: &WorkerId) -> Vec<String> {
    vec![format!("$share/{group}/{ROOT}/up/+/open/+"), format!("{ROOT}/up/+/to/{worker}/+/+")]
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { identity, session } => write!(f, "{ROOT}/up/{identity}/open/{session}"),
            Self::Chunk { identity, worker, session } => {
                write!(f, "{ROOT}/up/{identity}/to/{worker}/{session}/chunk")
            }
            Self::Job { identity, worker, session } => {
                write!(f, "{ROOT}/up/{identity}/to/{worker}/{session}/job")
            }
            Self::Delete { identity, worker, session } => {
                write!(f, "{ROOT}/up/{identity}/to/{worker}/{session}/delete")
            }
            Self::Attest { identity, worker, session } => {
                write!(f, "{ROOT}/up/{identity}/to/{worker}/{session}/attest")
            }
            Self::Challenge { identity, session } => {
                write!(f, "{ROOT}/down/{identity}/{session}/challenge")
            }
            Self::RobotStatus { identity } => write!(f, "{ROOT}/up/{identity}/status"),
            Self::Have { identity, session } => write!(f, "{ROOT}/down/{identity}/{session}/have"),
            Self::Result { identity, session } => {
                write!(f, "{ROOT}/down/{identity}/{session}/result")
            }
            Self::Error { identity, session } => {
                write!(f, "{ROOT}/down/{identity}/{session}/error")
            }
            Self::Command { identity } => write!(f, "{ROOT}/down/{identity}/command"),
            Self::Report { identity } => write!(f, "{ROOT}/up/{identity}/report"),
            Self::WorkerStatus { worker } => write!(f, "{ROOT}/workers/{worker}/status"),
            Self::Models { tenant } => write!(f, "{ROOT}/models/{tenant}"),
        }
    }
}

/// A text that is no topic of this protocol. Drop the message that came with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a topic of the moai/v1 uplink")]
pub struct ParseTopicError;

impl FromStr for Topic {
    type Err = ParseTopicError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or(ParseTopicError)
    }
}

fn parse(text: &str) -> Option<Topic> {
    let rest = text.strip_prefix(ROOT)?.strip_prefix('/')?;
    let mut parts = rest.split('/');
    let mut next = || parts.next();
    let topic = match next()? {
        "up" => {
            let identity: Identity = next()?.parse().ok()?;
            match next()? {
                "status" => Topic::RobotStatus { identity },
                "report" => Topic::Report { identity },
                "open" => Topic::Open { identity, session: next()?.parse().ok()? },
                "to" => {
                    let worker = next()?.parse().ok()?;
                    let session = next()?.parse().ok()?;
                    match next()? {
                        "chunk" => Topic::Chunk { identity, worker, session },
                        "job" => Topic::Job { identity, worker, session },
                        "delete" => Topic::Delete { identity, worker, session },
                        "attest" => Topic::Attest { identity, worker, session },
                        _ => return None,
                    }
                }
                _ => return None,
            }
        }
        "down" => {
            let identity = next()?.parse().ok()?;
            let level = next()?;
            if level == "command" {
                return next().is_none().then_some(Topic::Command { identity });
            }
            let session = level.parse().ok()?;
            match next()? {
                "have" => Topic::Have { identity, session },
                "challenge" => Topic::Challenge { identity, session },
                "result" => Topic::Result { identity, session },
                "error" => Topic::Error { identity, session },
                _ => return None,
            }
        }
        "workers" => {
            let worker = next()?.parse().ok()?;
            match next()? {
                "status" => Topic::WorkerStatus { worker },
                _ => return None,
            }
        }
        "models" => Topic::Models { tenant: next()?.parse().ok()? },
        _ => return None,
    };
    next().is_none().then_some(topic)
}
