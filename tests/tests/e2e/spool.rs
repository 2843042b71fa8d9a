//! What waits on the robot's disk while nobody answers, and what a damaged disk costs.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use moai_tests::World;
use moai_tests::onboard::SLOW;

use crate::stage::{ARM, Stage, numbers, start, trials};

/// Jobs that are with a server that does not answer when the agent dies.
async fn die_with_jobs(stage: &mut Stage, jobs: usize) -> Result<String> {
    stage.watch_uplink().await?;
    let session = stage.open_arm().await?;
    stage.compute.process()?.freeze()?;
    for trial in trials()?.iter().take(jobs) {
        stage.submit(trial).await?;
        stage.job_under_way().await?;
    }
    stage.robot.agent.kill().await?;
    Ok(session)
}

async fn audited(stage: &Stage, event: &str) -> Result<()> {
    let shown = stage.robot.agent.command(&["audit", "show"]).await?.success()?.text();
    ensure!(shown.contains(event), "{shown}");
    Ok(())
}

fn kept_copy(stage: &Stage, name: &str) -> Result<Vec<u8>> {
    for entry in fs::read_dir(stage.robot.agent.state_directory())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(name) {
            return Ok(fs::read(entry.path())?);
        }
    }
    anyhow::bail!("there is no {name}…")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_piles_up_while_the_broker_is_away_is_answered_once() -> Result<()> {
    const JOBS: usize = 30;
    let mut stage = start(World::builder()).await?;
    stage.open_arm().await?;
    stage.broker.kill().await?;
    for trial in trials()?.iter().cycle().take(JOBS) {
        stage.submit(trial).await?;
    }
    stage.robot.agent.process()?.wait_for_line("uplink is down", SLOW).await?;
    stage.broker.start_again().await?;
    for _ in 0..JOBS {
        stage.robot.onboard.result(ARM).await?;
    }
    let results = stage.close_arm().await?;
    assert_eq!(numbers(&results), (1..=JOBS as u64).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_while_the_broker_is_away_is_said_to_be_expired() -> Result<()> {
    let builder = World::builder().agent_toml("[sessions]\ngeneral_ttl_seconds = 15\n");
    let mut stage = start(builder).await?;
    stage.open_arm().await?;
    stage.broker.kill().await?;
    for trial in trials()?.iter().take(3) {
        stage.submit(trial).await?;
    }
    for _ in 0..3 {
        let error = stage.robot.onboard.error(ARM).await?;
        ensure!(error["code"] == "expired" && error["job"].is_u64(), "{error}");
    }
    stage.broker.start_again().await?;
    // The first was opened while the broker was away, and may have little time left.
    for _ in 0..2 {
        stage.active_session().await?;
    }
    stage.submit(&trials()?[3]).await?;
    stage.robot.onboard.result(ARM).await?;
    assert_eq!(stage.close_arm().await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_spool_costs_the_damaged_job_and_no_number_comes_twice() -> Result<()> {
    const MARKER: &[u8] = b"MSP\x01";
    let mut stage = start(World::builder()).await?;
    let session = die_with_jobs(&mut stage, 3).await?;
    let path = stage.robot.agent.state_directory().join("spool.log");
    let mut bytes = fs::read(&path)?;
    let mut records =
        bytes.windows(MARKER.len()).enumerate().filter(|(_, window)| *window == MARKER);
    let (first_job, _) = records.nth(1).context("the first record is no job")?;
    bytes[first_job + 40] ^= 1;
    fs::write(&path, &bytes)?;

    stage.start_ailing_agent()?;
    stage.compute.process()?.thaw()?;
    for _ in 0..2 {
        stage.robot.onboard.result(ARM).await?;
    }
    audited(&stage, "spool_damaged").await?;
    stage.health_says("spool: it was damaged").await?;
    ensure!(kept_copy(&stage, "spool.log.damaged-")? == bytes);

    // Nobody knows which numbers the session has given out: it takes no more windows.
    stage.submit(&trials()?[3]).await?;
    let result = stage.robot.onboard.result(ARM).await?;
    assert_eq!(result["job"], 1);
    assert_ne!(result["session"], session.as_str());
    assert_eq!(numbers(&stage.close_arm().await?), [1, 2, 3]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_vault_ends_its_sessions_and_each_job_is_told() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let session = die_with_jobs(&mut stage, 2).await?;
    let path = stage.robot.agent.state_directory().join("vault.redb");
    let garbage = vec![0xa5; 64 * 1024];
    fs::write(&path, &garbage)?;

    stage.start_ailing_agent()?;
    stage.compute.process()?.thaw()?;
    for job in 1..=2 {
        let error = stage.robot.onboard.error(ARM).await?;
        ensure!(error["code"] == "session_ended" && error["job"] == job, "{error}");
        ensure!(error["session"] == session.as_str(), "{error}");
    }
    audited(&stage, "vault_damaged").await?;
    stage.health_says("vault: it was damaged").await?;
    ensure!(kept_copy(&stage, "vault.redb.damaged-")? == garbage);

    let another = stage.open_arm().await?;
    assert_ne!(another, session);
    stage.submit(&trials()?[2]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["session"], another);
    Ok(())
}
