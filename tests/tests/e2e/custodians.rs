//! A robot without a TPM: another custodian keeps its root secret.

use anyhow::{Result, ensure};
use moai_tests::World;
use moai_tests::moto::{self, Moto};
use moai_tests::process::STEP;
use moai_tests::softhsm::SoftHsm;

use crate::stage::{ARM, Stage, numbers, start, trials};

/// A world without a TPM whose agent is still to be provisioned.
async fn without_tpm() -> Result<Stage> {
    let mut stage = start(World::builder().software_key().unprovisioned()).await?;
    stage.robot.tpm.power_off().await?;
    Ok(stage)
}

/// Provisions, serves a task, is restarted, goes on with the same session.
async fn serves_and_resumes(stage: &mut Stage) -> Result<()> {
    stage.robot.agent.provision().await?;
    stage.robot.start_agent().await?;
    let session = stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;

    stage.robot.restart_agent().await?;

    ensure!(stage.active_session().await? == session, "the session was not resumed");
    stage.submit(&trials()?[1]).await?;
    ensure!(stage.robot.onboard.result(ARM).await?["job"] == 2);
    ensure!(numbers(&stage.close_arm().await?) == [1, 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pkcs11_token_keeps_the_root_secret() -> Result<()> {
    let mut stage = without_tpm().await?;
    let token = SoftHsm::make(&stage.directory().join("token")).await?;
    let (key, value) = token.environment();
    let agent = &mut stage.robot.agent;
    agent.set_env(key, &value);
    agent.configure(&format!("custody.custodian = \"pkcs11\"\n{}", token.toml()))?;
    serves_and_resumes(&mut stage).await
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_kms_keeps_the_root_secret() -> Result<()> {
    let mut stage = without_tpm().await?;
    let service = Moto::start(&stage.directory().join("kms")).await?;
    let agent = &mut stage.robot.agent;
    for (key, value) in moto::ENVIRONMENT {
        agent.set_env(key, value);
    }
    agent.configure(&format!("custody.custodian = \"kms\"\n{}", service.toml()))?;
    serves_and_resumes(&mut stage).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_development_key_keeps_the_root_secret_and_is_warned_about() -> Result<()> {
    let mut stage = without_tpm().await?;
    let agent = &mut stage.robot.agent;
    agent.set_env("MOAI_DEVELOPMENT_KEY", &"5a".repeat(32));
    agent.configure("custody.custodian = \"env\"\n")?;
    serves_and_resumes(&mut stage).await?;
    let log = stage.robot.agent.process()?.log();
    ensure!(log.contains("DEVELOPMENT ONLY"), "no warning:\n{}", log.tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_plugged_in_late_is_waited_for() -> Result<()> {
    let mut stage = without_tpm().await?;
    let token = SoftHsm::make(&stage.directory().join("token")).await?;
    let (key, value) = token.environment();
    let agent = &mut stage.robot.agent;
    agent.set_env(key, &value);
    agent.configure(&format!("custody.custodian = \"pkcs11\"\n{}", token.toml()))?;
    agent.provision().await?;
    token.unplug()?;
    let log = agent.spawn()?.log().clone();
    let waiting = log.wait_for("the root secret is not at hand yet", STEP).await?;
    ensure!(waiting.contains("no token is labelled"), "{waiting}");
    token.plug_in()?;
    stage.robot.onboard.health("up").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_escrow_a_robot_goes_on_after_its_tpm_was_replaced() -> Result<()> {
    let mut stage = start(World::builder().software_key().unprovisioned()).await?;
    let private = stage.directory().join("escrow.key");
    let [private, public] = [private.display().to_string(), format!("{}.pub", private.display())];
    let robot = &mut stage.robot;
    robot.agent.configure(&format!("escrow.recipient = {public:?}\n"))?;
    robot.agent.command(&["escrow", "keygen", "--out", &private]).await?.success()?;
    robot.agent.command(&["provision", "--escrow"]).await?.success()?;
    robot.start_agent().await?;
    let session = stage.open_arm().await?;
    stage.robot.agent.stop().await?;

    stage.robot.tpm.replace().await?;
    let copy = stage.robot.agent.state_directory().join("escrow.sealed").display().to_string();
    let recover = ["recover", "--from-escrow", &copy, "--escrow-key"];
    let wrong_key = stage.directory().join("other.key").display().to_string();
    let agent = &stage.robot.agent;
    agent.command(&["escrow", "keygen", "--out", &wrong_key]).await?.success()?;
    let refused = agent.command(&[&recover[..], &[&*wrong_key]].concat()).await?;
    ensure!(refused.log.contains("bring the other private key"), "{}", refused.log.tail());
    agent.command(&[&recover[..], &[&*private]].concat()).await?.success()?;
    stage.robot.start_agent().await?;

    ensure!(stage.active_session().await? == session, "the session was not resumed");
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    Ok(())
}
