//! All tasks of the agent, and the way of an onboard message to its task.
//!
//! Invariants:
//! - one actor a task, bounded in number and in queue;
//! - no task holds up another: only a declared task's own connection waits for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

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
use crate::spool::Orphan;
use crate::task::Task;
use crate::uplink::LinkState;
use crate::vault::{SessionRecord, VaultError};

const MAX_TASKS: usize = 64;

/// Routes onboard messages to the actors of their tasks.
pub struct Tasks {
    services: Arc<Services>,
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
        Self { services, queues: HashMap::new(), declared, actors, link_state }
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

    /// Goes on with the sessions of an earlier run. Jobs that belong to none of them end with an error
    /// each.
    ///
    /// # Errors
    /// The vault or the spool cannot be read.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let vault = Arc::clone(&self.services.vault);
        let loaded = crate::services::off_thread(move || vault.load()).await?;
        let mut by_task: BTreeMap<TaskId, Vec<SessionRecord>> = BTreeMap::new();
        let mut expired = HashSet::new();
        for record in loaded {
            match record {
                Err(error) => {
                    tracing::error!(%error, "session record dropped");
                    if let VaultError::Unreadable { session } = error {
                        self.services.audit.record(AuditEvent::RecordUnreadable { session });
                    }
                }
                Ok(record) if self.is_over(&record) => {
                    tracing::info!(session = %record.id, "session of an earlier boot or past its time ends");
                    self.services.erase_record(record.id.clone()).await?;
                    expired.insert(record.id);
                }
                Ok(record) => by_task.entry(record.facts.task.clone()).or_default().push(record),
            }
        }
        let kept: Vec<SessionId> =
            by_task.values().flatten().map(|record| record.id.clone()).collect();
        let orphans = self.services.spool.orphans(&kept).await?;
        if !orphans.is_empty() {
            tracing::warn!(
                jobs = orphans.len(),
                "jobs whose session is over end without an answer"
            );
            self.actors.spawn(tell(Arc::clone(&self.services), orphans, expired));
        }
        for (id, mut records) in by_task {
            records.sort_by(|a, b| a.id.cmp(&b.id));
            let mut task = self.task(&id);
            task.resume(records).await;
            self.start(id, task);
        }
        Ok(())
    }

    fn is_over(&self, record: &SessionRecord) -> bool {
        record.facts.boot != self.services.boot
            || record.facts.expires <= self.services.clock.boot()
    }

    fn start(&mut self, id: TaskId, task: Task) -> Sender {
        let when_full = self.declared.get(&id).map_or(WhenFull::default(), |task| task.when_full);
        let (sender, receiver) = queue(when_full);
        self.actors.spawn(task.run(receiver));
        self.queues.insert(id, sender.clone());
        sender
    }

    /// Serves the onboard link until it ends or the agent stops; returns when every task is over,
    /// with the link's events, which keep the link alive.
    pub async fn run(mut self, mut events: mpsc::Receiver<LinkEvent>) -> mpsc::Receiver<LinkEvent> {
        let stop = self.services.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
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
        let Some((id, verb, request)) = Request::of(message, &topics) else { return };
        if retained && !verb.may_be_retained() {
            tracing::warn!(task = %id, "retained message ignored");
        } else if verb != Verb::Input || !self.declared.contains_key(&id) {
            self.deliver(id, request).await;
        }
    }

    async fn deliver(&mut self, id: TaskId, request: Request) {
        let queue = match self.queues.get(&id) {
            Some(queue) => queue.clone(),
            None if self.queues.len() >= MAX_TASKS => {
                let message = format!("the agent serves {MAX_TASKS} tasks already; close one");
                let refusal = Refusal::new(Code::TooManyTasks, message);
                self.services.onboard.refuse(&id, &refusal, request.reply.as_ref()).await;
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
            self.services.onboard.refuse(&id, &refusal, request.reply.as_ref()).await;
        }
    }
}

/// Tells the tasks of jobs whose session is over. A job leaves the spool when its task was told; what
/// is left when the agent stops is told by the next run.
async fn tell(services: Arc<Services>, orphans: Vec<Orphan>, expired: HashSet<SessionId>) {
    for Orphan { session, number, task } in orphans {
        let (code, why) = if expired.contains(&session) {
            (Code::Expired, "its session's time was over before the agent could go on with it")
        } else {
            (Code::SessionEnded, "the agent has its session no more")
        };
        let message = format!("the job was not answered: {why}");
        let (job, session_text) = (Some(number.0), Some(session.to_string()));
        let refusal = Refusal { job, session: session_text, ..Refusal::new(code, message) };
        if !services.onboard.refuse(&task, &refusal, None).await {
            return;
        }
        if let Err(error) = services.spool.remove(&session, number).await {
            tracing::error!(%session, %number, %error, "an ended job stays in the spool");
        }
    }
}
