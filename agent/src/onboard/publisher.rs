//! Publishes to onboard software.
//!
//! Invariants:
//! - what ends a job is published until the broker has taken it, over restarts of the broker;
//! - it is not published again if it is known that the broker has published it;
//! - a reply goes out after the message that it copies.

use std::fmt;
use std::sync::Arc;

use moai_transport::ids::TaskId;
use moai_transport::link::{Link, Outgoing, PublishError, Qos};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Answer, Format, Refusal, ReplyTo, TaskState, Topics};
use crate::echoes::{Echoes, JobKey};
use crate::uplink::LinkState;

/// How far the outcome of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseStep {
    /// It is known and was not published.
    Decided,
    /// The broker has taken it, and the job is still in the spool.
    Published,
}

impl fmt::Display for ReleaseStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decided => "decided",
            Self::Published => "published",
        })
    }
}

/// A handle to the onboard link's outgoing side.
#[derive(Clone)]
pub struct Onboard {
    link: Link,
    topics: Arc<Topics>,
    state: watch::Receiver<LinkState>,
    echoes: Echoes,
    stop: CancellationToken,
    observe: fn(ReleaseStep),
}

impl Onboard {
    /// Publishes through `link`, whose state is `state`; waits for no link after `stop`. `observe` is
    /// told of each step of an outcome.
    #[must_use]
    pub fn new(
        link: Link,
        topics: Arc<Topics>,
        state: watch::Receiver<LinkState>,
        echoes: Echoes,
        stop: CancellationToken,
        observe: fn(ReleaseStep),
    ) -> Self {
        Self { link, topics, state, echoes, stop, observe }
    }

    /// Whether the link is up.
    #[must_use]
    pub fn link_state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The API's topics.
    #[must_use]
    pub fn topics(&self) -> &Arc<Topics> {
        &self.topics
    }

    /// Publishes an answer; waits for the broker, over restarts of it, until it is taken. False if
    /// the agent stopped before.
    pub async fn answer(&self, task: &TaskId, answer: &Answer, reply: Option<&ReplyTo>) -> bool {
        let job = JobKey::parse(&answer.session, answer.job);
        self.tell(self.topics.result(task), answer, job.as_ref(), false, reply).await
    }

    /// Publishes a refusal, with the patience of [`Onboard::answer`].
    pub async fn refuse(
        &self,
        task: &TaskId,
        refusal: &Refusal,
        replies: impl IntoIterator<Item = &ReplyTo>,
    ) -> bool {
        tracing::info!(%task, code = %refusal.code, "refused");
        let job = refusal.session.as_deref().zip(refusal.job);
        let job = job.and_then(|(session, job)| JobKey::parse(session, job));
        self.tell(self.topics.error(task), refusal, job.as_ref(), false, replies).await
    }

    /// Publishes a task's state.
    pub async fn state(&self, task: &TaskId, state: &TaskState, replies: &[ReplyTo]) {
        self.tell(self.topics.state(task), state, None, true, replies).await;
    }

    /// Publishes the agent's health.
    pub async fn health(&self, health: &impl Serialize) {
        self.tell(self.topics.health(), health, None, true, None).await;
    }

    /// Tells that an outcome has come so far.
    pub fn observe(&self, step: ReleaseStep) {
        (self.observe)(step);
    }

    /// Publishes what tells the agent itself that everything before it has passed the broker.
    pub async fn marker(&self, marker: String) {
        let topic = self.topics.marker();
        self.publish(&Outgoing::new(topic, marker.into_bytes(), Qos::AtLeastOnce), None).await;
    }

    async fn tell(
        &self,
        topic: String,
        message: &impl Serialize,
        ends: Option<&JobKey>,
        retain: bool,
        replies: impl IntoIterator<Item = &ReplyTo>,
    ) -> bool {
        let payload = match serde_json::to_vec(message) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, topic, "message cannot be written");
                return true;
            }
        };
        let content_type = Some(Format::Json.content_type().to_owned());
        let message = Outgoing { content_type, ..Outgoing::new(topic, payload, Qos::AtLeastOnce) };
        if !self.publish(&Outgoing { retain, ..message.clone() }, ends).await {
            return false;
        }
        for ReplyTo { topic, correlation } in replies {
            let (topic, correlation_data) = (topic.to_string(), correlation.clone());
            let copy = Outgoing { topic, correlation_data, ..message.clone() };
            if !self.publish(&copy, None).await {
                return false;
            }
        }
        true
    }

    /// False if the agent stopped before the broker took it. A message that ends a job is published
    /// unless the broker has published one that ends it.
    async fn publish(&self, message: &Outgoing, ends: Option<&JobKey>) -> bool {
        let mut state = self.state.clone();
        let mut in_doubt = false;
        loop {
            tokio::select! {
                biased;
                up = state.wait_for(|state| *state == LinkState::Up) => if up.is_err() { return false },
                () = self.stop.cancelled() => return false,
            }
            if let Some(job) = ends {
                if self.echoes.is_published(job, in_doubt).await {
                    tracing::debug!(session = %job.session, number = %job.number, "published before");
                    return true;
                }
                self.observe(ReleaseStep::Decided);
            }
            match self.link.publish(message.clone()).await {
                Ok(()) => break,
                Err(PublishError::Down) => in_doubt = true,
                Err(error) => {
                    let topic = &message.topic;
                    tracing::error!(%error, topic, "the onboard broker never takes this message");
                    break;
                }
            }
        }
        if ends.is_some() {
            self.observe(ReleaseStep::Published);
        }
        true
    }
}
