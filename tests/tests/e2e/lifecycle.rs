//! What people and time do to sessions, with real processes.

use anyhow::{Context, Result, ensure};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use serde_json::Value;

use crate::secrecy::kept_sessions;
use crate::stage::{ARM, Stage, numbers, start, trials};

impl Stage {
    async fn status(&self) -> Result<Value> {
        let log = self.robot.agent.command(&["status", "--json"]).await?.success()?;
        serde_json::from_str(&log.text()).context("the status is no JSON")
    }

    /// Submits a window and waits for its result; returns the session that answered.
    async fn answered_by(&self, turn: usize) -> Result<String> {
        let trials = trials()?;
        self.submit(&trials[turn % trials.len()]).await?;
        let result = self.robot.onboard.result(ARM).await?;
        Ok(result["session"].as_str().context("a result has a session")?.to_owned())
    }

    fn errors(&self) -> Vec<String> {
        let history = self.robot.onboard.client.history();
        let errors = history.iter().filter(|message| message.topic == "moai/task/arm/error");
        errors.map(|message| String::from_utf8_lossy(&message.payload).into_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_windows_goes_on_over_the_renewal_of_its_session() -> Result<()> {
    let builder = World::builder().agent_toml("[sessions]\ngeneral_ttl_seconds = 60\n");
    let stage = start(builder).await?;
    let first = stage.open_arm().await?;
    let mut turn = 0;
    while stage.answered_by(turn).await? == first {
        turn += 1;
        ensure!(turn < 5000, "the session is never renewed");
    }
    assert_eq!(stage.errors(), [""; 0]);
    let results = stage.close_arm().await?;
    assert_eq!(results.len(), turn + 1);
    assert_eq!(stage.errors(), [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_budget_is_used_up_is_followed_by_the_next() -> Result<()> {
    const BUDGET: usize = 5;
    let builder = World::builder().agent_toml("[sessions]\ndecryption_budget = 5\n");
    let stage = start(builder).await?;
    stage.open_arm().await?;
    for trial in trials()?.iter().cycle().take(3 * BUDGET) {
        stage.submit(trial).await?;
    }
    for _ in 0..3 * BUDGET {
        stage.robot.onboard.result(ARM).await?;
    }
    let results = stage.close_arm().await?;
    assert_eq!(results.len(), 3 * BUDGET);
    assert_eq!(stage.errors(), [""; 0]);
    let mut sessions: Vec<&str> = results.iter().filter_map(|it| it["session"].as_str()).collect();
    sessions.dedup();
    assert!(sessions.len() >= 3, "{sessions:?}");
    assert!(numbers(&results).iter().all(|number| *number <= BUDGET as u64));
    Ok(())
}

/// What the server's store has of a session: suffixes, sorted, and lengths.
fn files_of(stage: &Stage, session: &str) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(stage.compute.store().join("sessions"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(session) {
            let (_, suffix) = name.rsplit_once('.').context("a name without a suffix")?;
            files.push((suffix.to_owned(), entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_task_loses_its_keys_everywhere_and_goes_on_with_others() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let first = stage.open_arm().await?;
    let before = files_of(&stage, &first)?;
    assert_eq!(
        before.iter().map(|(suffix, _)| suffix.as_str()).collect::<Vec<_>>(),
        ["keys", "record"]
    );
    let listed = stage.robot.agent.command(&["task", "list"]).await?.success()?.text();
    assert!(listed.contains(&first), "{listed}");

    let revoked = stage.robot.agent.command(&["task", "revoke", ARM]).await?.success()?;
    assert!(revoked.text().contains(&first), "{}", revoked.text());
    let server = stage.compute.process()?;
    let line = server.wait_for_line("session and keys deleted", SLOW).await?;
    assert!(line.contains(&first), "{line}");
    // Of its keys, its manifest and its name on the server the name is left.
    let after = files_of(&stage, &first)?;
    assert_eq!(after.len(), 1, "{after:?}");
    assert!(after[0].0 == "ended" && after[0].1 < 200, "{after:?}");
    let second = stage.active_session().await?;
    assert_ne!(first, second);
    assert_eq!(stage.answered_by(0).await?, second);

    let again = stage.robot.agent.command(&["session", "revoke", &first]).await?;
    let refused = again.success().err().context("a session was revoked twice")?;
    assert!(format!("{refused:#}").contains("there is no session"), "{refused:#}");
    let unknown = stage.robot.agent.command(&["task", "close", "leg"]).await?;
    let refused = unknown.success().err().context("a task that is none was closed")?;
    assert!(format!("{refused:#}").contains("there are: arm"), "{refused:#}");

    stage.robot.agent.stop().await?;
    let kept = kept_sessions(&stage.robot).await?;
    assert!(kept.iter().all(|record| record.id.to_string() != first), "{first} is kept");

    // The server writes its audit log beside its work, and all of it before it ends.
    stage.compute.stop().await?;
    let audit = std::fs::read_to_string(stage.compute.audit_log())?;
    let deleted = |line: &&str| line.contains("\"deleted\"") && line.contains(&first);
    assert_eq!(audit.lines().filter(deleted).count(), 1, "{audit}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emergency_ends_every_session_and_begins_an_epoch() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let first = stage.open_arm().await?;
    let before = stage.status().await?["epoch"].as_u64().context("an epoch")?;
    stage.watch_uplink().await?;
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    let unsure = stage.robot.agent.command_with_input(&["emergency"], "no\n").await?;
    assert!(unsure.success().is_err(), "nobody said yes");
    let done = stage.robot.agent.command(&["emergency", "--yes"]).await?.success()?;
    assert!(done.text().contains("Sessions revoked: 1;"), "{}", done.text());
    let error = stage.robot.onboard.error(ARM).await?;
    assert_eq!((&error["code"], &error["job"]), (&"revoked".into(), &1.into()), "{error}");
    assert_eq!(stage.status().await?["epoch"].as_u64(), Some(before + 1));

    stage.compute.process()?.thaw()?;
    let server = stage.compute.process()?;
    let line = server.wait_for_line("session and keys deleted", SLOW).await?;
    assert!(line.contains(&first), "{line}");
    let second = stage.active_session().await?;
    assert_ne!(first, second);
    assert_eq!(stage.answered_by(1).await?, second);

    stage.robot.agent.command(&["emergency", "--yes", "--stay-closed"]).await?.success()?;
    stage.robot.onboard.state(ARM, "ended").await?;
    stage.robot.agent.stop().await?;
    assert!(kept_sessions(&stage.robot).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_opened_with_keys_that_were_made_ahead() -> Result<()> {
    let stage = start(World::builder().agent_toml("[sessions]\nwarm = 1\n")).await?;
    let agent = stage.robot.agent.process()?;
    agent.wait_for_line("a key set is ready for the next session", SLOW).await?;
    let session = stage.open_arm().await?;
    let status = stage.status().await?;
    assert_eq!(status["tasks"][ARM]["sessions"][&session]["warm"], true, "{status}");
    assert_eq!(stage.answered_by(0).await?, session);
    Ok(())
}
