//! The evaluation pool: jobs wait in a bounded queue and are computed one after the other, each
//! on all threads, which gives the shortest time to an answer.
//!
//! Invariants:
//! - the queue is bounded; a full one refuses at once;
//! - tenants take turns: a job waits for at most one job of each other tenant before it, and for
//!   those of its own;
//! - a panic in a job ends that job only.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moai_transport::ids::{JobNumber, ModelId, Tenant};
use tokio::sync::mpsc;

use crate::engine::{EngineError, PreparedKeys};
use crate::store::SessionKey;

/// A job to compute.
pub(crate) struct Job {
    /// Whose.
    pub(crate) session: SessionKey,
    /// Which.
    pub(crate) number: JobNumber,
    /// What to compute.
    pub(crate) model: ModelId,
    /// On this encrypted input.
    pub(crate) body: Vec<u8>,
}

/// A computed job.
pub(crate) struct Outcome {
    /// Whose.
    pub(crate) session: SessionKey,
    /// Which.
    pub(crate) number: JobNumber,
    /// The encrypted result; none if the evaluation failed in itself.
    pub(crate) result: Option<Result<Vec<u8>, EngineError>>,
    /// How long it took.
    pub(crate) compute: Duration,
}

type Ready = (Job, Arc<dyn PreparedKeys>);

#[derive(Default)]
struct Queue {
    by_tenant: BTreeMap<Tenant, VecDeque<Ready>>,
    len: usize,
    /// Whose turn it was last.
    last: Option<Tenant>,
    is_closed: bool,
}

impl Queue {
    /// The first job of the tenant whose turn it is.
    fn next(&mut self) -> Option<Ready> {
        let after = |last: &Tenant| self.by_tenant.keys().find(|tenant| *tenant > last).cloned();
        let tenant = self.last.as_ref().and_then(after);
        let tenant = tenant.or_else(|| self.by_tenant.keys().next().cloned())?;
        let jobs = self.by_tenant.get_mut(&tenant)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.by_tenant.remove(&tenant);
        }
        self.len -= usize::from(job.is_some());
        self.last = Some(tenant);
        job
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No step of the queue can be left half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job; none when the pool is to end.
    fn next(&self) -> Option<Ready> {
        let mut queue = self.queue();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(job) = queue.next() {
                return Some(job);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A handle to the evaluation pool, which ends with it.
pub(crate) struct Evaluator {
    shared: Arc<Shared>,
    limit: usize,
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_one();
    }
}

impl Evaluator {
    /// Starts the pool with a queue of `limit` jobs.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub(crate) fn start(
        threads: usize,
        limit: usize,
        outcomes: mpsc::Sender<Outcome>,
    ) -> anyhow::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("evaluate-{index}"))
            .build()?;
        let shared = Arc::new(Shared::default());
        let jobs = Arc::clone(&shared);
        std::thread::Builder::new().name("evaluate".to_owned()).spawn(move || {
            while let Some((job, keys)) = jobs.next() {
                let start = Instant::now();
                let evaluate = || pool.install(|| keys.evaluate(&job.model, &job.body));
                let result = std::panic::catch_unwind(AssertUnwindSafe(evaluate)).ok();
                let Job { session, number, .. } = job;
                let outcome = Outcome { session, number, result, compute: start.elapsed() };
                if outcomes.blocking_send(outcome).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { shared, limit })
    }

    /// Queues a job. False if the queue is full.
    #[must_use]
    pub(crate) fn submit(&self, job: Job, keys: Arc<dyn PreparedKeys>) -> bool {
        let mut queue = self.shared.queue();
        if queue.len >= self.limit {
            return false;
        }
        queue.len += 1;
        let tenant = job.session.identity.tenant.clone();
        queue.by_tenant.entry(tenant).or_default().push_back((job, keys));
        self.shared.changed.notify_one();
        true
    }
}

#[cfg(test)]
mod tests {
    use moai_transport::ids::SessionId;

    use super::*;

    /// Keys that say the input back, and panic where it says so.
    struct Echo;

    impl PreparedKeys for Echo {
        fn evaluate(&self, _: &ModelId, input: &[u8]) -> Result<Vec<u8>, EngineError> {
            assert_ne!(input, b"panic");
            Ok(input.to_vec())
        }
    }

    fn job(robot: &str, number: u64, body: &[u8]) -> Job {
        let identity = robot.parse().unwrap();
        let session = SessionKey { identity, session: SessionId::new(1, [0; 10]) };
        let model = "m".parse().unwrap();
        Job { session, number: JobNumber(number), model, body: body.to_vec() }
    }

    #[test]
    fn tenants_take_turns_whatever_one_of_them_has_queued() {
        let mut queue = Queue::default();
        for (robot, number) in
            [("acme.r1", 1), ("acme.r1", 2), ("acme.r2", 3), ("globex.r1", 4), ("zeta.r1", 5)]
        {
            let job = job(robot, number, b"");
            let tenant = job.session.identity.tenant.clone();
            queue.by_tenant.entry(tenant).or_default().push_back((job, Arc::new(Echo)));
            queue.len += 1;
        }
        let order: Vec<u64> =
            std::iter::from_fn(|| queue.next()).map(|(job, _)| job.number.0).collect();
        assert_eq!(order, [1, 4, 5, 2, 3]);
        assert_eq!(queue.len, 0);
    }

    #[tokio::test]
    async fn a_panic_ends_its_job_and_the_next_is_computed() {
        let (sender, mut outcomes) = mpsc::channel(4);
        let evaluator = Evaluator::start(1, 8, sender).unwrap();
        assert!(evaluator.submit(job("acme.r1", 1, b"panic"), Arc::new(Echo)));
        assert!(evaluator.submit(job("acme.r1", 2, b"echo"), Arc::new(Echo)));
        assert!(outcomes.recv().await.unwrap().result.is_none());
        let outcome = outcomes.recv().await.unwrap();
        assert_eq!((outcome.number, outcome.result), (JobNumber(2), Some(Ok(b"echo".to_vec()))));
    }

    #[test]
    fn a_full_queue_refuses_at_once() {
        let evaluator = Evaluator { shared: Arc::default(), limit: 1 };
        assert!(evaluator.submit(job("acme.r1", 1, b""), Arc::new(Echo)));
        assert!(!evaluator.submit(job("acme.r1", 2, b""), Arc::new(Echo)));
    }
}
