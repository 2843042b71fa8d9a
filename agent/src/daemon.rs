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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use moai_settings::SettingsError;
use moai_transport::ids::TaskId;
use moai_transport::link::{self, Endpoint, Link, LinkConfig, LinkEvent, Outgoing, Qos};
use moai_transport::message::RobotState;
use moai_transport::topic::{Topic, robot_filters};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditEvent};
use crate::cli::{Hooks, exit};
use crate::clock::{BootId, Clock};
use crate::config::{Config, DeclaredTask, KeyFile, OnboardConfig};
use crate::control::ControlSocket;
use crate::custody::{self, Custodian, CustodyError};
use crate::desk::{AgentDesk, Running};
use crate::echoes::Echoes;
use crate::engines::{self, Engines};
use crate::failure::LastFailure;
use crate::hardening;
use crate::health::{self, Health, Vitals};
use crate::identity::{self, CertificateStore, attestation};
use crate::journals::{self, Journals};
use crate::onboard::{MAX_PAYLOAD_LEN, Onboard, Topics};
use crate::remote::Remote;
use crate::rotator::Rotator;
use crate::services::{Policy, Services};
use crate::session::registry::SessionRegistry;
use crate::spool::Spool;
use crate::startup::{self, Opened, Progress, notify};
use crate::status::StatusBoard;
use crate::tasks::Tasks;
use crate::uplink::{Believed, LinkState, Started, Uplink};
use crate::vault::{Vault, VaultError};
use crate::warm::{WarmParts, WarmPool};
use crate::watchdog::Watchdog;

/// An oversized onboard message is received, so that it can be refused by name; what is larger
/// than this never leaves the broker.
const MAX_ONBOARD_PACKET_LEN: usize = 16 * 1024 * 1024;
const MAX_UPLINK_PACKET_LEN: usize = 1024 * 1024;
/// Sessions wait a little less than this for answers when the agent stops.
const TASKS_PATIENCE: Duration = Duration::from_secs(3);
const LINK_CLOSE_PATIENCE: Duration = Duration::from_millis(750);
const _: () = assert!(MAX_PAYLOAD_LEN < MAX_ONBOARD_PACKET_LEN);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; once it runs, it heals what it can by itself.
pub async fn run(config: Arc<Config>, hooks: &Hooks) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;
    for gap in hardening::gaps().into_iter().chain(engines::gap()) {
        tracing::warn!("{gap}");
    }
    let control = ControlSocket::listen(&config.control_socket).await?;
    let (progress, awaited) = Progress::new("opening the root secret's custody");
    let desk = Arc::new(AgentDesk::new(Arc::clone(&config), awaited));
    let done = CancellationToken::new();
    let control = tokio::spawn(control.serve(Arc::clone(&desk), done.clone()));
    let result = work(&config, &progress, &desk, hooks, stop).await;
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
    let warm = begin_warm(
        config,
        &vault,
        custody.custodian(),
        &engines,
        &clock,
        (&registry, &uplink),
        &stop,
    )?;
    let services = Arc::new(Services {
        clock,
        boot,
        vault: Arc::clone(&vault),
        spool,
        uplink: uplink.clone(),
        onboard: onboard.clone(),
        custodian: Arc::clone(custody.custodian()),
        attester,
        policies: policies(config),
        max_age: config.spool.max_age,
        lifetimes: config.sessions.lifetimes,
        audit: audit.clone(),
        conditions,
        decryption_budget: config.sessions.decryption_budget,
        engines,
        warm,
        registry,
        board: StatusBoard::default(),
        stop: stop.clone(),
    });
    let remote = Remote::new(desk, &services, custody.state());
    let mut tasks = Tasks::new(Arc::clone(&services), &config.tasks, state);
    tasks.resume().await?;
    tasks.open_declared(&base, &links);
    let directory = tasks.directory();
    let tasks = tokio::spawn(tasks.run(onboard_events, watchdog.guard("onboard link")));

    let every = config.custody.rotate_every;
    let rotator =
        Rotator { custody, vault, every, audit: audit.clone(), observe: hooks.rotation_step };
    let rotations = rotator.start(epoch, stop.clone());
    let renewal = tokio::spawn(renewal.run(stop.clone()));
    let vitals = Vitals::of(&services, certificate, rotations.state());
    desk.open(Running { services, vitals: vitals.clone(), custodian, rotations, tasks: directory });
    tokio::spawn(remote.run(commands, stop.clone()));
    let directory = config.state_directory.clone();
    let health = health::watch(vitals, onboard.clone(), directory, watchdog, stop.clone(), notify);
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

/// The robot's side: its broker, and what onboard software is told.
struct OnboardSide {
    base: LinkConfig,
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    state: watch::Sender<LinkState>,
    api: Onboard,
}

impl OnboardSide {
    fn start(
        config: &Config,
        spool: &Spool,
        hooks: &Hooks,
        links: &CancellationToken,
        stop: &CancellationToken,
    ) -> Self {
        let topics = Arc::new(Topics::new(&config.onboard.prefix, &config.tasks));
        let base = onboard_base(config);
        let (link, events) = open_onboard(&base, &topics, links);
        let (state, seen) = watch::channel(LinkState::connecting());
        let (echoes, listener) = Echoes::open(&base, &topics, links);
        let (stop, observe) = (stop.clone(), hooks.release_step);
        let api = Onboard::new(link.clone(), topics, seen, echoes, stop, observe);
        tokio::spawn(listener.run(api.clone(), spool.clone()));
        Self { base, link, events, state, api }
    }
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

fn policies(config: &Config) -> BTreeMap<TaskId, Policy> {
    let policy = |task: &DeclaredTask| Policy { order: task.order, when_full: task.when_full };
    config.tasks.iter().map(|task| (task.id.clone(), policy(task))).collect()
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

fn open_uplink(
    config: &Config,
    credentials: Arc<CertificateStore>,
    links: &CancellationToken,
) -> anyhow::Result<(Link, mpsc::Receiver<LinkEvent>)> {
    let ca = std::fs::read(&config.uplink.ca)
        .with_context(|| format!("cannot read {}", config.uplink.ca.display()))?;
    let tls = moai_transport::tls::client_config_resolving(&ca, credentials)?;
    let status_topic = Topic::RobotStatus { identity: config.identity.clone() }.to_string();
    let mut uplink = LinkConfig::new(
        "uplink",
        Endpoint { host: config.uplink.host.clone(), port: config.uplink.port, tls: Some(tls) },
        config.identity.to_string(),
    );
    uplink.keep_alive = config.uplink.keep_alive;
    uplink.max_packet = MAX_UPLINK_PACKET_LEN;
    uplink.last_will = Some(retained(status_topic, robot_state(config, false)));
    uplink.subscriptions = at_least_once(robot_filters(&config.identity));
    Ok(link::spawn(uplink, links.clone()))
}

/// What all connections to the robot's broker have in common.
fn onboard_base(config: &Config) -> LinkConfig {
    let OnboardConfig { host, port, .. } = &config.onboard;
    let endpoint = Endpoint { host: host.clone(), port: *port, tls: None };
    let client_id = format!("moai-agent-{}", config.identity);
    LinkConfig {
        max_packet: MAX_ONBOARD_PACKET_LEN,
        ..LinkConfig::new("onboard", endpoint, client_id)
    }
}

fn open_onboard(
    base: &LinkConfig,
    topics: &Topics,
    links: &CancellationToken,
) -> (Link, mpsc::Receiver<LinkEvent>) {
    let gone = Health::down("the agent's connection was lost");
    let gone = serde_json::to_vec(&gone).unwrap_or_default();
    let onboard = LinkConfig {
        last_will: Some(retained(topics.health(), gone)),
        subscriptions: at_least_once(topics.filters()),
        ..base.clone()
    };
    link::spawn(onboard, links.clone())
}

fn robot_state(config: &Config, up: bool) -> Vec<u8> {
    // A status is two short fields: it always fits.
    RobotState { identity: config.identity.clone(), up }.encode().unwrap_or_default()
}

fn at_least_once(filters: Vec<String>) -> Vec<(String, Qos)> {
    filters.into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect()
}

fn retained(topic: String, payload: Vec<u8>) -> Outgoing {
    Outgoing { retain: true, ..Outgoing::new(topic, payload, Qos::AtLeastOnce) }
}

/// Tells the server's side on every connection that the robot is there.
async fn announce(config: Arc<Config>, link: Link, uplink: Uplink) {
    let topic = Topic::RobotStatus { identity: config.identity.clone() }.to_string();
    let mut state = uplink.state();
    loop {
        if state.wait_for(|state| *state == LinkState::Up).await.is_err() {
            return;
        }
        let up = robot_state(&config, true);
        if link.publish(retained(topic.clone(), up)).await.is_ok()
            && state.wait_for(|state| *state != LinkState::Up).await.is_err()
        {
            return;
        }
    }
}
