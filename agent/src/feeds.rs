//! The feeds of all tasks of the configuration.
//!
//! Invariant: a task has one feed at most: the next connects after the one before has ended, as the same
//! client.

use std::collections::HashMap;
use std::sync::Arc;

use moai_transport::ids::TaskId;
use moai_transport::link::LinkConfig;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::DeclaredTask;
use crate::feed::Feed;
use crate::onboard::Sender;
use crate::services::Services;

/// Connects for tasks.
pub struct Feeds {
    base: LinkConfig,
    links: CancellationToken,
    running: HashMap<TaskId, Running>,
}

struct Running {
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl Feeds {
    /// No feeds yet; `base` says to which broker and as whom they connect, until `links` is cancelled.
    #[must_use]
    pub fn new(base: LinkConfig, links: CancellationToken) -> Self {
        Self { base, links, running: HashMap::new() }
    }

    /// Brings a task's inputs into its queue from now on, in place of whatever did before.
    pub fn begin(
        &mut self,
        services: &Arc<Services>,
        task: &DeclaredTask,
        queue: Sender,
        actors: &TaskTracker,
    ) {
        let before = self.end(&task.id);
        let stop = self.links.child_token();
        let (services, base, own) = (Arc::clone(services), self.base.clone(), stop.clone());
        let declared = task.clone();
        let ended = actors.spawn(async move {
            if let Some(before) = before {
                // Whether it ended well is of no concern to its successor.
                let _ = before.await;
            }
            Feed::open(&base, &declared, &services, own).run(services, queue).await;
        });
        self.running.insert(task.id.clone(), Running { stop, ended });
    }

    /// Brings nothing more to a task; what is returned is done when its connection is closed.
    pub fn end(&mut self, task: &TaskId) -> Option<JoinHandle<()>> {
        let Running { stop, ended } = self.running.remove(task)?;
        stop.cancel();
        Some(ended)
    }
}
