//! What every session needs from the rest of the agent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::clock::{BootId, Clock};
use crate::conditions::Conditions;
use crate::custody::{Custodian, CustodyError};
use crate::engines::Engines;
use crate::identity::attestation::Attester;
use crate::live::{LiveSettings, Policy};
use crate::onboard::Onboard;
use crate::secrets::{OsEntropy, SessionSeed, scrubbed};
use crate::session::registry::SessionRegistry;
use crate::spool::Spool;
use crate::status::StatusBoard;
use crate::ttl::TtlClass;
use crate::uplink::Uplink;
use crate::vault::{EndedFacts, SessionRecord, Vault, VaultError};
use crate::warm::WarmPool;
use moai_fhe::ModelCard;
use moai_transport::ids::{SessionId, TaskId};

/// Handles to the agent's owners of resources.
pub struct Services {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The running boot.
    pub boot: BootId,
    /// Sealed session records.
    pub vault: Arc<Vault>,
    /// Jobs that wait for an answer.
    pub spool: Spool,
    /// Toward the server.
    pub uplink: Uplink,
    /// Toward onboard software.
    pub onboard: Onboard,
    /// Second source of randomness.
    pub custodian: Arc<dyn Custodian>,
    /// What answers a server that wants to know what this robot is; none without a TPM.
    pub attester: Option<Arc<dyn Attester>>,
    /// What of the configuration may change.
    pub live: watch::Receiver<LiveSettings>,
    /// The log of what happened to root secret, sessions and uplink.
    pub audit: Audit,
    /// What parts of the agent suffer from.
    pub conditions: Conditions,
    /// Where sessions get their engine.
    pub engines: Arc<dyn Engines>,
    /// Keys made ahead.
    pub warm: WarmPool,
    /// Every session that has keys.
    pub registry: SessionRegistry,
    /// What `status` shows.
    pub board: StatusBoard,
    /// Cancelled when the agent shuts down.
    pub stop: CancellationToken,
}

/// Why no session could be made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The root secret's custodian gave no randomness.
    #[error("the custodian gave no randomness: {0}")]
    Custodian(#[from] CustodyError),
    /// The operating system gave none.
    #[error("the operating system gave no randomness: {0}")]
    OperatingSystem(#[from] getrandom::Error),
}

impl Services {
    /// What becomes of a task's windows when many wait.
    #[must_use]
    pub fn policy(&self, task: &TaskId) -> Policy {
        self.live.borrow().policies.get(task).copied().unwrap_or_default()
    }

    /// How long a job may wait for its answer.
    #[must_use]
    pub fn max_age(&self) -> Duration {
        self.live.borrow().spool.max_age
    }

    /// How long a session of a class lives that begins now.
    #[must_use]
    pub fn lifetime(&self, class: TtlClass) -> Duration {
        self.live.borrow().sessions.lifetimes.of(class)
    }

    /// Most results that a session with this model decrypts that begins now: what the configuration
    /// allows, and no more than its scheme bears.
    #[must_use]
    pub fn budget(&self, card: &ModelCard) -> u64 {
        self.live.borrow().sessions.decryption_budget.min(card.max_results())
    }

    /// A fresh session seed; a few milliseconds of TPM time.
    ///
    /// # Errors
    /// One of the two sources failed; no session may be made then.
    pub async fn session_seed(&self) -> Result<SessionSeed, SeedError> {
        let custodian = Arc::clone(&self.custodian);
        off_thread(move || fresh_seed(&*custodian)).await
    }

    /// A fresh session id.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn session_id(&self) -> Result<SessionId, SeedError> {
        let milliseconds = u64::try_from(self.clock.unix().as_millis()).unwrap_or(u64::MAX);
        Ok(SessionId::new(milliseconds, OsEntropy::bytes()?))
    }

    /// Writes a session's record; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn write_record(&self, record: SessionRecord) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        off_thread(move || vault.write(&record)).await
    }

    /// Writes a session's record in place of that of keys made ahead; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn adopt_record(
        &self,
        warm: SessionId,
        record: SessionRecord,
    ) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        off_thread(move || vault.adopt(&warm, &record)).await
    }

    /// Erases a session's seed and keeps why it ended; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn end_record(
        &self,
        session: SessionId,
        facts: EndedFacts,
    ) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        off_thread(move || vault.end(&session, &facts)).await
    }

    /// Forgets an ended session.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn forget_record(&self, session: SessionId) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        off_thread(move || vault.forget(&session)).await
    }
}

/// A fresh session seed of both sources of randomness; blocks for milliseconds of TPM time.
///
/// # Errors
/// One of the two sources failed; no session may be made then.
pub fn fresh_seed(custodian: &dyn Custodian) -> Result<SessionSeed, SeedError> {
    let random = custodian.random()?;
    Ok(SessionSeed::mix(OsEntropy::bytes()?, &random))
}

/// Runs blocking work beside the async threads; it leaves nothing on the stack of its thread, which
/// lives on.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(|| scrubbed(work)).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
