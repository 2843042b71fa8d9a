//! The agent as it is released, in each selection of schemes, for `moai-bench footprint` to measure.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::dist::Site;

/// Directories by what is built into the agent there, and how cargo is told.
const SELECTIONS: [(&str, &[&str]); 2] =
    [("both", &[]), ("ckks", &["--no-default-features", "--features", "ckks"])];

/// Builds all; returns the directory in which they lie.
///
/// # Errors
/// One does not build.
pub(crate) fn build() -> Result<PathBuf> {
    let site = Site::usual()?;
    let directory = site.target.with_file_name("footprint");
    for (name, features) in SELECTIONS {
        site.build(features)?;
        let place = directory.join(name);
        fs::create_dir_all(&place)?;
        let (built, kept) = (site.program(), place.join("moai-agent"));
        fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    // The package is made of the one with everything.
    site.build(&[])?;
    Ok(directory)
}
