//! A target's C libraries and Rust's standard library, as trees in the target directory.
//!
//! Invariants:
//! - a tree that does not fit the compiler of the machine or the list below is replaced;
//! - the file that says so is written last, so a tree that has it is complete.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Target;
use crate::cargo::{RUSTC, debian_cargo, step};
use crate::debian;

/// The only release whose packages are known to fit.
const RELEASE: &str = "bookworm";
/// What the agent links: glibc, libtss2 and what compilers add.
const PACKAGES: &str = "libc6-dev,libgcc-12-dev,libstdc++-12-dev,libtss2-dev";
/// Rust's standard library where Debian has it ready.
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";

/// What is compiled where it is not: link-time optimisation takes it in as bitcode.
const STANDARD_LIBRARY_FLAGS: &str = "-Cembed-bitcode=yes";

/// The trees of one target.
pub(super) struct Sysroot {
    /// The root of C headers and libraries.
    pub(super) path: PathBuf,
    /// The root of Rust's libraries.
    pub(super) rust: PathBuf,
}

impl Sysroot {
    /// Makes the trees in `directory` unless they are there.
    pub(super) fn install(target: Target, directory: &Path) -> Result<Self> {
        let path = directory.join(target.debian());
        let rust = directory.join("rust");
        let complete = directory.join(format!("{}.complete", target.debian()));
        let sysroot = Self { path, rust };
        let flags = match target {
            Target::Aarch64 => "",
            Target::Armv7 => STANDARD_LIBRARY_FLAGS,
        };
        let packages = packages(target);
        let wanted = format!("{}{packages}{flags} {}\n", compiler()?, sysroot.path.display());
        if fs::read_to_string(&complete).is_ok_and(|there| there == wanted) {
            return Ok(sysroot);
        }
        println!("Fetching the libraries of {} (once, up to 600 MB):", target.debian());
        remove(&sysroot.path)?;
        // Cargo does not see that what it compiled against another standard library is of no use.
        remove(&super::build_directory(directory).join(target.triple()))?;
        step(
            Command::new("mmdebstrap")
                .args(["--variant=extract", "--quiet"])
                .arg(format!("--architectures={}", target.debian()))
                .arg(format!("--include={packages}"))
                .arg(RELEASE)
                .arg(&sysroot.path)
                .args(debian::sources(|suite| takes(target, suite))?),
        )?;
        match target {
            Target::Aarch64 => sysroot.link_standard_library(target)?,
            Target::Armv7 => sysroot.build_standard_library(target, &directory.join("std"))?,
        }
        fs::write(complete, wanted)?;
        Ok(sysroot)
    }

    /// What makes the compiler use these libraries of Rust.
    pub(super) fn rust_flags(&self) -> String {
        format!("--sysroot={}", self.rust.display())
    }

    fn library(&self, target: Target) -> PathBuf {
        self.rust.join("lib/rustlib").join(target.triple())
    }

    fn link_standard_library(&self, target: Target) -> Result<()> {
        let link = self.library(target);
        remove(&link)?;
        let there = self.path.join("usr/lib/rustlib").join(target.triple());
        if !there.is_dir() {
            bail!("Debian's {STANDARD_LIBRARY} has no {}", there.display());
        }
        fs::create_dir_all(self.rust.join("lib/rustlib"))?;
        symlink(&there, &link).with_context(|| format!("cannot link {}", link.display()))
    }

    /// Debian has none for this target, so it is compiled from Debian's sources: a minute.
    fn build_standard_library(&self, target: Target, scratch: &Path) -> Result<()> {
        remove(scratch)?;
        fs::create_dir_all(scratch.join("src"))?;
        fs::write(scratch.join("Cargo.toml"), MANIFEST)?;
        fs::write(scratch.join("src/lib.rs"), "")?;
        step(
            debian_cargo()
                .current_dir(scratch)
                .args(["build", "--release", "-Z", "build-std=std,panic_abort"])
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTFLAGS", STANDARD_LIBRARY_FLAGS)
                .env("CARGO_BUILD_TARGET", target.triple())
                .env("CARGO_TARGET_DIR", scratch.join("target")),
        )?;
        let library = self.library(target).join("lib");
        remove(&library)?;
        fs::create_dir_all(&library)?;
        let built = scratch.join("target").join(target.triple()).join("release/deps");
        for entry in fs::read_dir(built)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            let wanted = path.extension().is_some_and(|kind| kind == "rlib" || kind == "rmeta");
            if wanted && !name.to_string_lossy().starts_with("libmoai_std") {
                fs::copy(&path, library.join(name))?;
            }
        }
        remove(scratch)
    }
}

const MANIFEST: &str = "[package]\nname = \"moai-std\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                        [workspace]\n";

fn packages(target: Target) -> String {
    match target {
        Target::Aarch64 => format!("{PACKAGES},{STANDARD_LIBRARY}"),
        Target::Armv7 => PACKAGES.to_owned(),
    }
}

/// Whether a target takes packages of a suite. The compiler's package comes with security updates, so
/// its standard library must, too; those are not made for armhf any more.
fn takes(target: Target, suite: &str) -> bool {
    suite == RELEASE
        || (target == Target::Aarch64 && suite.strip_suffix("-security") == Some(RELEASE))
}

/// The compiler's version, commit included.
fn compiler() -> Result<String> {
    let output = Command::new(RUSTC).arg("-vV").output().context("cannot start Debian's rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes a directory or link, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot replace {}", path.display()))
}

/// # Errors
/// Not Debian 12: then compilers and libraries do not fit one another.
pub(super) fn check_distribution() -> Result<()> {
    if debian::release().as_deref() == Some(RELEASE) {
        return Ok(());
    }
    bail!(
        "this builds on Debian 12 ({RELEASE}) alone; elsewhere use cross, which needs Docker:\n  \
         CROSS_CONFIG=cross.toml cross build --release --package moai-agent --target TRIPLE"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armhf_takes_the_main_suite_and_arm64_security_updates_too() {
        let suites = ["bookworm", "bookworm-updates", "bookworm-security", "trixie"];
        let taken = |target| suites.into_iter().filter(move |suite| takes(target, suite));
        assert!(taken(Target::Armv7).eq(["bookworm"]));
        assert!(taken(Target::Aarch64).eq(["bookworm", "bookworm-security"]));
    }
}
