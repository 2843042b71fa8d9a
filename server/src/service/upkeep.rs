//! How sessions end: by their robots, by their time, and by what other workers did to them.

use std::sync::Arc;

use moai_transport::ids::Tenant;
use moai_transport::message::ErrorCode;
use tokio::time::Instant;

use super::Service;
use crate::audit::Event;
use crate::health::Beacon;
use crate::refusal::Refused;
use crate::store::{SessionKey, StoreError};
use crate::tenants::TenantRules;

/// What a look through the store found.
pub(super) struct Swept {
    /// Their time is over, and they were removed: by this worker.
    expired: Vec<SessionKey>,
    /// This worker has them, and the store does not.
    gone: Vec<SessionKey>,
}

/// Sessions that are remembered to be ended when the store is back.
const MAX_ENDING: usize = 4096;

impl Service {
    /// What a tenant may have.
    pub(super) fn rules(&self, tenant: &Tenant) -> Result<&TenantRules, Refused> {
        self.settings.tenants.get(tenant).ok_or_else(|| {
            let message = format!("this server has no models for the tenant {tenant}");
            Refused(ErrorCode::UnknownModel, message)
        })
    }

    /// The robot wants its session forgotten.
    pub(super) async fn delete(&mut self, key: &SessionKey) {
        if let Some(attestation) = &mut self.attestation {
            attestation.forget(key);
        }
        self.drop_session(key);
        self.end(key).await;
    }

    /// Removes a session from the store: now, or when the store is back.
    pub(super) async fn end(&mut self, key: &SessionKey) {
        match self.store.end(key, (self.clock)()).await {
            Ok(was_there) => {
                self.ending.remove(key);
                if was_there {
                    tracing::info!(identity = %key.identity, session = %key.session, "session and keys deleted");
                    self.audit.record(key, (self.clock)(), &Event::Deleted);
                }
            }
            Err(error) => {
                tracing::warn!(%error, session = %key, "not deleted yet; tried again until it is");
                if self.ending.len() < MAX_ENDING {
                    self.ending.insert(key.clone());
                }
            }
        }
    }

    /// Once a second: what has had its time goes. The store is looked through meanwhile: one that
    /// does not answer stops nothing else.
    pub(super) fn sweep(&mut self) {
        self.health.iter_mut().for_each(Beacon::beat);
        let now = Instant::now();
        if let Some(attestation) = &mut self.attestation {
            attestation.expire(now);
        }
        for key in self.sessions.expire(now) {
            self.prepared.remove(&key);
        }
        if self.sweeping.is_empty() {
            let (store, names, now) =
                (Arc::clone(&self.store), self.sessions.names(), (self.clock)());
            self.sweeping.spawn(async move {
                let expired = store.sweep(now).await?;
                let alive = store.alive(&names, now).await?;
                let gone = names.into_iter().zip(alive).filter(|(_, is_alive)| !is_alive);
                Ok(Swept { expired, gone: gone.map(|(key, _)| key).collect() })
            });
        }
    }

    pub(super) async fn swept(&mut self, swept: Result<Swept, StoreError>) {
        let Swept { expired, gone } = match swept {
            Ok(swept) => swept,
            Err(error) => return tracing::warn!(%error, "the key store was not swept"),
        };
        for key in expired {
            tracing::info!(identity = %key.identity, session = %key.session, "session expired, keys deleted");
            self.audit.record(&key, (self.clock)(), &Event::Expired);
        }
        for key in gone {
            // Its robot ended it on another worker, or its time is over by the store's clock.
            tracing::debug!(session = %key, "session is not in the store any more");
            self.drop_session(&key);
        }
        // The store answers: now it may also take what it did not take before.
        for key in self.ending.clone() {
            self.end(&key).await;
        }
    }
}
