//! The uplink breaks; nothing is lost and nothing is done twice.

use std::sync::Arc;

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::proxy::{Direction, Proxy};
use moai_tests::world::Builder;
use moai_transport::chunk::{CHUNK_LEN, MAX_WINDOW};
use moai_transport::message::Manifest;

use crate::stage::{ARM, QUICK, Stage, numbers, opens, start, trials};

const JOBS: usize = 6;

fn proxy(stage: &Stage) -> Result<Arc<Proxy>> {
    stage.proxy.clone().context("a proxy was asked for")
}

/// Restarts the broker of the uplink when half of the keys went up, and counts what goes up.
async fn restart_the_broker_in_mid_upload(builder: Builder) -> Result<()> {
    const HALF: usize = 11_000_000;
    let mut stage = start(builder.proxied()).await?;
    stage.watch_uplink().await?;
    let proxy = proxy(&stage)?;
    proxy.hold_after(Direction::Up, HALF);
    stage.robot.onboard.open(ARM, QUICK).await?;
    proxy.wait_until_held(Direction::Up, SLOW).await?;
    stage.broker.restart().await?;
    proxy.release(Direction::Up);

    stage.active_session().await?;
    let opens = opens(&stage)?;
    let open = opens.first().context("the operator saw the session open")?;
    let keys = usize::try_from(Manifest::decode(&open.body, u64::MAX)?.key_len)?;
    let passed = proxy.passed(Direction::Up);
    // What was under way when the broker went down was lost and goes up again; the rest once.
    let most = keys + keys / 50 + MAX_WINDOW + CHUNK_LEN;
    assert!((keys..most).contains(&passed), "{passed} bytes went up for {keys} bytes of keys");

    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_restarted_in_mid_upload_costs_only_the_chunks_under_way() -> Result<()> {
    restart_the_broker_in_mid_upload(World::builder()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_a_broker_that_keeps_its_queues() -> Result<()> {
    restart_the_broker_in_mid_upload(World::builder().durable_broker()).await
}

/// Submits all jobs and waits for the first answer: then the others are under way.
async fn submit_jobs(stage: &Stage) -> Result<()> {
    for trial in trials()?.iter().take(JOBS) {
        stage.submit(trial).await?;
    }
    stage.robot.onboard.result(ARM).await.map(drop)
}

/// Every job has one answer; closing drains the session first.
async fn assert_each_answered_once(stage: &Stage) -> Result<()> {
    let results = stage.close_arm().await?;
    assert_eq!(numbers(&results), (1..=JOBS as u64).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_acknowledgement_is_lost_onboard_is_not_published_again() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let onboard = Proxy::start(stage.robot.broker.port()).await?;
    stage.robot.agent.configure(&format!("[onboard]\nport = {}", onboard.port()))?;
    stage.robot.start_agent().await?;
    stage.watch_uplink().await?;
    stage.open_arm().await?;
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    onboard.hold_after(Direction::Down, 0);
    stage.compute.process()?.thaw()?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    stage.robot.onboard.forget_health();
    onboard.wait_until_held(Direction::Down, SLOW).await?;
    onboard.cut();
    // The broker says so: then nothing that was held up can pass any more.
    stage.robot.onboard.health("down").await?;
    onboard.release(Direction::Down);
    stage.robot.onboard.health("up").await?;

    stage.submit(&trials()?[1]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 2);
    assert_eq!(numbers(&stage.close_arm().await?), [1, 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uplink_cut_in_the_middle_loses_and_doubles_no_job() -> Result<()> {
    let stage = start(World::builder().proxied()).await?;
    stage.open_arm().await?;
    submit_jobs(&stage).await?;
    proxy(&stage)?.cut();
    stage.active_session().await?;
    assert_each_answered_once(&stage).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_with_a_cut_are_fetched_again() -> Result<()> {
    let stage = start(World::builder().proxied()).await?;
    stage.watch_uplink().await?;
    stage.open_arm().await?;
    let proxy = proxy(&stage)?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    proxy.hold_after(Direction::Down, 0);
    stage.submit(&trials()?[0]).await?;
    stage.operator.wait_for("moai/v1/down/+/+/result", "result", SLOW, |_| true).await?;
    proxy.cut();
    stage.robot.agent.process()?.wait_for_line("uplink is down", SLOW).await?;
    proxy.release(Direction::Down);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(numbers(&stage.close_arm().await?), [1]);
    let computed = stage.compute.process()?.log().text().matches("job computed").count();
    assert_eq!(computed, 1, "a job that was sent twice is computed once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_with_all_its_sessions_loses_and_doubles_no_job() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    stage.open_arm().await?;
    submit_jobs(&stage).await?;
    stage.broker.kill().await?;
    stage.broker.start_again().await?;
    stage.active_session().await?;
    assert_each_answered_once(&stage).await
}
