//! Numbered windows at a steady pace, and what the agent says to them.
//!
//! The task is declared to block, so that nothing the broker has taken is dropped, and its model
//! answers a window's number to base [`DIGITS`]: an answer to another window is another answer.
//!
//! Invariants:
//! - windows are published one after another: the next only after the broker has the one before;
//! - a window whose publication is in doubt is published again, and both are on record;
//! - whatever the agent says of the task is on record, with the time of its arrival.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ledger::{Outcome, Sent, Verdict};
use crate::mqtt::{Address, Client, Message};
use crate::onboard::PREFIX;

/// How many different answers there are.
pub const DIGITS: u64 = 8;
/// The task.
pub const TASK: &str = "count";
/// The model.
pub const MODEL: &str = "digit";
/// Time from window to window.
pub const PERIOD: Duration = Duration::from_millis(200);

/// Declares the task in the agent's configuration.
pub const AGENT_TOML: &str =
    "[[tasks]]\nname = \"count\"\nmodel = \"digit\"\nwhen_full = \"block\"\n";

/// Writes the model into a directory of its own.
///
/// # Errors
/// The directory cannot be written.
pub fn write_model(directory: &Path) -> Result<()> {
    let digits = 0..DIGITS;
    let edges = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5];
    // The first label's score is always 0; of the others, the digit's own is 1.
    let rows: Vec<Vec<u8>> = (1..DIGITS)
        .map(|row| digits.clone().map(|digit| u8::from(digit == row)).collect())
        .collect();
    let labels: Vec<String> = digits.map(|digit| digit.to_string()).collect();
    let model = json!({
        "format": 1, "id": MODEL, "kind": "lookup", "levels": DIGITS,
        "window": { "samples": 1, "channels": ["number"] },
        "features": [{ "channel": 0, "statistic": "mean", "transform": "none", "edges": edges }],
        "labels": labels, "tables": [rows], "bias": vec![0; labels.len() - 1],
    });
    std::fs::create_dir_all(directory)?;
    Ok(std::fs::write(directory.join("digit.json"), serde_json::to_vec_pretty(&model)?)?)
}

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    record: Arc<Record>,
    counts: watch::Receiver<Counts>,
    publishing: JoinHandle<Result<()>>,
    collecting: JoinHandle<()>,
    no_more: CancellationToken,
}

/// How far a load is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Windows that the broker has for sure.
    pub sent: usize,
    /// Outcomes that came.
    pub outcomes: usize,
    /// When the last one came.
    pub last: Option<Instant>,
}

#[derive(Debug)]
struct Record {
    client: Client,
    sent: Mutex<Vec<Sent>>,
    outcomes: Mutex<Vec<Outcome>>,
    counts: watch::Sender<Counts>,
}

impl Load {
    /// Begins to publish, on the robot's own broker.
    ///
    /// # Errors
    /// The broker is down.
    pub async fn start(onboard_port: u16) -> Result<Self> {
        let client_id = "load".to_owned();
        let client =
            Client::connect(Address { port: onboard_port, credentials: None, client_id }).await?;
        for what in ["result", "error"] {
            client.subscribe(&format!("{PREFIX}/task/{TASK}/{what}")).await?;
        }
        let (sender, counts) = watch::channel(Counts::default());
        let record = Arc::new(Record {
            client,
            sent: Mutex::default(),
            outcomes: Mutex::default(),
            counts: sender,
        });
        let no_more = CancellationToken::new();
        let publishing = tokio::spawn(Arc::clone(&record).publish(no_more.clone()));
        let collecting = tokio::spawn(Arc::clone(&record).collect());
        Ok(Self { record, counts, publishing, collecting, no_more })
    }

    /// How far it is.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until so many more outcomes have come.
    ///
    /// # Errors
    /// They do not come within `limit`.
    pub async fn more_outcomes(&mut self, more: usize, limit: Duration) -> Result<Counts> {
        let before = self.counts().outcomes;
        let wanted = before + more;
        let reached = self.counts.wait_for(|counts| counts.outcomes >= wanted);
        let is_late = tokio::time::timeout(limit, reached).await.is_err();
        let counts @ Counts { sent, outcomes, .. } = self.counts();
        if is_late {
            let came = outcomes - before;
            bail!("{came} of {more} outcomes came within {limit:?}; {sent} windows were sent");
        }
        Ok(counts)
    }

    /// Publishes no more, waits until nothing is missing, or nothing has come for `patience`, and
    /// then `listen` longer for what should not come; returns what was sent and what came.
    ///
    /// # Errors
    /// The publisher failed.
    pub async fn end(
        mut self,
        patience: Duration,
        listen: Duration,
    ) -> Result<(Vec<Sent>, Vec<Outcome>)> {
        self.no_more.cancel();
        (&mut self.publishing).await.context("the publisher failed")??;
        loop {
            let before = self.counts();
            let complete = self.counts.wait_for(|counts| counts.outcomes >= counts.sent);
            let is_complete = tokio::time::timeout(patience, complete).await.is_ok();
            if is_complete || self.counts() == before {
                break;
            }
        }
        tokio::time::sleep(listen).await;
        Ok((lock(&self.record.sent).clone(), lock(&self.record.outcomes).clone()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.publishing.abort();
        self.collecting.abort();
    }
}

impl Record {
    async fn publish(self: Arc<Self>, no_more: CancellationToken) -> Result<()> {
        let topic = format!("{PREFIX}/task/{TASK}/input");
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 0.. {
            if no_more.run_until_cancelled(ticks.tick()).await.is_none() {
                break;
            }
            let payload = (number % DIGITS).to_string();
            loop {
                let at = Instant::now();
                let is_sure = self.client.publish(&topic, payload.as_str()).await.is_ok();
                lock(&self.sent).push(Sent { number, is_sure, at });
                if is_sure {
                    break;
                }
            }
            self.counts.send_modify(|counts| counts.sent += 1);
        }
        Ok(())
    }

    async fn collect(self: Arc<Self>) {
        const FOR_EVER: Duration = Duration::from_hours(24);
        let filter = format!("{PREFIX}/task/{TASK}/+");
        // Also ends when the client is stopped.
        while let Ok(message) = self.client.wait_for(&filter, "outcome", FOR_EVER, |_| true).await {
            let at = Instant::now();
            lock(&self.outcomes).push(outcome(&message, at));
            self.counts.send_modify(|counts| {
                counts.outcomes += 1;
                counts.last = Some(at);
            });
        }
    }
}

/// What a message says; an answer that nobody can read is a wrong one.
fn outcome(message: &Message, at: Instant) -> Outcome {
    let is_error = message.topic.ends_with("/error");
    let body = message.json().unwrap_or(Value::Null);
    let verdict = if is_error {
        Verdict::Refused(body["code"].as_str().unwrap_or("unreadable").to_owned())
    } else {
        Verdict::Digit(body["label"].as_str().and_then(|label| label.parse().ok()))
    };
    let session = body["session"].as_str().map(str::to_owned);
    Outcome { session, job: body["job"].as_u64(), verdict, at }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use moai_fhe::{Model, Window};

    use super::*;

    #[test]
    fn the_model_says_the_number() {
        let directory = tempfile::tempdir().unwrap();
        write_model(directory.path()).unwrap();
        let model = Model::from_json(&std::fs::read(directory.path().join("digit.json")).unwrap());
        let model = model.unwrap();
        let card = model.card();
        for digit in 0..8_u8 {
            let inputs = card.inputs(&Window::new(1, 1, [f64::from(digit)]).unwrap()).unwrap();
            let scores = model.evaluate_clear(&inputs).unwrap();
            assert_eq!(card.label(&scores), digit.to_string());
        }
    }
}
