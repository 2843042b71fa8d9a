//! Builds the release twice, as two people would, and compares.
//!
//! The two differ in the directories of sources, of crates and of what is built, in time zone and
//! language, and in how much runs at once. What makes them equal nevertheless are the flags here: see
//! <https://reproducible-builds.org/docs/build-path/> and
//! <https://reproducible-builds.org/specs/source-date-epoch/>.
//!
//! Invariants:
//! - what is built is the commit, not what lies around;
//! - neither build sees anything of the other.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{cargo, step, target_directory};

/// One of the two builds.
struct Site {
    name: &'static str,
    time_zone: &'static str,
    language: &'static str,
    jobs: &'static str,
}

/// Names of different length: paths leave traces in what is aligned, too.
const SITES: [Site; 2] = [
    Site { name: "one", time_zone: "UTC", language: "C", jobs: "2" },
    Site { name: "the-other", time_zone: "Asia/Kathmandu", language: "C.UTF-8", jobs: "3" },
];

/// Builds `package` of the current commit for release twice.
///
/// # Errors
/// A build fails, or a program is not the same in both.
pub(crate) fn check(package: &str) -> Result<()> {
    let root = target_directory()?.join("reproducible");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    let mut programs = Vec::new();
    for site in &SITES {
        programs.push(build(site, &root.join(site.name), package)?);
    }
    let [one, other] = [&programs[0], &programs[1]];
    ensure!(!one.is_empty(), "{package} has no program");
    compare(one, other)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// Returns the programs, sorted by name.
fn build(site: &Site, directory: &Path, package: &str) -> Result<Vec<PathBuf>> {
    let [sources, home, target] = ["sources", "home", "target"].map(|part| directory.join(part));
    fs::create_dir_all(&sources)?;
    fs::create_dir_all(&home)?;
    export(&sources)?;
    // Only the path differs: crates are downloaded once.
    symlink(cargo_home()?.join("registry"), home.join("registry"))?;
    let mut command = cargo();
    command
        .current_dir(&sources)
        .args(["build", "--release", "--locked", "--package", package, "--jobs", site.jobs])
        .env("CARGO_HOME", &home)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", rust_flags(&sources, &home, &target))
        .env("CFLAGS", c_flags(&sources, &home, &target))
        .env("SOURCE_DATE_EPOCH", commit_time()?)
        .env("TZ", site.time_zone)
        .env("LC_ALL", site.language);
    step(&mut command)?;
    let mut programs = Vec::new();
    for entry in fs::read_dir(target.join("release"))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let is_program = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        programs.extend(is_program.then(|| entry.path()));
    }
    programs.sort();
    Ok(programs)
}

/// Where things lie is nobody's business, and differs.
fn prefixes(sources: &Path, home: &Path, target: &Path) -> [String; 3] {
    [(sources, "/moai-agent"), (home, "/cargo"), (target, "/target")]
        .map(|(path, name)| format!("{}={name}", path.display()))
}

pub(crate) fn rust_flags(sources: &Path, home: &Path, target: &Path) -> String {
    prefixes(sources, home, target).map(|it| format!("--remap-path-prefix={it}")).join(" ")
}

pub(crate) fn c_flags(sources: &Path, home: &Path, target: &Path) -> String {
    prefixes(sources, home, target).map(|it| format!("-ffile-prefix-map={it}")).join(" ")
}

/// Says of each program whether it is the same.
fn compare(one: &[PathBuf], other: &[PathBuf]) -> Result<()> {
    let names = |programs: &[PathBuf]| -> Vec<_> {
        programs.iter().map(|path| path.file_name().unwrap_or_default().to_owned()).collect()
    };
    ensure!(names(one) == names(other), "the builds have not left the same programs");
    let mut different = Vec::new();
    println!();
    for (one, other) in one.iter().zip(other) {
        let name = one.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (left, right) = (fs::read(one)?, fs::read(other)?);
        if left == right {
            println!("{name}: the same {} bytes in both builds", left.len());
        } else {
            let at = left.iter().zip(&right).position(|(left, right)| left != right);
            let at = at.unwrap_or(left.len().min(right.len()));
            println!(
                "{name}: {} and {} bytes, different from byte {at} on",
                left.len(),
                right.len()
            );
            println!("  compare {} and {}", one.display(), other.display());
            different.push(name);
        }
    }
    if different.is_empty() {
        return Ok(());
    }
    bail!("not reproducible: {}", different.join(", "))
}

/// Unpacks the current commit.
fn export(directory: &Path) -> Result<()> {
    let mut archive = git();
    let mut archive = archive.args(["archive", "HEAD"]).stdout(Stdio::piped()).spawn()?;
    let pipe = archive.stdout.take().context("git has no output")?;
    step(Command::new("tar").arg("-x").arg("-C").arg(directory).stdin(pipe))?;
    ensure!(archive.wait()?.success(), "`git archive` failed");
    Ok(())
}

/// When the current commit was made, in seconds since 1970.
pub(crate) fn commit_time() -> Result<String> {
    let output = git().args(["log", "-1", "--format=%ct"]).output().context("cannot start git")?;
    ensure!(output.status.success(), "this is no git repository");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("-C").arg("..");
    command
}

pub(crate) fn cargo_home() -> Result<PathBuf> {
    let named = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let usual = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"));
    named.or_else(usual).context("neither CARGO_HOME nor HOME is set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_makes_a_difference() {
        let directory = target_directory().unwrap().join(format!("compare-{}", std::process::id()));
        let [one, other] = ["one", "other"].map(|name| directory.join(name));
        for side in [&one, &other] {
            fs::create_dir_all(side).unwrap();
            fs::write(side.join("program"), [7; 100]).unwrap();
        }
        let program = |side: &Path| vec![side.join("program")];
        compare(&program(&one), &program(&other)).unwrap();
        fs::write(other.join("program"), [[7; 50], [8; 50]].concat()).unwrap();
        let error = compare(&program(&one), &program(&other)).unwrap_err().to_string();
        assert_eq!(error, "not reproducible: program");
        compare(&program(&one), &[]).unwrap_err();
        fs::remove_dir_all(directory).unwrap();
    }
}
