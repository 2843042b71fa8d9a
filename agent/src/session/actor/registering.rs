//! A session's keys and its registration with a server.

use std::sync::Arc;

use moai_transport::chunk;
use moai_transport::message::Have;
use tokio::time::Instant;

use super::{Actor, Done, GeneratedKeys};
use crate::session::SessionReport;
use crate::session::registration::Next;

impl Actor {
    /// Makes the evaluation keys and their manifest; of keys that were made ahead, the manifest.
    pub(super) fn generate_keys(&mut self) {
        let fhe_context = self.record.facts.card.to_context();
        let seed = self.record.seed.fhe_seed(fhe_context.scheme_name());
        let (context, remaining) = (self.context, self.remaining());
        let session_key = self.signing_key.public();
        let engines = Arc::clone(&self.services.engines);
        let (warm, busy) = (self.warm_keys.take(), self.services.warm.busy());
        self.work.spawn_blocking(move || {
            let generate = || {
                let bytes = match warm {
                    Some(bytes) => bytes,
                    None => engines
                        .setup(&fhe_context, &seed)
                        .and_then(|engine| engine.evaluation_keys())
                        .map_err(|error| error.to_string())?,
                };
                drop(busy);
                let manifest = chunk::manifest(context, remaining, session_key, &bytes, 0);
                Ok(GeneratedKeys { manifest: manifest.map_err(|e| e.to_string())?, bytes })
            };
            Done::Keys(generate())
        });
    }

    pub(super) async fn keys_ready(&mut self, keys: Result<GeneratedKeys, String>) {
        let keys = match keys {
            Ok(keys) => keys,
            Err(error) => return self.fail(error),
        };
        let mut record = self.record.clone();
        record.facts.manifest = Some(keys.manifest.clone());
        record.facts.state = record.facts.state.generated();
        self.keep(record).await;
        tracing::debug!(session = %self.record.id, bytes = keys.bytes.len(), "evaluation keys are ready");
        if let Err(error) = self.registration.offer(keys.bytes, &keys.manifest) {
            self.fail(error.to_string());
        }
    }

    pub(super) async fn have(&mut self, have: &Have) {
        match self.registration.have(have) {
            Next::Ignore | Next::SendChunks => {}
            Next::GenerateKeys => {
                tracing::info!(session = %self.record.id, "the server lost the keys; making them again");
                self.generate_keys();
                self.report(SessionReport::Opening(Some("making keys again".to_owned()))).await;
            }
            Next::Registered => {
                tracing::info!(session = %self.record.id, worker = %have.worker, "session is registered");
                self.jobs.retry_all(Instant::now());
                if self.stands_by {
                    self.report(SessionReport::Ready).await;
                } else {
                    self.become_active().await;
                }
            }
        }
    }

    /// The server may no longer hold the session: ask, and send every job again.
    pub(super) async fn renew(&mut self, why: &str) {
        let was_active = self.registration.registered_worker().is_some();
        self.registration.renew();
        self.jobs.retry_all(Instant::now());
        if was_active && self.state().draining().is_none() {
            self.report(SessionReport::Opening(Some(why.to_owned()))).await;
        }
    }
}
