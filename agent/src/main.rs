//! moai-agent: lets a robot use a cloud model without ever showing it a sensor reading.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use moai_agent::config::{self, Config, LogConfig, LogFormat};
use moai_agent::{control, custody, daemon, hardening, status_table};
use moai_settings::SettingsError;
use tracing_subscriber::EnvFilter;

/// Wipes every allocation when it is freed; the FHE library wipes nothing itself.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

const EXIT_HELP: &str = "\
Exit status:
  0   done
  1   something failed; the message says what
  2   the command line is wrong
  69  no agent answers on the control socket (status)
  75  the TPM is not reachable or busy just now; trying again can help
  77  the root secret stays sealed: changed boot measurements, another TPM, or never provisioned
  78  the configuration is wrong; every problem is listed with its line";

/// Encrypts sensor samples for a cloud model and decrypts its answers; the model's server never
/// sees a reading, and the secret key never leaves the robot.
#[derive(Parser)]
#[command(version, after_help = EXIT_HELP)]
struct Cli {
    /// Configuration file.
    #[arg(long, short, default_value = config::DEFAULT_PATH, global = true, env = "MOAI_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the root secret and seal it in the TPM; once for each robot.
    Provision,
    /// Run the agent in the foreground, as systemd does.
    Run,
    /// Show what the running agent is doing.
    Status {
        /// For programs: the status as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check the configuration and the files it names; change nothing.
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = hardening::apply() {
        eprintln!("moai-agent: cannot protect its memory: {error}");
        return ExitCode::FAILURE;
    }
    match execute(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moai-agent: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn execute(cli: &Cli) -> anyhow::Result<()> {
    let config = Config::load(&cli.config)?;
    match &cli.command {
        Command::Provision => provision(&config),
        Command::Run => {
            start_log(&config.log)?;
            let runtime = runtime()?;
            let result = runtime.block_on(daemon::run(config));
            // A TPM call that hangs must not keep the process.
            runtime.shutdown_background();
            result
        }
        Command::Status { json } => {
            let status = runtime()?.block_on(control::ask(&config.control_socket))?;
            let mut out = std::io::stdout().lock();
            if *json {
                serde_json::to_writer_pretty(&mut out, &status)?;
                writeln!(out)?;
            } else {
                write!(out, "{}", status_table::render(&status))?;
            }
            Ok(())
        }
        Command::Config(ConfigCommand::Check) => check(cli, &config),
    }
}

fn provision(config: &Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.state_directory)
        .with_context(|| format!("cannot make {}", config.state_directory.display()))?;
    let tpm = custody::connect(&config.tpm)?;
    let path = custody::provision(&tpm, &config.tpm, &config.state_directory)?;
    // Proves, while a person watches, that the next start can unseal.
    custody::unseal(&tpm, &config.state_directory)?;
    println!(
        "The root secret of {} is sealed in {} (bound to {}), and it unseals.\n\
         Next: systemctl start moai-agent, or moai-agent run.",
        config.identity,
        path.display(),
        config.tpm.pcrs,
    );
    Ok(())
}

fn check(cli: &Cli, config: &Config) -> anyhow::Result<()> {
    daemon::uplink_tls(config)?;
    println!("{}: no problem found for {}", cli.config.display(), config.identity);
    if !config.state_directory.join(custody::ROOT_FILE).exists() {
        println!("This robot is not provisioned yet: run moai-agent provision.");
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

fn start_log(log: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.level)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<SettingsError>() {
            return 78;
        }
        if let Some(error) = cause.downcast_ref::<control::ControlError>() {
            return if matches!(error, control::ControlError::NotRunning { .. }) { 69 } else { 1 };
        }
        if let Some(error) = cause.downcast_ref::<custody::CustodyError>() {
            return if error.is_transient() { 75 } else { 77 };
        }
        if let Some(error) = cause.downcast_ref::<moai_tpm::TpmError>() {
            return if error.advice() == moai_tpm::Advice::Retry { 75 } else { 77 };
        }
    }
    1
}
