//! Sessions end: at their time, when closed, when rotated. Then their keys are gone.

use anyhow::Result;
use moai_tests::World;
use moai_tests::onboard::SLOW;

use crate::secrecy::kept_sessions;
use crate::stage::{ARM, start, trials};

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_session_is_gone_everywhere_and_another_takes_over() -> Result<()> {
    let builder = World::builder().agent_toml("[sessions]\ngeneral_ttl_seconds = 15\n");
    let mut stage = start(builder).await?;
    let first = stage.open_arm().await?;
    let second = stage.active_session().await?;
    assert_ne!(first, second);

    let line = stage.compute.process()?.wait_for_line("keys deleted", SLOW).await?;
    assert!(line.contains(&first), "{line}");

    stage.submit(&trials()?[0]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["session"], second);
    stage.robot.agent.stop().await?;
    let kept: Vec<String> =
        kept_sessions(&stage.robot).await?.iter().map(|record| record.id.to_string()).collect();
    assert!(!kept.contains(&first), "{first} is still in the vault");
    assert!(kept.len() <= 1, "{kept:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_task_answers_what_waits_and_ends_its_session_everywhere() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let session = stage.open_arm().await?;
    for trial in trials()?.iter().take(3) {
        stage.submit(trial).await?;
    }
    assert_eq!(stage.close_arm().await?.len(), 3);
    let server = stage.compute.process()?;
    let line = server.wait_for_line("session and keys deleted", SLOW).await?;
    assert!(line.contains(&session), "{line}");
    stage.robot.agent.stop().await?;
    assert!(kept_sessions(&stage.robot).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_task_goes_on_with_new_keys_and_loses_no_job() -> Result<()> {
    let stage = start(World::builder()).await?;
    let first = stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.rotate(ARM).await?;
    let second = stage.active_session().await?;
    assert_ne!(first, second);
    stage.submit(&trials()?[1]).await?;
    for _ in 0..2 {
        stage.robot.onboard.result(ARM).await?;
    }
    let mut answered = Vec::new();
    for result in stage.close_arm().await? {
        answered.push(result["session"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(answered, [first, second]);
    Ok(())
}
