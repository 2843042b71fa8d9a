//! What the processes of a fleet are told when they start, and what the robots' process reports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::pki::Credentials;

/// The tenant of all robots.
pub const TENANT: &str = "fleet";

/// The identity of a robot.
#[must_use]
pub fn identity(number: usize) -> String {
    format!("{TENANT}.robot-{number}")
}

/// A certificate in files, as a process is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialFiles {
    /// The CA.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl From<Credentials> for CredentialFiles {
    fn from(Credentials { ca, certificate, key }: Credentials) -> Self {
        Self { ca, certificate, key }
    }
}

impl From<CredentialFiles> for Credentials {
    fn from(CredentialFiles { ca, certificate, key }: CredentialFiles) -> Self {
        Self { ca, certificate, key }
    }
}

/// What the server's process is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPlan {
    /// The broker's port.
    pub port: u16,
    /// How it presents itself to the broker.
    pub credentials: CredentialFiles,
    /// What signs its answers.
    pub signing_key: PathBuf,
    /// Where it keeps sessions and its audit log.
    pub directory: PathBuf,
    /// How many sessions the tenant may have.
    pub sessions: u64,
}

/// What the robots' process is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobotsPlan {
    /// The broker's port.
    pub port: u16,
    /// One for each robot.
    pub credentials: Vec<CredentialFiles>,
    /// The keys of the servers they believe.
    pub server_key: PathBuf,
    /// Where they keep vaults, spools and audit logs.
    pub directory: PathBuf,
    /// The broker's process.
    pub broker: u32,
    /// The server's process.
    pub server: u32,
    /// Where the server keeps sessions.
    pub store: PathBuf,
    /// How long nothing is asked.
    pub idle: Duration,
    /// Windows of each robot.
    pub windows: u16,
    /// Time from a robot's window to its next.
    pub period: Duration,
    /// How long a stage may take beyond what it has to.
    pub patience: Duration,
}

/// Reads a plan.
///
/// # Errors
/// The file is none.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no plan", path.display()))
}

/// Writes a plan.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, plan: &impl Serialize) -> Result<()> {
    Ok(std::fs::write(path, serde_json::to_vec(plan)?)?)
}

/// What one of the processes had used, or used in a stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Seconds of CPU time.
    pub cpu: f64,
    /// Resident memory at the end, in bytes.
    pub resident: u64,
    /// Files and sockets open at the end.
    pub files: u64,
}

/// A stage of the robots' life.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Seconds from its begin to its end.
    pub seconds: f64,
    /// The broker.
    pub broker: Used,
    /// The server.
    pub server: Used,
    /// All robots.
    pub robots: Used,
    /// Bytes that the robots sent over TCP.
    pub bytes_up: u64,
    /// Bytes that they received.
    pub bytes_down: u64,
    /// How long it took each robot, or each job, in seconds, sorted.
    pub took: Vec<f64>,
}

/// What became of the windows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// Handed over.
    pub sent: u64,
    /// Answered right, once.
    pub answered: u64,
    /// Refused with an error.
    pub refused: u64,
    /// Without an outcome.
    pub lost: u64,
    /// Outcomes that came again.
    pub doubled: u64,
    /// Answers to another window, or another robot's.
    pub wrong: u64,
}

/// What the robots' process reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RobotsReport {
    /// All connect at once.
    pub connect: Stage,
    /// All open their task at once.
    pub open: Stage,
    /// Sessions wait.
    pub idle: Stage,
    /// Windows come.
    pub jobs: Stage,
    /// All close their task at once.
    pub close: Stage,
    /// What became of the windows.
    pub ends: Ends,
    /// Times that an uplink broke.
    pub disconnected: u64,
    /// Sessions that the server still had when all were closed.
    pub left: u64,
}
