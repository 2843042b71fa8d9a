//! The service: one task that owns the sessions and turns frames into answers.
//!
//! Invariants:
//! - a frame is used only if the key that has to sign it did, and topic and claims agree on who is
//!   speaking; before that nothing looks at what it says;
//! - every answer is signed, and every refusal has a code a robot can act on;
//! - every refusal goes through [`Service::refuse`] and leaves one line in the log;
//! - logs name sessions, contexts, models and times; never a byte of key or ciphertext.

mod opening;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moai_fhe::{Context, EvaluationKeys};
use moai_transport::frame::{
    Claims, Frame, FrameKind, MAX_FRAME_LIFETIME, Received, Signatory, SignedFrame,
};
use moai_transport::ids::{ContextId, Digest, JobNumber, ModelId, WorkerId};
use moai_transport::keys::ServerSigningKey;
use moai_transport::link::{Link, LinkEvent, Message, Outgoing, Qos};
use moai_transport::message::{ErrorBody, ErrorCode, Have, MAX_JOBS, WorkerState};
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
use crate::opens::Opens;
use crate::refusal::Refused;
use crate::sessions::{KeptJob, Keys, Progress, Seen, Session, SessionKey, Sessions};

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// An answer nobody fetched for so long is asked for again by the robot anyway.
const ANSWER_EXPIRY: Duration = Duration::from_mins(1);
const CATALOGUE_EXPIRY: Duration = MAX_FRAME_LIFETIME;
/// A catalogue is issued again long before it expires.
const CATALOGUE_INTERVAL: Duration = Duration::from_hours(6);

/// Keys that were checked and prepared.
struct Prepared {
    session: SessionKey,
    key_digest: Digest,
    keys: Option<Result<EvaluationKeys, String>>,
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

/// The server's one owner of sessions.
pub struct Service {
    worker: WorkerId,
    context: ContextId,
    config: Config,
    models: Models,
    signing_key: ServerSigningKey,
    robots: TrustedRobots,
    opens: Opens,
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
        trust: Trust,
        evaluator: Evaluator,
        link: Link,
    ) -> Self {
        let Trust { signing_key, robots, attestation } = trust;
        let sessions = Sessions::new(config.max_sessions);
        let context = ContextId(Digest(Context::tfhe().digest()));
        Self {
            worker,
            context,
            config,
            models,
            signing_key,
            robots,
            opens: Opens::default(),
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
        let mut reissue = tokio::time::interval(CATALOGUE_INTERVAL);
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
                _ = reissue.tick() => self.issue_catalogue(),
                _ = sweep.tick() => {
                    let now = Instant::now();
                    self.opens.expire(unix_now().as_secs());
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
        self.issue_catalogue();
    }

    fn issue_catalogue(&mut self) {
        let (now, body) = (unix_now(), self.models.catalogue());
        for tenant in self.config.tenants.clone() {
            let claims = Claims {
                tenant: Some(tenant.clone()),
                number: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
                context: Some(self.context),
                expires_at: (now + CATALOGUE_EXPIRY).as_secs(),
                ..Claims::default()
            };
            let frame = Frame { kind: FrameKind::Models, claims, body: body.clone() };
            match frame.encode_as_server(&self.signing_key) {
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
        let handled = match Received::decode(&message.payload) {
            Err(error) => Err((JobNumber(0), error.into())),
            Ok(Received::Chunk(frame)) => {
                self.unsigned(&key, &topic, &frame).map_err(|refused| (JobNumber(0), refused))
            }
            Ok(Received::Signed(signed)) => match signed.kind().signatory() {
                Some(Signatory::Robot) => signed
                    .verify_robot(&self.robots, unix_now().as_secs())
                    .map_err(Refused::from)
                    .and_then(|verified| self.open(&key, &topic, &verified))
                    .map_err(|refused| (JobNumber(0), refused)),
                _ => self.signed(&key, &topic, signed),
            },
        };
        if let Err((number, refused)) = handled {
            self.refuse(&key, number, refused);
        }
    }

    fn unsigned(&mut self, key: &SessionKey, topic: &Topic, frame: &Frame) -> Result<(), Refused> {
        check_topic(frame, topic)?;
        self.chunk(key, frame)
    }

    /// A frame that the session's key has to have signed.
    fn signed(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        signed: SignedFrame,
    ) -> Result<(), (JobNumber, Refused)> {
        let refused = |refused| (JobNumber(0), refused);
        let waiting = || self.attestation.as_ref().and_then(|it| it.session_key(key));
        let session_key = self.sessions.session_key(key).or_else(waiting);
        let session_key = session_key.ok_or_else(unknown).map_err(refused)?;
        let frame = signed
            .verify_session(&session_key, unix_now().as_secs())
            .map_err(|error| refused(error.into()))?;
        let number = JobNumber(if frame.kind == FrameKind::Job { frame.claims.number } else { 0 });
        let handled = check_topic(&frame, topic).and_then(|()| match frame.kind {
            FrameKind::Job => self.job(key, frame),
            FrameKind::Attest => self.attest(key, frame.body),
            FrameKind::Delete => {
                self.delete(key);
                Ok(())
            }
            other => Err(Refused(ErrorCode::MalformedFrame, format!("robots send no {other:?}"))),
        });
        handled.map_err(|refused| (number, refused))
    }

    fn delete(&mut self, key: &SessionKey) {
        self.opens.delete(key, unix_now().as_secs());
        if let Some(attestation) = &mut self.attestation {
            attestation.forget(key);
        }
        if self.sessions.remove(key) {
            tracing::info!(identity = %key.identity, session = %key.session, "session deleted by its robot, keys deleted");
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
        let input = Digest::of(&frame.body);
        match session.seen(number) {
            Seen::New => {}
            Seen::Kept(job) if job.input != input => {
                let message = format!("job {number} has another input than before");
                return Err(Refused(ErrorCode::NumberReused, message));
            }
            Seen::Kept(job) => {
                if let Progress::Computed { model, body, compute } = job.progress.clone() {
                    self.say_result(key, number, model, body.to_vec(), compute);
                }
                return Ok(());
            }
            Seen::Used => {
                let message = format!("job {number} was answered, and its answer is not kept");
                return Err(Refused(ErrorCode::Replayed, message));
            }
            Seen::Never => {
                let message = format!("a session has jobs 1 to {MAX_JOBS}; open another");
                return Err(Refused(ErrorCode::TooLarge, message));
            }
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
        session.note(number, KeptJob { input, progress: Progress::Computing(id) });
        Ok(())
    }

    fn computed(&mut self, outcome: Outcome) {
        let Outcome { session: key, number, result, compute } = outcome;
        let Some(session) = self.sessions.get(&key, Instant::now()) else { return };
        let Some(KeptJob { input, progress: Progress::Computing(model) }) =
            session.kept(number).cloned()
        else {
            return;
        };
        let millis = compute.as_millis();
        match result {
            Some(Ok(body)) => {
                tracing::info!(
                    identity = %key.identity, session = %key.session, job = number.0, %model,
                    context = %self.context, compute_ms = millis, "job computed"
                );
                let kept = Arc::new(body.clone());
                let progress = Progress::Computed { model: model.clone(), body: kept, compute };
                session.note(number, KeptJob { input, progress });
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
        match (Frame { kind, claims, body }).encode_as_server(&self.signing_key) {
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
            unknown()
        }
    })
}

fn unknown() -> Refused {
    let message = "the session is unknown here; open it again".to_owned();
    Refused(ErrorCode::UnknownSession, message)
}

fn check_topic(frame: &Frame, topic: &Topic) -> Result<(), Refused> {
    frame
        .check_topic(topic)
        .map_err(|error| Refused(ErrorCode::IdentityMismatch, error.to_string()))
}
