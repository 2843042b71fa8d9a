//! The uplink: the agent's one connection toward the compute server, shared by all sessions.
//!
//! Invariants:
//! - one task owns the link's incoming side and the table of sessions;
//! - registrations leave signed by the robot's identity key;
//! - a frame reaches a session only if its topic and its claims name that session and this robot;
//! - routing never waits: a session too slow to take an event loses it, and the cycle of
//!   open, have, job and result heals that as it heals any other loss.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::frame::{Frame, FrameKind, FrameSigner};
use moai_transport::ids::{ContextId, Digest, Identity, JobNumber, ModelId, SessionId, WorkerId};
use moai_transport::link::{Link, LinkEvent, Message, Outgoing, PublishError, Qos};
use moai_transport::message::{Challenge, ErrorBody, Have, WorkerState};
use moai_transport::topic::Topic;
use tokio::sync::{mpsc, watch};

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
    /// An encrypted answer.
    Result {
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
    Frame(#[from] moai_transport::frame::FrameError),
    /// The link did not take it.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Uplink {
    /// Starts routing what `link` receives; ends when the link ends.
    #[must_use]
    pub fn start(
        identity: Identity,
        signer: Arc<dyn FrameSigner>,
        link: Link,
        events: mpsc::Receiver<LinkEvent>,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (routes, route_requests) = mpsc::channel(16);
        let (catalogue_sender, catalogue) = watch::channel(None);
        let (state_sender, state) = watch::channel(LinkState::connecting());
        let owner = Router {
            identity: identity.clone(),
            sessions: HashMap::new(),
            catalogue: catalogue_sender,
            state: state_sender,
        };
        let task = tokio::spawn(owner.run(events, route_requests));
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

    /// Publishes a frame, signed if its kind is; returns when the broker has taken it.
    ///
    /// # Errors
    /// The frame cannot be encoded, is too large, or the link went down.
    pub async fn send(
        &self,
        topic: &Topic,
        frame: &Frame,
        expiry: Duration,
    ) -> Result<Sent, SendError> {
        let payload = if frame.kind.is_signed() {
            frame.encode_signed(&*self.signer)?
        } else {
            frame.encode()?
        };
        let frame_len = payload.len();
        let outgoing = Outgoing {
            expiry: Some(expiry),
            ..Outgoing::new(topic.to_string(), payload, Qos::AtLeastOnce)
        };
        self.link.publish(outgoing).await?;
        Ok(Sent { frame_len })
    }
}

struct Router {
    identity: Identity,
    sessions: HashMap<SessionId, mpsc::Sender<SessionEvent>>,
    catalogue: watch::Sender<Option<Arc<Catalogue>>>,
    state: watch::Sender<LinkState>,
}

impl Router {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut routes: mpsc::Receiver<Route>,
    ) {
        loop {
            tokio::select! {
                biased;
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
        let frame = match Frame::decode(&message.payload)
            .and_then(|frame| frame.check_topic(&topic).map(|()| frame))
        {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(%error, topic = %message.topic, "frame dropped");
                return;
            }
        };
        if frame.kind == FrameKind::Models {
            self.take_catalogue(&frame.body);
            return;
        }
        let Some(session) = frame.claims.session.clone() else { return };
        let foreign = frame.claims.identity.as_ref() != Some(&self.identity);
        let Some(sender) = self.sessions.get(&session).filter(|_| !foreign) else {
            tracing::debug!(%session, kind = ?frame.kind, "frame of no session of ours dropped");
            return;
        };
        match session_event(frame, message.payload.len()) {
            Ok(event) => {
                if sender.try_send(event).is_err() {
                    tracing::debug!(%session, "session is busy; an event is dropped and will recur");
                }
            }
            Err(error) => tracing::warn!(%session, %error, "frame dropped"),
        }
    }

    fn take_catalogue(&self, body: &[u8]) {
        match Catalogue::parse(body) {
            Ok(catalogue) => {
                let models: Vec<_> = catalogue.ids().map(ToString::to_string).collect();
                tracing::info!(?models, "catalogue received");
                self.catalogue.send_replace(Some(Arc::new(catalogue)));
            }
            Err(error) => tracing::warn!(%error, "catalogue refused; the earlier one stays"),
        }
    }
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
