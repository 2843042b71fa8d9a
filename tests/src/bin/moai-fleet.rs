//! `moai-fleet`: the processes of the fleet bench, which `moai-bench fleet` starts.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use moai_tests::fleet::plan::{self, RobotsPlan, ServerPlan};
use moai_tests::fleet::{robots, server};

/// Blocking work of a thousand robots, each of which would have a disk of its own.
const MAX_BLOCKING_THREADS: usize = 16;

/// One process of the fleet bench.
#[derive(Parser)]
#[command(name = "moai-fleet", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A compute server that serves until it is killed.
    Server {
        /// What it is told.
        plan: PathBuf,
    },
    /// Many robots; prints what was measured as JSON.
    Robots {
        /// What they are told.
        plan: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let command = Cli::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build()?;
    match command {
        Command::Server { plan } => runtime.block_on(server::run(plan::read::<ServerPlan>(&plan)?)),
        Command::Robots { plan } => {
            let plan = plan::read::<RobotsPlan>(&plan)?;
            let report = runtime.block_on(robots::run(&plan));
            // A thousand robots that are dropped say good-bye; nobody waits for it.
            runtime.shutdown_background();
            println!("{}", serde_json::to_string(&report?)?);
            Ok(())
        }
    }
}
