//! The one owner task of a session: it turns events into frames, answers and an end.

mod attesting;
mod ending;
mod outcome;
mod submitting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::{Context, Engine};
use moai_transport::chunk;
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, JobNumber, ModelId, WorkerId};
use moai_transport::keys::SessionSigningKey;
use moai_transport::link::PublishError;
use moai_transport::message::{ErrorBody, ErrorCode, Have, Manifest};
use moai_transport::topic::Topic;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use self::outcome::refusal_code;
use self::submitting::Held;
use super::farewell::Decided;
use super::jobs::Jobs;
use super::lifecycle::{CutReason, DrainReason, EndReason, Ended, Lifecycle};
use super::outbox::{Outbox, Outcome};
use super::registration::{Next, Registration};
use super::registry::Membership;
use super::{RENEWAL_PART, Reports, SessionReport, SessionRequest, StartError, Turn};
use crate::audit::AuditEvent;
use crate::secrets::OsEntropy;
use crate::services::Services;
use crate::spool::Outstanding;
use crate::status::SessionStatus;
use crate::uplink::{self, SendError, SessionEvent, context_id};
use crate::vault::SessionRecord;

const TICK: Duration = Duration::from_millis(500);
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Windows that become jobs with one flush of the disk.
const MAX_TOGETHER: usize = 32;

/// Work under way beside the actor.
enum Done {
    Keys(Result<GeneratedKeys, String>),
    Chunk { index: u64, sent: Result<usize, SendError> },
    Job { number: JobNumber, sent: Result<usize, SendError> },
    Opened(Result<usize, SendError>),
    Attested(Result<(), String>),
}

/// Evaluation keys and what they look like.
struct GeneratedKeys {
    bytes: Vec<u8>,
    manifest: Manifest,
}

/// How a session begins.
pub(super) struct Beginning {
    /// Evaluation keys that were made ahead.
    pub keys: Option<Vec<u8>>,
    /// Whether it waits to be told before it becomes active.
    pub stands_by: bool,
    /// Numbers its jobs have had in earlier runs of the agent.
    pub issued: u64,
    /// Its place among all sessions.
    pub membership: Membership,
    /// Where it says that it has windows without room.
    pub crowding: watch::Sender<bool>,
}

pub(super) struct Actor {
    services: Arc<Services>,
    record: SessionRecord,
    context: ContextId,
    model: ModelId,
    /// Gone when the session has ended.
    engine: Option<Box<dyn Engine>>,
    signing_key: Arc<SessionSigningKey>,
    /// Number of the newest open.
    opens: u64,
    /// Number of the newest job.
    issued: u64,
    registration: Registration,
    jobs: Jobs,
    /// Outcomes that have to wait for those of earlier jobs.
    decided: Decided,
    outbox: Outbox,
    held: Held,
    /// Jobs that the disk has lost, until they are told.
    lost: Vec<JobNumber>,
    /// A challenge is being answered.
    attesting: bool,
    stands_by: bool,
    /// Its task knows that it needs a successor.
    is_ageing: bool,
    /// Why it ends at once.
    cut: Option<CutReason>,
    membership: Membership,
    crowding: watch::Sender<bool>,
    work: JoinSet<Done>,
    /// Evaluation keys that were made ahead, until their manifest is made.
    warm_keys: Option<Vec<u8>>,
    reports: Reports,
}

impl Actor {
    pub(super) fn new(
        services: Arc<Services>,
        record: SessionRecord,
        waiting: Outstanding,
        beginning: Beginning,
        reports: Reports,
    ) -> Result<Self, StartError> {
        let card = &record.facts.card;
        let engine = services.engines.setup(&Context::tfhe(), &record.seed.fhe_seed("tfhe"))?;
        let model = card.id().parse().map_err(StartError::ModelId)?;
        let registration = match record.facts.manifest {
            None => Registration::generating(),
            Some(_) => Registration::resumed(),
        };
        let mut jobs = Jobs::default();
        for job in waiting.jobs {
            jobs.insert(job, None, Instant::now());
        }
        let Beginning { keys, stands_by, issued, membership, crowding } = beginning;
        let (task, id) = (record.facts.task.clone(), record.id.clone());
        Ok(Self {
            context: context_id(card),
            model,
            signing_key: Arc::new(record.seed.signing_key()),
            opens: u64::from(record.facts.run) << 32,
            issued,
            outbox: Outbox::start(Arc::clone(&services), task, id),
            services,
            record,
            engine: Some(engine),
            registration,
            jobs,
            decided: BTreeMap::new(),
            held: Held::default(),
            lost: waiting.lost,
            attesting: false,
            stands_by,
            is_ageing: false,
            cut: None,
            membership,
            crowding,
            work: JoinSet::new(),
            warm_keys: keys,
            reports,
        })
    }

    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<SessionRequest>,
        mut events: mpsc::Receiver<SessionEvent>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.registration.is_generating() {
            self.generate_keys();
        }
        self.tell_lost();
        self.report(SessionReport::Opening(None)).await;
        let stop = self.services.stop.clone();
        let revoked = self.membership.revoked().clone();
        loop {
            self.drive();
            self.show();
            self.tell_crowded();
            if let Some(ended) = self.over() {
                return self.end(&ended, requests).await;
            }
            let takes = self.state().draining().is_none();
            tokio::select! {
                () = revoked.cancelled() => self.cut = Some(CutReason::Revoked),
                () = stop.cancelled() => return self.suspend(events, requests).await,
                Some(event) = events.recv() => self.event(event).await,
                Some(Ok(done)) = self.work.join_next() => self.done(done).await,
                () = self.outbox.arrived() => self.place_held().await,
                request = requests.recv(), if takes => match request {
                    Some(first) => self.take(first, &mut requests).await,
                    // Its task ended because the agent stops.
                    None if stop.is_cancelled() => return self.suspend(events, requests).await,
                    None => self.drain(DrainReason::Closed).await,
                },
                _ = ticks.tick() => self.tick().await,
            }
        }
    }

    /// Takes a request, and with a window those that wait behind it.
    async fn take(&mut self, first: SessionRequest, requests: &mut mpsc::Receiver<SessionRequest>) {
        let mut windows = Vec::new();
        let mut next = Some(first);
        let turn = loop {
            match next {
                Some(SessionRequest::Submit(input)) => windows.push(input),
                Some(SessionRequest::Turn(turn)) => break Some(turn),
                None => break None,
            }
            next = if windows.len() < MAX_TOGETHER { requests.try_recv().ok() } else { None };
        };
        self.submit(windows).await;
        match turn {
            Some(Turn::Activate) => self.activate().await,
            Some(Turn::Drain(reason)) => self.drain(reason).await,
            None => {}
        }
    }

    fn state(&self) -> Lifecycle {
        self.record.facts.state
    }

    /// Takes a step: it is in the vault when this returns, or the session is to end.
    async fn step(&mut self, next: Lifecycle) {
        let mut record = self.record.clone();
        record.facts.state = next;
        self.keep(record).await;
    }

    /// Goes on with a changed record, once it is in the vault.
    async fn keep(&mut self, record: SessionRecord) {
        match self.services.write_record(record.clone()).await {
            Ok(()) => self.record = record,
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, why: String) {
        self.cut.get_or_insert(CutReason::Failed(why));
    }

    /// Whether the session has reached its end.
    fn over(&mut self) -> Option<Ended> {
        let state = self.state();
        if self.is_expired() {
            return Some(state.cut(CutReason::Expired));
        }
        if let Some(reason) = self.cut.take() {
            return Some(state.cut(reason));
        }
        match state {
            Lifecycle::Draining(draining) if self.is_idle() => Some(draining.drained()),
            _ => None,
        }
    }

    /// Whether nothing waits any more.
    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.outbox.pending() == 0 && self.held.is_empty()
    }

    fn is_expired(&self) -> bool {
        self.services.clock.boot() >= self.record.facts.expires
    }

    fn remaining(&self) -> Duration {
        self.record.facts.expires.remaining(self.services.clock.boot())
    }

    async fn report(&self, report: SessionReport) {
        // A task that has gone needs no reports.
        let _ = self.reports.send((self.record.id.clone(), report)).await;
    }

    fn show(&mut self) {
        let upload = self.registration.progress(Instant::now());
        let status = SessionStatus {
            state: self.state().word().to_owned(),
            warm: self.record.facts.warm,
            expires_in_seconds: self.remaining().as_secs(),
            decryptions_left: self.services.decryption_budget.saturating_sub(self.issued),
            upload,
            waiting: self.jobs.len() + self.outbox.pending(),
        };
        self.services.board.update_session(&self.record.facts.task, &self.record.id, status);
    }

    /// The task's jobs go to this session from here on.
    async fn activate(&mut self) {
        self.stands_by = false;
        if self.registration.registered_worker().is_some() {
            self.become_active().await;
        }
    }

    async fn become_active(&mut self) {
        let next = self.state().registered();
        if next != self.state() {
            self.step(next).await;
        }
        if self.cut.is_none() && self.state().is_active() {
            tracing::info!(session = %self.record.id, "session is active");
            if let Some(worker) = self.registration.registered_worker().cloned() {
                let session = self.record.id.clone();
                self.services.audit.record(AuditEvent::SessionActive { session, worker });
            }
            self.report(SessionReport::Active).await;
        }
    }

    async fn drain(&mut self, reason: DrainReason) {
        self.step(self.state().drain(reason)).await;
        tracing::info!(session = %self.record.id, ?reason, "session drains");
        self.services.audit.record(AuditEvent::SessionDraining {
            session: self.record.id.clone(),
            reason: EndReason::from(reason).word(),
        });
        self.report(SessionReport::Draining).await;
    }

    // Keys and registration.

    /// Makes the evaluation keys and their manifest; of keys that were made ahead, the manifest.
    fn generate_keys(&mut self) {
        let seed = self.record.seed.fhe_seed("tfhe");
        let (context, remaining) = (self.context, self.remaining());
        let session_key = self.signing_key.public();
        let engines = Arc::clone(&self.services.engines);
        let (warm, busy) = (self.warm_keys.take(), self.services.warm.busy());
        self.work.spawn_blocking(move || {
            let generate = || {
                let bytes = match warm {
                    Some(bytes) => bytes,
                    None => engines
                        .setup(&Context::tfhe(), &seed)
                        .and_then(|engine| engine.evaluation_keys())
                        .map_err(|error| error.to_string())?,
                };
                drop(busy);
                let manifest = chunk::manifest(context, remaining, session_key, &bytes, 0);
                Ok(GeneratedKeys { manifest: manifest.map_err(|e| e.to_string())?, bytes })
            };
            Done::Keys(generate())
        });
    }

    async fn keys_ready(&mut self, keys: Result<GeneratedKeys, String>) {
        let keys = match keys {
            Ok(keys) => keys,
            Err(error) => return self.fail(error),
        };
        let mut record = self.record.clone();
        record.facts.manifest = Some(keys.manifest.clone());
        record.facts.state = record.facts.state.generated();
        self.keep(record).await;
        tracing::debug!(session = %self.record.id, bytes = keys.bytes.len(), "evaluation keys are ready");
        if let Err(error) = self.registration.offer(keys.bytes, &keys.manifest) {
            self.fail(error.to_string());
        }
    }

    /// Sends whatever may be sent now: the question, chunks, jobs.
    fn drive(&mut self) {
        let now = Instant::now();
        if let Some(manifest) = &self.record.facts.manifest {
            let nonce = OsEntropy::bytes().map_or(0, u64::from_be_bytes);
            if nonce != 0 && self.registration.ask(now, nonce) {
                let mut manifest = manifest.clone();
                manifest.nonce = nonce;
                manifest.ttl_seconds =
                    u32::try_from(self.remaining().as_secs().max(1)).unwrap_or(u32::MAX);
                let topic = Topic::Open {
                    identity: self.services.uplink.identity().clone(),
                    session: self.record.id.clone(),
                };
                self.opens += 1;
                match manifest.encode() {
                    Ok(body) => {
                        self.spawn(topic, FrameKind::Open, self.opens, body, Done::Opened);
                    }
                    Err(error) => {
                        tracing::error!(session = %self.record.id, %error, "open cannot be encoded");
                    }
                }
            }
        }
        while let Some((upload, worker)) = self.registration.upload() {
            let worker = worker.clone();
            let Some(chunk) = upload.next_chunk() else { break };
            let topic = self.to_worker(worker, "chunk");
            let (Frame { claims, .. }, expiry) =
                self.frame(FrameKind::Chunk, chunk.index, Vec::new());
            let uplink = self.services.uplink.clone();
            self.work.spawn(async move {
                let sent = uplink.send_chunk(&topic, &claims, &chunk, expiry).await;
                Done::Chunk { index: chunk.index, sent: sent.map(|sent| sent.frame_len) }
            });
        }
        if let Some(worker) = self.registration.registered_worker().cloned() {
            let order = self.order();
            while let Some((number, body)) = self.jobs.next_due(order, now) {
                let topic = self.to_worker(worker.clone(), "job");
                self.spawn(topic, FrameKind::Job, number.0, body.to_vec(), move |sent| Done::Job {
                    number,
                    sent,
                });
            }
        }
    }

    fn to_worker(&self, worker: WorkerId, leaf: &str) -> Topic {
        let identity = self.services.uplink.identity().clone();
        let session = self.record.id.clone();
        match leaf {
            "chunk" => Topic::Chunk { identity, worker, session },
            "job" => Topic::Job { identity, worker, session },
            _ => Topic::Delete { identity, worker, session },
        }
    }

    fn frame(&self, kind: FrameKind, number: u64, body: Vec<u8>) -> (Frame, Duration) {
        let lifetime = self.remaining().min(kind.max_lifetime());
        let claims = Claims {
            identity: Some(self.services.uplink.identity().clone()),
            session: Some(self.record.id.clone()),
            number,
            model: Some(self.model.clone()),
            context: Some(self.context),
            expires_at: (self.services.clock.unix() + lifetime).as_secs(),
            ..Claims::default()
        };
        (Frame { kind, claims, body }, lifetime)
    }

    fn spawn(
        &mut self,
        topic: Topic,
        kind: FrameKind,
        number: u64,
        body: Vec<u8>,
        done: impl FnOnce(Result<usize, SendError>) -> Done + Send + 'static,
    ) {
        let (frame, expiry) = self.frame(kind, number, body);
        let (uplink, key) = (self.services.uplink.clone(), Arc::clone(&self.signing_key));
        self.work.spawn(async move {
            done(uplink.send(&topic, &frame, &key, expiry).await.map(|sent| sent.frame_len))
        });
    }

    async fn have(&mut self, have: &Have) {
        match self.registration.have(have) {
            Next::Ignore | Next::SendChunks => {}
            Next::GenerateKeys => {
                tracing::info!(session = %self.record.id, "the server lost the keys; making them again");
                self.generate_keys();
                self.report(SessionReport::Opening(Some("making keys again".to_owned()))).await;
            }
            Next::Registered => {
                tracing::info!(session = %self.record.id, worker = %have.worker, "session is registered");
                self.jobs.retry_all(Instant::now());
                if self.stands_by {
                    self.report(SessionReport::Ready).await;
                } else {
                    self.become_active().await;
                }
            }
        }
    }

    /// The server may no longer hold the session: ask, and send every job again.
    async fn renew(&mut self, why: &str) {
        let was_active = self.registration.registered_worker().is_some();
        self.registration.renew();
        self.jobs.retry_all(Instant::now());
        if was_active && self.state().draining().is_none() {
            self.report(SessionReport::Opening(Some(why.to_owned()))).await;
        }
    }

    async fn tick(&mut self) {
        self.drop_old();
        // Jobs of other sessions may have left the spool.
        self.place_held().await;
        let lifetime = self.services.lifetimes.of(self.record.facts.ttl);
        let is_old = self.remaining() <= lifetime / u32::try_from(RENEWAL_PART).unwrap_or(1);
        if is_old && !self.is_ageing && !self.stands_by && self.state().draining().is_none() {
            self.is_ageing = true;
            self.report(SessionReport::Ageing).await;
        }
        if self.jobs.any_overdue(Instant::now()) {
            tracing::warn!(session = %self.record.id, "jobs are overdue; asking the server again");
            self.registration.renew();
            self.jobs.retry_all(Instant::now());
        }
        if self.registration.is_unanswered() && !self.stands_by {
            self.services.board.update(&self.record.facts.task, |status| {
                status.reason = Some("no compute server answers".to_owned());
            });
        }
    }

    // What the server says.

    async fn event(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Up => self.renew("the uplink came back").await,
            SessionEvent::Have(have) => self.have(&have).await,
            SessionEvent::Challenge(challenge) => self.challenge(challenge).await,
            SessionEvent::Result { model, context, number, body, compute, frame_len } => {
                if model.as_ref() != Some(&self.model)
                    || context.is_some_and(|it| it != self.context)
                {
                    let why = "a result of another model or context than the session's";
                    let class = ("result", "context");
                    return uplink::refused(&self.services.audit, class, &self.record.id, &why);
                }
                self.answer(number, &body, compute, frame_len);
            }
            SessionEvent::Stale(why) => {
                if self.registration.registered_worker().is_none() {
                    self.report(SessionReport::Opening(Some(why.to_string()))).await;
                }
            }
            SessionEvent::Error { number, error } => self.error(number, error).await,
            SessionEvent::WorkerDown(worker) => {
                if self.registration.worker() == Some(&worker) {
                    self.renew("the compute server went away").await;
                }
            }
        }
    }

    async fn error(&mut self, number: Option<JobNumber>, error: ErrorBody) {
        tracing::warn!(session = %self.record.id, ?number, code = ?error.code, "the server refuses");
        match (error.code, number) {
            (ErrorCode::UnknownSession | ErrorCode::ExpiredSession, _) => {
                self.renew("the server does not hold the session").await;
            }
            // An open that came twice, or late; the newest is under way or was answered.
            (ErrorCode::Replayed, None) => {}
            (code, Some(number)) if code.is_transient() => {
                self.jobs.retry(number, Instant::now(), BUSY_PAUSE);
            }
            (_, Some(number)) => {
                if let Some(job) = self.jobs.remove(number) {
                    let message = format!("the server refused the job: {}", error.message);
                    let refusal = self.refusal(refusal_code(error.code), number, message);
                    self.decide(number, Outcome::Refusal(refusal), job.reply());
                }
            }
            // Not about the session's opening, and about no job: somebody else's frame, if anybody's.
            (_, None) if self.registration.registered_worker().is_some() => {}
            (code, None) if code.is_transient() => {
                let why = match code {
                    ErrorCode::UntrustedCertificate => "the server does not trust this robot",
                    ErrorCode::NotAttested => "the server does not believe this robot's state",
                    ErrorCode::ExpiredFrame => "the clocks of robot and server differ",
                    _ => "the server is busy",
                };
                let why = format!("{why}: {}", error.message);
                self.report(SessionReport::Opening(Some(why))).await;
            }
            (_, None) => {
                self.fail(format!("the server refused the session: {}", error.message));
            }
        }
    }

    async fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Keys(keys) => self.keys_ready(keys).await,
            Done::Chunk { index, sent } => self.registration.chunk_done(index, sent.is_ok(), now),
            Done::Job { number, sent: Ok(frame_len) } => self.jobs.note_frame(number, frame_len),
            // A link that is down tells when it is up again; then all jobs go again.
            Done::Job { sent: Err(SendError::Publish(PublishError::Down)), .. }
            | Done::Opened(Ok(_)) => {}
            Done::Job { number, sent: Err(error) } => {
                tracing::debug!(session = %self.record.id, %number, %error, "job not sent yet");
                self.jobs.retry(number, now, BUSY_PAUSE);
            }
            Done::Attested(outcome) => self.attested(outcome).await,
            Done::Opened(Err(error @ SendError::Frame(_))) => {
                tracing::warn!(session = %self.record.id, %error, "open cannot be sent; trying again");
            }
            Done::Opened(Err(error)) => {
                tracing::debug!(session = %self.record.id, %error, "open not sent yet");
            }
        }
    }
}
