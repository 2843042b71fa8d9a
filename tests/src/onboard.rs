//! The robot's onboard software: opens tasks, publishes samples, reads answers.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::mqtt::{Address, Client};

/// How long key generation, upload or an evaluation may take on a slow, shared machine.
pub const SLOW: Duration = Duration::from_mins(2);

/// The topic prefix of the onboard API.
pub const PREFIX: &str = "moai";

/// A client of the agent's onboard API.
#[derive(Debug)]
pub struct Onboard {
    /// The connection, for what the methods here don't offer.
    pub client: Client,
}

impl Onboard {
    /// Connects to the robot's own broker.
    ///
    /// # Errors
    /// The broker is down.
    pub async fn connect(port: u16) -> Result<Self> {
        let client_id = "onboard-software".to_owned();
        let client = Client::connect(Address { port, credentials: None, client_id }).await?;
        for what in ["task/+/state", "task/+/result", "task/+/error", "agent/health"] {
            client.subscribe(&format!("{PREFIX}/{what}")).await?;
        }
        Ok(Self { client })
    }

    /// Opens a task with the default TTL class.
    ///
    /// # Errors
    /// The broker does not take the message.
    pub async fn open(&self, task: &str, model: &str) -> Result<()> {
        self.send(task, "open", &serde_json::json!({ "model": model })).await
    }

    /// Opens a task with a TTL class.
    ///
    /// # Errors
    /// The broker does not take the message.
    pub async fn open_with_ttl(&self, task: &str, model: &str, ttl: &str) -> Result<()> {
        self.send(task, "open", &serde_json::json!({ "model": model, "ttl": ttl })).await
    }

    /// Publishes one input: a sample, or whatever else serialises to JSON.
    ///
    /// # Errors
    /// The broker does not take the message.
    pub async fn input(&self, task: &str, input: &(impl Serialize + Sync)) -> Result<()> {
        self.send(task, "input", input).await
    }

    /// Publishes raw bytes as an input.
    ///
    /// # Errors
    /// The broker does not take the message.
    pub async fn raw_input(&self, task: &str, payload: impl Into<Vec<u8>>) -> Result<()> {
        self.client.publish(&topic(task, "input"), payload).await
    }

    /// Asks for new keys.
    ///
    /// # Errors
    /// The broker does not take the message.
    pub async fn rotate(&self, task: &str) -> Result<()> {
        self.send(task, "rotate", &serde_json::json!({})).await
    }

    /// Closes a task.
    ///
    /// # Errors
    /// The broker does not take the message.
    pub async fn close(&self, task: &str) -> Result<()> {
        self.send(task, "close", &serde_json::json!({})).await
    }

    /// Waits until the task is in the given state and returns the state message.
    ///
    /// # Errors
    /// It does not get there within [`SLOW`].
    pub async fn state(&self, task: &str, wanted: &str) -> Result<Value> {
        self.next_where(&topic(task, "state"), &format!("state \"{wanted}\""), |state| {
            state["state"] == wanted
        })
        .await
    }

    /// Waits for the task's next result.
    ///
    /// # Errors
    /// There is none within [`SLOW`].
    pub async fn result(&self, task: &str) -> Result<Value> {
        self.next_where(&topic(task, "result"), "result", |_| true).await
    }

    /// Waits for the task's next error.
    ///
    /// # Errors
    /// There is none within [`SLOW`].
    pub async fn error(&self, task: &str) -> Result<Value> {
        self.next_where(&topic(task, "error"), "error", |_| true).await
    }

    /// Waits until the agent's health is `wanted` and returns the health message.
    ///
    /// # Errors
    /// It does not get there within [`SLOW`].
    pub async fn health(&self, wanted: &str) -> Result<Value> {
        self.next_where(&health_topic(), &format!("health \"{wanted}\""), |health| {
            health["status"] == wanted
        })
        .await
    }

    /// Skips what the agent has said about its health so far.
    pub fn forget_health(&self) {
        self.client.skip(&health_topic());
    }

    async fn next_where(
        &self,
        topic: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.client
            .wait_for(topic, what, SLOW, |message| message.json().is_ok_and(|json| wanted(&json)))
            .await?
            .json()
    }

    async fn send(&self, task: &str, verb: &str, body: &(impl Serialize + Sync)) -> Result<()> {
        self.client.publish(&topic(task, verb), serde_json::to_vec(body)?).await
    }
}

fn topic(task: &str, verb: &str) -> String {
    format!("{PREFIX}/task/{task}/{verb}")
}

fn health_topic() -> String {
    format!("{PREFIX}/agent/health")
}
