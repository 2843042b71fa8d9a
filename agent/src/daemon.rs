//! The daemon: the order in which everything starts, is watched, and stops.
//!
//! Start: memory protection, TPM, root secret, vault and spool, links, kept sessions, control
//! socket, READY. Stop: no new inputs, sessions suspend, links close, socket goes.
//!
//! Invariants:
//! - nothing connects before the root secret is at hand;
//! - READY is told once TPM and both links were up at the same time;
//! - the whole stop takes less than 5 seconds.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use moai_transport::link::{self, Endpoint, Link, LinkConfig, LinkEvent, Outgoing, Qos};
use moai_transport::message::RobotState;
use moai_transport::tls::CertificateFacts;
use moai_transport::topic::{Topic, robot_filters};
use sd_notify::NotifyState;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::{BootId, SystemClock};
use crate::config::{Config, OnboardConfig};
use crate::control::ControlSocket;
use crate::custody;
use crate::onboard::{MAX_PAYLOAD_LEN, Onboard};
use crate::secrets::VaultKey;
use crate::services::{Services, off_thread};
use crate::spool::Spool;
use crate::status::{AgentStatus, StatusBoard};
use crate::tasks::Tasks;
use crate::uplink::{LinkState, Uplink};
use crate::vault::Vault;

/// An oversized onboard message is received, so that it can be refused by name; what is larger
/// than this never leaves the broker.
const MAX_ONBOARD_PACKET_LEN: usize = 16 * 1024 * 1024;
const MAX_UPLINK_PACKET_LEN: usize = 1024 * 1024;
/// Sessions wait a little less than this for answers when the agent stops.
const TASKS_PATIENCE: Duration = Duration::from_secs(3);
const LINK_CLOSE_PATIENCE: Duration = Duration::from_millis(750);
const _: () = assert!(MAX_PAYLOAD_LEN < MAX_ONBOARD_PACKET_LEN);

/// The agent's health, as its retained onboard topic says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Health {
    status: &'static str,
    reasons: Vec<String>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; once it runs, it heals what it can by itself.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;

    let (tpm, vault_key, tpm_name) = open_custody(&config).await?;
    let state = &config.state_directory;
    let vault = Arc::new(Vault::open(&state.join("vault.redb"), &vault_key)?);
    drop(vault_key);
    let spool = Spool::open(&state.join("spool.redb"))?;

    let links = CancellationToken::new();
    let (uplink_link, uplink_events) = open_uplink(&config, &links)?;
    let (onboard_link, onboard_events) = open_onboard(&config, &links);
    let (uplink, router) =
        Uplink::start(config.identity.clone(), uplink_link.clone(), uplink_events);
    let (onboard_state, onboard_state_receiver) = watch::channel(LinkState::connecting());
    let prefix = config.onboard.prefix.clone();
    let onboard =
        Onboard::new(onboard_link.clone(), prefix.clone(), onboard_state_receiver, stop.clone());

    let services = Arc::new(Services {
        clock: Arc::new(SystemClock),
        boot: BootId::current().context("cannot read the boot id")?,
        vault,
        spool,
        uplink: uplink.clone(),
        onboard: onboard.clone(),
        tpm,
        lifetimes: config.lifetimes,
        board: StatusBoard::default(),
        stop: stop.clone(),
    });
    let mut tasks = Tasks::new(Arc::clone(&services), prefix, onboard_state);
    tasks.resume().await?;
    let tasks = tokio::spawn(tasks.run(onboard_events));

    let control = ControlSocket::listen(&config.control_socket).await?;
    let status = status_source(Arc::clone(&config), Arc::clone(&services), tpm_name, started);
    let control = tokio::spawn(control.serve(status, stop.clone()));
    let health = tokio::spawn(watch_health(onboard.clone(), uplink.clone(), stop.clone()));
    let presence = tokio::spawn(announce(config.clone(), uplink_link.clone(), uplink.clone()));

    stop.cancelled().await;
    tracing::info!("stopping: inputs end, answers under way are awaited");
    notify(&[NotifyState::Stopping]);
    // A link ends when nobody reads its events any more, and it still has last words to say.
    let onboard_events = tokio::time::timeout(TASKS_PATIENCE, tasks).await;
    if onboard_events.is_err() {
        tracing::warn!("tasks did not end in time; what is not answered stays in the spool");
    }
    presence.abort();
    health.await.context("the health watch failed")?;
    let goodbye = robot_state(&config, false);
    let topic = Topic::RobotStatus { identity: config.identity.clone() }.to_string();
    let last_words = async {
        let _ = uplink_link.publish(retained(topic, goodbye)).await;
        onboard.health(&Health { status: "down", reasons: vec!["stopped".to_owned()] }).await;
    };
    let _ = tokio::time::timeout(LINK_CLOSE_PATIENCE, last_words).await;
    links.cancel();
    drop(onboard_events);
    let closed = async {
        uplink_link.closed().await;
        onboard_link.closed().await;
        let _ = router.await;
    };
    let _ = tokio::time::timeout(LINK_CLOSE_PATIENCE, closed).await;
    control.await.context("the control socket failed")?;
    tracing::info!("stopped");
    Ok(())
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

async fn open_custody(config: &Arc<Config>) -> anyhow::Result<(moai_tpm::Tpm, VaultKey, String)> {
    notify(&[NotifyState::Status("unsealing the root secret")]);
    let config = Arc::clone(config);
    off_thread(move || {
        let tpm = custody::connect(&config.tpm)?;
        let properties = tpm.properties()?;
        let root = custody::unseal(&tpm, &config.state_directory)?;
        let name = format!("{} ({})", config.tpm.tcti, properties.manufacturer);
        tracing::info!(tpm = %name, "root secret unsealed");
        Ok((tpm, VaultKey::derive(&root), name))
    })
    .await
}

fn open_uplink(
    config: &Config,
    links: &CancellationToken,
) -> anyhow::Result<(Link, mpsc::Receiver<LinkEvent>)> {
    let tls = uplink_tls(config)?;
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

/// Reads the robot's certificate, checks that it is this robot's, and prepares mTLS.
///
/// # Errors
/// A file is missing or wrong, or the certificate names another robot.
pub fn uplink_tls(config: &Config) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (ca, certificate, key) =
        (read(&config.uplink.ca)?, read(&config.uplink.certificate)?, read(&config.uplink.key)?);
    let named = CertificateFacts::from_pem(&certificate)?.identity()?;
    anyhow::ensure!(
        named == config.identity,
        "the certificate {} is {named}'s, but the configuration says identity = \"{}\"",
        config.uplink.certificate.display(),
        config.identity,
    );
    Ok(moai_transport::tls::client_config(&ca, &certificate, &key)?)
}

fn open_onboard(config: &Config, links: &CancellationToken) -> (Link, mpsc::Receiver<LinkEvent>) {
    let OnboardConfig { host, port, prefix } = &config.onboard;
    let endpoint = Endpoint { host: host.clone(), port: *port, tls: None };
    let mut onboard =
        LinkConfig::new("onboard", endpoint, format!("moai-agent-{}", config.identity));
    onboard.max_packet = MAX_ONBOARD_PACKET_LEN;
    let gone =
        Health { status: "down", reasons: vec!["the agent's connection was lost".to_owned()] };
    let gone = serde_json::to_vec(&gone).unwrap_or_default();
    onboard.last_will = Some(retained(Onboard::health_topic(prefix), gone));
    onboard.subscriptions = at_least_once(Onboard::filters(prefix));
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

fn health_of(uplink: &LinkState, onboard: &LinkState) -> Health {
    let mut reasons = Vec::new();
    for (name, state) in [("uplink", uplink), ("onboard broker", onboard)] {
        if let LinkState::Down { reason, .. } = state {
            reasons.push(format!("{name}: {reason}"));
        }
    }
    Health { status: if reasons.is_empty() { "up" } else { "degraded" }, reasons }
}

/// Publishes the agent's health whenever it changes, and tells systemd.
async fn watch_health(onboard: Onboard, uplink: Uplink, stop: CancellationToken) {
    let (mut uplink, mut onboard_state) = (uplink.state(), onboard.link_state());
    let mut ready = false;
    loop {
        let health = health_of(
            &uplink.borrow_and_update().clone(),
            &onboard_state.borrow_and_update().clone(),
        );
        if health.reasons.is_empty() && !ready {
            ready = true;
            tracing::info!("ready");
            notify(&[NotifyState::Ready]);
        }
        let text = if health.reasons.is_empty() {
            "root secret unsealed, both links up".to_owned()
        } else {
            health.reasons.join("; ")
        };
        notify(&[NotifyState::Status(&text)]);
        tokio::select! {
            () = stop.cancelled() => return,
            // Published anew on every change; the wait for the onboard link is part of it.
            () = async {
                onboard.health(&health).await;
                std::future::pending::<()>().await;
            } => {}
            changed = uplink.changed() => if changed.is_err() { return },
            changed = onboard_state.changed() => if changed.is_err() { return },
        }
    }
}

fn status_source(
    config: Arc<Config>,
    services: Arc<Services>,
    tpm: String,
    started: Instant,
) -> Arc<dyn Fn() -> AgentStatus + Send + Sync> {
    let (uplink, onboard) = (services.uplink.state(), services.onboard.link_state());
    let catalogue = services.uplink.catalogue();
    Arc::new(move || {
        let Health { status, reasons } = health_of(&uplink.borrow(), &onboard.borrow());
        let models = catalogue
            .borrow()
            .as_ref()
            .map_or_else(Vec::new, |catalogue| catalogue.ids().map(ToString::to_string).collect());
        AgentStatus {
            status: status.to_owned(),
            reasons,
            identity: config.identity.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: started.elapsed().as_secs(),
            tpm: tpm.clone(),
            models,
            tasks: services.board.snapshot(),
        }
    })
}

fn notify(states: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
