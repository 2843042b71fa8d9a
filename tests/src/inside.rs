//! The compute service in this process, with an engine that a test or a bench brings along.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_server::audit::{Audit, AuditTarget};
use moai_server::engine::Engine;
use moai_server::service::{Parts, Service, ServiceSettings, Trust};
use moai_server::store::{Budget, DirectoryStore, UnixMillis};
use moai_server::tenants::TenantRules;
use moai_transport::ids::WorkerId;
use moai_transport::link::{self, Endpoint, LinkConfig, Qos};
use moai_transport::tls::client_config;
use moai_transport::topic::worker_filters;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::World;
use crate::broker::SERVER;
use crate::compute::WORKER_STATUS;
use crate::process::STEP;

const WORKER: &str = "w-inside";

/// How much it takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs of each tenant at a time.
    pub max_jobs: usize,
    /// Sets of keys in memory.
    pub max_prepared: usize,
}

/// A service in this process, in the place of the world's own. Dropping it ends it.
#[derive(Debug)]
pub struct Inside {
    /// The worker's id.
    pub worker: WorkerId,
    directory: PathBuf,
    _stop: [DropGuard; 2],
}

impl Inside {
    /// Stops the world's compute server and serves in its name.
    ///
    /// # Errors
    /// The server does not end, or the service does not come up.
    pub async fn start(world: &mut World, engine: Arc<dyn Engine>, limits: Limits) -> Result<Self> {
        world.compute.stop().await?;
        let directory = world.directory().join("inside");
        std::fs::create_dir_all(&directory)?;
        let worker: WorkerId = WORKER.parse()?;
        let credentials = world.pki.client(SERVER)?;
        let read = |path: &PathBuf| std::fs::read(path);
        let tls = client_config(
            &read(&credentials.ca)?,
            &read(&credentials.certificate)?,
            &read(&credentials.key)?,
        )?;
        let port = world.broker.port();
        let endpoint = Endpoint { host: "localhost".to_owned(), port, tls: Some(tls) };
        let mut config = LinkConfig::new("broker", endpoint, worker.to_string());
        config.max_packet = 1024 * 1024;
        config.subscriptions = worker_filters(&"inside".parse()?, &worker)
            .into_iter()
            .map(|filter| (filter, Qos::AtLeastOnce))
            .collect();
        let links = CancellationToken::new();
        let (link, events) = link::spawn(config, links.clone());

        let budget = Budget { sessions: 9, bytes: 1 << 20 };
        let rules = TenantRules { models: None, budget, max_jobs: limits.max_jobs };
        let settings = ServiceSettings {
            tenants: [("acme".parse()?, rules.clone()), ("globex".parse()?, rules)].into(),
            max_ttl: Duration::from_mins(10),
            threads: 1,
            max_waiting_jobs: 100,
            max_prepared: NonZeroUsize::new(limits.max_prepared).context("some")?,
        };
        let trust = Trust {
            signing_key: world.pki.server_signer()?,
            robots: world.pki.robots()?,
            attestation: None,
        };
        let audit = AuditTarget::File(directory.join("audit.jsonl"));
        let service = Service::new(Parts {
            worker: worker.clone(),
            settings,
            audit: Audit::open(audit, worker.clone(), engine.context())?,
            engine,
            store: Arc::new(DirectoryStore::open(&directory.join("store"))?),
            trust,
            health: None,
            clock: UnixMillis::now,
            link,
        })?;
        let stop = CancellationToken::new();
        let (_, reopen) = mpsc::channel(1);
        world.operator.skip(WORKER_STATUS);
        tokio::spawn(service.run(events, reopen, stop.clone()));
        let is_up = |status: &crate::mqtt::Message| {
            status.topic.contains(WORKER) && status.json().is_ok_and(|status| status["up"] == true)
        };
        world.operator.wait_for(WORKER_STATUS, "service", STEP, is_up).await?;
        Ok(Self { worker, directory, _stop: [stop.drop_guard(), links.drop_guard()] })
    }

    /// Where sessions are kept.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// The audit log.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.jsonl")
    }
}
