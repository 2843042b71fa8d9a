//! What of the configuration may change while sessions live.
//!
//! Invariants:
//! - whoever acts on a setting looks it up when it acts, and keeps no copy;
//! - a session keeps the lifetime and the decryption budget that it began with.

use std::collections::BTreeMap;

use moai_transport::ids::TaskId;

use crate::config::{Config, DeclaredTask, SessionsConfig, WhenFull};
use crate::spool::{Order, SpoolLimits};

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSettings {
    /// How long sessions to come live and what they may do.
    pub sessions: SessionsConfig,
    /// How much waits for answers.
    pub spool: SpoolLimits,
    /// Tasks that open by themselves.
    pub tasks: Vec<DeclaredTask>,
    /// What becomes of a task's windows when many wait; the default where nothing is said.
    pub policies: BTreeMap<TaskId, Policy>,
}

/// What becomes of a task's windows when many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Which jobs go first.
    pub order: Order,
    /// Whether a window waits for its place where nothing more fits.
    pub when_full: WhenFull,
}

impl Policy {
    /// Whether a window for which there is no room is kept, and with it all that come after.
    #[must_use]
    pub fn holds(self) -> bool {
        self == Self { order: Order::OldestFirst, when_full: WhenFull::Block }
    }
}

impl LiveSettings {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let Config { sessions, spool, tasks, .. } = config;
        let policy = |task: &DeclaredTask| Policy { order: task.order, when_full: task.when_full };
        let policies = tasks.iter().map(|task| (task.id.clone(), policy(task))).collect();
        Self { sessions: *sessions, spool: *spool, tasks: tasks.clone(), policies }
    }
}
