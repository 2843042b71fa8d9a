//! What the tests share: a world of their own, the plaintext model, and the frames that went by.

use std::ops::{Deref, DerefMut};

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::mqtt::{Client, Message, matches};
use moai_tests::onboard::SLOW;
use moai_tests::peek::peek;
use moai_tests::process::STEP;
use moai_tests::recordings::{self, Trial};
use moai_tests::world::Builder;
use moai_transport::frame::{Frame, FrameKind};
use moai_transport::ids::SessionId;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The model that answers fastest.
pub(crate) const QUICK: &str = "force-alarm";
/// The task most tests open.
pub(crate) const ARM: &str = "arm";

/// Each world evaluates on ciphertext: more than two at a time only make one another late.
static TURNS: Semaphore = Semaphore::const_new(2);

/// A world that waited for its turn.
pub(crate) struct Stage {
    world: World,
    _turn: SemaphorePermit<'static>,
}

impl Deref for Stage {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

/// Starts a world once fewer than two others run.
pub(crate) async fn start(builder: Builder) -> Result<Stage> {
    let turn = turn().await?;
    Ok(Stage { world: builder.start().await?, _turn: turn })
}

/// Waits until fewer than two worlds run.
pub(crate) async fn turn() -> Result<SemaphorePermit<'static>> {
    Ok(TURNS.acquire().await?)
}

impl Stage {
    /// Starts the agent, whose health will not be up.
    pub(crate) fn start_ailing_agent(&mut self) -> Result<()> {
        let log = self.robot.agent.spawn()?.log().clone();
        self.robot.onboard.client.show_on_failure(&log);
        Ok(())
    }

    /// Opens [`ARM`] and waits until its session is active; returns the session's id.
    pub(crate) async fn open_arm(&self) -> Result<String> {
        self.open_arm_with(QUICK).await
    }

    /// The same with another model.
    pub(crate) async fn open_arm_with(&self, model: &str) -> Result<String> {
        self.robot.onboard.open(ARM, model).await?;
        self.active_session().await
    }

    /// Waits until [`ARM`] says (again) that it is active; returns the session's id.
    pub(crate) async fn active_session(&self) -> Result<String> {
        let state = self.robot.onboard.state(ARM, "active").await?;
        Ok(state["session"].as_str().context("an active task has a session")?.to_owned())
    }

    /// Waits until the agent's health says these words (again).
    pub(crate) async fn health_says(&self, words: &str) -> Result<()> {
        let says = |message: &Message| String::from_utf8_lossy(&message.payload).contains(words);
        let client = &self.robot.onboard.client;
        client.wait_for("moai/agent/health", words, SLOW, says).await.map(drop)
    }

    /// Hands [`ARM`] a whole window.
    pub(crate) async fn submit(&self, trial: &Trial) -> Result<()> {
        self.robot.onboard.input(ARM, &json!({ "samples": trial.samples })).await
    }

    /// Closes [`ARM`] and waits for its end, after which nothing more comes; returns every result
    /// it ever gave.
    pub(crate) async fn close_arm(&self) -> Result<Vec<Value>> {
        self.robot.onboard.close(ARM).await?;
        self.robot.onboard.state(ARM, "ended").await?;
        let history = self.robot.onboard.client.history();
        let results = history.iter().filter(|message| message.topic == "moai/task/arm/result");
        results.map(Message::json).collect()
    }

    /// Lets the operator see all that goes up to the server, from now on.
    pub(crate) async fn watch_uplink(&self) -> Result<()> {
        self.operator.subscribe("moai/v1/up/#").await
    }

    /// Waits until the operator sees the next job go up to the server.
    pub(crate) async fn job_under_way(&self) -> Result<()> {
        const JOBS: &str = "moai/v1/up/+/to/+/+/job";
        self.operator.wait_for(JOBS, "job", STEP, |_| true).await.map(drop)
    }
}

/// The frames of one kind that a client has seen.
pub(crate) fn frames(client: &Client, kind: FrameKind) -> Vec<Frame> {
    let history = client.history();
    let frames = history.iter().filter(|message| matches("moai/v1/#", &message.topic));
    let frames = frames.filter_map(|message| peek(&message.payload).ok());
    frames.filter(|frame| frame.kind == kind).collect()
}

/// The opens that the operator has seen, each signed by the robot it names.
pub(crate) fn opens(stage: &Stage) -> Result<Vec<Frame>> {
    let history = stage.operator.history();
    let opens = history.iter().filter(|message| matches("moai/v1/up/+/open/+", &message.topic));
    opens.map(|message| stage.pki.opened(&message.payload)).collect()
}

/// A fresh session id.
pub(crate) fn new_session() -> SessionId {
    SessionId::new(1_800_000_000_000, *b"0123456789")
}

/// The numbers of the jobs that these results answer, sorted.
pub(crate) fn numbers(results: &[Value]) -> Vec<u64> {
    let mut numbers: Vec<u64> = results.iter().filter_map(|r| r["job"].as_u64()).collect();
    numbers.sort_unstable();
    numbers
}

/// All recordings whose signals differ.
pub(crate) fn trials() -> Result<Vec<Trial>> {
    Ok(recordings::distinct(recordings::load(&recordings::directory())?))
}
