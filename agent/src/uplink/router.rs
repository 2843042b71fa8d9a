//! What arrives on the uplink, and who gets it.
//!
//! Invariants:
//! - a frame is believed only if a server whose key is pinned has signed it, a command only if an
//!   operator has, and it is fresh; before that nothing but its topic is looked at;
//! - a frame reaches a session only if its topic and its claims name that session and this robot;
//! - a catalogue is replaced by a newer one only;
//! - every refusal goes through [`refused`], and so into the audit log;
//! - routing never waits: a session too slow to take an event loses it, and the cycle of
//!   open, have, job and result heals that as it heals any other loss.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moai_transport::frame::{
    Claims, Frame, FrameError, FrameKind, Received, Signatory, SignatureError, Stale,
};
use moai_transport::ids::{Identity, JobNumber, SessionId};
use moai_transport::keys::{OperatorKeys, ServerKeys};
use moai_transport::link::{LinkEvent, Message};
use moai_transport::message::{Challenge, Command, ErrorBody, Have, WorkerState};
use moai_transport::topic::Topic;
use tokio::sync::{mpsc, watch};

use super::{Catalogue, Directive, LinkState, SessionEvent};
use crate::audit::{Audit, AuditEvent};
use crate::clock::Clock;
use crate::watchdog::Pulse;

/// A change of the table.
pub(super) enum Route {
    Add(SessionId, mpsc::Sender<SessionEvent>),
    Remove(SessionId),
}

/// Owns what arrives on the uplink, and the table of who gets it.
pub(super) struct Router {
    pub(super) identity: Identity,
    pub(super) servers: ServerKeys,
    pub(super) operators: Option<OperatorKeys>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) audit: Audit,
    /// When the newest catalogue was issued, in milliseconds since 1970.
    pub(super) issued: u64,
    pub(super) sessions: HashMap<SessionId, mpsc::Sender<SessionEvent>>,
    pub(super) catalogue: watch::Sender<Option<Arc<Catalogue>>>,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) commands: mpsc::Sender<Directive>,
}

impl Router {
    pub(super) async fn run(
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
            None if frame.kind == FrameKind::Command => self.pass_on(&frame),
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

    /// The frame in these bytes, if a server or the operator meant it for this topic, now.
    fn believed(&self, topic: &Topic, bytes: &[u8]) -> Result<Frame, Refusal> {
        let Received::Signed(signed) = Received::decode(bytes)? else {
            return Err(FrameError::Topic("kind").into());
        };
        let now = self.clock.unix().as_secs();
        let frame = if signed.kind().signatory() == Some(Signatory::Operator) {
            let operators = self.operators.as_ref().ok_or(Refusal::NoOperator)?;
            signed.verify_operator(operators, now)?
        } else {
            signed.verify_server(&self.servers, now)?
        };
        frame.check_topic(topic)?;
        Ok(frame)
    }

    fn pass_on(&self, frame: &Frame) {
        match Command::decode(&frame.body) {
            Ok(command) => {
                let Claims { number, expires_at, .. } = frame.claims;
                if self.commands.try_send(Directive { command, number, expires_at }).is_err() {
                    tracing::warn!("a command is dropped: others are being obeyed");
                }
            }
            Err(error) => refused(&self.audit, ("command", "body"), &"a command", &error),
        }
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
    #[error(
        "this robot takes no commands over the uplink: name the public key of who may give them \
         in `uplink.operator_key`"
    )]
    NoOperator,
}

impl Refusal {
    /// For the audit log, which takes no text that came over a network.
    fn word(&self) -> &'static str {
        match self {
            Self::Frame(FrameError::Topic(_)) => "topic",
            Self::Frame(_) => "malformed",
            Self::Signature(SignatureError::Stale(Stale::Expired { .. })) => "expired",
            Self::Signature(SignatureError::Stale(Stale::FarAhead { .. })) => "far_ahead",
            Self::Signature(_) | Self::NoOperator => "signature",
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
        Some(FrameKind::Command) => "command",
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
