//! The Python environments that `cargo xtask setup` makes in the target directory.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The interpreter of an environment, such as `moto`.
///
/// # Errors
/// It is not installed.
pub fn interpreter(environment: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot tell where this executable lies")?;
    for directory in executable.ancestors().skip(1) {
        let environment = directory.join("python").join(environment);
        // Written last, so what has it is complete.
        if environment.join("version").is_file() {
            return Ok(environment.join("bin/python"));
        }
    }
    bail!("the Python environment {environment} is not installed; run `cargo xtask setup`")
}
