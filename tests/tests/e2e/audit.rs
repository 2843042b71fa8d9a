//! The audit log of a robot that lived a little, and what somebody did to it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use moai_tests::World;
use serde_json::Value;

use crate::stage::{ARM, Stage, start, trials};

async fn shown(stage: &Stage) -> Result<Vec<Value>> {
    let text = stage.robot.agent.command(&["audit", "show", "--json"]).await?.success()?.text();
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// What `audit verify` says, which must succeed or not.
async fn verdict(stage: &Stage, clean: bool) -> Result<String> {
    let done = stage.robot.agent.command(&["audit", "verify"]).await?;
    ensure!(done.status.success() == clean, "{}", done.log.text());
    Ok(done.log.text())
}

fn log(stage: &Stage) -> PathBuf {
    stage.robot.agent.state_directory().join("audit.log")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_tells_a_robots_life_and_who_meddled_with_it() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let session = stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    stage.robot.agent.command(&["rotate", "root"]).await?.success()?;
    stage.close_arm().await?;
    verdict(&stage, true).await?;
    stage.robot.agent.stop().await?;
    verdict(&stage, true).await?;

    let entries = shown(&stage).await?;
    let events: Vec<&str> = entries.iter().filter_map(|entry| entry["event"].as_str()).collect();
    assert_eq!(
        events,
        [
            "log_begun",
            "provisioned",
            "agent_started",
            "session_opened",
            "session_active",
            "epoch_begun",
            "session_draining",
            "session_ended",
            "agent_stopped",
        ]
    );
    assert_eq!(entries[7]["session"], session.as_str());
    assert_eq!(entries[7]["reason"], "closed");

    let text = fs::read_to_string(log(&stage))?;
    let lines: Vec<&str> = text.lines().collect();
    let without = |index: usize| [&lines[..index], &lines[index + 1..]].concat().join("\n") + "\n";
    fs::write(log(&stage), without(5))?;
    let said = verdict(&stage, false).await?;
    assert!(said.contains("entry 6 is missing"), "{said}");
    fs::write(log(&stage), text.replace("\"closed\"", "\"failed\""))?;
    let said = verdict(&stage, false).await?;
    assert!(said.contains("audit.log, line 7: changed, or not written by this agent"), "{said}");
    fs::write(log(&stage), without(8))?;
    let said = verdict(&stage, false).await?;
    assert!(said.contains("entry 9 is missing"), "{said}");

    stage.robot.start_agent().await?;
    let said = verdict(&stage, false).await?;
    assert!(said.contains("entry 9 is missing"), "{said}");
    let entries = shown(&stage).await?;
    assert_eq!(entries[8]["event"], "log_damaged");
    assert_eq!((&entries[8]["newest"], &entries[8]["found"]), (&9.into(), &8.into()));
    Ok(())
}
