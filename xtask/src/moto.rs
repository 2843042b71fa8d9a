//! moto, the AWS KMS of tests, in a Python environment of its own in the target directory.
//!
//! Invariants:
//! - the version is pinned; another one is replaced;
//! - the file `version` is written last, so an environment that has it is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::step;

const VERSION: &str = "5.2.5";

/// Whether the environment is there, complete and of the right version.
pub(crate) fn is_there() -> bool {
    directory().is_ok_and(|directory| version_in(&directory).is_some_and(|v| v == VERSION))
}

/// Makes the environment unless it is there.
///
/// # Errors
/// There is no Python, or no package registry can be reached.
pub(crate) fn install() -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let directory = directory()?;
    println!(
        "Installing moto {VERSION}, the AWS KMS of tests, for this target directory alone (once, \
         about a minute):"
    );
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot replace {}", directory.display()))?;
    }
    step(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
    let package = format!("moto[server]=={VERSION}");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &package];
    if let Err(error) = step(Command::new(directory.join("bin/python")).args(pip)) {
        bail!(
            "{error}; the tests of custodian kms need it, and pip needs to reach PyPI or a mirror"
        );
    }
    fs::write(directory.join("version"), VERSION)?;
    Ok(())
}

/// The interpreter of the environment, once that is installed.
///
/// # Errors
/// Nobody can tell where it is.
pub(crate) fn python() -> Result<PathBuf> {
    Ok(directory()?.join("bin/python"))
}

fn version_in(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join("version")).ok()
}

/// xtask was built into the target directory, wherever `CARGO_TARGET_DIR` or a config put it.
fn directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot tell where xtask lies")?;
    let target = executable.ancestors().nth(2).context("xtask lies in no target directory")?;
    Ok(target.join("python/moto"))
}
