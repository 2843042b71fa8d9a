//! `cargo xtask`: the project's commands.
//!
//! Invariants:
//! - every step selects the whole workspace in the dev profile, so that nothing is compiled twice
//!   because two steps disagreed about features;
//! - what a command starts last replaces xtask itself (`exec`): Ctrl-C and exit code are its own;
//! - builds on nothing but Rust: the system packages the other crates want may be missing.

mod cargo;
mod cross;
mod debian;
mod dist;
mod environment;
mod footprint;
mod helm;
mod licences;
mod oelint;
mod reproducible;
mod setup;
mod tally;
mod vm;
mod yocto;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::cargo::{cargo, has_cargo_command, step};
use crate::setup::Purpose;

/// The project's commands. Each installs what it needs first (Debian and Ubuntu; elsewhere it says
/// what is missing).
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole thing on this machine: software TPM, brokers, server and agent, fed with
    /// recorded force and torque readings. Needs no configuration and leaves nothing running.
    #[command(after_help = "`cargo xtask demo -- --help` lists the options of the demo itself.")]
    Demo {
        /// Options of the demo itself, such as --all or --scheme ckks.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check format and lints, then run every test, end-to-end tests with real processes included.
    #[command(
        after_help = "`cargo xtask test --faults -- --list` names the faults, and `-- --only \
                            NAME` selects one."
    )]
    Test {
        /// Run the fault suite instead: the whole system under load, with one fault after the other.
        #[arg(long)]
        faults: bool,
        /// Run only tests whose name contains one of these, and nothing but tests.
        filters: Vec<String>,
    },
    /// Measure, and print a table and JSON.
    #[command(
        after_help = "`cargo xtask bench ckks` measures the CKKS client against TenSEAL in one run, \
                            and `cargo xtask bench -- --help` lists the options of all others."
    )]
    Bench {
        /// Options of the benches themselves.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Everything `test` does, plus documentation and, if cargo-deny is installed, licences and
    /// advisories.
    Ci,
    /// Build the agent for ARM, on Debian 12.
    #[command(
        after_help = "`cargo xtask cross aarch64 -- --no-default-features` gives cargo arguments."
    )]
    Cross {
        /// The machine it is for.
        target: cross::Target,
        /// Also run the test of the main job with it, executed by QEMU.
        #[arg(long)]
        test: bool,
        /// Arguments of `cargo build`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Build the current commit for release twice, in different surroundings, and compare.
    Reproducible {
        /// The package whose programs are compared.
        #[arg(long, default_value = "moai-agent")]
        package: String,
    },
    /// Build the release: the agent's Debian package, with its bill of materials and checksums.
    Dist {
        /// Also look for faults of the package (lintian), and install, upgrade and remove it in a Debian
        /// of its own.
        #[arg(long)]
        check: bool,
    },
    /// Measure the agent as it is released, with both schemes and with CKKS alone: size, memory, start.
    #[command(after_help = "docs/footprint.md has the figures and how to read them.")]
    Footprint {
        /// Fewer repetitions.
        #[arg(long)]
        quick: bool,
    },
    /// Run a whole robot in a virtual machine: Debian with its kernel, a TPM at /dev/tpmrm0, and the
    /// agent's package. Where the processor is emulated that takes 8 to 10 minutes, after 3 for the disk and as
    /// long as a release build takes for the package, so `test` leaves it out.
    Vm {
        /// The package to install instead of the one that `dist` makes.
        #[arg(long, value_name = "FILE")]
        package: Option<PathBuf>,
        /// Options of the scenario itself, such as --accelerator.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Write the agent's man pages and shell completions anew, from its command line.
    Manual,
    /// Bring the Yocto layer's list of crates up to date with Cargo.lock, then check the recipes.
    Yocto,
    /// Install what builds, tests and benches need.
    Setup {
        /// Only say what is missing; fail if anything is.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { arguments } => {
            // What else may stand there is the demo's to judge.
            let is_ckks = arguments.iter().any(|argument| argument.ends_with("ckks"));
            let purpose = if is_ckks { Purpose::CkksDemo } else { Purpose::Demo };
            become_binary(purpose, "moai-demo", &arguments)
        }
        Command::Bench { arguments } => match arguments.split_first() {
            Some((first, rounds)) if first == "ckks" => bench_ckks(rounds),
            _ => become_binary(Purpose::Bench, "moai-bench", &arguments),
        },
        Command::Test { faults: true, filters } => {
            become_binary(Purpose::Test, "moai-faults", &filters)
        }
        Command::Test { filters, .. } if filters.is_empty() => {
            setup::install(Purpose::Test)?;
            lint()?;
            test(&filters)
        }
        Command::Test { filters, .. } => {
            setup::install(Purpose::Test)?;
            test(&filters)
        }
        Command::Ci => {
            setup::install(Purpose::Test)?;
            lint()?;
            document()?;
            deny()?;
            test(&[])
        }
        Command::Cross { target, test: true, arguments } => cross::test(target, &arguments),
        Command::Cross { target, arguments, .. } => cross::build(target, &arguments).map(drop),
        Command::Reproducible { package } => reproducible::check(&package),
        Command::Dist { check } => dist::make(check).map(drop),
        Command::Footprint { quick } => {
            setup::install(Purpose::Bench)?;
            let releases = footprint::build()?;
            let mut arguments = vec!["footprint".to_owned()];
            arguments.extend(quick.then(|| "--quick".to_owned()));
            become_binary_with(
                Purpose::Bench,
                "moai-bench",
                &arguments,
                &[("MOAI_RELEASES", &releases)],
            )
        }
        Command::Vm { package, arguments } => {
            let machine = vm::prepare(package)?;
            become_binary(Purpose::Vm, "moai-vm", &[machine, arguments].concat())
        }
        Command::Manual => become_binary(Purpose::Manual, "moai-manual", &[]),
        Command::Yocto => {
            environment::OELINT.install()?;
            yocto::write_crates()?;
            oelint::check()
        }
        Command::Setup { check: true } => setup::check(),
        Command::Setup { check: false } => {
            setup::install(Purpose::All)?;
            println!("Everything that builds, tests and benches need is installed.");
            Ok(())
        }
    }
}

/// Builds all binaries and turns into one of them.
fn become_binary(purpose: Purpose, name: &str, arguments: &[String]) -> Result<()> {
    become_binary_with(purpose, name, arguments, &[])
}

/// The same with something in its environment.
fn become_binary_with(
    purpose: Purpose,
    name: &str,
    arguments: &[String],
    environment: &[(&str, &PathBuf)],
) -> Result<()> {
    setup::install(purpose)?;
    step(cargo().args(["build", "--workspace", "--bins"]))?;
    // xtask was built into the same directory, wherever CARGO_TARGET_DIR or a config put it.
    let binary = std::env::current_exe().context("cannot tell where xtask lies")?;
    let binary = binary.with_file_name(name);
    let mut command = std::process::Command::new(&binary);
    let error = command.args(arguments).envs(environment.iter().copied()).exec();
    Err(error).with_context(|| format!("cannot start {}", binary.display()))
}

/// The CKKS client against `TenSEAL`; needs nothing of the workspace but that crate.
fn bench_ckks(rounds: &[String]) -> Result<()> {
    environment::TENSEAL.install()?;
    let run = ["run", "--package", "moai-ckks", "--example", "against_tenseal"];
    let mut cargo = cargo();
    cargo.args(run).args(["--features", "interop", "--"]).args(rounds);
    step(cargo.env("TENSEAL_PYTHON", environment::TENSEAL.python()?))
}

fn lint() -> Result<()> {
    step(cargo().args(["fmt", "--all", "--check"]))?;
    step(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // What small robots run has other features, for which tfhe would be built anew elsewhere.
    let small =
        ["clippy", "--package", "moai-agent", "--no-default-features", "--features", "ckks"];
    let target = cargo::target_directory()?.join("ckks");
    step(cargo().env("CARGO_TARGET_DIR", target).args(small).args(["--", "-D", "warnings"]))?;
    oelint::check()
}

fn document() -> Result<()> {
    step(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny() -> Result<()> {
    if has_cargo_command("deny") {
        return step(cargo().args(["deny", "--workspace", "check", "--hide-inclusion-graph"]));
    }
    println!("\nskipped: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
    Ok(())
}

/// Runs the tests, also after a failure, and closes with one line that counts them all.
fn test(filters: &[String]) -> Result<()> {
    // End-to-end tests start binaries of other packages, which a test run alone does not build.
    step(cargo().args(["build", "--workspace", "--all-targets"]))?;
    let mut total = tally::Tally::default();
    if has_cargo_command("nextest") {
        let run = ["nextest", "run", "--workspace", "--no-fail-fast"];
        total += tally::nextest(cargo().args(run).args(filters))?;
    } else {
        let run = ["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--"];
        total += tally::libtest(cargo().args(run).args(filters))?;
    }
    let run = ["test", "--workspace", "--no-fail-fast", "--doc", "--"];
    total += tally::libtest(cargo().args(run).args(filters))?;
    println!("\n{total}");
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    Ok(())
}
