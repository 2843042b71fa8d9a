//! How a session begins: its robot is believed, and its keys are asked for.
//!
//! Invariants:
//! - a session opens only for the robot whose certificate's key signed the open, and an open counts
//!   once;
//! - where attestation is required, it opens only for a robot that is attested in this session,
//!   under that key.

use std::time::Duration;

use moai_fhe::MAX_EVALUATION_KEY_LEN;
use moai_transport::chunk::ChunkReceiver;
use moai_transport::frame::{Claims, FrameKind, VerifiedFrame};
use moai_transport::ids::JobNumber;
use moai_transport::message::{CHALLENGE_LEN, Challenge, ErrorCode, Manifest};
use moai_transport::tls::utc;
use moai_transport::topic::Topic;
use tokio::time::Instant;

use super::Service;
use crate::attestation::{Admission, Opening, Waiting};
use crate::refusal::Refused;
use crate::sessions::{Session, SessionKey};

/// What became of a robot's evidence.
pub(super) struct Verdict {
    session: SessionKey,
    waiting: Waiting,
    believed: Result<(), Refused>,
}

impl Service {
    pub(super) fn open(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        verified: &VerifiedFrame,
    ) -> Result<(), Refused> {
        let frame = verified.frame();
        frame
            .check_topic(topic)
            .map_err(|error| Refused(ErrorCode::IdentityMismatch, error.to_string()))?;
        self.opens.admit(key, frame.claims.number, frame.claims.expires_at)?;
        let manifest = Manifest::decode(&frame.body, MAX_EVALUATION_KEY_LEN as u64)
            .map_err(|error| Refused(ErrorCode::MalformedFrame, error.to_string()))?;
        if manifest.context != self.context {
            let message = format!("this server computes in context {}", self.context);
            return Err(Refused(ErrorCode::UnknownModel, message));
        }
        let nonce = manifest.nonce;
        let opening = Opening { manifest, signer: verified.signer().clone() };
        let Some(attestation) = &mut self.attestation else { return self.begin(key, opening) };
        match attestation.admit(key, opening, Instant::now())? {
            Admission::Attested(opening) => self.begin(key, *opening),
            Admission::Challenged(challenge) => {
                self.say_challenge(key, nonce, challenge);
                Ok(())
            }
        }
    }

    /// Takes the session in, or goes on with it, and says what is held of its keys.
    fn begin(&mut self, key: &SessionKey, opening: Opening) -> Result<(), Refused> {
        let Opening { manifest, signer } = opening;
        let now = Instant::now();
        let lifetime = self.lifetime(&manifest);
        let expires = now + lifetime;
        let Manifest { nonce, key_digest, session_key, .. } = manifest;
        match self.sessions.get(key, now) {
            Some(session)
                if session.key_digest == key_digest && session.session_key == session_key =>
            {
                session.nonce = nonce;
                session.expires = session.expires.min(expires);
            }
            _ => {
                if self.sessions.is_full() {
                    let message = format!("{} sessions are open already", self.config.max_sessions);
                    return Err(Refused(ErrorCode::Busy, message));
                }
                let receiver = ChunkReceiver::new(manifest, MAX_EVALUATION_KEY_LEN as u64)
                    .map_err(|error| Refused(ErrorCode::TooLarge, error.to_string()))?;
                tracing::info!(
                    identity = %key.identity, session = %key.session, context = %self.context,
                    ttl_seconds = lifetime.as_secs(), attested = self.attestation.is_some(),
                    certificate_expires = utc(signer.not_after), "session opens"
                );
                self.sessions.insert(key.clone(), Session::new(receiver, nonce, expires));
            }
        }
        self.say_have(key);
        Ok(())
    }

    fn lifetime(&self, manifest: &Manifest) -> Duration {
        Duration::from_secs(manifest.ttl_seconds.into()).min(self.config.max_ttl)
    }

    fn say_challenge(&mut self, key: &SessionKey, nonce: u64, challenge: [u8; CHALLENGE_LEN]) {
        let worker = self.worker.clone();
        let body = Challenge { worker, nonce, challenge: challenge.to_vec() }.encode();
        let topic =
            Topic::Challenge { identity: key.identity.clone(), session: key.session.clone() };
        match body {
            Ok(body) => self.send(key, &topic, FrameKind::Challenge, Claims::default(), body),
            Err(error) => tracing::error!(%error, "a challenge cannot be encoded"),
        }
    }

    /// Has a robot's evidence judged.
    pub(super) fn attest(&mut self, key: &SessionKey, evidence: Vec<u8>) -> Result<(), Refused> {
        let Some(attestation) = &mut self.attestation else {
            let message = "this server asks for no evidence".to_owned();
            return Err(Refused(ErrorCode::UnknownSession, message));
        };
        let waiting = attestation.answered(key, Instant::now())?;
        let (session, enrolments) = (key.clone(), attestation.enrolments().clone());
        self.judging.spawn_blocking(move || {
            let believed = enrolments.judge(&session, &waiting, &evidence);
            Verdict { session, waiting, believed }
        });
        Ok(())
    }

    /// Goes on with the open of a robot that was believed.
    pub(super) fn judged(&mut self, verdict: Verdict) {
        let Verdict { session: key, waiting, believed } = verdict;
        let Opening { manifest, signer } = &waiting.opening;
        let until = Instant::now() + self.lifetime(manifest);
        let opened = believed
            .and_then(|()| match &mut self.attestation {
                Some(attestation) => attestation.believe(key.clone(), signer, until),
                None => Ok(()),
            })
            .and_then(|()| {
                tracing::info!(identity = %key.identity, session = %key.session, "robot attested");
                self.begin(&key, waiting.opening)
            });
        if let Err(refused) = opened {
            self.refuse(&key, JobNumber(0), refused);
        }
    }
}
