//! What the service says: to robots about their sessions, to everybody that it is there.

use std::sync::Arc;
use std::time::Duration;

use moai_transport::frame::{Claims, Frame, FrameKind, MAX_FRAME_LIFETIME};
use moai_transport::ids::{JobNumber, ModelId};
use moai_transport::link::{Outgoing, Qos};
use moai_transport::message::{ErrorBody, Have, WorkerState};
use moai_transport::topic::Topic;
use tokio::time::Instant;

use super::Service;
use crate::audit::Event;
use crate::refusal::Refused;
use crate::sessions::Keys;
use crate::store::{Held, SessionKey};

/// An answer nobody fetched for so long is asked for again by the robot anyway.
const ANSWER_EXPIRY: Duration = Duration::from_mins(1);
const CATALOGUE_EXPIRY: Duration = MAX_FRAME_LIFETIME;

impl Service {
    /// Says that this worker is up, and what it computes.
    pub(super) fn announce(&mut self) {
        tracing::info!(worker = %self.worker, "broker link is up");
        self.health.iter_mut().for_each(|health| health.set_connected(true));
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

    /// Says to each tenant what it may ask for.
    pub(super) fn issue_catalogue(&mut self) {
        let (now, models) = ((self.clock)(), self.engine.models());
        for (tenant, rules) in self.settings.tenants.clone() {
            let visible: Vec<ModelId> =
                models.iter().filter(|model| rules.sees(model)).cloned().collect();
            let claims = Claims {
                tenant: Some(tenant.clone()),
                number: now.0,
                context: Some(self.context),
                expires_at: (now + CATALOGUE_EXPIRY).0 / 1000,
                ..Claims::default()
            };
            let body = self.engine.catalogue(&visible);
            let frame = Frame { kind: FrameKind::Models, claims, body };
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

    /// Says what is held of a session's keys.
    pub(super) fn say_have(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.get(key, Instant::now()) else { return };
        let count = session.manifest.chunk_digests.len();
        let (held, registered) = match &session.keys {
            Keys::Arriving(held) => (held.clone(), false),
            // Nothing is missing, yet it is not ready: the robot waits.
            Keys::Preparing => return,
            Keys::Ready => (Held::these(count, 0..count), true),
        };
        let (worker, nonce) = (self.worker.clone(), session.manifest.nonce);
        let have = Have { worker, nonce, bitmap: held.bitmap().to_vec(), registered };
        let topic = Topic::Have { identity: key.identity.clone(), session: key.session.clone() };
        match have.encode() {
            Ok(body) => self.send(key, &topic, FrameKind::Have, Claims::default(), body),
            Err(error) => tracing::error!(%error, "a have cannot be encoded"),
        }
    }

    pub(super) fn say_result(
        &mut self,
        key: &SessionKey,
        number: JobNumber,
        model: ModelId,
        body: &Arc<Vec<u8>>,
        compute: Duration,
    ) {
        let claims = Claims {
            number: number.0,
            model: Some(model),
            compute_micros: u64::try_from(compute.as_micros()).ok(),
            ..Claims::default()
        };
        let topic = Topic::Result { identity: key.identity.clone(), session: key.session.clone() };
        self.send(key, &topic, FrameKind::Result, claims, body.to_vec());
    }

    /// Every refusal goes this way: to the robot, to the log and to the audit log.
    pub(super) fn refuse(
        &mut self,
        key: &SessionKey,
        number: JobNumber,
        Refused(code, message): Refused,
    ) {
        tracing::warn!(
            identity = %key.identity, session = %key.session, job = number.0, ?code, %message,
            "refused"
        );
        let event = Event::Refused { code, message: message.clone(), job: number.0 };
        self.audit.record(key, (self.clock)(), &event);
        let body = match ErrorBody::new(code, message).encode() {
            Ok(body) => body,
            Err(error) => return tracing::error!(%error, "a refusal cannot be encoded"),
        };
        let claims = Claims { number: number.0, ..Claims::default() };
        let topic = Topic::Error { identity: key.identity.clone(), session: key.session.clone() };
        self.send(key, &topic, FrameKind::Error, claims, body);
    }

    pub(super) fn send(
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
            expires_at: ((self.clock)() + ANSWER_EXPIRY).0 / 1000,
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

    fn publish(&mut self, outgoing: Outgoing) {
        let link = self.link.clone();
        self.sending.spawn(async move {
            if let Err(error) = link.publish(outgoing).await {
                tracing::debug!(%error, "not published; robots ask again");
            }
        });
    }
}
