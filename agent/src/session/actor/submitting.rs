//! A window's way to a job that waits.
//!
//! Invariants:
//! - a job waits in memory only after the spool has taken it;
//! - a job that gives way to a newer one is told first and leaves the spool then.

use moai_transport::ids::JobNumber;
use tokio::time::Instant;

use super::Actor;
use crate::onboard::Code;
use crate::secrets::OsEntropy;
use crate::session::jobs::{MAX_WAITING, Made};
use crate::session::{EndReason, Input};
use crate::spool::{NewJob, Order, SpoolError};

impl Actor {
    pub(super) async fn submit(&mut self, input: Input) {
        if self.jobs.len() >= MAX_WAITING && !self.gives_way().await {
            let message =
                format!("{MAX_WAITING} windows wait for an answer already; this one is dropped");
            return self.refuse(Code::BacklogFull, message, input.reply.as_ref()).await;
        }
        let card = &self.record.facts.card;
        let started = Instant::now();
        let encrypted = self.engine.encrypt(card, &input.levels, &mut OsEntropy);
        let reply = input.reply;
        let body = match encrypted {
            Ok(body) => body,
            Err(error) => {
                let message = error.to_string();
                return self.refuse(Code::NotEncrypted, message, reply.as_ref()).await;
            }
        };
        let encrypt = input.features + started.elapsed();
        let job = NewJob {
            session: self.record.id.clone(),
            era: self.record.facts.era,
            task: self.record.facts.task.clone(),
            accepted: self.services.clock.boot(),
            body,
            plain_len: input.plain_len,
        };
        match self.spool(&job).await {
            Ok(number) => {
                let made = Made { at: input.arrived, encrypt, reply };
                self.jobs.insert(job.numbered(number), Some(made), Instant::now());
            }
            Err(error) => {
                self.refuse(error.code(), error.to_string(), reply.as_ref()).await;
                if let SpoolError::NumbersLost = error {
                    self.drain(EndReason::Rotated).await;
                }
            }
        }
    }

    async fn spool(&mut self, job: &NewJob) -> Result<JobNumber, SpoolError> {
        loop {
            match self.services.spool.append(job.clone()).await {
                Err(SpoolError::Full { .. }) if self.gives_way().await => {}
                result => return result,
            }
        }
    }

    /// Whether the oldest job has given way to a newer one.
    async fn gives_way(&mut self) -> bool {
        if self.services.order(&self.record.facts.task) == Order::OldestFirst {
            return false;
        }
        let Some((number, job)) = self.jobs.remove_oldest() else { return false };
        let message = "newer windows took the job's place before it was answered".to_owned();
        let refusal = self.refusal(Code::Dropped, number, message);
        self.tell(&refusal, job.reply().as_ref()).await;
        let removed = self.services.spool.remove(&self.record.id, number).await;
        removed
            .inspect_err(|error| {
                tracing::error!(session = %self.record.id, %number, %error, "a dropped job stays in the spool");
            })
            .is_ok()
    }

    /// Ends the jobs that have waited for too long.
    pub(super) fn drop_old(&mut self) {
        let (now, max_age) = (self.services.clock.boot(), self.services.max_age);
        while let Some((number, job)) = self.jobs.remove_older(now.before(max_age)) {
            let message = format!("the job was not answered within {} s", max_age.as_secs());
            let refusal = self.refusal(Code::Expired, number, message);
            self.release(number, Err(refusal), job.reply());
        }
    }
}
