//! The service: one task that owns the sessions of a worker and turns frames into answers.
//!
//! Invariants:
//! - a frame is used only if the key that has to sign it did, and topic and claims agree on who is
//!   speaking; before that nothing looks at what it says;
//! - every answer is signed, and every refusal has a code a robot can act on and goes through
//!   [`Service::refuse`];
//! - whatever has to outlive the worker is in the store before a robot hears of it;
//! - logs name sessions, contexts, models and times; never a byte of key or ciphertext.

mod answers;
mod jobs;
mod keys;
mod opening;
mod upkeep;

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use moai_transport::frame::{ChunkFrame, Frame, FrameKind, Received, Signatory, SignedFrame};
use moai_transport::ids::{ContextId, JobNumber, Tenant, WorkerId};
use moai_transport::keys::{ServerSigningKey, SessionPublicKey};
use moai_transport::link::{Link, LinkEvent, Message};
use moai_transport::message::ErrorCode;
use moai_transport::topic::Topic;
use moai_transport::trust::TrustedRobots;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::keys::Loaded;
use self::opening::Verdict;
use self::upkeep::Swept;
use crate::attestation::Attestation;
use crate::audit::{Audit, Event};
use crate::engine::Engine;
use crate::evaluator::{Evaluator, Outcome};
use crate::health::Beacon;
use crate::prepared::PreparedSets;
use crate::refusal::Refused;
use crate::sessions::{Keys, Session, Sessions};
use crate::store::{Found, Record, SessionKey, Store, StoreError, Stored, UnixMillis};
use crate::tenants::TenantRules;

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A catalogue is issued again long before it expires.
const CATALOGUE_INTERVAL: Duration = Duration::from_hours(6);
const OUTCOME_QUEUE_LEN: usize = 64;
/// Sets of keys that are prepared at a time; each takes twice its memory meanwhile.
const MAX_PREPARING: usize = 2;

/// What an operator sets for a service.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// Whom it serves, and how far.
    pub tenants: BTreeMap<Tenant, TenantRules>,
    /// The longest a session's keys are kept, whatever its manifest asks for.
    pub max_ttl: Duration,
    /// Threads that evaluate.
    pub threads: usize,
    /// Jobs that may wait for evaluation.
    pub max_waiting_jobs: usize,
    /// Sets of keys that are kept in memory, ready for use.
    pub max_prepared: NonZeroUsize,
}

/// Who speaks here, and who is believed.
pub struct Trust {
    /// What signs every answer.
    pub signing_key: ServerSigningKey,
    /// Who is a robot.
    pub robots: TrustedRobots,
    /// Who is attested; none where every robot with a certificate is served.
    pub attestation: Option<Attestation>,
}

/// What a service is made of.
pub struct Parts {
    /// What this run of the worker is called.
    pub worker: WorkerId,
    /// What an operator sets.
    pub settings: ServiceSettings,
    /// What computes.
    pub engine: Arc<dyn Engine>,
    /// Where sessions are kept.
    pub store: Arc<dyn Store>,
    /// Who speaks here, and who is believed.
    pub trust: Trust,
    /// Where it is noted what happened.
    pub audit: Audit,
    /// Where it is shown whether the worker moves.
    pub health: Option<Beacon>,
    /// The wall clock.
    pub clock: fn() -> UnixMillis,
    /// Where answers go.
    pub link: Link,
}

/// The owner of a worker's sessions.
pub struct Service {
    worker: WorkerId,
    context: ContextId,
    settings: ServiceSettings,
    engine: Arc<dyn Engine>,
    store: Arc<dyn Store>,
    signing_key: ServerSigningKey,
    robots: TrustedRobots,
    attestation: Option<Attestation>,
    audit: Audit,
    health: Option<Beacon>,
    clock: fn() -> UnixMillis,
    sessions: Sessions,
    prepared: PreparedSets,
    evaluator: Evaluator,
    outcomes: mpsc::Receiver<Outcome>,
    link: Link,
    loading: JoinSet<Loaded>,
    /// The sessions whose keys are being loaded.
    under_load: HashSet<SessionKey>,
    load_slots: Arc<Semaphore>,
    judging: JoinSet<Verdict>,
    sending: JoinSet<()>,
    sweeping: JoinSet<Result<Swept, StoreError>>,
    /// Sessions that ended while the store was out of reach.
    ending: HashSet<SessionKey>,
}

impl Service {
    /// A service that answers through its link.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts { worker, settings, engine, store, trust, audit, health, clock, link } = parts;
        let Trust { signing_key, robots, attestation } = trust;
        let (sender, outcomes) = mpsc::channel(OUTCOME_QUEUE_LEN);
        let evaluator = Evaluator::start(settings.threads, settings.max_waiting_jobs, sender)?;
        Ok(Self {
            worker,
            context: engine.context(),
            prepared: PreparedSets::new(settings.max_prepared),
            settings,
            engine,
            store,
            signing_key,
            robots,
            attestation,
            audit,
            health,
            clock,
            sessions: Sessions::default(),
            evaluator,
            outcomes,
            link,
            loading: JoinSet::new(),
            under_load: HashSet::new(),
            load_slots: Arc::new(Semaphore::new(MAX_PREPARING)),
            judging: JoinSet::new(),
            sending: JoinSet::new(),
            sweeping: JoinSet::new(),
            ending: HashSet::new(),
        })
    }

    /// Serves until `stop`. Whenever something comes through `reopen_log`, the audit log is opened
    /// again.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut reopen_log: mpsc::Receiver<()>,
        stop: CancellationToken,
    ) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        let mut reissue = tokio::time::interval(CATALOGUE_INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    None => return,
                    Some(LinkEvent::Up) => self.announce(),
                    Some(LinkEvent::Down(error)) => {
                        self.health.iter_mut().for_each(|health| health.set_connected(false));
                        tracing::warn!(reason = %error, fatal = error.is_fatal(), "broker link is down");
                    }
                    Some(LinkEvent::Message(message)) => self.message(&message).await,
                },
                Some(outcome) = self.outcomes.recv() => self.computed(outcome),
                Some(loaded) = self.loading.join_next() => match loaded {
                    Ok(loaded) => self.loaded(loaded).await,
                    Err(error) => tracing::error!(%error, "loading keys failed"),
                },
                Some(Ok(verdict)) = self.judging.join_next() => self.judged(verdict).await,
                Some(_) = self.sending.join_next() => {}
                Some(()) = reopen_log.recv() => self.audit.reopen(),
                _ = reissue.tick() => self.issue_catalogue(),
                Some(swept) = self.sweeping.join_next() => match swept {
                    Ok(swept) => self.swept(swept).await,
                    Err(error) => tracing::error!(%error, "sweeping the key store failed"),
                },
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    async fn message(&mut self, message: &Message) {
        let Ok(topic) = message.topic.parse::<Topic>() else {
            tracing::warn!(topic = %message.topic, "message on an unknown topic dropped");
            return;
        };
        let (Some(identity), Some(session)) = (topic.identity(), topic.session()) else { return };
        let key = SessionKey { identity: identity.clone(), session: session.clone() };
        let handled = match Received::decode(&message.payload) {
            Err(error) => Err((JobNumber(0), error.into())),
            Ok(Received::Chunk(chunk)) => {
                self.unsigned(&key, &topic, &chunk).await.map_err(|refused| (JobNumber(0), refused))
            }
            Ok(Received::Signed(signed)) => match signed.kind().signatory() {
                Some(Signatory::Robot) => self
                    .signed_by_robot(&key, &topic, signed)
                    .await
                    .map_err(|refused| (JobNumber(0), refused)),
                _ => self.signed_by_session(&key, &topic, signed).await,
            },
        };
        if let Err((number, refused)) = handled {
            self.refuse(&key, number, refused);
        }
    }

    async fn unsigned(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        chunk: &ChunkFrame,
    ) -> Result<(), Refused> {
        check_topic(chunk.frame(), topic)?;
        self.chunk(key, chunk).await
    }

    async fn signed_by_robot(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        signed: SignedFrame,
    ) -> Result<(), Refused> {
        let verified = signed.verify_robot(&self.robots, (self.clock)().0 / 1000)?;
        self.open(key, topic, &verified).await
    }

    /// A frame that the session's key has to have signed.
    async fn signed_by_session(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        signed: SignedFrame,
    ) -> Result<(), (JobNumber, Refused)> {
        let refused = |refused| (JobNumber(0), refused);
        let session_key = self.session_key(key).await.map_err(refused)?;
        let frame = signed
            .verify_session(&session_key, (self.clock)().0 / 1000)
            .map_err(|error| refused(error.into()))?;
        let number = JobNumber(if frame.kind == FrameKind::Job { frame.claims.number } else { 0 });
        check_topic(&frame, topic).map_err(|refused| (number, refused))?;
        let handled = match frame.kind {
            FrameKind::Job => self.job(key, frame).await,
            FrameKind::Attest => self.attest(key, frame.body),
            FrameKind::Delete => {
                self.delete(key).await;
                Ok(())
            }
            other => Err(Refused(ErrorCode::MalformedFrame, format!("robots send no {other:?}"))),
        };
        handled.map_err(|refused| (number, refused))
    }

    /// What has to sign the frames of a session.
    async fn session_key(&mut self, key: &SessionKey) -> Result<SessionPublicKey, Refused> {
        if let Some(session_key) = self.sessions.session_key(key) {
            return Ok(session_key);
        }
        if let Some(session_key) = self.attestation.as_ref().and_then(|it| it.session_key(key)) {
            return Ok(session_key);
        }
        Ok(self.session(key).await?.manifest.session_key)
    }

    /// A session that lives: one of this worker, or else one that the store knows.
    async fn session(&mut self, key: &SessionKey) -> Result<&mut Session, Refused> {
        let now = Instant::now();
        if self.sessions.get(key, now).is_none() {
            if self.sessions.has_expired(key) {
                return Err(Refused::ended());
            }
            self.rules(&key.identity.tenant)?;
            match self.store.find(key, (self.clock)()).await? {
                Found::Session(stored) if self.is_admitted(&stored.record) => {
                    self.take_over(key, stored);
                }
                Found::Ended => return Err(Refused::ended()),
                Found::Session(_) | Found::Nothing => {}
            }
        }
        self.sessions.get(key, now).ok_or_else(Refused::unknown)
    }

    /// Whether the robot of a stored session showed all that this worker asks for.
    fn is_admitted(&self, record: &Record) -> bool {
        self.attestation.is_none() || record.attested.is_some()
    }

    /// Goes on with a session that the store has and this worker has not.
    fn take_over(&mut self, key: &SessionKey, stored: Stored) {
        let Stored { record, held } = stored;
        let now = (self.clock)();
        let expires = Instant::now() + record.expires_at.since(now);
        let registered = record.registered && held.is_complete();
        tracing::info!(identity = %key.identity, session = %key.session, registered, "session taken over");
        self.audit.record(key, now, &Event::TakenOver { registered });
        let is_complete = held.is_complete();
        let keys = if registered { Keys::Ready } else { Keys::Arriving(held) };
        self.sessions.insert(key.clone(), Session::new(record.manifest, expires, keys));
        if is_complete {
            self.load(key);
        }
    }
}

fn check_topic(frame: &Frame, topic: &Topic) -> Result<(), Refused> {
    frame
        .check_topic(topic)
        .map_err(|error| Refused(ErrorCode::IdentityMismatch, error.to_string()))
}
