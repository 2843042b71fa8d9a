//! An emergency: every session revoked at once, and a new epoch.
//!
//! Invariants:
//! - no session begins between the revocation and the next epoch;
//! - keys are wiped and seeds are erased before the next epoch begins, so that it re-wraps none;
//! - what was asked for is bounded in time: neither a server nor a broker that does not answer
//!   keeps a key alive.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::AuditEvent;
use crate::control::Refused;
use crate::custody::Rotated;
use crate::rotator::Rotations;
use crate::services::Services;

/// How long sessions have to wipe their keys, erase their seeds, and tell the server, and key sets
/// that are being made to be finished and destroyed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an emergency did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmergencyReport {
    /// The sessions that were revoked.
    pub sessions: Vec<String>,
    /// Seeds made ahead that were erased.
    pub warm: usize,
    /// The epoch that began.
    pub rotated: Rotated,
}

/// Revokes every session and begins the next epoch, on the word of `by`. Sessions are held until the
/// guard goes.
///
/// # Errors
/// The next epoch did not begin; the sessions are revoked all the same.
pub async fn declare(
    services: &Services,
    rotations: &Rotations,
    by: &'static str,
) -> Result<(EmergencyReport, Hold), Refused> {
    tracing::warn!("emergency: every session is revoked");
    let hold = Hold::begin(services);
    let revoked = services.registry.revoke(|_, _| true);
    let gone = async {
        let warm = services.warm.destroy().await;
        services.registry.left(&revoked).await;
        warm
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    let sessions: Vec<String> = revoked.iter().map(ToString::to_string).collect();
    let event = AuditEvent::Emergency { sessions: sessions.len(), by };
    services.audit.record(event);
    let rotated = rotations.rotate().await.map_err(|refused| Refused {
        message: format!(
            "{} sessions are revoked, but no new epoch began: {}",
            sessions.len(),
            refused.message
        ),
        exit_code: refused.exit_code,
    })?;
    let Ok(warm) = gone else {
        let message = format!(
            "epoch {} is in force, but not everybody has confirmed within {} s that all keys of \
             sessions, and those made ahead, are gone; stop the agent to be sure",
            rotated.epoch,
            PATIENCE.as_secs()
        );
        return Err(Refused { message, exit_code: 1 });
    };
    tracing::warn!(sessions = sessions.len(), warm, epoch = rotated.epoch, "emergency is over");
    Ok((EmergencyReport { sessions, warm, rotated }, hold))
}

/// No session begins as long as this lives.
pub struct Hold(crate::session::registry::SessionRegistry);

impl Hold {
    fn begin(services: &Services) -> Self {
        services.registry.hold(true);
        Self(services.registry.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.hold(false);
    }
}
