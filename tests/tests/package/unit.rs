//! The unit: systemd understands it, it keeps the agent from nearly everything, and the agent
//! understands what it is started with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use moai_tests::process::{Launch, STEP, binary};

use crate::{packaged, run};

const UNIT: &str = "moai-agent.service";
/// `systemd-analyze security` times ten: 0 is a service that can do nothing, 100 one that can do
/// everything.
const HIGHEST_EXPOSURE: &str = "15";
const EX_CONFIG: i32 = 78;

/// A file system with the machine's units, ours, and the programs that ours starts.
fn stage(root: &Path, unit: &str) -> Result<()> {
    let units = root.join("usr/lib/systemd/system");
    fs::create_dir_all(&units)?;
    for entry in fs::read_dir("/usr/lib/systemd/system")? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), units.join(entry.file_name()))?;
        }
    }
    fs::write(units.join(UNIT), unit)?;
    fs::create_dir_all(root.join("usr/bin"))?;
    fs::copy(binary("moai-agent")?, root.join("usr/bin/moai-agent"))?;
    for directory in ["bin", "lib", "sbin"] {
        fs::create_dir_all(root.join("usr").join(directory))?;
        symlink(Path::new("usr").join(directory), root.join(directory))?;
    }
    // The machine's units start programs of their own.
    for name in ["agetty", "sulogin", "mount", "umount", "true", "sh"] {
        fs::copy("/bin/true", root.join("usr/bin").join(name))?;
        fs::copy("/bin/true", root.join("usr/sbin").join(name))?;
    }
    Ok(())
}

/// What systemd has to say of our unit.
async fn verify(unit: &str) -> Result<String> {
    let scratch = tempfile::tempdir()?;
    let root = scratch.path().join("root");
    stage(&root, unit)?;
    let arguments = ["verify", "--man=no", "--recursive-errors=no"].map(ToOwned::to_owned);
    let rest = [format!("--root={}", root.display()), UNIT.to_owned()];
    let verified =
        run("systemd-analyze", arguments.into_iter().chain(rest), scratch.path()).await?;
    let text = verified.log.text();
    ensure!(verified.status.success() || !text.is_empty(), "it failed without a word");
    Ok(text)
}

#[tokio::test]
async fn systemd_understands_every_line_of_the_unit() -> Result<()> {
    let unit = fs::read_to_string(packaged(UNIT))?;
    let said = verify(&unit).await?;
    assert_eq!(said, "", "systemd-analyze verify");

    let wrong = unit.replace("WatchdogSec=", "WatchdogSeconds=");
    let said = verify(&wrong).await?;
    assert!(said.contains("WatchdogSeconds"), "a wrong line is not noticed: {said}");
    let absent = unit.replace("/usr/bin/moai-agent run", "/usr/bin/moai-agents run");
    let said = verify(&absent).await?;
    assert!(said.contains("moai-agents"), "an absent program is not noticed: {said}");
    Ok(())
}

#[tokio::test]
async fn the_unit_keeps_the_agent_from_nearly_everything() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let threshold = format!("--threshold={HIGHEST_EXPOSURE}");
    let rate = async |unit: &Path| {
        let unit = unit.to_string_lossy().into_owned();
        let arguments = ["security", "--offline=true", "--no-pager", &threshold, &unit];
        run("systemd-analyze", arguments, scratch.path()).await
    };
    rate(&packaged(UNIT)).await?.success()?;

    let open = fs::read_to_string(packaged(UNIT))?.replace("ProtectSystem=strict\n", "");
    let path = scratch.path().join(UNIT);
    fs::write(&path, open)?;
    let rated = rate(&path).await?;
    assert!(!rated.status.success(), "an open system passes: {}", rated.log.tail());
    Ok(())
}

#[tokio::test]
async fn the_agent_understands_every_command_of_the_unit() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let unit = fs::read_to_string(packaged(UNIT))?;
    let commands = unit.lines().filter_map(|line| line.strip_prefix("Exec")?.split_once('='));
    let mut seen = Vec::new();
    for (when, command) in commands {
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("/usr/bin/moai-agent"), "Exec{when}");
        let finished = Launch::new("command", &binary("moai-agent")?, scratch.path())
            .args(["--config".as_ref(), scratch.path().join("none.toml").as_os_str()])
            .args(words)
            .run(STEP)
            .await?;
        // It gets as far as its configuration; a command line it does not understand ends with 2.
        let text = finished.log.text();
        assert_eq!(finished.status.code(), Some(EX_CONFIG), "Exec{when}={command}\n{text}");
        seen.push(when);
    }
    assert_eq!(seen, ["StartPre", "Start", "Reload"]);
    Ok(())
}

#[tokio::test]
async fn exit_codes_that_restarts_cannot_help_with_are_documented_as_such() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let unit = fs::read_to_string(packaged(UNIT))?;
    let prevented = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    let prevented = prevented.context("the unit prevents no restart")?;
    let help = Launch::new("help", &binary("moai-agent")?, scratch.path())
        .args(["--help"])
        .run(STEP)
        .await?
        .success()?
        .text();
    for code in prevented.split(' ') {
        let documented =
            help.lines().any(|line| line.trim_start().starts_with(&format!("{code} ")));
        assert!(documented, "{code} is not in:\n{help}");
    }
    assert!(!prevented.split(' ').any(|code| code == "75"), "75 says that trying again can help");
    Ok(())
}
