//! The user, the directories and the configuration that an installation makes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use moai_tests::process::{Launch, STEP, binary};

use crate::{packaged, run};

/// A root with nothing but the user database's beginnings.
fn empty_root(scratch: &Path) -> Result<std::path::PathBuf> {
    let root = scratch.join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(root)
}

#[tokio::test]
async fn systemd_makes_the_user_who_may_use_the_tpm() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let root = empty_root(scratch.path())?;
    let arguments = [
        format!("--root={}", root.display()),
        packaged("moai-agent.sysusers").to_string_lossy().into_owned(),
    ];
    let done = run("systemd-sysusers", arguments, scratch.path()).await?.success()?;
    let users = fs::read_to_string(root.join("etc/passwd"))?;
    let user = users.lines().find(|line| line.starts_with("moai-agent:"));
    let user = user.with_context(|| format!("no user in {users}; {}", done.text()))?;
    assert!(user.ends_with(":/var/lib/moai-agent:/usr/sbin/nologin"), "{user}");
    let groups = fs::read_to_string(root.join("etc/group"))?;
    let tss = groups.lines().find(|line| line.starts_with("tss:"));
    assert!(tss.is_some_and(|tss| tss.ends_with(":moai-agent")), "{groups}");
    Ok(())
}

#[tokio::test]
async fn systemd_makes_the_directories() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let root = empty_root(scratch.path())?;
    // Somebody that whoever runs the tests may give files to: themselves.
    let me = fs::metadata(scratch.path())?;
    let (uid, gid) =
        (std::os::unix::fs::MetadataExt::uid(&me), std::os::unix::fs::MetadataExt::gid(&me));
    for (file, line) in [
        ("etc/passwd", format!("moai-agent:x:{uid}:{gid}::/:/bin/sh\n")),
        ("etc/group", format!("moai-agent:x:{gid}:\n")),
    ] {
        fs::write(root.join(file), line)?;
    }
    let rules = fs::read_to_string(packaged("moai-agent.tmpfiles"))?;
    // A test that is not root can make no file of root's.
    let rules = if uid == 0 { rules } else { rules.replace(" root root ", " - - ") };
    let path = scratch.path().join("moai-agent.conf");
    fs::write(&path, rules)?;
    let arguments = [
        "--create".to_owned(),
        format!("--root={}", root.display()),
        path.to_string_lossy().into_owned(),
    ];
    let said = run("systemd-tmpfiles", arguments, scratch.path()).await?.success()?;
    for (directory, mode) in [("var/lib/moai-agent", 0o700), ("etc/moai-agent/policies.d", 0o755)] {
        let made = fs::metadata(root.join(directory));
        let made = made.with_context(|| format!("no {directory}: {}", said.text()))?;
        assert_eq!(made.permissions().mode() & 0o7777, mode, "{directory}");
    }
    Ok(())
}

#[tokio::test]
async fn the_default_configuration_asks_for_what_only_its_owner_knows() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let config = packaged("agent.toml");
    let check = async |config: &Path| {
        Launch::new("check", &binary("moai-agent")?, scratch.path())
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["config", "check"])
            .run(STEP)
            .await
    };
    let text = check(&config).await?.log.text();
    let problems: Vec<&str> = text.lines().filter(|line| line.contains("agent.toml:")).collect();
    assert_eq!(problems.len(), 2, "{text}");
    assert!(problems[0].contains("identity"), "{text}");
    assert!(problems[1].contains("uplink.host"), "{text}");
    Ok(())
}
