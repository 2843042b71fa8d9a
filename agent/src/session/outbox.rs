//! Outcomes of jobs on their way to onboard software.
//!
//! Invariants:
//! - outcomes are published one after the other, in the order in which they were handed over;
//! - a job leaves the spool after its outcome was taken onboard, not before: a crash in between
//!   repeats an outcome, with the same number, and never loses one;
//! - handing over never waits, however long the onboard link is down.

use std::sync::Arc;

use moai_transport::ids::{JobNumber, SessionId, TaskId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::jobs::MAX_WAITING;
use crate::onboard::{Answer, Refusal, ReplyTo};
use crate::services::Services;

/// Room for every job's outcome, and as many refusals of what became no job.
const QUEUE_LEN: usize = 2 * MAX_WAITING;

/// What became of a job, or of something that never became one.
pub(super) enum Outcome {
    /// Decrypted.
    Answer(Box<Answer>),
    /// Refused.
    Refusal(Refusal),
}

/// The job, what became of it, and where that is wanted too.
type Item = (Option<JobNumber>, Outcome, Option<ReplyTo>);

/// The way of outcomes to onboard software.
pub(super) struct Outbox {
    queue: mpsc::Sender<Item>,
    done: mpsc::Receiver<bool>,
    pending: usize,
    /// Everything so far was taken onboard and has left the spool.
    is_clean: bool,
}

impl Outbox {
    pub(super) fn start(services: Arc<Services>, task: TaskId, session: SessionId) -> Self {
        let (queue, items) = mpsc::channel(QUEUE_LEN);
        let (told, done) = mpsc::channel(QUEUE_LEN);
        let carrier = Carrier { services, task, session, told };
        tokio::spawn(carrier.run(items));
        Self { queue, done, pending: 0, is_clean: true }
    }

    /// Hands an outcome over. A job's always fits, because sessions count what is under way here
    /// as waiting.
    pub(super) fn push(
        &mut self,
        number: Option<JobNumber>,
        outcome: Outcome,
        reply: Option<ReplyTo>,
    ) {
        if self.queue.try_send((number, outcome, reply)).is_ok() {
            self.pending += 1;
        } else {
            self.is_clean &= number.is_none();
            tracing::warn!("too many refusals wait for the onboard broker; one is dropped");
        }
    }

    /// How many are under way.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Waits for the next one to arrive; for ever if none is under way.
    pub(super) async fn arrived(&mut self) {
        match self.done.recv().await {
            Some(taken) => {
                self.pending = self.pending.saturating_sub(1);
                self.is_clean &= taken;
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until all have arrived. False if something stays in the spool.
    pub(super) async fn close(mut self) -> bool {
        drop(self.queue);
        while let Some(taken) = self.done.recv().await {
            self.pending = self.pending.saturating_sub(1);
            self.is_clean &= taken;
        }
        self.is_clean && self.pending == 0
    }
}

/// The one task that publishes a session's outcomes.
struct Carrier {
    services: Arc<Services>,
    task: TaskId,
    session: SessionId,
    told: mpsc::Sender<bool>,
}

impl Carrier {
    async fn run(self, mut items: mpsc::Receiver<Item>) {
        let mut removals = JoinSet::new();
        while let Some((number, outcome, reply)) = items.recv().await {
            let taken = match &outcome {
                Outcome::Answer(answer) => {
                    self.services.onboard.answer(&self.task, answer, reply.as_ref()).await
                }
                Outcome::Refusal(refusal) => {
                    self.services.onboard.refuse(&self.task, refusal, reply.as_ref()).await
                }
            };
            if taken {
                self.services.board.update(&self.task, |status| match outcome {
                    Outcome::Answer(_) => status.answered += 1,
                    Outcome::Refusal(_) => status.refused += 1,
                });
            }
            let Some(number) = number.filter(|_| taken) else {
                // A session that has gone needs no news.
                let _ = self.told.send(taken).await;
                continue;
            };
            // Publications keep their order; removals share one flush.
            let (services, session, told) =
                (Arc::clone(&self.services), self.session.clone(), self.told.clone());
            removals.spawn(async move {
                let removed = services.spool.remove(&session, number).await;
                if let Err(error) = &removed {
                    tracing::error!(%session, %number, %error, "an ended job stays in the spool");
                }
                let _ = told.send(removed.is_ok()).await;
            });
            while removals.try_join_next().is_some() {}
        }
        removals.join_all().await;
    }
}
