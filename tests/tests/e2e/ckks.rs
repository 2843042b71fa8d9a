//! The agent and the TenSEAL server together: the same agent, another scheme.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::recordings::Trial;
use moai_tests::reference::{RELEASE_STEPS, Reference, Scheme};
use moai_transport::frame::FrameKind;
use serde_json::{Value, json};

use crate::main_job::some_of_each;
use crate::stage::{ARM, Stage, frames, numbers, start, trials};

/// The model with the smallest keys.
const SMALL: &str = "failure-linear";

async fn started() -> Result<Stage> {
    start(World::builder().scheme(Scheme::Ckks)).await
}

/// Whether the encrypted answer is the reference's: scores within the noise of their release, and the
/// label that the scores have.
fn check(reference: &Reference, trial: &Trial, result: &Value) -> Result<()> {
    let step = reference.card().score_step();
    let exact = reference.scores(trial)?;
    let scores: Vec<f64> = serde_json::from_value(result["scores"].clone())
        .with_context(|| format!("no scores in {result}"))?;
    ensure!(scores.len() == exact.len(), "{scores:?}, not {exact:?}");
    for (score, exact) in scores.iter().zip(&exact) {
        ensure!((score - exact).abs() < RELEASE_STEPS * step, "{scores:?}, not {exact:?}");
        let steps = score / step;
        ensure!((steps - steps.round()).abs() < 1e-6, "{score} is finer than {step}");
    }
    let possible = reference.possible_labels(trial)?;
    ensure!(possible.iter().any(|label| result["label"] == *label), "{result}, not {possible:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_model_decides_on_ciphertext_what_it_decides_on_plaintext() -> Result<()> {
    let stage = started().await?;
    let onboard = &stage.robot.onboard;
    for model in [SMALL, "grasp-linear", "grasp-mlp"] {
        let reference = Reference::load(Scheme::Ckks, model)?;
        let open = json!({ "model": model, "scores": true }).to_string();
        onboard.client.publish(&format!("moai/task/{model}/open"), open).await?;
        onboard.state(model, "active").await?;
        let mut labels = BTreeSet::new();
        for trial in some_of_each()? {
            onboard.input(model, &json!({ "samples": trial.samples })).await?;
            let result = onboard.result(model).await?;
            check(&reference, &trial, &result)
                .with_context(|| format!("{model} on {} of {}", trial.label, trial.file))?;
            labels.insert(result["label"].to_string());
        }
        assert!(labels.len() > 1, "{model} said {labels:?} to everything");
        onboard.close(model).await?;
        onboard.state(model, "ended").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_may_decrypt_no_more_is_followed_by_the_next() -> Result<()> {
    const BUDGET: usize = 4;
    let budget = format!("[sessions]\ndecryption_budget = {BUDGET}\n");
    let stage = start(World::builder().scheme(Scheme::Ckks).agent_toml(&budget)).await?;
    stage.open_arm_with(SMALL).await?;
    for trial in trials()?.iter().take(3 * BUDGET) {
        stage.submit(trial).await?;
    }
    for _ in 0..3 * BUDGET {
        stage.robot.onboard.result(ARM).await?;
    }
    let results = stage.close_arm().await?;
    assert_eq!(results.len(), 3 * BUDGET);
    let sessions: BTreeSet<&str> = results.iter().filter_map(|it| it["session"].as_str()).collect();
    assert!(sessions.len() >= 3, "{sessions:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_gets_the_keys_again_and_every_job_is_answered_once() -> Result<()> {
    let mut stage = started().await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm_with(SMALL).await?;
    let uploaded = frames(&stage.operator, FrameKind::Chunk).len();
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    stage.compute.kill().await?;
    let world = &mut *stage;
    world.compute.start(&world.operator).await?;

    assert_eq!(stage.active_session().await?, session);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(numbers(&stage.close_arm().await?), [1]);
    assert_eq!(frames(&stage.operator, FrameKind::Chunk).len(), 2 * uploaded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_mid_job_resumes_with_the_same_keys() -> Result<()> {
    let mut stage = started().await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm_with(SMALL).await?;
    let uploaded = frames(&stage.operator, FrameKind::Chunk).len();
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    stage.robot.agent.kill().await?;
    stage.robot.start_agent().await?;
    stage.compute.process()?.thaw()?;

    assert_eq!(stage.active_session().await?, session);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    stage.submit(&trials()?[1]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 2);
    assert_eq!(numbers(&stage.close_arm().await?), [1, 2]);
    assert_eq!(frames(&stage.operator, FrameKind::Chunk).len(), uploaded, "keys went up again");
    Ok(())
}

impl Stage {
    /// Waits until keys for a model's context were made ahead.
    async fn keys_ready(&self, model: &str) -> Result<()> {
        let reference = Reference::load(Scheme::Ckks, model)?;
        let context = hex::encode(reference.card().context().as_bytes());
        let line = format!("a key set is ready for the next session context={context}");
        self.robot.agent.process()?.wait_for_line(&line, SLOW).await.map(drop)
    }

    /// Whether the keys of a task's session were made ahead.
    async fn is_warm(&self, task: &str, session: &str) -> Result<bool> {
        let status = self.robot.agent.command(&["status", "--json"]).await?.success()?;
        let status: Value = serde_json::from_str(&status.text())?;
        let warm = &status["tasks"][task]["sessions"][session]["warm"];
        warm.as_bool().with_context(|| format!("{session} of {task} is not in {status}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_ahead_for_the_models_that_tasks_ask() -> Result<()> {
    const LEG: &str = "leg";
    const OTHER: &str = "grasp-linear";
    let builder = World::builder().scheme(Scheme::Ckks).agent_toml("[sessions]\nwarm = 1\n");
    let stage = start(builder).await?;
    // The first of the catalogue, since nobody has asked for anything.
    stage.keys_ready(SMALL).await?;
    let session = stage.open_arm_with(SMALL).await?;
    ensure!(stage.is_warm(ARM, &session).await?, "keys were made ahead for nothing");

    let session = |state: Value| -> Result<String> {
        Ok(state["session"].as_str().context("an active task has a session")?.to_owned())
    };
    let onboard = &stage.robot.onboard;
    onboard.open(LEG, OTHER).await?;
    let first = session(onboard.state(LEG, "active").await?)?;
    ensure!(!stage.is_warm(LEG, &first).await?, "nobody knew that they would be needed");
    stage.keys_ready(OTHER).await?;
    onboard.rotate(LEG).await?;
    let next = session(onboard.state(LEG, "active").await?)?;
    ensure!(next != first && stage.is_warm(LEG, &next).await?, "the next keys were made ahead");
    Ok(())
}
