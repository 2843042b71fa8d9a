//! Onboard software and its broker, in memory: numbered windows in, outcomes out.
//!
//! Invariants:
//! - what the agent publishes is echoed to it, as its broker does;
//! - every outcome is laid beside its window.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use moai_transport::link::{FarEnd, LinkEvent, Message, Outgoing};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::engine::{MODEL, window};
use super::plan::Ends;

/// The prefix of the onboard API.
pub const PREFIX: &str = "moai";
const TASK: &str = "count";

/// What the task says of itself, and how many outcomes there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The task is active since.
    pub active: Option<Instant>,
    /// The task has ended at.
    pub ended: Option<Instant>,
    /// Outcomes, whatever they say.
    pub outcomes: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    sent: BTreeMap<u16, Instant>,
    answered: BTreeMap<u16, Duration>,
    jobs: BTreeSet<(String, u64)>,
    ends: Ends,
}

/// Onboard software.
#[derive(Debug, Clone)]
pub struct Software {
    agent: mpsc::Sender<LinkEvent>,
    ledger: Arc<Mutex<Ledger>>,
    progress: watch::Receiver<Progress>,
}

impl Software {
    /// At the far ends of the agent's onboard link and of that on which it hears itself.
    #[must_use]
    pub fn start(far: FarEnd, echoes: FarEnd) -> Self {
        let (sender, progress) = watch::channel(Progress::default());
        let agent = far.events();
        let ledger = Arc::<Mutex<Ledger>>::default();
        tokio::spawn(hear(far, echoes, Arc::clone(&ledger), sender));
        Self { agent, ledger, progress }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Opens the task.
    ///
    /// # Errors
    /// The agent has gone.
    pub async fn open(&self) -> Result<()> {
        self.say("open", serde_json::json!({"model": MODEL, "scores": true}).to_string()).await
    }

    /// Closes the task.
    ///
    /// # Errors
    /// The agent has gone.
    pub async fn close(&self) -> Result<()> {
        self.say("close", String::new()).await
    }

    /// Hands a window over.
    ///
    /// # Errors
    /// The agent has gone.
    pub async fn submit(&self, number: u16) -> Result<()> {
        self.ledger().sent.insert(number, Instant::now());
        self.say("input", window(number)).await
    }

    /// What became of the windows, and how long the answers took, in seconds.
    #[must_use]
    pub fn account(&self) -> (Ends, Vec<f64>) {
        let ledger = self.ledger();
        let sent = ledger.sent.len() as u64;
        let answered = ledger.answered.len() as u64;
        let lost = sent.saturating_sub(answered + ledger.ends.refused);
        let took = ledger.answered.values().map(Duration::as_secs_f64).collect();
        (Ends { sent, answered, lost, ..ledger.ends.clone() }, took)
    }

    async fn say(&self, verb: &str, payload: String) -> Result<()> {
        let message = message(format!("{PREFIX}/task/{TASK}/{verb}"), payload);
        self.agent.send(LinkEvent::Message(message)).await.ok().context("the agent has gone")
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

fn message(topic: String, payload: impl Into<Bytes>) -> Message {
    Message {
        topic,
        payload: payload.into(),
        retained: false,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        receipt: None,
    }
}

async fn hear(
    mut far: FarEnd,
    echoes: FarEnd,
    ledger: Arc<Mutex<Ledger>>,
    progress: watch::Sender<Progress>,
) {
    far.tell(LinkEvent::Up).await;
    echoes.tell(LinkEvent::Up).await;
    while let Some(publication) = far.next().await {
        let Outgoing { topic, payload, .. } = publication.outgoing().clone();
        match topic.strip_prefix(&format!("{PREFIX}/task/{TASK}/")) {
            Some("state") => {
                let body: Value = serde_json::from_slice(&payload).unwrap_or_default();
                progress.send_modify(|progress| match body["state"].as_str() {
                    Some("active") => progress.active = Some(Instant::now()),
                    Some("ended") => progress.ended = Some(Instant::now()),
                    _ => {}
                });
            }
            Some(leaf @ ("result" | "error")) => {
                lock(&ledger).take(leaf == "result", &payload);
                progress.send_modify(|progress| progress.outcomes += 1);
            }
            _ => {}
        }
        echoes.tell(LinkEvent::Message(message(topic, payload))).await;
        publication.accept();
    }
}

impl Ledger {
    fn take(&mut self, is_answer: bool, payload: &[u8]) {
        let body: Value = serde_json::from_slice(payload).unwrap_or_default();
        if let (Some(session), Some(job)) = (body["session"].as_str(), body["job"].as_u64())
            && !self.jobs.insert((session.to_owned(), job))
        {
            self.ends.doubled += 1;
            return;
        }
        if !is_answer {
            self.ends.refused += 1;
            return;
        }
        let number = body["scores"][0].as_u64().and_then(|number| u16::try_from(number).ok());
        match number.and_then(|number| Some((number, self.sent.get(&number)?.elapsed()))) {
            None => self.ends.wrong += 1,
            Some((number, took)) => {
                if self.answered.insert(number, took).is_some() {
                    self.ends.doubled += 1;
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(job: u64, number: u64) -> String {
        serde_json::json!({"session": "s", "job": job, "scores": [number]}).to_string()
    }

    #[test]
    fn an_answer_counts_once_and_only_for_a_window_that_was_sent() {
        let mut ledger = Ledger::default();
        for number in 0..4 {
            ledger.sent.insert(number, Instant::now());
        }
        ledger.take(true, answer(1, 0).as_bytes());
        ledger.take(true, answer(1, 0).as_bytes());
        ledger.take(true, answer(2, 0).as_bytes());
        ledger.take(true, answer(3, 9).as_bytes());
        ledger.take(true, b"{}");
        ledger.take(false, br#"{"session": "s", "job": 4, "code": "busy"}"#);
        let Ends { refused, doubled, wrong, .. } = ledger.ends;
        assert_eq!((ledger.answered.len(), refused, doubled, wrong), (1, 1, 2, 2));
    }
}
