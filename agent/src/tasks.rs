//! All tasks of the agent, and the way of an onboard message to its task.
//!
//! Invariants:
//! - one actor a task, bounded in number and in queue;
//! - no task holds up another: only a declared task's own connection waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moai_transport::ids::{SessionId, TaskId};
use moai_transport::link::{LinkConfig, LinkEvent, Message};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::AuditEvent;
use crate::config::{DeclaredTask, WhenFull};
use crate::feed::Feed;
use crate::onboard::{Code, Refusal, Request, Sender, Verb, queue};
use crate::services::Services;
use crate::session::lifecycle::EndReason;
use crate::spool::Orphan;
use crate::task::{Ears, Order, Orders, Task, orders};
use crate::uplink::LinkState;
use crate::vault::{EndedFacts, SessionFacts, SessionRecord, VaultError};
use crate::watchdog::Pulse;

/// What the vault has kept of a task.
#[derive(Default)]
struct Kept {
    live: Vec<SessionRecord>,
    ended: Vec<(SessionId, EndedFacts)>,
}

const MAX_TASKS: usize = 64;
/// How long everybody waits for one refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);

/// Where orders to tasks are given. Short critical sections, never across an await.
#[derive(Clone, Default)]
pub struct TaskDirectory(Arc<Mutex<BTreeMap<TaskId, Orders>>>);

/// Why a task does not follow an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is none of that name.
    #[error("there is no task {task}; there are: {}", names(known))]
    Unknown {
        /// The name.
        task: TaskId,
        /// Tasks there are.
        known: Vec<TaskId>,
    },
    /// It has more to do than it can.
    #[error("the task {task} is busy with earlier orders; try again")]
    Busy {
        /// The task.
        task: TaskId,
    },
}

fn names(known: &[TaskId]) -> String {
    if known.is_empty() {
        return "none".to_owned();
    }
    known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl TaskDirectory {
    /// Gives an order to a task.
    ///
    /// # Errors
    /// There is no such task, or it has not followed its earlier orders yet.
    pub fn order(&self, task: &TaskId, order: Order) -> Result<(), OrderError> {
        let tasks = self.tasks();
        let Some(orders) = tasks.get(task) else {
            let known = tasks.keys().cloned().collect();
            return Err(OrderError::Unknown { task: task.clone(), known });
        };
        orders.try_send(order).map_err(|_| OrderError::Busy { task: task.clone() })
    }

    /// Gives an order to every task.
    pub fn order_all(&self, order: Order) {
        for (task, orders) in &*self.tasks() {
            if orders.try_send(order).is_err() {
                tracing::warn!(%task, ?order, "the task is busy with earlier orders");
            }
        }
    }

    fn enter(&self, task: TaskId, orders: Orders) {
        self.tasks().insert(task, orders);
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskId, Orders>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Routes onboard messages to the actors of their tasks.
pub struct Tasks {
    services: Arc<Services>,
    directory: TaskDirectory,
    queues: HashMap<TaskId, Sender>,
    /// Tasks of the configuration, whose inputs come on connections of their own.
    declared: BTreeMap<TaskId, DeclaredTask>,
    actors: TaskTracker,
    link_state: watch::Sender<LinkState>,
}

impl Tasks {
    /// No tasks yet. `link_state` tells everybody whether the onboard link is up.
    #[must_use]
    pub fn new(
        services: Arc<Services>,
        declared: &[DeclaredTask],
        link_state: watch::Sender<LinkState>,
    ) -> Self {
        let declared = declared.iter().map(|task| (task.id.clone(), task.clone())).collect();
        let actors = TaskTracker::new();
        let directory = TaskDirectory::default();
        Self { services, directory, queues: HashMap::new(), declared, actors, link_state }
    }

    /// Where orders to tasks are given.
    #[must_use]
    pub fn directory(&self) -> TaskDirectory {
        self.directory.clone()
    }

    /// Opens the tasks of the configuration that are not resumed, and lets their inputs in, on
    /// connections of their own; `base` says to which broker and as whom.
    pub fn open_declared(&mut self, base: &LinkConfig, links: &CancellationToken) {
        for (id, declared) in self.declared.clone() {
            let topics = Arc::clone(self.services.onboard.topics());
            let feed = Feed::open(base, &declared, topics, links);
            let known = self.queues.get(&id).cloned();
            let queue = known.unwrap_or_else(|| self.start(id.clone(), self.task(&id)));
            self.actors.spawn(feed.run(Arc::clone(&self.services), queue));
        }
    }

    fn task(&self, id: &TaskId) -> Task {
        Task::new(Arc::clone(&self.services), id.clone(), self.declared.get(id).cloned())
    }

    /// Goes on with the sessions of an earlier run, those that had ended and left jobs untold too.
    /// Jobs that belong to none of them end with an error each.
    ///
    /// # Errors
    /// The vault or the spool cannot be read.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let vault = Arc::clone(&self.services.vault);
        let loaded = crate::services::off_thread(move || vault.load()).await?;
        let mut by_task: BTreeMap<TaskId, Kept> = BTreeMap::new();
        let mut kept: Vec<SessionId> = Vec::new();
        for record in loaded {
            match record {
                Err(error) => {
                    tracing::error!(%error, "session record dropped");
                    if let VaultError::Unreadable { session } = error {
                        self.services.audit.record(AuditEvent::RecordUnreadable { session });
                    }
                }
                Ok(mut record) => {
                    self.date(&mut record.facts);
                    if record.facts.expires > self.services.clock.boot() {
                        kept.push(record.id.clone());
                        by_task.entry(record.facts.task.clone()).or_default().live.push(record);
                        continue;
                    }
                    tracing::info!(session = %record.id, "session of an earlier boot or past its time ends");
                    let facts = EndedFacts { task: record.facts.task, reason: EndReason::Expired };
                    self.services.end_record(record.id, facts).await?;
                }
            }
        }
        let vault = Arc::clone(&self.services.vault);
        for (id, facts) in crate::services::off_thread(move || vault.load_ended()).await? {
            kept.push(id.clone());
            by_task.entry(facts.task.clone()).or_default().ended.push((id, facts));
        }
        let orphans = self.services.spool.orphans(&kept).await?;
        if !orphans.is_empty() {
            tracing::warn!(jobs = orphans.len(), "jobs without a session end without an answer");
            self.actors.spawn(tell(Arc::clone(&self.services), orphans));
        }
        for (id, Kept { mut live, ended }) in by_task {
            live.sort_by(|a, b| a.id.cmp(&b.id));
            let mut task = self.task(&id);
            task.bid(ended).await;
            task.resume(live).await;
            self.start(id, task);
        }
        Ok(())
    }

    /// Says in this boot's time when a session of an earlier boot ends: only a wall clock that was
    /// right before and is now can tell; else it ends now.
    fn date(&self, facts: &mut SessionFacts) {
        if facts.boot == self.services.boot {
            return;
        }
        let clock = &self.services.clock;
        let left = facts.expires_unix.filter(|_| clock.is_trusted());
        let left = left.map_or(Duration::ZERO, |at| at.saturating_sub(clock.unix()));
        let left = left.min(self.services.lifetimes.of(facts.ttl));
        facts.boot = self.services.boot.clone();
        facts.expires = clock.boot().after(left);
    }

    fn start(&mut self, id: TaskId, task: Task) -> Sender {
        let when_full = self.declared.get(&id).map_or(WhenFull::default(), |task| task.when_full);
        let (sender, receiver) = queue(when_full);
        let (orders, heard) = orders();
        self.actors.spawn(task.run(Ears { queue: receiver, orders: heard }));
        self.directory.enter(id.clone(), orders);
        self.queues.insert(id, sender.clone());
        sender
    }

    /// Serves the onboard link until it ends or the agent stops; returns when every task is over,
    /// with the link's events, which keep the link alive.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<LinkEvent>,
        mut pulse: Pulse,
    ) -> mpsc::Receiver<LinkEvent> {
        let stop = self.services.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = pulse.beat() => {}
                event = events.recv() => match event {
                    None => break,
                    Some(LinkEvent::Up) => {
                        tracing::info!("onboard link is up");
                        self.link_state.send_replace(LinkState::Up);
                    }
                    Some(LinkEvent::Down(error)) => {
                        let (reason, fatal) = (error.to_string(), error.is_fatal());
                        tracing::warn!(%reason, fatal, "onboard link is down");
                        self.link_state.send_replace(LinkState::Down { reason, fatal });
                    }
                    Some(LinkEvent::Message(message)) => self.route(message).await,
                },
            }
        }
        self.queues.clear();
        self.actors.close();
        // While tasks finish, their answers still need to know whether the link is up.
        loop {
            tokio::select! {
                () = self.actors.wait() => return events,
                Some(event) = events.recv() => if let LinkEvent::Up = event {
                    self.link_state.send_replace(LinkState::Up);
                },
                else => {
                    self.actors.wait().await;
                    return events;
                }
            }
        }
    }

    async fn route(&mut self, message: Message) {
        let retained = message.retained;
        let topics = Arc::clone(self.services.onboard.topics());
        if let Some(id) = topics.parse_state(&message.topic) {
            if retained {
                self.restate(&id, &message.payload);
            }
            return;
        }
        let Some((id, verb, request)) = Request::of(message, &topics) else { return };
        if retained && !verb.may_be_retained() {
            tracing::warn!(task = %id, "retained message ignored");
        } else if verb != Verb::Input || !self.declared.contains_key(&id) {
            self.deliver(id, request).await;
        }
    }

    /// The broker keeps a state of a task, which may have ended while nobody could be told, or of which
    /// nothing is kept any more.
    fn restate(&mut self, id: &TaskId, kept: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Kept {
            state: String,
        }
        let is_ended = serde_json::from_slice::<Kept>(kept).map_or(true, |it| it.state == "ended");
        if is_ended {
            return;
        }
        if !self.queues.contains_key(id) && self.queues.len() < MAX_TASKS {
            let task = self.task(id);
            self.start(id.clone(), task);
        }
        if let Err(error) = self.directory.order(id, Order::Restate) {
            tracing::warn!(%error, "the broker may keep a state of a task that is true no more");
        }
    }

    async fn deliver(&mut self, id: TaskId, request: Request) {
        let queue = match self.queues.get(&id) {
            Some(queue) => queue.clone(),
            None if self.queues.len() >= MAX_TASKS => {
                let message = format!("the agent serves {MAX_TASKS} tasks already; close one");
                let refusal = Refusal::new(Code::TooManyTasks, message);
                self.refuse(&id, &refusal, &request).await;
                return;
            }
            None => {
                let task = self.task(&id);
                self.start(id.clone(), task)
            }
        };
        // Tasks that messages open drop what is too much: it never waits for room.
        if let Err(request) = queue.push(request).await {
            let message = "the task is behind with its requests; this one is dropped, slow down";
            let refusal = Refusal::new(Code::TooFast, message);
            self.refuse(&id, &refusal, &request).await;
        }
    }

    /// A broker that has gone takes no refusal, and only the caller can see that it is back.
    async fn refuse(&self, id: &TaskId, refusal: &Refusal, request: &Request) {
        let refused = self.services.onboard.refuse(id, refusal, request.reply.as_ref());
        if tokio::time::timeout(REFUSAL_PATIENCE, refused).await.is_err() {
            tracing::warn!(task = %id, "the onboard broker did not take a refusal");
        }
    }
}

/// Tells the tasks of jobs whose session is over. A job leaves the spool when its task was told; what
/// is left when the agent stops is told by the next run.
async fn tell(services: Arc<Services>, orphans: Vec<Orphan>) {
    for Orphan { session, number, task } in orphans {
        let message = "the job was not answered: the agent has its session no more";
        let (job, session_text) = (Some(number.0), Some(session.to_string()));
        let refusal =
            Refusal { job, session: session_text, ..Refusal::new(Code::SessionEnded, message) };
        if !services.onboard.refuse(&task, &refusal, None).await {
            return;
        }
        if let Err(error) = services.spool.remove(&session, number).await {
            tracing::error!(%session, %number, %error, "an ended job stays in the spool");
        }
    }
}
