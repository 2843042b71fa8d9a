//! The sessions of a task: the current one, its successor, and those that drain.
//!
//! Invariants: see the task's.

use std::sync::Arc;

use moai_transport::ids::SessionId;
use tokio::time::Instant;

use super::{RETRY_PAUSE, Task, Work};
use crate::onboard::{Code, Refusal};
use crate::session::lifecycle::{DrainReason, EndReason};
use crate::session::{self, Purpose, SessionHandle, SessionReport, StartError};
use crate::vault::{EndedFacts, SessionRecord};

impl Task {
    /// Goes on with the sessions the vault has kept, oldest first, each in the state it was in.
    pub(crate) async fn resume(&mut self, records: Vec<SessionRecord>) {
        let active = records.iter().rposition(|record| record.facts.state.is_active());
        let first = records.iter().position(|record| record.facts.state.draining().is_none());
        let current = active.or(first);
        for (index, record) in records.into_iter().enumerate() {
            let (id, facts) = (record.id.clone(), record.facts.clone());
            let is_current = Some(index) == current;
            let (services, reports) = (Arc::clone(&self.services), self.reports.clone());
            let session = match session::resume(services, record, !is_current, reports).await {
                Ok(session) => session,
                Err(error) => {
                    tracing::error!(session = %id, %error, "session cannot resume");
                    continue;
                }
            };
            self.live += 1;
            facts.card.id().clone_into(&mut self.model);
            if facts.state.draining().is_some() {
                continue;
            }
            if self.work.is_none() {
                self.work = Work::new(Purpose {
                    task: facts.task,
                    card: Arc::new(facts.card),
                    ttl: facts.ttl,
                    release: facts.release,
                });
            }
            let Some(work) = &mut self.work else { continue };
            if is_current {
                work.renews |= session.is_short();
                work.current = Some(session);
            } else if Some(index) > current && work.successor.is_none() {
                work.renews = true;
                work.successor = Some(session);
            } else {
                // Another was active after it.
                session.drain(DrainReason::Rotated).await;
            }
        }
    }

    /// Goes on telling the jobs of sessions that have ended.
    pub(crate) async fn bid(&mut self, ended: Vec<(SessionId, EndedFacts)>) {
        for (id, facts) in ended {
            let (services, reports) = (Arc::clone(&self.services), self.reports.clone());
            match session::bid(services, id.clone(), facts, reports).await {
                Ok(()) => self.live += 1,
                Err(error) => tracing::error!(session = %id, %error, "jobs cannot be told"),
            }
        }
    }

    /// No session holds the task up any more.
    pub(super) async fn go_on(&mut self) {
        if let Some(work) = &mut self.work {
            (work.retry_at, work.is_held) = (None, false);
        }
        self.provide().await;
    }

    /// Sees to it that there is a session to take jobs, and a successor if there is to be one.
    pub(super) async fn provide(&mut self) {
        let Some(work) = &mut self.work else { return };
        if work.current.is_none() {
            if let Some(session) = work.successor.take() {
                let id = session.id.clone();
                work.take_on(session);
                self.show("opening", Some(id), None).await;
                return self.activate().await;
            }
        } else if !work.renews || work.successor.is_some() {
            return;
        }
        if work.retry_at.is_some() || work.is_held {
            return;
        }
        let is_successor = work.current.is_some();
        let stands_by = is_successor || work.follows.is_some();
        let (services, reports) = (Arc::clone(&self.services), self.reports.clone());
        match session::open(services, work.purpose.clone(), stands_by, reports).await {
            Ok(session) => {
                self.live += 1;
                if is_successor {
                    work.successor = Some(session);
                } else {
                    work.take_on(session);
                }
                self.show_sessions();
            }
            Err(error) => {
                match error {
                    StartError::Held => work.is_held = true,
                    _ => work.retry_at = Some(Instant::now() + RETRY_PAUSE),
                }
                tracing::error!(task = %self.id, %error, "no session can be opened yet");
                self.suffers_from(Some(error.to_string()));
                if !is_successor {
                    self.show("opening", None, Some(error.to_string())).await;
                }
            }
        }
    }

    /// A window waits and the current session may take no more: the next takes over, ready or not.
    pub(super) async fn make_room(&mut self) {
        let Some(work) = &mut self.work else { return };
        let is_full = work.current.as_ref().is_some_and(SessionHandle::is_full);
        if is_full && !self.pending.is_empty() {
            work.retire().await;
            self.provide().await;
        }
    }

    /// The successor is ready: jobs go to it from here on.
    async fn succeed(&mut self) {
        let Some(work) = &mut self.work else { return };
        let Some(session) = work.successor.take() else { return };
        work.retire().await;
        work.take_on(session);
        self.show_sessions();
        self.activate().await;
    }

    /// Activates the current session, unless the one before it has not said yet that it drains.
    async fn activate(&mut self) {
        let Some(work) = &mut self.work else { return };
        if let (Some(current), None) = (&work.current, &work.follows) {
            current.activate().await;
        }
    }

    /// The session before the current one takes nothing more.
    async fn before_ceased(&mut self) {
        if let Some(work) = &mut self.work {
            work.follows = None;
        }
        self.activate().await;
    }

    /// The task has no sessions of its own any more; they finish what they have.
    pub(super) async fn retire_all(&mut self, reason: DrainReason) {
        let Some(work) = self.work.take() else { return };
        for session in work.current.into_iter().chain(work.successor) {
            session.drain(reason).await;
        }
    }

    pub(super) async fn report(&mut self, id: SessionId, report: SessionReport) {
        let work = self.work.as_mut();
        let is = |session: Option<&SessionHandle>| session.is_some_and(|it| it.id == id);
        let is_current = is(work.as_ref().and_then(|work| work.current.as_ref()));
        let is_successor = is(work.as_ref().and_then(|work| work.successor.as_ref()));
        let is_followed = work.as_ref().is_some_and(|work| work.follows.as_ref() == Some(&id));
        match report {
            SessionReport::Opening(reason) if is_current => {
                self.suffers_from(reason.clone());
                self.show("opening", Some(id), reason).await;
            }
            SessionReport::Active if is_current => {
                self.suffers_from(None);
                self.show("active", Some(id), None).await;
            }
            SessionReport::Ready if is_successor => self.succeed().await,
            SessionReport::Ageing if is_current => {
                if let Some(work) = work {
                    work.renews = true;
                }
                self.provide().await;
            }
            SessionReport::Draining if is_followed => self.before_ceased().await,
            SessionReport::Draining if self.work.is_none() && self.opening.is_none() => {
                self.show("draining", Some(id), None).await;
            }
            SessionReport::Opening(_)
            | SessionReport::Ready
            | SessionReport::Active
            | SessionReport::Ageing
            | SessionReport::Draining => {}
            SessionReport::Ended { reason, returned } => {
                if is_followed {
                    self.before_ceased().await;
                }
                self.take_back(returned).await;
                self.ended(is_current, is_successor, &reason).await;
                if self.work.is_none() {
                    self.refuse_pending().await;
                }
            }
            SessionReport::Told(reason) => {
                self.live = self.live.saturating_sub(1);
                if self.live == 0 && self.work.is_none() && self.opening.is_none() {
                    self.suffers_from(None);
                    self.show("ended", None, Some(reason.text())).await;
                }
            }
        }
    }

    async fn ended(&mut self, was_current: bool, was_successor: bool, reason: &EndReason) {
        let Some(work) = &mut self.work else { return };
        if was_successor {
            work.successor = None;
            if let EndReason::Failed(_) = reason {
                work.retry_at = Some(Instant::now() + RETRY_PAUSE);
            }
            self.show_sessions();
            return self.provide().await;
        }
        if !was_current {
            return;
        }
        work.current = None;
        if let EndReason::Failed(why) = reason {
            let next = work.opened + RETRY_PAUSE;
            work.retry_at = (next > Instant::now()).then_some(next);
            let why = why.clone();
            self.refuse(Refusal::new(Code::SessionFailed, why.clone()), None).await;
            self.suffers_from(Some(why.clone()));
            self.show("opening", None, Some(why)).await;
        }
        self.show_sessions();
        self.provide().await;
    }

    pub(super) fn show_sessions(&self) {
        let name = |session: &SessionHandle| session.id.to_string();
        let work = self.work.as_ref();
        let session = work.and_then(|work| work.current.as_ref()).map(name);
        let successor = work.and_then(|work| work.successor.as_ref()).map(name);
        self.services.board.update(&self.id, |status| {
            status.session.clone_from(&session);
            status.successor.clone_from(&successor);
        });
    }
}

impl Work {
    /// Jobs go to this session from here on.
    fn take_on(&mut self, session: SessionHandle) {
        self.renews = false;
        self.opened = Instant::now();
        self.current = Some(session);
    }

    /// Jobs go to the current session no longer.
    async fn retire(&mut self) {
        if let Some(before) = self.current.take() {
            before.drain(DrainReason::Rotated).await;
            self.follows = Some(before.id);
        }
    }
}
