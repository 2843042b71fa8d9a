//! How sessions end: by their robots, by their time, and by what other workers did to them.

use moai_transport::ids::Tenant;
use moai_transport::message::ErrorCode;
use tokio::time::Instant;

use super::Service;
use crate::audit::Event;
use crate::refusal::Refused;
use crate::store::{SessionKey, StoreError};
use crate::tenants::TenantRules;

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

    /// Once a second: what has had its time goes.
    pub(super) async fn sweep(&mut self) {
        let now = Instant::now();
        if let Some(attestation) = &mut self.attestation {
            attestation.expire(now);
        }
        for key in self.sessions.expire(now) {
            self.prepared.remove(&key);
        }
        for key in self.ending.clone() {
            self.end(&key).await;
        }
        if let Err(error) = self.sweep_store().await {
            tracing::warn!(%error, "the key store was not swept");
        }
    }

    async fn sweep_store(&mut self) -> Result<(), StoreError> {
        let now = (self.clock)();
        for key in self.store.sweep(now).await? {
            tracing::info!(identity = %key.identity, session = %key.session, "session expired, keys deleted");
            self.audit.record(&key, now, &Event::Expired);
        }
        let names = self.sessions.names();
        let alive = self.store.alive(&names, now).await?;
        for (key, _) in names.iter().zip(alive).filter(|(_, is_alive)| !is_alive) {
            // Its robot ended it on another worker, or its time is over by the store's clock.
            tracing::debug!(session = %key, "session is not in the store any more");
            self.drop_session(key);
        }
        Ok(())
    }
}
