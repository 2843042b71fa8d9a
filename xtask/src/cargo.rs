//! Calls of cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The cargo that runs us, at the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    // What cargo told xtask about itself is not for other packages: build scripts that watch these
    // variables (ring's does) would run again, and everything above them would be compiled again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// The compiler of Debian's package rustc-web.
pub(crate) const RUSTC: &str = "/usr/bin/rustc";

/// Debian's own cargo and compiler instead, without the libraries and flags of the ones that run us.
pub(crate) fn debian_cargo() -> Command {
    let mut command = Command::new("/usr/bin/cargo");
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") || text.starts_with("RUST") {
            command.env_remove(name);
        }
    }
    command.env_remove("LD_LIBRARY_PATH").env("RUSTC", RUSTC);
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        command.env("CARGO_HOME", home);
    }
    command
}

/// Where cargo puts everything. xtask was built there, wherever `CARGO_TARGET_DIR` or a config put
/// it.
///
/// # Errors
/// Nobody can tell where xtask lies.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot tell where xtask lies")?;
    // Tests of xtask lie one directory deeper.
    let mut directories = executable.ancestors().skip(2);
    let target = directories.find(|directory| !directory.ends_with("debug"));
    Ok(target.context("xtask lies in no target directory")?.to_owned())
}

/// Whether `cargo NAME` is installed.
pub(crate) fn has_cargo_command(name: &str) -> bool {
    let mut probe = cargo();
    probe.args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// Says what is run and runs it.
///
/// # Errors
/// It cannot be started, or fails.
pub(crate) fn step(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| format!("cannot start {}", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Prints the command line as a person would type it.
pub(crate) fn announce(command: &Command) {
    println!("\n$ {}", line(command));
}

/// The command line, with a program's name for its path.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    std::iter::once(name).chain(arguments).collect::<Vec<_>>().join(" ")
}
