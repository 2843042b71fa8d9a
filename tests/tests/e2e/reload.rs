//! The configuration is read again while the agent runs, and no session is dropped for it.

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::mqtt::Message;
use moai_tests::onboard::SLOW;
use moai_tests::process::STEP;
use moai_tests::reference::{Reference, Scheme};
use serde_json::{Value, json};

use crate::stage::{ARM, QUICK, Stage, numbers, start, trials};
use crate::supervision::supervise;

const EX_CONFIG: i32 = 78;
const BUDGET: u64 = 7777;

async fn status(stage: &Stage) -> Result<Value> {
    let shown = stage.robot.agent.command(&["status", "--json"]).await?.success()?;
    Ok(serde_json::from_str(&shown.text())?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_what_it_can_names_what_it_cannot_and_drops_no_session() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm().await?;
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    let changes = format!(
        "[sessions]\ndecryption_budget = {BUDGET}\ngeneral_ttl_seconds = 600\n\
         [spool]\nmax_bytes = 65536\n[uplink]\nkeep_alive_seconds = 60\n[log]\nlevel = \"warn\"\n"
    );
    stage.robot.agent.configure(&changes)?;
    let said = stage.robot.agent.command(&["reload"]).await?.success()?;
    let keys =
        "sessions.decryption_budget, sessions.general_ttl_seconds, spool.max_bytes, log.level";
    assert!(said.contains(&format!("Changed: {keys}.")), "{}", said.text());
    assert!(said.contains("Needs a restart: uplink.keep_alive_seconds."), "{}", said.text());
    let log = stage.robot.agent.process()?.log().clone();
    log.wait_for("needs a restart: uplink.keep_alive_seconds", STEP).await?;
    let quiet_from = log.lines().len();

    // What was under way is answered, once, by the session that was there.
    stage.compute.process()?.thaw()?;
    let result = stage.robot.onboard.result(ARM).await?;
    assert_eq!((result["job"].as_u64(), result["session"].as_str()), (Some(1), Some(&*session)));
    let before = status(&stage).await?;
    assert_eq!(before["restart"], json!(["uplink.keep_alive_seconds"]));
    let kept = &before["tasks"][ARM]["sessions"][&session];
    assert_eq!(kept["decryptions_left"], 9999, "a session keeps what it began with: {before}");

    // The next session begins with what was changed.
    stage.robot.onboard.rotate(ARM).await?;
    let next = stage.active_session().await?;
    assert_ne!(next, session);
    let after = status(&stage).await?;
    let begun = &after["tasks"][ARM]["sessions"][&next];
    assert_eq!(begun["decryptions_left"], BUDGET, "{after}");
    assert!(begun["expires_in_seconds"].as_u64().is_some_and(|left| left <= 600), "{after}");
    let chatter = log.lines().split_off(quiet_from);
    let is_chatter = |line: &&String| line.contains(" INFO ") || line.contains(" TRACE ");
    assert_eq!(chatter.iter().find(is_chatter), None, "the log is at \"warn\"");
    // More than the spool takes now, so that some are dropped.
    stage.compute.process()?.freeze()?;
    let trial = &trials()?[0];
    for _ in 0..1200 {
        stage.submit(trial).await?;
    }
    assert_eq!(stage.robot.onboard.error(ARM).await?["code"], "spool_full");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_is_said_until_a_good_one_is_read() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let socket = stage.directory().join("notify");
    let systemd = supervise(&mut stage.robot.agent, &socket)?;
    stage.robot.start_agent().await?;
    let session = stage.open_arm().await?;
    systemd.told("READY=1").await?;

    let good = std::fs::read_to_string(stage.robot.agent.config_file())?;
    let bad = format!("{good}\n[sessions.nonsense]\n").replace("warm = 0", "warm = 0\nwarmer = 1");
    let line = 1 + bad.lines().position(|line| line == "warmer = 1").context("a line")?;
    std::fs::write(stage.robot.agent.config_file(), &bad)?;
    let place = format!("agent.toml:{line}: ");
    let refused = stage.robot.agent.command(&["reload"]).await?;
    assert_eq!(refused.status.code(), Some(EX_CONFIG));
    assert!(refused.log.contains(&place), "{}", refused.log.text());

    stage.robot.agent.process()?.hang_up()?;
    let told = systemd.told("READY=1").await?.concat();
    assert!(told.contains("RELOADING=1\nMONOTONIC_USEC="), "{told}");
    let told = systemd.told("STATUS=configuration: it stays as it was: ").await?;
    let told = told.last().context("it was told")?;
    assert!(told.contains(&place) && told.contains("warmer"), "{told}");
    assert_eq!(told.trim().lines().count(), 1, "{told}");
    stage.health_says("warmer").await?;
    let log = stage.robot.agent.process()?.log();
    log.wait_for("the configuration stays as it was", STEP).await?;

    std::fs::write(stage.robot.agent.config_file(), &good)?;
    stage.robot.agent.process()?.hang_up()?;
    systemd.told("STATUS=root secret unsealed, both links up").await?;
    stage.submit(&trials()?[0]).await?;
    let result = stage.robot.onboard.result(ARM).await?;
    assert_eq!(result["session"], session, "the session is the one from before");
    assert_eq!(numbers(&stage.close_arm().await?), [1]);
    Ok(())
}

/// A task that reads a topic and answers on another.
fn declaration(reads: &str, answers: &str) -> String {
    format!(
        "[[tasks]]\nname = {ARM:?}\nmodel = {QUICK:?}\nresult_topic = {answers:?}\n\
         when_full = \"block\"\n[[tasks.topics]]\ntopic = {reads:?}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_declared_changed_and_taken_back_while_the_agent_runs() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let trial = trials()?.into_iter().next().context("there are recordings")?;
    let label = Reference::load(Scheme::Tfhe, QUICK)?.label(&trial)?;
    stage.robot.onboard.client.subscribe("arm/+").await?;
    let window = serde_json::to_vec(&json!({ "samples": trial.samples }))?;
    let mut sessions = Vec::new();
    for (job, (reads, answers)) in [("arm/a", "arm/x"), ("arm/b", "arm/y")].into_iter().enumerate()
    {
        stage.robot.agent.configure(&declaration(reads, answers))?;
        let said = stage.robot.agent.command(&["reload"]).await?.success()?;
        assert!(said.contains("Changed: tasks."), "{}", said.text());
        if job == 0 {
            sessions.push(stage.active_session().await?);
        }
        // The connection that reads has to be there: what nobody listens to, the broker forgets.
        let log = stage.robot.agent.process()?.log();
        log.wait_for_nth(job + 1, "inputs are connected", STEP).await?;
        stage.robot.onboard.client.publish(reads, window.clone()).await?;
        let is_answer = |message: &Message| message.json().is_ok_and(|it| it["label"] == label);
        let client = &stage.robot.onboard.client;
        let answer = client.wait_for(answers, "answer", SLOW, is_answer).await?.json()?;
        assert_eq!(answer["job"], job as u64 + 1);
        sessions.push(answer["session"].as_str().context("a session")?.to_owned());
    }
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "the session lives through all of it: {sessions:?}");

    stage.robot.agent.configure_without("tasks")?;
    stage.robot.agent.command(&["reload"]).await?.success()?;
    stage.robot.onboard.state(ARM, "ended").await?;
    // Like any other task from here on.
    stage.open_arm().await?;
    Ok(())
}
