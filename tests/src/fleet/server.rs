//! The server's process: `moai-server`'s own service with the tiny engine.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_server::audit::{Audit, AuditTarget};
use moai_server::engine::Engine as _;
use moai_server::service::{Parts, Service, ServiceSettings, Trust};
use moai_server::signing_key;
use moai_server::store::{Budget, DirectoryStore, UnixMillis};
use moai_server::tenants::TenantRules;
use moai_transport::ids::WorkerId;
use moai_transport::link::{self, Endpoint, LinkConfig, LinkEvent, Qos};
use moai_transport::tls::client_config;
use moai_transport::topic::worker_filters;
use moai_transport::trust::TrustedRobots;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::engine::TinyServer;
use super::plan::{ServerPlan, TENANT};

/// The one worker.
pub const WORKER: &str = "w-fleet";
/// What it says when it serves.
pub const UP: &str = "serving";
const GROUP: &str = "fleet";
const MAX_PACKET_LEN: usize = 1024 * 1024;
/// More than ever wait: what breaks is to be something else.
const MAX_WAITING_JOBS: usize = 100_000;

/// Serves until it is killed.
///
/// # Errors
/// It cannot start.
pub async fn run(plan: ServerPlan) -> Result<()> {
    let ServerPlan { port, credentials, signing_key, directory, sessions } = plan;
    let worker: WorkerId = WORKER.parse()?;
    let read = |path| std::fs::read(path).context("a certificate is missing");
    let ca = read(&credentials.ca)?;
    let tls = client_config(&ca, &read(&credentials.certificate)?, &read(&credentials.key)?)?;
    let endpoint = Endpoint { host: "localhost".to_owned(), port, tls: Some(tls) };
    let mut config = LinkConfig::new("broker", endpoint, worker.to_string());
    config.max_packet = MAX_PACKET_LEN;
    config.subscriptions = worker_filters(&GROUP.parse()?, &worker)
        .into_iter()
        .map(|filter| (filter, Qos::AtLeastOnce))
        .collect();
    let (link, mut link_events) = link::spawn(config, CancellationToken::new());
    let (sender, events) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(event) = link_events.recv().await {
            if matches!(event, LinkEvent::Up) {
                println!("{UP}");
            }
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });

    let budget = Budget { sessions, bytes: u64::MAX };
    let rules = TenantRules { models: None, budget, max_jobs: MAX_WAITING_JOBS };
    let settings = ServiceSettings {
        tenants: BTreeMap::from([(TENANT.parse()?, rules)]),
        max_ttl: Duration::from_hours(1),
        threads: 1,
        max_waiting_jobs: MAX_WAITING_JOBS,
        max_prepared: NonZeroUsize::new(usize::try_from(sessions)?).context("no sessions")?,
    };
    let trust = Trust {
        signing_key: signing_key::read(&signing_key)?,
        robots: TrustedRobots::from_pem(&ca)?,
        attestation: None,
    };
    let engine = Arc::new(TinyServer);
    let audit = AuditTarget::File(directory.join("audit.jsonl"));
    let audit = Audit::open(audit, worker.clone(), engine.context())?;
    let store = Arc::new(DirectoryStore::open(&directory.join("store"))?);
    let service = Service::new(Parts {
        worker,
        settings,
        engine,
        store,
        trust,
        audit,
        health: None,
        clock: UnixMillis::now,
        link,
    })?;
    let (_reopen, reopen_log) = mpsc::channel(1);
    service.run(events, reopen_log, CancellationToken::new()).await;
    Ok(())
}
