//! What a session hears: of servers, of the uplink, and of its own work that is done.

use moai_transport::ids::JobNumber;
use moai_transport::link::PublishError;
use moai_transport::message::{ErrorBody, ErrorCode};
use tokio::time::Instant;

use super::outcome::refusal_code;
use super::{Actor, BUSY_PAUSE, Done};
use crate::session::SessionReport;
use crate::session::outbox::Outcome;
use crate::uplink::{self, SendError, SessionEvent};

impl Actor {
    pub(super) async fn event(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Up => self.renew("the uplink came back").await,
            SessionEvent::Have(have) => self.have(&have).await,
            SessionEvent::Challenge(challenge) => self.challenge(challenge).await,
            SessionEvent::Result { model, context, number, body, compute, frame_len } => {
                if model.as_ref() != Some(&self.model)
                    || context.is_some_and(|it| it != self.context)
                {
                    let why = "a result of another model or context than the session's";
                    let class = ("result", "context");
                    return uplink::refused(&self.services.audit, class, &self.record.id, &why);
                }
                self.answer(number, &body, compute, frame_len);
            }
            SessionEvent::Stale(why) => {
                if self.registration.registered_worker().is_none() {
                    self.report(SessionReport::Opening(Some(why.to_string()))).await;
                }
            }
            SessionEvent::Error { number, error } => self.error(number, error).await,
            SessionEvent::WorkerDown(worker) => {
                if self.registration.worker() == Some(&worker) {
                    self.renew("the compute server went away").await;
                }
            }
        }
    }

    pub(super) async fn error(&mut self, number: Option<JobNumber>, error: ErrorBody) {
        tracing::warn!(session = %self.record.id, ?number, code = ?error.code, "the server refuses");
        match (error.code, number) {
            (ErrorCode::UnknownSession | ErrorCode::ExpiredSession, _) => {
                self.renew("the server does not hold the session").await;
            }
            // An open that came twice, or late; the newest is under way or was answered.
            (ErrorCode::Replayed, None) => {}
            (code, Some(number)) if code.is_transient() => {
                self.jobs.retry(number, Instant::now(), BUSY_PAUSE);
            }
            (_, Some(number)) => {
                if let Some(job) = self.jobs.remove(number) {
                    let message = format!("the server refused the job: {}", error.message);
                    let refusal = self.refusal(refusal_code(error.code), number, message);
                    self.decide(number, Outcome::Refusal(refusal), job.reply());
                }
            }
            // Not about the session's opening, and about no job: somebody else's frame, if anybody's.
            (_, None) if self.registration.registered_worker().is_some() => {}
            (code, None) if code.is_transient() => {
                let why = match code {
                    ErrorCode::UntrustedCertificate => "the server does not trust this robot",
                    ErrorCode::NotAttested => "the server does not believe this robot's state",
                    ErrorCode::ExpiredFrame => "the clocks of robot and server differ",
                    _ => "the server is busy",
                };
                let why = format!("{why}: {}", error.message);
                self.report(SessionReport::Opening(Some(why))).await;
            }
            (_, None) => {
                self.fail(format!("the server refused the session: {}", error.message));
            }
        }
    }

    pub(super) async fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Keys(keys) => self.keys_ready(keys).await,
            Done::Chunk { index, sent } => self.registration.chunk_done(index, sent.is_ok(), now),
            Done::Job { number, sent: Ok(frame_len) } => self.jobs.note_frame(number, frame_len),
            // A link that is down tells when it is up again; then all jobs go again.
            Done::Job { sent: Err(SendError::Publish(PublishError::Down)), .. }
            | Done::Opened(Ok(_)) => {}
            Done::Job { number, sent: Err(error) } => {
                tracing::debug!(session = %self.record.id, %number, %error, "job not sent yet");
                self.jobs.retry(number, now, BUSY_PAUSE);
            }
            Done::Attested(outcome) => self.attested(outcome).await,
            Done::Opened(Err(error @ SendError::Frame(_))) => {
                tracing::warn!(session = %self.record.id, %error, "open cannot be sent; trying again");
            }
            Done::Opened(Err(error)) => {
                tracing::debug!(session = %self.record.id, %error, "open not sent yet");
            }
        }
    }
}
