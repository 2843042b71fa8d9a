//! What the agent knows about itself, for `moai-agent status` and the onboard health topic.
//!
//! Invariant: it holds states and counters only, no secret and nothing derived from a sample.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use moai_transport::ids::{SessionId, TaskId};
use serde::{Deserialize, Serialize};

/// How far the upload of a session's evaluation keys is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStatus {
    /// Bytes that the server has, or at least the broker.
    pub bytes: u64,
    /// Length of the keys in bytes.
    pub of: u64,
    /// Over the last seconds; none at the beginning.
    pub bytes_per_second: Option<u64>,
    /// How long it goes on at that rate; none if that cannot be told.
    pub seconds_left: Option<u64>,
}

/// One task, as `status` shows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TaskStatus {
    /// The model it asks.
    pub model: String,
    /// `opening`, `active`, `draining` or `ended`.
    pub state: String,
    /// What it waits for, or why it ended.
    pub reason: Option<String>,
    /// The session that its jobs go to.
    pub session: Option<String>,
    /// The session that will be next, while it is being set up.
    pub successor: Option<String>,
    /// All its sessions that have keys, those that drain too.
    pub sessions: BTreeMap<String, SessionStatus>,
    /// Onboard messages that wait for the task.
    pub queued: usize,
    /// Samples that were dropped since the agent started, because they came faster than they were
    /// taken.
    pub dropped_samples: u64,
    /// Jobs answered since the agent started.
    pub answered: u64,
    /// Messages and jobs refused since the agent started.
    pub refused: u64,
}

/// One session, as `status` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// `generating`, `registering`, `active` or `draining`.
    pub state: String,
    /// Whether its keys were made before the task was opened.
    pub warm: bool,
    /// Seconds until it ends.
    pub expires_in_seconds: u64,
    /// Results it may still decrypt.
    pub decryptions_left: u64,
    /// The upload of its evaluation keys, while there is one.
    pub upload: Option<UploadStatus>,
    /// Jobs in the spool: they wait for an answer, or their answer for onboard software.
    pub waiting: usize,
}

/// The agent, as `status` shows it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AgentStatus {
    /// `starting`, `up` or `degraded`.
    pub status: String,
    /// Why it is not `up`.
    pub reasons: Vec<String>,
    /// `tenant.robot`.
    pub identity: String,
    /// The agent's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// What keeps the root secret; empty until it has been reached.
    pub custodian: String,
    /// The epoch in force, once the root secret is unsealed.
    pub epoch: Option<u32>,
    /// How its memory is protected.
    pub memory: String,
    /// Where the identity key is, and until when its certificate is valid.
    pub certificate: String,
    /// Keys of the configuration whose values wait for the agent's next start.
    #[serde(default)]
    pub restart: Vec<String>,
    /// Models the server offers.
    pub models: Vec<String>,
    /// Key sets that are ready for sessions to come, of how many.
    pub warm: (usize, usize),
    /// Tasks by name.
    pub tasks: BTreeMap<String, TaskStatus>,
}

/// Where tasks write their status. Short critical sections, never across an await.
#[derive(Clone, Default)]
pub struct StatusBoard(Arc<Mutex<BTreeMap<TaskId, TaskStatus>>>);

impl StatusBoard {
    /// Changes a task's status.
    pub fn update(&self, task: &TaskId, change: impl FnOnce(&mut TaskStatus)) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(tasks.entry(task.clone()).or_default());
    }

    /// Changes the status of a task's session.
    pub fn update_session(&self, task: &TaskId, session: &SessionId, status: SessionStatus) {
        self.update(task, |task| drop(task.sessions.insert(session.to_string(), status)));
    }

    /// A task's session has no keys any more.
    pub fn forget_session(&self, task: &TaskId, session: &SessionId) {
        self.update(task, |task| drop(task.sessions.remove(&session.to_string())));
    }

    /// All tasks, now.
    pub fn snapshot(&self) -> BTreeMap<String, TaskStatus> {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().map(|(id, status)| (id.to_string(), status.clone())).collect()
    }
}
