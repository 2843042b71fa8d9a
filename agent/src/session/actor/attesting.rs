//! The answer to a server that serves attested robots only.
//!
//! Invariants:
//! - a challenge counts only if it is about our newest open, and one is worked on at a time;
//! - a robot that cannot answer says so, and keeps asking: it may be enrolled meanwhile.

use std::sync::Arc;

use moai_transport::frame::{Frame, FrameKind};
use moai_transport::message::Challenge;
use moai_transport::topic::Topic;

use super::{Actor, Done};
use crate::services::off_thread;
use crate::session::SessionReport;

impl Actor {
    pub(super) async fn challenge(&mut self, challenge: Challenge) {
        if self.attesting || !self.registration.is_challenged(challenge.nonce) {
            return;
        }
        // Checked when it was decoded.
        let Ok(random) = challenge.random() else { return };
        let Some(attester) = self.services.attester.clone() else {
            let why =
                "the server serves attested robots only, and this one has no TPM identity key";
            return self.report(SessionReport::Opening(Some(why.to_owned()))).await;
        };
        self.attesting = true;
        let topic = Topic::Attest {
            identity: self.services.uplink.identity().clone(),
            worker: challenge.worker,
            session: self.record.id.clone(),
        };
        let session = self.record.id.clone();
        let (frame, expiry) = self.frame(FrameKind::Attest, 0, Vec::new());
        let (uplink, key) = (self.services.uplink.clone(), Arc::clone(&self.signing_key));
        self.work.spawn(async move {
            let evidence = off_thread(move || attester.evidence(&random, &session)).await;
            let outcome = match evidence {
                Ok(body) => uplink
                    .send(&topic, &Frame { body, ..frame }, &key, expiry)
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Done::Attested(outcome)
        });
    }

    pub(super) async fn attested(&mut self, outcome: Result<(), String>) {
        self.attesting = false;
        let session = &self.record.id;
        match outcome {
            Ok(()) => tracing::info!(%session, "the server's challenge is answered"),
            Err(error) => {
                tracing::warn!(%session, %error, "the server's challenge cannot be answered");
                let why = format!("the server's challenge cannot be answered: {error}");
                self.report(SessionReport::Opening(Some(why))).await;
            }
        }
    }
}
