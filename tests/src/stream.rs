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
use tokio::time::Instant;

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

/// Serves the world's robots with tiny keys.
///
/// # Errors
/// The service does not come up.
pub async fn compute(world: &mut World, engine: TinyServer) -> Result<Inside> {
    let limits = Limits { max_jobs: 64, max_prepared: 9 };
    Inside::start(world, Arc::new(engine), limits).await
}

/// Gives the world's agent, which is not started yet, the other half of that.
pub fn use_tiny(world: &mut World) {
    world.robot.agent.use_double(&[("MOAI_TEST_ENGINE", "tiny")]);
}

/// Both, and starts the agent.
///
/// # Errors
/// Service or agent do not come up.
pub async fn serve(world: &mut World, engine: TinyServer) -> Result<Inside> {
    let inside = compute(world, engine).await?;
    use_tiny(world);
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
    let run = Run::start(world, stream).await?;
    run.account(patience).await
}

/// A stream that was published.
#[derive(Debug)]
pub struct Run<'s> {
    stream: &'s Stream,
    listener: Listener,
    published: Vec<Instant>,
}

impl<'s> Run<'s> {
    /// Publishes a stream; returns when the robot's broker has all of it.
    ///
    /// # Errors
    /// The broker is down or refuses a message.
    pub async fn start(world: &World, stream: &'s Stream) -> Result<Self> {
        let port = world.robot.broker.port();
        let listener = Listener::start(port, &stream.task).await?;
        let published = Publisher::connect(port, &stream.task).await?.publish(stream).await?;
        Ok(Self { stream, listener, published })
    }

    /// Waits until each window has its answer, or none has come for `patience`, and counts.
    ///
    /// # Errors
    /// The listener has failed.
    pub async fn account(self, patience: Duration) -> Result<Account> {
        self.listener.account(self.stream, &self.published, patience).await
    }
}
