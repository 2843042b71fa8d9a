//! What the fleet's operator has a robot do from afar.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::broker::FLEET;
use moai_tests::onboard::SLOW;
use moai_tests::process::Finished;
use moai_tests::world::IDENTITY;
use moai_transport::keys::OperatorSigningKey;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use tempfile::TempDir;

use crate::stage::{ARM, Stage, start};

/// An operator's key, its public half, and where commands are written.
struct Operator {
    directory: TempDir,
}

impl Operator {
    fn new(seed: u8) -> Result<Self> {
        let operator = Self { directory: tempfile::tempdir()? };
        let key = OperatorSigningKey::from_seed(&[seed; 32]);
        std::fs::write(operator.key(), key.to_pem().as_bytes())?;
        std::fs::write(operator.public(), key.public().to_pem())?;
        Ok(operator)
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("operator.key")
    }

    fn public(&self) -> PathBuf {
        self.directory.path().join("operator.pem")
    }

    /// What makes a robot obey.
    fn agent_toml(&self) -> String {
        format!("[uplink]\noperator_key = {:?}\n", self.public().display().to_string())
    }

    /// Gives a command and waits for the report.
    async fn send(&self, stage: &Stage, wait: &str, command: &[&str]) -> Result<Finished> {
        let tls = stage.pki.client(FLEET)?;
        let (key, port) = (self.key(), stage.broker.port().to_string());
        let text = |path: &Path| path.display().to_string();
        let (key, ca) = (text(&key), text(&tls.ca));
        let (certificate, tls_key) = (text(&tls.certificate), text(&tls.key));
        let mut arguments =
            vec!["remote", "--robot", IDENTITY, "--key", &key, "--wait-seconds", wait];
        arguments.extend(["--host", "localhost", "--port", &port, "--ca", &ca]);
        arguments.extend(["--certificate", &certificate, "--certificate-key", &tls_key]);
        arguments.extend(command);
        stage.robot.agent.command(&arguments).await
    }

    /// Signs a command without sending it; returns the frame.
    async fn sign(&self, stage: &Stage, command: &[&str]) -> Result<Vec<u8>> {
        let (key, out) = (self.key(), self.directory.path().join("frame"));
        let (key, file) = (key.display().to_string(), out.display().to_string());
        let mut arguments = vec!["remote", "--robot", IDENTITY, "--key", &key, "--out", &file];
        arguments.extend(command);
        stage.robot.agent.command(&arguments).await?.success()?;
        Ok(std::fs::read(out)?)
    }
}

async fn publish(stage: &Stage, frame: &[u8]) -> Result<()> {
    let topic = format!("moai/v1/down/{IDENTITY}/command");
    let none = PublishProperties::default();
    stage.operator.try_publish(&topic, frame, none, true).await.map(drop)
}

/// The entries of the robot's audit log that have all these words.
async fn entries(stage: &Stage, words: &[&str]) -> Result<usize> {
    let log = stage.robot.agent.command(&["audit", "show", "--json"]).await?.success()?.text();
    Ok(log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_has_a_robot_do_once_what_its_own_command_line_does() -> Result<()> {
    let operator = Operator::new(1)?;
    let mut stage = start(World::builder().agent_toml(&operator.agent_toml())).await?;
    let first = stage.open_arm().await?;
    let old = operator.sign(&stage, &["emergency"]).await?;

    let done = operator.send(&stage, "30", &["revoke-task", ARM]).await?.success()?.text();
    assert_eq!(done.trim(), format!("{IDENTITY}: revoked, the keys are gone: {first}."));
    let second = stage.active_session().await?;
    assert_ne!(first, second);
    let unknown = operator.send(&stage, "30", &["close-task", "leg"]).await?;
    let refused = unknown.success().err().context("a task that is none was closed")?;
    assert!(format!("{refused:#}").contains("there are: arm"), "{refused:#}");
    assert_eq!(entries(&stage, &["command_obeyed", "revoke-task", "true"]).await?, 1);
    assert_eq!(entries(&stage, &["command_obeyed", "close-task", "false"]).await?, 1);

    // The broker still has the last one, and gives it to whoever subscribes.
    stage.robot.restart_agent().await?;
    assert_eq!(stage.active_session().await?, second);
    publish(&stage, &old).await?;
    let agent = stage.robot.agent.process()?;
    agent.wait_for_line("a newer one was obeyed", SLOW).await?;
    assert_eq!(entries(&stage, &["command_obeyed"]).await?, 2);
    assert_eq!(entries(&stage, &["frame_refused", "command", "replayed"]).await?, 1);

    let done = operator.send(&stage, "30", &["emergency"]).await?.success()?.text();
    assert!(done.contains("1 sessions are revoked, epoch "), "{done}");
    assert_eq!(entries(&stage, &["\"emergency\"", "\"by\":\"uplink\""]).await?, 1);
    assert_ne!(stage.active_session().await?, second);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_that_is_away_obeys_when_it_is_back() -> Result<()> {
    let operator = Operator::new(2)?;
    let mut stage = start(World::builder().agent_toml(&operator.agent_toml())).await?;
    let first = stage.open_arm().await?;
    stage.robot.agent.stop().await?;
    let away = operator.send(&stage, "0", &["revoke-session", &first]).await?;
    let away = away.success().err().context("a robot that is away has answered")?;
    assert!(format!("{away:#}").contains("it obeys when it is back"), "{away:#}");
    let agent = stage.robot.agent.spawn()?;
    agent.wait_for_line("the command is over", SLOW).await?;
    assert_ne!(stage.active_session().await?, first);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gives_a_robot_commands() -> Result<()> {
    let (operator, stranger) = (Operator::new(3)?, Operator::new(4)?);
    let stage = start(World::builder().agent_toml(&operator.agent_toml())).await?;
    let session = stage.open_arm().await?;
    let agent = stage.robot.agent.process()?;

    publish(&stage, &stranger.sign(&stage, &["emergency"]).await?).await?;
    agent.wait_for_line("by no operator whose key is trusted", SLOW).await?;
    assert_eq!(entries(&stage, &["frame_refused", "command", "signature"]).await?, 1);
    let frame = operator.sign(&stage, &["emergency"]).await?;
    let elsewhere = format!("moai/v1/down/{IDENTITY}/{session}/result");
    stage.operator.publish(&elsewhere, frame.as_slice()).await?;
    agent.wait_for_line("on the topic of another kind", SLOW).await?;
    assert_eq!(entries(&stage, &["command_obeyed"]).await?, 0);
    let listed = stage.robot.agent.command(&["task", "list"]).await?.success()?.text();
    assert!(listed.contains(&session), "{listed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_that_knows_no_operator_obeys_nobody() -> Result<()> {
    let operator = Operator::new(5)?;
    let stage = start(World::builder()).await?;
    publish(&stage, &operator.sign(&stage, &["emergency"]).await?).await?;
    let agent = stage.robot.agent.process()?;
    agent.wait_for_line("takes no commands over the uplink", SLOW).await?;
    assert_eq!(entries(&stage, &["command_obeyed"]).await?, 0);
    Ok(())
}
