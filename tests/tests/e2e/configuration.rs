//! The configuration is understood whole or refused with every problem at once.

use std::path::Path;

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::process::{Finished, Launch, STEP, binary};
use moai_tests::settings::quoted;

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
async fn a_server_key_that_is_missing_or_none_is_named_with_line_and_remedy() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let key = stage.directory().join("keys.pem");
    stage.robot.agent.configure(&format!("[uplink]\nserver_key = {}", quoted(&key)))?;
    let config = std::fs::read_to_string(stage.robot.agent.config_file())?;
    let line = 1 + config.lines().position(|line| line.contains("server_key")).context("a line")?;
    let place = format!("agent.toml:{line}: `uplink.server_key` is not usable");
    let public = std::fs::read_to_string(stage.pki.server_key())?;
    let private = std::fs::read_to_string(stage.pki.signing_key())?;
    for (text, why) in [
        (None, "No such file"),
        (Some(private), "not 0; `moai-server key public`"),
        (Some(public.repeat(5)), "not 5;"),
        (Some(public.replace("MCow", "MCox")), "public key 1 of the file is not Ed25519"),
    ] {
        if let Some(text) = text {
            std::fs::write(&key, text)?;
        }
        for command in [["config", "check"].as_slice(), &["run"]] {
            let refused = stage.robot.agent.command(command).await?;
            assert_eq!(refused.status.code(), Some(EX_CONFIG), "{}", refused.log.tail());
            for words in [place.as_str(), why, "place there what `moai-server key public` prints"] {
                assert!(refused.log.contains(words), "{words} is not in {}", refused.log.text());
            }
        }
    }
    // While one key follows another, robots believe both.
    std::fs::write(&key, public.repeat(2))?;
    stage.robot.agent.command(&["config", "check"]).await?.success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_key_is_made_shown_and_checked() -> Result<()> {
    let mut stage = start(World::builder().unprovisioned()).await?;
    let key = stage.directory().join("new.key");
    let path = key.display().to_string();
    let made = stage.compute.command(&["key", "generate", "--out", &path]).await?.success()?;
    assert!(made.contains("BEGIN PUBLIC KEY") && !made.contains("PRIVATE"), "{}", made.text());
    let shown = stage.compute.command(&["key", "public", &path]).await?.success()?;
    assert_eq!(shown.text(), made.text());
    let again = stage.compute.command(&["key", "generate", "--out", &path]).await?;
    assert!(!again.status.success() && again.log.contains("File exists"), "{}", again.log.text());

    let missing = stage.directory().join("missing.key");
    stage.compute.configure(&format!("signing_key = {}", quoted(&missing)))?;
    let refused = stage.compute.command(&["config", "check"]).await?;
    assert!(!refused.status.success() && refused.log.contains("missing.key"));
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
