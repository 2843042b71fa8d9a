//! The jobs of one session that wait for an answer.
//!
//! Invariants:
//! - a job is here from its acceptance by the spool until its answer or refusal is decided;
//! - it leaves exactly once, so at most one decryption answers it;
//! - at most [`MAX_IN_FLIGHT`] jobs are with the server at a time, oldest first.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use moai_transport::ids::JobNumber;
use tokio::time::Instant;

use crate::onboard::ReplyTo;
use crate::spool::SpooledJob;

/// Jobs with the server at a time.
pub(super) const MAX_IN_FLIGHT: usize = 8;
/// Jobs that may wait in one session.
pub const MAX_WAITING: usize = 1024;
/// A job the server has not answered for so long is sent again.
const RESEND_AFTER: Duration = Duration::from_secs(30);

/// What is known of a job if it was this run of the agent that made it.
pub(super) struct Made {
    /// The window's last sample arrived.
    pub at: Instant,
    /// Features and encryption took.
    pub encrypt: Duration,
    /// Where the outcome is wanted too.
    pub reply: Option<ReplyTo>,
}

/// A job that waits.
pub(super) struct WaitingJob {
    /// The encrypted input.
    pub body: Bytes,
    /// Bytes of the samples in the clear.
    pub plain_len: u32,
    /// Its making; none if an earlier run of the agent made it.
    pub made: Option<Made>,
    /// Length of the frame that carried it; 0 until it was sent.
    pub frame_len: usize,
    delivery: Delivery,
}

impl WaitingJob {
    /// Where its outcome is wanted too.
    pub(super) fn reply(self) -> Option<ReplyTo> {
        self.made.and_then(|made| made.reply)
    }
}

#[derive(Clone, Copy)]
enum Delivery {
    /// Send it, but not before this instant.
    Due(Instant),
    /// With the server since.
    Sent(Instant),
}

/// Jobs by number.
#[derive(Default)]
pub(super) struct Jobs(BTreeMap<JobNumber, WaitingJob>);

impl Jobs {
    /// Takes a spooled job in.
    pub(super) fn insert(&mut self, job: SpooledJob, made: Option<Made>, now: Instant) {
        let delivery = Delivery::Due(now);
        let body = Bytes::from(job.body);
        let waiting = WaitingJob { body, plain_len: job.plain_len, made, frame_len: 0, delivery };
        self.0.insert(job.number, waiting);
    }

    /// The job leaves: it was answered or refused.
    pub(super) fn remove(&mut self, number: JobNumber) -> Option<WaitingJob> {
        self.0.remove(&number)
    }

    /// Every job leaves.
    pub(super) fn take_all(&mut self) -> BTreeMap<JobNumber, WaitingJob> {
        std::mem::take(&mut self.0)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The oldest job that may be sent now; it counts as sent from here on.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(JobNumber, Bytes)> {
        let in_flight =
            self.0.values().filter(|job| matches!(job.delivery, Delivery::Sent(_))).count();
        if in_flight >= MAX_IN_FLIGHT {
            return None;
        }
        let (number, job) = self.0.iter_mut().find(
            |(_, job)| matches!(job.delivery, Delivery::Due(not_before) if not_before <= now),
        )?;
        job.delivery = Delivery::Sent(now);
        Some((*number, job.body.clone()))
    }

    /// The frame that carried a job had this length.
    pub(super) fn note_frame(&mut self, number: JobNumber, frame_len: usize) {
        if let Some(job) = self.0.get_mut(&number) {
            job.frame_len = frame_len;
        }
    }

    /// A job has to be sent again, after `pause`.
    pub(super) fn retry(&mut self, number: JobNumber, now: Instant, pause: Duration) {
        if let Some(job) = self.0.get_mut(&number) {
            job.delivery = Delivery::Due(now + pause);
        }
    }

    /// Every job has to be sent again: the server or the link is another one.
    pub(super) fn retry_all(&mut self, now: Instant) {
        for job in self.0.values_mut() {
            job.delivery = Delivery::Due(now);
        }
    }

    /// Whether a job has been with the server for longer than any answer takes.
    pub(super) fn any_overdue(&self, now: Instant) -> bool {
        self.0
            .values()
            .any(|job| matches!(job.delivery, Delivery::Sent(since) if now >= since + RESEND_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootInstant;

    fn jobs(count: u64, now: Instant) -> Jobs {
        let mut jobs = Jobs::default();
        for number in 1..=count {
            let job = SpooledJob {
                number: JobNumber(number),
                body: vec![],
                plain_len: 0,
                accepted: BootInstant(0),
            };
            jobs.insert(job, None, now);
        }
        jobs
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_first_and_never_more_than_the_limit_in_flight() {
        let now = Instant::now();
        let mut jobs = jobs(20, now);
        let sent: Vec<u64> =
            std::iter::from_fn(|| jobs.next_due(now)).map(|(number, _)| number.0).collect();
        assert_eq!(sent, (1..=MAX_IN_FLIGHT as u64).collect::<Vec<_>>());
        assert!(jobs.remove(JobNumber(3)).is_some());
        assert!(jobs.remove(JobNumber(3)).is_none());
        assert_eq!(jobs.next_due(now).unwrap().0, JobNumber(MAX_IN_FLIGHT as u64 + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_has_to_wait_waits_and_others_pass() {
        let now = Instant::now();
        let mut jobs = jobs(2, now);
        jobs.retry(JobNumber(1), now, Duration::from_secs(1));
        assert_eq!(jobs.next_due(now).unwrap().0, JobNumber(2));
        assert!(jobs.next_due(now).is_none());
        let later = now + Duration::from_secs(1);
        assert_eq!(jobs.next_due(later).unwrap().0, JobNumber(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_job_becomes_overdue() {
        let now = Instant::now();
        let mut jobs = jobs(1, now);
        jobs.next_due(now);
        assert!(!jobs.any_overdue(now + RESEND_AFTER - Duration::from_millis(1)));
        assert!(jobs.any_overdue(now + RESEND_AFTER));
    }
}
