//! The jobs of one session that wait for an answer.
//!
//! Invariants:
//! - a job is here from its acceptance by the spool until its answer or refusal is decided;
//! - it leaves exactly once, so at most one decryption answers it;
//! - at most [`MAX_IN_FLIGHT`] jobs are with the server at a time, in the task's order.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use moai_transport::ids::JobNumber;
use tokio::time::Instant;

use crate::clock::BootInstant;
use crate::onboard::ReplyTo;
use crate::spool::{Order, SpooledJob};

/// Jobs with the server at a time.
pub(super) const MAX_IN_FLIGHT: usize = 8;
/// Jobs that may wait in one session.
pub const MAX_WAITING: usize = 16_384;
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
    accepted: BootInstant,
    delivery: Delivery,
}

impl WaitingJob {
    /// Where its outcome is wanted too.
    pub(super) fn reply(self) -> Option<ReplyTo> {
        self.made.and_then(|made| made.reply)
    }

    fn is_sent(&self) -> bool {
        matches!(self.delivery, Delivery::Sent(_))
    }

    fn is_due(&self, now: Instant) -> bool {
        matches!(self.delivery, Delivery::Due(not_before) if not_before <= now)
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
pub(super) struct Jobs {
    waiting: BTreeMap<JobNumber, WaitingJob>,
    /// How many of them are with the server.
    in_flight: usize,
}

impl Jobs {
    /// Takes a spooled job in.
    pub(super) fn insert(&mut self, job: SpooledJob, made: Option<Made>, now: Instant) {
        let delivery = Delivery::Due(now);
        let SpooledJob { number, body, plain_len, accepted } = job;
        let body = Bytes::from(body);
        let waiting = WaitingJob { body, plain_len, made, frame_len: 0, accepted, delivery };
        if let Some(before) = self.waiting.insert(number, waiting) {
            self.in_flight -= usize::from(before.is_sent());
        }
    }

    /// The job leaves: it was answered or refused.
    pub(super) fn remove(&mut self, number: JobNumber) -> Option<WaitingJob> {
        let job = self.waiting.remove(&number)?;
        self.in_flight -= usize::from(job.is_sent());
        Some(job)
    }

    /// The oldest job leaves.
    pub(super) fn remove_oldest(&mut self) -> Option<(JobNumber, WaitingJob)> {
        let number = *self.waiting.first_key_value()?.0;
        Some((number, self.remove(number)?))
    }

    /// The oldest job leaves if it was made before `then`.
    pub(super) fn remove_older(&mut self, then: BootInstant) -> Option<(JobNumber, WaitingJob)> {
        let (_, oldest) = self.waiting.first_key_value()?;
        if oldest.accepted < then { self.remove_oldest() } else { None }
    }

    /// Every job leaves.
    pub(super) fn take_all(&mut self) -> Vec<(JobNumber, Option<ReplyTo>)> {
        self.in_flight = 0;
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().map(|(number, job)| (number, job.reply())).collect()
    }

    /// The lowest number that waits.
    pub(super) fn oldest(&self) -> Option<JobNumber> {
        self.waiting.first_key_value().map(|(number, _)| *number)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The first job that may be sent now; it counts as sent from here on.
    pub(super) fn next_due(&mut self, order: Order, now: Instant) -> Option<(JobNumber, Bytes)> {
        if self.in_flight >= MAX_IN_FLIGHT {
            return None;
        }
        let mut jobs = self.waiting.iter_mut();
        let is_due = |(_, job): &(&JobNumber, &mut WaitingJob)| job.is_due(now);
        let (number, job) = match order {
            Order::OldestFirst => jobs.find(is_due),
            Order::NewestFirst => jobs.rfind(is_due),
        }?;
        job.delivery = Delivery::Sent(now);
        self.in_flight += 1;
        Some((*number, job.body.clone()))
    }

    /// The frame that carried a job had this length.
    pub(super) fn note_frame(&mut self, number: JobNumber, frame_len: usize) {
        if let Some(job) = self.waiting.get_mut(&number) {
            job.frame_len = frame_len;
        }
    }

    /// A job has to be sent again, after `pause`.
    pub(super) fn retry(&mut self, number: JobNumber, now: Instant, pause: Duration) {
        if let Some(job) = self.waiting.get_mut(&number) {
            self.in_flight -= usize::from(job.is_sent());
            job.delivery = Delivery::Due(now + pause);
        }
    }

    /// Every job has to be sent again: the server or the link is another one.
    pub(super) fn retry_all(&mut self, now: Instant) {
        self.in_flight = 0;
        for job in self.waiting.values_mut() {
            job.delivery = Delivery::Due(now);
        }
    }

    /// Whether a job has been with the server for longer than any answer takes.
    pub(super) fn any_overdue(&self, now: Instant) -> bool {
        self.waiting
            .values()
            .any(|job| matches!(job.delivery, Delivery::Sent(since) if now >= since + RESEND_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(count: u64, now: Instant) -> Jobs {
        let mut jobs = Jobs::default();
        for number in 1..=count {
            let job = SpooledJob {
                number: JobNumber(number),
                body: vec![],
                plain_len: 0,
                accepted: BootInstant(number * 100),
            };
            jobs.insert(job, None, now);
        }
        jobs
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_first_and_never_more_than_the_limit_in_flight() {
        let now = Instant::now();
        let mut jobs = jobs(20, now);
        let sent: Vec<u64> = std::iter::from_fn(|| jobs.next_due(Order::OldestFirst, now))
            .map(|(number, _)| number.0)
            .collect();
        assert_eq!(sent, (1..=MAX_IN_FLIGHT as u64).collect::<Vec<_>>());
        assert!(jobs.remove(JobNumber(3)).is_some());
        assert!(jobs.remove(JobNumber(3)).is_none());
        assert_eq!(
            jobs.next_due(Order::OldestFirst, now).unwrap().0,
            JobNumber(MAX_IN_FLIGHT as u64 + 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_has_to_wait_waits_and_others_pass() {
        let now = Instant::now();
        let mut jobs = jobs(2, now);
        jobs.retry(JobNumber(1), now, Duration::from_secs(1));
        assert_eq!(jobs.next_due(Order::OldestFirst, now).unwrap().0, JobNumber(2));
        assert!(jobs.next_due(Order::OldestFirst, now).is_none());
        let later = now + Duration::from_secs(1);
        assert_eq!(jobs.next_due(Order::OldestFirst, later).unwrap().0, JobNumber(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_job_becomes_overdue() {
        let now = Instant::now();
        let mut jobs = jobs(1, now);
        jobs.next_due(Order::OldestFirst, now);
        assert!(!jobs.any_overdue(now + RESEND_AFTER - Duration::from_millis(1)));
        assert!(jobs.any_overdue(now + RESEND_AFTER));
    }

    #[tokio::test(start_paused = true)]
    async fn newest_first_sends_the_newest_and_lets_the_oldest_go() {
        let now = Instant::now();
        let mut jobs = jobs(3, now);
        let next = |jobs: &mut Jobs| jobs.next_due(Order::NewestFirst, now).unwrap().0.0;
        assert_eq!((next(&mut jobs), next(&mut jobs)), (3, 2));
        jobs.retry(JobNumber(3), now, Duration::ZERO);
        assert_eq!(next(&mut jobs), 3);
        assert_eq!(jobs.remove_oldest().unwrap().0, JobNumber(1));
        assert!(jobs.next_due(Order::NewestFirst, now).is_none());
        assert_eq!(jobs.in_flight, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_old_leave_and_what_has_left_makes_room_in_flight() {
        let now = Instant::now();
        let mut jobs = jobs(20, now);
        while jobs.next_due(Order::OldestFirst, now).is_some() {}
        let then = BootInstant(500);
        let left: Vec<u64> =
            std::iter::from_fn(|| jobs.remove_older(then)).map(|it| it.0.0).collect();
        assert_eq!(left, [1, 2, 3, 4]);
        let sent = std::iter::from_fn(|| jobs.next_due(Order::OldestFirst, now));
        assert_eq!(sent.map(|(number, _)| number.0).collect::<Vec<_>>(), [9, 10, 11, 12]);
        jobs.retry_all(now);
        assert_eq!(jobs.next_due(Order::OldestFirst, now).unwrap().0, JobNumber(5));
    }
}
