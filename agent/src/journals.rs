//! The journals, audit log and spool: opened at the start.
//!
//! Invariant: a damaged file costs what was damaged, not the start; the audit log and the agent's
//! health say what it was.

use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditEvent};
use crate::clock::{BootId, Clock, watch};
use crate::conditions::Conditions;
use crate::config::Config;
use crate::spool::{Spool, SpoolDamage};
use crate::startup::Opened;

/// What is open.
pub struct Journals {
    /// The audit log.
    pub audit: Audit,
    /// The spool.
    pub spool: Spool,
    /// What was wrong, until the agent's next start.
    pub conditions: Conditions,
}

/// Opens them, and watches the wall clock for the audit log until `stop`.
///
/// # Errors
/// A file cannot be opened, or no thread be started.
pub fn open(
    config: &Config,
    opened: &Opened,
    clock: Arc<dyn Clock>,
    boot: &BootId,
    stop: &CancellationToken,
) -> anyhow::Result<Journals> {
    let (directory, vault) = (&config.state_directory, Arc::clone(&opened.vault));
    let audit = Audit::start(directory, vault, opened.epoch, config.audit, clock.clone(), boot)
        .context("cannot start the audit log")?;
    audit.record(AuditEvent::AgentStarted { version: env!("CARGO_PKG_VERSION") });
    let conditions = Conditions::default();
    if let Some(moved_to) = opened.vault_moved_to.clone() {
        let reason = format!("it was damaged, and is now {moved_to}; all sessions began anew");
        conditions.set("vault", Some(reason));
        audit.record(AuditEvent::VaultDamaged { moved_to });
    }
    let now = clock.unix().as_secs();
    let (spool, damage) = Spool::open(directory, config.spool, boot, now)?;
    if let Some(SpoolDamage { problem, copy }) = damage {
        let copy = copy.map_or(String::new(), |name| format!("; a copy is in {name}"));
        let problem = format!("{problem}{copy}");
        tracing::error!(%problem, "the spool was damaged");
        conditions.set("spool", Some(format!("it was damaged: {problem}")));
        audit.record(AuditEvent::SpoolDamaged { problem });
    }
    tokio::spawn(watch::run(clock, audit.clone(), stop.clone()));
    Ok(Journals { audit, spool, conditions })
}
