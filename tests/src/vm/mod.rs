//! A whole robot in a virtual machine: Debian with its own kernel and systemd, a TPM at `/dev/tpmrm0`, the
//! agent's package installed. Broker and compute server are outside of it.
//!
//! Invariants:
//! - the agent is started, reloaded, killed and started again by systemd alone;
//! - secrets that are looked for on the disk are taken from copies of TPM and vault, outside of the machine.

mod machine;
mod robot;
mod search;
mod shell;

use anyhow::Result;

pub use self::machine::{Accelerator, Software};
use self::robot::Robot;
use crate::demo::console::Steps;

/// Runs all of it, and prints a line for each step.
///
/// # Errors
/// A step fails; the error says what was seen.
pub async fn run(software: Software, accelerator: Accelerator) -> Result<()> {
    let mut steps = Steps::new(10);
    let mut robot = Robot::new(software, accelerator).await?;
    let nothing = |(): &()| String::new();
    steps.run("boot with the package", robot.first_boot(), String::clone).await?;
    steps.run("provision by the TPM", robot.provision(), nothing).await?;
    steps.run("main job", robot.main_job(), String::clone).await?;
    steps.run("systemctl reload", robot.reload(), String::clone).await?;
    steps.run("hung agent", robot.hang(), String::clone).await?;
    steps.run("reboot", robot.reboot(), String::clone).await?;
    steps.run("changed boot refuses", robot.boot_changed("second"), String::clone).await?;
    steps.run("signed policy opens", robot.sign_policy(), String::clone).await?;
    steps.run("recovery code opens", robot.recover(), String::clone).await?;
    steps.run("search of the disk", robot.search(), String::clone).await?;
    Ok(())
}
