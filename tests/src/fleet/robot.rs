//! One robot: the agent's own parts, composed as its daemon composes them, but for TPM, control
//! socket and onboard broker.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context as _, Result};
use moai_agent::audit::{Audit, AuditLimits};
use moai_agent::clock::{BootId, Clock, SystemClock};
use moai_agent::conditions::Conditions;
use moai_agent::config::SessionsConfig;
use moai_agent::custody::{Custodian, CustodianKind, CustodyError};
use moai_agent::echoes::Echoes;
use moai_agent::engines::Engines;
use moai_agent::live::LiveSettings;
use moai_agent::onboard::{Onboard, ReleaseStep, Topics};
use moai_agent::secrets::{OsEntropy, VaultKey};
use moai_agent::services::Services;
use moai_agent::session::registry::SessionRegistry;
use moai_agent::spool::{Spool, SpoolLimits};
use moai_agent::status::StatusBoard;
use moai_agent::tasks::Tasks;
use moai_agent::ttl::Lifetimes;
use moai_agent::uplink::{Believed, LinkState, Started, Uplink};
use moai_agent::vault::LockedVault;
use moai_agent::warm::{WarmParts, WarmPool};
use moai_agent::watchdog::Watchdog;
use moai_tpm::{Epoch, RootSecret};
use moai_transport::ids::Identity;
use moai_transport::keys::ServerKeys;
use moai_transport::link::{self, Endpoint, LinkConfig, Qos};
use moai_transport::topic::robot_filters;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::engine::TinyEngines;
use super::onboard::{PREFIX, Software};
use crate::pki::Credentials;

const MAX_PACKET_LEN: usize = 1024 * 1024;
const DECRYPTION_BUDGET: u64 = 10_000;

/// A robot that runs.
pub struct Robot {
    /// What runs on it beside the agent.
    pub software: Software,
    services: Arc<Services>,
    links: CancellationToken,
    disconnected: Arc<AtomicU64>,
}

impl Robot {
    /// Starts it; it connects by itself.
    ///
    /// # Errors
    /// Its files cannot be made, or it has no credentials.
    pub async fn start(
        identity: &str,
        credentials: &Credentials,
        servers: ServerKeys,
        port: u16,
        directory: &Path,
    ) -> Result<Self> {
        let identity: Identity = identity.parse()?;
        std::fs::create_dir_all(directory)?;
        let (stop, links) = (CancellationToken::new(), CancellationToken::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let boot = BootId::current()?;
        let mut root = [0; 32];
        getrandom::fill(&mut root)?;
        let key = VaultKey::derive(&RootSecret::from_bytes(root));
        let epoch = Epoch(1);
        let vault = LockedVault::open(&directory.join("vault"))?.unlock(&key, epoch)?;
        let vault = Arc::new(vault);
        let limits = AuditLimits::default();
        let audit =
            Audit::start(directory, Arc::clone(&vault), epoch, limits, Arc::clone(&clock), &boot)?;
        let now = clock.unix().as_secs();
        let (spool, _) = Spool::open(directory, SpoolLimits::default(), &boot, now)?;

        let endpoint =
            Endpoint { host: "localhost".to_owned(), port, tls: Some(credentials.tls()?) };
        let mut config = LinkConfig::new("uplink", endpoint, identity.to_string());
        config.max_packet = MAX_PACKET_LEN;
        config.subscriptions =
            robot_filters(&identity).into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect();
        let (uplink_link, uplink_events) = link::spawn(config, links.clone());
        let Started { uplink, .. } = Uplink::start(
            identity,
            Arc::new(credentials.signer()?),
            Believed { servers, operators: None },
            Arc::clone(&clock),
            audit.clone(),
            (uplink_link, uplink_events),
            Watchdog::new(None, |_| {}).guard("uplink"),
        );
        let disconnected = Arc::<AtomicU64>::default();
        tokio::spawn(count_breaks(uplink.state(), Arc::clone(&disconnected)));

        let topics = Arc::new(Topics::new(PREFIX, &[]));
        let (onboard_link, onboard_events, far) = link::pair();
        let (echo_link, echo_events, echo_far) = link::pair();
        let (echoes, listener) = Echoes::on(echo_link, echo_events, &topics);
        let software = Software::start(far, echo_far);
        let (link_state, state) = watch::channel(LinkState::connecting());
        let onboard =
            Onboard::new(onboard_link, topics, state, echoes, stop.clone(), |_: ReleaseStep| {});
        tokio::spawn(listener.run(onboard.clone(), spool.clone()));
        let registry = SessionRegistry::default();
        let engines: Arc<dyn Engines> = Arc::new(TinyEngines);
        let custodian: Arc<dyn Custodian> = Arc::new(NoTpm);
        let warm = WarmParts {
            wanted: 0,
            directory: directory.join("warm"),
            vault: Arc::clone(&vault),
            engines: Arc::clone(&engines),
            custodian: Arc::clone(&custodian),
            clock: Arc::clone(&clock),
            registry: registry.clone(),
            catalogue: uplink.catalogue(),
            declared: Vec::new(),
        };
        let settings = LiveSettings {
            sessions: SessionsConfig {
                lifetimes: Lifetimes::default(),
                warm: 0,
                decryption_budget: DECRYPTION_BUDGET,
            },
            spool: SpoolLimits::default(),
            tasks: Vec::new(),
            policies: [].into(),
        };
        let services = Arc::new(Services {
            clock,
            boot,
            vault,
            spool,
            uplink,
            onboard,
            custodian,
            attester: None,
            live: watch::channel(settings).1,
            audit,
            conditions: Conditions::default(),
            engines,
            warm: WarmPool::start(warm, stop.clone())?,
            registry,
            board: StatusBoard::default(),
            stop,
        });
        let mut tasks = Tasks::new(Arc::clone(&services), link_state);
        tasks.resume().await?;
        let pulse = Watchdog::new(None, |_| {}).guard("onboard link");
        tokio::spawn(tasks.run(onboard_events, pulse));
        Ok(Self { software, services, links, disconnected })
    }

    /// Waits until it has heard what the server offers.
    ///
    /// # Errors
    /// Its uplink has ended.
    pub async fn connected(&self) -> Result<()> {
        let mut catalogue = self.services.uplink.catalogue();
        catalogue.wait_for(Option::is_some).await.map(drop).context("the uplink has ended")
    }

    /// How often its uplink broke.
    #[must_use]
    pub fn disconnected(&self) -> u64 {
        self.disconnected.load(Relaxed)
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        self.services.stop.cancel();
        self.links.cancel();
    }
}

async fn count_breaks(mut state: watch::Receiver<LinkState>, count: Arc<AtomicU64>) {
    loop {
        let up = state.wait_for(|state| *state == LinkState::Up).await.is_ok();
        if !up || state.wait_for(|state| *state != LinkState::Up).await.is_err() {
            return;
        }
        count.fetch_add(1, Relaxed);
    }
}

/// The operating system's randomness once more; nothing else of a custodian is used here.
struct NoTpm;

impl Custodian for NoTpm {
    fn kind(&self) -> CustodianKind {
        CustodianKind::Env
    }

    fn describe(&self) -> Result<String, CustodyError> {
        Ok("nothing".to_owned())
    }

    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError> {
        let bytes: [u8; 32] = OsEntropy::bytes().unwrap_or_default();
        Ok(Box::new(Zeroizing::new(bytes)))
    }

    fn seal(&self, _: Epoch, _: &RootSecret, _: Option<&[u8]>) -> Result<Vec<u8>, CustodyError> {
        Ok(Vec::new())
    }

    fn unseal(&self, _: Epoch, _: &[u8]) -> Result<RootSecret, CustodyError> {
        Ok(RootSecret::from_bytes([0; 32]))
    }

    fn retire(&self, _: Epoch, _: &[u8]) -> Result<(), CustodyError> {
        Ok(())
    }

    fn shreds(&self) -> bool {
        false
    }
}
