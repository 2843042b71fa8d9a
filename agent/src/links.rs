//! The connections: toward the server, and to the robot's own broker.
//!
//! Invariant: whoever listens hears whether the agent is there: each connection has a last will.

use std::sync::Arc;

use anyhow::Context as _;
use moai_transport::link::{self, Endpoint, Link, LinkConfig, LinkEvent, Outgoing, Qos};
use moai_transport::message::RobotState;
use moai_transport::topic::{Topic, robot_filters};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::cli::Hooks;
use crate::config::{Config, OnboardConfig};
use crate::echoes::Echoes;
use crate::health::Health;
use crate::identity::CertificateStore;
use crate::onboard::{MAX_PAYLOAD_LEN, Onboard, Topics};
use crate::spool::Spool;
use crate::uplink::{LinkState, Uplink};

/// An oversized onboard message is received, so that it can be refused by name; what is larger
/// than this never leaves the broker.
const MAX_ONBOARD_PACKET_LEN: usize = 16 * 1024 * 1024;
const MAX_UPLINK_PACKET_LEN: usize = 1024 * 1024;
const _: () = assert!(MAX_PAYLOAD_LEN < MAX_ONBOARD_PACKET_LEN);

/// The robot's side: its broker, and what onboard software is told.
pub(crate) struct OnboardSide {
    pub(crate) base: LinkConfig,
    pub(crate) link: Link,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) api: Onboard,
}

impl OnboardSide {
    pub(crate) fn start(
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

pub(crate) fn open_uplink(
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

pub(crate) fn robot_state(config: &Config, up: bool) -> Vec<u8> {
    // A status is two short fields: it always fits.
    RobotState { identity: config.identity.clone(), up }.encode().unwrap_or_default()
}

fn at_least_once(filters: Vec<String>) -> Vec<(String, Qos)> {
    filters.into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect()
}

pub(crate) fn retained(topic: String, payload: Vec<u8>) -> Outgoing {
    Outgoing { retain: true, ..Outgoing::new(topic, payload, Qos::AtLeastOnce) }
}

/// Tells the server's side on every connection that the robot is there.
pub(crate) async fn announce(config: Arc<Config>, link: Link, uplink: Uplink) {
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
