//! What a session sends: the question whether a server knows it, chunks of its keys, jobs.

use std::sync::Arc;
use std::time::Duration;

use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::WorkerId;
use moai_transport::topic::Topic;
use tokio::time::Instant;

use super::{Actor, Done};
use crate::secrets::OsEntropy;
use crate::uplink::SendError;

impl Actor {
    /// Sends whatever may be sent now: the question, chunks, jobs.
    pub(super) fn drive(&mut self) {
        let now = Instant::now();
        if let Some(manifest) = &self.record.facts.manifest {
            let nonce = OsEntropy::bytes().map_or(0, u64::from_be_bytes);
            if nonce != 0 && self.registration.ask(now, nonce) {
                let mut manifest = manifest.clone();
                manifest.nonce = nonce;
                manifest.ttl_seconds =
                    u32::try_from(self.remaining().as_secs().max(1)).unwrap_or(u32::MAX);
                let topic = Topic::Open {
                    identity: self.services.uplink.identity().clone(),
                    session: self.record.id.clone(),
                };
                self.opens += 1;
                match manifest.encode() {
                    Ok(body) => {
                        self.spawn(topic, FrameKind::Open, self.opens, body, Done::Opened);
                    }
                    Err(error) => {
                        tracing::error!(session = %self.record.id, %error, "open cannot be encoded");
                    }
                }
            }
        }
        while let Some((upload, worker)) = self.registration.upload() {
            let worker = worker.clone();
            let Some(chunk) = upload.next_chunk() else { break };
            let topic = self.to_worker(worker, "chunk");
            let (Frame { claims, .. }, expiry) =
                self.frame(FrameKind::Chunk, chunk.index, Vec::new());
            let uplink = self.services.uplink.clone();
            self.work.spawn(async move {
                let sent = uplink.send_chunk(&topic, &claims, &chunk, expiry).await;
                Done::Chunk { index: chunk.index, sent: sent.map(|sent| sent.frame_len) }
            });
        }
        if let Some(worker) = self.registration.registered_worker().cloned() {
            let order = self.order();
            while let Some((number, body)) = self.jobs.next_due(order, now) {
                let topic = self.to_worker(worker.clone(), "job");
                self.spawn(topic, FrameKind::Job, number.0, body.to_vec(), move |sent| Done::Job {
                    number,
                    sent,
                });
            }
        }
    }

    pub(super) fn to_worker(&self, worker: WorkerId, leaf: &str) -> Topic {
        let identity = self.services.uplink.identity().clone();
        let session = self.record.id.clone();
        match leaf {
            "chunk" => Topic::Chunk { identity, worker, session },
            "job" => Topic::Job { identity, worker, session },
            _ => Topic::Delete { identity, worker, session },
        }
    }

    pub(super) fn frame(&self, kind: FrameKind, number: u64, body: Vec<u8>) -> (Frame, Duration) {
        let lifetime = self.remaining().min(kind.max_lifetime());
        let claims = Claims {
            identity: Some(self.services.uplink.identity().clone()),
            session: Some(self.record.id.clone()),
            number,
            model: Some(self.model.clone()),
            context: Some(self.context),
            expires_at: (self.services.clock.unix() + lifetime).as_secs(),
            ..Claims::default()
        };
        (Frame { kind, claims, body }, lifetime)
    }

    pub(super) fn spawn(
        &mut self,
        topic: Topic,
        kind: FrameKind,
        number: u64,
        body: Vec<u8>,
        done: impl FnOnce(Result<usize, SendError>) -> Done + Send + 'static,
    ) {
        let (frame, expiry) = self.frame(kind, number, body);
        let (uplink, key) = (self.services.uplink.clone(), Arc::clone(&self.signing_key));
        self.work.spawn(async move {
            done(uplink.send(&topic, &frame, &key, expiry).await.map(|sent| sent.frame_len))
        });
    }
}
