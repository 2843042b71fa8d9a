//! A session: one ephemeral FHE key set from its opening to its end.
//!
//! Invariants:
//! - one task owns a session; everything it does is a reaction to one event;
//! - its record is in the vault before its first frame leaves, and erased when it ends;
//! - it signs what it sends with a key of its own, and no two of its opens have one number;
//! - secret keys live in the engine, which is dropped (and wiped) before the session's end is told;
//! - a result is decrypted only if it answers a job that waits, and only once;
//! - an accepted job ends in one answer or one refusal on the onboard API.

mod actor;

mod jobs;

mod meter;

mod registration;

use std::sync::Arc;
use std::time::Duration;

use moai_fhe::{EngineError, Levels, ModelCard};
use moai_transport::ids::{SessionId, TaskId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::audit::AuditEvent;
use crate::onboard::{Code, ReplyTo};
use crate::services::{SeedError, Services};
use crate::spool::SpoolError;
use crate::ttl::TtlClass;
use crate::vault::{SessionFacts, SessionRecord, VaultError};

pub use jobs::MAX_WAITING;

const REQUEST_QUEUE_LEN: usize = 64;

/// Why a session ended or is ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// Its time was over.
    Expired,
    /// The task was closed.
    Closed,
    /// The task goes on with a newer session.
    Rotated,
    /// It could not be set up or kept.
    Failed(String),
}

impl EndReason {
    /// What a job that it leaves without an answer is refused with.
    #[must_use]
    pub fn refusal(&self) -> Code {
        match self {
            Self::Expired => Code::Expired,
            Self::Closed | Self::Rotated | Self::Failed(_) => Code::SessionEnded,
        }
    }

    /// A stable word for the audit log.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Closed => "closed",
            Self::Rotated => "rotated",
            Self::Failed(_) => "failed",
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Expired => "the session's time is over".to_owned(),
            Self::Closed => "the task was closed".to_owned(),
            Self::Rotated => "the session was rotated".to_owned(),
            Self::Failed(why) => why.clone(),
        }
    }
}

/// What a session asks of its owner task to do.
pub enum SessionRequest {
    /// Encrypt and have computed.
    Submit(Input),
    /// Take nothing more, finish what waits, end.
    Drain(EndReason),
}

/// A window's features, ready to be encrypted.
pub struct Input {
    /// The quantised features.
    pub levels: Levels,
    /// Bytes of the samples in the clear.
    pub plain_len: u32,
    /// When the window's last sample arrived.
    pub arrived: Instant,
    /// How long its features took.
    pub features: Duration,
    /// Where the outcome is wanted too.
    pub reply: Option<ReplyTo>,
}

/// What a session tells its task.
#[derive(Debug)]
pub enum SessionReport {
    /// It works toward being active, or waits for something.
    Opening(Option<String>),
    /// The server is ready to compute.
    Active,
    /// It takes nothing more.
    Draining,
    /// It is over; nothing more comes.
    Ended(EndReason),
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
}

/// A running session.
pub struct SessionHandle {
    /// Its id.
    pub id: SessionId,
    requests: mpsc::Sender<SessionRequest>,
}

impl SessionHandle {
    /// Waits for a place for a request while the session is busy; `None` if it has ended. May be
    /// dropped at any time.
    pub fn place(&self) -> impl Future<Output = Option<mpsc::OwnedPermit<SessionRequest>>> + use<> {
        let requests = self.requests.clone();
        async move { requests.reserve_owned().await.ok() }
    }

    /// Whether it takes nothing more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.requests.is_closed()
    }

    /// Lets the session finish what waits and end.
    pub async fn drain(&self, reason: EndReason) {
        // A session that has ended needs no draining.
        let _ = self.requests.send(SessionRequest::Drain(reason)).await;
    }
}

/// Reports of all sessions of one task.
pub type Reports = mpsc::Sender<(SessionId, SessionReport)>;

/// Opens a new session with new keys.
///
/// # Errors
/// No randomness, or the vault refuses the record.
pub async fn open(
    services: Arc<Services>,
    task: TaskId,
    card: Arc<ModelCard>,
    ttl: TtlClass,
    reports: Reports,
) -> Result<SessionHandle, StartError> {
    let facts = SessionFacts {
        task,
        card: (*card).clone(),
        ttl,
        expires: services.clock.boot().after(services.lifetimes.of(ttl)),
        boot: services.boot.clone(),
        manifest: None,
        run: 1,
        era: services.spool.era(),
    };
    let seed = Arc::new(services.session_seed().await?);
    let record = SessionRecord { id: services.session_id()?, seed, facts };
    services.write_record(record.clone()).await?;
    tracing::info!(session = %record.id, task = %record.facts.task, "session opens");
    services.audit.record(AuditEvent::SessionOpened {
        session: record.id.clone(),
        task: record.facts.task.clone(),
        model: record.facts.card.id().parse().map_err(StartError::ModelId)?,
    });
    start(services, record, reports).await
}

/// Goes on with a session the vault has kept.
///
/// # Errors
/// The vault or the spool refuses, or the keys cannot be made again.
pub async fn resume(
    services: Arc<Services>,
    mut record: SessionRecord,
    reports: Reports,
) -> Result<SessionHandle, StartError> {
    record.facts.run = record.facts.run.saturating_add(1);
    services.write_record(record.clone()).await?;
    start(services, record, reports).await
}

async fn start(
    services: Arc<Services>,
    record: SessionRecord,
    reports: Reports,
) -> Result<SessionHandle, StartError> {
    let waiting = services.spool.outstanding(&record.id).await?;
    let events = services.uplink.subscribe(record.id.clone()).await;
    let (requests, receiver) = mpsc::channel(REQUEST_QUEUE_LEN);
    let id = record.id.clone();
    let actor = actor::Actor::new(services, record, waiting, reports)?;
    tokio::spawn(actor.run(receiver, events));
    Ok(SessionHandle { id, requests })
}

/// How long a session that shuts down with the agent waits for answers; what is not answered by
/// then stays in the spool.
const STOP_PATIENCE: Duration = Duration::from_millis(2500);
