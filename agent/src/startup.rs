//! The start: what can heal is tried again, what cannot ends the process.
//!
//! Invariants:
//! - whatever is awaited is in `status` and in systemd's status line, with the remedy;
//! - while trying again helps, systemd is asked for more time;
//! - a root secret that does not open stays as it is.

use std::sync::Arc;
use std::time::Duration;

use moai_tpm::Epoch;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::custody::{Custody, CustodyError, StateDirectory, VAULT_FILE};
use crate::services::off_thread;
use crate::vault::{LockedVault, Vault};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Calls that were never answered, one after the other: each may have left a thread behind that only
/// a new process gets rid of.
const MAX_HANGS: u32 = 5;

/// Where the reason for waiting is told.
#[derive(Clone)]
pub struct Progress(watch::Sender<String>);

impl Progress {
    /// Begins with `reason`; the receiver is for `status`.
    #[must_use]
    pub fn new(reason: &str) -> (Self, watch::Receiver<String>) {
        let (sender, receiver) = watch::channel(String::new());
        let progress = Self(sender);
        progress.tell(reason);
        (progress, receiver)
    }

    fn tell(&self, reason: &str) {
        self.0.send_replace(reason.to_owned());
        notify(&[NotifyState::Status(&format!("starting: {reason}"))]);
    }
}

/// The root secret's custody, once it is open.
pub struct Opened {
    /// What keeps and replaces the root secret.
    pub custody: Arc<Custody>,
    /// The sessions' records.
    pub vault: Arc<Vault>,
    /// Where a damaged vault was moved to.
    pub vault_moved_to: Option<String>,
    /// The epoch in force.
    pub epoch: Epoch,
    /// The custodian, for people.
    pub custodian: String,
}

/// Opens custody and vault; tries again while that can help. `None` if the agent is to stop.
///
/// # Errors
/// What does not heal.
pub async fn open_custody(
    config: &Arc<Config>,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Opened>> {
    let directory = config.state_directory.clone();
    let (state, vault) = off_thread(move || {
        let state = StateDirectory::lock(&directory)?;
        let now = SystemClock.unix().as_secs();
        let vault = LockedVault::open_or_begin(&state.file(VAULT_FILE), now)?;
        Ok::<_, CustodyError>((Arc::new(state), vault))
    })
    .await?;
    let (mut vault, vault_moved_to) = vault;
    let mut custody: Option<Arc<Custody>> = None;
    let mut pause = Pause::new();
    loop {
        let (config, state) = (Arc::clone(config), Arc::clone(&state));
        let attempt = off_thread(move || {
            let unsealed = open_or_keep(&mut custody, config, state)
                .and_then(|custody| unseal(&custody, &vault).map(|unsealed| (custody, unsealed)));
            (custody, vault, unsealed)
        });
        // A custodian may take its time to answer; whoever stops the agent need not wait for it.
        let (kept, locked, unsealed) = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            attempted = attempt => attempted,
        };
        // A connection that hangs may answer later; a new one would only add a thread.
        (custody, vault) = (kept, locked);
        let error = match unsealed {
            Ok((custody, Unsealed { epoch, key, custodian })) => {
                let vault = off_thread(move || vault.unlock(&key, epoch)).await;
                let vault = Arc::new(vault.map_err(CustodyError::from)?);
                tracing::info!(%custodian, %epoch, "root secret unsealed");
                return Ok(Some(Opened { custody, vault, vault_moved_to, epoch, custodian }));
            }
            Err(error) => error,
        };
        if !pause.after(&error) {
            return Err(error.into());
        }
        tracing::warn!(%error, again_in = ?pause.length, "the root secret is not at hand yet");
        progress.tell(&error.to_string());
        if !pause.wait(stop).await {
            return Ok(None);
        }
    }
}

struct Unsealed {
    epoch: Epoch,
    key: crate::secrets::VaultKey,
    custodian: String,
}

fn open_or_keep(
    slot: &mut Option<Arc<Custody>>,
    config: Arc<Config>,
    state: Arc<StateDirectory>,
) -> Result<Arc<Custody>, CustodyError> {
    let custody = match slot {
        Some(custody) => custody,
        None => slot.insert(Arc::new(Custody::open(config, state)?)),
    };
    Ok(Arc::clone(custody))
}

fn unseal(custody: &Custody, vault: &LockedVault) -> Result<Unsealed, CustodyError> {
    let custodian = custody.custodian().describe()?;
    let (epoch, key) = custody.unseal(vault)?;
    Ok(Unsealed { epoch, key, custodian })
}

/// Backs off from one attempt to the next.
struct Pause {
    length: Duration,
    hangs: u32,
}

impl Pause {
    fn new() -> Self {
        Self { length: Duration::ZERO, hangs: 0 }
    }

    /// Whether there is another attempt after this error.
    fn after(&mut self, error: &CustodyError) -> bool {
        self.hangs = if error.hangs() { self.hangs + 1 } else { 0 };
        self.length = (self.length * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        error.heals() && self.hangs < MAX_HANGS
    }

    /// False if the agent is to stop.
    async fn wait(&self, stop: &CancellationToken) -> bool {
        // The next attempt may take as long as this pause again, and then some.
        let more = self.length * 2 + LONGEST_PAUSE;
        let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(self.length) => true,
        }
    }
}

/// Tells systemd.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use moai_tpm::TpmError;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_half_a_minute_and_end_with_the_agent() {
        let (mut pause, stop) = (Pause::new(), CancellationToken::new());
        let mut waited = Vec::new();
        for _ in 0..7 {
            let before = tokio::time::Instant::now();
            assert!(pause.after(&TpmError::Busy.into()) && pause.wait(&stop).await);
            waited.push(before.elapsed().as_secs());
        }
        assert_eq!(waited, [1, 2, 4, 8, 16, 30, 30]);
        stop.cancel();
        assert!(!pause.wait(&stop).await);
    }

    #[test]
    fn what_cannot_heal_is_not_tried_again() {
        let mut pause = Pause::new();
        assert!(pause.after(&TpmError::Lockout.into()));
        assert!(!pause.after(&TpmError::OtherTpm.into()));
        assert!(!pause.after(&TpmError::FailureMode.into()));
    }

    #[test]
    fn a_custodian_that_hangs_is_given_up_in_the_end() {
        let mut pause = Pause::new();
        let hang = || TpmError::Deadline { after: FIRST_PAUSE }.into();
        assert!((1..MAX_HANGS).all(|_| pause.after(&hang())));
        assert!(!pause.after(&hang()));
    }
}
