//! The onboard API: what programs on the robot say to the agent and hear from it, as JSON on
//! the robot's own broker.
//!
//! Invariants:
//! - every payload has a size cap and is refused whole or taken whole;
//! - a refusal is one message on the task's `error` topic that says what to do;
//! - nothing here is logged: payloads are sensor samples.

use std::time::Duration;

use moai_transport::ids::{ModelId, TaskId};
use moai_transport::link::{Link, Outgoing, PublishError, Qos};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ttl::TtlClass;
use crate::uplink::LinkState;

/// The largest payload of an onboard message.
pub const MAX_PAYLOAD_LEN: usize = 256 * 1024;
const MAX_SAMPLES_PER_MESSAGE: usize = 4096;
const MAX_CHANNELS: usize = 256;

/// What onboard software asks for.
pub enum Command {
    /// Open a task.
    Open(OpenRequest),
    /// Take samples, oldest first.
    Input(Samples),
    /// End the session and go on with a new one.
    Rotate,
    /// Close the task.
    Close,
}

/// Whether a message may be taken that the broker had retained. An `open` may: it stands until it is
/// taken back. Everything else was meant for its moment, and would come again with every connection.
#[must_use]
pub fn may_be_retained(topic: &str) -> bool {
    topic.ends_with("/open")
}

/// The payload of `open`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// The model to ask.
    pub model: ModelId,
    /// Lifetime class of the task's sessions.
    #[serde(default)]
    pub ttl: TtlClass,
}

/// Sensor samples: one value a channel, finite. Secret, therefore not `Debug`.
pub struct Samples(pub Vec<Vec<f64>>);

/// A refusal, as onboard software sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// A stable word for programs.
    pub code: &'static str,
    /// What was wrong and what to do, for people.
    pub message: String,
    /// The job it ends, if it ends one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// The session that job belonged to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

impl Refusal {
    /// A refusal that concerns no job.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), job: None, session: None }
    }
}

/// Parses a message of the onboard API; `None` if its topic is none of the API's.
pub fn parse(
    prefix: &str,
    topic: &str,
    payload: &[u8],
) -> Option<(TaskId, Result<Command, Refusal>)> {
    let rest = topic.strip_prefix(prefix)?.strip_prefix("/task/")?;
    let (task, verb) = rest.split_once('/')?;
    let task = task.parse().ok()?;
    if !["open", "input", "rotate", "close"].contains(&verb) {
        return None;
    }
    if payload.len() > MAX_PAYLOAD_LEN {
        let message = format!(
            "the message has {} bytes, at most {MAX_PAYLOAD_LEN} are taken; send fewer samples \
             at a time",
            payload.len()
        );
        return Some((task, Err(Refusal::new("too_large", message))));
    }
    let command = match verb {
        "open" => serde_json::from_slice(payload).map(Command::Open).map_err(|error| {
            let message = format!(
                "`open` takes {{\"model\": \"…\", \"ttl\": \"general|sensitive|long\"}}: {error}"
            );
            Refusal::new("malformed", message)
        }),
        "input" => parse_samples(payload).map(Command::Input),
        "rotate" => Ok(Command::Rotate),
        _ => Ok(Command::Close),
    };
    Some((task, command))
}

/// An input that is not a bare sample: one of the two has to be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputObject {
    values: Option<Vec<f64>>,
    samples: Option<Vec<Vec<f64>>>,
}

/// Told apart by the first byte: a guess that is taken back would cost more than the parsing.
fn parse_forms(payload: &[u8]) -> serde_json::Result<Vec<Vec<f64>>> {
    if payload.trim_ascii_start().first() == Some(&b'[') {
        return serde_json::from_slice(payload).map(|values| vec![values]);
    }
    let object: InputObject = serde_json::from_slice(payload)?;
    match (object.values, object.samples) {
        (Some(values), None) => Ok(vec![values]),
        (None, Some(samples)) => Ok(samples),
        _ => Err(serde::de::Error::custom("one of `values` and `samples` has to be there")),
    }
}

fn parse_samples(payload: &[u8]) -> Result<Samples, Refusal> {
    // serde's own message could quote the payload, which is a sensor reading.
    let samples = parse_forms(payload).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        let message = format!(
            "not an input ({place}): send [v, …], {{\"values\": [v, …]}} or \
             {{\"samples\": [[v, …], …]}} with finite numbers"
        );
        Refusal::new("malformed", message)
    })?;
    if samples.is_empty() || samples.len() > MAX_SAMPLES_PER_MESSAGE {
        let message = format!(
            "a message holds 1 to {MAX_SAMPLES_PER_MESSAGE} samples, this one {}",
            samples.len()
        );
        return Err(Refusal::new("wrong_length", message));
    }
    for (index, sample) in samples.iter().enumerate() {
        if sample.is_empty() || sample.len() > MAX_CHANNELS {
            let message = format!("sample {} has {} values", index + 1, sample.len());
            return Err(Refusal::new("wrong_length", message));
        }
        if sample.iter().any(|value| !value.is_finite()) {
            let message = format!("sample {} holds a value that is not finite", index + 1);
            return Err(Refusal::new("not_finite", message));
        }
    }
    Ok(Samples(samples))
}

/// What a task is doing, as its retained `state` topic says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskState {
    /// `opening`, `active`, `draining` or `ended`.
    pub state: &'static str,
    /// The model it asks.
    pub model: String,
    /// Its session, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// What it waits for, or why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An answer, as released to onboard software.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// Number of the job within its session; the same number is the same answer.
    pub job: u64,
    /// The session.
    pub session: String,
    /// The model.
    pub model: String,
    /// The decision.
    pub label: String,
    /// Where the time went.
    pub timing: Timing,
    /// What crossed the wire.
    pub bytes: Bytes,
}

/// Where the time of a job went, in microseconds. Parts that were not measured, because the
/// agent restarted in between, are absent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timing {
    /// Features and encryption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt_us: Option<u64>,
    /// Spool, links, brokers and the server's queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink_us: Option<u64>,
    /// Evaluation on ciphertext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_us: Option<u64>,
    /// Checks and decryption.
    pub decrypt_us: u64,
    /// From the window's last sample to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u64>,
}

/// Bytes of one job.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bytes {
    /// The encrypted input.
    pub ciphertext_up: usize,
    /// The encrypted result.
    pub ciphertext_down: usize,
    /// The whole frame that carried the input.
    pub frame_up: usize,
    /// The whole frame that carried the result.
    pub frame_down: usize,
    /// The samples in the clear, as 64-bit numbers.
    pub plain: u32,
}

/// Publishes to onboard software.
#[derive(Clone)]
pub struct Onboard {
    link: Link,
    prefix: String,
    state: watch::Receiver<LinkState>,
    stop: CancellationToken,
}

impl Onboard {
    /// Publishes through `link`, whose state is `state`; waits for no link after `stop`.
    #[must_use]
    pub fn new(
        link: Link,
        prefix: String,
        state: watch::Receiver<LinkState>,
        stop: CancellationToken,
    ) -> Self {
        Self { link, prefix, state, stop }
    }

    /// Whether the link is up.
    #[must_use]
    pub fn link_state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The retained health topic.
    #[must_use]
    pub fn health_topic(prefix: &str) -> String {
        format!("{prefix}/agent/health")
    }

    /// The topics the agent listens to.
    #[must_use]
    pub fn filters(prefix: &str) -> Vec<String> {
        ["open", "input", "rotate", "close"]
            .iter()
            .map(|verb| format!("{prefix}/task/+/{verb}"))
            .collect()
    }

    /// Publishes an answer; waits for the broker, over restarts of it, until it is taken. False if
    /// the agent stopped before.
    pub async fn answer(&self, task: &TaskId, answer: &Answer) -> bool {
        self.publish(&self.topic(task, "result"), answer, false).await
    }

    /// Publishes a refusal, with the patience of [`Onboard::answer`].
    pub async fn refuse(&self, task: &TaskId, refusal: &Refusal) -> bool {
        tracing::info!(%task, code = refusal.code, "refused");
        self.publish(&self.topic(task, "error"), refusal, false).await
    }

    /// Publishes a task's state.
    pub async fn state(&self, task: &TaskId, state: &TaskState) {
        self.publish(&self.topic(task, "state"), state, true).await;
    }

    /// Publishes the agent's health.
    pub async fn health(&self, health: &impl Serialize) {
        self.publish(&Self::health_topic(&self.prefix), health, true).await;
    }

    fn topic(&self, task: &TaskId, leaf: &str) -> String {
        format!("{}/task/{task}/{leaf}", self.prefix)
    }

    async fn publish(&self, topic: &str, message: &impl Serialize, retain: bool) -> bool {
        let payload = match serde_json::to_vec(message) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, topic, "message cannot be written");
                return true;
            }
        };
        let mut state = self.state.clone();
        loop {
            let outgoing = Outgoing {
                retain,
                content_type: Some("application/json".to_owned()),
                ..Outgoing::new(topic.to_owned(), payload.clone(), Qos::AtLeastOnce)
            };
            match self.link.publish(outgoing).await {
                Ok(()) => return true,
                Err(PublishError::Down) => {}
                Err(error) => {
                    tracing::error!(%error, topic, "the onboard broker never takes this message");
                    return true;
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return false,
                up = state.wait_for(|state| *state == LinkState::Up) => if up.is_err() { return false },
            }
        }
    }
}

/// Whole microseconds of a duration.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(payload: &[u8]) -> Result<Vec<Vec<f64>>, &'static str> {
        let (task, command) = parse("moai", "moai/task/grasp/input", payload).unwrap();
        assert_eq!(task.to_string(), "grasp");
        match command {
            Ok(Command::Input(Samples(samples))) => Ok(samples),
            Ok(_) => panic!("not an input"),
            Err(refusal) => Err(refusal.code),
        }
    }

    #[test]
    fn an_input_has_three_forms() {
        assert_eq!(input(b"[1, 2.5]"), Ok(vec![vec![1.0, 2.5]]));
        assert_eq!(input(br#"{"values": [1]}"#), Ok(vec![vec![1.0]]));
        assert_eq!(input(br#"{"samples": [[1],[2]]}"#), Ok(vec![vec![1.0], vec![2.0]]));
    }

    #[test]
    fn what_is_no_input_is_refused_with_a_code() {
        assert_eq!(input(b"hello"), Err("malformed"));
        assert_eq!(input(b"[1, NaN]"), Err("malformed"));
        assert_eq!(input(b"[1e999]"), Err("malformed"));
        assert_eq!(input(b"{\"values\": [1], \"more\": 2}"), Err("malformed"));
        assert_eq!(input(b"{}"), Err("malformed"));
        assert_eq!(input(br#"{"values": [1], "samples": [[1]]}"#), Err("malformed"));
        assert_eq!(input(b"[]"), Err("wrong_length"));
        assert_eq!(input(&vec![b' '; MAX_PAYLOAD_LEN + 1]), Err("too_large"));
    }

    #[test]
    fn a_refusal_never_quotes_the_payload() {
        let (_, command) = parse("moai", "moai/task/t/input", b"{\"values\":[\"-3617\"]}").unwrap();
        let Err(refusal) = command else { panic!("taken") };
        assert!(!refusal.message.contains("3617"), "{}", refusal.message);
    }

    #[test]
    fn only_an_open_may_have_been_retained() {
        assert!(may_be_retained("moai/task/arm/open"));
        assert!(!may_be_retained("moai/task/arm/input"));
        assert!(!may_be_retained("moai/task/arm/close"));
    }

    #[test]
    fn other_topics_are_not_ours() {
        for topic in ["moai/task/grasp/result", "moai/task/a b/input", "other/task/x/input"] {
            assert!(parse("moai", topic, b"[1]").is_none(), "{topic}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            let _ = parse("moai", "moai/task/t/input", &payload);
            let _ = parse("moai", "moai/task/t/open", &payload);
        }
    }
}
