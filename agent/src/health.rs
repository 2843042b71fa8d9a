//! The agent's health, as its retained onboard topic, systemd and `status` say it.
//!
//! Invariants:
//! - whatever keeps the agent from its work, and whatever needs a person, is a reason;
//! - READY is told once: when both links are up at the same time, or after [`READY_PATIENCE`] without
//!   them, because a robot without its network must not hold up the start of others;
//! - the watchdog is fed here, and only while the parts it guards make progress.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::failure::LastFailure;
use crate::identity::renewal::CertificateState;
use crate::onboard::Onboard;
use crate::rotator::EpochState;
use crate::services::Services;
use crate::uplink::LinkState;
use crate::watchdog::{Turn, Watchdog};

/// How long READY waits for the links.
pub const READY_PATIENCE: Duration = Duration::from_secs(30);

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
    /// Those of an agent with these parts.
    #[must_use]
    pub fn of(
        services: &Services,
        certificate: watch::Receiver<CertificateState>,
        epoch: watch::Receiver<EpochState>,
    ) -> Self {
        Self {
            uplink: services.uplink.state(),
            onboard: services.onboard.link_state(),
            certificate,
            epoch,
            spool: services.spool.trouble(),
            audit: services.audit.trouble(),
            conditions: services.conditions.watch(),
        }
    }

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

/// Publishes the agent's health whenever it changes, and tells systemd through `tell`, and others that
/// READY was told.
pub async fn watch(
    mut vitals: Vitals,
    onboard: Onboard,
    state_directory: PathBuf,
    mut watchdog: Watchdog,
    told_ready: watch::Sender<bool>,
    stop: CancellationToken,
    tell: impl Fn(&[NotifyState<'_>]),
) {
    let mut ready = false;
    let mut patience = std::pin::pin!(tokio::time::sleep(READY_PATIENCE));
    loop {
        vitals.mark_seen();
        let health = vitals.health();
        if !ready && (vitals.are_links_up() || patience.is_elapsed()) {
            ready = true;
            LastFailure::forget(&state_directory);
            tracing::info!("ready");
            tell(&[NotifyState::Ready]);
            told_ready.send_replace(true);
        }
        let text = if health.reasons.is_empty() {
            "root secret unsealed, both links up".to_owned()
        } else {
            health.reasons.join("; ")
        };
        tell(&[NotifyState::Status(&text)]);
        // The wait for the onboard link is part of it.
        let mut published = std::pin::pin!(async {
            onboard.health(&health).await;
            std::future::pending::<()>().await;
        });
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut published => {}
                turn = watchdog.turn() => feed(&turn, &tell),
                () = &mut patience, if !ready => break,
                alive = vitals.changed() => if alive { break } else { return },
            }
        }
    }
}

fn feed(turn: &Turn, tell: &impl Fn(&[NotifyState<'_>])) {
    match turn {
        Turn::Alive => tell(&[NotifyState::Watchdog]),
        Turn::Hangs(parts) => {
            let text = format!("hangs, and is started anew soon: {}", parts.join(", "));
            tracing::error!("{text}");
            tell(&[NotifyState::Status(&text)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use moai_tpm::Epoch;
    use moai_transport::link;

    use super::*;
    use crate::echoes::Echoes;
    use crate::onboard::Topics;

    struct Ends {
        uplink: watch::Sender<LinkState>,
        onboard: watch::Sender<LinkState>,
        told: tokio::sync::mpsc::UnboundedReceiver<String>,
        state: tempfile::TempDir,
        _kept: Box<dyn std::any::Any>,
    }

    /// A health watch with links that are down, and a disk that an agent has failed on.
    fn begin(watchdog: Watchdog) -> Ends {
        let down = || watch::channel(LinkState::connecting());
        let ((uplink, uplink_seen), (onboard, onboard_seen)) = (down(), down());
        let (certificate, certificate_seen) =
            watch::channel(CertificateState { key: "in the TPM", not_after: None, warning: None });
        let (epoch, epoch_seen) = watch::channel(EpochState { epoch: Epoch(1), failure: None });
        let (spool, spool_seen) = watch::channel(None);
        let (audit, audit_seen) = watch::channel(None);
        let conditions = crate::conditions::Conditions::default();
        let vitals = Vitals {
            uplink: uplink_seen,
            onboard: onboard_seen.clone(),
            certificate: certificate_seen,
            epoch: epoch_seen,
            spool: spool_seen,
            audit: audit_seen,
            conditions: conditions.watch(),
        };
        let topics = Arc::new(Topics::new("moai", &[]));
        let (link, events, far) = link::pair();
        let (echo_link, echo_events, echo_far) = link::pair();
        let (echoes, listener) = Echoes::on(echo_link, echo_events, &topics);
        let stop = CancellationToken::new();
        let onboard_api = Onboard::new(link, topics, onboard_seen, echoes, stop.clone(), |_| {});
        let state = tempfile::tempdir().unwrap();
        LastFailure { at: 7, message: "no TPM".to_owned(), exit_code: 77 }.keep(state.path());
        let (teller, told) = tokio::sync::mpsc::unbounded_channel();
        let tell = move |states: &[NotifyState<'_>]| {
            let states: Vec<_> = states.iter().map(ToString::to_string).collect();
            let _ = teller.send(states.join("\n"));
        };
        let directory = state.path().to_owned();
        let ready = watch::Sender::new(false);
        tokio::spawn(watch(vitals, onboard_api, directory, watchdog, ready, stop.clone(), tell));
        let kept = (certificate, epoch, spool, audit, conditions, events, far, echo_far, listener);
        Ends { uplink, onboard, told, state, _kept: Box::new((kept, stop)) }
    }

    fn unwatched() -> Watchdog {
        Watchdog::new(None, |_| {})
    }

    #[tokio::test(start_paused = true)]
    async fn a_robot_without_a_network_is_ready_after_a_while_and_only_once() {
        let mut ends = begin(unwatched());
        let start = tokio::time::Instant::now();
        let status = "STATUS=uplink: connecting; onboard broker: connecting";
        assert_eq!(ends.told.recv().await.unwrap(), status);
        assert!(LastFailure::load(ends.state.path()).is_some());
        assert_eq!(ends.told.recv().await.unwrap(), "READY=1");
        assert_eq!(start.elapsed(), READY_PATIENCE);
        assert_eq!(LastFailure::load(ends.state.path()), None);
        assert_eq!(ends.told.recv().await.unwrap(), status);
        ends.uplink.send_replace(LinkState::Up);
        assert_eq!(ends.told.recv().await.unwrap(), "STATUS=onboard broker: connecting");
        ends.onboard.send_replace(LinkState::Up);
        assert_eq!(ends.told.recv().await.unwrap(), "STATUS=root secret unsealed, both links up");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_at_once_when_both_links_are_up() {
        let mut ends = begin(unwatched());
        ends.told.recv().await.unwrap();
        ends.uplink.send_replace(LinkState::Up);
        ends.told.recv().await.unwrap();
        ends.onboard.send_replace(LinkState::Up);
        assert_eq!(ends.told.recv().await.unwrap(), "READY=1");
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_before_and_after_ready_until_a_part_hangs() {
        const EVERY: Duration = Duration::from_mins(1);
        let mut watchdog = Watchdog::new(Some(EVERY), |_| {});
        let pulse = watchdog.guard("part");
        let mut ends = begin(watchdog);
        let mut fed = 0;
        let hangs = loop {
            let told = ends.told.recv().await.unwrap();
            fed += usize::from(told == "WATCHDOG=1");
            if told.contains("hangs") {
                break told;
            }
        };
        // The first turn asks; nobody answers.
        assert_eq!(fed, 1);
        assert_eq!(hangs, "STATUS=hangs, and is started anew soon: part");
        tokio::spawn(pulse.relay(|| std::future::ready(())));
        while ends.told.recv().await.unwrap() != "WATCHDOG=1" {}
    }
}
