//! The sessions this worker serves: what it has to know beside what the store keeps.
//!
//! Invariants:
//! - a session belongs to the robot that opened it; the key of the table holds both, so one
//!   robot's frame never reaches another's session;
//! - after its time a session is gone, with its results;
//! - a number is good for one job: which numbers were used is known for as long as the session
//!   lives here, and a number is never computed again with another input;
//! - results are kept for a few jobs, so that a job that is sent twice is computed once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use moai_transport::ids::{Digest, JobNumber, ModelId, Tenant};
use moai_transport::keys::SessionPublicKey;
use moai_transport::message::{MAX_JOBS, Manifest};
use tokio::time::Instant;

use crate::evaluator::Job;
use crate::store::{Held, SessionKey};

/// Names of expired sessions kept.
const KEPT_EXPIRED: usize = 1024;
/// Results kept for each session.
const KEPT_RESULTS: usize = 64;

/// How far the session's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Chunks are arriving; these are stored.
    Arriving(Held),
    /// All are stored and are being checked and prepared for the first time.
    Preparing,
    /// Registered: this worker or another one has checked them.
    Ready,
}

/// A job that waits, is being computed, or was lately.
#[derive(Clone)]
pub(crate) struct KeptJob {
    /// Digest of its encrypted input; another digest is another job.
    pub(crate) input: Digest,
    /// How far it is.
    pub(crate) progress: Progress,
}

impl KeptJob {
    fn is_under_way(&self) -> bool {
        matches!(self.progress, Progress::Computing(_))
    }
}

/// How far a job is.
#[derive(Clone)]
pub(crate) enum Progress {
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

/// What the number of a job is to a session.
pub(crate) enum Seen<'s> {
    /// It is new.
    New,
    /// It is that of a job the session still knows.
    Kept(&'s KeptJob),
    /// It was used; of its job nothing is known any more.
    Used,
    /// No job has such a number.
    Never,
}

/// One session.
pub(crate) struct Session {
    /// The manifest of its newest open.
    pub(crate) manifest: Manifest,
    /// When it ends.
    pub(crate) expires: Instant,
    /// Its keys.
    pub(crate) keys: Keys,
    /// Jobs that wait until its keys are in memory.
    pub(crate) waiting: Vec<Job>,
    jobs: BTreeMap<JobNumber, KeptJob>,
    /// How many of them wait or are being computed: asked for with each job of the tenant.
    under_way: usize,
    /// Bit `i % 64` of word `i / 64` is set if number `i` was used.
    used: Vec<u64>,
}

impl Session {
    pub(crate) fn new(manifest: Manifest, expires: Instant, keys: Keys) -> Self {
        let (waiting, jobs, used) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { manifest, expires, keys, waiting, jobs, under_way: 0, used }
    }

    /// What is known of a job of this number.
    pub(crate) fn seen(&self, number: JobNumber) -> Seen<'_> {
        let Some((word, bit)) = place(number) else { return Seen::Never };
        match self.jobs.get(&number) {
            Some(job) => Seen::Kept(job),
            None if self.used.get(word).is_some_and(|word| word & bit != 0) => Seen::Used,
            None => Seen::New,
        }
    }

    /// A job that is kept.
    pub(crate) fn kept(&self, number: JobNumber) -> Option<&KeptJob> {
        self.jobs.get(&number)
    }

    /// Notes a job; forgets the oldest computed ones beyond the limit, but not their numbers.
    pub(crate) fn note(&mut self, number: JobNumber, job: KeptJob) {
        let Some((word, bit)) = place(number) else { return };
        if self.used.len() <= word {
            self.used.resize(word + 1, 0);
        }
        if let Some(word) = self.used.get_mut(word) {
            *word |= bit;
        }
        self.under_way += usize::from(job.is_under_way());
        if let Some(before) = self.jobs.insert(number, job) {
            self.under_way -= usize::from(before.is_under_way());
        }
        while self.jobs.len() > KEPT_RESULTS {
            let oldest =
                self.jobs.iter().find(|(_, job)| !job.is_under_way()).map(|(number, _)| *number);
            let Some(oldest) = oldest else { return };
            self.jobs.remove(&oldest);
        }
    }

    /// Forgets a job that could not be computed: its robot may send it again.
    pub(crate) fn forget(&mut self, number: JobNumber) {
        if let Some(job) = self.jobs.remove(&number) {
            self.under_way -= usize::from(job.is_under_way());
        }
        if let Some((word, bit)) = place(number)
            && let Some(word) = self.used.get_mut(word)
        {
            *word &= !bit;
        }
    }
}

/// Where a job's number has its bit; none if no job has it.
fn place(number: JobNumber) -> Option<(usize, u64)> {
    let number = usize::try_from(number.0).ok().filter(|_| (1..=MAX_JOBS).contains(&number.0))?;
    Some((number / 64, 1 << (number % 64)))
}

/// All sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    table: HashMap<SessionKey, Session>,
    /// The sessions that expired last and their keys, so that their robots hear why they are not
    /// served.
    expired: VecDeque<(SessionKey, SessionPublicKey)>,
}

impl Sessions {
    /// A living session.
    pub(crate) fn get(&mut self, key: &SessionKey, now: Instant) -> Option<&mut Session> {
        self.table.get_mut(key).filter(|session| session.expires > now)
    }

    /// Whether a session was here until its time was over.
    pub(crate) fn has_expired(&self, key: &SessionKey) -> bool {
        self.expired.iter().any(|(expired, _)| expired == key)
    }

    /// What signs the frames of a session that is here, or was until its time was over.
    pub(crate) fn session_key(&self, key: &SessionKey) -> Option<SessionPublicKey> {
        let expired = || self.expired.iter().rev().find(|(expired, _)| expired == key);
        let live = self.table.get(key).map(|session| session.manifest.session_key);
        live.or_else(|| expired().map(|(_, session_key)| *session_key))
    }

    /// The sessions that are here.
    pub(crate) fn names(&self) -> Vec<SessionKey> {
        self.table.keys().cloned().collect()
    }

    /// Jobs of a tenant that wait or are being computed.
    pub(crate) fn under_way(&self, tenant: &Tenant) -> usize {
        let sessions = self.table.iter().filter(|(key, _)| key.identity.tenant == *tenant);
        sessions.map(|(_, session)| session.under_way).sum()
    }

    /// Takes a session in.
    pub(crate) fn insert(&mut self, key: SessionKey, session: Session) {
        self.table.insert(key, session);
    }

    /// Drops a session.
    pub(crate) fn remove(&mut self, key: &SessionKey) -> Option<Session> {
        self.table.remove(key)
    }

    /// Drops every session whose time is over and returns their names.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<SessionKey> {
        let over: Vec<SessionKey> = self
            .table
            .iter()
            .filter(|(_, session)| session.expires <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &over {
            if let Some(session) = self.table.remove(key) {
                self.expired.push_back((key.clone(), session.manifest.session_key));
            }
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
    use moai_transport::ids::{ContextId, SessionId};
    use moai_transport::keys::SessionSigningKey;

    fn computing() -> KeptJob {
        let progress = Progress::Computing("m".parse().unwrap());
        KeptJob { input: Digest::of(b"input"), progress }
    }

    fn computed() -> KeptJob {
        let (model, body) = ("m".parse().unwrap(), Arc::new(vec![]));
        let progress = Progress::Computed { model, body, compute: Duration::ZERO };
        KeptJob { progress, ..computing() }
    }

    fn session(expires: Instant) -> Session {
        let context = ContextId(Digest([0; 32]));
        let ttl = Duration::from_mins(1);
        let session_key = SessionSigningKey::from_seed(&[1; 32]).public();
        let manifest = chunk::manifest(context, ttl, session_key, &vec![7; 300_000], 1).unwrap();
        Session::new(manifest, expires, Keys::Ready)
    }

    fn key(robot: &str) -> SessionKey {
        SessionKey { identity: robot.parse().unwrap(), session: SessionId::new(1, [0; 10]) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_gone_when_its_time_is_over() {
        let now = Instant::now();
        let end = now + Duration::from_mins(1);
        let mut sessions = Sessions::default();
        sessions.insert(key("acme.r1"), session(end));
        assert!(sessions.get(&key("acme.r1"), now).is_some());
        assert!(sessions.get(&key("acme.r1"), end).is_none());
        assert!(!sessions.has_expired(&key("acme.r1")));
        assert_eq!(sessions.expire(end), [key("acme.r1")]);
        assert!(sessions.has_expired(&key("acme.r1")));
        assert!(sessions.get(&key("acme.r1"), now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_session_id_of_another_robot_is_another_session() {
        let now = Instant::now();
        let mut sessions = Sessions::default();
        sessions.insert(key("acme.r1"), session(now + Duration::from_mins(1)));
        assert!(sessions.get(&key("acme.r2"), now).is_none());
        assert!(sessions.get(&key("globex.r1"), now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_sessions_key_is_known_for_a_while() {
        let (now, mut sessions) = (Instant::now(), Sessions::default());
        sessions.insert(key("acme.r1"), session(now));
        let session_key = sessions.session_key(&key("acme.r1"));
        assert!(session_key.is_some());
        sessions.expire(now);
        assert_eq!(sessions.session_key(&key("acme.r1")), session_key);
        assert_eq!(sessions.session_key(&key("acme.r2")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn old_results_go_and_jobs_under_way_stay() {
        let mut session = session(Instant::now());
        session.note(JobNumber(1), computing());
        for number in 2..200 {
            session.note(JobNumber(number), computed());
        }
        assert!(matches!(session.seen(JobNumber(1)), Seen::Kept(_)));
        assert!(matches!(session.seen(JobNumber(2)), Seen::Used));
        assert!(matches!(session.seen(JobNumber(199)), Seen::Kept(_)));
        assert!(matches!(session.seen(JobNumber(200)), Seen::New));
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_is_used_until_its_job_could_not_be_computed() {
        let mut session = session(Instant::now());
        for number in [1, 63, 64, MAX_JOBS] {
            let number = JobNumber(number);
            assert!(matches!(session.seen(number), Seen::New));
            session.note(number, computing());
            assert!(matches!(session.seen(number), Seen::Kept(_)));
            session.forget(number);
            assert!(matches!(session.seen(number), Seen::New));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_no_job_can_have_are_never_noted() {
        let mut session = session(Instant::now());
        for number in [0, MAX_JOBS + 1, u64::MAX] {
            session.note(JobNumber(number), computing());
            assert!(matches!(session.seen(JobNumber(number)), Seen::Never));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_under_way_are_counted_by_tenant() {
        let now = Instant::now();
        let mut sessions = Sessions::default();
        for (robot, jobs) in [("acme.r1", 2), ("acme.r2", 1), ("globex.r1", 4)] {
            let mut session = session(now + Duration::from_mins(1));
            for number in 1..=jobs {
                session.note(JobNumber(number), computing());
            }
            sessions.insert(key(robot), session);
        }
        let under_way = |sessions: &Sessions| sessions.under_way(&"acme".parse().unwrap());
        assert_eq!(under_way(&sessions), 3);
        sessions.get(&key("acme.r1"), now).unwrap().forget(JobNumber(2));
        assert_eq!(under_way(&sessions), 2);
        for _ in 0..2 {
            sessions.get(&key("acme.r1"), now).unwrap().note(JobNumber(1), computed());
            assert_eq!(under_way(&sessions), 1);
        }
        sessions.get(&key("acme.r1"), now).unwrap().note(JobNumber(1), computing());
        assert_eq!(under_way(&sessions), 2);
        sessions.remove(&key("acme.r1"));
        assert_eq!(under_way(&sessions), 1);
    }
}
