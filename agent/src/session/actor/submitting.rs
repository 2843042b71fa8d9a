//! A window's way to a job that waits.
//!
//! Invariants:
//! - a job waits in memory only after the spool has taken it;
//! - windows that came together become durable together, in their order;
//! - a job that gives way to a newer one is told and has left the spool before that has its place;
//!   meanwhile the newer one is held, few more behind it, and the session does whatever else there is
//!   to do;
//! - where nothing may be dropped, a window for which there is no room is held, and those behind it;
//!   the task hears of it and brings no more than are under way.

use std::collections::VecDeque;
use std::time::Duration;

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

    /// All windows, as they came.
    pub(super) fn take_all(&mut self) -> Vec<Input> {
        let first = self.first.take().map(|first| first.input);
        first.into_iter().chain(self.behind.drain(..)).collect()
    }
}

impl Actor {
    pub(super) async fn submit(&mut self, inputs: Vec<Input>) {
        let mut windows = Vec::new();
        for input in inputs {
            if self.held.first.is_some() {
                self.hold_behind(input);
            } else if self.backlog() + windows.len() >= MAX_WAITING && self.refuses() {
                self.refuse_crowded(input);
            } else {
                windows.extend(self.encrypt(input));
            }
        }
        self.place(windows).await;
    }

    fn encrypt(&mut self, input: Input) -> Option<Encrypted> {
        let engine = self.engine.as_ref()?;
        let started = Instant::now();
        let encrypted = engine.encrypt(&self.record.facts.card, &input.inputs, &mut OsEntropy);
        let body = match encrypted {
            Ok(body) => body,
            Err(error) => {
                self.refuse(Code::NotEncrypted, error.to_string(), input);
                return None;
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
        Some(Encrypted { input, job, encrypt })
    }

    /// Something has left the spool: what was held may have its place.
    pub(super) async fn place_held(&mut self) {
        if let Some(first) = self.held.first.take() {
            self.place(vec![first]).await;
        }
        if self.held.first.is_none() && !self.held.behind.is_empty() {
            let behind = self.held.behind.drain(..).collect();
            self.submit(behind).await;
        }
    }

    /// Tells its task whether windows are held, so that no more come, and whoever looks at the health.
    pub(super) fn tell_crowded(&self) {
        self.set_crowded(self.holds() && !self.held.is_empty());
    }

    pub(super) fn set_crowded(&self, is_crowded: bool) {
        let has_changed = self
            .crowding
            .send_if_modified(|crowded| std::mem::replace(crowded, is_crowded) != is_crowded);
        if has_changed {
            let why = "they are held up, as many windows wait for an answer as there is room for";
            let source = format!("inputs of task {}", self.record.facts.task);
            self.services.conditions.set(&source, is_crowded.then(|| why.to_owned()));
        }
    }

    fn hold_behind(&mut self, input: Input) {
        self.held.behind.push_back(input);
        if self.held.behind.len() > MAX_BEHIND
            && !self.holds()
            && let Some(oldest) = self.held.behind.pop_front()
        {
            let message = "newer windows took its place before there was room".to_owned();
            self.refuse(Code::Dropped, message, oldest);
        }
    }

    /// Puts jobs into the spool; where the newest counts, in the place of the oldest.
    async fn place(&mut self, mut windows: Vec<Encrypted>) {
        let room = MAX_WAITING.saturating_sub(self.backlog());
        let beyond = windows.split_off(room.min(windows.len()));
        let jobs: Vec<NewJob> = windows.iter().map(|window| window.job.clone()).collect();
        let taken = if jobs.is_empty() {
            Ok(Vec::new())
        } else {
            self.services.spool.append_all(jobs).await
        };
        let taken = taken.unwrap_or_else(|error| vec![Err(error); windows.len()]);
        let mut has_lost_numbers = false;
        for (window, taken) in windows.into_iter().zip(taken) {
            match taken {
                Ok(number) => self.placed(window, number),
                Err(error @ SpoolError::Full { .. }) => self.without_room(window, &error),
                Err(error) => {
                    has_lost_numbers |= matches!(error, SpoolError::NumbersLost);
                    self.refuse(error.code(), error.to_string(), window.input);
                }
            }
        }
        for window in beyond {
            self.without_place(window);
        }
        if has_lost_numbers {
            self.drain(DrainReason::Rotated).await;
        }
    }

    /// A window is a job, and on disk.
    fn placed(&mut self, window: Encrypted, number: JobNumber) {
        self.issued = number.0;
        if self.issued == self.budget {
            let session = self.record.id.clone();
            self.services.audit.record(AuditEvent::BudgetExhausted { session });
        }
        let Encrypted { input, job, encrypt } = window;
        let made = Made { at: input.arrived, encrypt, reply: input.settle() };
        self.jobs.insert(job.numbered(number), Some(made), Instant::now());
    }

    /// The spool has no room for a window.
    fn without_room(&mut self, window: Encrypted, full: &SpoolError) {
        if let Some(window) = self.hold(window) {
            self.refuse(full.code(), full.to_string(), window.input);
        }
    }

    /// The session has no room for a window.
    fn without_place(&mut self, window: Encrypted) {
        if let Some(window) = self.hold(window) {
            self.refuse_crowded(window.input);
        }
    }

    /// Keeps a window until there is room, or gives it back where it is to be refused.
    fn hold(&mut self, window: Encrypted) -> Option<Encrypted> {
        if self.held.first.is_some() {
            self.hold_behind(window.input);
        } else if self.holds() || self.gives_way() {
            self.held.first = Some(window);
        } else {
            return Some(window);
        }
        None
    }

    fn refuse_crowded(&mut self, input: Input) {
        let message =
            format!("{MAX_WAITING} windows wait for an answer already; this one is dropped");
        self.refuse(Code::BacklogFull, message, input);
    }

    fn holds(&self) -> bool {
        self.services.policy(&self.record.facts.task).holds()
    }

    /// Whether a window is refused for which there is no room.
    fn refuses(&self) -> bool {
        self.order() == Order::OldestFirst && !self.holds()
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
        self.services.policy(&self.record.facts.task).order
    }

    /// Ends the jobs that have waited for too long.
    pub(super) fn drop_old(&mut self) {
        let (now, max_age) = (self.services.clock.boot(), self.services.max_age());
        while let Some((number, job)) = self.jobs.remove_older(now.before(max_age)) {
            let message = format!("the job was not answered within {} s", max_age.as_secs());
            let refusal = self.refusal(Code::Expired, number, message);
            self.decide(number, Outcome::Refusal(refusal), job.reply());
        }
    }
}
