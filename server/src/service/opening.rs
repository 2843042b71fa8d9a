//! How a session begins: its robot is believed, and its keys are asked for.
//!
//! Invariants:
//! - a session opens only for the robot whose certificate's key signed the open, and an open counts
//!   once, whichever worker it reaches;
//! - where attestation is required, it opens only for a robot that is attested in this session,
//!   under that key, by this worker or by one that shares its store.

use std::time::Duration;

use moai_transport::frame::{CLOCK_ALLOWANCE, Claims, FrameKind, MAX_OPEN_LIFETIME, VerifiedFrame};
use moai_transport::ids::{Digest, JobNumber};
use moai_transport::message::{CHALLENGE_LEN, Challenge, ErrorCode, Manifest, MessageError};
use moai_transport::tls::utc;
use moai_transport::topic::Topic;
use tokio::time::Instant;

use super::{Service, check_topic};
use crate::attestation::{Admission, Opening, Waiting};
use crate::audit::Event;
use crate::refusal::Refused;
use crate::sessions::{Keys, Session};
use crate::store::{Found, Held, Opened, Record, SessionKey, Stored};
use crate::tenants::beyond;

/// For so long after a session's end an open of it may still be fresh: the robot's clock may be
/// ahead when it signs, and ours behind when we look.
const OPENS_OUTLIVE: Duration = MAX_OPEN_LIFETIME.saturating_add(CLOCK_ALLOWANCE.saturating_mul(2));

/// What became of a robot's evidence.
pub(super) struct Verdict {
    session: SessionKey,
    waiting: Waiting,
    believed: Result<(), Refused>,
}

impl Service {
    pub(super) async fn open(
        &mut self,
        key: &SessionKey,
        topic: &Topic,
        verified: &VerifiedFrame,
    ) -> Result<(), Refused> {
        let frame = verified.frame();
        check_topic(frame, topic)?;
        self.rules(&key.identity.tenant)?;
        let manifest =
            Manifest::decode(&frame.body, self.engine.max_key_len()).map_err(|error| {
                let code = match error {
                    MessageError::KeyTooLarge { .. } => ErrorCode::TooLarge,
                    _ => ErrorCode::MalformedFrame,
                };
                Refused(code, error.to_string())
            })?;
        if manifest.context != self.context {
            let message = format!("this server computes in context {}", self.context);
            return Err(Refused(ErrorCode::UnknownModel, message));
        }
        let nonce = manifest.nonce;
        let (signer, number) = (verified.signer().clone(), frame.claims.number);
        let opening = Opening { manifest, signer, number };
        self.believe_store(key, &opening).await?;
        let Some(attestation) = &mut self.attestation else {
            return self.begin(key, opening).await;
        };
        match attestation.admit(key, opening, Instant::now())? {
            Admission::Attested(opening) => self.begin(key, *opening).await,
            Admission::Challenged(challenge) => {
                self.say_challenge(key, nonce, challenge);
                Ok(())
            }
        }
    }

    /// Takes over from the store that a robot is attested in this session.
    async fn believe_store(&mut self, key: &SessionKey, opening: &Opening) -> Result<(), Refused> {
        let now = (self.clock)();
        let Some(attestation) = &mut self.attestation else { return Ok(()) };
        if attestation.is_attested(key, &opening.signer, Instant::now()) {
            return Ok(());
        }
        if let Found::Session(stored) = self.store.find(key, now).await?
            && stored.record.attested == Some(Digest::of(&opening.signer.public_key))
        {
            let until = Instant::now() + stored.record.expires_at.since(now);
            attestation.believe(key.clone(), &opening.signer, until)?;
        }
        Ok(())
    }

    /// Takes the session in, or goes on with it, and says what is held of its keys.
    async fn begin(&mut self, key: &SessionKey, opening: Opening) -> Result<(), Refused> {
        let Opening { manifest, signer, number } = opening;
        let now = (self.clock)();
        let lifetime = self.lifetime(&manifest);
        let attested = self.attestation.is_some();
        let expires_at = now + lifetime;
        let record = Record {
            manifest,
            open_number: number,
            expires_at,
            opens_until: expires_at + OPENS_OUTLIVE,
            attested: attested.then(|| Digest::of(&signer.public_key)),
            registered: false,
        };
        let budget = self.rules(&key.identity.tenant)?.budget;
        match self.store.open(key, &record, budget, now).await? {
            Opened::New => {
                let manifest = record.manifest;
                let (ttl_seconds, key_bytes) = (lifetime.as_secs(), manifest.key_len);
                tracing::info!(
                    identity = %key.identity, session = %key.session, context = %self.context,
                    ttl_seconds, attested, certificate_expires = utc(signer.not_after),
                    "session opens"
                );
                let event = Event::Opened { ttl_seconds, key_bytes, attested };
                self.audit.record(key, now, &event);
                self.prepared.remove(key);
                let held = Held::none(manifest.chunk_digests.len());
                let expires = Instant::now() + lifetime;
                let session = Session::new(manifest, expires, Keys::Arriving(held));
                self.sessions.insert(key.clone(), session);
            }
            Opened::Continued(stored) => self.go_on(key, stored),
            Opened::Ended => return Err(Refused::ended()),
            Opened::Replayed { newest } => return Err(Refused::replayed(newest)),
            Opened::Exceeded(exceeded) => return Err(beyond(exceeded)),
        }
        self.say_have(key);
        Ok(())
    }

    /// Goes on with a session as the store has it.
    fn go_on(&mut self, key: &SessionKey, stored: Stored) {
        let expires = Instant::now() + stored.record.expires_at.since((self.clock)());
        let Some(session) = self.sessions.get(key, Instant::now()) else {
            return self.take_over(key, stored);
        };
        let Stored { record, held } = stored;
        if session.manifest.key_digest != record.manifest.key_digest
            || session.manifest.session_key != record.manifest.session_key
        {
            return self.take_over(key, Stored { record, held });
        }
        session.manifest = record.manifest;
        session.expires = expires;
        // Other workers may have stored chunks, or the store may have lost some.
        let is_complete = held.is_complete();
        match session.keys {
            Keys::Arriving(_) => session.keys = Keys::Arriving(held),
            Keys::Ready if !is_complete => {
                session.keys = Keys::Arriving(held);
                self.prepared.remove(key);
            }
            Keys::Preparing | Keys::Ready => return,
        }
        if is_complete {
            self.load(key);
        }
    }

    fn lifetime(&self, manifest: &Manifest) -> Duration {
        Duration::from_secs(manifest.ttl_seconds.into()).min(self.settings.max_ttl)
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
    pub(super) async fn judged(&mut self, verdict: Verdict) {
        let Verdict { session: key, waiting, believed } = verdict;
        let Opening { manifest, signer, .. } = &waiting.opening;
        let until = Instant::now() + self.lifetime(manifest);
        let believed = believed.and_then(|()| match &mut self.attestation {
            Some(attestation) => attestation.believe(key.clone(), signer, until),
            None => Ok(()),
        });
        let opened = match believed {
            Ok(()) => {
                tracing::info!(identity = %key.identity, session = %key.session, "robot attested");
                self.audit.record(&key, (self.clock)(), &Event::Attested);
                self.begin(&key, waiting.opening).await
            }
            Err(refused) => Err(refused),
        };
        if let Err(refused) = opened {
            self.refuse(&key, JobNumber(0), refused);
        }
    }
}
