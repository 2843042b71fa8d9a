//! The daemon: the order in which everything starts, is watched, and stops.
//!
//! Start: memory protection, control socket, custodian, root secret, vault and spool, identity,
//! links, kept sessions, READY. Stop: no new inputs, sessions suspend, links close, socket goes.
//!
//! Invariants:
//! - the control socket answers before anything else is tried, so that `status` can say why;
//! - nothing connects before the root secret is at hand;
//! - READY is told once: when root secret and both links are there, or a while without the links;
//! - an agent that ends with an error leaves the reason for `status`;
//! - the whole stop takes less than 5 seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use moai_settings::SettingsError;
use moai_transport::link::{Link, LinkEvent};
use moai_transport::topic::Topic;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditEvent};
use crate::cli::{Hooks, exit};
use crate::clock::{BootId, Clock};
use crate::config::{Config, KeyFile};
use crate::control::ControlSocket;
use crate::custody::{self, Custodian, CustodyError};
use crate::desk::{AgentDesk, Running};
use crate::engines::{self, Engines};
use crate::failure::LastFailure;
use crate::hardening;
use crate::health::{self, Health, Vitals};
use crate::identity::{self, attestation};
use crate::journals::{self, Journals};
use crate::links::{OnboardSide, announce, open_uplink, retained, robot_state};
use crate::live::LiveSettings;
use crate::onboard::Onboard;
use crate::reload::{Reloader, Source};
use crate::remote::Remote;
use crate::rotator::Rotator;
use crate::services::Services;
use crate::session::registry::SessionRegistry;
use crate::spool::Spool;
use crate::startup::{self, Opened, Progress, notify};
use crate::status::StatusBoard;
use crate::tasks::Tasks;
use crate::uplink::{Believed, Started, Uplink};
use crate::vault::{Vault, VaultError};
use crate::warm::{WarmParts, WarmPool};
use crate::watchdog::Watchdog;

/// Sessions wait a little less than this for answers when the agent stops.
const TASKS_PATIENCE: Duration = Duration::from_secs(3);
const LINK_CLOSE_PATIENCE: Duration = Duration::from_millis(750);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; once it runs, it heals what it can by itself.
pub async fn run(config: Arc<Config>, source: Source, hooks: &Hooks) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;
    // What comes before the agent can follow is followed then.
    let hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    for gap in hardening::gaps().into_iter().chain(engines::gap()) {
        tracing::warn!("{gap}");
    }
    let control = ControlSocket::listen(&config.control_socket).await?;
    let (progress, awaited) = Progress::new("opening the root secret's custody");
    let desk = Arc::new(AgentDesk::new(Arc::clone(&config), awaited));
    let done = CancellationToken::new();
    let control = tokio::spawn(control.serve(Arc::clone(&desk), done.clone()));
    let result = work(&config, (source, hangups), &progress, &desk, hooks, stop).await;
    if let Err(error) = &result {
        keep_failure(&config, error);
    }
    done.cancel();
    control.await.context("the control socket failed")?;
    result
}

fn keep_failure(config: &Config, error: &anyhow::Error) {
    if let Some(CustodyError::InUse { .. }) = error.downcast_ref() {
        // The directory is another agent's, which may be well.
        return;
    }
    let at = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let exit_code = exit::code(error);
    LastFailure { at, message: exit::message(error), exit_code }.keep(&config.state_directory);
}

async fn work(
    config: &Arc<Config>,
    (source, hangups): (Source, Signal),
    progress: &Progress,
    desk: &Arc<AgentDesk>,
    hooks: &Hooks,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let believed = believed(config)?;
    let Some(opened) = startup::open_custody(config, progress, &stop).await? else { return Ok(()) };

    let links = CancellationToken::new();
    let clock = (hooks.clock)();
    let boot = BootId::current().context("cannot read the boot id")?;
    let Journals { audit, spool, conditions } =
        journals::open(config, &opened, clock.clone(), &boot, &stop)?;
    let Opened { custody, vault, epoch, custodian, .. } = opened;
    let (tpm, tpm_config) = (custody.custodian().tpm(), config.tpm.clone());
    let tpm = move || tpm.map_or_else(|| custody::connect(&tpm_config), Ok);
    let (credentials, renewal, certificate) = identity::open(config, tpm, clock.clone()).await?;
    let attester = attestation::attester(config, credentials.key());
    let mut watchdog = Watchdog::new(sd_notify::watchdog_enabled(), hooks.pulse);
    let uplink_ends = open_uplink(config, credentials.clone(), &links)?;
    let uplink_link = uplink_ends.0.clone();
    let Started { uplink, commands, router } = Uplink::start(
        config.identity.clone(),
        credentials,
        believed,
        clock.clone(),
        audit.clone(),
        uplink_ends,
        watchdog.guard("uplink"),
    );
    guard_spool(&mut watchdog, spool.clone());
    let side = OnboardSide::start(config, &spool, hooks, &links, &stop);
    let OnboardSide { base, link: onboard_link, events: onboard_events, state, api: onboard } =
        side;

    let registry = SessionRegistry::default();
    let engines = (hooks.engines)();
    let sides = (&registry, &uplink);
    let warm = begin_warm(config, &vault, custody.custodian(), &engines, &clock, sides, &stop)?;
    let (live, settings) = watch::channel(LiveSettings::of(config));
    let services = Arc::new(Services {
        clock,
        boot,
        vault: Arc::clone(&vault),
        spool,
        uplink: uplink.clone(),
        onboard: onboard.clone(),
        custodian: Arc::clone(custody.custodian()),
        attester,
        live: settings,
        audit: audit.clone(),
        conditions,
        engines,
        warm,
        registry,
        board: StatusBoard::default(),
        stop: stop.clone(),
    });
    let remote = Remote::new(desk, &services, custody.state());
    let (told_ready, ready) = watch::channel(false);
    let reloads = Reloader::new(source, config, live, &services, ready).start(hangups);
    let mut tasks = Tasks::new(Arc::clone(&services), state);
    tasks.resume().await?;
    tasks.open_declared(base, links.clone());
    let directory = tasks.directory();
    let tasks = tokio::spawn(tasks.run(onboard_events, watchdog.guard("onboard link")));

    let every = config.custody.rotate_every;
    let rotator =
        Rotator { custody, vault, every, audit: audit.clone(), observe: hooks.rotation_step };
    let rotations = rotator.start(epoch, stop.clone());
    let renewal = tokio::spawn(renewal.run(stop.clone()));
    let vitals = Vitals::of(&services, certificate, rotations.state());
    let running = Running {
        services,
        vitals: vitals.clone(),
        custodian,
        rotations,
        tasks: directory,
        reloads,
    };
    desk.open(running);
    tokio::spawn(remote.run(commands, stop.clone()));
    let directory = config.state_directory.clone();
    let (api, watched) = (onboard.clone(), stop.clone());
    let health = health::watch(vitals, api, directory, watchdog, told_ready, watched, notify);
    let health = tokio::spawn(health);
    let presence = tokio::spawn(announce(config.clone(), uplink_link.clone(), uplink.clone()));

    stop.cancelled().await;
    let uplink = uplink_link;
    let parts = Parts {
        tasks,
        health,
        presence,
        renewal,
        router,
        links,
        uplink,
        onboard_link,
        onboard,
        audit,
    };
    parts.stop(config).await
}

fn believed(config: &Config) -> Result<Believed, SettingsError> {
    let operators = config.uplink.operator_key.as_ref().map(KeyFile::read).transpose()?;
    Ok(Believed { servers: config.uplink.server_key.read()?, operators })
}

/// Lets the watchdog ask the spool's thread.
fn guard_spool(watchdog: &mut Watchdog, spool: Spool) {
    let pulse = watchdog.guard("spool");
    tokio::spawn(async move { pulse.relay(|| spool.alive()).await });
}

/// What stops with the agent.
struct Parts {
    tasks: JoinHandle<mpsc::Receiver<LinkEvent>>,
    health: JoinHandle<()>,
    presence: JoinHandle<()>,
    renewal: JoinHandle<()>,
    router: JoinHandle<()>,
    links: CancellationToken,
    uplink: Link,
    onboard_link: Link,
    onboard: Onboard,
    audit: Audit,
}

impl Parts {
    async fn stop(self, config: &Config) -> anyhow::Result<()> {
        tracing::info!("stopping: inputs end, answers under way are awaited");
        notify(&[NotifyState::Stopping]);
        // A link ends when nobody reads its events any more, and it still has last words to say.
        let onboard_events = timeout(TASKS_PATIENCE, self.tasks).await;
        if onboard_events.is_err() {
            tracing::warn!("tasks did not end in time; what is not answered stays in the spool");
        }
        self.presence.abort();
        self.health.await.context("the health watch failed")?;
        self.renewal.await.context("the renewal of the certificate failed")?;
        let last_words = say_goodbye(config, &self.uplink, &self.onboard);
        let _ = timeout(LINK_CLOSE_PATIENCE, last_words).await;
        self.links.cancel();
        drop(onboard_events);
        let closed = async {
            self.uplink.closed().await;
            self.onboard_link.closed().await;
            let _ = self.router.await;
        };
        let stopped = self.audit.record_durably(AuditEvent::AgentStopped);
        let _ = timeout(LINK_CLOSE_PATIENCE, async { tokio::join!(closed, stopped) }).await;
        tracing::info!("stopped");
        Ok(())
    }
}

async fn say_goodbye(config: &Config, uplink: &Link, onboard: &Onboard) {
    let topic = Topic::RobotStatus { identity: config.identity.clone() }.to_string();
    let _ = uplink.publish(retained(topic, robot_state(config, false))).await;
    onboard.health(&Health::down("stopped")).await;
}

/// Starts making keys ahead.
fn begin_warm(
    config: &Config,
    vault: &Arc<Vault>,
    custodian: &Arc<dyn Custodian>,
    engines: &Arc<dyn Engines>,
    clock: &Arc<dyn Clock>,
    (registry, uplink): (&SessionRegistry, &Uplink),
    stop: &CancellationToken,
) -> Result<WarmPool, VaultError> {
    let parts = WarmParts {
        wanted: config.sessions.warm,
        directory: config.state_directory.join("warm"),
        vault: Arc::clone(vault),
        engines: Arc::clone(engines),
        custodian: Arc::clone(custodian),
        clock: Arc::clone(clock),
        registry: registry.clone(),
        catalogue: uplink.catalogue(),
        declared: config.tasks.iter().map(|task| task.model.clone()).collect(),
    };
    WarmPool::start(parts, stop.clone())
}

fn stop_on_signal(stop: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
