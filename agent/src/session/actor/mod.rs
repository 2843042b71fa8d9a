//! The one owner task of a session: it turns events into frames, answers and an end.

mod attesting;
mod ending;
mod hearing;
mod outcome;
mod registering;
mod sending;
mod submitting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::Engine;
use moai_transport::ids::{ContextId, JobNumber, ModelId};
use moai_transport::keys::SessionSigningKey;
use moai_transport::message::Manifest;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use self::submitting::Held;
use super::farewell::Decided;
use super::jobs::Jobs;
use super::lifecycle::{CutReason, DrainReason, EndReason, Ended, Lifecycle};
use super::outbox::Outbox;
use super::registration::Registration;
use super::registry::Membership;
use super::{RENEWAL_PART, Reports, SessionReport, SessionRequest, StartError, Turn};
use crate::audit::AuditEvent;
use crate::services::Services;
use crate::spool::Outstanding;
use crate::status::SessionStatus;
use crate::uplink::{SendError, SessionEvent, context_id};
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
    /// Most jobs it takes.
    pub budget: u64,
    /// How long it lives, all in all.
    pub lifetime: Duration,
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
    budget: u64,
    lifetime: Duration,
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
        let context = card.to_context();
        let fhe_seed = record.seed.fhe_seed(context.scheme_name());
        let engine = services.engines.setup(&context, &fhe_seed)?;
        let model = card.id().parse().map_err(StartError::ModelId)?;
        let registration = match record.facts.manifest {
            None => Registration::generating(),
            Some(_) => Registration::resumed(),
        };
        let mut jobs = Jobs::default();
        for job in waiting.jobs {
            jobs.insert(job, None, Instant::now());
        }
        let Beginning { keys, stands_by, issued, budget, lifetime, membership, crowding } =
            beginning;
        let (task, id) = (record.facts.task.clone(), record.id.clone());
        Ok(Self {
            context: context_id(card),
            model,
            signing_key: Arc::new(record.seed.signing_key()),
            opens: u64::from(record.facts.run) << 32,
            issued,
            budget,
            lifetime,
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
            decryptions_left: self.budget.saturating_sub(self.issued),
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

    async fn tick(&mut self) {
        self.drop_old();
        // Jobs of other sessions may have left the spool.
        self.place_held().await;
        let is_old = self.remaining() <= self.lifetime / u32::try_from(RENEWAL_PART).unwrap_or(1);
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
}
