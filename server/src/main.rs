//! moai-server: evaluates models on ciphertext it cannot decrypt.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Parser, Subcommand};
use moai_server::attestation::{Attestation, Enrolments};
use moai_server::audit::Audit;
use moai_server::config::{self, Config, LogConfig, StoreConfig};
use moai_server::engine::{Engine, TfheEngine};
use moai_server::health::{self, Beacon};
use moai_server::models::Models;
use moai_server::service::{Parts, Service, Trust};
use moai_server::signing_key;
use moai_server::store::{DirectoryStore, RedisStore, Store, UnixMillis};
use moai_settings::SettingsError;
use moai_transport::ids::WorkerId;
use moai_transport::link::{self, Endpoint, LinkConfig, Outgoing, Qos};
use moai_transport::message::WorkerState;
use moai_transport::topic::{Topic, worker_filters};
use moai_transport::trust::TrustedRobots;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

const MAX_PACKET_LEN: usize = 1024 * 1024;

/// Evaluates models on encrypted sensor readings. It holds evaluation keys for a limited time
/// and can decrypt nothing.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong command line, 78 wrong configuration"
)]
struct Cli {
    /// Configuration file.
    #[arg(long, short, default_value = config::DEFAULT_PATH, global = true, env = "MOAI_SERVER_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve in the foreground.
    Run {
        /// Serve only robots whose TPM proves that they are enrolled and have booted what is
        /// enrolled. The enrolments lie in the directory `enrolments` of `[attestation]`.
        #[arg(long)]
        require_attestation: bool,
    },
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Tell by the exit status whether the worker of this configuration runs and its broker has it.
    Health {
        /// Only whether it runs: a broker that is away is no reason to start it anew.
        #[arg(long)]
        alive: bool,
    },
    /// Make the key that signs what servers say to robots, or show its public half.
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key: the private half goes into a new file of mode 0600, the public half (PEM), for
    /// the configuration of robots, to standard output.
    Generate {
        /// The new file.
        #[arg(long, default_value = "server.key")]
        out: PathBuf,
    },
    /// Print the public half (PEM) of a key.
    Public {
        /// The file with the private half.
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check the configuration, the models and the files it names; change nothing.
    Check,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match execute(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("moai-server: {error:#}");
            let wrong_settings =
                error.chain().any(<dyn std::error::Error + 'static>::is::<SettingsError>);
            ExitCode::from(if wrong_settings { 78 } else { 1 })
        }
    }
}

fn execute(cli: &Cli) -> anyhow::Result<()> {
    if let Command::Key(command) = &cli.command {
        return key(command);
    }
    let config = Config::load(&cli.config)?;
    if let Command::Health { alive } = cli.command {
        let path = config.health.context("the configuration names no `path` in [health]")?;
        return Ok(health::check(&path, SystemTime::now(), !alive)?);
    }
    let signing_key = signing_key::read(&config.signing_key)?;
    let models = Models::load(&config.models_directory)?;
    check_visible(&config, &models)?;
    let (tls, robots) = credentials(&config)?;
    if let Command::Config(ConfigCommand::Check) = cli.command {
        let names: Vec<String> = models.ids().map(ToString::to_string).collect();
        println!("{}: no problem found; models: {}", cli.config.display(), names.join(", "));
        return Ok(());
    }
    start_log(&config.log)?;
    let trust = Trust { signing_key, robots, attestation: attestation(&config, &cli.command)? };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(run(config, models, tls, trust));
    // An evaluation under way is not waited for: the robot sends the job again.
    runtime.shutdown_background();
    result
}

async fn run(
    config: Config,
    models: Models,
    tls: Arc<rustls::ClientConfig>,
    trust: Trust,
) -> anyhow::Result<()> {
    let worker = new_worker_id()?;
    let stop = CancellationToken::new();
    let links = CancellationToken::new();
    let broker = &config.broker;
    let endpoint = Endpoint { host: broker.host.clone(), port: broker.port, tls: Some(tls) };
    let mut link_config = LinkConfig::new("broker", endpoint, worker.to_string());
    link_config.keep_alive = broker.keep_alive;
    link_config.max_packet = MAX_PACKET_LEN;
    let topic = Topic::WorkerStatus { worker: worker.clone() }.to_string();
    let gone = WorkerState { worker: worker.clone(), up: false }.encode()?;
    let will = Outgoing { retain: true, ..Outgoing::new(topic, gone, Qos::AtLeastOnce) };
    link_config.last_will = Some(will.clone());
    link_config.subscriptions = worker_filters(&config.worker_group, &worker)
        .into_iter()
        .map(|filter| (filter, Qos::AtLeastOnce))
        .collect();
    let (link, events) = link::spawn(link_config, links.clone());

    let names: Vec<String> = models.ids().map(ToString::to_string).collect();
    let threads = config.service.threads;
    tracing::info!(%worker, models = ?names, threads, "serving");
    let engine = Arc::new(TfheEngine::new(models));
    let audit = Audit::open(config.audit.clone(), worker.clone(), engine.context())
        .context("cannot open the audit log")?;
    let store = open_store(&config)?;
    let service = Service::new(Parts {
        worker,
        settings: config.service,
        engine,
        store,
        trust,
        audit,
        health: config.health.map(Beacon::new),
        clock: UnixMillis::now,
        link: link.clone(),
    })?;
    let (reopen, reopen_log) = mpsc::channel(1);
    let service = tokio::spawn(service.run(events, reopen_log, stop.clone()));

    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // One that waits already serves for this one, too.
            _ = hangup.recv() => drop(reopen.try_send(())),
        }
    }
    tracing::info!("stopping");
    stop.cancel();
    service.await.context("the service failed")?;
    let goodbye = async {
        // If it does not get out, the last will says the same a little later.
        let _ = link.publish(will).await;
        links.cancel();
        link.closed().await;
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), goodbye).await;
    Ok(())
}

fn key(command: &KeyCommand) -> anyhow::Result<()> {
    let key = match command {
        KeyCommand::Generate { out } => signing_key::generate(out)?,
        KeyCommand::Public { file } => signing_key::read(file)?,
    };
    print!("{}", key.public().to_pem());
    Ok(())
}

/// Every model that a tenant is to see has to be there.
fn check_visible(config: &Config, models: &Models) -> anyhow::Result<()> {
    for (tenant, rules) in &config.service.tenants {
        for model in rules.models.iter().flatten() {
            anyhow::ensure!(
                models.get(model).is_some(),
                "the tenant {tenant} is to see the model {model}, which is not in {}",
                config.models_directory.display()
            );
        }
    }
    Ok(())
}

fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match &config.store {
        StoreConfig::Directory { path } => Arc::new(DirectoryStore::open(path)?),
        StoreConfig::Redis { url, ca } => {
            let read = |path: &PathBuf| {
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let ca = ca.as_ref().map(read).transpose()?;
            Arc::new(RedisStore::new(url, ca, config.service.tenants.keys().cloned())?)
        }
    })
}

/// Who has to attest: everybody or nobody.
fn attestation(config: &Config, command: &Command) -> anyhow::Result<Option<Attestation>> {
    let Command::Run { require_attestation: true } = command else { return Ok(None) };
    let enrolments = Enrolments::new(config.enrolments.clone());
    let robots = enrolments.check().context("attestation is required")?;
    tracing::info!(robots, directory = %config.enrolments.display(), "attestation is required");
    Ok(Some(Attestation::new(enrolments)))
}

/// A new name for every start: whoever talks to an earlier run must notice.
fn new_worker_id() -> anyhow::Result<WorkerId> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random)?;
    Ok(format!("w-{}", hex::encode(random)).parse()?)
}

/// What the server shows the broker, and whom it takes for a robot.
fn credentials(config: &Config) -> anyhow::Result<(Arc<rustls::ClientConfig>, TrustedRobots)> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let broker = &config.broker;
    let (ca, certificate, key) =
        (read(&broker.ca)?, read(&broker.certificate)?, read(&broker.key)?);
    let robots = TrustedRobots::from_pem(&read(&broker.robots_ca)?)
        .with_context(|| format!("cannot use {}", broker.robots_ca.display()))?;
    Ok((moai_transport::tls::client_config(&ca, &certificate, &key)?, robots))
}

fn start_log(log: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.level)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if log.json {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(false).init();
    }
    Ok(())
}
