//! Everything one end-to-end test needs, started in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::broker::{Acl, Broker, OPERATOR, SERVER};
use crate::compute::{Compute, WORKER_STATUS};
use crate::mqtt::{Address, Client};
use crate::pki::Pki;
use crate::proxy::Proxy;
use crate::redis::Redis;
use crate::reference::Scheme;
use crate::robot::{Blueprint, IdentityKey, Robot};

/// The identity of the first robot.
pub const IDENTITY: &str = "acme.robot-1";

/// A robot, a broker and a compute server, running and connected.
///
/// The fields are dropped in this order: the agent goes first, the scratch directory last.
#[derive(Debug)]
pub struct World {
    /// The robot with the agent under test.
    pub robot: Robot,
    /// The compute server.
    pub compute: Compute,
    /// More workers, if [`Builder::workers`] asked for them.
    pub others: Vec<Compute>,
    /// What workers share their sessions in, if there are several.
    pub redis: Option<Redis>,
    /// A client on the uplink's broker that may read and write everything.
    pub operator: Client,
    /// What the robot's uplink goes through, if [`Builder::proxied`] was asked for.
    pub proxy: Option<Arc<Proxy>>,
    /// The broker of the uplink.
    pub broker: Broker,
    /// The CA of the uplink.
    pub pki: Pki,
    agent_toml: Vec<String>,
    software_key: bool,
    scratch: TempDir,
}

/// How a [`World`] is to be.
#[derive(Debug)]
pub struct Builder {
    identity: String,
    other_robots: Vec<String>,
    scheme: Scheme,
    models: Option<PathBuf>,
    agent_toml: Vec<String>,
    server_toml: Vec<String>,
    onboard_broker: String,
    workers: usize,
    proxied: bool,
    durable: bool,
    software_key: bool,
    stage: Stage,
}

/// How far the first robot's agent is brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Factory,
    Provisioned,
    Running,
}

impl World {
    /// A world with one provisioned robot whose agent is up and a compute server that is up.
    ///
    /// # Errors
    /// Something does not come up; the error says what and shows its log.
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// A world to be described first.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            identity: IDENTITY.to_owned(),
            other_robots: Vec::new(),
            scheme: Scheme::Tfhe,
            models: None,
            agent_toml: Vec::new(),
            server_toml: Vec::new(),
            onboard_broker: String::new(),
            workers: 1,
            proxied: false,
            durable: false,
            software_key: false,
            stage: Stage::Running,
        }
    }

    /// Where everything of this run lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Builds another robot, with its own TPM and broker, that is neither provisioned nor started.
    ///
    /// # Errors
    /// Something does not come up.
    pub async fn another_robot(&self, identity: &str) -> Result<Robot> {
        Robot::build(Blueprint {
            identity: identity.to_owned(),
            directory: self.directory().join(identity),
            uplink_port: self.broker.port(),
            identity_key: identity_key(&self.pki, identity, self.software_key)?,
            server_key: self.pki.server_key(),
            agent_toml: self.agent_toml.clone(),
            broker_options: String::new(),
        })
        .await
    }

    /// Starts the compute server, if it was stopped or killed, and waits until it is up. It comes
    /// back as another worker.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_compute(&mut self) -> Result<()> {
        self.compute.start(&self.operator).await.context("the compute server does not come up")?;
        self.robot.onboard.client.show_on_failure(self.compute.process()?.log());
        Ok(())
    }

    /// Connects to the uplink's broker as whoever `common_name` is.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn uplink_client(&self, common_name: &str) -> Result<Client> {
        uplink_client(&self.broker, &self.pki, common_name).await
    }

    /// Stops everything in order, cleanly.
    ///
    /// # Errors
    /// Something does not end; it is killed then.
    pub async fn stop(mut self) -> Result<()> {
        self.robot.agent.stop().await?;
        self.compute.stop().await?;
        for other in &mut self.others {
            other.stop().await?;
        }
        self.broker.stop().await?;
        self.robot.broker.stop().await?;
        if let Some(redis) = &mut self.redis {
            redis.stop().await?;
        }
        self.robot.tpm.power_off().await
    }
}

/// The tenants of all robots that the broker's rules know.
fn tenants(acl: &Acl) -> Vec<&str> {
    let mut tenants: Vec<&str> = acl.robots.iter().filter_map(|r| r.split('.').next()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    tenants
}

fn identity_key(pki: &Pki, identity: &str, software: bool) -> Result<IdentityKey> {
    Ok(if software {
        IdentityKey::Software(pki.client(identity)?)
    } else {
        IdentityKey::Tpm(pki.authority())
    })
}

async fn uplink_client(broker: &Broker, pki: &Pki, common_name: &str) -> Result<Client> {
    let credentials = Some(pki.client(common_name)?);
    let client_id = common_name.to_owned();
    Client::connect(Address { port: broker.port(), credentials, client_id }).await
}

impl Builder {
    /// The robot's `tenant.robot` instead of [`IDENTITY`].
    #[must_use]
    pub fn identity(mut self, identity: &str) -> Self {
        identity.clone_into(&mut self.identity);
        self
    }

    /// A robot that the broker's access rules know beside the first.
    #[must_use]
    pub fn other_robot(mut self, identity: &str) -> Self {
        self.other_robots.push(identity.to_owned());
        self
    }

    /// A compute server for models of this scheme instead of TFHE.
    #[must_use]
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// The directory of models instead of the repository's.
    #[must_use]
    pub fn models(mut self, directory: &Path) -> Self {
        self.models = Some(directory.to_owned());
        self
    }

    /// Lays a snippet of TOML over every agent's configuration.
    #[must_use]
    pub fn agent_toml(mut self, toml: &str) -> Self {
        self.agent_toml.push(toml.to_owned());
        self
    }

    /// Lays a snippet of TOML over the server's configuration.
    #[must_use]
    pub fn server_toml(mut self, toml: &str) -> Self {
        self.server_toml.push(toml.to_owned());
        self
    }

    /// Lines of mosquitto's configuration for the robot's own broker.
    #[must_use]
    pub fn onboard_broker(mut self, options: &str) -> Self {
        options.clone_into(&mut self.onboard_broker);
        self
    }

    /// The log level of agent and server; tests run at "trace" (the agent with the trace of its TPM library) unless told otherwise.
    #[must_use]
    pub fn log_level(self, level: &str) -> Self {
        let toml = format!("[log]\nlevel = {level:?}\n");
        self.agent_toml(&toml).server_toml(&toml)
    }

    /// So many workers, which share their sessions in a Redis.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Leads the robot's uplink through a [`Proxy`] that records, holds up and cuts.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Lets the uplink's broker keep retained messages and queues over a restart.
    #[must_use]
    pub fn durable_broker(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Robots whose identity key is a file, in development mode.
    #[must_use]
    pub fn software_key(mut self) -> Self {
        self.software_key = true;
        self
    }

    /// Leaves the agent stopped.
    #[must_use]
    pub fn agent_stopped(mut self) -> Self {
        self.stage = Stage::Provisioned;
        self
    }

    /// Leaves the agent stopped and without a sealed root secret.
    #[must_use]
    pub fn unprovisioned(mut self) -> Self {
        self.stage = Stage::Factory;
        self
    }

    /// Starts everything.
    ///
    /// # Errors
    /// Something does not come up; the error says what and shows its log.
    pub async fn start(self) -> Result<World> {
        let mut scratch = tempfile::Builder::new().prefix("moai-").tempdir()?;
        if std::env::var_os("MOAI_KEEP").is_some() {
            scratch.disable_cleanup(true);
            eprintln!("keeping {}", scratch.path().display());
        }
        let directory = scratch.path().canonicalize()?;
        let pki = Pki::new(&directory.join("pki"))?;
        let mut acl = Acl::default();
        acl.robots.push(self.identity.clone());
        acl.robots.extend(self.other_robots);
        let names: Vec<String> = (2..=self.workers).map(|n| format!("{SERVER}-{n}")).collect();
        acl.servers.extend(names.clone());
        let broker = Broker::uplink(&directory.join("uplink"), &pki, &acl, self.durable).await?;
        let operator = uplink_client(&broker, &pki, OPERATOR).await?;
        operator.subscribe(WORKER_STATUS).await?;
        let mut server_toml = self.server_toml;
        let table = |tenant: &str| format!("[tenants.{tenant}]\n");
        let tenants: Vec<String> = tenants(&acl).into_iter().map(table).collect();
        server_toml.insert(0, tenants.concat());
        let redis = if self.workers > 1 {
            let redis = Redis::start(&directory.join("redis"), &pki).await?;
            server_toml.insert(0, redis.toml());
            Some(redis)
        } else {
            None
        };
        let models = self.models.unwrap_or_else(|| self.scheme.models());
        let new = |name: &str| {
            let (directory, port) = (directory.join(name), broker.port());
            Compute::named(self.scheme, name, &directory, port, &pki, &models, &server_toml)
        };
        let compute = new(SERVER)?;
        let others = names.iter().map(|name| new(name)).collect::<Result<_>>()?;
        let proxy = if self.proxied { Some(Proxy::start(broker.port()).await?) } else { None };
        let robot = Robot::build(Blueprint {
            directory: directory.join(&self.identity),
            uplink_port: proxy.as_ref().map_or(broker.port(), |proxy| proxy.port()),
            identity_key: identity_key(&pki, &self.identity, self.software_key)?,
            server_key: pki.server_key(),
            identity: self.identity,
            agent_toml: self.agent_toml.clone(),
            broker_options: self.onboard_broker,
        })
        .await?;
        let (agent_toml, software_key) = (self.agent_toml, self.software_key);
        let mut world = World {
            robot,
            compute,
            others,
            redis,
            operator,
            proxy,
            broker,
            pki,
            agent_toml,
            software_key,
            scratch,
        };
        world.start_compute().await?;
        for other in &mut world.others {
            other.start(&world.operator).await.context("another worker does not come up")?;
        }
        if self.stage >= Stage::Provisioned {
            world.robot.agent.provision().await?;
        }
        if self.stage == Stage::Running {
            world.robot.start_agent().await.context("the agent does not come up")?;
        }
        Ok(world)
    }
}
