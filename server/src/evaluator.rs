//! The evaluation pool: jobs wait in a bounded queue and are computed one after the other, each
//! on all threads, which gives the shortest time to an answer.
//!
//! Invariants:
//! - the queue is bounded; a full one refuses at once;
//! - a panic in a job ends that job only.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moai_fhe::{EvaluationError, EvaluationKeys, Model};
use tokio::sync::mpsc;

use crate::sessions::SessionKey;
use moai_transport::ids::JobNumber;

/// A job to compute.
pub struct Job {
    /// Whose.
    pub session: SessionKey,
    /// Which.
    pub number: JobNumber,
    /// What to compute.
    pub model: Arc<Model>,
    /// With these keys.
    pub keys: Arc<EvaluationKeys>,
    /// On this encrypted input.
    pub body: Vec<u8>,
}

/// A computed job.
pub struct Outcome {
    /// Whose.
    pub session: SessionKey,
    /// Which.
    pub number: JobNumber,
    /// The encrypted result; none if the evaluation failed in itself.
    pub result: Option<Result<Vec<u8>, EvaluationError>>,
    /// How long it took.
    pub compute: Duration,
}

/// A handle to the evaluation pool.
pub struct Evaluator {
    queue: mpsc::Sender<Job>,
}

impl Evaluator {
    /// Starts the pool.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn start(
        threads: usize,
        queue_len: usize,
        outcomes: mpsc::Sender<Outcome>,
    ) -> anyhow::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("evaluate-{index}"))
            .build()?;
        let (queue, mut jobs) = mpsc::channel::<Job>(queue_len);
        std::thread::Builder::new().name("evaluate".to_owned()).spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                let start = Instant::now();
                let evaluate = || pool.install(|| job.model.evaluate(&job.keys, &job.body));
                let result = std::panic::catch_unwind(AssertUnwindSafe(evaluate)).ok();
                let Job { session, number, .. } = job;
                let outcome = Outcome { session, number, result, compute: start.elapsed() };
                if outcomes.blocking_send(outcome).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { queue })
    }

    /// Queues a job. False if the queue is full.
    #[must_use]
    pub fn submit(&self, job: Job) -> bool {
        self.queue.try_send(job).is_ok()
    }
}
