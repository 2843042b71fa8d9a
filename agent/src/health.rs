//! The agent's health, as its retained onboard topic, systemd and `status` say it.
//!
//! Invariants: whatever keeps the agent from its work, and whatever needs a person, is a reason;
//! READY is told once, when both links were up at the same time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sd_notify::NotifyState;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::LastFailure;
use crate::identity::renewal::CertificateState;
use crate::onboard::Onboard;
use crate::rotator::EpochState;
use crate::startup::notify;
use crate::uplink::LinkState;

/// The agent's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `up`, `degraded` or `down`.
    pub status: &'static str,
    /// Why it is not `up`.
    pub reasons: Vec<String>,
}

impl Health {
    /// No agent.
    #[must_use]
    pub fn down(reason: &str) -> Self {
        Self { status: "down", reasons: vec![reason.to_owned()] }
    }
}

/// What the health of a running agent depends on.
#[derive(Clone)]
pub struct Vitals {
    /// The uplink.
    pub uplink: watch::Receiver<LinkState>,
    /// The robot's own broker.
    pub onboard: watch::Receiver<LinkState>,
    /// The robot's certificate.
    pub certificate: watch::Receiver<CertificateState>,
    /// The epoch in force.
    pub epoch: watch::Receiver<EpochState>,
    /// Why the spool takes no job.
    pub spool: watch::Receiver<Option<String>>,
    /// Why the audit log cannot be written.
    pub audit: watch::Receiver<Option<String>>,
    /// What parts of the agent suffer from.
    pub conditions: watch::Receiver<BTreeMap<String, String>>,
}

impl Vitals {
    /// The health now.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut reasons = Vec::new();
        if let Some(failure) = &self.epoch.borrow().failure {
            reasons.push(format!("custody: {failure}"));
        }
        if let Some(warning) = &self.certificate.borrow().warning {
            reasons.push(format!("certificate: {warning}"));
        }
        reasons.extend(self.spool.borrow().clone());
        reasons.extend(self.audit.borrow().clone());
        for (name, state) in [("uplink", &self.uplink), ("onboard broker", &self.onboard)] {
            if let LinkState::Down { reason, .. } = &*state.borrow() {
                reasons.push(format!("{name}: {reason}"));
            }
        }
        let conditions = self.conditions.borrow();
        reasons.extend(conditions.iter().map(|(part, reason)| format!("{part}: {reason}")));
        Health { status: if reasons.is_empty() { "up" } else { "degraded" }, reasons }
    }

    fn are_links_up(&self) -> bool {
        [&self.uplink, &self.onboard].into_iter().all(|link| *link.borrow() == LinkState::Up)
    }

    /// False if the agent is ending.
    async fn changed(&mut self) -> bool {
        let changed = tokio::select! {
            changed = self.uplink.changed() => changed,
            changed = self.onboard.changed() => changed,
            changed = self.certificate.changed() => changed,
            changed = self.epoch.changed() => changed,
            changed = self.spool.changed() => changed,
            changed = self.audit.changed() => changed,
            changed = self.conditions.changed() => changed,
        };
        changed.is_ok()
    }

    fn mark_seen(&mut self) {
        self.uplink.borrow_and_update();
        self.onboard.borrow_and_update();
        self.certificate.borrow_and_update();
        self.epoch.borrow_and_update();
        self.spool.borrow_and_update();
        self.audit.borrow_and_update();
        self.conditions.borrow_and_update();
    }
}

/// Publishes the agent's health whenever it changes, and tells systemd.
pub async fn watch(
    mut vitals: Vitals,
    onboard: Onboard,
    state_directory: PathBuf,
    stop: CancellationToken,
) {
    let mut ready = false;
    loop {
        vitals.mark_seen();
        let health = vitals.health();
        if vitals.are_links_up() && !ready {
            ready = true;
            LastFailure::forget(&state_directory);
            tracing::info!("ready");
            notify(&[NotifyState::Ready]);
        }
        let text = if health.reasons.is_empty() {
            "root secret unsealed, both links up".to_owned()
        } else {
            health.reasons.join("; ")
        };
        notify(&[NotifyState::Status(&text)]);
        tokio::select! {
            () = stop.cancelled() => return,
            // Published anew on every change; the wait for the onboard link is part of it.
            () = async {
                onboard.health(&health).await;
                std::future::pending::<()>().await;
            } => {}
            alive = vitals.changed() => if !alive { return },
        }
    }
}
