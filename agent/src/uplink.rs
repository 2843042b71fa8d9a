//! The uplink: the agent's one connection toward the compute server, shared by all sessions.
//!
//! Invariants:
//! - one task owns the link's incoming side and the table of sessions;
//! - registrations and reports leave signed by the robot's identity key, what follows a registration
//!   by the session's.

mod catalogue;
mod router;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::chunk::ChunkRef;
use moai_transport::frame::{
    Claims, Frame, FrameError, FrameKind, FrameSigner, Signatory, Stale, encode_chunk,
};
use moai_transport::ids::{ContextId, Digest, Identity, JobNumber, ModelId, SessionId, WorkerId};
use moai_transport::keys::{OperatorKeys, ServerKeys, SessionSigningKey};
use moai_transport::link::{Link, LinkEvent, Outgoing, PublishError, Qos};
use moai_transport::message::{Challenge, Command, ErrorBody, Have, MessageError, Report};
use moai_transport::topic::Topic;
use tokio::sync::{mpsc, watch};

pub use self::catalogue::Catalogue;
pub(crate) use self::router::refused;
use self::router::{Route, Router};
use crate::audit::Audit;
use crate::clock::Clock;
use crate::secrets::scrubbed;
use crate::watchdog::Pulse;

const SESSION_QUEUE_LEN: usize = 64;
const COMMAND_QUEUE_LEN: usize = 4;

/// Whose word counts on the uplink.
#[derive(Debug, Clone)]
pub struct Believed {
    /// The servers.
    pub servers: ServerKeys,
    /// Who gives commands; nobody does if there are none.
    pub operators: Option<OperatorKeys>,
}

/// A command that the fleet's operator has given this robot, at a time that it still counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// What is to be done.
    pub command: Command,
    /// When it was issued, in milliseconds since 1970.
    pub number: u64,
    /// Until when it counts, in seconds since 1970.
    pub expires_at: u64,
}

/// What the uplink is made of once it runs.
pub struct Started {
    /// The handle.
    pub uplink: Uplink,
    /// Commands as they come.
    pub commands: mpsc::Receiver<Directive>,
    /// Ends when the link ends.
    pub router: tokio::task::JoinHandle<()>,
}

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
    /// Its body cannot be written.
    #[error("a frame cannot be written: {0}")]
    Body(#[from] MessageError),
    /// The link did not take it.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl SendError {
    /// Whether the same frame may leave at another time.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Publish(error) if error.is_transient())
    }
}

impl Uplink {
    /// Starts routing what the link receives; ends when the link ends.
    #[must_use]
    pub fn start(
        identity: Identity,
        signer: Arc<dyn FrameSigner>,
        Believed { servers, operators }: Believed,
        clock: Arc<dyn Clock>,
        audit: Audit,
        (link, events): (Link, mpsc::Receiver<LinkEvent>),
        pulse: Pulse,
    ) -> Started {
        let (routes, route_requests) = mpsc::channel(16);
        let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE_LEN);
        let (catalogue_sender, catalogue) = watch::channel(None);
        let (state_sender, state) = watch::channel(LinkState::connecting());
        let owner = Router {
            identity: identity.clone(),
            servers,
            operators,
            clock,
            audit,
            sessions: HashMap::new(),
            issued: 0,
            catalogue: catalogue_sender,
            state: state_sender,
            commands: command_sender,
        };
        let uplink = Self { identity, signer, link, routes, catalogue, state };
        Started { uplink, commands, router: tokio::spawn(owner.run(events, route_requests, pulse)) }
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

    /// Publishes what became of a command.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub async fn report(
        &self,
        report: &Report,
        number: u64,
        expires_at: u64,
        expiry: Duration,
    ) -> Result<(), SendError> {
        let topic = Topic::Report { identity: self.identity.clone() };
        let identity = Some(self.identity.clone());
        let claims = Claims { identity, number, expires_at, ..Claims::default() };
        let body = report.encode()?;
        let frame = Frame { kind: FrameKind::Report, claims, body };
        let payload = frame.encode_as_robot(&*self.signer)?;
        let outgoing = Outgoing { retain: true, ..outgoing(&topic, payload, expiry) };
        Ok(self.link.publish(outgoing).await?)
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

/// A context as the uplink names it.
#[must_use]
pub fn context_id(card: &ModelCard) -> ContextId {
    ContextId(Digest(*card.context().as_bytes()))
}
