//! The sessions this server holds keys for, in memory.
//!
//! Invariants:
//! - a session belongs to the robot that opened it; the key of the table holds both, so one
//!   robot's frame never reaches another's session;
//! - after its time a session is gone, with its keys and its results;
//! - results are kept for a few jobs, so that a job that is sent twice is computed once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::EvaluationKeys;
use moai_transport::chunk::ChunkReceiver;
use moai_transport::ids::{ContextId, Digest, Identity, JobNumber, ModelId, SessionId};
use tokio::time::Instant;

/// Names of expired sessions kept.
const KEPT_EXPIRED: usize = 1024;
/// Results kept for each session.
const KEPT_RESULTS: usize = 64;

/// Whose session it is, and which.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The robot.
    pub identity: Identity,
    /// Its session.
    pub session: SessionId,
}

/// How far the session's keys are.
pub enum Keys {
    /// Chunks are arriving.
    Arriving(ChunkReceiver),
    /// They are being checked and prepared.
    Preparing,
    /// Ready to evaluate.
    Ready(Arc<EvaluationKeys>),
}

/// A job the session has seen.
#[derive(Clone)]
pub enum SeenJob {
    /// It waits or is being computed.
    Computing(ModelId),
    /// Its result, to be sent again if asked.
    Computed {
        /// The model that computed it.
        model: ModelId,
        /// The encrypted result.
        body: Arc<Vec<u8>>,
        /// How long it took.
        compute: Duration,
    },
}

/// One session.
pub struct Session {
    /// Digest of its keys; another digest is another upload.
    pub key_digest: Digest,
    /// The context of its keys.
    pub context: ContextId,
    /// How many chunks its keys have.
    pub chunks: usize,
    /// The nonce of the newest `open`.
    pub nonce: u64,
    /// When it ends.
    pub expires: Instant,
    /// Its keys.
    pub keys: Keys,
    jobs: BTreeMap<JobNumber, SeenJob>,
}

impl Session {
    /// A session whose keys are arriving.
    #[must_use]
    pub fn new(receiver: ChunkReceiver, nonce: u64, expires: Instant) -> Self {
        let manifest = receiver.manifest();
        Self {
            key_digest: manifest.key_digest,
            context: manifest.context,
            chunks: manifest.chunk_digests.len(),
            nonce,
            expires,
            keys: Keys::Arriving(receiver),
            jobs: BTreeMap::new(),
        }
    }

    /// What is known of a job.
    #[must_use]
    pub fn seen(&self, number: JobNumber) -> Option<&SeenJob> {
        self.jobs.get(&number)
    }

    /// Notes a job; forgets the oldest computed ones beyond the limit.
    pub fn note(&mut self, number: JobNumber, job: SeenJob) {
        self.jobs.insert(number, job);
        while self.jobs.len() > KEPT_RESULTS {
            let oldest = self
                .jobs
                .iter()
                .find(|(_, job)| matches!(job, SeenJob::Computed { .. }))
                .map(|(number, _)| *number);
            let Some(oldest) = oldest else { return };
            self.jobs.remove(&oldest);
        }
    }

    /// Forgets a job that could not be computed.
    pub fn forget(&mut self, number: JobNumber) {
        self.jobs.remove(&number);
    }
}

/// All sessions.
pub struct Sessions {
    table: HashMap<SessionKey, Session>,
    limit: usize,
    /// The sessions that expired last, so that their robots hear why they are not served.
    expired: VecDeque<SessionKey>,
}

impl Sessions {
    /// No sessions yet, at most `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { table: HashMap::new(), limit, expired: VecDeque::new() }
    }

    /// A living session.
    pub fn get(&mut self, key: &SessionKey, now: Instant) -> Option<&mut Session> {
        self.table.get_mut(key).filter(|session| session.expires > now)
    }

    /// Whether a session was here until its time was over.
    #[must_use]
    pub fn has_expired(&self, key: &SessionKey) -> bool {
        self.expired.contains(key)
    }

    /// Whether no further session can be taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.table.len() >= self.limit
    }

    /// Takes a session in.
    pub fn insert(&mut self, key: SessionKey, session: Session) {
        self.table.insert(key, session);
    }

    /// Drops a session and its keys.
    pub fn remove(&mut self, key: &SessionKey) -> bool {
        self.table.remove(key).is_some()
    }

    /// Drops every session whose time is over and returns their names.
    pub fn expire(&mut self, now: Instant) -> Vec<SessionKey> {
        let over: Vec<SessionKey> = self
            .table
            .iter()
            .filter(|(_, session)| session.expires <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &over {
            self.table.remove(key);
            self.expired.push_back(key.clone());
        }
        let excess = self.expired.len().saturating_sub(KEPT_EXPIRED);
        self.expired.drain(..excess);
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moai_transport::chunk;

    fn session(expires: Instant) -> Session {
        let key = vec![7; 300_000];
        let ttl = Duration::from_mins(1);
        let manifest = chunk::manifest(ContextId(Digest([0; 32])), ttl, &key, 1).unwrap();
        Session::new(ChunkReceiver::new(manifest, 1_000_000).unwrap(), 1, expires)
    }

    fn key(robot: &str) -> SessionKey {
        SessionKey {
            identity: format!("acme.{robot}").parse().unwrap(),
            session: SessionId::new(1, [0; 10]),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_gone_when_its_time_is_over() {
        let now = Instant::now();
        let end = now + Duration::from_mins(1);
        let mut sessions = Sessions::new(8);
        sessions.insert(key("r1"), session(end));
        assert!(sessions.get(&key("r1"), now).is_some());
        assert!(sessions.get(&key("r1"), end).is_none());
        assert!(!sessions.has_expired(&key("r1")));
        assert_eq!(sessions.expire(end), [key("r1")]);
        assert!(sessions.has_expired(&key("r1")));
        assert!(sessions.get(&key("r1"), now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_session_id_of_another_robot_is_another_session() {
        let now = Instant::now();
        let mut sessions = Sessions::new(8);
        sessions.insert(key("r1"), session(now + Duration::from_mins(1)));
        assert!(sessions.get(&key("r2"), now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn old_results_go_and_jobs_under_way_stay() {
        let mut session = session(Instant::now());
        let model: ModelId = "m".parse().unwrap();
        session.note(JobNumber(1), SeenJob::Computing(model.clone()));
        for number in 2..200 {
            let body = Arc::new(vec![]);
            let computed =
                SeenJob::Computed { model: model.clone(), body, compute: Duration::ZERO };
            session.note(JobNumber(number), computed);
        }
        assert!(session.seen(JobNumber(1)).is_some());
        assert!(session.seen(JobNumber(2)).is_none());
        assert!(session.seen(JobNumber(199)).is_some());
    }
}
