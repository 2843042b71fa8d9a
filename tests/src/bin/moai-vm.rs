//! `moai-vm`: a whole robot in a virtual machine.

use std::path::PathBuf;

use clap::Parser;
use moai_tests::vm::{Accelerator, Software, run};

/// Boots a robot with the agent's package in QEMU, provisions it, has it answer, and does to it what may
/// happen to robots. `cargo xtask vm` makes the disk.
#[derive(Parser)]
#[command(name = "moai-vm", max_term_width = 100)]
struct Cli {
    /// The file system; a copy of it is used.
    #[arg(long, value_name = "FILE")]
    disk: PathBuf,
    /// The kernel.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Its initial file system.
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
    /// What executes the guest's instructions.
    #[arg(long, value_enum, default_value = "auto")]
    accelerator: Accelerator,
}

fn main() -> anyhow::Result<()> {
    let Cli { disk, kernel, initrd, accelerator } = Cli::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(run(Software { disk, kernel, initrd }, accelerator))
}
