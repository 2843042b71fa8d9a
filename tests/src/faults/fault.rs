//! What goes wrong.
//!
//! Invariants:
//! - a fault is over when [`Fault::strike`] returns: what was killed runs again, what was held flows;
//! - only what belongs to the world is touched, each process by its own handle.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::isolation::PacketLoss;
use crate::World;
use crate::proxy::{Direction, Proxy};

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
        }
        Ok(())
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

/// Writes a file until the disk takes no more.
fn fill(path: &std::path::Path) -> Result<()> {
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
