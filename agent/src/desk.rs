//! Who answers on the control socket, from the first moment to the last.
//!
//! Invariant: until the root secret is at hand there is nothing to ask for but the reason.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::watch;

use crate::audit::AuditReport;
use crate::config::Config;
use crate::control::{Desk, Refused};
use crate::custody::Rotated;
use crate::hardening;
use crate::health::{Health, Vitals};
use crate::rotator::Rotations;
use crate::services::Services;
use crate::status::AgentStatus;

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
        AgentStatus {
            status: word.to_owned(),
            reasons,
            custodian: running.custodian.clone(),
            epoch: Some(running.vitals.epoch.borrow().epoch.0),
            certificate: running.vitals.certificate.borrow().describe(),
            models,
            tasks: running.services.board.snapshot(),
            ..status
        }
    }

    async fn rotate_root(&self) -> Result<Rotated, Refused> {
        self.running()?.rotations.rotate().await
    }

    async fn audit_verify(&self) -> Result<AuditReport, Refused> {
        let audit = self.running()?.services.audit.clone();
        audit.verify().await.map_err(|message| Refused { message, exit_code: 75 })
    }
}
