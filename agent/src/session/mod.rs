//! A session: one ephemeral FHE key set from its opening to its end.
//!
//! Invariants:
//! - one task owns a session; everything it does is a reaction to one event;
//! - its state is that of [`lifecycle`]: each step is in the vault before it is acted upon;
//! - its record is in the vault before its first frame leaves; when it ends, its seed is erased and
//!   its keys are wiped before anybody is told;
//! - it signs what it sends with a key of its own, and no two of its opens have one number;
//! - a result is decrypted only if it answers a job that waits, and only once; a session never takes
//!   more jobs than its decryption budget, whatever restarts lie between;
//! - an accepted job ends in one answer or one refusal on the onboard API, in the order of numbers.

mod actor;
mod farewell;
mod jobs;
pub mod lifecycle;
mod meter;
mod outbox;
mod registration;
pub mod registry;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use moai_fhe::{EngineError, Inputs, ModelCard};
use moai_transport::ids::{SessionId, TaskId};
use moai_transport::link::Receipt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::lifecycle::{DrainReason, EndReason, Lifecycle};
use self::registry::Membership;
use crate::audit::AuditEvent;
use crate::onboard::ReplyTo;
use crate::services::{SeedError, Services};
use crate::spool::SpoolError;
use crate::ttl::TtlClass;
use crate::vault::{EndedFacts, Release, SessionFacts, SessionRecord, VaultError};

pub use self::farewell::bid;
pub use jobs::MAX_WAITING;

const REQUEST_QUEUE_LEN: usize = 64;

/// What a session is for.
#[derive(Clone)]
pub struct Purpose {
    /// The task it serves.
    pub task: TaskId,
    /// The model it asks.
    pub card: Arc<ModelCard>,
    /// Its lifetime class.
    pub ttl: TtlClass,
    /// What of its results may leave the agent.
    pub release: Release,
}

/// What a session is asked to do.
enum SessionRequest {
    /// Encrypt and have computed.
    Submit(Input),
    /// Something else.
    Turn(Turn),
}

/// A turn in a session's life.
enum Turn {
    /// Be the session that the task's jobs go to.
    Activate,
    /// Take nothing more, finish what waits, end.
    Drain(DrainReason),
}

/// A window's features, ready to be encrypted.
pub struct Input {
    /// The quantised features.
    pub inputs: Inputs,
    /// The model they are for.
    pub card: Arc<ModelCard>,
    /// Bytes of the samples in the clear.
    pub plain_len: u32,
    /// When the window's last sample arrived.
    pub arrived: Instant,
    /// How long its features took.
    pub features: Duration,
    /// Where the outcome is wanted too.
    pub reply: Option<ReplyTo>,
    /// Of the message that completed the window, and perhaps others.
    pub receipt: Option<Arc<Receipt>>,
}

impl Input {
    /// The window is a job on disk, or refused: the broker need not keep its message any longer, if
    /// this is so of all windows of the message. Returns where the outcome is wanted too.
    pub fn settle(self) -> Option<ReplyTo> {
        settle(self.receipt);
        self.reply
    }
}

/// Confirms a receipt if nobody else holds it.
pub fn settle(receipt: Option<Arc<Receipt>>) {
    if let Some(receipt) = receipt.and_then(Arc::into_inner) {
        receipt.confirm();
    }
}

/// What a session tells its task.
pub enum SessionReport {
    /// It works toward being active, or waits for something.
    Opening(Option<String>),
    /// A server is ready to compute for it; it stands by for its turn.
    Ready,
    /// It is the one that jobs go to, and the server is ready to compute.
    Active,
    /// Four fifths of its time are over: it needs a successor.
    Ageing,
    /// It takes nothing more.
    Draining,
    /// It is over and its keys are gone.
    Ended {
        /// Why.
        reason: EndReason,
        /// What it was handed and had not accepted.
        returned: Vec<Input>,
    },
    /// Onboard software has heard of every job; nothing more comes.
    Told(EndReason),
}

/// Why a session could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No seed.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// No record.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// No spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The kept card names no model.
    #[error("the model's id is not usable: {0}")]
    ModelId(moai_transport::ids::ParseIdError),
    /// No keys.
    #[error("no keys can be made: {0}")]
    Engine(#[from] EngineError),
    /// An emergency is under way.
    #[error("an emergency is under way: no session begins before the next epoch has")]
    Held,
}

/// Room for one request of a session.
pub struct Place(mpsc::OwnedPermit<SessionRequest>);

/// A running session.
pub struct SessionHandle {
    /// Its id.
    pub id: SessionId,
    requests: mpsc::Sender<SessionRequest>,
    /// It has windows for which there is no room.
    crowded: watch::Receiver<bool>,
    /// Jobs it may still be handed.
    room: u64,
    budget: u64,
}

impl SessionHandle {
    /// Waits for a place for a window while the session is busy or has no room; `None` if it has
    /// ended. May be dropped at any time.
    pub fn place(&self) -> impl Future<Output = Option<Place>> + use<> {
        let (requests, mut crowded) = (self.requests.clone(), self.crowded.clone());
        async move {
            crowded.wait_for(|crowded| !crowded).await.ok()?;
            requests.reserve_owned().await.ok().map(Place)
        }
    }

    /// Hands an input over in a place of this session.
    pub fn submit(&mut self, Place(place): Place, input: Input) {
        place.send(SessionRequest::Submit(input));
        self.room = self.room.saturating_sub(1);
    }

    /// Whether it takes nothing more because it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.requests.is_closed()
    }

    /// Whether it takes nothing more: its decryption budget is used up, or nobody knows how much of it
    /// is.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.room == 0
    }

    /// Whether so little of the decryption budget is left that it needs a successor.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.room * RENEWAL_PART <= self.budget
    }

    /// Makes it the session that the task's jobs go to.
    pub async fn activate(&self) {
        // A session that has ended says so itself.
        let _ = self.requests.send(SessionRequest::Turn(Turn::Activate)).await;
    }

    /// Lets the session finish what waits and end.
    pub async fn drain(&self, reason: DrainReason) {
        // A session that has ended needs no draining.
        let _ = self.requests.send(SessionRequest::Turn(Turn::Drain(reason))).await;
    }
}

/// Reports of all sessions of one task.
pub type Reports = mpsc::Sender<(SessionId, SessionReport)>;

/// Opens a new session: with keys made ahead if there are any, else with new ones. A session that
/// stands by becomes active when it is told to.
///
/// # Errors
/// No randomness, the vault refuses the record, or an emergency is under way.
pub async fn open(
    services: Arc<Services>,
    purpose: Purpose,
    stands_by: bool,
    reports: Reports,
) -> Result<SessionHandle, StartError> {
    let model = purpose.card.id().parse().map_err(StartError::ModelId)?;
    let id = services.session_id()?;
    let membership = services.registry.enter(id.clone(), purpose.task.clone());
    if *services.registry.held().borrow() {
        return Err(StartError::Held);
    }
    let warm = services.warm.take(purpose.card.to_context()).await;
    let lifetime = services.lifetime(purpose.ttl);
    let Purpose { task, card, ttl, release } = purpose;
    let clock = &services.clock;
    let facts = SessionFacts {
        task,
        card: (*card).clone(),
        ttl,
        state: if warm.is_some() { Lifecycle::begin_with_keys() } else { Lifecycle::begin() },
        release,
        warm: warm.is_some(),
        expires: clock.boot().after(lifetime),
        expires_unix: clock.is_trusted().then(|| clock.unix() + lifetime),
        boot: services.boot.clone(),
        manifest: None,
        run: 1,
        era: services.spool.era(),
    };
    let (record, keys) = if let Some(warm) = warm {
        let record = SessionRecord { id, seed: warm.record.seed, facts };
        services.adopt_record(warm.record.id, record.clone()).await?;
        (record, Some(warm.keys))
    } else {
        let seed = Arc::new(services.session_seed().await?);
        let record = SessionRecord { id, seed, facts };
        services.write_record(record.clone()).await?;
        (record, None)
    };
    let (id, task) = (record.id.clone(), record.facts.task.clone());
    tracing::info!(session = %id, %task, warm = keys.is_some(), "session opens");
    services.audit.record(AuditEvent::SessionOpened {
        session: id.clone(),
        task: task.clone(),
        model,
    });
    let started = start(Arc::clone(&services), record, keys, stands_by, membership, reports).await;
    if let Err(error) = &started {
        let facts = EndedFacts { task, reason: EndReason::Failed(error.to_string()) };
        // It has no jobs, so that there is nobody to tell.
        services.end_record(id.clone(), facts).await?;
        services.forget_record(id).await?;
    }
    started
}

/// Goes on with a session the vault has kept, in the state it was in.
///
/// # Errors
/// The vault or the spool refuses, or the keys cannot be made again.
pub async fn resume(
    services: Arc<Services>,
    mut record: SessionRecord,
    stands_by: bool,
    reports: Reports,
) -> Result<SessionHandle, StartError> {
    let membership = services.registry.enter(record.id.clone(), record.facts.task.clone());
    record.facts.run = record.facts.run.saturating_add(1);
    services.write_record(record.clone()).await?;
    start(services, record, None, stands_by, membership, reports).await
}

async fn start(
    services: Arc<Services>,
    record: SessionRecord,
    keys: Option<Vec<u8>>,
    stands_by: bool,
    membership: Membership,
    reports: Reports,
) -> Result<SessionHandle, StartError> {
    let waiting = services.spool.outstanding(&record.id).await?;
    let issued = services.spool.issued(&record.id).await?;
    let events = services.uplink.subscribe(record.id.clone()).await;
    let (requests, receiver) = mpsc::channel(REQUEST_QUEUE_LEN);
    let (crowding, crowded) = watch::channel(false);
    let id = record.id.clone();
    let budget = services.budget(&record.facts.card);
    let lifetime = services.lifetime(record.facts.ttl);
    let is_countable = record.facts.era == services.spool.era();
    let room = if is_countable { budget.saturating_sub(issued) } else { 0 };
    let actor = actor::Actor::new(
        services,
        record,
        waiting,
        actor::Beginning { keys, stands_by, issued, budget, lifetime, membership, crowding },
        reports,
    )?;
    tokio::spawn(actor.run(receiver, events));
    Ok(SessionHandle { id, requests, crowded, room, budget })
}

/// A session needs a successor when this part of its time or budget is left: a fifth.
const RENEWAL_PART: u64 = 5;

/// How long a session that shuts down with the agent waits for answers; what is not answered by
/// then stays in the spool.
const STOP_PATIENCE: Duration = Duration::from_millis(2500);
