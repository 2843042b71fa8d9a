//! The uplink: the agent's one connection toward the compute server, shared by all sessions.
//!
//! Invariants:
//! - one task owns the link's incoming side and the table of sessions;
//! - registrations leave signed by the robot's identity key, what follows them by the session's;
//! - a frame is believed only if a server whose key is pinned has signed it and it is fresh; before
//!   that nothing but its topic is looked at;
//! - a frame reaches a session only if its topic and its claims name that session and this robot;
//! - a catalogue is replaced by a newer one only;
//! - every refusal goes through [`refused`], and so into the audit log;
//! - routing never waits: a session too slow to take an event loses it, and the cycle of
//!   open, have, job and result heals that as it heals any other loss.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::chunk::ChunkRef;
use moai_transport::frame::{
    Claims, Frame, FrameError, FrameKind, FrameSigner, Received, Signatory, SignatureError, Stale,
    encode_chunk,
};
use moai_transport::ids::{ContextId, Digest, Identity, JobNumber, ModelId, SessionId, WorkerId};
use moai_transport::keys::{ServerKeys, SessionSigningKey};
use moai_transport::link::{Link, LinkEvent, Message, Outgoing, PublishError, Qos};
use moai_transport::message::{Challenge, ErrorBody, Have, WorkerState};
use moai_transport::topic::Topic;
use tokio::sync::{mpsc, watch};

use crate::audit::{Audit, AuditEvent};
use crate::clock::Clock;
use crate::secrets::scrubbed;
use crate::watchdog::Pulse;

const SESSION_QUEUE_LEN: usize = 64;
const MAX_MODELS: usize = 256;

/// What the server tells one session.
#[derive(Debug)]
pub enum SessionEvent {
    /// The link is up (again): whatever was under way has to be asked for anew.
    Up,
    /// What the worker holds of the session's keys.
    Have(Have),
    /// The server wants evidence of the robot's state first.
    Challenge(Challenge),
    /// A server's answer came at a time when it means nothing: the clocks differ, or somebody held it
    /// back.
    Stale(Stale),
    /// An encrypted answer.
    Result {
        /// The model that was asked.
        model: Option<ModelId>,
        /// The context it was computed in, if the server says so.
        context: Option<ContextId>,
        /// The job it answers.
        number: JobNumber,
        /// The encrypted result.
        body: Vec<u8>,
        /// How long the server computed, if it says so.
        compute: Option<Duration>,
        /// Size of the whole frame.
        frame_len: usize,
    },
    /// A refusal.
    Error {
        /// The job that was refused; none if it concerns the session.
        number: Option<JobNumber>,
        /// Why.
        error: ErrorBody,
    },
    /// A worker has gone.
    WorkerDown(WorkerId),
}

/// The models the server offers.
#[derive(Debug, Default)]
pub struct Catalogue(BTreeMap<ModelId, Arc<ModelCard>>);

impl Catalogue {
    /// The card of a model.
    #[must_use]
    pub fn get(&self, model: &ModelId) -> Option<&Arc<ModelCard>> {
        self.0.get(model)
    }

    /// The ids of all models, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &ModelId> {
        self.0.keys()
    }

    fn parse(body: &[u8]) -> Result<Self, String> {
        let cards: Vec<ModelCard> =
            ciborium::from_reader(body).map_err(|error| error.to_string())?;
        if cards.len() > MAX_MODELS {
            return Err(format!("it has more than {MAX_MODELS} models"));
        }
        let mut models = BTreeMap::new();
        for card in cards {
            let id: ModelId = card.id().parse().map_err(|error| format!("{error}"))?;
            models.insert(id, Arc::new(card));
        }
        Ok(Self(models))
    }
}

/// Whether a link is up, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Connected and subscribed.
    Up,
    /// Not connected.
    Down {
        /// Why, and what to do.
        reason: String,
        /// Whether only a person can change it.
        fatal: bool,
    },
}

impl LinkState {
    /// The state before the first connection.
    #[must_use]
    pub fn connecting() -> Self {
        Self::Down { reason: "connecting".to_owned(), fatal: false }
    }
}

enum Route {
    Add(SessionId, mpsc::Sender<SessionEvent>),
    Remove(SessionId),
}

/// A handle to the uplink.
#[derive(Clone)]
pub struct Uplink {
    identity: Identity,
    signer: Arc<dyn FrameSigner>,
    link: Link,
    routes: mpsc::Sender<Route>,
    catalogue: watch::Receiver<Option<Arc<Catalogue>>>,
    state: watch::Receiver<LinkState>,
}

/// How many bytes a publication had.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// The frame's length.
    pub frame_len: usize,
}

/// Why a frame did not leave.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The frame cannot be encoded.
    #[error("a frame cannot be encoded: {0}")]
    Frame(#[from] FrameError),
    /// The link did not take it.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Uplink {
    /// Starts routing what the link receives; ends when the link ends.
    #[must_use]
    pub fn start(
        identity: Identity,
        signer: Arc<dyn FrameSigner>,
        servers: ServerKeys,
        clock: Arc<dyn Clock>,
        audit: Audit,
        (link, events): (Link, mpsc::Receiver<LinkEvent>),
        pulse: Pulse,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (routes, route_requests) = mpsc::channel(16);
        let (catalogue_sender, catalogue) = watch::channel(None);
        let (state_sender, state) = watch::channel(LinkState::connecting());
        let owner = Router {
            identity: identity.clone(),
            servers,
            clock,
            audit,
            sessions: HashMap::new(),
            issued: 0,
            catalogue: catalogue_sender,
            state: state_sender,
        };
        let task = tokio::spawn(owner.run(events, route_requests, pulse));
        (Self { identity, signer, link, routes, catalogue, state }, task)
    }

    /// The robot's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server's catalogue, once it has arrived.
    #[must_use]
    pub fn catalogue(&self) -> watch::Receiver<Option<Arc<Catalogue>>> {
        self.catalogue.clone()
    }

    /// Whether the link is up.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Starts delivering a session's events.
    pub async fn subscribe(&self, session: SessionId) -> mpsc::Receiver<SessionEvent> {
        let (sender, receiver) = mpsc::channel(SESSION_QUEUE_LEN);
        // A router that has ended drops the sender, which ends the receiver.
        let _ = self.routes.send(Route::Add(session, sender)).await;
        receiver
    }

    /// Stops delivering a session's events.
    pub async fn unsubscribe(&self, session: SessionId) {
        let _ = self.routes.send(Route::Remove(session)).await;
    }

    /// Publishes a frame, signed by whoever signs its kind, the session with `key`; returns when the
    /// broker has taken it.
    ///
    /// # Errors
    /// The frame cannot be encoded, is too large, or the link went down.
    pub async fn send(
        &self,
        topic: &Topic,
        frame: &Frame,
        key: &SessionSigningKey,
        expiry: Duration,
    ) -> Result<Sent, SendError> {
        let payload = match frame.kind.signatory() {
            Some(Signatory::Robot) => frame.encode_as_robot(&*self.signer)?,
            Some(_) => scrubbed(|| frame.encode_as_session(key))?,
            None => frame.encode()?,
        };
        let frame_len = payload.len();
        self.link.publish(outgoing(topic, payload, expiry)).await?;
        Ok(Sent { frame_len })
    }

    /// Publishes a chunk of evaluation keys, at the pace of the link and after everything else;
    /// returns when the broker has taken it.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub async fn send_chunk(
        &self,
        topic: &Topic,
        claims: &Claims,
        chunk: &ChunkRef,
        expiry: Duration,
    ) -> Result<Sent, SendError> {
        let payload = encode_chunk(claims, &chunk.bytes, chunk.digest)?;
        let frame_len = payload.len();
        self.link.publish_bulk(outgoing(topic, payload, expiry)).await?;
        Ok(Sent { frame_len })
    }
}

fn outgoing(topic: &Topic, payload: Vec<u8>, expiry: Duration) -> Outgoing {
    let outgoing = Outgoing::new(topic.to_string(), payload, Qos::AtLeastOnce);
    Outgoing { expiry: Some(expiry), ..outgoing }
}

struct Router {
    identity: Identity,
    servers: ServerKeys,
    clock: Arc<dyn Clock>,
    audit: Audit,
    /// When the newest catalogue was issued, in milliseconds since 1970.
    issued: u64,
    sessions: HashMap<SessionId, mpsc::Sender<SessionEvent>>,
    catalogue: watch::Sender<Option<Arc<Catalogue>>>,
    state: watch::Sender<LinkState>,
}

impl Router {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut routes: mpsc::Receiver<Route>,
        mut pulse: Pulse,
    ) {
        loop {
            tokio::select! {
                biased;
                () = pulse.beat() => {}
                Some(route) = routes.recv() => match route {
                    Route::Add(session, sender) => { self.sessions.insert(session, sender); }
                    Route::Remove(session) => { self.sessions.remove(&session); }
                },
                event = events.recv() => match event {
                    None => return,
                    Some(LinkEvent::Up) => {
                        tracing::info!("uplink is up");
                        self.state.send_replace(LinkState::Up);
                        self.tell_all(|| SessionEvent::Up);
                    }
                    Some(LinkEvent::Down(error)) => {
                        let (reason, fatal) = (error.to_string(), error.is_fatal());
                        tracing::warn!(%reason, fatal, "uplink is down");
                        self.state.send_replace(LinkState::Down { reason, fatal });
                    }
                    Some(LinkEvent::Message(message)) => self.route(&message),
                },
            }
        }
    }

    fn tell_all(&self, event: impl Fn() -> SessionEvent) {
        for sender in self.sessions.values() {
            let _ = sender.try_send(event());
        }
    }

    fn route(&mut self, message: &Message) {
        let Ok(topic) = message.topic.parse::<Topic>() else {
            tracing::warn!(topic = %message.topic, "message on an unknown topic dropped");
            return;
        };
        if let Topic::WorkerStatus { worker } = topic {
            match WorkerState::decode(&message.payload) {
                Ok(state) if !state.up && state.worker == worker => {
                    self.tell_all(|| SessionEvent::WorkerDown(worker.clone()));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "worker status dropped"),
            }
            return;
        }
        let foreign = topic.identity().is_some_and(|identity| *identity != self.identity);
        let sender = topic.session().map(|session| self.sessions.get(session));
        if foreign || matches!(sender, Some(None)) {
            tracing::debug!(topic = %message.topic, "frame of no session of ours dropped");
            return;
        }
        let sender = sender.flatten();
        let kind = kind_word(topic.kind());
        let frame = match self.believed(&topic, &message.payload) {
            Ok(frame) => frame,
            Err(why) => {
                if let (Refusal::Signature(SignatureError::Stale(stale)), Some(sender)) =
                    (&why, sender)
                {
                    // A session that is busy is one that works.
                    let _ = sender.try_send(SessionEvent::Stale(*stale));
                }
                return refused(&self.audit, (kind, why.word()), &message.topic, &why);
            }
        };
        match sender {
            None => self.take_catalogue(&frame),
            Some(sender) => match session_event(frame, message.payload.len()) {
                Ok(event) => {
                    if sender.try_send(event).is_err() {
                        tracing::debug!(topic = %message.topic, "session is busy; an event is dropped and will recur");
                    }
                }
                Err(why) => refused(&self.audit, (kind, "body"), &message.topic, &why),
            },
        }
    }

    /// The frame in these bytes, if a server meant it for this topic, now.
    fn believed(&self, topic: &Topic, bytes: &[u8]) -> Result<Frame, Refusal> {
        let Received::Signed(signed) = Received::decode(bytes)? else {
            return Err(FrameError::Topic("kind").into());
        };
        let frame = signed.verify_server(&self.servers, self.clock.unix().as_secs())?;
        frame.check_topic(topic)?;
        Ok(frame)
    }

    fn take_catalogue(&mut self, frame: &Frame) {
        let issued = frame.claims.number;
        if issued < self.issued {
            let why = "it is older than the one we have";
            return refused(&self.audit, ("models", "replayed"), &"the catalogue", &why);
        }
        match Catalogue::parse(&frame.body) {
            Ok(catalogue) => {
                let models: Vec<_> = catalogue.ids().map(ToString::to_string).collect();
                tracing::info!(?models, "catalogue received");
                self.issued = issued;
                self.catalogue.send_replace(Some(Arc::new(catalogue)));
            }
            Err(error) => refused(&self.audit, ("models", "body"), &"the catalogue", &error),
        }
    }
}

/// Why a frame is not obeyed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl Refusal {
    /// For the audit log, which takes no text that came over a network.
    fn word(&self) -> &'static str {
        match self {
            Self::Frame(FrameError::Topic(_)) => "topic",
            Self::Frame(_) => "malformed",
            Self::Signature(SignatureError::Stale(Stale::Expired { .. })) => "expired",
            Self::Signature(SignatureError::Stale(Stale::FarAhead { .. })) => "far_ahead",
            Self::Signature(_) => "signature",
        }
    }
}

fn kind_word(kind: Option<FrameKind>) -> &'static str {
    match kind {
        Some(FrameKind::Have) => "have",
        Some(FrameKind::Challenge) => "challenge",
        Some(FrameKind::Result) => "result",
        Some(FrameKind::Error) => "error",
        Some(FrameKind::Models) => "models",
        _ => "other",
    }
}

/// Takes note of what came from the uplink and was not obeyed: its kind and a word why for the audit
/// log, the rest for people.
pub(crate) fn refused(
    audit: &Audit,
    (kind, reason): (&'static str, &'static str),
    what: &dyn std::fmt::Display,
    why: &dyn std::fmt::Display,
) {
    tracing::warn!(%what, %why, "refused");
    audit.record(AuditEvent::frame_refused(kind, reason));
}

fn session_event(frame: Frame, frame_len: usize) -> Result<SessionEvent, String> {
    let number = JobNumber(frame.claims.number);
    match frame.kind {
        FrameKind::Have => {
            Have::decode(&frame.body).map(SessionEvent::Have).map_err(|error| error.to_string())
        }
        FrameKind::Challenge => Challenge::decode(&frame.body)
            .map(SessionEvent::Challenge)
            .map_err(|error| error.to_string()),
        FrameKind::Result => Ok(SessionEvent::Result {
            model: frame.claims.model,
            context: frame.claims.context,
            number,
            compute: frame.claims.compute_micros.map(Duration::from_micros),
            body: frame.body,
            frame_len,
        }),
        FrameKind::Error => ErrorBody::decode(&frame.body)
            .map(|error| SessionEvent::Error { number: (number.0 != 0).then_some(number), error })
            .map_err(|error| error.to_string()),
        other => Err(format!("a {other:?} frame is not for robots")),
    }
}

/// A context as the uplink names it.
#[must_use]
pub fn context_id(card: &ModelCard) -> ContextId {
    ContextId(Digest(*card.context().as_bytes()))
}
