//! A compute server that is fast, does as it is told, and can be told to do wrong.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moai_transport::chunk::ChunkReceiver;
use moai_transport::frame::{
    ChunkFrame, Claims, Frame, FrameKind, FrameSigner, Received, SignedFrame,
};
use moai_transport::ids::{Identity, SessionId, WorkerId};
use moai_transport::keys::{ServerKeys, ServerSigningKey, SessionPublicKey};
use moai_transport::link::{Message, Outgoing};
use moai_transport::message::{ErrorBody, ErrorCode, Have, Manifest};
use moai_transport::topic::Topic;
use moai_transport::trust::TrustedRobots;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;

use super::engine::{CARD, Faults, TAG_LEN};

pub(super) const ROBOT: &str = "acme.robot-1";
const MAX_KEY_LEN: u64 = 1024 * 1024;
const ANSWER_LIFETIME: Duration = Duration::from_mins(1);

/// The authority of the robot, and the robot's signer.
static ROBOTS: LazyLock<(TrustedRobots, Signer)> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "robots");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, ROBOT);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let chain = vec![params.signed_by(&key, &authority).unwrap().der().clone()];
    let key = SigningKey::from_pkcs8_pem(&key.serialize_pem()).unwrap();
    let robots = TrustedRobots::from_pem(authority.pem().as_bytes()).unwrap();
    (robots, Signer { key, chain })
});

/// The robot's identity key, in software.
#[derive(Clone)]
pub(super) struct Signer {
    key: SigningKey,
    chain: Vec<CertificateDer<'static>>,
}

impl Signer {
    pub(super) fn of_the_robot() -> Self {
        ROBOTS.1.clone()
    }
}

impl FrameSigner for Signer {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    fn sign(&self, sha256: [u8; 32]) -> Result<[u8; 64], Box<dyn Error + Send + Sync>> {
        let signature: Signature = self.key.sign_prehash(&sha256)?;
        Ok(signature.to_bytes().into())
    }
}

struct Keys {
    receiver: ChunkReceiver,
    /// Of complete keys.
    tag: Option<[u8; TAG_LEN]>,
    public: SessionPublicKey,
}

#[derive(Clone)]
struct Job {
    session: SessionId,
    number: u64,
    body: Vec<u8>,
}

#[derive(Default)]
struct State {
    worker: u32,
    sessions: HashMap<SessionId, Keys>,
    holds: bool,
    held: Vec<Job>,
    answered: Vec<Job>,
}

/// The server; it outlives runs of the agent.
pub(super) struct Server {
    key: ServerSigningKey,
    faults: Faults,
    state: Mutex<State>,
}

impl Server {
    pub(super) fn new(faults: Faults) -> Self {
        let key = ServerSigningKey::from_seed(&[9; 32]);
        Self { key, faults, state: Mutex::default() }
    }

    pub(super) fn keys(&self) -> ServerKeys {
        self.key.public().into()
    }

    /// The models it offers.
    pub(super) fn catalogue(&self, now: Duration) -> Message {
        let tenant = identity().tenant;
        let claims = Claims {
            tenant: Some(tenant.clone()),
            number: u64::try_from(now.as_millis()).unwrap(),
            expires_at: (now + ANSWER_LIFETIME).as_secs(),
            ..Claims::default()
        };
        let mut body = Vec::new();
        ciborium::into_writer(&[&*CARD], &mut body).unwrap();
        self.message(&Topic::Models { tenant }, &Frame { kind: FrameKind::Models, claims, body })
    }

    /// From now on jobs wait, or are answered at once.
    pub(super) fn hold(&self, holds: bool) {
        self.state().holds = holds;
    }

    /// It has lost its memory, and is another worker.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.worker += 1;
        state.sessions.clear();
        state.held.clear();
    }

    /// Answers to what waits.
    pub(super) fn release(&self, now: Duration) -> Vec<Message> {
        let held = std::mem::take(&mut self.state().held);
        held.iter().filter_map(|job| self.answer(job, now)).collect()
    }

    /// What was answered last, answered again.
    pub(super) fn repeat(&self, now: Duration) -> Vec<Message> {
        let answered = self.state().answered.clone();
        answered.iter().rev().take(3).map(|job| self.result(job, &job.body, now)).collect()
    }

    /// A result of other keys than the session's for the oldest job that waits.
    pub(super) fn spoil(&self, now: Duration) -> Option<Message> {
        let mut state = self.state();
        if state.held.is_empty() {
            return None;
        }
        let job = state.held.remove(0);
        drop(state);
        Some(self.result(&job, &[7; TAG_LEN + 3], now))
    }

    /// A refusal of the oldest job that waits.
    pub(super) fn refuse(&self, now: Duration) -> Option<Message> {
        let mut state = self.state();
        if state.held.is_empty() {
            return None;
        }
        let Job { session, number, .. } = state.held.remove(0);
        drop(state);
        Some(self.error(session, number, ErrorCode::MalformedCiphertext, now))
    }

    /// Takes what the robot published; returns what it hears.
    pub(super) fn take(&self, outgoing: &Outgoing, now: Duration) -> Vec<Message> {
        let Ok(topic) = outgoing.topic.parse::<Topic>() else { return Vec::new() };
        let received = Received::decode(&outgoing.payload).unwrap();
        match (topic, received) {
            (Topic::Open { session, .. }, Received::Signed(frame)) => {
                self.open(session, frame, now)
            }
            (Topic::Chunk { session, worker, .. }, Received::Chunk(chunk)) if self.is(&worker) => {
                self.chunk(session, &chunk, now)
            }
            (Topic::Job { session, worker, .. }, Received::Signed(frame)) if self.is(&worker) => {
                self.job(session, frame, now)
            }
            (Topic::Delete { session, .. }, _) => {
                self.state().sessions.remove(&session);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn open(&self, session: SessionId, frame: SignedFrame, now: Duration) -> Vec<Message> {
        let frame = match frame.verify_robot(&ROBOTS.0, now.as_secs()) {
            Ok(verified) => verified.into_frame(),
            Err(error) => {
                self.faults.add(format!("an open that is not to be believed: {error}"));
                return Vec::new();
            }
        };
        let manifest = Manifest::decode(&frame.body, MAX_KEY_LEN).unwrap();
        let mut state = self.state();
        let keys = state.sessions.entry(session.clone()).or_insert_with(|| Keys {
            receiver: ChunkReceiver::new(manifest.clone(), MAX_KEY_LEN).unwrap(),
            tag: None,
            public: manifest.session_key,
        });
        if !keys.receiver.reopen(&manifest) {
            self.faults.add("a session came back with other keys");
        }
        self.have(&state, session, now).into_iter().collect()
    }

    fn chunk(&self, session: SessionId, chunk: &ChunkFrame, now: Duration) -> Vec<Message> {
        let mut state = self.state();
        let Some(keys) = state.sessions.get_mut(&session) else { return Vec::new() };
        keys.receiver.accept_frame(chunk).unwrap();
        if chunk.index() == 0 {
            keys.tag = chunk.body().first_chunk().copied();
        }
        if !keys.receiver.is_complete() {
            return Vec::new();
        }
        self.have(&state, session, now).into_iter().collect()
    }

    fn job(&self, session: SessionId, frame: SignedFrame, now: Duration) -> Vec<Message> {
        let state = self.state();
        let Some(keys) = state.sessions.get(&session).filter(|it| it.receiver.is_complete()) else {
            drop(state);
            return vec![self.error(session, 0, ErrorCode::UnknownSession, now)];
        };
        let frame = match frame.verify_session(&keys.public, now.as_secs()) {
            Ok(frame) => frame,
            Err(error) => {
                self.faults.add(format!("a job that is not to be believed: {error}"));
                return Vec::new();
            }
        };
        if keys.tag.as_ref() != frame.body.first_chunk() {
            self.faults.add("a job under other keys than its session's");
        }
        drop(state);
        let job = Job { session, number: frame.claims.number, body: frame.body };
        if self.state().holds {
            self.state().held.push(job);
            return Vec::new();
        }
        self.answer(&job, now).into_iter().collect()
    }

    /// Who answers.
    fn worker(state: &State) -> WorkerId {
        format!("worker-{}", state.worker).parse().unwrap()
    }

    fn is(&self, worker: &WorkerId) -> bool {
        Self::worker(&self.state()) == *worker
    }

    fn have(&self, state: &State, session: SessionId, now: Duration) -> Option<Message> {
        let keys = state.sessions.get(&session)?;
        let have = Have {
            worker: Self::worker(state),
            nonce: keys.receiver.manifest().nonce,
            bitmap: keys.receiver.bitmap(),
            registered: keys.receiver.is_complete(),
        };
        let topic = Topic::Have { identity: identity(), session: session.clone() };
        let claims = claims(session, 0, now);
        let body = have.encode().unwrap();
        Some(self.message(&topic, &Frame { kind: FrameKind::Have, claims, body }))
    }

    /// None if the session was deleted meanwhile.
    fn answer(&self, job: &Job, now: Duration) -> Option<Message> {
        let mut state = self.state();
        state.sessions.get(&job.session)?;
        state.answered.push(job.clone());
        drop(state);
        Some(self.result(job, &job.body, now))
    }

    fn result(&self, job: &Job, body: &[u8], now: Duration) -> Message {
        let topic = Topic::Result { identity: identity(), session: job.session.clone() };
        let claims = Claims {
            model: Some(CARD.id().parse().unwrap()),
            compute_micros: Some(1),
            ..claims(job.session.clone(), job.number, now)
        };
        self.message(&topic, &Frame { kind: FrameKind::Result, claims, body: body.to_vec() })
    }

    fn error(&self, session: SessionId, number: u64, code: ErrorCode, now: Duration) -> Message {
        let topic = Topic::Error { identity: identity(), session: session.clone() };
        let body = ErrorBody::new(code, "as the test wants").encode().unwrap();
        let frame = Frame { kind: FrameKind::Error, claims: claims(session, number, now), body };
        self.message(&topic, &frame)
    }

    fn message(&self, topic: &Topic, frame: &Frame) -> Message {
        Message {
            topic: topic.to_string(),
            payload: frame.encode_as_server(&self.key).unwrap().into(),
            retained: false,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            receipt: None,
        }
    }

    /// Sessions it has keys of.
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.state().sessions.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn identity() -> Identity {
    ROBOT.parse().unwrap()
}

fn claims(session: SessionId, number: u64, now: Duration) -> Claims {
    Claims {
        identity: Some(identity()),
        session: Some(session),
        number,
        expires_at: (now + ANSWER_LIFETIME).as_secs(),
        ..Claims::default()
    }
}
