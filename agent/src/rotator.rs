//! The owner of rotations: one at a time, by the clock and on request.
//!
//! Invariants:
//! - a rotation that failed is tried again, and is in `status` until one succeeds;
//! - the age of an epoch survives restarts: it is that of the sealed root secret's file.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moai_tpm::Epoch;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditEvent};
use crate::cli::exit;
use crate::control::Refused;
use crate::custody::{Custody, CustodyError, Rotated, RotationStep};
use crate::services::off_thread;
use crate::vault::Vault;

const QUEUE_LEN: usize = 4;
const RETRY_PAUSE: Duration = Duration::from_mins(5);

/// The epoch in force, and what the last rotation said if it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochState {
    /// The epoch.
    pub epoch: Epoch,
    /// Why the last rotation failed.
    pub failure: Option<String>,
}

type Answer = oneshot::Sender<Result<Rotated, Refused>>;

/// Asks for rotations.
#[derive(Clone)]
pub struct Rotations {
    requests: mpsc::Sender<Answer>,
    state: watch::Receiver<EpochState>,
}

impl Rotations {
    /// Begins the next epoch; waits for one that is under way.
    ///
    /// # Errors
    /// It failed, or the agent stops.
    pub async fn rotate(&self) -> Result<Rotated, Refused> {
        let stopping = || Refused { message: "the agent is stopping".to_owned(), exit_code: 75 };
        let (answer, done) = oneshot::channel();
        self.requests.send(answer).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?
    }

    /// The epoch in force.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<EpochState> {
        self.state.clone()
    }
}

/// What rotates.
pub struct Rotator {
    /// The root secret's custody.
    pub custody: Arc<Custody>,
    /// The sessions' records.
    pub vault: Arc<Vault>,
    /// How often the next epoch begins by itself.
    pub every: Option<Duration>,
    /// Told of each epoch that begins.
    pub audit: Audit,
    /// Told of each step.
    pub observe: fn(RotationStep),
}

impl Rotator {
    /// Starts the owner task; it ends with the agent. `epoch` is the one in force.
    #[must_use]
    pub fn start(self, epoch: Epoch, stop: CancellationToken) -> Rotations {
        let (requests, incoming) = mpsc::channel(QUEUE_LEN);
        let (sender, state) = watch::channel(EpochState { epoch, failure: None });
        tokio::spawn(self.run(incoming, sender, stop));
        Rotations { requests, state }
    }

    async fn run(
        self,
        mut requests: mpsc::Receiver<Answer>,
        state: watch::Sender<EpochState>,
        stop: CancellationToken,
    ) {
        let now = Instant::now();
        let mut due = self.every.map(|every| now + left(every, self.custody.sealed_at()));
        loop {
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                () = wait => None,
                request = requests.recv() => match request {
                    Some(answer) => Some(answer),
                    None => return,
                },
            };
            let result = self.rotate().await;
            let pause = match &result {
                Ok(rotated) => {
                    self.audit.record(AuditEvent::EpochBegun { epoch: rotated.epoch });
                    state.send_replace(EpochState { epoch: Epoch(rotated.epoch), failure: None });
                    self.every
                }
                Err(error) => {
                    tracing::error!(%error, "the root secret was not rotated");
                    let failure = Some(format!("the last rotation failed: {error}"));
                    state.send_modify(|state| {
                        if let CustodyError::NotRetired { epoch, .. } = error {
                            self.audit.record(AuditEvent::EpochBegun { epoch: epoch.0 });
                            state.epoch = *epoch;
                        }
                        state.failure = failure;
                    });
                    self.every.map(|every| every.min(RETRY_PAUSE))
                }
            };
            due = pause.map(|pause| Instant::now() + pause);
            if let Some(answer) = answer {
                // A client that went away needs no answer.
                let _ = answer.send(result.map_err(|error| Refused {
                    message: error.to_string(),
                    exit_code: exit::code(&error.into()),
                }));
            }
        }
    }

    async fn rotate(&self) -> Result<Rotated, CustodyError> {
        let (custody, vault) = (Arc::clone(&self.custody), Arc::clone(&self.vault));
        let observe = self.observe;
        let rotated = off_thread(move || {
            custody.rotate(&vault, &mut |step| {
                tracing::debug!(%step, "rotation");
                observe(step);
            })
        })
        .await?;
        let Rotated { epoch, sessions, shredded } = rotated;
        tracing::info!(epoch, sessions, shredded, "root secret rotated");
        Ok(rotated)
    }
}

/// How long an epoch that began at `since` still lasts. A wall clock that does not know the time
/// makes an epoch last longer, by at most one more turn.
fn left(every: Duration, since: Option<SystemTime>) -> Duration {
    let age = since.and_then(|since| since.elapsed().ok());
    every.saturating_sub(age.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_ends_at_its_time_whenever_the_agent_starts() {
        const HOUR: Duration = Duration::from_hours(1);
        let now = SystemTime::now();
        assert!(left(HOUR * 24, Some(now - HOUR * 20)) <= HOUR * 4);
        assert_eq!(left(HOUR, Some(now - HOUR * 20)), Duration::ZERO);
        assert_eq!(left(HOUR, Some(now + HOUR)), HOUR);
        assert_eq!(left(HOUR, None), HOUR);
    }
}
