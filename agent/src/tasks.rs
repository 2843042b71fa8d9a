//! All tasks of the agent, and the way of an onboard message to its task.
//!
//! Invariants:
//! - one actor a task, bounded in number and in queue;
//! - a task follows its declaration: only one that is declared no more, or with another model, ends its
//!   session, which drains;
//! - no task holds up another: only a declared task's own connection waits for it.

mod directory;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use moai_transport::ids::{SessionId, TaskId};
use moai_transport::link::{LinkConfig, LinkEvent, Message};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::AuditEvent;
use crate::config::{DeclaredTask, WhenFull};
use crate::feeds::Feeds;
use crate::live::LiveSettings;
use crate::onboard::{Code, Refusal, Request, Sender, Verb, queue};
use crate::services::Services;
use crate::session::lifecycle::EndReason;
use crate::spool::Orphan;
use crate::task::{Ears, Order, Task, orders};
use crate::uplink::LinkState;
use crate::vault::{EndedFacts, SessionFacts, SessionRecord, VaultError};
use crate::watchdog::Pulse;

pub use self::directory::{OrderError, TaskDirectory};

/// What the vault has kept of a task.
#[derive(Default)]
struct Kept {
    live: Vec<SessionRecord>,
    ended: Vec<(SessionId, EndedFacts)>,
}

const MAX_TASKS: usize = 64;
/// How long everybody waits for one refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);

/// Routes onboard messages to the actors of their tasks.
pub struct Tasks {
    services: Arc<Services>,
    directory: TaskDirectory,
    queues: HashMap<TaskId, Sender>,
    live: watch::Receiver<LiveSettings>,
    /// What the configuration says of each task.
    declarations: HashMap<TaskId, watch::Sender<Option<DeclaredTask>>>,
    /// Where the inputs of declared tasks come from; none before they are opened.
    feeds: Option<Feeds>,
    actors: TaskTracker,
    link_state: watch::Sender<LinkState>,
}

impl Tasks {
    /// No tasks yet. `link_state` tells everybody whether the onboard link is up.
    #[must_use]
    pub fn new(services: Arc<Services>, link_state: watch::Sender<LinkState>) -> Self {
        let mut live = services.live.clone();
        let declared = live.borrow_and_update().tasks.clone();
        let declare = |task: DeclaredTask| (task.id.clone(), watch::Sender::new(Some(task)));
        Self {
            services,
            directory: TaskDirectory::default(),
            queues: HashMap::new(),
            live,
            declarations: declared.into_iter().map(declare).collect(),
            feeds: None,
            actors: TaskTracker::new(),
            link_state,
        }
    }

    /// Where orders to tasks are given.
    #[must_use]
    pub fn directory(&self) -> TaskDirectory {
        self.directory.clone()
    }

    /// Opens the tasks of the configuration that are not resumed, and lets their inputs in, on
    /// connections of their own; `base` says to which broker and as whom.
    pub fn open_declared(&mut self, base: LinkConfig, links: CancellationToken) {
        self.feeds = Some(Feeds::new(base, links));
        let declared: Vec<_> = self.declarations.values().map(|it| it.borrow().clone()).collect();
        for task in declared.into_iter().flatten() {
            self.feed(&task);
        }
    }

    /// Lets a task's inputs in, in place of those of an earlier declaration.
    fn feed(&mut self, declared: &DeclaredTask) {
        let id = &declared.id;
        let queue = self.queues.get(id).cloned().unwrap_or_else(|| {
            let task = self.task(id);
            self.start(id.clone(), task)
        });
        queue.set_when_full(declared.when_full);
        if let Some(feeds) = &mut self.feeds {
            feeds.begin(&self.services, declared, queue, &self.actors);
        }
    }

    /// Follows the configuration.
    fn redeclare(&mut self) {
        let tasks = self.live.borrow_and_update().tasks.clone();
        let is_gone = |id: &TaskId| !tasks.iter().any(|task| task.id == *id);
        for (id, declaration) in self.declarations.iter().filter(|(id, _)| is_gone(id)) {
            if declaration.send_if_modified(|declared| declared.take().is_some()) {
                self.feeds.as_mut().and_then(|feeds| feeds.end(id));
                if let Some(queue) = self.queues.get(id) {
                    queue.set_when_full(WhenFull::default());
                }
            }
        }
        for task in tasks {
            let declaration = self.declarations.entry(task.id.clone()).or_default();
            let before = declaration.borrow().clone();
            if before.as_ref() == Some(&task) {
                continue;
            }
            declaration.send_replace(Some(task.clone()));
            // How messages are acknowledged is the connection's, too.
            let as_before =
                |it: &DeclaredTask| it.reads_like(&task) && it.when_full == task.when_full;
            if !before.is_some_and(|before| as_before(&before)) {
                self.feed(&task);
            }
        }
    }

    fn is_declared(&self, id: &TaskId) -> bool {
        self.declarations.get(id).is_some_and(|declaration| declaration.borrow().is_some())
    }

    fn task(&mut self, id: &TaskId) -> Task {
        let declaration = self.declarations.entry(id.clone()).or_default().subscribe();
        Task::new(Arc::clone(&self.services), id.clone(), declaration)
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
        let left = left.min(self.services.lifetime(facts.ttl));
        facts.boot = self.services.boot.clone();
        facts.expires = clock.boot().after(left);
    }

    fn start(&mut self, id: TaskId, task: Task) -> Sender {
        let declaration = self.declarations.get(&id);
        let when_full = declaration.and_then(|it| it.borrow().as_ref().map(|it| it.when_full));
        let when_full = when_full.unwrap_or_default();
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
                Ok(()) = self.live.changed() => self.redeclare(),
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
        } else if verb != Verb::Input || !self.is_declared(&id) {
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
