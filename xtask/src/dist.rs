//! The release: the agent's Debian package, its bill of materials, and their checksums.
//!
//! Invariants:
//! - the program is built as [`crate::reproducible`] builds it: where it was built changes nothing, and it
//!   has the list of its crates in it (`cargo auditable`);
//! - what is there when it ends is of this run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{cargo, has_cargo_command, step, target_directory};
use crate::reproducible::{c_flags, cargo_home, commit_time, rust_flags};
use crate::setup::Purpose;
use crate::{debian, licences, setup};

const PACKAGE: &str = "moai-agent";
/// Of a package that would follow this one, to check the upgrade.
const NEXT: &str = "~check";

/// Makes everything; with `check`, also looks at the package with lintian, and installs, upgrades and
/// removes it in a Debian of its own. Returns the package.
///
/// # Errors
/// Something is missing, does not build, or the package has a fault.
pub(crate) fn make(check: bool) -> Result<PathBuf> {
    setup::install(if check { Purpose::DistCheck } else { Purpose::Dist })?;
    for tool in ["deb", "cyclonedx"] {
        install_cargo_command(tool)?;
    }
    let directory = target_directory()?.join("dist");
    let products = directory.join("products");
    empty(&products)?;
    let site = Site::usual()?;
    site.build(&[])?;
    site.write_licences()?;
    let package = site.package(&products, None)?;
    site.describe(&products)?;
    write_checksums(&products)?;
    if check {
        lint(&package)?;
        let scratch = directory.join("check");
        empty(&scratch)?;
        let version = format!("{}{NEXT}", version(&package)?);
        // An older one: `~` sorts before everything.
        let older = site.package(&scratch, Some(&version))?;
        install_somewhere(&older, &package)?;
    }
    println!("\nThe release is in {}", products.display());
    Ok(package)
}

/// Where it is built, and as what time.
pub(crate) struct Site {
    /// Where cargo puts everything.
    pub(crate) target: PathBuf,
    sources: PathBuf,
    home: PathBuf,
    time: String,
}

impl Site {
    /// This tree, as the current commit.
    pub(crate) fn usual() -> Result<Self> {
        let target = target_directory()?.join("dist/build");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        Ok(Self { target, sources, home: cargo_home()?, time: commit_time()? })
    }

    /// The agent that was built last.
    pub(crate) fn program(&self) -> PathBuf {
        self.target.join("release").join(PACKAGE)
    }

    fn cargo(&self) -> Command {
        let mut command = cargo();
        command
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUSTFLAGS", rust_flags(&self.sources, &self.home, &self.target))
            .env("CFLAGS", c_flags(&self.sources, &self.home, &self.target))
            .env("SOURCE_DATE_EPOCH", &self.time);
        command
    }

    /// Builds the agent, with further arguments of `cargo build`.
    pub(crate) fn build(&self, arguments: &[&str]) -> Result<()> {
        install_cargo_command("auditable")?;
        let build = ["auditable", "build", "--release", "--locked", "--package", PACKAGE];
        step(self.cargo().args(build).args(["--bin", PACKAGE]).args(arguments))
    }

    fn write_licences(&self) -> Result<()> {
        let path = self.target.join("release/third-party-licences");
        fs::write(&path, licences::of(PACKAGE)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Packages what is built.
    fn package(&self, directory: &Path, version: Option<&str>) -> Result<PathBuf> {
        let before = packages(directory)?;
        let mut command = self.cargo();
        command.args(["deb", "--no-build", "--package", PACKAGE, "--output"]).arg(directory);
        if let Some(version) = version {
            command.args(["--deb-version", version]);
        }
        step(&mut command)?;
        let made = packages(directory)?.into_iter().find(|path| !before.contains(path));
        made.with_context(|| format!("cargo deb has left no package in {}", directory.display()))
    }

    /// The bill of materials, in the format `CycloneDX`.
    fn describe(&self, directory: &Path) -> Result<()> {
        let name = format!("{PACKAGE}.cdx");
        let mut command = self.cargo();
        command
            .args(["cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5"])
            .args(["--no-build-deps", "--override-filename", &name, "--manifest-path"])
            .arg(self.sources.join("agent/Cargo.toml"));
        step(&mut command)?;
        // It writes one beside each manifest of the workspace.
        let name = format!("{name}.json");
        for member in members(&self.sources)? {
            let bill = self.sources.join(&member).join(&name);
            if member == "agent" {
                // Where it was made is nobody's business, and not the same everywhere.
                let text = fs::read_to_string(&bill)?;
                let place = self.sources.display().to_string();
                fs::write(directory.join(&name), text.replace(&place, "/moai-agent"))?;
            }
            if bill.exists() {
                fs::remove_file(bill)?;
            }
        }
        Ok(())
    }
}

/// The directories of the workspace's crates.
fn members(workspace: &Path) -> Result<Vec<String>> {
    let manifest: toml::Table = toml::from_str(&fs::read_to_string(workspace.join("Cargo.toml"))?)?;
    let members = manifest["workspace"]["members"].clone().try_into();
    members.context("the workspace has no list of members")
}

/// Makes a directory, or removes what is in it.
fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot replace {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

fn install_cargo_command(name: &str) -> Result<()> {
    if has_cargo_command(name) {
        return Ok(());
    }
    step(cargo().args(["install", "--locked", &format!("cargo-{name}")]))
}

fn packages(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "deb");
    Ok(entries.iter().map(fs::DirEntry::path).filter(is_package).collect())
}

fn version(package: &Path) -> Result<String> {
    let output = Command::new("dpkg-deb").arg("--field").arg(package).arg("Version").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn write_checksums(directory: &Path) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<_>>()?;
    names.sort();
    let output = Command::new("sha256sum").current_dir(directory).args(names).output()?;
    if !output.status.success() {
        bail!("sha256sum failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(fs::write(directory.join("SHA256SUMS"), output.stdout)?)
}

fn lint(package: &Path) -> Result<()> {
    step(Command::new("lintian").args(["--fail-on", "error,warning"]).arg(package))
}

/// Runs `systemd/debian/check.sh` in a Debian that is made for it and gone afterwards.
fn install_somewhere(older: &Path, newer: &Path) -> Result<()> {
    let release = debian::release().context("this is not Debian")?;
    let sources = debian::sources(|suite| suite.starts_with(&release))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/debian/check.sh");
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let copy = |path: &Path| format!("--customize-hook=copy-in '{}' /tmp", path.display());
    let (older_name, newer_name) = (name(older), name(newer));
    step(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", "--quiet", "--format=null"])
            .args(["--include=systemd-sysv,ca-certificates", "--skip=cleanup/tmp"])
            .args([copy(older), copy(newer), copy(&script)])
            .arg(format!(
                "--customize-hook=chroot \"$1\" sh /tmp/check.sh /tmp/{older_name} /tmp/{newer_name}"
            ))
            .arg(&release)
            .arg("-")
            .args(sources),
    )
}
