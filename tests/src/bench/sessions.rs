//! How long a task waits for its session, with keys made then and with keys made ahead.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Run;
use super::measure::{Series, Stopwatch};
use super::report::Figure;
use crate::World;

const SECTION: &str = "sessions";
const TASK: &str = "arm";
const MODEL: &str = "force-alarm";
/// Questions until keys are made ahead; each takes a process its start.
const MAX_QUESTIONS: usize = 10_000;

/// Measures the section.
///
/// # Errors
/// A process does not come up, or a task does not become active.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("opening tasks");
    let builder = |warm| {
        World::builder().log_level("info").agent_toml(&format!("[sessions]\nwarm = {warm}\n"))
    };
    let (without, with) = (builder(0).start().await?, builder(1).start().await?);
    let (mut cold, mut warm) = (Series::default(), Series::default());
    for _ in 0..run.repeats(7, 2) {
        // Nobody makes keys while the other opens.
        keys_ready(&with).await?;
        open(&without, &mut cold, false).await?;
        open(&with, &mut warm, true).await?;
    }
    run.add(Figure::new(SECTION, "open to active, keys made then", cold.wall() * 1e3, "ms"));
    run.add(
        Figure::new(SECTION, "open to active, keys made ahead", warm.wall() * 1e3, "ms").against(
            "keys made then",
            cold.wall() * 1e3,
            cold.wall_over(&warm),
            "times as fast",
        ),
    );
    run.note(
        SECTION,
        "from the onboard message to the state `active`, with the upload of all evaluation keys; \
         robot, brokers and server on this machine",
    );
    without.stop().await?;
    with.stop().await
}

async fn status(world: &World) -> Result<Value> {
    let log = world.robot.agent.command(&["status", "--json"]).await?.success()?;
    serde_json::from_str(&log.text()).context("the status is no JSON")
}

async fn keys_ready(world: &World) -> Result<()> {
    for _ in 0..MAX_QUESTIONS {
        if status(world).await?["warm"][0] == 1 {
            return Ok(());
        }
    }
    bail!("no keys are made ahead")
}

async fn open(world: &World, series: &mut Series, is_warm: bool) -> Result<()> {
    let onboard = &world.robot.onboard;
    let watch = Stopwatch::start();
    onboard.open(TASK, MODEL).await?;
    let state = onboard.state(TASK, "active").await?;
    series.push(watch.cost());
    let session = state["session"].as_str().context("an active task has a session")?;
    let status = status(world).await?;
    if status["tasks"][TASK]["sessions"][session]["warm"] != is_warm {
        bail!("the session has other keys than it was to have: {status}");
    }
    onboard.close(TASK).await?;
    onboard.state(TASK, "ended").await.map(drop)
}
