//! Which robots are attested, and which owe an answer to a challenge.
//!
//! Invariants:
//! - a challenge is random, belongs to one robot and one session, is good for one answer, and is
//!   dead after [`CHALLENGE_LIFETIME`];
//! - a robot is attested in one session, under the identity key whose evidence was believed, until
//!   that session's time is over;
//! - enrolments are read when they are needed, so that an operator's change counts at once;
//! - both tables are bounded, and a full one refuses newcomers instead of forgetting anybody.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use moai_attestation::{
    Enrolment, EnrolmentError, Evidence, MAX_ENROLMENT_LEN, qualifying, verify,
};
use moai_transport::ids::Identity;
use moai_transport::keys::SessionPublicKey;
use moai_transport::message::{CHALLENGE_LEN, ErrorCode, Manifest};
use moai_transport::trust::RobotCertificate;
use tokio::time::Instant;

use crate::refusal::Refused;
use crate::store::SessionKey;

/// How long a robot may take for its answer; a TPM needs a second at most.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_mins(1);
/// Opens that wait for evidence; each holds a manifest.
const MAX_WAITING: usize = 256;
const MAX_ATTESTED: usize = 65_536;

/// An open that was understood, and the certificate of the key that signed it.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) manifest: Manifest,
    pub(crate) signer: RobotCertificate,
    /// The number of the open.
    pub(crate) number: u64,
}

/// What an open gets.
#[derive(Debug)]
pub(crate) enum Admission {
    /// The robot is attested: go on with it.
    Attested(Box<Opening>),
    /// It has to answer this first.
    Challenged([u8; CHALLENGE_LEN]),
}

/// An open that waits for evidence.
#[derive(Debug)]
pub(crate) struct Waiting {
    challenge: [u8; CHALLENGE_LEN],
    until: Instant,
    pub(crate) opening: Opening,
}

struct Attested {
    identity_key: [u8; 65],
    until: Instant,
}

/// The robots of a server that requires attestation.
pub struct Attestation {
    enrolments: Enrolments,
    waiting: HashMap<SessionKey, Waiting>,
    attested: HashMap<SessionKey, Attested>,
}

impl Attestation {
    /// Nobody is attested yet.
    #[must_use]
    pub fn new(enrolments: Enrolments) -> Self {
        Self { enrolments, waiting: HashMap::new(), attested: HashMap::new() }
    }

    pub(crate) fn enrolments(&self) -> &Enrolments {
        &self.enrolments
    }

    /// Whether the robot is attested in this session under the key of this certificate.
    pub(crate) fn is_attested(
        &self,
        key: &SessionKey,
        signer: &RobotCertificate,
        now: Instant,
    ) -> bool {
        let attested = self.attested.get(key);
        attested.is_some_and(|it| it.until > now && it.identity_key == signer.public_key)
    }

    /// Lets an attested robot's open through and challenges the others. An open that comes again
    /// gets the challenge it got before, so that an answer on its way stays one.
    pub(crate) fn admit(
        &mut self,
        key: &SessionKey,
        opening: Opening,
        now: Instant,
    ) -> Result<Admission, Refused> {
        let same_key = |identity_key| opening.signer.public_key == identity_key;
        if self.is_attested(key, &opening.signer, now) {
            return Ok(Admission::Attested(Box::new(opening)));
        }
        if let Some(waiting) = self.waiting.get_mut(key)
            && waiting.until > now
            && same_key(waiting.opening.signer.public_key)
        {
            if opening.number <= waiting.opening.number {
                return Err(Refused::replayed(waiting.opening.number));
            }
            waiting.opening = opening;
            return Ok(Admission::Challenged(waiting.challenge));
        }
        self.waiting.remove(key);
        if self.waiting.len() >= MAX_WAITING {
            let message = "too many robots are being attested".to_owned();
            return Err(Refused(ErrorCode::Busy, message));
        }
        let mut challenge = [0; CHALLENGE_LEN];
        getrandom::fill(&mut challenge)
            .map_err(|error| Refused(ErrorCode::Internal, format!("no randomness: {error}")))?;
        let waiting = Waiting { challenge, until: now + CHALLENGE_LIFETIME, opening };
        self.waiting.insert(key.clone(), waiting);
        Ok(Admission::Challenged(challenge))
    }

    /// What an answer that came now is to be judged against. The challenge is used up with it.
    pub(crate) fn answered(&mut self, key: &SessionKey, now: Instant) -> Result<Waiting, Refused> {
        self.waiting.remove(key).filter(|waiting| waiting.until > now).ok_or_else(|| {
            let message = "no challenge waits for this evidence; open the session again".to_owned();
            Refused(ErrorCode::UnknownSession, message)
        })
    }

    /// What signs the frames of a session that waits for evidence.
    pub(crate) fn session_key(&self, key: &SessionKey) -> Option<SessionPublicKey> {
        self.waiting.get(key).map(|waiting| waiting.opening.manifest.session_key)
    }

    /// The robot was believed.
    pub(crate) fn believe(
        &mut self,
        key: SessionKey,
        signer: &RobotCertificate,
        until: Instant,
    ) -> Result<(), Refused> {
        if self.attested.len() >= MAX_ATTESTED && !self.attested.contains_key(&key) {
            let message = "too many sessions are attested".to_owned();
            return Err(Refused(ErrorCode::Busy, message));
        }
        self.attested.insert(key, Attested { identity_key: signer.public_key, until });
        Ok(())
    }

    /// The session is over.
    pub(crate) fn forget(&mut self, key: &SessionKey) {
        self.waiting.remove(key);
        self.attested.remove(key);
    }

    /// Drops what has had its time.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.waiting.retain(|_, waiting| waiting.until > now);
        self.attested.retain(|_, attested| attested.until > now);
    }
}

/// The directory with the enrolment of each robot, `{tenant}.{robot}.json`.
#[derive(Debug, Clone)]
pub struct Enrolments(PathBuf);

/// Why an enrolment cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentsError {
    /// The operating system refused.
    #[error("{}: {source}: check that it exists and that the server may read it", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is no enrolment.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: EnrolmentError,
    },
    /// The file is another robot's.
    #[error("{} is the enrolment of {identity}: name it {identity}.json", .path.display())]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        identity: String,
    },
}

impl Enrolments {
    /// The enrolments in this directory; nothing is read yet.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Reads every enrolment, and tells how many there are.
    ///
    /// # Errors
    /// The directory cannot be read, or a file in it is not what its name says.
    pub fn check(&self) -> Result<usize, EnrolmentsError> {
        let io = |source| EnrolmentsError::Io { path: self.0.clone(), source };
        let mut count = 0;
        for entry in std::fs::read_dir(&self.0).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                read(&path)?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn find(&self, identity: &Identity) -> Result<Option<Enrolment>, EnrolmentsError> {
        match read(&self.0.join(format!("{identity}.json"))) {
            Ok(enrolment) => Ok(Some(enrolment)),
            Err(EnrolmentsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a robot's answer to a challenge is believed. Reads its enrolment: blocks.
    pub(crate) fn judge(
        &self,
        key: &SessionKey,
        waiting: &Waiting,
        answer: &[u8],
    ) -> Result<(), Refused> {
        let refused = |message: String| Refused(ErrorCode::NotAttested, message);
        let identity = key.identity.to_string();
        let enrolment = self.find(&key.identity).map_err(|error| {
            tracing::error!(%identity, %error, "an enrolment cannot be used");
            refused("its enrolment cannot be used; the server's log says why".to_owned())
        })?;
        let enrolment = enrolment.ok_or_else(|| {
            refused(format!(
                "{identity} is not enrolled: place what `moai-agent identity enrolment` prints \
                 among the server's enrolments"
            ))
        })?;
        let evidence = Evidence::from_bytes(answer)
            .map_err(|error| Refused(ErrorCode::MalformedFrame, error.to_string()))?;
        let expected = qualifying(&waiting.challenge, &identity, key.session.as_bytes());
        verify(&enrolment, &evidence, &expected, &waiting.opening.signer.public_key)
            .map_err(|error| refused(error.to_string()))
    }
}

fn read(path: &Path) -> Result<Enrolment, EnrolmentsError> {
    let mut text = String::new();
    // One byte more than allowed, so that a longer file is noticed.
    let limit = MAX_ENROLMENT_LEN as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .map_err(|source| EnrolmentsError::Io { path: path.to_owned(), source })?;
    let enrolment = Enrolment::from_json(&text)
        .map_err(|source| EnrolmentsError::File { path: path.to_owned(), source })?;
    let identity = enrolment.identity();
    if path.file_name().is_some_and(|name| name == format!("{identity}.json").as_str()) {
        Ok(enrolment)
    } else {
        Err(EnrolmentsError::Misplaced { path: path.to_owned(), identity: identity.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    use moai_transport::chunk;
    use moai_transport::ids::{ContextId, Digest, SessionId};
    use moai_transport::keys::SessionSigningKey;

    static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

    fn opening(identity_key: u8) -> Opening {
        let ttl = Duration::from_mins(1);
        let session_key = SessionSigningKey::from_seed(&[1; 32]).public();
        let context = ContextId(Digest([0; 32]));
        let manifest = chunk::manifest(context, ttl, session_key, &[7; 1000], 1).unwrap();
        let identity = "acme.r1".parse().unwrap();
        let public_key = [identity_key; 65];
        let signer = RobotCertificate { identity, public_key, not_before: 0, not_after: 1 };
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        Opening { manifest, signer, number }
    }

    fn key(robot: &str, session: u8) -> SessionKey {
        SessionKey {
            identity: format!("acme.{robot}").parse().unwrap(),
            session: SessionId::new(1, [session; 10]),
        }
    }

    fn attestation() -> Attestation {
        Attestation::new(Enrolments::new(PathBuf::from("/nowhere")))
    }

    fn challenge(attestation: &mut Attestation, key: &SessionKey, identity_key: u8) -> [u8; 32] {
        match attestation.admit(key, opening(identity_key), Instant::now()) {
            Ok(Admission::Challenged(challenge)) => challenge,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_is_another_for_each_robot_session_and_key() {
        let mut attestation = attestation();
        let first = challenge(&mut attestation, &key("r1", 1), 1);
        assert_eq!(challenge(&mut attestation, &key("r1", 1), 1), first, "asked again");
        assert_ne!(challenge(&mut attestation, &key("r1", 2), 1), first);
        assert_ne!(challenge(&mut attestation, &key("r2", 1), 1), first);
        assert_ne!(challenge(&mut attestation, &key("r1", 1), 2), first);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_that_waits_is_replaced_by_newer_ones_only() {
        let mut attestation = attestation();
        let (old, new) = (opening(1), opening(1));
        let number = new.number;
        assert!(attestation.admit(&key("r1", 1), new.clone(), Instant::now()).is_ok());
        for replayed in [old, new] {
            let refused = attestation.admit(&key("r1", 1), replayed, Instant::now());
            assert_eq!(refused.unwrap_err().0, ErrorCode::Replayed);
        }
        let waiting = attestation.answered(&key("r1", 1), Instant::now()).unwrap();
        assert_eq!(waiting.opening.number, number);
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_is_answered_once() {
        let mut attestation = attestation();
        let first = challenge(&mut attestation, &key("r1", 1), 1);
        assert!(attestation.answered(&key("r1", 2), Instant::now()).is_err());
        let waiting = attestation.answered(&key("r1", 1), Instant::now()).unwrap();
        assert_eq!(waiting.challenge, first);
        let Refused(code, _) = attestation.answered(&key("r1", 1), Instant::now()).unwrap_err();
        assert_eq!(code, ErrorCode::UnknownSession);
        assert_ne!(challenge(&mut attestation, &key("r1", 1), 1), first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_dies_after_its_minute() {
        let mut attestation = attestation();
        let first = challenge(&mut attestation, &key("r1", 1), 1);
        tokio::time::advance(CHALLENGE_LIFETIME).await;
        assert_ne!(challenge(&mut attestation, &key("r1", 1), 1), first);
        tokio::time::advance(CHALLENGE_LIFETIME).await;
        assert!(attestation.answered(&key("r1", 1), Instant::now()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn belief_ends_with_the_session_and_holds_for_one_key() {
        let mut attestation = attestation();
        let until = Instant::now() + Duration::from_mins(15);
        attestation.believe(key("r1", 1), &opening(1).signer, until).unwrap();
        let mut admitted = |key: &SessionKey, identity_key| {
            let admission = attestation.admit(key, opening(identity_key), Instant::now());
            matches!(admission, Ok(Admission::Attested(_)))
        };
        assert!(admitted(&key("r1", 1), 1));
        assert!(!admitted(&key("r1", 1), 2), "another key");
        assert!(!admitted(&key("r1", 2), 1), "another session");
        assert!(!admitted(&key("r2", 1), 1), "another robot");
        tokio::time::advance(Duration::from_mins(15)).await;
        assert!(!admitted(&key("r1", 1), 1), "its time is over");
    }

    #[tokio::test(start_paused = true)]
    async fn opens_that_wait_are_bounded_and_expire() {
        let mut attestation = attestation();
        for session in 0..=u8::MAX {
            challenge(&mut attestation, &key("r1", session), 1);
        }
        let Err(Refused(code, _)) = attestation.admit(&key("r2", 0), opening(1), Instant::now())
        else {
            panic!("there was room");
        };
        assert_eq!(code, ErrorCode::Busy);
        tokio::time::advance(CHALLENGE_LIFETIME).await;
        attestation.expire(Instant::now());
        challenge(&mut attestation, &key("r2", 0), 1);
    }

    #[test]
    fn an_enrolment_that_is_missing_or_unusable_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let enrolments = Enrolments::new(directory.path().to_owned());
        let robot: Identity = "acme.r1".parse().unwrap();
        assert_eq!(enrolments.check().unwrap(), 0);
        assert!(enrolments.find(&robot).unwrap().is_none());
        std::fs::write(directory.path().join("acme.r1.json"), "{}").unwrap();
        assert!(matches!(enrolments.find(&robot), Err(EnrolmentsError::File { .. })));
        let error = enrolments.check().unwrap_err();
        assert!(error.to_string().contains("acme.r1.json"), "{error}");
        let missing = Enrolments::new(directory.path().join("missing"));
        assert!(matches!(missing.check(), Err(EnrolmentsError::Io { .. })));
    }
}
