//! The Debian that this machine runs.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The release's code name; none if this is not Debian or the like.
pub(crate) fn release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned())
}

/// The machine's own sources of Debian, of suites that are `wanted`, as lines of a sources.list.
///
/// # Errors
/// There are none.
pub(crate) fn sources(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let format = "--format=$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let output = Command::new("apt-get")
        .args(["indextargets", format, "Created-By: Packages", "Origin: Debian"])
        .output()
        .context("cannot ask apt-get for the machine's sources")?;
    let sources = select(&String::from_utf8_lossy(&output.stdout), wanted);
    if sources.is_empty() {
        bail!("apt-get knows no source of this release of Debian; run `apt-get update` first");
    }
    Ok(sources)
}

/// Of lines `CODENAME SOURCE` the sources that are wanted.
fn select(lines: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = lines.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(name, _)| wanted(name)).map(|(_, source)| source.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_chosen_by_their_names() {
        let lines = "bookworm deb http://mirror/debian/ bookworm main\n\
                     bookworm-updates deb http://mirror/debian/ bookworm-updates main\n\
                     bookworm-security deb http://mirror/security/ bookworm-security main\n";
        let main = "deb http://mirror/debian/ bookworm main";
        assert_eq!(select(lines, |name| name == "bookworm"), [main]);
        let security = "deb http://mirror/security/ bookworm-security main";
        assert_eq!(select(lines, |name| !name.ends_with("-updates")), [main, security]);
        assert!(select(lines, |name| name == "trixie").is_empty());
    }
}
