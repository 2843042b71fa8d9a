//! A task: a piece of work onboard software wants a model for.
//!
//! Invariants:
//! - one actor owns a task; it has at most one session that takes inputs;
//! - when a session of an open task ends, the next input finds a new one under way;
//! - samples that arrive before the model is known wait in the actor's bounded mailbox.

use std::sync::Arc;
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::ids::{SessionId, TaskId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::onboard::{Command, OpenRequest, Refusal, Samples, TaskState};
use crate::services::Services;
use crate::session::{self, EndReason, Input, SessionHandle, SessionReport};
use crate::ttl::TtlClass;
use crate::vault::SessionRecord;
use crate::window::WindowBuffer;

const REPORT_QUEUE_LEN: usize = 32;
/// A session that cannot be set up is tried again after this pause.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What an open task works with.
struct Work {
    card: Arc<ModelCard>,
    ttl: TtlClass,
    window: WindowBuffer,
    session: Option<SessionHandle>,
    retry_at: Option<Instant>,
}

pub(crate) struct Task {
    services: Arc<Services>,
    id: TaskId,
    work: Option<Work>,
    reports: mpsc::Sender<(SessionId, SessionReport)>,
    incoming: mpsc::Receiver<(SessionId, SessionReport)>,
    /// Sessions that have not reported their end yet.
    live: usize,
}

impl Task {
    pub(crate) fn new(services: Arc<Services>, id: TaskId) -> Self {
        let (reports, incoming) = mpsc::channel(REPORT_QUEUE_LEN);
        Self { services, id, work: None, reports, incoming, live: 0 }
    }

    /// Goes on with the sessions the vault has kept, newest last.
    pub(crate) async fn resume(&mut self, records: Vec<SessionRecord>) {
        for record in records {
            let card = Arc::new(record.facts.card.clone());
            let (ttl, id) = (record.facts.ttl, record.id.clone());
            let reports = self.reports.clone();
            match session::resume(Arc::clone(&self.services), record, reports).await {
                Ok(handle) => {
                    self.live += 1;
                    self.replace_session(EndReason::Rotated).await;
                    let mut work = Work::new(card, ttl);
                    work.session = Some(handle);
                    self.work = Some(work);
                }
                Err(error) => tracing::error!(session = %id, %error, "session cannot resume"),
            }
        }
    }

    pub(crate) async fn run(mut self, mut mailbox: mpsc::Receiver<Result<Command, Refusal>>) {
        let stop = self.services.stop.clone();
        loop {
            let retry_at = self.work.as_ref().and_then(|work| work.retry_at);
            tokio::select! {
                () = stop.cancelled() => break,
                Some((session, report)) = self.incoming.recv() => self.report(session, report).await,
                () = async { tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)).await },
                    if retry_at.is_some() => self.open_session().await,
                message = mailbox.recv() => match message {
                    None => break,
                    Some(Ok(command)) => self.command(command).await,
                    Some(Err(refusal)) => self.refuse(&refusal).await,
                },
            }
        }
        // Sessions suspend themselves; the task is over when the last one has gone.
        drop(self.reports);
        while self.incoming.recv().await.is_some() {}
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Open(request) => self.open(request).await,
            Command::Input(samples) => self.input(&samples).await,
            Command::Rotate if self.work.is_some() => {
                self.replace_session(EndReason::Rotated).await;
                self.open_session().await;
            }
            Command::Close if self.work.is_some() => {
                self.replace_session(EndReason::Closed).await;
                self.work = None;
                if self.live == 0 {
                    self.show("ended", None, Some(EndReason::Closed.text())).await;
                }
            }
            Command::Rotate | Command::Close => self.refuse_not_open().await,
        }
    }

    async fn open(&mut self, request: OpenRequest) {
        if let Some(work) = &self.work {
            if work.card.id() == request.model.as_str() && work.ttl == request.ttl {
                // Onboard software that restarted opens again: it is the same task.
                return self.show_current().await;
            }
            let message = format!("the task is open with model {}; close it first", work.card.id());
            return self.refuse(&Refusal::new("already_open", message)).await;
        }
        let mut catalogue = self.services.uplink.catalogue();
        if catalogue.borrow().is_none() {
            let state = TaskState {
                state: "opening",
                model: request.model.to_string(),
                session: None,
                reason: Some("waiting for the server's catalogue".to_owned()),
            };
            self.services.onboard.state(&self.id, &state).await;
        }
        let stop = self.services.stop.clone();
        let known = tokio::select! {
            () = stop.cancelled() => return,
            known = catalogue.wait_for(Option::is_some) => match known {
                Ok(known) => known.clone(),
                Err(_) => return,
            },
        };
        let Some(known) = known else { return };
        let Some(card) = known.get(&request.model) else {
            let models: Vec<String> = known.ids().map(ToString::to_string).collect();
            let message = format!(
                "the server offers no model {}; it offers: {}",
                request.model,
                models.join(", ")
            );
            self.refuse(&Refusal::new("unknown_model", message.clone())).await;
            return self.show("ended", None, Some(message)).await;
        };
        self.work = Some(Work::new(Arc::clone(card), request.ttl));
        self.open_session().await;
    }

    async fn open_session(&mut self) {
        let Some(work) = &mut self.work else { return };
        work.retry_at = None;
        let opened = session::open(
            Arc::clone(&self.services),
            self.id.clone(),
            Arc::clone(&work.card),
            work.ttl,
            self.reports.clone(),
        )
        .await;
        match opened {
            Ok(handle) => {
                self.live += 1;
                work.session = Some(handle);
            }
            Err(error) => {
                work.retry_at = Some(Instant::now() + RETRY_PAUSE);
                tracing::error!(task = %self.id, %error, "no session can be opened yet");
                self.show("opening", None, Some(error.to_string())).await;
            }
        }
    }

    async fn replace_session(&mut self, reason: EndReason) {
        let session = self.work.as_mut().and_then(|work| work.session.take());
        if let Some(session) = session {
            session.drain(reason).await;
        }
    }

    async fn input(&mut self, Samples(samples): &Samples) {
        let Some(work) = &mut self.work else { return self.refuse_not_open().await };
        let expected = work.window.channels();
        if let Some(wrong) = samples.iter().find(|sample| sample.len() != expected) {
            let names = work.card.window().channels.join(", ");
            let message = format!(
                "the model takes {expected} values a sample ({names}), this one has {}; nothing of \
                 the message was taken",
                wrong.len()
            );
            return self.refuse(&Refusal::new("wrong_length", message)).await;
        }
        for sample in samples {
            let arrived = Instant::now();
            let Some(work) = &mut self.work else { return };
            let plain_len = work.window.plain_len();
            let levels = match work.window.push(sample) {
                Ok(None) => continue,
                Ok(Some(window)) => work.card.levels(&window).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match levels {
                Ok(levels) => self.submit(Input { levels, plain_len, arrived }).await,
                Err(message) => self.refuse(&Refusal::new("malformed", message)).await,
            }
        }
    }

    async fn submit(&mut self, input: Input) {
        let session = self.work.as_ref().and_then(|work| work.session.as_ref());
        let taken = match session {
            Some(session) => session.submit(input).await,
            None => false,
        };
        if !taken {
            let message = "the task has no session just now; the window is dropped, send the next";
            self.refuse(&Refusal::new("no_session", message)).await;
        }
    }

    async fn report(&mut self, session: SessionId, report: SessionReport) {
        let current = self.work.as_ref().and_then(|work| work.session.as_ref());
        let is_current = current.is_some_and(|current| current.id == session);
        match report {
            SessionReport::Opening(reason) if is_current => {
                self.show("opening", Some(session), reason).await;
            }
            SessionReport::Active if is_current => self.show("active", Some(session), None).await,
            SessionReport::Draining if self.work.is_none() => {
                self.show("draining", Some(session), None).await;
            }
            SessionReport::Opening(_) | SessionReport::Active | SessionReport::Draining => {}
            SessionReport::Ended(reason) => {
                self.live = self.live.saturating_sub(1);
                self.ended(is_current, reason).await;
            }
        }
    }

    async fn ended(&mut self, was_current: bool, reason: EndReason) {
        match &mut self.work {
            None if self.live == 0 => self.show("ended", None, Some(reason.text())).await,
            Some(work) if was_current => {
                work.session = None;
                if let EndReason::Failed(why) = reason {
                    work.retry_at = Some(Instant::now() + RETRY_PAUSE);
                    let refusal = Refusal::new("session_failed", why.clone());
                    self.refuse(&refusal).await;
                    self.show("opening", None, Some(why)).await;
                } else {
                    self.open_session().await;
                }
            }
            _ => {}
        }
    }

    async fn refuse_not_open(&self) {
        let message = format!(
            "the task is not open; publish {{\"model\": \"…\"}} to task/{}/open first",
            self.id
        );
        self.refuse(&Refusal::new("not_open", message)).await;
    }

    async fn refuse(&self, refusal: &Refusal) {
        self.services.board.update(&self.id, |status| status.refused += 1);
        self.services.onboard.refuse(&self.id, refusal).await;
    }

    async fn show_current(&self) {
        let status = self.services.board.snapshot().remove(&self.id.to_string());
        let Some(status) = status else { return };
        let state = match status.state.as_str() {
            "active" => "active",
            _ => "opening",
        };
        let session = self.work.as_ref().and_then(|work| work.session.as_ref());
        self.show(state, session.map(|session| session.id.clone()), status.reason).await;
    }

    async fn show(&self, state: &'static str, session: Option<SessionId>, reason: Option<String>) {
        let model = self.work.as_ref().map_or(String::new(), |work| work.card.id().to_owned());
        let session = session.map(|session| session.to_string());
        self.services.board.update(&self.id, |status| {
            if !model.is_empty() {
                status.model.clone_from(&model);
            }
            state.clone_into(&mut status.state);
            status.session.clone_from(&session);
            status.reason.clone_from(&reason);
        });
        let state = TaskState { state, model, session, reason };
        self.services.onboard.state(&self.id, &state).await;
    }
}

impl Work {
    fn new(card: Arc<ModelCard>, ttl: TtlClass) -> Self {
        let window = WindowBuffer::new(&card);
        Self { card, ttl, window, session: None, retry_at: None }
    }
}
