//! The processes of the demo: one robot, the uplink's broker, the compute server.
//!
//! Invariants:
//! - dropping a [`Site`] at any time ends every process and removes the scratch directory, unless
//!   that is to be kept;
//! - a process that ends by itself is noticed at once, whatever is being waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use moai_transport::message::Manifest;
use tempfile::TempDir;

use super::console::Steps;
use super::statistics::megabytes;
use crate::broker::{Acl, Broker, OPERATOR};
use crate::compute::{Compute, WORKER_STATUS};
use crate::mqtt::{Address, Client};
use crate::onboard::SLOW;
use crate::pki::Pki;
use crate::process::Process;
use crate::reference::Scheme;
use crate::robot::{Blueprint, IdentityKey, Robot};
use crate::world::IDENTITY;

/// The name of the demo's task.
pub const TASK: &str = "demo";
/// How many steps [`Site::start`] and [`Site::open`] are.
pub const STEPS: usize = 7;

const OPENS: &str = "moai/v1/up/+/open/+";
/// Where encrypted inputs pass.
pub const JOBS: &str = "moai/v1/up/+/to/+/+/job";
const LOG: &str = "[log]\nlevel = \"info\"\n";
/// Longer than any demo.
const FOREVER: Duration = Duration::from_hours(240);

/// The running processes. The fields are dropped in this order: the scratch directory last.
#[derive(Debug)]
pub struct Site {
    /// The robot.
    pub robot: Robot,
    /// Somebody who may read everything on the uplink's broker.
    pub operator: Client,
    compute: Compute,
    broker: Broker,
    pki: Pki,
    _scratch: TempDir,
}

/// What opening the task took.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// Length of the evaluation keys in bytes.
    pub key_bytes: u64,
    /// From the request to the manifest of the finished keys.
    pub generation: Duration,
    /// From the manifest to the server's word that the keys are registered.
    pub upload: Duration,
}

/// Makes the directory for configurations, state and logs.
///
/// # Errors
/// The disk is full or not writable.
pub fn scratch(keep: bool) -> Result<TempDir> {
    let mut scratch = tempfile::Builder::new().prefix("moai-demo-").tempdir()?;
    scratch.disable_cleanup(keep);
    Ok(scratch)
}

impl Site {
    /// Starts everything, one step after the other.
    ///
    /// # Errors
    /// A process does not come up; the error names the step and shows the process's log.
    pub async fn start(scratch: TempDir, scheme: Scheme, steps: &mut Steps) -> Result<Self> {
        let directory = scratch.path().canonicalize()?;
        let (pki, broker) = steps
            .run("uplink broker", uplink(&directory), |(_, broker)| {
                format!("mosquitto with mutual TLS{}", pid(broker.process()))
            })
            .await?;
        let (operator, compute) = steps
            .run(server_name(scheme), server(scheme, &directory, &pki, &broker), |(_, compute)| {
                format!("compute server, has no decryption key{}", pid(compute.process()))
            })
            .await?;
        let mut robot = steps
            .run("robot's TPM and onboard broker", robot(&directory, &pki, &broker), |robot| {
                let (tpm, broker) = (pid(robot.tpm.process()), pid(robot.broker.process()));
                format!("swtpm{tpm}, mosquitto{broker}")
            })
            .await?;
        robot.onboard.client.show_on_failure(compute.process()?.log());
        steps
            .run("moai-agent provision", robot.agent.provision(), |_| {
                "root secret sealed in the TPM, identity key made in it and certified".to_owned()
            })
            .await?;
        let running = async {
            robot.start_agent().await?;
            Ok(pid(robot.agent.process()))
        };
        let detail = |pid: &String| format!("root secret unsealed, both links up{pid}");
        steps.run("moai-agent run", running, detail).await?;
        Ok(Self { robot, operator, compute, broker, pki, _scratch: scratch })
    }

    /// Opens the task: the agent generates keys and uploads the server's share of them.
    ///
    /// # Errors
    /// The task does not become active.
    pub async fn open(&self, model: &str, steps: &mut Steps) -> Result<Opening> {
        self.operator.subscribe(OPENS).await?;
        self.operator.subscribe(JOBS).await?;
        let started = Instant::now();
        let manifest = self.unless_ended(async {
            self.robot.onboard.open(TASK, model).await?;
            let opened = self.operator.wait_for(OPENS, "manifest of keys", SLOW, |_| true).await?;
            let frame = self.pki.opened(&opened.payload)?;
            Ok(Manifest::decode(&frame.body, u64::MAX)?)
        });
        let manifest = steps
            .run("generate session keys", manifest, |_| {
                "from the unsealed root secret, on the robot".to_owned()
            })
            .await?;
        let generation = started.elapsed();
        let active = self.unless_ended(self.robot.onboard.state(TASK, "active"));
        steps
            .run("upload evaluation keys", active, |_| {
                let size = megabytes(manifest.key_len);
                format!("{size}, checked and registered by the server")
            })
            .await?;
        let upload = started.elapsed().saturating_sub(generation);
        Ok(Opening { key_bytes: manifest.key_len, generation, upload })
    }

    /// Waits for `work`, but not if a process ends that should not.
    ///
    /// # Errors
    /// `work` fails, or a process has ended; then the error shows its log.
    pub async fn unless_ended<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            outcome = work => outcome,
            end = ended(self.robot.agent.process()) => end,
            end = ended(self.compute.process()) => end,
            end = ended(self.robot.broker.process()) => end,
            end = ended(self.robot.tpm.process()) => end,
            end = ended(self.broker.process()) => end,
        }
    }

    /// Stops everything in order, cleanly.
    ///
    /// # Errors
    /// A process does not end by itself; it is killed then.
    pub async fn stop(mut self) -> Result<()> {
        self.robot.agent.stop().await?;
        self.compute.stop().await?;
        self.broker.stop().await?;
        self.robot.broker.stop().await?;
        self.robot.tpm.power_off().await
    }
}

async fn uplink(directory: &Path) -> Result<(Pki, Broker)> {
    let pki = Pki::new(&directory.join("pki"))?;
    let acl = Acl { robots: vec![IDENTITY.to_owned()], ..Acl::default() };
    let broker = Broker::uplink(&directory.join("uplink"), &pki, &acl, false).await?;
    Ok((pki, broker))
}

fn server_name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Tfhe => "moai-server",
        Scheme::Ckks => "TenSEAL server",
    }
}

async fn server(
    scheme: Scheme,
    directory: &Path,
    pki: &Pki,
    broker: &Broker,
) -> Result<(Client, Compute)> {
    let operator = Client::connect(Address {
        port: broker.port(),
        credentials: Some(pki.client(OPERATOR)?),
        client_id: OPERATOR.to_owned(),
    })
    .await?;
    operator.subscribe(WORKER_STATUS).await?;
    let (directory, log) = (directory.join("server"), [LOG.to_owned()]);
    let models = scheme.models();
    let mut compute = Compute::new(scheme, &directory, broker.port(), pki, &models, &log)?;
    compute.start(&operator).await?;
    Ok((operator, compute))
}

async fn robot(directory: &Path, pki: &Pki, broker: &Broker) -> Result<Robot> {
    Robot::build(Blueprint {
        identity: IDENTITY.to_owned(),
        directory: directory.join(IDENTITY),
        uplink_port: broker.port(),
        identity_key: IdentityKey::Tpm(pki.authority()),
        server_key: pki.server_key(),
        agent_toml: vec![LOG.to_owned()],
        broker_options: String::new(),
    })
    .await
}

/// The end of a process, as an error that shows its log. Never returns while it runs.
async fn ended<T>(process: Result<&Process>) -> Result<T> {
    let log = process?.log();
    let status = log.wait_for_exit(FOREVER).await?;
    bail!("{} ended unexpectedly with {status}\n{}", log.name(), log.tail())
}

fn pid(process: Result<&Process>) -> String {
    process.map(|process| format!(" (pid {})", process.id())).unwrap_or_default()
}
