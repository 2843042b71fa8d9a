//! Publishes to onboard software.
//!
//! Invariants:
//! - what ends a job is published until the broker has taken it, over restarts of the broker;
//! - a reply goes out after the message that it copies.

use std::sync::Arc;

use moai_transport::ids::TaskId;
use moai_transport::link::{Link, Outgoing, PublishError, Qos};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Answer, Format, Refusal, ReplyTo, TaskState, Topics};
use crate::uplink::LinkState;

/// A handle to the onboard link's outgoing side.
#[derive(Clone)]
pub struct Onboard {
    link: Link,
    topics: Arc<Topics>,
    state: watch::Receiver<LinkState>,
    stop: CancellationToken,
}

impl Onboard {
    /// Publishes through `link`, whose state is `state`; waits for no link after `stop`.
    #[must_use]
    pub fn new(
        link: Link,
        topics: Arc<Topics>,
        state: watch::Receiver<LinkState>,
        stop: CancellationToken,
    ) -> Self {
        Self { link, topics, state, stop }
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
        self.tell(self.topics.result(task), answer, false, reply).await
    }

    /// Publishes a refusal, with the patience of [`Onboard::answer`].
    pub async fn refuse(
        &self,
        task: &TaskId,
        refusal: &Refusal,
        replies: impl IntoIterator<Item = &ReplyTo>,
    ) -> bool {
        tracing::info!(%task, code = %refusal.code, "refused");
        self.tell(self.topics.error(task), refusal, false, replies).await
    }

    /// Publishes a task's state.
    pub async fn state(&self, task: &TaskId, state: &TaskState, replies: &[ReplyTo]) {
        self.tell(self.topics.state(task), state, true, replies).await;
    }

    /// Publishes the agent's health.
    pub async fn health(&self, health: &impl Serialize) {
        self.tell(self.topics.health(), health, true, None).await;
    }

    async fn tell(
        &self,
        topic: String,
        message: &impl Serialize,
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
        if !self.publish(&Outgoing { retain, ..message.clone() }).await {
            return false;
        }
        for ReplyTo { topic, correlation } in replies {
            let (topic, correlation_data) = (topic.to_string(), correlation.clone());
            if !self.publish(&Outgoing { topic, correlation_data, ..message.clone() }).await {
                return false;
            }
        }
        true
    }

    /// False if the agent stopped before the broker took it.
    async fn publish(&self, message: &Outgoing) -> bool {
        let mut state = self.state.clone();
        loop {
            match self.link.publish(message.clone()).await {
                Ok(()) => return true,
                Err(PublishError::Down) => {}
                Err(error) => {
                    let topic = &message.topic;
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
