//! Jobs: taken once, computed with their session's keys, answered.
//!
//! Invariants:
//! - a job that is sent twice to a worker is computed once, and its number is good for one input;
//! - a job whose keys are not in memory waits for them, and is not lost if they do not come: its
//!   robot hears of it and sends it again.

use std::sync::Arc;

use moai_transport::frame::Frame;
use moai_transport::ids::{Digest, JobNumber};
use moai_transport::message::{ErrorCode, MAX_JOBS};
use tokio::time::Instant;

use super::Service;
use crate::audit::Event;
use crate::engine::EngineError;
use crate::evaluator::{Job, Outcome};
use crate::refusal::Refused;
use crate::sessions::{KeptJob, Keys, Progress, Seen};
use crate::store::SessionKey;

impl Service {
    pub(super) async fn job(&mut self, key: &SessionKey, frame: Frame) -> Result<(), Refused> {
        let number = JobNumber(frame.claims.number);
        let session = self.session(key).await?;
        if session.keys != Keys::Ready {
            return Err(Refused(ErrorCode::UnknownSession, "its keys are not here yet".to_owned()));
        }
        let input = Digest::of(&frame.body);
        match session.seen(number) {
            Seen::New => {}
            Seen::Kept(job) if job.input != input => {
                let message = format!("job {number} has another input than before");
                return Err(Refused(ErrorCode::NumberReused, message));
            }
            Seen::Kept(job) => {
                if let Progress::Computed { model, body, compute } = job.progress.clone() {
                    self.say_result(key, number, model, &body, compute);
                }
                return Ok(());
            }
            Seen::Used => {
                let message = format!("job {number} was answered, and its answer is not kept");
                return Err(Refused(ErrorCode::Replayed, message));
            }
            Seen::Never => {
                let message = format!("a session has jobs 1 to {MAX_JOBS}; open another");
                return Err(Refused(ErrorCode::TooLarge, message));
            }
        }
        if frame.claims.context.as_ref() != Some(&session.manifest.context) {
            let message = "the job's context is not its session's".to_owned();
            return Err(Refused(ErrorCode::MalformedFrame, message));
        }
        let key_digest = session.manifest.key_digest;
        let tenant = &key.identity.tenant;
        let rules = self.rules(tenant)?;
        let max_jobs = rules.max_jobs;
        let mut models = self.engine.models();
        models.retain(|model| rules.sees(model));
        let model = frame.claims.model.filter(|model| models.contains(model));
        let Some(model) = model else {
            let models: Vec<String> = models.iter().map(ToString::to_string).collect();
            let message = format!("the models here are: {}", models.join(", "));
            return Err(Refused(ErrorCode::UnknownModel, message));
        };
        if self.sessions.under_way(tenant) >= max_jobs {
            let message =
                format!("{max_jobs} jobs of the tenant are under way, its limit max_jobs");
            return Err(Refused(ErrorCode::Busy, message));
        }
        let seen = KeptJob { input, progress: Progress::Computing(model.clone()) };
        let job = Job { session: key.clone(), number, model, body: frame.body };
        if let Some(keys) = self.prepared.get(key, key_digest) {
            if !self.evaluator.submit(job, keys) {
                return Err(Refused(ErrorCode::Busy, "too many jobs wait".to_owned()));
            }
            self.session(key).await?.note(number, seen);
        } else {
            let session = self.session(key).await?;
            session.waiting.push(job);
            session.note(number, seen);
            self.load(key);
        }
        Ok(())
    }

    /// Hands the jobs that waited for a session's keys to the evaluator.
    pub(super) fn submit_waiting(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.get(key, Instant::now()) else { return };
        let key_digest = session.manifest.key_digest;
        let waiting = std::mem::take(&mut session.waiting);
        for job in waiting {
            let number = job.number;
            let is_taken = self
                .prepared
                .get(key, key_digest)
                .is_some_and(|keys| self.evaluator.submit(job, keys));
            if !is_taken {
                let refused = Refused(ErrorCode::Busy, "too many jobs wait".to_owned());
                self.give_up(key, number, refused);
            }
        }
    }

    /// Refuses the jobs that waited for a session's keys; each may come again.
    pub(super) fn refuse_waiting(&mut self, key: &SessionKey, code: ErrorCode, message: &str) {
        let Some(session) = self.sessions.get(key, Instant::now()) else { return };
        for job in std::mem::take(&mut session.waiting) {
            self.give_up(key, job.number, Refused(code, message.to_owned()));
        }
    }

    fn give_up(&mut self, key: &SessionKey, number: JobNumber, refused: Refused) {
        if let Some(session) = self.sessions.get(key, Instant::now()) {
            session.forget(number);
        }
        self.refuse(key, number, refused);
    }

    pub(super) fn computed(&mut self, outcome: Outcome) {
        let Outcome { session: key, number, result, compute } = outcome;
        let Some(session) = self.sessions.get(&key, Instant::now()) else { return };
        let Some(KeptJob { input, progress: Progress::Computing(model) }) =
            session.kept(number).cloned()
        else {
            return;
        };
        let compute_ms = u64::try_from(compute.as_millis()).unwrap_or(u64::MAX);
        match result {
            Some(Ok(body)) => {
                tracing::info!(
                    identity = %key.identity, session = %key.session, job = number.0, %model,
                    context = %self.context, compute_ms, "job computed"
                );
                let body = Arc::new(body);
                let kept = Arc::clone(&body);
                let progress = Progress::Computed { model: model.clone(), body: kept, compute };
                session.note(number, KeptJob { input, progress });
                let event = Event::Computed { job: number.0, model: model.clone(), compute_ms };
                self.audit.record(&key, (self.clock)(), &event);
                self.say_result(&key, number, model, &body, compute);
            }
            Some(Err(error)) => {
                let code = match error {
                    EngineError::Keys(_) | EngineError::Input(_) => ErrorCode::MalformedCiphertext,
                    EngineError::UnknownModel(_) => ErrorCode::UnknownModel,
                };
                self.give_up(&key, number, Refused(code, error.to_string()));
            }
            None => {
                let message = "the evaluation failed".to_owned();
                self.give_up(&key, number, Refused(ErrorCode::Internal, message));
            }
        }
    }
}
