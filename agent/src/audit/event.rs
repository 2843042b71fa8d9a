//! What is worth an entry: the life of agent, root secret and sessions, and what was refused.
//!
//! Invariant: an event has ids, counts, times and fixed words, and texts of the operating system
//! about the agent's own files. No sample, no label, no key, no ciphertext, no text that came over
//! a network.

use moai_transport::ids::{ModelId, SessionId, TaskId, WorkerId};
use serde::Serialize;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditEvent {
    /// The log begins: there was none whose key is known.
    LogBegun {
        /// Where an earlier log was moved to, if there was one.
        #[serde(skip_serializing_if = "Option::is_none")]
        earlier: Option<String>,
    },
    /// The log was not as the agent had left it; `audit verify` says more.
    LogDamaged {
        /// Sequence number of the newest entry that should be there.
        newest: u64,
        /// Of the newest that is there.
        #[serde(skip_serializing_if = "Option::is_none")]
        found: Option<u64>,
    },
    /// Events came faster than the disk took them.
    EventsLost {
        /// How many.
        count: u64,
    },
    /// An agent runs.
    AgentStarted {
        /// Its version.
        version: &'static str,
    },
    /// It stopped in order. A start without a stop before it was a crash or a power cut.
    AgentStopped,
    /// A root secret was made.
    Provisioned {
        /// What keeps it.
        custodian: String,
    },
    /// The root secret was sealed anew to the boot state of the moment.
    Resealed {
        /// Whether a new recovery code was made.
        new_recovery_code: bool,
    },
    /// The root secret was opened without the boot state it was sealed to.
    Recovered {
        /// `recovery_code` or `escrow`.
        means: &'static str,
    },
    /// Another epoch is in force; entries from here on have another key.
    EpochBegun {
        /// The epoch.
        epoch: u32,
    },
    /// A session's record is written; its keys are about to be made.
    SessionOpened {
        /// The session.
        session: SessionId,
        /// Its task.
        task: TaskId,
        /// What it asks.
        model: ModelId,
    },
    /// The server holds the session's evaluation keys.
    SessionActive {
        /// The session.
        session: SessionId,
        /// Who computes.
        worker: WorkerId,
    },
    /// The session takes nothing more.
    SessionDraining {
        /// The session.
        session: SessionId,
        /// Why.
        reason: &'static str,
    },
    /// The session's keys are wiped and its record is erased.
    SessionEnded {
        /// The session.
        session: SessionId,
        /// Its task.
        task: TaskId,
        /// `expired`, `closed`, `rotated`, `revoked` or `failed`.
        reason: &'static str,
        /// How many of its jobs ended without an answer.
        unanswered: usize,
    },
    /// All sessions were revoked at once.
    Emergency {
        /// How many.
        sessions: usize,
        /// Who asked: `control` or `uplink`.
        by: &'static str,
    },
    /// The fleet's operator gave a command over the uplink.
    CommandObeyed {
        /// What, such as `revoke-task`.
        command: &'static str,
        /// When it was issued, in milliseconds since 1970; no command comes twice.
        number: u64,
        /// Whether it could be done.
        done: bool,
    },
    /// A session may decrypt nothing more.
    BudgetExhausted {
        /// The session.
        session: SessionId,
    },
    /// Something that came over the uplink was not taken. The first of a kind is written at once,
    /// further ones together and ever more rarely, see [`super::refusals`].
    FrameRefused {
        /// What it said it was, such as `result`.
        kind: &'static str,
        /// Why, such as `signature`.
        reason: &'static str,
        /// How many of them this entry stands for.
        count: u64,
    },
    /// The wall clock was set. Lifetimes don't depend on it.
    ClockJumped {
        /// By how much; negative is backwards.
        seconds: i64,
    },
    /// The spool lost something; the jobs that are known to be lost end with an error each.
    SpoolDamaged {
        /// What was found, and where the damaged file went.
        problem: String,
    },
    /// The session vault was not usable; all sessions begin anew.
    VaultDamaged {
        /// Where the damaged file went.
        moved_to: String,
    },
    /// A session's record did not open; the session is over.
    RecordUnreadable {
        /// The session, or what stood in its place.
        session: String,
    },
}

impl AuditEvent {
    /// A refused frame.
    #[must_use]
    pub fn frame_refused(kind: &'static str, reason: &'static str) -> Self {
        Self::FrameRefused { kind, reason, count: 1 }
    }
}
