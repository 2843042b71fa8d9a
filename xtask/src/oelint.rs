//! oelint-adv, which knows how recipes are to be written.

use std::process::Command;

use anyhow::Result;

use crate::cargo::step;
use crate::environment::OELINT;

/// The release of the Yocto Project whose rules count.
const RELEASE: &str = "wrynose";

/// Asks the web about the homepage, and dislikes what oe-core writes into the list of crates.
const SUPPRESSED: [&str; 2] = ["oelint.vars.homepageping", "oelint.vars.inconspaces"];

/// Checks the recipes; every error and warning is a failure.
///
/// # Errors
/// It is not installed, or there are findings.
pub(crate) fn check() -> Result<()> {
    let mut lint = Command::new(OELINT.python()?.with_file_name("oelint-adv"));
    lint.args(["--release", RELEASE, "--quiet", "--relpaths", "--hide", "info"]);
    lint.args(SUPPRESSED.iter().flat_map(|rule| ["--suppress", rule]));
    step(lint.args(crate::yocto::recipes()?))
}
