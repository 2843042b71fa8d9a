//! What goes wrong.
//!
//! Invariants:
//! - a fault is over when [`Fault::strike`] returns: what was killed runs again, what was held flows;
//! - only what belongs to the world is touched, each process by its own handle.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

use super::isolation::PacketLoss;
use super::load::MODEL;
use crate::World;
use crate::proxy::{Direction, Proxy};

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
        }
        Ok(())
    }

    /// What the agent's double has to be told for it; none if the agent itself will do.
    #[must_use]
    pub fn double(self, directory: &Path) -> Option<(&'static str, String)> {
        let path = clock_file(directory).display().to_string();
        matches!(self, Self::Clock(..)).then_some(("MOAI_TEST_CLOCK", path))
    }

    /// How long an answer may take under it; none if it may keep answers back.
    #[must_use]
    pub fn patience(self) -> Option<Duration> {
        matches!(self, Self::SlowUpload(..)).then_some(Duration::from_secs(12))
    }

    /// Whether the onboard broker dies with what it holds: windows that it took, and answers that it
    /// took or passed on before it had acknowledged them, which then come again.
    #[must_use]
    pub fn kills_the_onboard_broker(self) -> bool {
        self == Self::Kill(Part::OnboardBroker)
    }

    /// Whether windows cannot be kept, and have to be refused.
    #[must_use]
    pub fn fills_the_disk(self) -> bool {
        matches!(self, Self::FullDisk(_))
    }
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
