//! A task: a piece of work onboard software wants a model for.
//!
//! Invariants:
//! - one actor owns a task; it has at most one session that takes inputs;
//! - when a session of an open task ends, the next input finds a new one under way;
//! - what comes before the model is known waits in the task's bounded queue, and a window that no
//!   session takes yet waits with the task: nothing younger is looked at before it is handed over;
//! - a window never spans a gap of dropped samples.

mod asked;

mod dropping;

mod inputs;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::ids::{ModelId, SessionId, TaskId};
use moai_transport::link::Receipt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use self::asked::Asked;
use self::dropping::Dropping;
use crate::config::DeclaredTask;
use crate::onboard::{
    Code, Command, Next, OpenRequest, Receiver, Refusal, ReplyTo, Request, TaskState, Wanted,
};
use crate::services::Services;
use crate::session::{self, EndReason, Input, SessionHandle, SessionReport};
use crate::ttl::TtlClass;
use crate::uplink::Catalogue;
use crate::vault::SessionRecord;
use crate::window::WindowBuffer;

const REPORT_QUEUE_LEN: usize = 32;
/// A session that cannot be set up is tried again after this pause.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What an open task works with.
struct Work {
    card: Arc<ModelCard>,
    ttl: TtlClass,
    channels: NonZeroUsize,
    window: WindowBuffer,
    session: Option<SessionHandle>,
    retry_at: Option<Instant>,
}

pub(crate) struct Task {
    services: Arc<Services>,
    id: TaskId,
    declared: Option<DeclaredTask>,
    catalogue: watch::Receiver<Option<Arc<Catalogue>>>,
    /// To be opened as soon as the server's catalogue allows.
    opening: Option<OpenRequest>,
    work: Option<Work>,
    /// Windows that no session has taken yet.
    pending: VecDeque<Input>,
    /// Of the message that `pending` came from.
    receipt: Option<Receipt>,
    asked: Asked,
    dropping: Dropping,
    reports: mpsc::Sender<(SessionId, SessionReport)>,
    incoming: mpsc::Receiver<(SessionId, SessionReport)>,
    /// Sessions that have not reported their end yet.
    live: usize,
}

impl Task {
    pub(crate) fn new(services: Arc<Services>, id: TaskId, declared: Option<DeclaredTask>) -> Self {
        let (reports, incoming) = mpsc::channel(REPORT_QUEUE_LEN);
        Self {
            catalogue: services.uplink.catalogue(),
            services,
            id,
            declared,
            opening: None,
            work: None,
            pending: VecDeque::new(),
            receipt: None,
            asked: Asked::default(),
            dropping: Dropping::default(),
            reports,
            incoming,
            live: 0,
        }
    }

    /// Goes on with the sessions the vault has kept, newest last.
    pub(crate) async fn resume(&mut self, records: Vec<SessionRecord>) {
        for record in records {
            let card = Arc::new(record.facts.card.clone());
            let (ttl, id) = (record.facts.ttl, record.id.clone());
            let reports = self.reports.clone();
            let Some(mut work) = Work::new(card, ttl) else { continue };
            match session::resume(Arc::clone(&self.services), record, reports).await {
                Ok(handle) => {
                    self.live += 1;
                    self.replace_session(EndReason::Rotated).await;
                    work.session = Some(handle);
                    self.work = Some(work);
                }
                Err(error) => tracing::error!(session = %id, %error, "session cannot resume"),
            }
        }
    }

    pub(crate) async fn run(mut self, mut queue: Receiver) {
        let stop = self.services.stop.clone();
        if let Some(declared) = &self.declared {
            self.open_declared(OpenRequest { model: declared.model.clone(), ttl: declared.ttl })
                .await;
        }
        loop {
            let retry_at = self.work.as_ref().and_then(|work| work.retry_at);
            let notice_at = self.dropping.due(Instant::now());
            let session = self.work.as_ref().and_then(|work| work.session.as_ref());
            let session = session.filter(|session| !self.pending.is_empty() && !session.is_over());
            let place = session.map(SessionHandle::place);
            let wanted = if self.opening.is_some() { Wanted::Controls } else { Wanted::Any };
            tokio::select! {
                () = stop.cancelled() => break,
                Some((session, report)) = self.incoming.recv() => self.report(session, report).await,
                () = at(retry_at), if retry_at.is_some() => self.open_session().await,
                Ok(()) = self.catalogue.changed(), if self.opening.is_some() => self.try_open().await,
                place = or_never(place) => self.hand_over(place),
                () = at(notice_at), if notice_at.is_some() => self.tell_dropped().await,
                next = queue.next(wanted), if self.pending.is_empty() => match next {
                    None => break,
                    Some(Next::Gap(values)) => self.gap(values).await,
                    Some(Next::Request(request)) => self.request(request).await,
                },
            }
            self.services.board.update(&self.id, |status| status.queued = queue.len());
        }
        // Sessions suspend themselves; the task is over when the last one has gone.
        drop(self.reports);
        while self.incoming.recv().await.is_some() {}
    }

    async fn request(&mut self, request: Request) {
        let Request { command, reply, receipt, arrived } = request;
        match command {
            Err(refusal) => self.refuse(&refusal, reply.as_ref()).await,
            Ok(Command::Input(samples)) => {
                return self.input(&samples, reply, receipt, arrived).await;
            }
            Ok(Command::Open(request)) => self.open(request, reply).await,
            Ok(Command::Rotate) if self.work.is_some() => {
                self.asked.when_active(reply);
                self.replace_session(EndReason::Rotated).await;
                self.open_session().await;
            }
            Ok(Command::Close) if self.declared.as_ref().is_some_and(|task| !task.closable) => {
                let message = "the task is the configuration's; to have it closed, say `closable = \
                               true` there";
                self.refuse(&Refusal::new(Code::NotClosable, message), reply.as_ref()).await;
            }
            Ok(Command::Close) if self.work.is_some() || self.opening.is_some() => {
                self.close(reply).await;
            }
            Ok(Command::Rotate | Command::Close) => self.refuse_not_open(reply.as_ref()).await,
        }
        if let Some(receipt) = receipt {
            receipt.confirm();
        }
    }

    async fn close(&mut self, reply: Option<ReplyTo>) {
        self.asked.when_ended(reply);
        self.opening = None;
        self.replace_session(EndReason::Closed).await;
        self.work = None;
        if self.live == 0 {
            self.show("ended", None, Some(EndReason::Closed.text())).await;
        }
    }

    async fn open(&mut self, request: OpenRequest, reply: Option<ReplyTo>) {
        let declared = self.declared.as_ref();
        if let Some(declared) =
            declared.filter(|it| it.model != request.model || it.ttl != request.ttl)
        {
            let message = format!(
                "the configuration opens this task with model {} and another request changes nothing",
                declared.model
            );
            return self.refuse(&Refusal::new(Code::Declared, message), reply.as_ref()).await;
        }
        if let Some(work) = &self.work {
            if work.card.id() == request.model.as_str() && work.ttl == request.ttl {
                // Onboard software that restarted opens again: it is the same task.
                self.asked.when_active(reply);
                return self.show_current().await;
            }
            let message = format!("the task is open with model {}; close it first", work.card.id());
            return self.refuse(&Refusal::new(Code::AlreadyOpen, message), reply.as_ref()).await;
        }
        self.asked.when_active(reply);
        self.opening = Some(request);
        self.try_open().await;
    }

    /// What the configuration says stands above what an earlier configuration said.
    async fn open_declared(&mut self, request: OpenRequest) {
        if let Some(work) = &self.work {
            if work.card.id() == request.model.as_str() && work.ttl == request.ttl {
                return;
            }
            self.replace_session(EndReason::Rotated).await;
            self.work = None;
        }
        self.opening = Some(request);
        self.try_open().await;
    }

    /// Opens the task if the server's catalogue is there and has its model.
    async fn try_open(&mut self) {
        let Some(request) = self.opening.clone() else { return };
        let Some(known) = self.catalogue.borrow_and_update().clone() else {
            let why = "waiting for the server's catalogue".to_owned();
            return self.show("opening", None, Some(why)).await;
        };
        let found = match known.get(&request.model) {
            Some(card) => self.work_with(card, request.ttl),
            None => Err(unknown_model(&known, &request.model)),
        };
        let refusal = match found {
            Ok(work) => {
                self.opening = None;
                self.work = Some(work);
                self.suffers_from(None);
                return self.open_session().await;
            }
            Err(refusal) => refusal,
        };
        let why = refusal.message.clone();
        if self.declared.is_some() {
            // Another catalogue may have it.
            self.refuse(&refusal, None).await;
            self.suffers_from(Some(why.clone()));
            self.show("opening", None, Some(why)).await;
        } else {
            self.opening = None;
            let replies = self.asked.answered_by("ended");
            self.refuse(&refusal, &replies).await;
            self.show("ended", None, Some(why)).await;
        }
    }

    fn work_with(&self, card: &Arc<ModelCard>, ttl: TtlClass) -> Result<Work, Refusal> {
        let names = &card.window().channels;
        let given = self.declared.as_ref().and_then(DeclaredTask::channels);
        let work = Work::new(Arc::clone(card), ttl);
        work.filter(|work| given.is_none_or(|given| given == work.channels.get())).ok_or_else(|| {
            let message = format!(
                "model {} takes {} channels ({}), the task's topics give {}; correct [[tasks]] {}",
                card.id(),
                names.len(),
                names.join(", "),
                given.unwrap_or_default(),
                self.id
            );
            Refusal::new(Code::WrongChannels, message)
        })
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
                self.suffers_from(Some(error.to_string()));
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

    async fn report(&mut self, session: SessionId, report: SessionReport) {
        let current = self.work.as_ref().and_then(|work| work.session.as_ref());
        let is_current = current.is_some_and(|current| current.id == session);
        match report {
            SessionReport::Opening(reason) if is_current => {
                self.suffers_from(reason.clone());
                self.show("opening", Some(session), reason).await;
            }
            SessionReport::Active if is_current => {
                self.suffers_from(None);
                self.show("active", Some(session), None).await;
            }
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
            None if self.live == 0 && self.opening.is_none() => {
                self.suffers_from(None);
                self.show("ended", None, Some(reason.text())).await;
            }
            Some(work) if was_current => {
                work.session = None;
                if let EndReason::Failed(why) = reason {
                    work.retry_at = Some(Instant::now() + RETRY_PAUSE);
                    let refusal = Refusal::new(Code::SessionFailed, why.clone());
                    self.refuse(&refusal, None).await;
                    self.suffers_from(Some(why.clone()));
                    self.show("opening", None, Some(why)).await;
                } else {
                    self.open_session().await;
                }
            }
            _ => {}
        }
    }

    async fn refuse_not_open(&self, reply: Option<&ReplyTo>) {
        self.refuse(&self.not_open(), reply).await;
    }

    fn not_open(&self) -> Refusal {
        let message = format!(
            "the task is not open; publish {{\"model\": \"…\"}} to task/{}/open first",
            self.id
        );
        Refusal::new(Code::NotOpen, message)
    }

    async fn refuse(&self, refusal: &Refusal, replies: impl IntoIterator<Item = &ReplyTo>) {
        self.services.board.update(&self.id, |status| status.refused += refusal.count.unwrap_or(1));
        self.services.onboard.refuse(&self.id, refusal, replies).await;
    }

    /// What keeps the task from its work, for the agent's health.
    fn suffers_from(&self, reason: Option<String>) {
        self.services.conditions.set(&format!("task {}", self.id), reason);
    }

    async fn show_current(&mut self) {
        let status = self.services.board.snapshot().remove(&self.id.to_string());
        let Some(status) = status else { return };
        let state = match status.state.as_str() {
            "active" => "active",
            _ => "opening",
        };
        let session = self.work.as_ref().and_then(|work| work.session.as_ref());
        self.show(state, session.map(|session| session.id.clone()), status.reason).await;
    }

    async fn show(
        &mut self,
        state: &'static str,
        session: Option<SessionId>,
        reason: Option<String>,
    ) {
        let opening = self.opening.as_ref().map(|request| request.model.to_string());
        let model = self.work.as_ref().map(|work| work.card.id().to_owned()).or(opening);
        let model = model.unwrap_or_default();
        let session = session.map(|session| session.to_string());
        self.services.board.update(&self.id, |status| {
            if !model.is_empty() {
                status.model.clone_from(&model);
            }
            state.clone_into(&mut status.state);
            status.session.clone_from(&session);
            status.reason.clone_from(&reason);
        });
        let replies = self.asked.answered_by(state);
        let state = TaskState { state, model, session, reason };
        self.services.onboard.state(&self.id, &state, &replies).await;
    }
}

impl Work {
    /// `None` if the model's window has no channels, which its card does not allow.
    fn new(card: Arc<ModelCard>, ttl: TtlClass) -> Option<Self> {
        let window = WindowBuffer::new(&card);
        let channels = NonZeroUsize::new(window.channels())?;
        Some(Self { card, ttl, channels, window, session: None, retry_at: None })
    }
}

fn unknown_model(known: &Catalogue, model: &ModelId) -> Refusal {
    let offered: Vec<String> = known.ids().map(ToString::to_string).collect();
    let message = format!("the server offers no model {model}; it offers: {}", offered.join(", "));
    Refusal::new(Code::UnknownModel, message)
}

/// Waits for a future, or for ever if there is none.
async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    sleep_until(instant.unwrap_or_else(Instant::now)).await;
}
