//! A stream of samples at a steady rate into one task, and what comes of each of its windows.
//!
//! The samples are those of [`crate::tiny`], so that every answer says which window it answers.
//!
//! Invariants:
//! - messages are published as onboard software does it: one after the other at their time, without
//!   waiting for the acknowledgement of the one before;
//! - whatever the agent says of the task is on record, with the time of its arrival.

mod account;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

pub use self::account::{Account, Listener};
pub use self::publisher::{Encoding, Publisher, Stream};
use crate::World;
use crate::inside::{Inside, Limits};
use crate::tiny::TinyServer;
use crate::world::Builder;

/// What a robot's broker needs that keeps what an agent has not taken yet, as docs/onboard.md says.
pub const BROKER: &str = "max_queued_messages 100000\n";

/// A world for streams, whose agent is not started yet.
#[must_use]
pub fn builder() -> Builder {
    World::builder().log_level("info").onboard_broker(BROKER).agent_stopped()
}

/// Serves the world's robots with tiny keys, and starts its agent with such.
///
/// # Errors
/// Service or agent do not come up.
pub async fn serve(world: &mut World) -> Result<Inside> {
    let limits = Limits { max_jobs: 64, max_prepared: 9 };
    let inside = Inside::start(world, Arc::new(TinyServer), limits).await?;
    world.robot.agent.use_double(&[("MOAI_TEST_ENGINE", "tiny")]);
    world.robot.start_agent().await?;
    Ok(inside)
}

/// What `moai-agent status --json` says of a task.
///
/// # Errors
/// The agent does not answer, or does not know the task.
pub async fn status(world: &World, task: &str) -> Result<Value> {
    let shown = world.robot.agent.command(&["status", "--json"]).await?.success()?.text();
    let status: Value = serde_json::from_str(&shown).context("the status is no JSON")?;
    status["tasks"].get(task).cloned().with_context(|| format!("no task {task} in {shown}"))
}

/// Publishes a stream and waits until each of its windows has its outcome, or none has come for
/// `patience`.
///
/// # Errors
/// The broker is down or refuses a message.
pub async fn run(world: &World, stream: &Stream, patience: Duration) -> Result<Account> {
    let port = world.robot.broker.port();
    let listener = Listener::start(port, &stream.task).await?;
    let published = Publisher::connect(port, &stream.task).await?.publish(stream).await?;
    listener.account(stream, &published, patience).await
}
