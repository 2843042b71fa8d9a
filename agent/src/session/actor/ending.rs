//! How a session ends, and how it waits for the agent's next start.

use moai_transport::frame::FrameKind;
use tokio::sync::mpsc;

use super::{Actor, BUSY_PAUSE};
use crate::audit::AuditEvent;
use crate::session::{EndReason, STOP_PATIENCE, SessionReport, SessionRequest};
use crate::uplink::SessionEvent;

impl Actor {
    /// The agent stops: answers that come soon are still released, the rest waits in the spool.
    pub(super) async fn suspend(
        mut self,
        mut events: mpsc::Receiver<SessionEvent>,
        mut requests: mpsc::Receiver<SessionRequest>,
    ) {
        // What was handed over goes into the spool, from where the next start takes it.
        requests.close();
        while let Ok(request) = requests.try_recv() {
            if let SessionRequest::Submit(input) = request {
                self.submit(input).await;
            }
        }
        let deadline = tokio::time::sleep(STOP_PATIENCE);
        tokio::pin!(deadline);
        while !(self.jobs.is_empty() && self.releases.is_empty()) {
            self.drive();
            tokio::select! {
                () = &mut deadline => break,
                Some(event) = events.recv() => self.event(event).await,
                Some(Ok(done)) = self.work.join_next() => self.done(done).await,
                Some(_) = self.releases.join_next() => {}
            }
        }
        tracing::info!(session = %self.record.id, waiting = self.jobs.len(), "session suspended");
    }

    pub(super) async fn end(
        mut self,
        reason: EndReason,
        mut requests: mpsc::Receiver<SessionRequest>,
    ) {
        let releases = std::mem::take(&mut self.releases).join_all();
        if tokio::time::timeout(STOP_PATIENCE, releases).await.is_err() {
            tracing::warn!(session = %self.record.id, "answers did not reach the onboard broker");
        }
        requests.close();
        while let Ok(request) = requests.try_recv() {
            if let SessionRequest::Submit(input) = request {
                let message = format!("the window was not encrypted: {}", reason.text());
                self.refuse(reason.refusal(), message, input.reply.as_ref()).await;
            }
        }
        let unanswered = self.jobs.len();
        for (number, job) in self.jobs.take_all() {
            let message = format!("the job was not answered: {}", reason.text());
            let refusal = self.refusal(reason.refusal(), number, message);
            self.tell(&refusal, job.reply().as_ref()).await;
        }
        let id = self.record.id.clone();
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
        if let Err(error) = self.services.spool.forget(&id).await {
            tracing::error!(session = %id, %error, "jobs of an ended session stay in the spool");
        }
        if let Err(error) = self.services.erase_record(id.clone()).await {
            tracing::error!(session = %id, %error, "the record of an ended session stays");
        }
        let (reports, audit) = (self.reports.clone(), self.services.audit.clone());
        let task = self.record.facts.task.clone();
        // Whoever hears of the end can count on it that the keys are gone.
        drop(self);
        tracing::info!(session = %id, reason = reason.text(), "session ended");
        let (session, reason_code) = (id.clone(), reason.code());
        audit.record(AuditEvent::SessionEnded { session, task, reason: reason_code, unanswered });
        // A task that has gone needs no reports.
        let _ = reports.send((id, SessionReport::Ended(reason))).await;
    }
}
