//! What a task tells onboard software, beside its sessions' outcomes.
//!
//! Invariants: states and refusals are published in the order in which they were told; a task goes
//! on working while the onboard link is down, until so many wait that nobody can be sending inputs.

use moai_transport::ids::TaskId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::onboard::{Onboard, Refusal, ReplyTo, TaskState};

const QUEUE_LEN: usize = 256;

enum Announcement {
    State(TaskState, Vec<ReplyTo>),
    Refusal(Refusal, Vec<ReplyTo>),
}

/// The way to the one task that publishes for a task.
pub(super) struct Announcer {
    queue: mpsc::Sender<Announcement>,
    publisher: JoinHandle<()>,
}

impl Announcer {
    pub(super) fn start(onboard: Onboard, task: TaskId) -> Self {
        let (queue, mut announcements) = mpsc::channel(QUEUE_LEN);
        let publisher = tokio::spawn(async move {
            while let Some(announcement) = announcements.recv().await {
                match announcement {
                    Announcement::State(state, replies) => {
                        onboard.state(&task, &state, &replies).await;
                    }
                    Announcement::Refusal(refusal, replies) => {
                        onboard.refuse(&task, &refusal, &replies).await;
                    }
                }
            }
        });
        Self { queue, publisher }
    }

    pub(super) async fn state(&self, state: TaskState, replies: Vec<ReplyTo>) {
        self.tell(Announcement::State(state, replies)).await;
    }

    pub(super) async fn refuse(&self, refusal: Refusal, replies: Vec<ReplyTo>) {
        self.tell(Announcement::Refusal(refusal, replies)).await;
    }

    async fn tell(&self, announcement: Announcement) {
        // The publisher ends after this handle only.
        let _ = self.queue.send(announcement).await;
    }

    /// Returns when everything was published, or given up because the agent stops.
    pub(super) async fn close(self) {
        drop(self.queue);
        // It ends by itself, or has panicked and said so.
        let _ = self.publisher.await;
    }
}
