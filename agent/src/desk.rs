//! Who answers on the control socket, from the first moment to the last.
//!
//! Invariant: until the root secret is at hand there is nothing to ask for but the reason.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use moai_transport::ids::{SessionId, TaskId};
use tokio::sync::watch;

use crate::audit::AuditReport;
use crate::config::Config;
use crate::control::{Desk, Ordered, Refused, Revoked};
use crate::custody::Rotated;
use crate::emergency::{self, EmergencyReport};
use crate::hardening;
use crate::health::{Health, Vitals};
use crate::reload::{Reloaded, Reloads};
use crate::rotator::Rotations;
use crate::services::Services;
use crate::status::AgentStatus;
use crate::task::Order;
use crate::tasks::TaskDirectory;

/// Answers for the agent.
pub struct AgentDesk {
    config: Arc<Config>,
    started: Instant,
    /// What the start waits for.
    awaited: watch::Receiver<String>,
    running: OnceLock<Running>,
}

/// What there is to say once the root secret is at hand.
pub struct Running {
    /// The agent's parts.
    pub services: Arc<Services>,
    /// What its health depends on.
    pub vitals: Vitals,
    /// The root secret's custodian, for people.
    pub custodian: String,
    /// Who begins epochs.
    pub rotations: Rotations,
    /// Where tasks are given orders.
    pub tasks: TaskDirectory,
    /// Who reads the configuration again.
    pub reloads: Reloads,
}

impl AgentDesk {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(config: Arc<Config>, awaited: watch::Receiver<String>) -> Self {
        Self { config, started: Instant::now(), awaited, running: OnceLock::new() }
    }

    /// The agent runs from here on.
    pub fn open(&self, running: Running) {
        // It starts once.
        let _ = self.running.set(running);
    }

    fn running(&self) -> Result<&Running, Refused> {
        self.running.get().ok_or_else(|| Refused {
            message: format!("the agent is still starting: {}", self.awaited.borrow().as_str()),
            exit_code: 75,
        })
    }
}

impl Desk for AgentDesk {
    fn status(&self) -> AgentStatus {
        let mut status = AgentStatus {
            status: "starting".to_owned(),
            identity: self.config.identity.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            memory: hardening::describe(),
            ..AgentStatus::default()
        };
        let Some(running) = self.running.get() else {
            status.reasons = vec![self.awaited.borrow().clone()];
            return status;
        };
        let Health { status: word, reasons } = running.vitals.health();
        let models = running.services.uplink.catalogue();
        let models = models
            .borrow()
            .as_ref()
            .map_or_else(Vec::new, |catalogue| catalogue.ids().map(ToString::to_string).collect());
        let warm = *running.services.warm.state().borrow();
        AgentStatus {
            status: word.to_owned(),
            reasons,
            warm: (warm.ready, warm.wanted),
            custodian: running.custodian.clone(),
            epoch: Some(running.vitals.epoch.borrow().epoch.0),
            certificate: running.vitals.certificate.borrow().describe(),
            models,
            restart: running.reloads.restart(),
            tasks: running.services.board.snapshot(),
            ..status
        }
    }

    async fn reload(&self) -> Result<Reloaded, Refused> {
        self.running()?.reloads.reload().await
    }

    async fn rotate_root(&self) -> Result<Rotated, Refused> {
        self.running()?.rotations.rotate().await
    }

    async fn audit_verify(&self) -> Result<AuditReport, Refused> {
        let audit = self.running()?.services.audit.clone();
        audit.verify().await.map_err(|message| Refused { message, exit_code: 75 })
    }

    fn rotate_task(&self, task: TaskId) -> Result<Ordered, Refused> {
        self.order(task, Order::Rotate)
    }

    fn close_task(&self, task: TaskId) -> Result<Ordered, Refused> {
        self.order(task, Order::Close)
    }

    async fn revoke_task(&self, task: TaskId, stay_closed: bool) -> Result<Revoked, Refused> {
        let running = self.running()?;
        if stay_closed {
            self.order(task.clone(), Order::Close)?;
        }
        self.revoke(running, |_, owner| *owner == task, &format!("the task {task} has no session"))
            .await
    }

    async fn revoke_session(&self, session: SessionId) -> Result<Revoked, Refused> {
        let none = format!("there is no session {session}");
        self.revoke(self.running()?, |id, _| *id == session, &none).await
    }

    async fn emergency(&self, stay_closed: bool) -> Result<EmergencyReport, Refused> {
        self.declare_emergency(stay_closed, "control").await
    }
}

impl AgentDesk {
    /// Wipes all sessions' keys and begins the next epoch, on the word of `by`.
    ///
    /// # Errors
    /// The agent does not run yet, or the next epoch did not begin.
    pub async fn declare_emergency(
        &self,
        stay_closed: bool,
        by: &'static str,
    ) -> Result<EmergencyReport, Refused> {
        let running = self.running()?;
        let declared = emergency::declare(&running.services, &running.rotations, by).await;
        if stay_closed {
            running.tasks.order_all(Order::Close);
        }
        let (report, hold) = declared?;
        drop(hold);
        Ok(report)
    }

    fn order(&self, task: TaskId, order: Order) -> Result<Ordered, Refused> {
        let running = self.running()?;
        running
            .tasks
            .order(&task, order)
            .map_err(|error| Refused { message: error.to_string(), exit_code: 1 })?;
        Ok(Ordered { task })
    }

    async fn revoke(
        &self,
        running: &Running,
        which: impl Fn(&SessionId, &TaskId) -> bool,
        none: &str,
    ) -> Result<Revoked, Refused> {
        let registry = &running.services.registry;
        let revoked = registry.revoke(which);
        if revoked.is_empty() {
            return Err(Refused { message: none.to_owned(), exit_code: 1 });
        }
        registry.left(&revoked).await;
        Ok(Revoked { sessions: revoked.iter().map(ToString::to_string).collect() })
    }
}
