//! A task: a piece of work onboard software wants a model for.
//!
//! Invariants:
//! - one actor owns a task; at most one of its sessions is active, and at most one is to succeed it;
//! - a successor becomes active after the session before it has durably ceased to be;
//! - jobs never wait for a successor: the session before it takes them until it is ready, and if
//!   that ends first, the successor's spool takes them;
//! - what the configuration says of it counts as soon as it is said;
//! - when a session of an open task ends, the next input finds a new one under way;
//! - what comes before the model is known waits in the task's bounded queue, and a window that no
//!   session takes yet waits with the task: nothing younger is looked at before it is handed over;
//! - a window never spans a gap of dropped samples;
//! - an order is heard before the next input.

mod announcer;
mod asked;
mod dropping;
mod inputs;
mod opening;
mod sessions;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use moai_transport::ids::{SessionId, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use self::announcer::Announcer;
use self::asked::Asked;
use self::dropping::Dropping;
use self::opening::request_of;
use self::work::Work;
use crate::config::DeclaredTask;
use crate::onboard::{
    Code, Command, Next, OpenRequest, Receiver, Refusal, ReplyTo, Request, TaskState, Wanted,
};
use crate::services::Services;
use crate::session::lifecycle::{DrainReason, EndReason};
use crate::session::{Input, SessionHandle, SessionReport};
use crate::uplink::Catalogue;

const REPORT_QUEUE_LEN: usize = 32;
const ORDER_QUEUE_LEN: usize = 8;
/// A session that cannot be set up is tried again after this pause, and a session that fails is
/// not followed by the next within less.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What a task is told beside its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Go on with new keys as soon as they are ready.
    Rotate,
    /// Finish what waits and end.
    Close,
    /// Say that it is not open, if it is not: the broker keeps an earlier state.
    Restate,
}

pub(crate) struct Task {
    services: Arc<Services>,
    id: TaskId,
    declared: Option<DeclaredTask>,
    declaration: watch::Receiver<Option<DeclaredTask>>,
    catalogue: watch::Receiver<Option<Arc<Catalogue>>>,
    /// The model it was asked for last; empty if this run of the agent knows of none.
    model: String,
    /// To be opened as soon as the server's catalogue allows.
    opening: Option<OpenRequest>,
    work: Option<Work>,
    /// Windows that no session has taken yet.
    pending: VecDeque<Input>,
    asked: Asked,
    dropping: Dropping,
    announcer: Announcer,
    reports: mpsc::Sender<(SessionId, SessionReport)>,
    incoming: mpsc::Receiver<(SessionId, SessionReport)>,
    /// Sessions whose jobs have not all been told yet.
    live: usize,
}

/// A handle to give orders.
pub(crate) type Orders = mpsc::Sender<Order>;

/// What a task hears.
pub(crate) struct Ears {
    /// Onboard software.
    pub(crate) queue: Receiver,
    /// Others.
    pub(crate) orders: mpsc::Receiver<Order>,
}

/// A channel for a task's orders.
pub(crate) fn orders() -> (Orders, mpsc::Receiver<Order>) {
    mpsc::channel(ORDER_QUEUE_LEN)
}

impl Task {
    pub(crate) fn new(
        services: Arc<Services>,
        id: TaskId,
        mut declaration: watch::Receiver<Option<DeclaredTask>>,
    ) -> Self {
        let declared = declaration.borrow_and_update().clone();
        let (reports, incoming) = mpsc::channel(REPORT_QUEUE_LEN);
        Self {
            catalogue: services.uplink.catalogue(),
            announcer: Announcer::start(services.onboard.clone(), id.clone()),
            services,
            id,
            declared,
            declaration,
            model: String::new(),
            opening: None,
            work: None,
            pending: VecDeque::new(),
            asked: Asked::default(),
            dropping: Dropping::default(),
            reports,
            incoming,
            live: 0,
        }
    }

    pub(crate) async fn run(mut self, ears: Ears) {
        let Ears { mut queue, mut orders } = ears;
        let stop = self.services.stop.clone();
        let mut held = self.services.registry.held();
        if let Some(declared) = &self.declared {
            self.open_declared(request_of(declared)).await;
        }
        loop {
            self.make_room().await;
            let retry_at = self.work.as_ref().and_then(|work| work.retry_at);
            let is_held = self.work.as_ref().is_some_and(|work| work.is_held);
            let notice_at = self.dropping.due(Instant::now());
            let current = self.work.as_ref().and_then(|work| work.current.as_ref());
            let takes =
                |it: &&SessionHandle| !self.pending.is_empty() && !it.is_over() && !it.is_full();
            let place = current.filter(takes).map(SessionHandle::place);
            let wanted = if self.opening.is_some() { Wanted::Controls } else { Wanted::Any };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(order) = orders.recv() => self.order(order).await,
                Ok(()) = self.declaration.changed() => self.redeclared().await,
                Some((session, report)) = self.incoming.recv() => self.report(session, report).await,
                () = async { drop(held.wait_for(|held| !held).await) }, if is_held => {
                    self.go_on().await;
                }
                () = at(retry_at), if retry_at.is_some() => self.go_on().await,
                Ok(()) = self.catalogue.changed(), if self.opening.is_some() => self.try_open().await,
                () = at(notice_at), if notice_at.is_some() => self.tell_dropped().await,
                place = or_never(place) => self.hand_over(place).await,
                next = queue.next(wanted), if self.pending.is_empty() => match next {
                    None => break,
                    Some(Next::Gap(values)) => self.gap(values).await,
                    Some(Next::Request(request)) => self.request(request).await,
                },
            }
            self.services.board.update(&self.id, |status| status.queued = queue.len());
        }
        // Sessions suspend themselves; the task is over when the last one has gone.
        drop((self.reports, self.work));
        while self.incoming.recv().await.is_some() {}
        self.announcer.close().await;
    }

    async fn request(&mut self, request: Request) {
        let Request { command, reply, receipt, arrived } = request;
        match command {
            Err(refusal) => self.refuse(refusal, reply).await,
            Ok(Command::Input(samples)) => {
                return self.input(&samples, reply, receipt, arrived).await;
            }
            Ok(Command::Open(request)) => self.open(request, reply).await,
            Ok(Command::Rotate) if self.work.is_some() => {
                self.asked.when_active(reply);
                self.rotate().await;
            }
            Ok(Command::Close) if self.declared.as_ref().is_some_and(|task| !task.closable) => {
                let message = "the task is the configuration's; to have it closed, say `closable = \
                               true` there";
                self.refuse(Refusal::new(Code::NotClosable, message), reply).await;
            }
            Ok(Command::Close) if self.work.is_some() || self.opening.is_some() => {
                self.close(reply).await;
            }
            Ok(Command::Rotate | Command::Close) => self.refuse(self.not_open(), reply).await,
        }
        if let Some(receipt) = receipt {
            receipt.confirm();
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Rotate => self.rotate().await,
            Order::Close => self.close(None).await,
            Order::Restate if self.live == 0 && self.work.is_none() && self.opening.is_none() => {
                let why = "the agent restarted and has no session of it; open it again".to_owned();
                self.show("ended", None, Some(why)).await;
            }
            Order::Restate => {}
        }
    }

    async fn rotate(&mut self) {
        if let Some(work) = &mut self.work {
            work.renews = true;
        }
        self.provide().await;
    }

    async fn close(&mut self, reply: Option<ReplyTo>) {
        self.asked.when_ended(reply);
        self.opening = None;
        self.retire_all(DrainReason::Closed).await;
        self.refuse_pending().await;
        if self.live == 0 {
            self.show("ended", None, Some(EndReason::Closed.text())).await;
        }
    }

    fn not_open(&self) -> Refusal {
        let message = format!(
            "the task is not open; publish {{\"model\": \"…\"}} to task/{}/open first",
            self.id
        );
        Refusal::new(Code::NotOpen, message)
    }

    async fn refuse(&self, refusal: Refusal, replies: impl IntoIterator<Item = ReplyTo>) {
        self.services.board.update(&self.id, |status| status.refused += refusal.count.unwrap_or(1));
        self.announcer.refuse(refusal, replies.into_iter().collect()).await;
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
        let session = self.work.as_ref().and_then(|work| work.current.as_ref());
        self.show(state, session.map(|session| session.id.clone()), status.reason).await;
    }

    async fn show(
        &mut self,
        state: &'static str,
        session: Option<SessionId>,
        reason: Option<String>,
    ) {
        let model = self.model.clone();
        let session = session.map(|session| session.to_string());
        self.show_sessions();
        self.services.board.update(&self.id, |status| {
            status.model.clone_from(&model);
            state.clone_into(&mut status.state);
            status.session.clone_from(&session);
            status.reason.clone_from(&reason);
        });
        let replies = self.asked.answered_by(state);
        self.announcer.state(TaskState { state, model, session, reason }, replies).await;
    }
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
