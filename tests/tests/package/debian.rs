//! What the Debian package is made of. Whether it installs, upgrades and removes, `cargo xtask dist --check`
//! tells.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use moai_tests::repository;
use toml::{Table, Value};

use crate::run;

fn manifest() -> Result<Table> {
    Ok(fs::read_to_string(repository().join("agent/Cargo.toml"))?.parse()?)
}

fn metadata() -> Result<Value> {
    let manifest = manifest()?;
    let metadata = manifest["package"].get("metadata").and_then(|it| it.get("deb"));
    metadata.cloned().context("the agent has no package")
}

fn script(name: &str) -> PathBuf {
    repository().join("systemd/debian").join(name)
}

#[test]
fn every_file_of_the_package_is_there() -> Result<()> {
    let metadata = metadata()?;
    let assets = metadata["assets"].as_array().context("there are assets")?;
    for asset in assets {
        let source = asset[0].as_str().context("an asset has a source")?;
        if source.starts_with("target/release/") {
            continue;
        }
        let path = repository().join("agent").join(source);
        match source.strip_suffix("/*.1") {
            None => assert!(path.is_file(), "{source} is missing"),
            Some(directory) => {
                let directory = fs::read_dir(repository().join("agent").join(directory))?;
                let names = directory.map(|it| Ok(it?.file_name().to_string_lossy().into_owned()));
                let names: Vec<String> = names.collect::<Result<_>>()?;
                assert!(names.iter().any(|name| name.ends_with(".1")), "no page in {names:?}");
            }
        }
    }
    let units = repository()
        .join("agent")
        .join(metadata["systemd-units"]["unit-scripts"].as_str().context("there is a unit")?);
    assert!(units.join("moai-agent.service").is_file());
    Ok(())
}

#[test]
fn the_changelog_begins_with_the_version() -> Result<()> {
    let workspace: Table = fs::read_to_string(repository().join("Cargo.toml"))?.parse()?;
    let version = workspace["workspace"]["package"]["version"].as_str().context("a version")?;
    let changelog = fs::read_to_string(script("changelog"))?;
    let wanted = format!("moai-agent ({version}-1) ");
    assert!(changelog.starts_with(&wanted), "{wanted} is not what it begins with:\n{changelog}");
    Ok(())
}

#[tokio::test]
async fn scripts_are_shell_and_take_what_is_generated() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    for name in ["postinst", "postrm", "check.sh"] {
        let path = script(name);
        let path_text = path.to_string_lossy().into_owned();
        run("sh", ["-n", &path_text], scratch.path()).await?.success()?;
        let text = fs::read_to_string(&path)?;
        assert!(
            text.lines().any(|line| line.starts_with("set -e")),
            "{name} goes on after a failure"
        );
        assert!(name == "check.sh" || text.contains("\n#DEBHELPER#\n"), "{name}");
    }
    Ok(())
}
