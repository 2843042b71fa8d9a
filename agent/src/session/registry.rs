//! Every session that has keys, so that any of them can be revoked whatever its task is doing.
//!
//! Invariants:
//! - a session is a member before its record is written, and until its keys are gone;
//! - while sessions are held none begins: whoever would begin one becomes a member first and looks
//!   then, so that none slips through between a hold and a revocation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moai_transport::ids::{SessionId, TaskId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The sessions that have keys.
#[derive(Clone)]
pub struct SessionRegistry(Arc<Shared>);

struct Shared {
    members: Mutex<HashMap<SessionId, Member>>,
    count: watch::Sender<usize>,
    held: watch::Sender<bool>,
}

struct Member {
    task: TaskId,
    revoked: CancellationToken,
}

/// A session's place in the registry; it leaves with it.
pub struct Membership {
    registry: SessionRegistry,
    id: SessionId,
    revoked: CancellationToken,
}

impl Default for SessionRegistry {
    fn default() -> Self {
        let (count, _) = watch::channel(0);
        let (held, _) = watch::channel(false);
        Self(Arc::new(Shared { members: Mutex::default(), count, held }))
    }
}

impl SessionRegistry {
    /// Takes a session in.
    #[must_use]
    pub fn enter(&self, id: SessionId, task: TaskId) -> Membership {
        let revoked = CancellationToken::new();
        let member = Member { task, revoked: revoked.clone() };
        let count = {
            let mut members = self.members();
            members.insert(id.clone(), member);
            members.len()
        };
        self.0.count.send_replace(count);
        Membership { registry: self.clone(), id, revoked }
    }

    /// Revokes the sessions of which this is true; returns them. Their keys go from here on.
    pub fn revoke(&self, which: impl Fn(&SessionId, &TaskId) -> bool) -> Vec<SessionId> {
        let members = self.members();
        let mut revoked: Vec<SessionId> = members
            .iter()
            .filter(|(id, member)| which(id, &member.task))
            .map(|(id, member)| {
                member.revoked.cancel();
                id.clone()
            })
            .collect();
        revoked.sort_unstable();
        revoked
    }

    /// Waits until none of these has keys.
    pub async fn left(&self, ids: &[SessionId]) {
        let gone = |_: &usize| {
            let members = self.members();
            !ids.iter().any(|id| members.contains_key(id))
        };
        // The sender lives as long as the registry.
        let _ = self.0.count.subscribe().wait_for(gone).await;
    }

    /// Lets no session begin, or lets them begin again.
    pub fn hold(&self, held: bool) {
        self.0.held.send_replace(held);
    }

    /// Whether no session may begin.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<bool> {
        self.0.held.subscribe()
    }

    fn members(&self) -> MutexGuard<'_, HashMap<SessionId, Member>> {
        self.0.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// Cancelled when the session is revoked.
    #[must_use]
    pub fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = self.registry.members();
        members.remove(&self.id);
        let count = members.len();
        // Told after the lock is free: whoever waits looks into the table.
        drop(members);
        self.registry.0.count.send_replace(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> SessionId {
        SessionId::new(1_700_000_000_000, [n; 10])
    }

    #[tokio::test]
    async fn a_revocation_reaches_its_sessions_and_waits_for_them() {
        let registry = SessionRegistry::default();
        let (arm, leg): (TaskId, TaskId) = ("arm".parse().unwrap(), "leg".parse().unwrap());
        let one = registry.enter(id(1), arm.clone());
        let two = registry.enter(id(2), leg.clone());
        let revoked = registry.revoke(|_, task| *task == arm);
        assert_eq!(revoked, [id(1)]);
        assert!(one.revoked().is_cancelled() && !two.revoked().is_cancelled());
        let waiting = tokio::spawn({
            let registry = registry.clone();
            async move { registry.left(&[id(1)]).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(one);
        waiting.await.unwrap();
        assert_eq!(registry.revoke(|_, _| true), [id(2)]);
    }
}
