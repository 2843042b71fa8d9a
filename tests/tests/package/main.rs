//! What is installed on a robot beside the agent, checked by systemd's own tools.

mod debian;
mod files;
mod manual;
mod unit;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use moai_tests::process::{Finished, Launch, STEP, program};
use moai_tests::repository;

/// A file of the directory `systemd`.
fn packaged(name: &str) -> PathBuf {
    repository().join("systemd").join(name)
}

/// Runs a program of the system to its end.
async fn run<A: AsRef<OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = A>,
    scratch: &Path,
) -> Result<Finished> {
    Launch::new(name, &program(name)?, scratch).args(arguments).run(STEP).await
}
