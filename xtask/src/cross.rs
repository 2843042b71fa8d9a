//! Builds the agent for ARM on a Debian 12 machine, with Debian's cross compilers.
//!
//! Debian's own Rust compiler is used, since its standard library for arm64 comes as a package; the
//! one of rustup cannot use that. Libraries lie in a tree of their own, so nothing but compilers is
//! installed on the machine. Elsewhere `cross` and the project's cross.toml do the same with Docker.
//!
//! Invariants:
//! - everything but packages lies in `cross` in the target directory;
//! - builds have a target directory of their own there: another compiler would throw away what the
//!   usual one has compiled.

mod sysroot;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cargo::{debian_cargo, has_cargo_command, step, target_directory};
use crate::setup::{self, Purpose};
use sysroot::Sysroot;

/// What the agent is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// 64 bit ARM with glibc: Raspberry Pi 3 and later, Jetson, i.MX 8.
    Aarch64,
    /// 32 bit ARM with hardware floating point and glibc: i.MX 6, STM32MP1, Zynq 7000.
    Armv7,
}

impl Target {
    /// The name of Rust's target.
    fn triple(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
            Self::Armv7 => "armv7-unknown-linux-gnueabihf",
        }
    }

    /// The name of Debian's architecture.
    fn debian(self) -> &'static str {
        match self {
            Self::Aarch64 => "arm64",
            Self::Armv7 => "armhf",
        }
    }

    /// The prefix of the GNU compilers.
    fn gnu(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64-linux-gnu",
            Self::Armv7 => "arm-linux-gnueabihf",
        }
    }

    /// The features of the agent, if nothing is said: TFHE is not made for 32 bits.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Aarch64 => &[],
            Self::Armv7 => &["--no-default-features", "--features", "ckks,pkcs11"],
        }
    }

    /// The program that executes programs of this machine.
    fn emulator(self) -> &'static str {
        match self {
            Self::Aarch64 => "qemu-aarch64-static",
            Self::Armv7 => "qemu-arm-static",
        }
    }
}

/// Builds the agent, which is also its command line, with further arguments of `cargo build` or, if there
/// are none, with the features that suit the target.
///
/// # Errors
/// This is not Debian 12, something cannot be installed, or the build fails.
pub(crate) fn build(target: Target, arguments: &[String]) -> Result<PathBuf> {
    let tools = Tools::install(target)?;
    let build =
        ["build", "--release", "--locked", "--package", "moai-agent", "--bin", "moai-agent"];
    let mut cargo = tools.cargo();
    cargo.args(build);
    if arguments.is_empty() {
        cargo.args(target.features());
    }
    step(cargo.args(arguments))?;
    let binary = tools.output().join("moai-agent");
    let bytes = fs::metadata(&binary).context("the build left no moai-agent")?.len();
    println!("\n{} ({} KiB)", binary.display(), bytes / 1024);
    Ok(binary)
}

/// Runs the test of the main job with an agent that was built for `target` and is executed by QEMU,
/// against a TPM, brokers and a server of this machine.
///
/// # Errors
/// The build or the test fails.
pub(crate) fn test(target: Target, arguments: &[String]) -> Result<()> {
    let agent = build(target, arguments)?;
    setup::install(Purpose::Test)?;
    if !has_cargo_command("nextest") {
        bail!("the test needs cargo-nextest (`cargo install --locked cargo-nextest`)");
    }
    let tools = Tools::install(target)?;
    let binaries = tools.directory.join("test");
    fs::create_dir_all(&binaries)?;
    executable(&binaries.join("moai-agent"), &emulated(target, &tools.sysroot.path, &agent))?;
    step(crate::cargo::cargo().args(["build", "--workspace", "--bins"]))?;
    let server = target_directory()?.join("debug/moai-server");
    fs::copy(&server, binaries.join("moai-server"))
        .with_context(|| format!("cannot copy {}", server.display()))?;
    let job = match target {
        Target::Aarch64 => "test(main_job::) | test(ckks::)",
        Target::Armv7 => "test(ckks::)",
    };
    step(
        crate::cargo::cargo()
            .args(["nextest", "run", "--workspace", "--test", "e2e", "--no-fail-fast", "-E", job])
            .env("MOAI_BIN_DIR", &binaries),
    )
}

/// A script that executes an agent. The agent starts itself anew to change its environment, which
/// QEMU's user mode cannot follow, so the script gives it the environment that it wants.
fn emulated(target: Target, sysroot: &Path, agent: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         export MOAI_AGENT_STARTED_ANEW=1\n\
         exec {} -L '{}' '{}' \"$@\"\n",
        target.emulator(),
        sysroot.display(),
        agent.display()
    )
}

/// Compilers and libraries, ready for use.
struct Tools {
    target: Target,
    directory: PathBuf,
    sysroot: Sysroot,
}

impl Tools {
    fn install(target: Target) -> Result<Self> {
        sysroot::check_distribution()?;
        setup::install(Purpose::Cross)?;
        let directory = target_directory()?.join("cross");
        fs::create_dir_all(&directory)?;
        let sysroot = Sysroot::install(target, &directory)?;
        let tools = Self { target, directory, sysroot };
        for compiler in ["gcc", "g++"] {
            let name = format!("{}-{compiler}", target.gnu());
            let root = tools.sysroot.path.display();
            let script = format!("#!/bin/sh\nexec {name} --sysroot='{root}' \"$@\"\n");
            executable(&tools.compiler(compiler), &script)?;
        }
        Ok(tools)
    }

    /// The wrapper of a compiler that makes it use our libraries.
    fn compiler(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}-{name}", self.target.gnu()))
    }

    /// Where cargo puts what is built for release.
    fn output(&self) -> PathBuf {
        build_directory(&self.directory).join(self.target.triple()).join("release")
    }

    /// Debian's cargo, set up for the target.
    fn cargo(&self) -> Command {
        let triple = self.target.triple();
        let (lower, upper) = (triple.replace('-', "_"), triple.replace('-', "_").to_uppercase());
        let library = self.sysroot.path.join("usr/lib").join(self.target.gnu()).join("pkgconfig");
        let share = self.sysroot.path.join("usr/share/pkgconfig");
        let mut packages = OsString::from(library);
        packages.push(":");
        packages.push(share);
        let mut command = debian_cargo();
        command
            .env("CARGO_BUILD_TARGET", triple)
            .env("CARGO_TARGET_DIR", build_directory(&self.directory))
            .env(format!("CARGO_TARGET_{upper}_LINKER"), self.compiler("gcc"))
            .env(format!("CARGO_TARGET_{upper}_RUSTFLAGS"), self.sysroot.rust_flags())
            .env(format!("CC_{lower}"), self.compiler("gcc"))
            .env(format!("CXX_{lower}"), self.compiler("g++"))
            .env(format!("AR_{lower}"), format!("{}-ar", self.target.gnu()))
            .env("PKG_CONFIG_ALLOW_CROSS", "1")
            .env(format!("PKG_CONFIG_SYSROOT_DIR_{lower}"), &self.sysroot.path)
            .env(format!("PKG_CONFIG_LIBDIR_{lower}"), packages);
        command
    }
}

/// Cargo's target directory for all targets.
fn build_directory(directory: &Path) -> PathBuf {
    directory.join("build")
}

/// Writes an executable script, unless it is there: a newer one would look like a new compiler.
fn executable(path: &Path, script: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == script) {
        return Ok(());
    }
    fs::write(path, script).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulated_agent_finds_its_libraries_and_does_not_start_itself_anew() {
        let script = emulated(Target::Aarch64, Path::new("/sysroot"), Path::new("/moai-agent"));
        assert!(script.ends_with("exec qemu-aarch64-static -L '/sysroot' '/moai-agent' \"$@\"\n"));
        assert!(script.contains("MOAI_AGENT_STARTED_ANEW=1"));
    }

    #[test]
    fn cargo_gets_compiler_libraries_and_output_of_the_target() {
        let sysroot = Sysroot { path: "/x/armhf".into(), rust: "/x/rust".into() };
        let tools = Tools { target: Target::Armv7, directory: "/x".into(), sysroot };
        let command = tools.cargo();
        let value = |name: &str| {
            let mut all = command.get_envs();
            all.find(|(key, _)| *key == name).and_then(|(_, value)| value?.to_str()).unwrap()
        };
        let linker = value("CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER");
        assert_eq!(linker, "/x/arm-linux-gnueabihf-gcc");
        assert_eq!(
            value("PKG_CONFIG_LIBDIR_armv7_unknown_linux_gnueabihf"),
            "/x/armhf/usr/lib/arm-linux-gnueabihf/pkgconfig:/x/armhf/usr/share/pkgconfig"
        );
        assert_eq!(
            value("CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_RUSTFLAGS"),
            "--sysroot=/x/rust"
        );
        assert!(tools.output().ends_with("build/armv7-unknown-linux-gnueabihf/release"));
    }
}
