//! The configuration is understood whole or refused with every problem at once.

use std::path::Path;

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::process::{Finished, Launch, STEP, binary};

use crate::stage::start;

const EX_CONFIG: i32 = 78;

async fn check(program: &str, directory: &Path, text: &str, command: &[&str]) -> Result<Finished> {
    let file = directory.join("it.toml");
    std::fs::write(&file, text)?;
    Launch::new(program, &binary(program)?, directory)
        .args(["--config".as_ref(), file.as_os_str()])
        .args(command)
        .run(STEP)
        .await
}

/// Every one of `lines` is named as `it.toml:LINE:` with its key.
fn assert_names(finished: &Finished, lines: &[(usize, &str)]) {
    let text = finished.log.text();
    assert_eq!(finished.status.code(), Some(EX_CONFIG), "{text}");
    for (line, key) in lines {
        let place = format!("it.toml:{line}: ");
        let named = text.lines().any(|said| said.contains(&place) && said.contains(key));
        assert!(named, "{key} of line {line} is not in:\n{text}");
    }
}

#[tokio::test]
async fn the_agent_names_every_mistake_with_its_line_and_starts_nothing() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let text = "identity = \"Robot 1\"\nstate_dir = \"/tmp\"\n[tpm]\npcrs = \"sha256:99\"\n\
                [uplink]\nhost = 5\nport = 70000\n[session]\n";
    let lines = [
        (1, "identity"),
        (2, "state_dir"),
        (4, "pcrs"),
        (6, "uplink.host"),
        (7, "uplink.port"),
        (8, "session"),
    ];
    for command in [["config", "check"].as_slice(), &["run"], &["provision"], &["status"]] {
        let finished = check("moai-agent", scratch.path(), text, command).await?;
        assert_names(&finished, &lines);
    }
    Ok(())
}

#[tokio::test]
async fn the_server_names_every_mistake_with_its_line() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let text = "worker_group = \"a/b\"\ntenants = \"acme\"\nmodels = \"m\"\nthreads = 0\n\
                [broker]\nport = \"many\"\n";
    let finished = check("moai-server", scratch.path(), text, &["config", "check"]).await?;
    let lines = [
        (1, "worker_group"),
        (2, "tenants"),
        (3, "models"),
        (4, "threads"),
        (6, "broker.port"),
        (5, "broker.host"),
    ];
    assert_names(&finished, &lines);
    Ok(())
}

#[tokio::test]
async fn a_missing_file_is_a_configuration_error_too() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let nowhere = scratch.path().join("nowhere.toml");
    for program in ["moai-agent", "moai-server"] {
        let finished = Launch::new(program, &binary(program)?, scratch.path())
            .args(["--config".as_ref(), nowhere.as_os_str()])
            .args(["config", "check"])
            .run(STEP)
            .await?;
        assert_eq!(finished.status.code(), Some(EX_CONFIG));
        assert!(finished.log.contains("nowhere.toml"), "{}", finished.log.tail());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_good_configuration_says_so_and_what_is_left_to_do() -> Result<()> {
    let stage = start(World::builder().unprovisioned()).await?;
    let agent = &stage.robot.agent;
    let before = agent.command(&["config", "check"]).await?.success()?;
    assert!(before.contains("no problem found for acme.robot-1"), "{}", before.tail());
    assert!(before.contains("run moai-agent provision"), "{}", before.tail());
    let run = agent.command(&["run"]).await?;
    assert_eq!(run.status.code(), Some(77), "{}", run.log.tail());
    assert!(run.log.contains("run `moai-agent provision` once"), "{}", run.log.tail());
    agent.provision().await?;
    let after = agent.command(&["config", "check"]).await?.success()?;
    assert!(!after.contains("provision"), "{}", after.tail());
    stage.compute.command(&["config", "check"]).await?.success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_is_provisioned_only_once() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    let root = stage.robot.agent.state_directory().join("root.sealed");
    let sealed = std::fs::read(&root)?;
    let again = stage.robot.agent.command(&["provision"]).await?;
    let code = again.status.code().context("it was killed")?;
    assert_ne!(code, 0);
    assert!(again.log.contains("is provisioned already"), "{}", again.log.tail());
    assert_eq!(std::fs::read(&root)?, sealed, "the root secret stays what it was");
    Ok(())
}
