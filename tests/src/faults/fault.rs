//! What goes wrong.
//!
//! Invariants:
//! - a fault is over when [`Fault::strike`] returns: what was killed runs again, what was held flows;
//! - only what belongs to the world is touched, each process by its own handle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use moai_agent::custody::VAULT_FILE;
use moai_agent::spool::SPOOL_FILE;
use tokio::time::sleep;

use super::isolation::PacketLoss;
use super::load::MODEL;
use crate::World;
use crate::process::STEP;
use crate::proxy::{Direction, Proxy};

/// What `config` problems end with (sysexits.h, `EX_CONFIG`).
const WRONG_CONFIGURATION: i32 = 78;
/// Less than the record of a job.
const TORN: usize = 40;
/// Inside the record of a job, well behind its header.
const JOB_MIDDLE: usize = 75;
/// The task that opens beside the load.
const OTHER_TASK: &str = "other";

/// A process of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `moai-agent`.
    Agent,
    /// `moai-server`.
    Server,
    /// The broker between robot and server.
    UplinkBroker,
    /// The robot's own broker.
    OnboardBroker,
    /// The robot's TPM.
    Tpm,
}

/// A file of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Its sessions.
    Vault,
    /// Its jobs.
    Spool,
    /// Its configuration.
    Config,
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// Single bits flip.
    Flips,
    /// Its end is missing.
    Truncation,
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// None, to see what the load is like without.
    None,
    /// `kill -9`, and after a second another start.
    Kill(Part),
    /// SIGSTOP, and SIGCONT after so long.
    Freeze(Part, Duration),
    /// The robot's connection breaks so often, each time two seconds after the last.
    Cuts(u32),
    /// Nothing passes on the robot's connection for so long, and then it breaks.
    Stall(Duration),
    /// Each byte takes so long in each direction, for so long.
    Delay(Duration, Duration),
    /// Every tenth packet between robot and broker is lost, for so long.
    PacketLoss(Duration),
    /// The robot's state directory is full for so long.
    FullDisk(Duration),
    /// The uplink carries so many bytes a second, and another task opens meanwhile: for so long its
    /// keys go up.
    SlowUpload(u32, Duration),
    /// The robot's wall clock is ahead by so many seconds, for so long.
    Clock(i64, Duration),
    /// `kill -9` of the agent while jobs wait, and its file is damaged before it starts again.
    Corrupt(Kept, Damage),
    /// `kill -9` of the TPM and of the agent, which starts again so long before the TPM is back.
    StartWithoutTpm(Duration),
}

impl Fault {
    /// Lets it happen, and repairs it.
    ///
    /// # Errors
    /// It does not happen, or something does not come back.
    pub async fn strike(self, world: &mut World) -> Result<()> {
        const PAUSE: Duration = Duration::from_secs(1);
        match self {
            Self::None => sleep(PAUSE).await,
            Self::Kill(part) => {
                kill(world, part).await?;
                sleep(PAUSE).await;
                start(world, part).await?;
            }
            Self::Freeze(part, duration) => {
                signal(world, part, Signal::Freeze)?;
                if part == Part::Tpm {
                    // The agent asks the TPM when it makes a connection.
                    proxy(world)?.cut();
                }
                sleep(duration).await;
                signal(world, part, Signal::Thaw)?;
            }
            Self::Cuts(count) => {
                for _ in 0..count {
                    proxy(world)?.cut();
                    sleep(2 * PAUSE).await;
                }
            }
            Self::Stall(duration) => {
                let proxy = proxy(world)?;
                let both = [Direction::Up, Direction::Down];
                for direction in both {
                    proxy.hold_after(direction, 0);
                }
                sleep(duration).await;
                proxy.cut();
                for direction in both {
                    proxy.release(direction);
                }
            }
            Self::Delay(delay, duration) => {
                let proxy = proxy(world)?;
                proxy.delay(delay);
                sleep(duration).await;
                proxy.delay(Duration::ZERO);
            }
            Self::PacketLoss(duration) => {
                let _loss = PacketLoss::start(proxy(world)?.port())?;
                sleep(duration).await;
            }
            Self::FullDisk(duration) => {
                let path = world.robot.agent.state_directory().join("filler");
                fill(&path)?;
                sleep(duration).await;
                std::fs::remove_file(path)?;
            }
            Self::SlowUpload(rate, duration) => {
                let proxy = proxy(world)?;
                let before = proxy.connections();
                proxy.limit(Some(rate));
                world.robot.onboard.open(OTHER_TASK, MODEL).await?;
                sleep(duration).await;
                let upload = upload(world).await?;
                let carried = upload["bytes_per_second"].as_u64().unwrap_or(0);
                let wanted = u64::from(rate / 2)..=u64::from(rate);
                ensure!(wanted.contains(&carried), "keys go up with {carried} B/s: {upload}");
                proxy.limit(None);
                world.robot.onboard.state(OTHER_TASK, "active").await?;
                ensure!(proxy.connections() == before, "the connection broke under the upload");
            }
            Self::Clock(ahead, duration) => {
                let path = clock_file(world.directory());
                std::fs::write(&path, ahead.to_string())?;
                sleep(duration).await;
                std::fs::remove_file(path)?;
            }
            Self::Corrupt(kept, damage) => {
                // Answers that do not come leave jobs in the spool.
                signal(world, Part::Server, Signal::Freeze)?;
                sleep(2 * PAUSE).await;
                kill(world, Part::Agent).await?;
                corrupt(world, kept, damage).await?;
                signal(world, Part::Server, Signal::Thaw)?;
            }
            Self::StartWithoutTpm(duration) => {
                kill(world, Part::Agent).await?;
                kill(world, Part::Tpm).await?;
                world.robot.agent.spawn()?;
                sleep(duration).await;
                ensure!(world.robot.agent.process()?.exit().is_none(), "the agent did not wait");
                start(world, Part::Tpm).await?;
            }
        }
        Ok(())
    }

    /// What the agent's double has to be told for it; none if the agent itself will do.
    #[must_use]
    pub fn double(self, directory: &Path) -> Option<(&'static str, String)> {
        let path = clock_file(directory).display().to_string();
        matches!(self, Self::Clock(..)).then_some(("MOAI_TEST_CLOCK", path))
    }

    /// How long an answer may take under it; none if it may keep answers back. A job waits behind one
    /// chunk, two seconds, and at most eight are under way: somewhat less than what the load brings.
    #[must_use]
    pub fn patience(self) -> Option<Duration> {
        matches!(self, Self::SlowUpload(..)).then_some(Duration::from_secs(20))
    }

    /// Whether the onboard broker dies with what it holds: windows that it took, and answers that it
    /// took or passed on before it had acknowledged them, which then come again.
    #[must_use]
    pub fn kills_the_onboard_broker(self) -> bool {
        self == Self::Kill(Part::OnboardBroker)
    }

    /// Whether the agent's state directory is to be a small disk of its own.
    #[must_use]
    pub fn fills_the_disk(self) -> bool {
        matches!(self, Self::FullDisk(_))
    }

    /// Whether windows cannot be kept, or what is kept of them is damaged: they have to be refused.
    #[must_use]
    pub fn costs_jobs(self) -> bool {
        matches!(self, Self::FullDisk(_) | Self::Corrupt(Kept::Vault | Kept::Spool, _))
    }

    /// How many jobs go with the end of a file, so that nothing says that they ever were.
    #[must_use]
    pub fn destroys(self) -> usize {
        usize::from(self == Self::Corrupt(Kept::Spool, Damage::Truncation))
    }
}

/// Damages a file of the agent, which does not run, and starts it; what it starts with is what it can
/// make of it.
async fn corrupt(world: &mut World, kept: Kept, damage: Damage) -> Result<()> {
    let agent = &world.robot.agent;
    let path = match kept {
        Kept::Vault => agent.state_directory().join(VAULT_FILE),
        Kept::Spool => agent.state_directory().join(SPOOL_FILE),
        Kept::Config => agent.config_file(),
    };
    let whole = std::fs::read(&path)?;
    std::fs::write(&path, damaged(kept, damage, &whole)?)?;
    if kept == Kept::Config {
        let ended = world.robot.agent.spawn()?.wait(STEP).await?;
        ensure!(ended.code() == Some(WRONG_CONFIGURATION), "the agent ended with {ended}");
        std::fs::write(&path, whole)?;
        return world.robot.start_agent().await;
    }
    world.robot.onboard.forget_health();
    let log = world.robot.agent.spawn()?.log().clone();
    world.robot.onboard.client.show_on_failure(&log);
    if (kept, damage) == (Kept::Spool, Damage::Truncation) {
        // A write that a power cut has cut off looks the same, and is nothing to tell of.
        return world.robot.onboard.health("up").await.map(drop);
    }
    let health = world.robot.onboard.health("degraded").await?;
    let part = if kept == Kept::Vault { "vault: " } else { "spool: " };
    let reasons = health["reasons"].as_array().into_iter().flatten();
    let mut reasons = reasons.filter_map(serde_json::Value::as_str);
    ensure!(reasons.any(|it| it.starts_with(part)), "the health says nothing of it: {health}");
    Ok(())
}

fn damaged(kept: Kept, damage: Damage, whole: &[u8]) -> Result<Vec<u8>> {
    /// Of a redb file, and of the disk.
    const PAGE: usize = 4096;
    let mut bytes = whole.to_vec();
    let len = bytes.len();
    match (kept, damage) {
        (Kept::Spool, Damage::Truncation) => bytes.truncate(len.saturating_sub(TORN)),
        (_, Damage::Truncation) => bytes.truncate(len / 2),
        (Kept::Vault, Damage::Flips) => {
            bytes.iter_mut().skip(PAGE / 2).step_by(PAGE).for_each(flip);
        }
        (Kept::Spool, Damage::Flips) => {
            // The jobs written last are those that wait. The end of a job is spared: an agent that
            // cannot read it answers that job again.
            let jobs: Vec<usize> = job_records(whole).collect();
            for record in jobs.iter().rev().skip(1).step_by(2).take(3) {
                bytes.iter_mut().skip(record + JOB_MIDDLE).take(1).for_each(flip);
            }
        }
        (Kept::Config, Damage::Flips) => bytes.iter_mut().take(1).for_each(flip),
    }
    ensure!(bytes != whole, "the file is as it was");
    Ok(bytes)
}

/// Where the records of jobs begin in a spool (`agent/src/spool/record.rs`).
fn job_records(spool: &[u8]) -> impl Iterator<Item = usize> {
    const MARKER: &[u8] = b"MSP\x01";
    const KIND_OFFSET: usize = 20;
    const JOB: u8 = 2;
    let records = spool.windows(KIND_OFFSET + 1).enumerate();
    let jobs = records.filter(|(_, it)| it.starts_with(MARKER) && it.last() == Some(&JOB));
    jobs.map(|(offset, _)| offset)
}

fn flip(byte: &mut u8) {
    *byte ^= 0x10;
}

async fn kill(world: &mut World, part: Part) -> Result<()> {
    match part {
        Part::Agent => world.robot.agent.kill().await,
        Part::Server => world.compute.kill().await,
        Part::UplinkBroker => world.broker.kill().await,
        Part::OnboardBroker => world.robot.broker.kill().await,
        Part::Tpm => {
            world.robot.tpm.kill().await?;
            proxy(world)?.cut();
            Ok(())
        }
    }
}

async fn start(world: &mut World, part: Part) -> Result<()> {
    match part {
        Part::Agent => world.robot.start_agent().await,
        Part::Server => world.start_compute().await,
        Part::UplinkBroker => world.broker.start_again().await,
        Part::OnboardBroker => world.robot.broker.start_again().await,
        Part::Tpm => world.robot.tpm.power_on().await,
    }
}

#[derive(Clone, Copy)]
enum Signal {
    Freeze,
    Thaw,
}

fn signal(world: &World, part: Part, signal: Signal) -> Result<()> {
    let process = match part {
        Part::Agent => world.robot.agent.process()?,
        Part::Server => world.compute.process()?,
        Part::UplinkBroker => world.broker.process()?,
        Part::OnboardBroker => world.robot.broker.process()?,
        Part::Tpm => world.robot.tpm.process()?,
    };
    match signal {
        Signal::Freeze => process.freeze(),
        Signal::Thaw => process.thaw(),
    }
}

fn proxy(world: &World) -> Result<Arc<Proxy>> {
    world.proxy.clone().context("the world has no proxy")
}

fn clock_file(directory: &Path) -> PathBuf {
    directory.join("clock-ahead")
}

/// What `status` says of the other task's upload.
async fn upload(world: &World) -> Result<serde_json::Value> {
    let status = world.robot.agent.command(&["status", "--json"]).await?.success()?;
    let mut status: serde_json::Value = serde_json::from_str(&status.text())?;
    let sessions = status["tasks"][OTHER_TASK]["sessions"].as_object_mut();
    let session = sessions.and_then(|sessions| sessions.values_mut().next());
    Ok(session.context("the other task has no session")?["upload"].take())
}

/// Writes a file until the disk takes no more.
fn fill(path: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path)?;
    for len in [64 * 1024, 512, 1] {
        let piece = vec![0; len];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
