//! The part of the robot's onboard software: publishes recordings, reads decisions.
//!
//! Invariants:
//! - one window at a time is under way, so that a latency is one job's and holds no waiting for
//!   another;
//! - the expected decision comes from the plaintext model, computed here and not by the agent.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use moai_transport::frame::Frame;
use serde::Deserialize;

use super::console::Progress;
use super::selection::Grasp;
use super::site::{JOBS, Site, TASK};
use super::statistics::readable;
use crate::onboard::SLOW;
use crate::peek::peek;
use crate::reference::Reference;

/// The agent's answer, as it comes over the onboard API.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    /// Number of the job in its session.
    pub job: u64,
    /// The session.
    pub session: String,
    /// The decision.
    pub label: String,
    /// Where the time went.
    pub timing: Timing,
    /// What crossed the wire.
    pub bytes: Bytes,
}

/// Where the time of a job went, in microseconds, as the agent measured it.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Timing {
    #[serde(rename = "encrypt_us")]
    encrypt: u64,
    #[serde(rename = "uplink_us")]
    uplink: u64,
    #[serde(rename = "compute_us")]
    compute: u64,
    #[serde(rename = "decrypt_us")]
    decrypt: u64,
    #[serde(rename = "total_us")]
    total: u64,
}

/// Bytes of one job.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Bytes {
    /// The encrypted input.
    pub ciphertext_up: u64,
    /// The encrypted result.
    pub ciphertext_down: u64,
    /// The whole frame that carried the input.
    pub frame_up: u64,
    /// The whole frame that carried the result.
    pub frame_down: u64,
    /// The readings in the clear, as 64-bit numbers.
    pub plain: u64,
}

/// One of the parts of a job's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Features and encryption, on the robot.
    Encrypt,
    /// Links, brokers and the server's queue.
    Uplink,
    /// Evaluation on ciphertext.
    Compute,
    /// Checks and decryption, on the robot.
    Decrypt,
    /// From the window's last sample to the answer.
    Total,
}

impl Part {
    /// Every part, the sum last.
    pub const ALL: [Self; 5] =
        [Self::Encrypt, Self::Uplink, Self::Compute, Self::Decrypt, Self::Total];

    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Uplink => "uplink",
            Self::Compute => "compute",
            Self::Decrypt => "decrypt",
            Self::Total => "total",
        }
    }
}

impl Timing {
    /// How long one part took.
    #[must_use]
    pub fn of(&self, part: Part) -> Duration {
        Duration::from_micros(match part {
            Part::Encrypt => self.encrypt,
            Part::Uplink => self.uplink,
            Part::Compute => self.compute,
            Part::Decrypt => self.decrypt,
            Part::Total => self.total,
        })
    }
}

/// One played grasp.
#[derive(Debug, Clone)]
pub struct Job {
    /// What was played.
    pub grasp: Grasp,
    /// The data set's label, in the model's words.
    pub truth: String,
    /// The decision of the plaintext model.
    pub clear: String,
    /// What it cannot tell from that within the noise of a release, itself included.
    pub possible: Vec<String>,
    /// What the agent published.
    pub answer: Answer,
    /// The encrypted input as it crossed the uplink's broker.
    pub ciphertext: Vec<u8>,
}

impl Job {
    /// Whether the encrypted and the plaintext model decide alike.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.answer.label == self.clear
    }

    /// Whether it was too close to call: they decide differently, within the noise of a release.
    #[must_use]
    pub fn is_close(&self) -> bool {
        !self.agrees() && self.possible.contains(&self.answer.label)
    }

    /// Whether the decision is the data set's label.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.answer.label == self.truth
    }
}

/// Plays the grasps one after the other.
///
/// # Errors
/// The agent refuses an input, does not answer in time, or a process ends.
pub async fn play(site: &Site, model: &Reference, grasps: Vec<Grasp>) -> Result<Vec<Job>> {
    let progress = Progress::new(grasps.len());
    let mut jobs: Vec<Job> = Vec::with_capacity(grasps.len());
    for grasp in grasps {
        let name = grasp.name.clone();
        let job = site.unless_ended(play_one(site, model, grasp)).await;
        jobs.push(job.with_context(|| format!("job {} ({name}) failed", jobs.len() + 1))?);
        let agree = jobs.iter().filter(|job| job.agrees() || job.is_close()).count();
        if let Some(job) = jobs.last() {
            let time = readable(job.answer.timing.of(Part::Total));
            progress.update(jobs.len(), agree, &format!("{} in {time}", job.answer.label));
        }
    }
    Ok(jobs)
}

async fn play_one(site: &Site, model: &Reference, grasp: Grasp) -> Result<Job> {
    let (clear, possible) = (model.label(&grasp.trial)?, model.possible_labels(&grasp.trial)?);
    let truth = truth(model, &grasp);
    let onboard = &site.robot.onboard;
    for sample in &grasp.trial.samples {
        onboard.input(TASK, sample).await?;
    }
    let answer = tokio::select! {
        answer = onboard.result(TASK) => answer?,
        refusal = onboard.error(TASK) => {
            let log = site.robot.agent.process()?.log().tail();
            bail!("the agent refuses: {}\n{log}", refusal?)
        }
    };
    let answer: Answer = serde_json::from_value(answer)
        .context("the agent's answer is not as docs/protocol.md has it")?;
    let ciphertext = intercept(site, &answer).await?;
    Ok(Job { grasp, truth, clear, possible, answer, ciphertext })
}

/// The encrypted input that belongs to an answer, as the operator of the broker saw it.
async fn intercept(site: &Site, answer: &Answer) -> Result<Vec<u8>> {
    let of_this_job = |frame: &Frame| {
        let session = frame.claims.session.as_ref().map(ToString::to_string);
        frame.claims.number == answer.job && session.as_ref() == Some(&answer.session)
    };
    let message = site
        .operator
        .wait_for(JOBS, "encrypted input", SLOW, |message| {
            peek(&message.payload).is_ok_and(|frame| of_this_job(&frame))
        })
        .await?;
    let frame = peek(&message.payload)?;
    ensure!(
        (frame.body.len() as u64, message.payload.len() as u64)
            == (answer.bytes.ciphertext_up, answer.bytes.frame_up),
        "what crossed the broker has another size than the agent says"
    );
    Ok(frame.body)
}

/// The label of a grasp in the model's words: a model with two classes calls everything but the
/// first a failure.
fn truth(model: &Reference, grasp: &Grasp) -> String {
    let labels = model.card().labels();
    let outcome = grasp.outcome.to_string();
    if labels.contains(&outcome) { outcome } else { labels.last().cloned().unwrap_or_default() }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::selection;
    use crate::reference::Scheme;

    /// The first recording, a normal one, with these decisions.
    pub(crate) fn example(encrypted: &str, clear: &str) -> Job {
        let answer = json!({
            "job": 1,
            "session": "0193",
            "label": encrypted,
            "timing": {
                "encrypt_us": 100, "uplink_us": 2_000, "compute_us": 900_000, "decrypt_us": 20,
                "total_us": 902_120,
            },
            "bytes": {
                "ciphertext_up": 55, "ciphertext_down": 4_134, "frame_up": 187,
                "frame_down": 4_272, "plain": 720,
            },
        });
        Job {
            grasp: selection::load().unwrap().remove(0),
            truth: "normal".to_owned(),
            clear: clear.to_owned(),
            possible: vec![clear.to_owned()],
            answer: serde_json::from_value(answer).unwrap(),
            ciphertext: vec![0xab; 55],
        }
    }

    /// Both models were trained on these trials, so the plaintext decisions are the labels.
    #[test]
    fn plaintext_decisions_are_the_labels_in_the_models_words() {
        for id in ["grasp", "failure"] {
            let model = Reference::load(Scheme::Tfhe, id).unwrap();
            for grasp in selection::load().unwrap() {
                let decision = model.label(&grasp.trial).unwrap();
                assert_eq!(decision, truth(&model, &grasp), "{} {id}", grasp.name);
            }
        }
    }
}
