//! Python modules of the CKKS server, `server/tenseal`, and of its tests.
//!
//! Invariant: they run from the environment that `cargo xtask setup` makes in the target directory,
//! and write nothing into the source tree.

use std::path::Path;

use anyhow::Result;

use crate::onboard::SLOW;
use crate::process::{Finished, Launch};
use crate::python::interpreter;

/// A module of the server or of its tests, about to run; logs go to `directory`.
pub(crate) fn module(name: &str, module: &str, directory: &Path) -> Result<Launch> {
    Ok(Launch::new(name, &interpreter("tenseal")?, &directory.join("logs"))
        .env("PYTHONPATH", crate::repository().join("server/tenseal"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-m", module]))
}

/// Runs a module with arguments to its end.
///
/// # Errors
/// It cannot be started or takes longer than [`SLOW`]; a failing exit code is no error here.
pub async fn run(directory: &Path, name: &str, arguments: &[&str]) -> Result<Finished> {
    module(name, name, directory)?.args(arguments).run(SLOW).await
}
