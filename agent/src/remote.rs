//! Commands of the fleet's operator, which come over the uplink.
//!
//! Invariants:
//! - a command is obeyed if it is newer than the last one that was, also of an earlier run of the agent:
//!   whoever repeats or holds back commands gets nothing done;
//! - it is remembered when it was obeyed: an agent that dies in between obeys once more, rather than
//!   not at all;
//! - what became of it is told to the operator and to the audit log.

use std::cmp::Ordering;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use moai_transport::message::{Command, Report};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditEvent};
use crate::clock::Clock;
use crate::control::{Desk as _, Refused};
use crate::custody::StateDirectory;
use crate::custody::files::read_capped;
use crate::desk::AgentDesk;
use crate::services::{Services, off_thread};
use crate::uplink::{Directive, LinkState, Uplink, refused};

/// Name of the file in the state directory that has the number of the last command.
const FILE: &str = "last-command";
/// A number of 64 bits and the end of its line.
const MAX_FILE_LEN: usize = 21;

/// The number of the last command that was obeyed.
struct LastCommand {
    state: Arc<StateDirectory>,
    number: u64,
}

impl LastCommand {
    /// None was, if the file is missing or not readable: then a command that is still fresh is obeyed
    /// once more.
    fn load(state: Arc<StateDirectory>) -> Self {
        let number = match read_capped(&state.file(FILE), MAX_FILE_LEN) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().parse().ok(),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(0),
            Err(_) => None,
        };
        let number = number.unwrap_or_else(|| {
            tracing::warn!("{FILE} is not readable: a command may be obeyed twice");
            0
        });
        Self { state, number }
    }

    async fn set(&mut self, number: u64) {
        self.number = number;
        let state = Arc::clone(&self.state);
        let kept = off_thread(move || state.write(FILE, format!("{number}\n").as_bytes())).await;
        if let Err(error) = kept {
            tracing::error!(%error, "a command that was obeyed may be obeyed again after a restart");
        }
    }
}

/// Who obeys.
pub struct Remote {
    desk: Arc<AgentDesk>,
    uplink: Uplink,
    clock: Arc<dyn Clock>,
    audit: Audit,
    last: LastCommand,
}

impl Remote {
    /// Obeys at `desk`, once its agent runs.
    #[must_use]
    pub fn new(desk: &Arc<AgentDesk>, services: &Services, state: &Arc<StateDirectory>) -> Self {
        Self {
            desk: Arc::clone(desk),
            uplink: services.uplink.clone(),
            clock: Arc::clone(&services.clock),
            audit: services.audit.clone(),
            last: LastCommand::load(Arc::clone(state)),
        }
    }

    /// Obeys one command after the other until the agent stops.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Directive>, stop: CancellationToken) {
        loop {
            let directive = tokio::select! {
                () = stop.cancelled() => return,
                directive = commands.recv() => match directive {
                    Some(directive) => directive,
                    None => return,
                },
            };
            let Directive { command, number, expires_at } = directive;
            match number.cmp(&self.last.number) {
                Ordering::Less => {
                    let why = "a newer one was obeyed";
                    refused(&self.audit, ("command", "replayed"), &"a command", &why);
                }
                Ordering::Equal => tracing::debug!(number, "the command was obeyed before"),
                Ordering::Greater => {
                    let report = self.obey(command, number).await;
                    self.last.set(number).await;
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.tell(&report, number, expires_at) => {}
                    }
                }
            }
        }
    }

    async fn obey(&self, command: Command, number: u64) -> Report {
        let word = word(&command);
        tracing::warn!(command = word, number, "the fleet's operator gives a command");
        let done = execute(&self.desk, command).await;
        let is_done = done.is_ok();
        self.audit.record(AuditEvent::CommandObeyed { command: word, number, done: is_done });
        let message = done.unwrap_or_else(|refused| refused.message);
        tracing::warn!(command = word, number, done = is_done, message, "the command is over");
        Report::new(is_done, message)
    }

    /// Tells the operator, over breaks of the link, as long as the command means something.
    async fn tell(&self, report: &Report, number: u64, expires_at: u64) {
        let mut state = self.uplink.state();
        while state.wait_for(|state| *state == LinkState::Up).await.is_ok() {
            let left = expires_at.saturating_sub(self.clock.unix().as_secs());
            if left == 0 {
                return;
            }
            let expiry = Duration::from_secs(left);
            match self.uplink.report(report, number, expires_at, expiry).await {
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "the report goes again");
                }
                Err(error) => return tracing::warn!(%error, "the operator is not told"),
                Ok(()) => return,
            }
        }
    }
}

/// Does it, and says what was done.
async fn execute(desk: &AgentDesk, command: Command) -> Result<String, Refused> {
    Ok(match command {
        Command::RotateTask { task } => {
            let task = desk.rotate_task(task)?.task;
            format!("{task} goes on with new keys as soon as they are ready")
        }
        Command::CloseTask { task } => {
            let task = desk.close_task(task)?.task;
            format!("{task} takes nothing more and ends when what waits is answered")
        }
        Command::RevokeTask { task, stay_closed } => {
            gone(&desk.revoke_task(task, stay_closed).await?.sessions)
        }
        Command::RevokeSession { session } => gone(&desk.revoke_session(session).await?.sessions),
        Command::Emergency { stay_closed } => {
            let report = desk.declare_emergency(stay_closed, "uplink").await?;
            let (sessions, epoch) = (report.sessions.len(), report.rotated.epoch);
            format!("{sessions} sessions are revoked, epoch {epoch} is in force")
        }
    })
}

fn gone(sessions: &[String]) -> String {
    format!("revoked, the keys are gone: {}", sessions.join(", "))
}

fn word(command: &Command) -> &'static str {
    match command {
        Command::RotateTask { .. } => "rotate-task",
        Command::CloseTask { .. } => "close-task",
        Command::RevokeTask { .. } => "revoke-task",
        Command::RevokeSession { .. } => "revoke-session",
        Command::Emergency { .. } => "emergency",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(directory: &std::path::Path) -> LastCommand {
        LastCommand::load(Arc::new(StateDirectory::lock(directory).unwrap()))
    }

    #[tokio::test]
    async fn the_last_command_is_known_after_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let mut last = load(scratch.path());
        assert_eq!(last.number, 0);
        last.set(u64::MAX).await;
        drop(last);
        assert_eq!(load(scratch.path()).number, u64::MAX);
    }

    #[test]
    fn a_file_that_says_nothing_counts_as_none() {
        let scratch = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"-1\n", b"18446744073709551616\n", &[0xff; 100]] {
            std::fs::write(scratch.path().join(FILE), bytes).unwrap();
            assert_eq!(load(scratch.path()).number, 0);
        }
    }
}
