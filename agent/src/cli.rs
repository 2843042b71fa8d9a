//! The command line: what is asked, who answers, and the exit code.
//!
//! Invariants:
//! - memory is protected before any command runs;
//! - standard output carries what was asked for, standard error everything else;
//! - every failure ends in one message that names cause and remedy, and in a documented exit code.

mod arguments;
mod audit;
mod custody;
pub(crate) mod exit;
mod identity;
mod remote;
mod sessions;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{CommandFactory as _, Parser};

use self::arguments::{Audit, Cli, Command, ConfigCommand, Escrow, Policy, Rotate};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, KeyFile};
use crate::control::ControlError;
use crate::custody::{ROOT_FILE, RotationStep};
use crate::engines::{Engines, FheEngines};
use crate::failure::LastFailure;
use crate::identity::IdentityError;
use crate::onboard::ReleaseStep;
use crate::reload::{Reloaded, Source};
use crate::{control, daemon, hardening, log, status_table};

/// What test doubles of the agent change; the agent itself changes nothing.
#[derive(Clone)]
pub struct Hooks {
    /// Whether memory is protected.
    pub protect_memory: bool,
    /// Told of each step of a rotation, when it is durable.
    pub rotation_step: fn(RotationStep),
    /// Told of each step of a job's outcome.
    pub release_step: fn(ReleaseStep),
    /// Told by each part that the watchdog guards, when it is about to answer.
    pub pulse: fn(&'static str),
    /// Where time comes from.
    pub clock: fn() -> Arc<dyn Clock>,
    /// Where sessions get their engine.
    pub engines: fn() -> Arc<dyn Engines>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            protect_memory: true,
            rotation_step: |_| {},
            release_step: |_| {},
            pulse: |_| {},
            clock: || Arc::new(SystemClock),
            engines: || Arc::new(FheEngines),
        }
    }
}

/// The command line, for its manual.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
#[must_use]
pub fn main(hooks: &Hooks) -> ExitCode {
    let cli = Cli::parse();
    if hooks.protect_memory
        && let Err(error) = hardening::apply()
    {
        eprintln!("moai-agent: cannot protect its memory: {error}");
        return ExitCode::FAILURE;
    }
    match execute(&cli, hooks) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moai-agent: {}", exit::message(&error));
            ExitCode::from(exit::code(&error))
        }
    }
}

fn execute(cli: &Cli, hooks: &Hooks) -> anyhow::Result<()> {
    // What people do away from any robot needs no configuration.
    let config = || Config::load(&cli.config).map(Arc::new);
    match &cli.command {
        Command::Provision(arguments) => custody::provision(&*config()?, arguments),
        Command::Run => run(&cli.config, config()?, hooks),
        Command::Reload => reload(&*config()?),
        Command::Status { json } => status(&*config()?, *json),
        Command::Reseal { new_recovery_code } => custody::reseal(&config()?, *new_recovery_code),
        Command::Recover(arguments) => custody::recover(&config()?, arguments),
        Command::Rotate(Rotate::Root) => rotate_root(&config()?, hooks),
        Command::Task(command) => sessions::task(&*config()?, command),
        Command::Session(command) => sessions::session(&*config()?, command),
        Command::Emergency { yes, stay_closed } => {
            sessions::emergency(&*config()?, *yes, *stay_closed)
        }
        Command::Remote(arguments) => runtime()?.block_on(remote::run(arguments)),
        Command::Policy(Policy::Show) => custody::show_policy(&*config()?),
        Command::Policy(Policy::Sign { key, measurements, out }) => {
            custody::sign_policy(key, measurements, out.as_deref())
        }
        Command::Identity(command) => identity::run(&*config()?, command),
        Command::Escrow(Escrow::Keygen { out }) => custody::make_escrow_keys(out),
        Command::Audit(Audit::Verify) => audit::verify(&config()?),
        Command::Audit(Audit::Show { json }) => audit::show(&*config()?, *json),
        Command::Config(ConfigCommand::Check) => check(&cli.config, &*config()?),
    }
}

fn run(path: &Path, config: Arc<Config>, hooks: &Hooks) -> anyhow::Result<()> {
    let source = Source { path: path.to_owned(), log: log::start(&config.log)? };
    let runtime = runtime()?;
    let result = runtime.block_on(daemon::run(config, source, hooks));
    // A TPM call that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

fn reload(config: &Config) -> anyhow::Result<()> {
    // A file with problems does not get as far as the agent.
    check_files(config)?;
    let Reloaded { changed, restart } =
        runtime()?.block_on(control::reload(&config.control_socket))?;
    let keys = if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") };
    print(&format!("Changed: {keys}."))?;
    if !restart.is_empty() {
        print(&format!("Needs a restart: {}.", restart.join(", ")))?;
    }
    Ok(())
}

fn status(config: &Config, json: bool) -> anyhow::Result<()> {
    let asked = runtime()?.block_on(control::status(&config.control_socket));
    let status = match (asked, LastFailure::load(&config.state_directory)) {
        (Ok(status), _) => status,
        (Err(error), Some(failure)) => {
            return Err(anyhow::Error::new(error)
                .context(format!("the agent ended with an error: {}", failure.message)));
        }
        (Err(error), None) => return Err(error.into()),
    };
    if json {
        let mut text = serde_json::to_string_pretty(&status)?;
        text.push('\n');
        print(&text)
    } else {
        print(&status_table::render(&status))
    }
}

/// By the agent if one runs, else here.
fn rotate_root(config: &Arc<Config>, hooks: &Hooks) -> anyhow::Result<()> {
    let asked = runtime()?.block_on(control::rotate_root(&config.control_socket));
    let rotated = match asked {
        Err(ControlError::NotRunning { .. }) => {
            let mut observe = hooks.rotation_step;
            crate::custody::rotate_root(config, &mut observe)?
        }
        asked => asked?,
    };
    let shredded = if rotated.shredded {
        "everything sealed before is undecryptable, whoever has a copy of it"
    } else {
        "this custodian keeps its key: copies of earlier epochs can still be opened with it"
    };
    println!(
        "Epoch {} is in force, {} live sessions were re-wrapped; {shredded}.",
        rotated.epoch, rotated.sessions
    );
    Ok(())
}

/// Checks the files that the configuration names; returns what is still to come.
///
/// # Errors
/// One is missing, or not what it should be.
pub(crate) fn check_files(config: &Config) -> anyhow::Result<Option<IdentityError>> {
    config.uplink.server_key.read()?;
    config.uplink.operator_key.as_ref().map(KeyFile::read).transpose()?;
    match crate::identity::certificate::check(config) {
        Ok(_) | Err(IdentityError::NoKey { .. }) => Ok(None),
        Err(error @ IdentityError::NoCertificate { .. }) => Ok(Some(error)),
        Err(error) => Err(error.into()),
    }
}

fn check(path: &Path, config: &Config) -> anyhow::Result<()> {
    if let Some(error) = check_files(config)? {
        println!("{error}");
    }
    println!("{}: no problem found for {}", path.display(), config.identity);
    if !config.state_directory.join(ROOT_FILE).exists() {
        println!("This robot is not provisioned yet: run moai-agent provision.");
    }
    Ok(())
}

/// Writes to standard output; a reader that has gone is no reason to panic.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}
