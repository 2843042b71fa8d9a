//! The service: one task that owns the sessions and turns frames into answers.
//!
//! Invariants:
//! - a frame is used only if its topic, its claims and a session agree on who is speaking;
//! - every refusal has a code a robot can act on;
//! - logs name sessions, contexts, models and times; never a byte of key or ciphertext.

mod opening;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moai_fhe::{Context, EvaluationKeys};
use moai_transport::frame::{Claims, Frame, FrameKind, Received};
use moai_transport::ids::{ContextId, Digest, JobNumber, ModelId, WorkerId};
use moai_transport::link::{Link, LinkEvent, Message, Outgoing, Qos};
use moai_transport::message::{ErrorBody, ErrorCode, Have, WorkerState};
use moai_transport::topic::Topic;
use moai_transport::trust::TrustedRobots;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::opening::Verdict;
use crate::attestation::Attestation;
use crate::config::Config;
use crate::evaluator::{Evaluator, Job, Outcome};
use crate::models::Models;
use crate::refusal::Refused;
use crate::sessions::{Keys, SeenJob, Session, SessionKey, Sessions};

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// An answer nobody fetched for so long is asked for again by the robot anyway.
const ANSWER_EXPIRY: Duration = Duration::from_mins(1);

/// Keys that were checked and prepared.
struct Prepared {
    session: SessionKey,
    key_digest: Digest,
    keys: Option<Result<EvaluationKeys, String>>,
}

/// The server's one owner of sessions.
pub struct Service {
    worker: WorkerId,
    context: ContextId,
    config: Config,
    models: Models,
    robots: TrustedRobots,
    /// None where every robot with a certificate is served.
    attestation: Option<Attestation>,
    sessions: Sessions,
    evaluator: Evaluator,
    link: Link,
    preparing: JoinSet<Prepared>,
    judging: JoinSet<Verdict>,
    sending: JoinSet<()>,
}

impl Service {
    /// A service that answers through `link`.
    #[must_use]
    pub fn new(
        worker: WorkerId,
        config: Config,
        models: Models,
        robots: TrustedRobots,
        attestation: Option<Attestation>,
        evaluator: Evaluator,
        link: Link,
    ) -> Self {
        let sessions = Sessions::new(config.max_sessions);
        let context = ContextId(Digest(Context::tfhe().digest()));
        Self {
            worker,
            context,
            config,
            models,
            robots,
            attestation,
            sessions,
            evaluator,
            link,
            preparing: JoinSet::new(),
            judging: JoinSet::new(),
            sending: JoinSet::new(),
        }
    }

    /// Serves until `stop`.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut outcomes: mpsc::Receiver<Outcome>,
        stop: CancellationToken,
    ) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => match event {
                    None => return,
                    Some(LinkEvent::Up) => self.announce(),
                    Some(LinkEvent::Down(error)) => {
                        tracing::warn!(reason = %error, fatal = error.is_fatal(), "broker link is down");
                    }
                    Some(LinkEvent::Message(message)) => self.message(&message),
                },
                Some(outcome) = outcomes.recv() => self.computed(outcome),
                Some(Ok(prepared)) = self.preparing.join_next() => self.prepared(prepared),
                Some(Ok(verdict)) = self.judging.join_next() => self.judged(verdict),
                Some(_) = self.sending.join_next() => {}
                _ = sweep.tick() => {
                    let now = Instant::now();
                    if let Some(attestation) = &mut self.attestation {
                        attestation.expire(now);
                    }
                    for key in self.sessions.expire(now) {
                        tracing::info!(identity = %key.identity, session = %key.session, "session expired, keys deleted");
                    }
                }
            }
        }
    }

    fn announce(&mut self) {
        tracing::info!(worker = %self.worker, "broker link is up");
        let topic = Topic::WorkerStatus { worker: self.worker.clone() }.to_string();
        match (WorkerState { worker: self.worker.clone(), up: true }).encode() {
            Ok(state) => {
                let outgoing = Outgoing::new(topic, state, Qos::AtLeastOnce);
                self.publish(Outgoing { retain: true, ..outgoing });
            }
            Err(error) => tracing::error!(%error, "the worker status cannot be published"),
        }
        let claims = Claims { context: Some(self.context), ..Claims::default() };
        let frame = Frame { kind: FrameKind::Models, claims, body: self.models.catalogue() };
        for tenant in self.config.tenants.clone() {
            match frame.encode() {
                Ok(payload) => {
                    let topic = Topic::Models { tenant }.to_string();
                    let outgoing = Outgoing::new(topic, payload, Qos::AtLeastOnce);
                    self.publish(Outgoing { retain: true, ..outgoing });
                }
                Err(error) => tracing::error!(%error, "the catalogue cannot be published"),
            }
        }
    }

    fn publish(&mut self, outgoing: Outgoing) {
        let link = self.link.clone();
        self.sending.spawn(async move {
            if let Err(error) = link.publish(outgoing).await {
                tracing::debug!(%error, "not published; robots ask again");
            }
        });
    }

    fn message(&mut self, message: &Message) {
        let Ok(topic) = message.topic.parse::<Topic>() else {
            tracing::warn!(topic = %message.topic, "message on an unknown topic dropped");
            return;
        };
        let (Some(identity), Some(session)) = (topic.identity(), topic.session()) else { return };
        let key = SessionKey { identity: identity.clone(), session: session.clone() };
        let received = Received::decode(&message.payload).map_err(Refused::from);
        let frame = match received {
            Ok(Received::Plain(frame)) => frame,
            Ok(Received::Signed(signed)) => {
                let opened = signed
                    .verify(&self.robots, unix_now().as_secs())
                    .map_err(Refused::from)
                    .and_then(|verified| self.open(&key, &topic, &verified));
                return opened.unwrap_or_else(|refused| self.refuse(&key, JobNumber(0), refused));
            }
            Err(refused) => return self.refuse(&key, JobNumber(0), refused),
        };
        let number = if frame.kind == FrameKind::Job { frame.claims.number } else { 0 };
        if let Err(error) = frame.check_topic(&topic) {
            let refused = Refused(ErrorCode::IdentityMismatch, error.to_string());
            return self.refuse(&key, JobNumber(number), refused);
        }
        let handled = match frame.kind {
            FrameKind::Chunk => self.chunk(&key, &frame),
            FrameKind::Job => self.job(&key, frame),
            FrameKind::Attest => self.attest(&key, frame.body),
            FrameKind::Delete => {
                if let Some(attestation) = &mut self.attestation {
                    attestation.forget(&key);
                }
                if self.sessions.remove(&key) {
                    tracing::info!(identity = %key.identity, session = %key.session, "session deleted by its robot, keys deleted");
                }
                Ok(())
            }
            _ => Err(Refused(ErrorCode::MalformedFrame, "robots do not send this kind".to_owned())),
        };
        if let Err(refused) = handled {
            self.refuse(&key, JobNumber(number), refused);
        }
    }

    fn say_have(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.get(key, Instant::now()) else { return };
        let (bitmap, registered) = match &session.keys {
            Keys::Arriving(receiver) => (receiver.bitmap(), false),
            // Nothing is missing, yet it is not ready: the robot waits.
            Keys::Preparing => return,
            Keys::Ready(_) => (full_bitmap(session.chunks), true),
        };
        let have = Have { worker: self.worker.clone(), nonce: session.nonce, bitmap, registered };
        let topic = Topic::Have { identity: key.identity.clone(), session: key.session.clone() };
        match have.encode() {
            Ok(body) => self.send(key, &topic, FrameKind::Have, Claims::default(), body),
            Err(error) => tracing::error!(%error, "a have cannot be encoded"),
        }
    }

    fn chunk(&mut self, key: &SessionKey, frame: &Frame) -> Result<(), Refused> {
        let session = living(&mut self.sessions, key)?;
        let Keys::Arriving(receiver) = &mut session.keys else { return Ok(()) };
        receiver
            .accept(frame.claims.number, &frame.body)
            .map_err(|error| Refused(ErrorCode::MalformedFrame, error.to_string()))?;
        if !receiver.is_complete() {
            return Ok(());
        }
        let Keys::Arriving(receiver) = std::mem::replace(&mut session.keys, Keys::Preparing) else {
            return Ok(());
        };
        let (key, key_digest) = (key.clone(), session.key_digest);
        self.preparing.spawn_blocking(move || {
            let prepare = || {
                let bytes = receiver.into_key().map_err(|error| error.to_string())?;
                EvaluationKeys::from_bytes(&Context::tfhe(), &bytes)
                    .map_err(|error| error.to_string())
            };
            let keys = std::panic::catch_unwind(std::panic::AssertUnwindSafe(prepare)).ok();
            Prepared { session: key, key_digest, keys }
        });
        Ok(())
    }

    fn prepared(&mut self, prepared: Prepared) {
        let Prepared { session: key, key_digest, keys } = prepared;
        let Some(session) = self.sessions.get(&key, Instant::now()) else { return };
        if session.key_digest != key_digest {
            return;
        }
        match keys {
            Some(Ok(keys)) => {
                session.keys = Keys::Ready(Arc::new(keys));
                tracing::info!(identity = %key.identity, session = %key.session, "keys registered");
                self.say_have(&key);
            }
            Some(Err(error)) => {
                self.sessions.remove(&key);
                self.refuse(&key, JobNumber(0), Refused(ErrorCode::MalformedCiphertext, error));
            }
            None => {
                self.sessions.remove(&key);
                let message = "the keys could not be prepared".to_owned();
                self.refuse(&key, JobNumber(0), Refused(ErrorCode::Internal, message));
            }
        }
    }

    fn job(&mut self, key: &SessionKey, frame: Frame) -> Result<(), Refused> {
        let number = JobNumber(frame.claims.number);
        let session = living(&mut self.sessions, key)?;
        let Keys::Ready(keys) = &session.keys else {
            return Err(Refused(ErrorCode::UnknownSession, "its keys are not here yet".to_owned()));
        };
        if let Some(seen) = session.seen(number).cloned() {
            if let SeenJob::Computed { model, body, compute } = seen {
                self.say_result(key, number, model, body.to_vec(), compute);
            }
            return Ok(());
        }
        let id = frame.claims.model.clone();
        let model = id.as_ref().and_then(|id| self.models.get(id));
        let (Some(id), Some(model)) = (id, model) else {
            let models: Vec<String> = self.models.ids().map(ToString::to_string).collect();
            let message = format!("the models here are: {}", models.join(", "));
            return Err(Refused(ErrorCode::UnknownModel, message));
        };
        if frame.claims.context.as_ref() != Some(&session.context) {
            let message = "the job's context is not its session's".to_owned();
            return Err(Refused(ErrorCode::MalformedFrame, message));
        }
        let job = Job {
            session: key.clone(),
            number,
            model: Arc::clone(model),
            keys: Arc::clone(keys),
            body: frame.body,
        };
        if !self.evaluator.submit(job) {
            return Err(Refused(ErrorCode::Busy, "too many jobs wait".to_owned()));
        }
        session.note(number, SeenJob::Computing(id));
        Ok(())
    }

    fn computed(&mut self, outcome: Outcome) {
        let Outcome { session: key, number, result, compute } = outcome;
        let Some(session) = self.sessions.get(&key, Instant::now()) else { return };
        let Some(SeenJob::Computing(model)) = session.seen(number).cloned() else { return };
        let millis = compute.as_millis();
        match result {
            Some(Ok(body)) => {
                tracing::info!(
                    identity = %key.identity, session = %key.session, job = number.0, %model,
                    context = %self.context, compute_ms = millis, "job computed"
                );
                let kept = Arc::new(body.clone());
                session
                    .note(number, SeenJob::Computed { model: model.clone(), body: kept, compute });
                self.say_result(&key, number, model, body, compute);
            }
            Some(Err(error)) => {
                session.forget(number);
                let refused = Refused(ErrorCode::MalformedCiphertext, error.to_string());
                self.refuse(&key, number, refused);
            }
            None => {
                session.forget(number);
                let message = "the evaluation failed".to_owned();
                self.refuse(&key, number, Refused(ErrorCode::Internal, message));
            }
        }
    }

    fn say_result(
        &mut self,
        key: &SessionKey,
        number: JobNumber,
        model: ModelId,
        body: Vec<u8>,
        compute: Duration,
    ) {
        let claims = Claims {
            number: number.0,
            model: Some(model),
            compute_micros: u64::try_from(compute.as_micros()).ok(),
            ..Claims::default()
        };
        let topic = Topic::Result { identity: key.identity.clone(), session: key.session.clone() };
        self.send(key, &topic, FrameKind::Result, claims, body);
    }

    fn refuse(&mut self, key: &SessionKey, number: JobNumber, Refused(code, message): Refused) {
        tracing::warn!(
            identity = %key.identity, session = %key.session, job = number.0, ?code, %message,
            "refused"
        );
        let body = match ErrorBody::new(code, message).encode() {
            Ok(body) => body,
            Err(error) => return tracing::error!(%error, "a refusal cannot be encoded"),
        };
        let claims = Claims { number: number.0, ..Claims::default() };
        let topic = Topic::Error { identity: key.identity.clone(), session: key.session.clone() };
        self.send(key, &topic, FrameKind::Error, claims, body);
    }

    fn send(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        kind: FrameKind,
        claims: Claims,
        body: Vec<u8>,
    ) {
        let claims = Claims {
            identity: Some(key.identity.clone()),
            session: Some(key.session.clone()),
            context: Some(self.context),
            expires_at: (unix_now() + ANSWER_EXPIRY).as_secs(),
            ..claims
        };
        match (Frame { kind, claims, body }).encode() {
            Ok(payload) => {
                let outgoing = Outgoing::new(topic.to_string(), payload, Qos::AtLeastOnce);
                self.publish(Outgoing { expiry: Some(ANSWER_EXPIRY), ..outgoing });
            }
            Err(error) => {
                tracing::error!(%error, session = %key.session, "an answer cannot be encoded");
            }
        }
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn full_bitmap(chunks: usize) -> Vec<u8> {
    let mut bitmap = vec![0xff; chunks.div_ceil(8)];
    if let (Some(last), rest @ 1..) = (bitmap.last_mut(), chunks % 8) {
        *last = (1 << rest) - 1;
    }
    bitmap
}

/// The session, if its time is not over.
fn living<'s>(sessions: &'s mut Sessions, key: &SessionKey) -> Result<&'s mut Session, Refused> {
    let has_expired = sessions.has_expired(key);
    sessions.get(key, Instant::now()).ok_or_else(|| {
        if has_expired {
            let message = "the session's time is over; open another".to_owned();
            Refused(ErrorCode::ExpiredSession, message)
        } else {
            let message = "the session is unknown here; open it again".to_owned();
            Refused(ErrorCode::UnknownSession, message)
        }
    })
}
