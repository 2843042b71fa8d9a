//! A window's way to a job that waits.
//!
//! Invariants:
//! - a job waits in memory only after the spool has taken it;
//! - a job that gives way to a newer one is told and has left the spool before that has its place;
//!   meanwhile the newer one is held, few more behind it, and the session does whatever else there is
//!   to do.

use std::collections::VecDeque;
use std::time::Duration;

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

/// Windows that wait behind the first one that is held.
const MAX_BEHIND: usize = 16;

/// Windows that wait for the place of an older one.
#[derive(Default)]
pub(super) struct Held {
    first: Option<Encrypted>,
    behind: VecDeque<Input>,
}

/// A window that needs nothing but a place.
struct Encrypted {
    input: Input,
    job: NewJob,
    encrypt: Duration,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.behind.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.behind.len()
    }

    /// All windows, as they came.
    pub(super) fn take_all(&mut self) -> Vec<Input> {
        let first = self.first.take().map(|first| first.input);
        first.into_iter().chain(self.behind.drain(..)).collect()
    }
}

impl Actor {
    pub(super) async fn submit(&mut self, input: Input) {
        if self.held.first.is_some() {
            return self.hold_behind(input);
        }
        if self.backlog() >= MAX_WAITING && self.order() == Order::OldestFirst {
            return self.refuse_crowded(input);
        }
        let Some(engine) = &self.engine else { return };
        let started = Instant::now();
        let encrypted = engine.encrypt(&self.record.facts.card, &input.levels, &mut OsEntropy);
        let body = match encrypted {
            Ok(body) => body,
            Err(error) => return self.refuse(Code::NotEncrypted, error.to_string(), input.reply),
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
        self.place(Encrypted { input, job, encrypt }).await;
    }

    /// Something has left the spool: what was held may have its place.
    pub(super) async fn place_held(&mut self) {
        if let Some(first) = self.held.first.take() {
            self.place(first).await;
        }
        while self.held.first.is_none() {
            let Some(next) = self.held.behind.pop_front() else { return };
            self.submit(next).await;
        }
    }

    fn hold_behind(&mut self, input: Input) {
        self.held.behind.push_back(input);
        if self.held.behind.len() > MAX_BEHIND
            && let Some(oldest) = self.held.behind.pop_front()
        {
            let message = "newer windows took its place before there was room".to_owned();
            self.refuse(Code::Dropped, message, oldest.reply);
        }
    }

    /// Puts a job into the spool; where the newest counts, in the place of the oldest.
    async fn place(&mut self, window: Encrypted) {
        if self.backlog() >= MAX_WAITING {
            if self.gives_way() {
                self.held.first = Some(window);
            } else {
                self.refuse_crowded(window.input);
            }
            return;
        }
        match self.services.spool.append(window.job.clone()).await {
            Ok(number) => {
                self.issued = number.0;
                if self.issued == self.services.decryption_budget {
                    let session = self.record.id.clone();
                    self.services.audit.record(AuditEvent::BudgetExhausted { session });
                }
                let Encrypted { input, job, encrypt } = window;
                let made = Made { at: input.arrived, encrypt, reply: input.reply };
                self.jobs.insert(job.numbered(number), Some(made), Instant::now());
            }
            Err(SpoolError::Full { .. }) if self.gives_way() => self.held.first = Some(window),
            Err(error) => {
                self.refuse(error.code(), error.to_string(), window.input.reply);
                if let SpoolError::NumbersLost = error {
                    self.drain(DrainReason::Rotated).await;
                }
            }
        }
    }

    fn refuse_crowded(&mut self, input: Input) {
        let message =
            format!("{MAX_WAITING} windows wait for an answer already; this one is dropped");
        self.refuse(Code::BacklogFull, message, input.reply);
    }

    /// Jobs in memory: answers that onboard software has not taken yet have to be kept too.
    fn backlog(&self) -> usize {
        self.jobs.len() + self.decided.len() + self.outbox.pending()
    }

    /// Whether there will be a place for a newer job: one leaves already, or the oldest does now.
    fn gives_way(&mut self) -> bool {
        if self.order() == Order::OldestFirst {
            return false;
        }
        if self.outbox.pending() > 0 {
            return true;
        }
        let Some((number, job)) = self.jobs.remove_oldest() else { return false };
        let message = "newer windows took the job's place before it was answered".to_owned();
        let refusal = self.refusal(Code::Dropped, number, message);
        self.decide(number, Outcome::Refusal(refusal), job.reply());
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
