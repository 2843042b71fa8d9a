//! The system packages that builds and tests need.
//!
//! Invariants:
//! - nothing is installed that is there already, and nothing without saying so;
//! - where we cannot install, the error is the command to type.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::cargo::step;

struct Need {
    what: &'static str,
    package: &'static str,
    is_there: fn() -> bool,
}

/// In the order in which they are named to the user.
const NEEDS: [Need; 5] = [
    Need {
        what: "pkg-config, which finds the TPM library",
        package: "pkg-config",
        is_there: || program("pkg-config").is_some(),
    },
    Need {
        what: "libtss2, the TPM 2.0 library, with headers",
        package: "libtss2-dev",
        is_there: has_tss2,
    },
    Need {
        what: "swtpm, the software TPM of demo and tests",
        package: "swtpm",
        is_there: || program("swtpm").is_some(),
    },
    Need {
        what: "mosquitto, the MQTT broker of demo and tests",
        package: "mosquitto",
        is_there: || program("mosquitto").is_some(),
    },
    Need {
        what: "setpriv, which ties processes of demo and tests to their parent",
        package: "util-linux",
        is_there: || program("setpriv").is_some(),
    },
];

/// Looks in `PATH` and in the directories an ordinary user's `PATH` lacks.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn has_tss2() -> bool {
    let mut probe = Command::new("pkg-config");
    probe.args(["--exists", "tss2-esys", "tss2-mu", "tss2-sys", "tss2-tctildr"]);
    probe.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !(need.is_there)()).collect()
}

fn list(needs: &[&Need]) -> String {
    let mut text = String::new();
    for need in needs {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {:<12} {}", need.package, need.what);
    }
    text
}

/// Fails if anything is missing, and says what.
///
/// # Errors
/// Something is missing.
pub(crate) fn check() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        println!("Everything that builds and tests need is installed.");
        return Ok(());
    }
    bail!("missing:{}\n`cargo xtask setup` installs it", list(&missing))
}

/// Installs what is missing with apt-get.
///
/// # Errors
/// There is no apt-get, no right to use it, or it failed.
pub(crate) fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    println!("Installing what is missing on this machine:{}", list(&missing));
    let Some(apt) = program("apt-get") else {
        bail!(
            "this is not Debian or Ubuntu (there is no apt-get); please install the packages \
             above under the names your distribution has for them, then run the command again"
        );
    };
    let typed = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    let prefix: &[&str] = match (is_root(), program("sudo")) {
        (true, _) => &[],
        (false, Some(_)) => &["sudo"],
        (false, None) => bail!("only root can install packages; please run as root:\n  {typed}"),
    };
    // Lists that are old or have never been fetched are the usual reason for "not found"; one
    // source that is out of reach need not matter, so the installation decides.
    if let Err(error) = step(&mut apt_get(prefix, &apt, &["update"], &[])) {
        eprintln!("warning: {error}");
    }
    let install = ["install", "--yes", "--no-install-recommends"];
    if let Err(error) = step(&mut apt_get(prefix, &apt, &install, &packages)) {
        bail!("{error}; please run as root:\n  apt-get update && {typed}");
    }
    let still = self::missing();
    if !still.is_empty() {
        bail!("the packages are installed, and yet this is missing:{}", list(&still));
    }
    if packages.contains(&"mosquitto") && Path::new("/run/systemd/system").exists() {
        println!(
            "\nDebian has also started a mosquitto of its own on port 1883, which nothing here \
             uses. To stop it: systemctl disable --now mosquitto"
        );
    }
    Ok(())
}

fn apt_get(prefix: &[&str], apt: &Path, arguments: &[&str], packages: &[&str]) -> Command {
    // sudo drops the environment, so the variable is set behind it.
    let mut words = prefix.iter().copied().chain(["env", "DEBIAN_FRONTEND=noninteractive"]);
    let mut command = Command::new(words.next().unwrap_or("env"));
    command.args(words).arg(apt).args(arguments).args(packages);
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_not() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-anywhere").is_none());
    }

    #[test]
    fn what_is_missing_is_listed_with_its_package() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        let text = list(&needs);
        assert!(text.contains("\n  swtpm        swtpm, the software TPM"), "{text}");
        assert_eq!(text.lines().count(), NEEDS.len() + 1);
    }

    #[test]
    fn apt_runs_without_questions_also_behind_sudo() {
        let command = apt_get(&["sudo"], Path::new("/usr/bin/apt-get"), &["install"], &["swtpm"]);
        let line = crate::cargo::line(&command);
        assert_eq!(line, "sudo env DEBIAN_FRONTEND=noninteractive /usr/bin/apt-get install swtpm");
        let line = crate::cargo::line(&apt_get(&[], Path::new("apt-get"), &["update"], &[]));
        assert_eq!(line, "env DEBIAN_FRONTEND=noninteractive apt-get update");
    }
}
