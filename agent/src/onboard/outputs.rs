//! What the agent tells onboard software about tasks and jobs.
//!
//! Invariant: of a decrypted result only the label is told, and the scores if the task was opened
//! with them.

use std::time::Duration;

use serde::Serialize;
use serde_json::Number;

/// What a task is doing, as its retained `state` topic says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskState {
    /// `opening`, `active`, `draining` or `ended`.
    pub state: &'static str,
    /// The model it asks, or asked last; empty if the agent does not know any more.
    pub model: String,
    /// Its session, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What it waits for, or why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An answer, as released to onboard software.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// Number of the job within its session; the same number is the same answer.
    pub job: u64,
    /// The session.
    pub session: String,
    /// The model.
    pub model: String,
    /// The decision.
    pub label: String,
    /// What it follows from, if the task was opened with scores: a number for each label but the
    /// first, an integer under TFHE and a multiple of the model's precision under CKKS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<Number>>,
    /// Where the time went.
    pub timing: Timing,
    /// What crossed the wire.
    pub bytes: Bytes,
}

/// Where the time of a job went, in microseconds. Parts that were not measured, because the
/// agent restarted in between, are absent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timing {
    /// Features and encryption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt_us: Option<u64>,
    /// The task's queue, spool, links, brokers and the server's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink_us: Option<u64>,
    /// Evaluation on ciphertext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_us: Option<u64>,
    /// Checks and decryption.
    pub decrypt_us: u64,
    /// From the window's last sample to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u64>,
}

/// Bytes of one job.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bytes {
    /// The encrypted input.
    pub ciphertext_up: usize,
    /// The encrypted result.
    pub ciphertext_down: usize,
    /// The whole frame that carried the input.
    pub frame_up: usize,
    /// The whole frame that carried the result.
    pub frame_down: usize,
    /// The samples in the clear, as 64-bit numbers.
    pub plain: u32,
}

/// Whole microseconds of a duration.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
