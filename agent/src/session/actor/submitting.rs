//! A window's way to a job that waits.
//!
//! Invariants:
//! - a job waits in memory only after the spool has taken it;
//! - a job that gives way to a newer one is told and has left the spool before that has its place.

use moai_transport::ids::JobNumber;
use tokio::time::Instant;

use super::Actor;
use crate::audit::AuditEvent;
use crate::onboard::Code;
use crate::secrets::OsEntropy;
use crate::session::Input;
use crate::session::jobs::{MAX_WAITING, Made};
use crate::session::lifecycle::DrainReason;
use crate::session::outbox::Outcome;
use crate::spool::{NewJob, Order, SpoolError};

impl Actor {
    pub(super) async fn submit(&mut self, input: Input) {
        if self.backlog() >= MAX_WAITING && !self.gives_way().await {
            let message =
                format!("{MAX_WAITING} windows wait for an answer already; this one is dropped");
            return self.refuse(Code::BacklogFull, message, input.reply);
        }
        let Some(engine) = &self.engine else { return };
        let started = Instant::now();
        let encrypted = engine.encrypt(&self.record.facts.card, &input.levels, &mut OsEntropy);
        let reply = input.reply;
        let body = match encrypted {
            Ok(body) => body,
            Err(error) => return self.refuse(Code::NotEncrypted, error.to_string(), reply),
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
                self.issued = number.0;
                if self.issued == self.services.decryption_budget {
                    let session = self.record.id.clone();
                    self.services.audit.record(AuditEvent::BudgetExhausted { session });
                }
                let made = Made { at: input.arrived, encrypt, reply };
                self.jobs.insert(job.numbered(number), Some(made), Instant::now());
            }
            Err(error) => {
                self.refuse(error.code(), error.to_string(), reply);
                if let SpoolError::NumbersLost = error {
                    self.drain(DrainReason::Rotated).await;
                }
            }
        }
    }

    /// Jobs in memory: answers that onboard software has not taken yet have to be kept too.
    fn backlog(&self) -> usize {
        self.jobs.len() + self.decided.len() + self.outbox.pending()
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
        if self.order() == Order::OldestFirst {
            return false;
        }
        let Some((number, job)) = self.jobs.remove_oldest() else { return false };
        let message = "newer windows took the job's place before it was answered".to_owned();
        let refusal = self.refusal(Code::Dropped, number, message);
        self.decide(number, Outcome::Refusal(refusal), job.reply());
        let revoked = self.membership.revoked().clone();
        while self.outbox.pending() > 0 {
            tokio::select! {
                () = revoked.cancelled() => return false,
                () = self.outbox.arrived() => {}
            }
        }
        true
    }

    /// Which of its jobs go first.
    pub(super) fn order(&self) -> Order {
        self.services.order(&self.record.facts.task)
    }

    /// Ends the jobs that have waited for too long.
    pub(super) fn drop_old(&mut self) {
        let (now, max_age) = (self.services.clock.boot(), self.services.max_age);
        while let Some((number, job)) = self.jobs.remove_older(now.before(max_age)) {
            let message = format!("the job was not answered within {} s", max_age.as_secs());
            let refusal = self.refusal(Code::Expired, number, message);
            self.decide(number, Outcome::Refusal(refusal), job.reply());
        }
    }
}
