//! The outcome of a job: an answer or a refusal, on its way to onboard software.
//!
//! Invariants:
//! - a result is decrypted only if a job waits for it, and the job leaves before it is decrypted;
//! - a job leaves the spool after its outcome was taken onboard, not before.

use std::sync::Arc;
use std::time::Duration;

use moai_transport::ids::JobNumber;
use moai_transport::message::ErrorCode;
use tokio::time::Instant;

use super::Actor;
use crate::audit::AuditEvent;
use crate::onboard::{Answer, Bytes, Code, Refusal, ReplyTo, Timing, micros};

impl Actor {
    pub(super) fn answer(
        &mut self,
        number: JobNumber,
        body: &[u8],
        compute: Option<Duration>,
        frame_len: usize,
    ) {
        let Some(job) = self.jobs.remove(number) else {
            // Replayed, or sent twice as a broker may.
            tracing::debug!(session = %self.record.id, %number, "result of no waiting job dropped");
            self.services.audit.record(AuditEvent::frame_refused("result", "not_waiting"));
            return;
        };
        let start = Instant::now();
        let card = &self.record.facts.card;
        let label = self.engine.decrypt(card, body).map(|scores| card.label(&scores).to_owned());
        let decrypt = start.elapsed();
        let session = self.record.id.to_string();
        let outcome = label.map_err(|error| {
            let message = format!("the server's answer is not usable: {error}");
            self.refusal(Code::BadResult, number, message)
        });
        let made = job.made.as_ref();
        let total = made.map(|made| made.at.elapsed());
        let parts = made
            .zip(compute)
            .zip(total)
            .map(|((made, compute), total)| total.saturating_sub(made.encrypt + compute + decrypt));
        let outcome = outcome.map(|label| Answer {
            job: number.0,
            session,
            model: self.model.to_string(),
            label,
            timing: Timing {
                encrypt_us: made.map(|made| micros(made.encrypt)),
                uplink_us: parts.map(micros),
                compute_us: compute.map(micros),
                decrypt_us: micros(decrypt),
                total_us: total.map(micros),
            },
            bytes: Bytes {
                ciphertext_up: job.body.len(),
                ciphertext_down: body.len(),
                frame_up: job.frame_len,
                frame_down: frame_len,
                plain: job.plain_len,
            },
        });
        self.release(number, outcome, job.reply());
    }

    /// Jobs that were accepted and can't be sent again.
    pub(super) fn tell_lost(&mut self) {
        for number in std::mem::take(&mut self.lost) {
            let message = "the disk has lost the job before it was answered".to_owned();
            let refusal = self.refusal(Code::SpoolDamaged, number, message);
            self.release(number, Err(refusal), None);
        }
    }

    /// Publishes a job's outcome, then drops the job from the spool: in this order, so that a
    /// crash in between repeats an outcome (with the same number) and never loses one.
    pub(super) fn release(
        &mut self,
        number: JobNumber,
        outcome: Result<Answer, Refusal>,
        reply: Option<ReplyTo>,
    ) {
        let services = Arc::clone(&self.services);
        let (task, session) = (self.record.facts.task.clone(), self.record.id.clone());
        self.releases.spawn(async move {
            let taken = match &outcome {
                Ok(answer) => services.onboard.answer(&task, answer, reply.as_ref()).await,
                Err(refusal) => services.onboard.refuse(&task, refusal, reply.as_ref()).await,
            };
            if !taken {
                return;
            }
            services.board.update(&task, |status| match outcome {
                Ok(_) => status.answered += 1,
                Err(_) => status.refused += 1,
            });
            if let Err(error) = services.spool.remove(&session, number).await {
                tracing::error!(%session, %number, %error, "an ended job stays in the spool");
            }
        });
    }

    /// A refusal that ends a job.
    pub(super) fn refusal(&self, code: Code, number: JobNumber, message: String) -> Refusal {
        let session = Some(self.record.id.to_string());
        Refusal { job: Some(number.0), session, ..Refusal::new(code, message) }
    }

    /// Refuses a window that has become no job.
    pub(super) async fn refuse(&self, code: Code, message: String, reply: Option<&ReplyTo>) {
        let session = Some(self.record.id.to_string());
        self.tell(&Refusal { session, ..Refusal::new(code, message) }, reply).await;
    }

    pub(super) async fn tell(&self, refusal: &Refusal, reply: Option<&ReplyTo>) {
        self.services.onboard.refuse(&self.record.facts.task, refusal, reply).await;
        self.services.board.update(&self.record.facts.task, |status| status.refused += 1);
    }
}

/// A server's refusal in the onboard API's words.
pub(super) fn refusal_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::UnknownModel => Code::UnknownModel,
        ErrorCode::MalformedCiphertext => Code::MalformedCiphertext,
        ErrorCode::TooLarge => Code::TooLarge,
        ErrorCode::IdentityMismatch => Code::IdentityMismatch,
        _ => Code::ServerRefused,
    }
}
