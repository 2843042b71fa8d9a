//! All tasks of the agent, and the way of an onboard message to its task.
//!
//! Invariants:
//! - one actor a task, bounded in number and in mailbox;
//! - a full mailbox refuses the message with one clear error; it never blocks the link.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use moai_transport::ids::{SessionId, TaskId};
use moai_transport::link::LinkEvent;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::audit::AuditEvent;
use crate::onboard::{self, Command, Refusal};
use crate::services::Services;
use crate::task::Task;
use crate::uplink::LinkState;
use crate::vault::{SessionRecord, VaultError};

const MAX_TASKS: usize = 64;
const MAILBOX_LEN: usize = 4096;

/// Routes onboard messages to the actors of their tasks.
pub struct Tasks {
    services: Arc<Services>,
    prefix: String,
    mailboxes: HashMap<TaskId, mpsc::Sender<Result<Command, Refusal>>>,
    actors: TaskTracker,
    link_state: watch::Sender<LinkState>,
}

impl Tasks {
    /// No tasks yet. `link_state` tells everybody whether the onboard link is up.
    #[must_use]
    pub fn new(
        services: Arc<Services>,
        prefix: String,
        link_state: watch::Sender<LinkState>,
    ) -> Self {
        let actors = TaskTracker::new();
        Self { services, prefix, mailboxes: HashMap::new(), actors, link_state }
    }

    /// Goes on with the sessions of an earlier run, and drops what belongs to no session.
    ///
    /// # Errors
    /// The vault or the spool cannot be read.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let vault = Arc::clone(&self.services.vault);
        let loaded = crate::services::off_thread(move || vault.load()).await?;
        let mut by_task: BTreeMap<TaskId, Vec<SessionRecord>> = BTreeMap::new();
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
                    self.services.erase_record(record.id).await?;
                }
                Ok(record) => by_task.entry(record.facts.task.clone()).or_default().push(record),
            }
        }
        let kept: Vec<SessionId> =
            by_task.values().flatten().map(|record| record.id.clone()).collect();
        let dropped = self.services.spool.retain(&kept).await?;
        if dropped > 0 {
            tracing::warn!(dropped, "jobs of ended sessions dropped");
        }
        for (id, mut records) in by_task {
            records.sort_by(|a, b| a.id.cmp(&b.id));
            let mut task = Task::new(Arc::clone(&self.services), id.clone());
            task.resume(records).await;
            self.start(id, task);
        }
        Ok(())
    }

    fn is_over(&self, record: &SessionRecord) -> bool {
        record.facts.boot != self.services.boot
            || record.facts.expires <= self.services.clock.boot()
    }

    fn start(&mut self, id: TaskId, task: Task) -> mpsc::Sender<Result<Command, Refusal>> {
        let (sender, mailbox) = mpsc::channel(MAILBOX_LEN);
        self.actors.spawn(task.run(mailbox));
        self.mailboxes.insert(id, sender.clone());
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
                    Some(LinkEvent::Message(message))
                        if message.retained && !onboard::may_be_retained(&message.topic) =>
                    {
                        tracing::warn!(topic = %message.topic, "retained message ignored");
                    }
                    Some(LinkEvent::Message(message)) => {
                        let parsed = onboard::parse(&self.prefix, &message.topic, &message.payload);
                        if let Some((task, command)) = parsed {
                            self.deliver(task, command).await;
                        }
                    }
                },
            }
        }
        self.mailboxes.clear();
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

    async fn deliver(&mut self, id: TaskId, command: Result<Command, Refusal>) {
        let mailbox = match self.mailboxes.get(&id) {
            Some(mailbox) => mailbox.clone(),
            None if self.mailboxes.len() >= MAX_TASKS => {
                let message = format!("the agent serves {MAX_TASKS} tasks already; close one");
                return self.refuse(&id, Refusal::new("too_many_tasks", message)).await;
            }
            None => {
                let task = Task::new(Arc::clone(&self.services), id.clone());
                self.start(id.clone(), task)
            }
        };
        if mailbox.try_send(command).is_err() {
            let message = "the task is behind with its messages; this one is dropped, slow down";
            self.refuse(&id, Refusal::new("too_fast", message)).await;
        }
    }

    async fn refuse(&self, id: &TaskId, refusal: Refusal) {
        self.services.onboard.refuse(id, &refusal).await;
    }
}
