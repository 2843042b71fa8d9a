//! How a session ends, and how it waits for the agent's next start.

use std::sync::Arc;

use moai_transport::frame::FrameKind;
use tokio::sync::mpsc;

use super::{Actor, BUSY_PAUSE};
use crate::audit::AuditEvent;
use crate::session::farewell::Farewell;
use crate::session::lifecycle::{CutReason, Ended};
use crate::session::{STOP_PATIENCE, SessionReport, SessionRequest};
use crate::uplink::SessionEvent;
use crate::vault::EndedFacts;

impl Actor {
    /// The agent stops: answers that come soon are still released, the rest waits in the spool.
    pub(super) async fn suspend(
        mut self,
        mut events: mpsc::Receiver<SessionEvent>,
        mut requests: mpsc::Receiver<SessionRequest>,
    ) {
        if self.membership.revoked().is_cancelled() {
            self.cut = Some(CutReason::Revoked);
        }
        // What was handed over goes into the spool, from where the next start takes it.
        requests.close();
        while let Ok(request) = requests.try_recv() {
            self.take(request, &mut requests).await;
        }
        let deadline = tokio::time::sleep(STOP_PATIENCE);
        tokio::pin!(deadline);
        while !self.is_idle() && self.cut.is_none() {
            self.drive();
            tokio::select! {
                () = &mut deadline => break,
                Some(event) = events.recv() => self.event(event).await,
                Some(Ok(done)) = self.work.join_next() => self.done(done).await,
                () = self.outbox.arrived() => self.place_held().await,
            }
        }
        if let Some(reason) = self.cut.take() {
            let ended = self.record.facts.state.cut(reason);
            return self.end(&ended, requests).await;
        }
        let (kept, lost) =
            self.held.take_all().into_iter().partition::<Vec<_>, _>(|it| it.receipt.is_some());
        if !lost.is_empty() {
            let windows = lost.len();
            tracing::warn!(session = %self.record.id, windows, "windows without a place are lost");
        }
        if !kept.is_empty() {
            let windows = kept.len();
            tracing::info!(session = %self.record.id, windows, "windows without a place come again");
        }
        tracing::info!(session = %self.record.id, waiting = self.jobs.len(), "session suspended");
    }

    /// Erases the seed, wipes the keys, has the server told, and then tells whoever waits.
    pub(super) async fn end(mut self, ended: &Ended, mut requests: mpsc::Receiver<SessionRequest>) {
        let reason = ended.reason().clone();
        let id = self.record.id.clone();
        let facts = EndedFacts { task: self.record.facts.task.clone(), reason: reason.clone() };
        if let Err(error) = self.services.end_record(id.clone(), facts).await {
            tracing::error!(session = %id, %error, "the record of an ended session stays");
        }
        self.engine = None;
        self.set_crowded(false);
        // Work with a key that is under way ends with it.
        self.work.abort_all();
        if let Some(worker) = self.registration.worker().cloned() {
            let (frame, _) = self.frame(FrameKind::Delete, 0, Vec::new());
            let topic = self.to_worker(worker, "delete");
            let sent =
                self.services.uplink.send(&topic, &frame, &self.signing_key, BUSY_PAUSE * 60);
            if !matches!(tokio::time::timeout(BUSY_PAUSE, sent).await, Ok(Ok(_))) {
                tracing::warn!(session = %id, "the server was not told; it forgets the keys at expiry");
            }
        }
        self.services.uplink.unsubscribe(id.clone()).await;
        requests.close();
        let mut returned = self.held.take_all();
        while let Ok(request) = requests.try_recv() {
            if let SessionRequest::Submit(input) = request {
                returned.push(input);
            }
        }
        let (waiting, decided) = (self.jobs.take_all(), std::mem::take(&mut self.decided));
        let (outbox, reports) = (self.outbox, self.reports);
        let services = Arc::clone(&self.services);
        let task = self.record.facts.task.clone();
        services.board.forget_session(&task, &id);
        // Whoever hears of the end can count on it that the keys are gone.
        drop((self.record, self.signing_key, self.work));
        drop(self.membership);
        tracing::info!(session = %id, reason = reason.text(), "session ended");
        services.audit.record(AuditEvent::SessionEnded {
            session: id.clone(),
            task,
            reason: reason.word(),
            unanswered: waiting.len(),
        });
        let report = SessionReport::Ended { reason: reason.clone(), returned };
        // A task that has gone needs no reports.
        let _ = reports.send((id.clone(), report)).await;
        Farewell { services, id, reason, reports }.tell(outbox, waiting, decided).await;
    }
}
