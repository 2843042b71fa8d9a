//! The outcome of a job: an answer or a refusal, on its way to onboard software.
//!
//! Invariants:
//! - a result is decrypted only if a job waits for it, and the job leaves before it is decrypted;
//! - the first result that does not decrypt ends the session, and the words for it are the same
//!   whatever was wrong with it: whoever crafts results learns one bit of keys that are gone;
//! - outcomes go to onboard software in the order of job numbers where the oldest job goes first;
//! - nothing that was decrypted is logged, and only what the task's release policy names leaves.

use std::time::Duration;

use moai_fhe::ModelCard;
use moai_transport::ids::JobNumber;
use moai_transport::message::ErrorCode;
use serde_json::Number;
use tokio::time::Instant;

use super::Actor;
use crate::audit::AuditEvent;
use crate::onboard::{Answer, Bytes, Code, Refusal, ReplyTo, Timing, micros};
use crate::session::Input;
use crate::session::outbox::Outcome;
use crate::spool::Order;
use crate::vault::Release;

const BAD_RESULT: &str = "the server's answer is not usable; the session ends, and the next begins";

impl Actor {
    pub(super) fn answer(
        &mut self,
        number: JobNumber,
        body: &[u8],
        compute: Option<Duration>,
        frame_len: usize,
    ) {
        let Some(engine) = self.engine.as_ref().filter(|_| !self.is_expired()) else { return };
        let Some(job) = self.jobs.remove(number) else {
            // Replayed, or sent twice as a broker may.
            tracing::debug!(session = %self.record.id, %number, "result of no waiting job dropped");
            self.services.audit.record(AuditEvent::frame_refused("result", "not_waiting"));
            return;
        };
        let start = Instant::now();
        let card = &self.record.facts.card;
        let session = self.record.id.to_string();
        let Ok(scores) = engine.decrypt(card, body) else {
            self.services.audit.record(AuditEvent::frame_refused("result", "not_decrypted"));
            let refusal = self.refusal(Code::BadResult, number, BAD_RESULT.to_owned());
            self.decide(number, Outcome::Refusal(refusal), job.reply());
            return self.fail(BAD_RESULT.to_owned());
        };
        let label = card.label(&scores).to_owned();
        let scores = match self.record.facts.release {
            Release::Label => None,
            Release::Scores => {
                Some(scores.values().iter().map(|score| in_units(*score, card)).collect())
            }
        };
        let decrypt = start.elapsed();
        let made = job.made.as_ref();
        let total = made.map(|made| made.at.elapsed());
        let parts = made
            .zip(compute)
            .zip(total)
            .map(|((made, compute), total)| total.saturating_sub(made.encrypt + compute + decrypt));
        let answer = Answer {
            job: number.0,
            session,
            model: self.model.to_string(),
            label,
            scores,
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
        };
        self.decide(number, Outcome::Answer(Box::new(answer)), job.reply());
    }

    /// Jobs that were accepted and can't be sent again.
    pub(super) fn tell_lost(&mut self) {
        for number in std::mem::take(&mut self.lost) {
            let message = "the disk has lost the job before it was answered".to_owned();
            let refusal = self.refusal(Code::SpoolDamaged, number, message);
            self.decide(number, Outcome::Refusal(refusal), None);
        }
    }

    /// Hands a job's outcome over once those of all earlier jobs are; at once where the newest job
    /// counts.
    pub(super) fn decide(&mut self, number: JobNumber, outcome: Outcome, reply: Option<ReplyTo>) {
        self.decided.insert(number, (outcome, reply));
        let oldest = match self.order() {
            Order::OldestFirst => self.jobs.oldest(),
            Order::NewestFirst => None,
        };
        while let Some(entry) = self.decided.first_entry() {
            if oldest.is_some_and(|oldest| oldest < *entry.key()) {
                return;
            }
            let (number, (outcome, reply)) = entry.remove_entry();
            self.outbox.push(Some(number), outcome, reply);
        }
    }

    /// A refusal that ends a job.
    pub(super) fn refusal(&self, code: Code, number: JobNumber, message: String) -> Refusal {
        let session = Some(self.record.id.to_string());
        Refusal { job: Some(number.0), session, ..Refusal::new(code, message) }
    }

    /// Refuses a window that has become no job.
    pub(super) fn refuse(&mut self, code: Code, message: String, input: Input) {
        let session = Some(self.record.id.to_string());
        let refusal = Refusal { session, ..Refusal::new(code, message) };
        self.outbox.push(None, Outcome::Refusal(refusal), input.settle());
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

/// A score as the model means it.
fn in_units(score: i32, card: &ModelCard) -> Number {
    match card {
        ModelCard::Tfhe(_) => score.into(),
        // Divided, not multiplied: steps such as 0.01 are no binary fractions, but 100 is.
        ModelCard::Ckks(_) => Number::from_f64(f64::from(score) / card.score_step().recip())
            .unwrap_or_else(|| score.into()),
    }
}
